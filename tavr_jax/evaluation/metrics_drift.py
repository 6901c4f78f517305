"""What a long video loses on its way: the person, the colours, the joins (ours).

With t the time of a frame and "first" the first and "last" the last `edge` seconds:

    (1) trend     Theil-Sen slope: the median of (y_j - y_i) / (t_j - t_i), per second;
                  change: mean of y over the last seconds - mean over the first
    (2) identity  y = cos(f_i, unit mean of f over the first seconds), f a network's
                  face embeddings; the slope is of the frames after the first seconds,
                  which are close to their own mean by construction
    (3) colour    y = L* and C* = |(a*, b*)| in CIELAB (sRGB, D65) of the mean light of
                  the pixels outside the person and of those inside the face box;
                  `apart` is the CIE 1976 difference between the mean colour of the
                  first and of the last seconds
    (4) seam      change at a join over the usual change around it: |x_j - x_(j-1)|
                  over the median of |x_i - x_(i-1)| for the other i within a second
                  that begin a latent too, for a decoder may move more between latents
                  than inside them; the largest of all joins. 1 where a join cannot be
                  told

The median slope is not moved by a blink, a turn of the head or one bad frame. A person
who leans towards a lamp changes colour as well: compare with the real video where there
is one. At most MOST frames, evenly spread, are looked at for a trend.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from scipy import stats

from tavr_jax.diffusion.chunks import FRAMES_PER_LATENT
from tavr_jax.evaluation import metrics

MOST = 400  # frames of a trend: 80 000 slopes
_XYZ = np.array(  # of linear sRGB (IEC 61966-2-1); its row sums are the white point
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
_VALUES = np.arange(256) / 255
_LIGHT = np.where(
    _VALUES <= 0.04045, _VALUES / 12.92, ((_VALUES + 0.055) / 1.055) ** 2.4
)


class Trend(NamedTuple):
    """(1)."""

    slope: float  # per second
    change: float


class Colour(NamedTuple):
    """(3) of one region."""

    lightness: Trend
    chroma: Trend
    apart: float


def trend(
    values: Float[ndarray, " n"], times: Float[ndarray, " n"], edge: float
) -> Trend | None:
    """(1) of rising `times` in seconds; None if they are shorter than two edges."""
    first, last = _edges(times, edge)
    if first is None or last is None:
        return None
    slope = float(stats.theilslopes(values, times).slope)
    return Trend(slope, float(values[last].mean() - values[first].mean()))


def identity_drift(
    faces: Float[ndarray, "F Z"], fps: float, edge: float
) -> Trend | None:
    """(2); `change` is that of the cosine from the first seconds to the last.

    Rows of NaN have no face and are left out. None: too short, or too few faces.
    """
    seen = np.flatnonzero(np.isfinite(faces).all(axis=1))
    if not len(seen):
        return None
    seen = seen[_spread(len(seen))]
    rows, times = faces[seen], seen / fps
    first, last = _edges(times, edge)
    if first is None or last is None:
        return None
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    anchor = unit[first].mean(axis=0)
    likeness = metrics.cosines(rows, anchor[None])[:, 0]
    slope = float(stats.theilslopes(likeness[~first], times[~first]).slope)
    return Trend(slope, float(likeness[last].mean() - likeness[first].mean()))


def colour_drift(
    video: UInt8[ndarray, "F Y X 3"],
    region: Bool[ndarray, "Y X"] | Bool[ndarray, "F Y X"],
    fps: float,
    edge: float,
) -> Colour | None:
    """(3) of the pixels of `region`, one mask or one a frame.

    `metrics.outside` and `inside` make masks of boxes. None: too short, or an empty
    region in some frame.
    """
    chosen = _spread(len(video))
    masks = region[chosen] if region.ndim == 3 else [region] * len(chosen)
    if not all(mask.any() for mask in masks):
        return None
    colours = np.stack(
        [mean_lab(video[i], mask) for i, mask in zip(chosen, masks, strict=True)]
    )
    times = chosen / fps
    first, last = _edges(times, edge)
    lightness = trend(colours[:, 0], times, edge)
    chroma = trend(np.hypot(colours[:, 1], colours[:, 2]), times, edge)
    if lightness is None or chroma is None:
        return None
    apart = colours[last].mean(axis=0) - colours[first].mean(axis=0)
    return Colour(lightness, chroma, float(np.linalg.norm(apart)))


def inside(
    boxes: Float[ndarray, "F 4"], size: tuple[int, int]
) -> Bool[ndarray, "F Y X"]:
    """The pixels of each frame of `size` (Y, X) that its box (in 0..1) covers."""
    return np.stack([~metrics.outside(box[None], size) for box in boxes])


def mean_lab(
    frame: UInt8[ndarray, "Y X 3"], region: Bool[ndarray, "Y X"]
) -> Float[ndarray, "3"]:
    """L*, a*, b* of the mean light of the pixels of `region`."""
    xyz = _XYZ @ _LIGHT[frame[region]].mean(axis=0) / _XYZ.sum(axis=1)
    low = xyz <= (6 / 29) ** 3
    x, y, z = np.where(low, xyz * (29 / 6) ** 2 / 3 + 4 / 29, np.cbrt(xyz))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def seam(
    video: UInt8[ndarray, "F Y X 3"], joins: Sequence[int], fps: float
) -> float | None:
    """(4); a join is the first frame of a chunk. None without joins inside the video.

    A video that stands still around a join has no usual change: a thousandth of a grey
    level takes its place.
    """
    known = [join for join in joins if 0 < join < len(video)]
    if not known:
        return None
    reach, ratios = max(2, round(fps)), []
    for join in known:
        first = join - (min(reach, join - 1) // FRAMES_PER_LATENT) * FRAMES_PER_LATENT
        around = range(first, min(len(video), join + reach + 1), FRAMES_PER_LATENT)
        changes = {i: _change(video, i) for i in around if i == join or i not in known}
        at_join = changes.pop(join)
        usual = float(np.median(list(changes.values()))) if changes else 0.0
        ratios.append((at_join + 1e-3) / (usual + 1e-3))
    return max(ratios)


def _change(video: ndarray, index: int) -> float:
    return float(cv2.absdiff(video[index], video[index - 1]).mean())


def _spread(count: int) -> ndarray:
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, MOST))).astype(int))


def _edges(times: ndarray, edge: float) -> tuple[ndarray | None, ndarray | None]:
    """Which frames are the first and the last seconds; None where they would meet."""
    if times[-1] - times[0] < 2 * edge:
        return None, None
    return times < times[0] + edge, times > times[-1] - edge
