"""Scoring networks that a user brings as .onnx files; none is ever a default.

    --face_network NAME=FILE  identity, as NAME/identity ...; may be repeated. Reads
                              faces (n, 3, Y, X), RGB / 127.5 - 1, gives vectors: at
                              112 pixels, or of a size left open, five points at their
                              standard place (the ArcFace family); at any other size
                              square crops (FaceNet's)
    --fid_network FILE        FID. Frames (n, 3, Y, X), RGB / 127.5 - 1, bilinear to the
                              file's size or 299 pixels, to features (n, Z)
    --fvd_network FILE        FVD. Clips (n, 3, 16, Y, X), RGB / 255, the square in the
                              middle at the file's size or 224 pixels, to (n, Z)
    --lpips_network FILE      LPIPS. Two pictures (n, 3, Y, X), RGB / 127.5 - 1, at
                              bucket size, to a distance each: lpips.LPIPS as a whole

A NAME of `metrics_method.KNOWN`, which may stand before any of these files, NAME=FILE,
is told with its licence there; nothing is known to us of any other file. Faces are
looked for in SAMPLED frames, as FaceSim does; a frame whose face has no five points is
left out, and where none has them, plain crops are taken.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy import ndarray

from data_pipelines import onnx_models, people
from data_pipelines.onnx_models import Model
from data_pipelines.prepare.identity import AlignedNetwork
from tavr_jax.errors import InputError
from tavr_jax.evaluation import metrics_features
from tavr_jax.evaluation.benchmark import VERSION, Network
from tavr_jax.evaluation.metrics_identity import SAMPLED
from tavr_jax.evaluation.metrics_method import KNOWN, Method, notice
from tavr_jax.evaluation.score_video import Given

FID_SIZE, FVD_SIZE, CLIP = 299, 224, 16  # pixels; frames
_BATCH = 8  # pictures at once, where a file takes any number
_UNKNOWN = "licence not known to us"


def given(
    faces: Sequence[str], fid: str | None, fvd: str | None, lpips: str | None
) -> tuple[Given, dict[str, Network]]:
    """The functions, and what they are; those not to be used by everybody are told.

    InputError: no such file, or not such a network.
    """
    readers, found = {}, {}
    for text in faces:
        name, _, path = text.partition("=")
        if not name or not path or not name.isidentifier() or name in readers:
            raise InputError(
                f"--face_network {text}: expected NAME=FILE.onnx, letters, digits and "
                "underscores, a name once"
            )
        readers[name], found[f"face {name}"] = _face(name, path)
    functions = {}
    for kind, text, load in (
        ("fid", fid, _fid),
        ("fvd", fvd, _fvd),
        ("lpips", lpips, _lpips),
    ):
        if text:
            name, _, path = text.partition("=")
            name, path = (name, path) if name in KNOWN else ("", text)
            functions[kind], fed = load(path)
            found[kind] = _network(name, path, fed)
    for network in found.values():
        licence, commercial = network.licence, network.commercial
        method = Method(
            network.what, VERSION, licence, network.preprocessing, commercial
        )
        if (line := notice(method)) is not None:
            print(line)
    return Given(faces=readers, **functions), found


def _face(
    name: str, path: str
) -> tuple[Callable[[ndarray, ndarray], ndarray], Network]:
    model = _open("face", path, (4,), ("n", "Z"))
    rows, columns = model.shape[2:]
    size = rows or AlignedNetwork.size
    if rows != columns:
        raise InputError(f"--face_network {path}: reads {rows}x{columns}, not a square")
    aligned = AlignedNetwork(path) if size == AlignedNetwork.size else None

    def embed(frames: ndarray, boxes: ndarray) -> ndarray:
        count = min(SAMPLED, len(frames))
        if aligned is not None:
            crops = aligned.crops(frames, boxes, count)
        else:
            crops = people.crop_faces(frames, boxes, size, count)
        return _run(model, _signed(crops))

    how = "five points to 112 x 112" if aligned else f"square crops of {size} pixels"
    fed = f"{SAMPLED} frames, {how} by the real video's face box, RGB / 127.5 - 1"
    return embed, _network(name, path, fed)


def _fid(path: str) -> tuple[metrics_features.FrameFeatures, str]:
    """The function, and how it feeds the network; so the next two."""
    model = _open("fid", path, (4,), ("n", "Z"))
    size = tuple(side or FID_SIZE for side in model.shape[2:])

    def features(frames: ndarray) -> ndarray:
        shown = [
            cv2.resize(f, size[::-1], interpolation=cv2.INTER_LINEAR) for f in frames
        ]
        return _run(model, _signed(np.stack(shown)))

    fed = f"{size[0]} x {size[1]} bilinear, RGB / 127.5 - 1; every 5th frame"
    return features, fed


def _fvd(path: str) -> tuple[metrics_features.ClipFeatures, str]:
    model = _open("fvd", path, (5,), ("n", "Z"))
    length, rows, columns = model.shape[2:]
    size = rows or FVD_SIZE
    if length not in (None, CLIP) or rows != columns:
        raise InputError(
            f"--fvd_network {path}: reads {length} frames of {rows}x{columns}; give "
            f"one of {CLIP} frames of a square"
        )

    def features(clips: ndarray) -> ndarray:
        if not len(clips):
            return np.zeros((0, 0))
        shown = [metrics_features.square(clip, size) for clip in clips]
        scaled = np.stack(shown).astype(np.float32) / 255
        return _run(model, scaled.transpose(0, 4, 1, 2, 3))

    fed = f"all disjoint {CLIP} frames, the middle square at {size} pixels, RGB / 255"
    return features, fed


def _lpips(path: str) -> tuple[Callable[[ndarray, ndarray], ndarray], str]:
    model = _open("lpips", path, (4, 4), ())

    def apart(frames: ndarray, real: ndarray) -> ndarray:
        return _run(model, _signed(frames), _signed(real)).reshape(len(frames))

    return apart, "bucket size, RGB / 127.5 - 1; every 5th frame"


def _open(
    kind: str, path: str, ranks: tuple[int, ...], gives: tuple[str, ...]
) -> Model:
    """InputError: no such network; its output is not shaped (`gives`), where told."""
    model = onnx_models.open_model(path, ranks)
    shape = next(iter(model.outputs.values()))
    if gives and len(shape) != len(gives):
        raise InputError(
            f"--{kind}_network {path}: gives {shape}; give a network of "
            f"({', '.join(gives)})"
        )
    return model


def _run(model: Model, *pictures: ndarray) -> ndarray:
    """The first output for every picture; one at a time where the file says so."""
    step = model.shape[0] or _BATCH
    if step > 1 and model.shape[0] is not None and len(pictures[0]) % step:
        raise InputError(
            f"{model.path}: takes {step} at once; export it for any number"
        )
    found = [
        model(*(given[start : start + step] for given in pictures))[0]
        for start in range(0, len(pictures[0]), step)
    ]
    return np.concatenate([np.asarray(part) for part in found])


def _network(name: str, path: str, fed: str) -> Network:
    what = f"{name} {_mark(path)}".strip()
    if name in KNOWN:
        return Network(what, KNOWN[name].licence, KNOWN[name].commercial, fed)
    return Network(what, _UNKNOWN, False, fed)


def _mark(path: str) -> str:
    """Which file it is, whatever it is called."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{Path(path).name} {digest[:12]}"


def _signed(pixels: ndarray) -> ndarray:
    """uint8 (n, Y, X, 3) -> float32 (n, 3, Y, X) in [-1, 1]."""
    scaled = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return scaled.transpose(0, 3, 1, 2)
