"""Scores by networks that do not ship here: the formulas, with the network given.

    (1) LPIPS     sum_l mean_yx sum_c w_lc (u_l(x) - u_l(y))_yxc^2,
                  u_l = h_l / (|h_l|_c + 1e-10), h_l the activations of layer l
    (2) Q-Align   sum_k w_k p_k, p = softmax of the logits of the words "excellent",
                  "good", "fair", "poor", "bad", w = 1, 3/4, 1/2, 1/4, 0

(1) is Zhang et al. 2018 (arXiv 1801.03924) with the learned weights w of its release,
0 for identical pictures, lower is better. (2) is Wu et al. 2023 (arXiv 2312.17090) as
its scorer returns it; papers print 1 + 4 times it. Whoever has the networks wraps them
as `Layers` or `Levels` (`metrics_method` says how they are fed); without them these
scores are left out, never replaced by something else of the same name.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

LEVELS = np.array([1.0, 0.75, 0.5, 0.25, 0.0])  # (2), from excellent to bad

# Frames -> activations of each layer, channels last.
Layers = Callable[[UInt8[ndarray, "F Y X 3"]], Sequence[Float[ndarray, "F y x c"]]]
# Frames -> logits of the five words, best first.
Levels = Callable[[UInt8[ndarray, "F Y X 3"]], Float[ndarray, "F 5"]]

_FLOOR = 1e-10  # (1)


def lpips(
    first: Sequence[Float[ndarray, "F _ _ _"]],
    second: Sequence[Float[ndarray, "F _ _ _"]],
    weights: Sequence[Float[ndarray, " _"]],
) -> Float[ndarray, " F"]:
    """(1) of every frame, from the activations of both videos, layer by layer."""
    total = np.zeros(len(first[0]))
    for x, y, weight in zip(first, second, weights, strict=True):
        apart = (_unit(x) - _unit(y)) ** 2
        total += (apart @ weight.astype(np.float64)).mean(axis=(1, 2))
    return total


def level_score(logits: Float[ndarray, "F 5"]) -> Float[ndarray, " F"]:
    """(2) of every frame, in 0..1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted @ LEVELS / shifted.sum(axis=1)


def _unit(layer: ndarray) -> ndarray:
    layer = layer.astype(np.float64)
    return layer / (np.linalg.norm(layer, axis=-1, keepdims=True) + _FLOOR)
