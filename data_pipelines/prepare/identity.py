"""Who is it: one vector a clip, and people from vectors.

    (1) e = unit(sum_j unit(f(face_j)))      over a clip's face crops, f a face network
    (2) d(a, b) = 1 - e_a . e_b
    (3) two people are one while the mean of (2) between them is within 1 - same_person

(3) is average linkage, which never joins what no chain of pairs within the limit
connects. So footage of any size is first cut into such chains, in blocks of memory of
fixed size, and each chain is grouped by itself: exact. Clips of one file are grouped
before files are; a vector of zeros is somebody alone. All of it is ours.
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines import onnx_models, people
from data_pipelines.prepare import linkage

BLOCK = 2048  # rows compared with all others at once
LONGEST_CHAIN = 12_000  # rows grouped at once: 12 000^2 numbers are 1.2 GB
STRICTER = 0.05  # a longer chain is cut at a cosine so much higher, again and again
# Where a face network of the ArcFace family expects eyes, nose and mouth corners in
# its 112 x 112 input: measured means of its training faces, public since 2018.
_ALIGNED = np.float32(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
_LOOK = 160  # pixels of the crop in which the five points are searched
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")

_local = threading.local()  # OpenCV networks hold state: one detector a thread


class FaceNetwork(Protocol):
    """What `of_clip` asks of a face network; it must survive pickling."""

    name: str  # of the weights: identities of two networks do not compare

    def crops(
        self, frames: UInt8[ndarray, "F Y X 3"], boxes: Float[ndarray, "F 4"], n: int
    ) -> UInt8[ndarray, "J y x 3"]:
        """`n` faces as the network wants them, spread over the frames."""
        ...

    def __call__(self, faces: UInt8[ndarray, "J y x 3"]) -> Float[ndarray, "J Z"]:
        """Vectors of any length."""
        ...


class CropNetwork(NamedTuple):
    """A network of plain square crops (people.crop_faces), as the mini world's."""

    name: str
    size: int
    embed: Callable[[UInt8[ndarray, "J Y X 3"]], Float[ndarray, "J Z"]]

    def crops(self, frames, boxes, n):
        """Square crops around the boxes."""
        return people.crop_faces(frames, boxes, self.size, n)

    def __call__(self, faces):
        """Vectors of the crops."""
        return self.embed(faces)


class AlignedNetwork:
    """An ONNX file that reads aligned faces (1, 3, 112, 112) with ImageNet's scaling.

    MobileFaceNet of foamliu is one. The file is opened in the process that uses it.
    InputError: no such file, not such a network.
    """

    size = 112

    def __init__(self, path: str | Path):
        self.path, self._model = str(path), None
        self._open()
        self.name = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]

    def _open(self):
        if self._model is None:
            self._model = onnx_models.open_model(self.path)
        return self._model

    def crops(self, frames, boxes, n):
        """Faces turned and scaled so that eyes, nose and mouth are where they belong.

        The five points are MTCNN's, in the face's crop; a face without them is left
        out, and if all are without, plain crops come back.
        """
        chosen = np.rint(np.linspace(0, len(frames) - 1, n)).astype(int)
        looks = people.crop_faces(frames[chosen], boxes[chosen], _LOOK, len(chosen))
        faces = [_align(look) for look in looks]
        found = [face for face in faces if face is not None]
        if not found:
            return people.crop_faces(frames[chosen], boxes[chosen], self.size, n)
        return np.stack(found)

    def __call__(self, faces):
        """Vectors of the faces and of their mirror images, added."""
        model = self._open()
        scaled = (faces.astype(np.float32) / 255 - _MEAN) / _STD
        both = np.stack([scaled, scaled[:, :, ::-1]], axis=1).transpose(0, 1, 4, 2, 3)
        return np.stack(
            [sum(model(view[None])[0][0] for view in pair) for pair in both]
        )

    def __getstate__(self):
        return {**self.__dict__, "_model": None}


def of_clip(
    frames: UInt8[ndarray, "F Y X 3"],
    boxes: Float[ndarray, "F 4"],
    network: FaceNetwork | None,
    count: int,
) -> Float[ndarray, " Z"]:
    """(1) of `count` frames of a clip; (0,) without a network."""
    if network is None:
        return np.zeros(0, np.float32)
    return embed_clip(network.crops(frames, boxes, count), network)


def embed_clip(
    faces: UInt8[ndarray, "J Y X 3"], network: FaceNetwork | None
) -> Float[ndarray, " Z"]:
    """(1) of crops as the network wants them; (0,) without a network."""
    if network is None:
        return np.zeros(0, np.float32)
    vectors = _unit(np.asarray(network(faces), np.float64))
    return _unit(vectors.sum(axis=0)).astype(np.float32)


def cluster(
    identities: Float[ndarray, "n Z"],
    names: Sequence[str | None],
    files: Sequence[str],
    same_person: float,
) -> Int[ndarray, " n"]:
    """Which person each of n clips shows, numbered in the order of first clips. (3)

    Clips of equal names are one person, clips of different names never are; `files`
    tells which clips are of one file.
    """
    vectors = _unit(np.asarray(identities, np.float64))
    numbers = np.arange(len(vectors)).astype(int)
    by_file = defaultdict(list)
    for row, (file, name) in enumerate(zip(files, names, strict=True)):
        by_file[("name", name) if name is not None else ("file", file)].append(row)
    for (kind, _), rows in by_file.items():
        found = np.zeros(len(rows), int)
        if kind == "file":
            found = _people(vectors[rows], [None] * len(rows), same_person)
        numbers[rows] = np.asarray(rows)[
            [np.flatnonzero(found == label)[0] for label in found]
        ]
    heads, held = np.unique(numbers, return_inverse=True)
    sums = np.zeros((len(heads), vectors.shape[1]))
    np.add.at(sums, held, vectors)
    joined = _people(_unit(sums), [names[head] for head in heads], same_person)
    return linkage.in_order(joined[held])


def _people(
    vectors: ndarray, names: Sequence[str | None], same_person: float
) -> Int[ndarray, " n"]:
    """(3) by chains; equal names do not occur twice."""
    labels, following = np.empty(len(vectors), int), 0
    waiting = [(np.arange(len(vectors)), same_person)]
    while waiting:
        rows, cosine = waiting.pop()
        chains = _chains(vectors[rows], cosine)
        for chain in range(chains.max(initial=-1) + 1):
            members = rows[chains == chain]
            if len(members) > LONGEST_CHAIN and cosine < 1:
                waiting.append((members, cosine + STRICTER))
                continue
            distances = 1 - vectors[members] @ vectors[members].T
            alone = ~vectors[members].any(axis=1)
            distances[alone], distances[:, alone] = 2, 2
            inside = [names[row] for row in members]
            found = linkage.group(distances, inside, 1 - same_person)
            labels[members] = following + found
            following += found.max() + 1
    return linkage.in_order(labels)


def _chains(vectors: ndarray, cosine: float) -> Int[ndarray, " n"]:
    """Connected parts of the graph of pairs with at least this cosine."""
    count = len(vectors)
    labels = np.arange(count)
    for start in range(0, count, BLOCK):
        near = vectors[start : start + BLOCK] @ vectors.T >= cosine - 1e-9
        rows, columns = np.nonzero(near)
        edges = (np.ones(len(rows), np.int8), (labels[rows + start], labels[columns]))
        graph = coo_array(edges, shape=(count, count))
        labels = connected_components(graph, directed=False)[1][labels]
    return labels


def _align(look: UInt8[ndarray, "Y X 3"]) -> ndarray | None:
    """The face of a crop at its standard place, or None where no points are found."""
    if not hasattr(_local, "detector"):
        _local.detector = people.MTCNN(min_face_size=_LOOK // 4)
    faces = _local.detector.detect_faces(look)
    if not faces:
        return None
    middle = np.array([_LOOK / 2, _LOOK / 2])
    face = min(faces, key=lambda f: np.abs(_centre(f["box"]) - middle).sum())
    points = np.float32([face["keypoints"][name] for name in _POINTS])
    turn, _ = cv2.estimateAffinePartial2D(points, _ALIGNED, method=cv2.LMEDS)
    if turn is None:
        return None
    return cv2.warpAffine(look, turn, (112, 112), borderMode=cv2.BORDER_REPLICATE)


def _centre(box) -> ndarray:
    left, top, width, height = box
    return np.array([left + width / 2, top + height / 2])


def _unit(vectors: ndarray) -> ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-8)
