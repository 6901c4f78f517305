"""FID-mini and FVD-mini: features that ship, without a network (ours).

A frame in luma and two colour differences, values 0..1, and its Gaussian pyramid
g_0 .. g_3, each level blurred and halved from the one before; per level and channel:

    (1) frames  log(c + std g_l along rows), the same along columns, log(c + std of what
                the next blur takes away), and the means of the last level
    (2) clips   the mean of (1) over time, and log(c + std of g_l(t+1) - g_l(t))

Blur, noise, blocks, colour casts and stillness each move some of the 39 (51) numbers by
more than a change of people does; what the picture shows moves none of them. That is
left to the identity, lip-sync and style scores. The trunks of the shipped face networks
were tried first: trained to ignore noise and blur, they do. Few features also mean that
covariances of a hundred clips are not singular.

The numbers order results of this project on equal crops; they are not FID or FVD, and
are never called so.
"""

import itertools

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

LEVELS = 4
_FLOOR = 1e-3  # c: a quarter of a grey level
_COLOURS = np.float32(
    [[0.299, 0.5, 0.5], [0.587, -0.25, -0.5], [0.114, -0.25, 0]]
)  # columns: luma, warm - cold, red - green


def frame_features(frames: UInt8[ndarray, "n Y X 3"]) -> Float[ndarray, "n 39"]:
    """(1) of pictures at least 16 pixels high and wide."""
    return np.stack([_still(_pyramid(frame)) for frame in frames])


def clip_features(clips: UInt8[ndarray, "n F Y X 3"]) -> Float[ndarray, "n 51"]:
    """(2) of clips of at least two such pictures."""
    found = []
    for clip in clips:
        levels = [_pyramid(frame) for frame in clip]
        still = np.mean([_still(level) for level in levels], axis=0)
        moves = [
            _size(np.diff(np.stack(level), axis=0))
            for level in list(zip(*levels, strict=True))[:LEVELS]
        ]
        found.append(np.concatenate([still, *moves]))
    return np.stack(found)


def _pyramid(frame: ndarray) -> list[ndarray]:
    """g_0 .. g_LEVELS."""
    levels = [frame.astype(np.float32) / 255 @ _COLOURS]
    for _ in range(LEVELS):
        levels.append(cv2.pyrDown(levels[-1]))
    return levels


def _still(levels: list[ndarray]) -> ndarray:
    found = []
    for fine, coarse in itertools.pairwise(levels):
        taken = fine - cv2.resize(coarse, fine.shape[1::-1])
        edges = np.diff(fine, axis=0), np.diff(fine, axis=1), taken
        found += [_size(edge) for edge in edges]
    means = levels[-1].reshape(-1, 3).mean(axis=0)
    return np.concatenate([*found, means]).astype(np.float64)


def _size(values: ndarray) -> ndarray:
    return np.log(values.reshape(-1, 3).std(axis=0) + _FLOOR)
