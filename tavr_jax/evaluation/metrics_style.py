"""Does it move like the person: talking style against the reference video (ours).

With x and y the same curve of two clips (`metrics_face`), s^2 = (var x + var y) / 2:

    (1) range    W1(x - rest of x, y - rest of y) / s, W1 the area between cumulative
                 distributions; rest of the mouth: 5th percentile, of the head: median
    (2) rhythm   W1 in octaves between the power spectra (Welch, 2 s windows) of x and y
                 from LOW to HIGH Hz, each divided by its sum
    (3) blinks   |sqrt a - sqrt b| / sqrt((a + b) / 2), blinks a minute
    (4) style    mean of mouth range, mouth rhythm, head range, head rhythm and blinks;
                 the head's are means over sideways and up and down

Range is how far a mouth opens and a head sways, rhythm how fast. What is said and when
cancels: a clip played backwards, started elsewhere or framed elsewhere is the same
style. (1) has the curves' unit cancelled; (2) does not see sizes at all; roots make
counts of blinks equally uncertain. Short clips are far from themselves: two halves of
one clip say how far, and 10 s or more are better.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import signal, stats

from tavr_jax.evaluation.metrics_face import Curves, blinks

LOW, HIGH = 0.5, 8.0  # Hz: slower is posture, faster is noise
_WINDOW = 2.0  # seconds
_STILL = 1e-6  # spread of a curve that does not move


class Style(NamedTuple):
    """(1)-(4); 0 for clips of one style, all of them about 0 to 1.5."""

    mouth_range: float
    mouth_rhythm: float
    head_range: float
    head_rhythm: float
    blinks: float
    total: float


def style_distance(first: Curves, second: Curves, fps: float) -> Style:
    """(4) and its parts. ValueError: curves of different sources, or under a second."""
    if first.source != second.source:
        raise ValueError(
            f"curves from {first.source} and from {second.source} do not compare"
        )
    if min(len(first.mouth), len(second.mouth)) < fps:
        raise ValueError("style needs a second of video or more")
    mouths = first.mouth, second.mouth
    heads = [(first.head[:, axis], second.head[:, axis]) for axis in (0, 1)]
    a, b = (blinks(curves.eyes, fps).per_minute for curves in (first, second))
    parts = (
        range_distance(*mouths, rest=5.0),
        rhythm_distance(*mouths, fps),
        float(np.mean([range_distance(*pair, rest=50.0) for pair in heads])),
        float(np.mean([rhythm_distance(*pair, fps) for pair in heads])),
        abs(a**0.5 - b**0.5) / (0.5 * (a + b)) ** 0.5 if a + b else 0.0,
    )
    return Style(*parts, total=float(np.mean(parts)))


def range_distance(
    x: Float[ndarray, " n"], y: Float[ndarray, " m"], rest: float
) -> float:
    """(1); `rest` is the percentile a curve rests at."""
    scale = np.sqrt((np.var(x) + np.var(y)) / 2)
    if scale < _STILL:
        return 0.0
    still = np.percentile(x, rest), np.percentile(y, rest)
    return float(stats.wasserstein_distance(x - still[0], y - still[1]) / scale)


def rhythm_distance(
    x: Float[ndarray, " n"], y: Float[ndarray, " m"], fps: float
) -> float:
    """(2); a curve that stands still counts as slowest of all."""
    octaves, first = _spectrum(x, fps)
    return float(
        stats.wasserstein_distance(octaves, octaves, first, _spectrum(y, fps)[1])
    )


def _spectrum(curve: ndarray, fps: float) -> tuple[ndarray, ndarray]:
    window = round(_WINDOW * fps)
    padded = np.pad(curve - curve.mean(), (0, max(0, window - len(curve))))
    hertz, power = signal.welch(padded, fps, nperseg=window)
    chosen = (hertz >= LOW) & (hertz <= HIGH)
    power = power[chosen]
    if np.std(curve) < _STILL or not power.sum():
        power = np.eye(1, len(power))[0]
    return np.log2(hertz[chosen]), power
