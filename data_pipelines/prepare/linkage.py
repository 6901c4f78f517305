"""Grouping by distance, where some names are known beforehand.

    (1) D(A, B) = mean of d(a, b) over a in A, b in B        average linkage (SciPy)

Groups merge while D is within the limit. Rows of one name are one group from the start;
a group that would hold several names is cut: every unnamed row of it goes to the name
at the smallest mean distance.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def group(
    distances: Float[ndarray, "n n"], names: Sequence[str | None], limit: float
) -> Int[ndarray, " n"]:
    """Group numbers of n rows, counted from 0 in the order of their first rows."""
    held, square = _by_name(distances, names)
    count = len(square)
    labels = np.arange(count)
    if count > 1:
        condensed = squareform(square, checks=False)
        labels = fcluster(linkage(condensed, "average"), limit, "distance")
    named = sorted({names[i] for i in range(len(names)) if names[i] is not None})
    final = np.empty(count, int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        heads = members[members < len(named)]  # names come first in `square`
        if len(heads) < 2:
            final[members] = members[0]
        else:
            nearest = square[np.ix_(members, heads)].argmin(axis=1)
            final[members] = heads[nearest]
            final[heads] = heads
    return in_order(final[held])


def in_order(labels: Int[ndarray, " n"]) -> Int[ndarray, " n"]:
    """The same groups, numbered from 0 in the order of their first rows."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _by_name(
    distances: ndarray, names: Sequence[str | None]
) -> tuple[ndarray, ndarray]:
    """Where each row went, and mean distances between names (first) and single rows."""
    known = sorted({name for name in names if name is not None})
    number = {name: index for index, name in enumerate(known)}
    held, single = np.empty(len(names), int), len(known)
    for row, name in enumerate(names):
        if name is None:
            held[row], single = single, single + 1
        else:
            held[row] = number[name]
    order = np.argsort(held, kind="stable")
    sizes = np.bincount(held, minlength=single)
    starts = np.cumsum(sizes) - sizes
    square = np.asarray(distances, np.float64)[np.ix_(order, order)]
    if single < len(names):
        for axis in (0, 1):
            square = np.add.reduceat(square, starts, axis=axis)
        square /= np.multiply.outer(sizes, sizes)
    np.fill_diagonal(square, 0)
    return held, np.maximum((square + square.T) / 2, 0)
