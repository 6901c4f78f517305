"""From the scores of pairs to what may be said: intervals and p-values (ours).

Pairs of one person are not independent, so people are what is drawn and what is
flipped. With x_pi the score (or the difference of two scores) of pair i of person p,
over the pairs where it is defined:

    (1) mean        m = sum_p s_p / sum_p n_p,  s_p = sum_i x_pi, n_p pairs of person p
    (2) interval    people drawn with replacement, (1) of each draw; BCa quantiles
                    (Efron 1987), which correct the percentiles for bias and skew
    (3) difference  of rows a and b: (1) and (2) of x = a - b on the same pairs
    (4) p-value     of "a and b are exchangeable": the share of sign patterns e_p = +-1
                    with |sum_p e_p s_p| >= |sum_p s_p|; all 2^people of them where
                    there are at most 2^EXACT, else DRAWS at random and
                    p = (hits + 1) / (draws + 1), which never is 0
    (5) Holm 1979   p'_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)) of m sorted p-values

(4) holds a chance of error at its level for every distribution that is symmetric under
the null, whatever the number of people; (5) holds it for all metrics together, however
they depend. Wilcoxon's signed-rank test on the means of people stands beside (4) as a
check: it reads ranks, so a single wild pair moves it less.

A value may be None or not finite: not defined for this pair. Such pairs are left out
and counted.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import stats

EXACT = 14  # people: 16 384 sign patterns, all of them tried
DRAWS = 9999  # of sign patterns, where there are more people
RESAMPLES = 9999  # of people, for an interval: ends still to 1 % or so
_BLOCK = 1 << 20  # signs held at once
_SLACK = 1e-12  # of the sum of sizes: equal sums differ by less in floating point

Value = float | None


class Estimate(NamedTuple):
    """(1) and (2). `low` and `high` are None for fewer than two people."""

    mean: float
    low: Value
    high: Value
    level: float  # of the interval
    pairs: int  # with a value
    people: int
    undefined: int  # pairs without one


class Comparison(NamedTuple):
    """(3) and (4) of one metric; `holm` is (5) over the metrics compared."""

    difference: Estimate
    wins: float  # share of pairs where a > b, ties half
    p: Value  # None where no pair differs, or for fewer than two people
    exact: bool  # all sign patterns were tried
    wilcoxon: Value
    holm: Value


def estimate(
    values: Sequence[Value],
    people: Sequence[str],
    level: float,
    seed: int,
) -> Estimate | None:
    """Mean of one metric over pairs, with its interval; None if no pair has a value.

    `people[i]` names the person of pair i. `level`, in (0, 1), is the interval's.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a share between 0 and 1")
    sums, counts = _by_person(values, people)
    if not len(counts):
        return None
    mean, pairs = float(sums.sum() / counts.sum()), int(counts.sum())
    low, high = _interval(sums, counts, level, seed)
    left_out = len(values) - pairs
    return Estimate(mean, low, high, level, pairs, len(counts), left_out)


def compare(
    first: Mapping[str, Sequence[Value]],
    second: Mapping[str, Sequence[Value]],
    people: Sequence[str],
    level: float,
    seed: int,
) -> dict[str, Comparison | None]:
    """Row a against row b, metric by metric, on the same pairs in the same order.

    A metric that only one row has, or no pair has in both, is None.
    """
    found: dict[str, Comparison | None] = {}
    for key in dict.fromkeys([*first, *second]):
        if key not in first or key not in second:
            found[key] = None
            continue
        apart = [
            a - b if _known(a) and _known(b) else None
            for a, b in zip(first[key], second[key], strict=True)
        ]
        found[key] = _comparison(apart, people, level, seed)
    adjusted = holm({key: c.p for key, c in found.items() if c})
    return {
        key: None if c is None else c._replace(holm=adjusted[key])
        for key, c in found.items()
    }


def sign_flip(sums: Float[ndarray, " people"], seed: int) -> tuple[Value, bool]:
    """(4) of the sums of people, and whether it is exact."""
    sums = sums[sums != 0]  # flipping nothing changes nothing
    count = len(sums)
    if count < 2:
        return None, True
    least = abs(sums.sum()) - _SLACK * np.abs(sums).sum()
    if count <= EXACT:
        patterns = np.arange(2 ** (count - 1))  # the other half is the mirror image
        signs = 1 - 2 * (patterns[:, None] >> np.arange(count) & 1)
        return float(np.mean(np.abs(signs @ sums) >= least)), True
    rng, hits, left = np.random.default_rng(seed), 0, DRAWS
    while left:
        some = min(left, max(1, _BLOCK // count))
        signs = 1 - 2 * rng.integers(0, 2, (some, count), np.int8)
        hits += int(np.sum(np.abs(signs @ sums) >= least))
        left -= some
    return (hits + 1) / (DRAWS + 1), False


def holm(p_values: Mapping[str, Value]) -> dict[str, Value]:
    """(5); what has no p-value takes no part."""
    known = sorted((p, key) for key, p in p_values.items() if p is not None)
    found: dict[str, Value] = dict.fromkeys(p_values)
    highest = 0.0
    for rank, (p, key) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        found[key] = highest
    return found


def _comparison(
    apart: Sequence[Value], people: Sequence[str], level: float, seed: int
) -> Comparison | None:
    difference = estimate(apart, people, level, seed)
    if difference is None:
        return None
    sums, counts = _by_person(apart, people)
    p, exact = sign_flip(sums, seed)
    known = np.array([x for x in apart if _known(x)])
    wins = float(np.mean(0.5 * (1 + np.sign(known))))
    ranked = None if p is None else float(stats.wilcoxon(sums / counts).pvalue)
    return Comparison(difference, wins, p, exact, ranked, None)


def _by_person(
    values: Sequence[Value], people: Sequence[str]
) -> tuple[Float[ndarray, " people"], Int[ndarray, " people"]]:
    """s_p and n_p of (1), of the people who have a value."""
    known = [(p, x) for x, p in zip(values, people, strict=True) if _known(x)]
    names, who = np.unique([p for p, _ in known], return_inverse=True)
    sums = np.bincount(who, [x for _, x in known], len(names)) if known else np.zeros(0)
    return sums.astype(np.float64), np.bincount(who, minlength=len(names))


def _interval(
    sums: ndarray, counts: ndarray, level: float, seed: int
) -> tuple[Value, Value]:
    """(2)."""
    if len(counts) < 2:
        return None, None
    means = sums / counts
    if np.ptp(means) <= _SLACK * max(1.0, float(np.abs(means).max())):
        return float(means[0]), float(means[0])  # BCa of a constant is 0 / 0

    def mean(s: ndarray, n: ndarray, axis: int):
        return s.sum(axis=axis) / n.sum(axis=axis)

    found = stats.bootstrap(
        (sums, counts.astype(np.float64)),
        mean,
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _known(value: Value) -> bool:
    return value is not None and math.isfinite(value)
