"""Every score of one video of a sample, against the sample's truth.

The median face box of the real video, and nothing else, says where faces are: a
detector that failed on some row would otherwise decide the comparison. What is asked of
the real video and of the reference is computed once a sample.
"""

import math
from collections.abc import Callable, Mapping, Sequence
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


class Given(NamedTuple):
    """Networks that a user brought, as functions; what is not there is not scored."""

    # frames, boxes -> embeddings "J Z" of the faces in some of the frames, by a name
    faces: Mapping[str, Callable[[ndarray, ndarray], ndarray]] = {}
    fid: metrics_features.FrameFeatures | None = None
    fvd: metrics_features.ClipFeatures | None = None
    # frames and as many real ones -> how far apart each two are
    lpips: Callable[[ndarray, ndarray], ndarray] | None = None


class Judges(NamedTuple):
    """The scoring networks and croppers, as functions of arrays."""

    crop_face: Callable[[ndarray, ndarray], ndarray]  # frames, boxes -> face crops u8
    crop_lips: Callable[[ndarray, ndarray], ndarray]
    embed_faces: Callable[[ndarray], ndarray]  # crops "F Y X 3" u8 -> "F Z"
    # crops "F Y X 3" u8 and mel "F U" -> lips "W Z", speech "W Z" of the same windows
    # unit vectors
    embed_sync: Callable[[ndarray, ndarray], tuple[ndarray, ndarray]]
    max_shift: int  # frames
    given: Given = Given()


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
    reference_mel: Float[ndarray, "G U"] | None = None  # None: silent, or not asked


class Look(NamedTuple):
    """What is asked of a video, whoever made it."""

    faces: Float[ndarray, "F Z"]
    curves: metrics_face.Curves | None
    motion: float | None


class Real(NamedTuple):
    """What is asked of the real video's first frames alone."""

    sharpness: float
    flicker: float
    direction: Float[ndarray, " Z"]  # of the mouth's main motion
    mouth: Float[ndarray, " F"]


class Scored(NamedTuple):
    """All that is kept of one video."""

    scores: Scores
    sync_curve: list[float]  # over shifts
    features: dict[str, Float[ndarray, "n _"]]  # of frames and of clips, by their set


class Scorer:
    """The truth of one sample, and how videos are measured against it."""

    def __init__(self, truth: Truth, judges: Judges):
        self.truth, self.judges = truth, judges
        self.box = np.median(truth.boxes, axis=0, keepdims=True)
        self.real = self._look(truth.frames)
        self.known = judges.embed_faces(truth.reference_faces)
        self.named = {  # (1) and (3) of metrics_identity, by networks of the user's
            name: (
                embed(truth.reference, truth.reference_boxes),
                embed(truth.frames, self._boxes(truth.frames)),
            )
            for name, embed in judges.given.faces.items()
        }
        reference_box = np.median(truth.reference_boxes, axis=0, keepdims=True)
        self.told = self._curves(truth.reference, reference_box)
        self.parts: dict[int, Real] = {}  # by how many frames they are of

    def score(
        self,
        video: UInt8[ndarray, "F Y X 3"],
        joins: Sequence[int] = (),
        mel: Float[ndarray, "F U"] | None = None,
        silent: bool = False,
    ) -> Scored:
        """A video as large as the real one, and as long, shorter or longer.

        What needs the real video is scored as far as that goes: the beginning of a
        longer one. `joins` are the first frames of its chunks, where they are known;
        `mel` is the speech it was driven by, if not the real video's; `silent`: by none
        at all.
        """
        truth = self._cut(len(video))
        known = video if len(truth.frames) == len(video) else video[: len(truth.frames)]
        seen = self.real if video is self.truth.frames else self._look(known)
        faces = seen.faces
        if beyond := len(video) - len(known):
            faces = np.concatenate([faces, self._faces(video[-beyond:])])
        if silent:
            spoken, curve = self._silence(video, seen.curves), []
        else:
            heard = truth.mel if mel is None else mel[: len(video)]
            sync = self._sync(video[: len(heard)], heard)
            spoken = {
                "sync_c": sync.confidence,
                "sync_d": sync.distance,
                "offset": float(sync.offset),
            }
            curve = sync.curve.tolist()
        values = {
            **self._identity(faces),
            **self._named(video),
            **spoken,
            **self._pixels(known, truth),
            **self._manner(seen),
            **self._drift(video, faces),
            "seam": metrics_drift.seam(video, joins, truth.fps),
        }
        scores = {key: _finite(value) for key, value in values.items()}
        return Scored(scores, curve, self._features(known))

    def _identity(self, faces: ndarray) -> Scores:
        found = metrics_identity.likeness(faces, self.known, self.real.faces)
        return {
            "identity": found.reference and found.reference.mean,
            "identity_best": found.reference and found.reference.best,
            "identity_target": found.target and found.target.mean,
            "identity_lost": found.lost,
            "facesim": found.facesim,
        }

    def _named(self, video: ndarray) -> Scores:
        """Identity by networks of the user's, "name/metric"."""
        found: Scores = {}
        for name, (known, real) in self.named.items():
            faces = self.judges.given.faces[name](video, self._boxes(video))
            told = metrics_identity.likeness(faces, known, real)
            found |= {
                f"{name}/identity": told.reference and told.reference.mean,
                f"{name}/identity_best": told.reference and told.reference.best,
                f"{name}/identity_target": told.target and told.target.mean,
                f"{name}/facesim": told.facesim,
            }
        return found

    def _silence(self, video: ndarray, curves: metrics_face.Curves | None) -> Scores:
        """What a mouth does that hears nothing: (5) of `metrics_leakage`."""
        keys = ("sync_c", "sync_d", "offset", "silence_moves", "silence_sync")
        found: Scores = dict.fromkeys(keys)
        if curves is not None and self.told is not None:
            rest = metrics_leakage.silence(curves.mouth, self.told.mouth)
            found["silence_moves"] = rest and rest.moves
        mel = self.truth.reference_mel
        if mel is not None:
            both = min(len(mel), len(video))
            found["silence_sync"] = self._sync(video[:both], mel[:both]).confidence
        return found

    def _features(self, video: ndarray) -> dict[str, ndarray]:
        given, seen = self.judges.given, video[::EVERY]
        clips = metrics_features.cut(video, metrics_features.EVERY)
        found = {
            "frames": metrics_mini.frame_features(seen),
            "clips": (
                metrics_mini.clip_features(clips) if len(clips) else np.zeros((0, 51))
            ),
        }
        if given.fid is not None:
            found["fid"] = given.fid(seen)
        if given.fvd is not None:
            found["fvd"] = given.fvd(clips)
        return found

    def _sync(self, video: ndarray, mel: ndarray) -> metrics.LipSync:
        crops = self.judges.crop_lips(video, self._boxes(video))
        lips, speech = self.judges.embed_sync(crops, mel)
        return metrics.lip_sync(lips, speech, self.judges.max_shift, zero_ends=False)

    def _pixels(self, video: ndarray, truth: Truth) -> Scores:
        box, real = self._boxes(video), self._part(truth)
        behind = metrics_scene.background(video, truth.frames, truth.persons)
        found: Scores = {}
        if (apart := self.judges.given.lpips) is not None:
            found["lpips"] = float(apart(video[::EVERY], truth.frames[::EVERY]).mean())
        return found | {
            "psnr": metrics.psnr(video, truth.frames),
            "ssim": (behind.picture if behind else metrics.ssim(video, truth.frames)),
            "bg_psnr": behind and behind.psnr,
            "bg_ssim": behind and behind.ssim,
            "sharpness": (
                metrics.sharpness(video, box) / real.sharpness
                if real.sharpness
                else None
            ),
            # Not a ratio: scenes that hold still have none of their own.
            "flicker": metrics.flicker(video, truth.boxes) - real.flicker,
            "mouth": _mouth(
                metrics.mouth_motion(video, box, real.direction),
                real.mouth,
                truth.opening,
            ),
        }

    def _manner(self, seen: Look) -> Scores:
        fps, real, told = self.truth.fps, self.real.curves, self.told
        curves = seen.curves
        keys = ("motion", "blinks", "style", "follows", "leak", "leak_p")
        found: Scores = dict.fromkeys(keys)
        if seen.motion is not None and self.real.motion:
            found["motion"] = seen.motion / self.real.motion
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

    def _look(self, video: ndarray) -> Look:
        boxes = self._boxes(video)
        return Look(
            self._faces(video),
            self._curves(video, self.box),
            metrics_scene.motion(video, boxes, self.truth.fps),
        )

    def _faces(self, video: ndarray) -> ndarray:
        return self.judges.embed_faces(self.judges.crop_face(video, self._boxes(video)))

    def _part(self, truth: Truth) -> Real:
        """What is asked of the first frames, once for all videos as long."""
        count, frames = len(truth.frames), truth.frames
        if count not in self.parts:
            box = self._boxes(frames)
            way = metrics.mouth_direction(frames, box)
            self.parts[count] = Real(
                metrics.sharpness(frames, box),
                metrics.flicker(frames, truth.boxes),
                way,
                metrics.mouth_motion(frames, box, way),
            )
        return self.parts[count]

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


def _mouth(curve: ndarray, real: ndarray, opening: ndarray | None) -> float:
    """Both along one direction, of any sign."""
    if opening is None:
        return metrics.correlation(curve, real)
    side = math.copysign(1.0, metrics.correlation(real, opening))
    return side * metrics.correlation(curve, opening)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
