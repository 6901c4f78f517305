"""Bilinear resizing with the release's numbers. [TAVR_SPEC 7.1, 8, 9-4]

    x = (i + 1/2) n / m - 1/2, at least 0, for output i of m from n, in float32
    output = (1 - f) input[floor x] + f input[min(floor x + 1, n - 1)], f = x - floor x

No antialias. OpenCV's INTER_LINEAR rounds x differently in wide pictures (2e-4 of the
range at 3840 columns), which falls the other way in bfloat16 here and there.
"""

import functools

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def resize(
    picture: Float[ndarray, "Y X C"], size: tuple[int, int]
) -> Float[ndarray, "rows columns C"]:
    """A float32 picture at `size` = (rows, columns)."""
    if picture.shape[:2] == tuple(size):
        return picture.astype(np.float32)
    low, high, share = _taps(picture.shape[0], size[0])
    rows = _mixed(picture.astype(np.float32), low, high, share[:, None, None], 0)
    low, high, share = _taps(picture.shape[1], size[1])
    return _mixed(rows, low, high, share[:, None], 1)


def _mixed(picture, low, high, share, axis: int) -> ndarray:
    """(1 - share) of the low neighbours and share of the high ones, along an axis."""
    mixed = picture.take(low, axis)
    mixed *= 1 - share
    other = picture.take(high, axis)
    other *= share
    mixed += other
    return mixed


@functools.lru_cache(maxsize=64)
def _taps(have: int, want: int) -> tuple[ndarray, ndarray, ndarray]:
    """Two source indices and the second one's share, for each output."""
    scale = float(np.float32(have) / np.float32(want))
    # multiplied and subtracted with one rounding, as processors do it
    place = np.float32(scale * (np.arange(want) + 0.5) - 0.5)
    place = np.maximum(place, np.float32(0))
    low = np.minimum(place.astype(np.int64), have - 1)
    return low, np.minimum(low + 1, have - 1), place - low.astype(np.float32)
