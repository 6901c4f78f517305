"""What is measured of a clip, and which measures refuse it (all ours).

Every measure is taken of every clip, kept or not, and stored with it, so that stricter
limits can be applied later to the numbers alone. The first filter of the table that a
clip fails is its reason. Faces are measured on the frames that would be stored.

    face_height  median height of the face / height of the frame
    visible      smallest share of a face box that the crop to the bucket left
    coverage     share of the sampled frames that show a face
    faces        most people seen at once
    sharpness    rms of the Laplacian of the face / its standard deviation, median
    brightness   mean luma of the face, 0..1, median over samples
    motion       mean change of the face's luma from a frame to the next, 0..1
    shake        95th percentile of the speed of the face's centre, face heights/s
    loudness, speech, modulation, sync, lag      voice.py
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import people
from data_pipelines.prepare import voice

MOUTH = (0.2, 0.62, 0.8, 1.02)  # left, top, right, bottom within the face box
_MOUTH_SIZE = (32, 24)  # columns, rows
_FACE_SIDE = 128  # pixels: the size at which a larger face is called sharp or not
_SAMPLES = 9  # frames of a clip that brightness and sharpness are measured in


class Filter(NamedTuple):
    """A limit: the clip is refused where `measure` is on the wrong side of `field`."""

    reason: str
    measure: str
    field: str  # min_... or max_..., of config.prepare
    remedy: str


FILTERS = (
    Filter("too quiet", "loudness", "min_loudness", "lower prepare.min_loudness"),
    Filter("no speech", "speech", "min_speech", "lower prepare.min_speech"),
    Filter(
        "no face",
        "coverage",
        "min_coverage",
        "give footage of a talking person, or lower prepare.min_coverage",
    ),
    Filter("several people", "faces", "max_faces", "raise prepare.max_faces"),
    Filter(
        "face cut off",
        "visible",
        "min_visible",
        "give footage with the face nearer to the middle, or lower prepare.min_visible",
    ),
    Filter("face too small", "face_height", "min_face", "lower prepare.min_face"),
    Filter("blurred", "sharpness", "min_sharpness", "lower prepare.min_sharpness"),
    Filter("too dark", "brightness", "min_brightness", "lower prepare.min_brightness"),
    Filter(
        "too bright", "brightness", "max_brightness", "raise prepare.max_brightness"
    ),
    Filter("does not move", "motion", "min_motion", "lower prepare.min_motion"),
    Filter("moves too much", "shake", "max_shake", "raise prepare.max_shake"),
    Filter("out of sync", "sync", "min_sync", "lower prepare.min_sync"),
)
# reason -> what to change; those that no limit decides first
REMEDIES = {
    "unreadable": "re-encode or replace the file",
    "HDR": "convert it to SDR (tone mapping) first",
    "no sound": "give footage with its sound track",
    "too short": "lower prepare.min_frames",
    "leftover": "nothing: the end of a shot whose other clips were kept",
    "in a benchmark": "nothing: what is scored must not be trained on",
    "failed": "report the file: preparing it met an error of ours",
    "crashed": "re-encode the file, or raise prepare.worker_memory",
    "took too long": "raise prepare.video_timeout, or cut the file",
    **{f.reason: f.remedy for f in FILTERS},
}


def measure(
    frames: UInt8[ndarray, "F Y X 3"],
    boxes: Float[ndarray, "F 4"],
    track: people.FaceTrack,
    visible: float,
    sound: Float[ndarray, " n"],
    rates: tuple[int, int],
) -> dict[str, float]:
    """All measures of a clip; those of a face only where there is one.

    Args: stored frames and the face's boxes on them, the face's track in the source,
    its visible share, the clip's sound, (frames, samples) a second.
    """
    fps, sample_rate = rates
    level = voice.levels(sound, sample_rate)
    found = {
        "loudness": voice.loudness(sound),
        "speech": voice.speech_share(level),
        "modulation": voice.modulation(level),
        "coverage": track.coverage,
        "faces": track.faces,
    }
    if track.coverage > 0:
        opened = voice.opening(_mouths(frames, boxes))
        sync, lag = voice.sync(opened, level, fps)
        found |= {
            "visible": visible,
            "face_height": float(np.median(boxes[:, 3] - boxes[:, 1])),
            "sync": sync,
            "lag": lag,
            **_face_pictures(frames, boxes),
            **_face_motion(frames, boxes, fps),
        }
    return {name: round(float(value), 5) for name, value in found.items()}


def refusal(found: dict[str, float], prepare: ConfigDict) -> tuple[str, str] | None:
    """(reason, numbers in words) of the first filter that a clip fails."""
    for each in FILTERS:
        value, limit = found.get(each.measure), prepare[each.field]
        least = each.field.startswith("min_")
        if each.measure == "coverage":
            limit = max(limit, 1e-9)  # without any face there is nothing to train on
        if value is None or (value >= limit if least else value <= limit):
            continue
        word = "at least" if least else "at most"
        return each.reason, f"{each.measure} {value:.4g}, {word} {limit:.4g} wanted"
    return None


def _face_pictures(frames: ndarray, boxes: ndarray) -> dict[str, float]:
    chosen = np.unique(np.linspace(0, len(frames) - 1, _SAMPLES).astype(int))
    light, sharp = [], []
    for index in chosen:
        face = _cut(frames[index], boxes[index])
        scale = min(1.0, _FACE_SIDE / max(face.shape[:2]))
        if scale < 1:
            face = cv2.resize(
                face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
            )
        grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        light.append(grey.mean())
        edges = cv2.Laplacian(grey, cv2.CV_32F)
        sharp.append(np.sqrt(np.mean(edges**2)) / max(float(grey.std()), 1e-3))
    return {
        "brightness": float(np.median(light)),
        "sharpness": float(np.median(sharp)),
    }


def _face_motion(frames: ndarray, boxes: ndarray, fps: int) -> dict[str, float]:
    changes = []
    for index in range(1, len(frames)):
        pair = [_cut(frames[i], boxes[index]) for i in (index - 1, index)]
        changes.append(cv2.absdiff(*pair).mean() / 255)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * [frames.shape[2], frames.shape[1]]
    height = np.median(boxes[:, 3] - boxes[:, 1]) * frames.shape[1]
    speed = np.linalg.norm(np.diff(centres, axis=0), axis=1) * fps / max(height, 1e-6)
    return {
        "motion": float(np.mean(changes)) if changes else 0.0,
        "shake": float(np.percentile(speed, 95)) if len(speed) else 0.0,
    }


def _mouths(frames: ndarray, boxes: ndarray) -> UInt8[ndarray, "F y x"]:
    found = []
    for frame, (left, top, right, bottom) in zip(frames, boxes, strict=True):
        sides = np.array([right - left, bottom - top] * 2)
        mouth = np.array([left, top, left, top]) + np.array(MOUTH) * sides
        grey = cv2.cvtColor(_cut(frame, mouth), cv2.COLOR_RGB2GRAY)
        found.append(cv2.resize(grey, _MOUTH_SIZE, interpolation=cv2.INTER_AREA))
    return np.stack(found)


def _cut(frame: ndarray, box: ndarray) -> ndarray:
    """The pixels of a box, at least one."""
    rows, columns = frame.shape[:2]
    left, top = (int(np.clip(box[i], 0, 1) * n) for i, n in ((0, columns), (1, rows)))
    left, top = min(left, columns - 1), min(top, rows - 1)
    right = max(left + 1, int(np.ceil(np.clip(box[2], 0, 1) * columns)))
    bottom = max(top + 1, int(np.ceil(np.clip(box[3], 0, 1) * rows)))
    return frame[top:bottom, left:right]
