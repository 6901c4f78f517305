"""The scene around the person, and how much the person moves.

    (1) background PSNR  `metrics` (4) over the pixels that no person box of the clip
                         covers
    (2) background SSIM  mean of `metrics` (5) where its 11 x 11 window lies outside all
                         of them
    (3) motion           mean |flow| of the face, in face heights a second: dense flow
                         (Farneback 2003) between neighbouring frames of a crop around
                         the median face box, resampled to FLOW_SIZE pixels

A person's surroundings should be the target's (users complain of scenes that change
from chunk to chunk). (1) and (2) compare with the real video, or with the target's
still repeated where there is no video; then what really moves behind the person counts
as wrong. (3) says how lively a face is, whatever its size, light and frame rate: every
crop is brought to one mean and contrast first, so that light that flickers is no
motion. Compare it with the real video's: more is not better. All of it is ours but the
parts named.
"""

import itertools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from tavr_jax.evaluation import metrics

FLOW_SIZE = 64  # pixels of a face height
_REACH = 5  # pixels from the middle to the edge of the window of SSIM


class Background(NamedTuple):
    """(1) and (2), the share of pixels they are of, and what (2) is a part of."""

    psnr: float  # dB, infinite where nothing differs
    ssim: float | None  # no window lies outside
    share: float
    picture: float  # SSIM of the whole picture


def background(
    video: UInt8[ndarray, "F Y X 3"],
    truth: UInt8[ndarray, "F Y X 3"],
    persons: Float[ndarray, "n 4"],
) -> Background | None:
    """(1) and (2); None if the persons' boxes (in 0..1) leave nothing."""
    outside = metrics.outside(persons, video.shape[1:3])
    if not outside.any():
        return None
    apart = video[:, outside].astype(np.float64) - truth[:, outside]
    error = float(np.mean(apart**2))
    window = np.ones((2 * _REACH + 1, 2 * _REACH + 1), np.uint8)
    free = cv2.erode(outside.astype(np.uint8), window).astype(bool)
    free = free[_REACH:-_REACH, _REACH:-_REACH]
    parts = [None, free] if free.any() else [None]
    picture, *scene = metrics.ssim_of(video, truth, parts)
    psnr = float(10 * np.log10(255.0**2 / error)) if error else float("inf")
    share = float(outside.mean())
    return Background(psnr, scene[0] if scene else None, share, picture)


def motion(
    video: UInt8[ndarray, "F Y X 3"], boxes: Float[ndarray, "F 4"], fps: float
) -> float | None:
    """(3); None for a single frame or where there is no face box."""
    box = np.median(boxes, axis=0)
    if len(video) < 2 or box[3] <= box[1]:
        return None
    crops = _crops(video, box)
    speeds = [
        np.linalg.norm(_flow(before, after), axis=-1).mean()
        for before, after in itertools.pairwise(crops)
    ]
    return float(np.mean(speeds)) * fps / FLOW_SIZE


def _crops(video: ndarray, box: ndarray) -> ndarray:
    """Luma of the square one face height high; each has one mean and contrast."""
    rows, columns = video.shape[1:3]
    left, top, right, bottom = box.astype(np.float64) * ([columns, rows] * 2)
    side = max(round(bottom - top), 2)
    centre = ((left + right - 1) / 2, (top + bottom - 1) / 2)
    kind = cv2.INTER_AREA if side > FLOW_SIZE else cv2.INTER_LINEAR
    crops = []
    for frame in video:
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        square = cv2.getRectSubPix(luma, (side, side), centre)
        crops.append(cv2.resize(square, (FLOW_SIZE, FLOW_SIZE), interpolation=kind))
    faces = np.stack(crops).astype(np.float64)
    faces -= faces.mean(axis=(1, 2), keepdims=True)
    faces /= np.maximum(faces.std(axis=(1, 2), keepdims=True), 1.0)
    return np.clip(128 + 45 * faces, 0, 255).astype(np.uint8)


def _flow(before: ndarray, after: ndarray) -> ndarray:
    return cv2.calcOpticalFlowFarneback(
        before, after, None, 0.5, 3, 11, 3, 5, 1.1, 0
    )  # pyramid of 3 halvings, window 11, 3 rounds, neighbourhood 5
