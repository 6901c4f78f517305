"""Where is it: one vector a clip of background, clothes and light; scenes from them.

    (1) background   histogram of Lab colours outside the person, and mean Lab colours
                     of 6 x 6 fields of the frame with the share of each that is outside
    (2) clothes      histogram of Lab colours of the person below the chin
    (3) light        mean and spread of L, mean a and b of the face
    (4) d = 1/2 background + 0.35 clothes + 0.15 light, each 0..1; clothes count only
            where both clips show some, the rest then weighs more
    (5) clips of one file: d times 1/2 + 1/2 min(1, seconds between them / 60)

Histogram distance is half the sum of absolute differences; that of fields is the mean
distance of colours over fields that both show, 40 Lab units being 1; that of light is
the mean of its four differences, 40 being 1. Grouped as people are (linkage.py): clips
of one file first, then files. All of it is ours.
"""

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from data_pipelines import conditions
from data_pipelines.prepare import linkage

SIDE = 96  # pixels of the longer side that is looked at
FIELDS = 6
_L_EDGES = (25.0, 50.0, 75.0)
_AB_EDGES = (-16.0, -5.0, 5.0, 16.0)
_BINS = (len(_L_EDGES) + 1) * (len(_AB_EDGES) + 1) ** 2
_SCALE = 40.0  # Lab units that count as wholly different
_WEIGHTS = (0.5, 0.35, 0.15)  # of background, clothes, light
_LEAST_CLOTHES = 0.01  # share of the frame
_LONG_AGO = 60.0  # seconds
LENGTH = 2 * _BINS + 4 * FIELDS**2 + 1 + 4


def signature(
    frames: UInt8[ndarray, "n Y X 3"],
    person: Bool[ndarray, "H W"],
    face_box: Float[ndarray, "4"],
) -> Float[ndarray, " S"]:
    """(1), (2) and (3) of a few frames of a clip, float32, S = LENGTH.

    `person` and `face_box` are of any one of the frames: people move little in a clip.
    """
    lab = np.stack([_lab(frame) for frame in frames])
    rows, columns = lab.shape[1:3]
    size = (columns, rows)
    inside = cv2.resize(person.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    inside, outside = inside > 0.5, inside < 0.01  # edges belong to nobody
    left, top, right, bottom = np.clip(face_box, 0, 1) * [columns, rows, columns, rows]
    chin = np.arange(rows) >= bottom + 0.15 * (bottom - top)
    clothes = inside & chin[:, None]
    face = np.zeros((rows, columns), bool)
    face[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
    skin = lab[:, face]
    light = [skin[..., 0].mean(), skin[..., 0].std(), *skin[..., 1:].mean(axis=(0, 1))]
    parts = (
        _histogram(lab[:, outside]),
        _fields(lab.mean(axis=0), outside).ravel(),
        _histogram(lab[:, clothes]),
        [clothes.mean()],
        light,
    )
    return np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)


def of_clip(
    frames: UInt8[ndarray, "F Y X 3"], boxes: Float[ndarray, "F 4"]
) -> Float[ndarray, " S"]:
    """The signature of a clip: three frames of it, its first frame's person."""
    chosen = np.linspace(0, len(frames) - 1, 3).astype(int)
    person = conditions.person_box_from_face(boxes[0])
    mask = conditions.still_mask(person, frames.shape[1:3])
    return signature(frames[chosen], mask, boxes[0])


def distances(
    one: Float[ndarray, "n S"], other: Float[ndarray, "m S"]
) -> Float[ndarray, "n m"]:
    """(4) of every pair."""
    one, other = _parts(one), _parts(other)
    out = np.empty((len(one[0]), len(other[0])))
    for row in range(len(out)):
        background, fields, clothes, area, light = (part[row] for part in one)
        shown = np.minimum(fields[..., 3], other[1][..., 3])
        apart = np.linalg.norm(fields[..., :3] - other[1][..., :3], axis=-1) / _SCALE
        apart = (np.minimum(apart, 1) * shown).sum(axis=1)
        total = shown.sum(axis=1)
        alike = np.abs(background - other[0]).sum(axis=1) / 2
        apart = np.where(total > 0, apart / np.maximum(total, 1e-9), alike)
        dressed = np.minimum(area, other[3])[:, 0] >= _LEAST_CLOTHES
        terms = (
            (alike + apart) / 2,
            np.abs(clothes - other[2]).sum(axis=1) / 2,
            np.minimum(np.abs(light - other[4]) / _SCALE, 1).mean(axis=1),
        )
        shares = [np.full(len(dressed), weight) for weight in _WEIGHTS]
        shares[1] = shares[1] * dressed
        weighed = sum(share * term for share, term in zip(shares, terms, strict=True))
        out[row] = weighed / sum(shares)
    return out


def cluster(
    signatures: Float[ndarray, "n S"],
    names: Sequence[str | None],
    files: Sequence[str],
    starts: Sequence[float],
    same_scene: float,
) -> Int[ndarray, " n"]:
    """Which scene each of n clips of one person shows, numbered by first clips.

    Clips of equal names are one scene, of different names never; `same_scene` is the
    largest distance (4), (5) inside a scene.
    """
    signatures = np.asarray(signatures, np.float64)
    heads = np.arange(len(signatures)).astype(int)
    groups = defaultdict(list)
    for row, (file, name) in enumerate(zip(files, names, strict=True)):
        groups[("name", name) if name is not None else ("file", file)].append(row)
    for (kind, _), rows in groups.items():
        found = np.zeros(len(rows), int)
        if kind == "file" and len(rows) > 1:
            square = distances(signatures[rows], signatures[rows])
            times = np.asarray([starts[row] for row in rows])
            gap = np.abs(times[:, None] - times[None]) / _LONG_AGO
            square *= 0.5 + 0.5 * np.minimum(gap, 1)
            found = linkage.group(square, [None] * len(rows), same_scene)
        for label in range(found.max() + 1):
            members = [row for row, of in zip(rows, found, strict=True) if of == label]
            heads[members] = members[0]
    chosen, held = np.unique(heads, return_inverse=True)
    means = np.stack([signatures[held == i].mean(axis=0) for i in range(len(chosen))])
    square = distances(means, means)
    labels = linkage.group(square, [names[head] for head in chosen], same_scene)
    return linkage.in_order(labels[held])


def _lab(frame: ndarray) -> ndarray:
    scale = SIDE / max(frame.shape[:2])
    size = tuple(max(8, round(side * scale)) for side in frame.shape[1::-1])
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _histogram(lab: ndarray) -> ndarray:
    """Shares of colours over bins, zeros where there is nothing."""
    flat = lab.reshape(-1, 3)
    if not len(flat):
        return np.zeros(_BINS)
    level = np.digitize(flat[:, 0], _L_EDGES)
    a, b = (np.digitize(flat[:, i], _AB_EDGES) for i in (1, 2))
    steps = len(_AB_EDGES) + 1
    codes = (level * steps + a) * steps + b
    return np.bincount(codes, minlength=_BINS) / len(flat)


def _fields(lab: ndarray, outside: ndarray) -> ndarray:
    """(FIELDS, FIELDS, 4): mean colour outside the person, and the share outside."""
    rows, columns = outside.shape
    out = np.zeros((FIELDS, FIELDS, 4))
    row_edges = np.linspace(0, rows, FIELDS + 1).astype(int)
    column_edges = np.linspace(0, columns, FIELDS + 1).astype(int)
    for i in range(FIELDS):
        for j in range(FIELDS):
            field = np.s_[
                row_edges[i] : row_edges[i + 1], column_edges[j] : column_edges[j + 1]
            ]
            shown = outside[field]
            if shown.any():
                out[i, j, :3] = lab[field][shown].mean(axis=0)
                out[i, j, 3] = shown.mean()
    return out


def _parts(signatures: ndarray) -> list[ndarray]:
    """Background histogram, fields, clothes histogram, area of clothes, light."""
    edges = np.cumsum([_BINS, 4 * FIELDS**2, _BINS, 1])
    background, fields, clothes, area, light = np.split(signatures, edges, axis=1)
    return [background, fields.reshape(len(fields), -1, 4), clothes, area, light]
