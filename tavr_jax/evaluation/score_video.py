"""Every score of one video of a sample, against the sample's truth.

The median face box of the real video, and nothing else, says where faces are: a
detector that failed on some row would otherwise decide the comparison. What is asked of
the real video and of the reference is computed once a sample.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from tavr_jax.evaluation import (
    metrics,
    metrics_drift,
    metrics_face,
    metrics_features,
    metrics_identity,
    metrics_leakage,
    metrics_mini,
    metrics_scene,
    metrics_style,
)

Scores = dict[str, float | None]  # metric -> value; None where it is not defined

REPEATS = 5  # frames: furthest that a mouth may be behind what it follows (ours)
EDGE, LONG_EDGE, LONG = 1.0, 5.0, 20.0  # seconds: of drift, of a video that is long
EVERY = 5  # frames between two that features of frames are taken of


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
    persons: Float[ndarray, "n 4"]  # all boxes that some person of the clip fills
    reference: UInt8[ndarray, "G Y X 3"]  # from the first frame the model is shown on
    reference_boxes: Float[ndarray, "G 4"]
    reference_faces: UInt8[ndarray, "J y x 3"]  # at the size embed_faces reads
    mel: Float[ndarray, "F U"]
    opening: Float[ndarray, " F"] | None  # of the mouth, where it is known
    fps: float


class Scored(NamedTuple):
    """All that is kept of one video."""

    scores: Scores
    sync_curve: list[float]  # over shifts
    frames: Float[ndarray, "n 39"]  # features of frames and of clips
    clips: Float[ndarray, "n 51"]


class Scorer:
    """The truth of one sample, and how videos are measured against it."""

    def __init__(self, truth: Truth, judges: Judges):
        self.truth, self.judges = truth, judges
        self.box = np.median(truth.boxes, axis=0, keepdims=True)
        self.faces = self._embed(truth.frames)
        self.known = judges.embed_faces(truth.reference_faces)
        self.curves = self._curves(truth.frames, self.box)
        reference_box = np.median(truth.reference_boxes, axis=0, keepdims=True)
        self.told = self._curves(truth.reference, reference_box)
        self.moves = metrics_scene.motion(
            truth.frames, self._boxes(truth.frames), truth.fps
        )

    def score(
        self, video: UInt8[ndarray, "F Y X 3"], joins: Sequence[int] = ()
    ) -> Scored:
        """A video as long and as large as the real one, or shorter.

        `joins` are the first frames of its chunks, where they are known.
        """
        truth = self._cut(len(video))
        faces = self._embed(video)
        sync = self._sync(video, truth)
        curves = self._curves(video, self.box)
        values = {
            **self._identity(faces),
            "sync_c": sync.confidence,
            "sync_d": sync.distance,
            "offset": float(sync.offset),
            **self._pixels(video, truth),
            **self._manner(video, curves),
            **self._drift(video, faces),
            "seam": metrics_drift.seam(video, joins, truth.fps),
        }
        clips = metrics_features.cut(video, metrics_features.EVERY)
        return Scored(
            {key: _finite(value) for key, value in values.items()},
            sync.curve.tolist(),
            metrics_mini.frame_features(video[::EVERY]),
            metrics_mini.clip_features(clips) if len(clips) else np.zeros((0, 51)),
        )

    def _identity(self, faces: ndarray) -> Scores:
        found = metrics_identity.likeness(faces, self.known, self.faces)
        return {
            "identity": found.reference and found.reference.mean,
            "identity_best": found.reference and found.reference.best,
            "identity_target": found.target and found.target.mean,
            "identity_lost": found.lost,
            "facesim": found.facesim,
        }

    def _sync(self, video: ndarray, truth: Truth) -> metrics.LipSync:
        box = self._boxes(video)
        crops = self.judges.crop_lips(video, box)
        lips, speech = self.judges.embed_sync(crops, truth.mel)
        return metrics.lip_sync(lips, speech, self.judges.max_shift, zero_ends=False)

    def _pixels(self, video: ndarray, truth: Truth) -> Scores:
        box = self._boxes(video)
        sharp = metrics.sharpness(truth.frames, box)
        behind = metrics_scene.background(video, truth.frames, truth.persons)
        return {
            "psnr": metrics.psnr(video, truth.frames),
            "ssim": metrics.ssim(video, truth.frames),
            "bg_psnr": behind and behind.psnr,
            "bg_ssim": behind and behind.ssim,
            "sharpness": metrics.sharpness(video, box) / sharp if sharp else None,
            # Not a ratio: scenes that hold still have none of their own.
            "flicker": metrics.flicker(video, truth.boxes)
            - metrics.flicker(truth.frames, truth.boxes),
            "mouth": _mouth(video, truth, box),
        }

    def _manner(self, video: ndarray, curves: metrics_face.Curves | None) -> Scores:
        fps, real, told = self.truth.fps, self.curves, self.told
        moves = metrics_scene.motion(video, self._boxes(video), fps)
        keys = ("motion", "blinks", "style", "follows", "leak", "leak_p")
        found: Scores = dict.fromkeys(keys)
        if moves is not None and self.moves:
            found["motion"] = moves / self.moves
        if curves is None or real is None:
            return found
        rates = [metrics_face.blinks(c.eyes, fps).per_minute for c in (curves, real)]
        found["blinks"] = rates[0] - rates[1]
        followed = _follows(curves, real, fps)
        found["follows"] = followed and followed.leak
        if told is not None:
            if copied := _follows(curves, told, fps):
                found |= {"leak": copied.leak, "leak_p": copied.p}
            if min(len(curves.mouth), len(told.mouth)) >= fps:
                found["style"] = metrics_style.style_distance(curves, told, fps).total
        return found

    def _drift(self, video: ndarray, faces: ndarray) -> Scores:
        truth = self.truth
        edge = LONG_EDGE if len(video) >= LONG * truth.fps else EDGE
        size = video.shape[1:3]
        regions = {
            "colour_scene": metrics.outside(truth.persons, size),
            "colour_face": ~metrics.outside(self.box, size),
        }
        who = metrics_drift.identity_drift(faces, truth.fps, edge)
        found: Scores = {"identity_drift": who and who.change}
        for key, region in regions.items():
            colour = metrics_drift.colour_drift(video, region, truth.fps, edge)
            found[key] = colour and colour.apart
        return found

    def _embed(self, video: ndarray) -> ndarray:
        box = self._boxes(video)
        return self.judges.embed_faces(self.judges.crop_face(video, box))

    def _boxes(self, video: ndarray) -> ndarray:
        return self.box.repeat(len(video), axis=0)

    def _curves(self, video: ndarray, box: ndarray) -> metrics_face.Curves | None:
        return metrics_face.from_frames(video, box.repeat(len(video), axis=0))

    def _cut(self, count: int) -> Truth:
        """The truth of the first `count` frames."""
        truth = self.truth
        return truth._replace(
            frames=truth.frames[:count],
            boxes=truth.boxes[:count],
            mel=truth.mel[:count],
            opening=None if truth.opening is None else truth.opening[:count],
        )


def _follows(
    curves: metrics_face.Curves, other: metrics_face.Curves, fps: float
) -> metrics_leakage.Following | None:
    count = min(len(curves.mouth), len(other.mouth))
    mouths = curves.mouth[:count], other.mouth[:count]
    return metrics_leakage.following(*mouths, REPEATS, fps)


def _mouth(video: ndarray, truth: Truth, box: ndarray) -> float:
    curve, real = metrics.mouth_motion([video, truth.frames], truth.frames, box)
    if truth.opening is None:
        return metrics.correlation(curve, real)
    side = math.copysign(1.0, metrics.correlation(real, truth.opening))
    return side * metrics.correlation(curve, truth.opening)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
