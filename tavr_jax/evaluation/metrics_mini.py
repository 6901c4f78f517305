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
BLOCK = 16  # frames at a time: bounds memory
_FLOOR = 1e-3  # c: a quarter of a grey level
_COLOURS = np.float32(
    [[0.299, 0.5, 0.5], [0.587, -0.25, -0.5], [0.114, -0.25, 0]]
)  # columns: luma, warm - cold, red - green


def frame_features(frames: UInt8[ndarray, "n Y X 3"]) -> Float[ndarray, "n 39"]:
    """(1) of pictures at least 16 pixels high and wide."""
    blocks = range(0, len(frames), BLOCK)
    return np.concatenate([_still(_pyramids(frames[i : i + BLOCK])) for i in blocks])


def clip_features(clips: UInt8[ndarray, "n F Y X 3"]) -> Float[ndarray, "n 51"]:
    """(2) of clips of at least two such pictures."""
    found = []
    for clip in clips:
        levels = _pyramids(clip)
        still = np.mean(_still(levels), axis=0)
        moves = [_size(np.diff(x, axis=0).reshape(1, -1, 3))[0] for x in levels[:-1]]
        found.append(np.concatenate([still, *moves]))
    return np.stack(found)


def _pyramids(frames: ndarray) -> list[ndarray]:
    """g_0 .. g_LEVELS of every frame, (F, y, x, 3)."""
    levels = [np.stack([f.astype(np.float32) / 255 @ _COLOURS for f in frames])]
    for _ in range(LEVELS):
        levels.append(np.stack([cv2.pyrDown(fine) for fine in levels[-1]]))
    return levels


def _still(levels: list[ndarray]) -> ndarray:
    """(1), a row a frame."""
    found = []
    for fine, coarse in itertools.pairwise(levels):
        grown = [cv2.resize(frame, fine.shape[2:0:-1]) for frame in coarse]
        edges = np.diff(fine, axis=1), np.diff(fine, axis=2), fine - np.stack(grown)
        found += [_size(edge.reshape(len(edge), -1, 3)) for edge in edges]
    last = levels[-1]
    means = _by_place(last.reshape(len(last), -1, 3)).mean(axis=0)
    return np.concatenate([*found, means], axis=1).astype(np.float64)


def _size(values: ndarray) -> ndarray:
    """Of sets of pixels (n, pixels, 3): (n, 3)."""
    return np.log(_by_place(values).std(axis=0) + _FLOOR)


def _by_place(values: ndarray) -> ndarray:
    """Pixels first: sums over them take all sets at once, ten times as fast."""
    return np.ascontiguousarray(values.swapaxes(0, 1))
