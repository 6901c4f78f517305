"""Do two sets of videos look alike as sets: FID, FVD and KID of any feature network.

    (1) clips     frames a, a+1, .., a+n-1 of a video for a = first, first + stride, ..
    (2) moments   of two sets together, from those of each (Chan et al. 1979):
                  m = m1 + d n2 / n, d = m2 - m1
                  S = S1 + S2 + d d' n1 n2 / n, covariance S / (n - 1)
    (3) distance  `metrics` (9): FID for features of frames, FVD for features of clips
    (4) KID       mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j)
                  - 2 mean_ij k(x_i, y_j),  k(x, y) = (x . y / Z + 1)^3

(3) is biased: even two halves of one set are apart, by about C / samples, so that only
sets of the same size compare, and its covariances are singular where samples are fewer
than features. `Distance` carries all of that. (4) (Binkowski et al. 2018,
arXiv 1801.01401, all samples at once instead of random subsets) has no bias: it is 0 on
average for equal sets of any size, and may be a little negative.

Which frames FVD sees decides its number: `LATENTSYNC` is one clip, frames 20 to 35 of a
crop of the face; StyleGAN-V and TATS take 16 frames of the whole picture from a random
start, in place of which `EVERY` takes all disjoint clips (ours). A video too short for
any clip adds none: count them. The network is given as a function; `metrics_mini` is
the one that ships, and its numbers compare with nothing outside this project.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from tavr_jax.evaluation import metrics

FrameFeatures = Callable[[UInt8[ndarray, "n Y X 3"]], Float[ndarray, "n Z"]]
ClipFeatures = Callable[[UInt8[ndarray, "n F Y X 3"]], Float[ndarray, "n Z"]]


class Clips(NamedTuple):
    """(1): which clips of a video are seen."""

    length: int  # frames
    stride: int  # frames from start to start
    first: int  # frame the first one starts at
    most: int | None  # clips of a video; None: all that fit


LATENTSYNC = Clips(16, 16, 20, 1)
EVERY = Clips(16, 16, 0, None)


class Gathered(NamedTuple):
    """(2) of some samples: what many processes can gather and `together` adds up."""

    count: int
    mean: Float[ndarray, " Z"]
    scatter: Float[ndarray, "Z Z"]  # S, around the mean


class Distance(NamedTuple):
    """(3), and what has to stand beside it."""

    value: float
    samples: tuple[int, int]
    features: int
    singular: bool  # a covariance has less than full rank: fewer samples than features


def cut(
    video: UInt8[ndarray, "F Y X 3"], clips: Clips
) -> UInt8[ndarray, "n length Y X 3"]:
    """(1); n = 0 for a video that is too short."""
    last = len(video) - clips.length
    starts = list(range(clips.first, last + 1, clips.stride))[: clips.most]
    chosen = [video[start : start + clips.length] for start in starts]
    empty = np.zeros((0, clips.length, *video.shape[1:]), np.uint8)
    return np.stack(chosen) if chosen else empty


def square(
    video: UInt8[ndarray, "F Y X 3"], size: int
) -> UInt8[ndarray, "F size size 3"]:
    """The largest square in the middle of the picture, resampled to `size` pixels."""
    rows, columns = video.shape[1:3]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    kind = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    middle = video[:, top : top + side, left : left + side]
    return np.stack([cv2.resize(f, (size, size), interpolation=kind) for f in middle])


def gather(features: Float[ndarray, "n Z"]) -> Gathered:
    """The moments of n samples, n >= 0, in float64."""
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1])
    return Gathered(len(rows), mean, (rows - mean).T @ (rows - mean))


def together(parts: Sequence[Gathered]) -> Gathered:
    """(2) of at least one part: the moments of all their samples."""
    total, *others = parts
    for part in others:
        count = total.count + part.count
        if not part.count:
            continue
        apart = part.mean - total.mean
        share = total.count * part.count / count
        total = Gathered(
            count,
            total.mean + apart * (part.count / count),
            total.scatter + part.scatter + share * np.outer(apart, apart),
        )
    return total


def distance(first: Gathered, second: Gathered) -> Distance | None:
    """(3); None where a set has fewer than two samples."""
    counts = (first.count, second.count)
    if min(counts) < 2:
        return None
    moments = [
        metrics.Moments(part.mean, part.scatter / (part.count - 1))
        for part in (first, second)
    ]
    size = len(first.mean)
    singular = min(counts) <= size
    return Distance(metrics.frechet_distance(*moments), counts, size, singular)


def kernel_distance(
    first: Float[ndarray, "n Z"], second: Float[ndarray, "m Z"]
) -> float | None:
    """(4); None where a set has fewer than two samples."""
    if min(len(first), len(second)) < 2:
        return None
    x, y = first.astype(np.float64), second.astype(np.float64)

    def kernel(a: ndarray, b: ndarray) -> ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def inside(rows: ndarray) -> float:
        all_pairs, count = kernel(rows, rows), len(rows)
        return float((all_pairs.sum() - np.trace(all_pairs)) / (count * (count - 1)))

    return inside(x) + inside(y) - 2 * float(kernel(x, y).mean())
