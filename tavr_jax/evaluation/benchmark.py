"""Scoring rows of videos against held-out truth: what is measured, and how.

A row is a way to make the video of a sample: a checkpoint, or one of the marks that
tell how its numbers read:

    truth    the real video: what identity, sharpness and lip-sync can be at best
    codec    the real video through the autoencoder: the ceiling of every checkpoint
    still    frame 0 repeated: the right face in the right place, that does not speak

Every row is scored on the same crops, those of the median face box of the real video:
a detector that failed on some row would otherwise decide the comparison.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from tavr_jax.evaluation import metrics

VERSION = "1"  # of the scores; a change of what is computed is a change of it

Scores = dict[str, float | None]  # metric -> value; None where it is not defined


class Metric(NamedTuple):
    """One column."""

    key: str
    label: str
    digits: int
    meaning: str


METRICS = (
    Metric("identity", "Identity ↑", 3, "cosine to all reference faces, mean"),
    Metric("identity_best", "Identity, best ↑", 3, "cosine to the nearest face"),
    Metric("sync_c", "Sync-C ↑", 3, "median - min of the sync distance over shifts"),
    Metric("sync_d", "Sync-D ↓", 3, "sync distance at the best shift"),
    Metric("offset", "Offset → 0", 1, "best shift, frames; its size, averaged"),
    Metric("mouth", "Mouth r ↑", 3, "mouth motion, correlation with the real one"),
    Metric("psnr", "PSNR ↑", 2, "against the real video, dB"),
    Metric("ssim", "SSIM ↑", 3, "against the real video"),
    Metric("sharpness", "Sharpness → 1", 2, "fine detail of the face / the real one's"),
    Metric("flicker", "Flicker → 0", 2, "change outside the face - the real one's"),
)


class Judges(NamedTuple):
    """The scoring networks and croppers, as functions of arrays."""

    crop_face: Callable[[ndarray, ndarray], ndarray]  # frames, boxes -> face crops u8
    crop_lips: Callable[[ndarray, ndarray], ndarray]
    embed_faces: Callable[[ndarray], ndarray]  # crops "F Y X 3" u8 -> "F Z"
    # crops "F Y X 3" u8 and mel "F U" -> lips "W Z", speech "W Z" of the same windows
    # unit vectors
    embed_sync: Callable[[ndarray, ndarray], tuple[ndarray, ndarray]]
    max_shift: int  # frames


class Truth(NamedTuple):
    """What the videos of one sample are measured against."""

    frames: UInt8[ndarray, "F Y X 3"]
    boxes: Float[ndarray, "F 4"]  # face, left top right bottom in 0..1
    reference_faces: UInt8[ndarray, "J y x 3"]  # at the size embed_faces reads
    mel: Float[ndarray, "F U"]
    opening: Float[ndarray, " F"] | None  # of the mouth, where it is known


class Mean(NamedTuple):
    """Over samples; `error` is the standard error, None for a single sample."""

    mean: float
    error: float | None
    count: int


def score(
    video: UInt8[ndarray, "F Y X 3"], truth: Truth, judges: Judges
) -> tuple[Scores, list[float]]:
    """All metrics of one video, and its sync curve over shifts."""
    box = np.median(truth.boxes, axis=0, keepdims=True).repeat(len(video), axis=0)
    faces = judges.embed_faces(judges.crop_face(video, box))
    who = metrics.identity(faces, judges.embed_faces(truth.reference_faces))
    lips, speech = judges.embed_sync(judges.crop_lips(video, box), truth.mel)
    sync = metrics.lip_sync(lips, speech, judges.max_shift, zero_ends=False)
    values = {
        "identity": who.mean,
        "identity_best": who.best,
        "sync_c": sync.confidence,
        "sync_d": sync.distance,
        "offset": float(sync.offset),
        "mouth": _mouth(video, truth, box),
        "psnr": metrics.psnr(video, truth.frames),
        "ssim": metrics.ssim(video, truth.frames),
        "sharpness": _sharpness(video, truth, box),
        # Not a ratio: scenes that hold still have none of their own.
        "flicker": metrics.flicker(video, truth.boxes)
        - metrics.flicker(truth.frames, truth.boxes),
    }
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    return finite, sync.curve.tolist()


def methods(networks: dict[str, str]) -> dict[str, dict[str, str]]:
    """How each metric was computed: network, version and preprocessing.

    `networks` describes the "face" and the "lipsync" network.
    """
    crops = "square crops, 1.25 x the median face box of the real video"
    none = {"network": "none", "version": VERSION}
    face = {"network": networks["face"], "version": VERSION, "preprocessing": crops}
    sync = {
        "network": networks["lipsync"],
        "version": VERSION,
        "preprocessing": f"{crops}; log-mel rows; windows where both exist",
    }
    frames = "frames at bucket size as decoded, before any video compression"
    image = {**none, "preprocessing": frames}
    luma = {**none, "preprocessing": f"{frames}; luma in grey levels 0..255"}
    mouth = {
        **none,
        "preprocessing": "luma of the lower face, projected on the first principal "
        "direction of the real video; Pearson correlation with the real video's curve, "
        "or with the true mouth opening where it is known",
    }
    kinds = {"identity": face, "identity_best": face, "mouth": mouth}
    kinds |= dict.fromkeys(("sync_c", "sync_d", "offset"), sync)
    kinds |= dict.fromkeys(("psnr", "ssim"), image)
    kinds |= dict.fromkeys(("sharpness", "flicker"), luma)
    return {m.key: {"meaning": m.meaning, **kinds[m.key]} for m in METRICS}


def summarise(samples: Sequence[Scores]) -> dict[str, Mean | None]:
    """Mean of every metric over the samples that have it; offsets by their size."""
    return {m.key: _mean([s[m.key] for s in samples], m.key) for m in METRICS}


def differences(
    samples: Sequence[Scores], baseline: Sequence[Scores]
) -> dict[str, Mean | None]:
    """Mean of sample - baseline, sample by sample: what two rows have in common, such
    as an easy face, cancels."""
    found: dict[str, Mean | None] = {}
    for metric in METRICS:
        pairs = zip(samples, baseline, strict=True)
        values = [
            None
            if None in (a[metric.key], b[metric.key])
            else _difference(metric, a, b)
            for a, b in pairs
        ]
        found[metric.key] = _mean(values, "difference")
    return found


def _mouth(video: ndarray, truth: Truth, box: ndarray) -> float:
    curve, real = metrics.mouth_motion([video, truth.frames], truth.frames, box)
    if truth.opening is None:
        return metrics.correlation(curve, real)
    side = math.copysign(1.0, metrics.correlation(real, truth.opening))
    return side * metrics.correlation(curve, truth.opening)


def _sharpness(video: ndarray, truth: Truth, box: ndarray) -> float:
    real = metrics.sharpness(truth.frames, box)
    return metrics.sharpness(video, box) / real if real else float("nan")


def _difference(metric: Metric, a: Scores, b: Scores) -> float:
    size = abs if metric.key == "offset" else float
    return size(a[metric.key]) - size(b[metric.key])


def _mean(values: Sequence[float | None], key: str) -> Mean | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    array = np.abs(known) if key == "offset" else np.array(known)
    count = len(array)
    error = float(array.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Mean(float(array.mean()), error, count)
