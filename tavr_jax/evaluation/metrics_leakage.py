"""Do the lips follow the reference's talk in place of the driving speech (ours).

A reference video talks as well, and a model can copy its mouth. With g the mouth's
curve of the generated video, r that of the reference frames it was shown (as many, in
their order), a that of the driving speech (its loudness, or the mouth of the real
target), all without what is slower than a second:

    (1) following  c(g, r) = max_{|s| <= k} corr(g_t, r_(t+s))
    (2) chance     mean of c(g, r rolled by m), for m that moves r by more than 2 k
    (3) leak       c(g, r) - chance: 0 on average if g knows nothing of r
    (4) p          share of rolls that follow at least as well, itself included
    (5) silence    driven by silence: moves = std g / std of a talking mouth of the
                   person; open = share of frames where g is more than HALF of the way
                   from the talking mouth's rest (5th) to its widest (95th percentile)
    (6) unspoken   corr(o_t, mean_j o^j_t): the true opening o of a clip's mouth and
                   those of the clips j of other people, where there are any

(5) is in the spirit of KeySync's LipLeak (arXiv 2505.00497), which counts the frames of
a mouth that is not silent while the sound is; its landmarks and thresholds are other
ones. Yaman et al. (arXiv 2511.08613) score the same runs by lip-sync: the
`metrics.lip_sync` of a video driven by silence against the REFERENCE's speech should
find nothing, and that of swapped speech be as good as that of matching speech. Both
need runs made for it; (1)-(4) need none. The maximum over shifts is above 0 for any two
curves: never read (1) without (2). (6) is what a correlation of whole curves gives a
mouth that knows when clips of this kind begin and end, and nothing of what is said.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

HALF = 0.5  # of the talking mouth's way open
_POSTURE = 1.0  # seconds; slower than that is no talk


class Following(NamedTuple):
    """(1) to (4) of one curve and another."""

    value: float
    chance: float
    leak: float
    p: float
    shift: int  # frames; positive: the other curve does it first, g repeats it


class Silence(NamedTuple):
    """(5)."""

    moves: float
    open: float


def following(
    generated: Float[ndarray, " F"],
    other: Float[ndarray, " F"],
    max_shift: int,
    fps: float,
) -> Following | None:
    """(1)-(4), k = `max_shift` frames; None if F leaves fewer than 10 rolls."""
    frames = len(generated)
    rolls = range(2 * max_shift + 1, frames - 2 * max_shift)
    if len(rolls) < 10:
        return None
    g, r = _talk(generated, fps), _talk(other, fps)
    rolled = np.stack([r, *(np.roll(r, roll) for roll in rolls)])
    best, shifts = _best(g, rolled, max_shift)
    value, chance = float(best[0]), float(best[1:].mean())
    p = (1 + np.sum(best[1:] >= value)) / (1 + len(rolls))
    return Following(value, chance, value - chance, float(p), int(shifts[0]))


def silence(
    generated: Float[ndarray, " F"], talking: Float[ndarray, " n"]
) -> Silence | None:
    """(5) of mouth curves of one source; None if the talking mouth does not move.

    `open` needs curves from points: those from frames know no absolute opening.
    """
    spread = float(np.std(talking))
    rest, wide = np.percentile(talking, (5, 95))
    if spread < 1e-9 or wide <= rest:
        return None
    way = (generated - rest) / (wide - rest)
    return Silence(float(np.std(generated)) / spread, float(np.mean(way > HALF)))


def unspoken(
    openings: Sequence[Float[ndarray, " _"]], people: Sequence[str]
) -> list[float | None]:
    """(6) of every clip, `people[i]` naming who speaks; None: there is nobody else."""
    whole = np.full((len(openings), max(map(len, openings))), np.nan)
    for row, opening in zip(whole, openings, strict=True):
        row[: len(opening)] = opening
    names, found = np.array(people), []
    for own, person in zip(openings, people, strict=True):
        others = whole[names != person, : len(own)]
        known = np.isfinite(others).any(axis=0)
        mean = np.nanmean(others[:, known], axis=0)
        found.append(
            float(_correlations(own[known], mean[None])[0]) if len(mean) else None
        )
    return found


def _talk(curve: ndarray, fps: float) -> ndarray:
    """The curve less its running mean over a second."""
    reach = max(1, round(_POSTURE * fps / 2))
    padded = np.pad(curve.astype(np.float64), reach, mode="edge")
    window = np.full(2 * reach + 1, 1 / (2 * reach + 1))
    return curve - np.convolve(padded, window, mode="valid")


def _best(g: ndarray, others: ndarray, max_shift: int) -> tuple[ndarray, ndarray]:
    """(1) of g and each row of others, and how many frames g comes after it there."""
    shifts = np.arange(-max_shift, max_shift + 1)
    found = []
    for late in shifts:
        mine = g[max(0, late) : len(g) + min(0, late)]
        theirs = others[:, max(0, -late) : len(g) - max(0, late)]
        found.append(_correlations(mine, theirs))
    best = np.argmax(found, axis=0)
    return np.max(found, axis=0), shifts[best]


def _correlations(x: ndarray, rows: ndarray) -> ndarray:
    """Pearson's of x with each row; 0 where one is constant."""
    x, rows = x - x.mean(), rows - rows.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(x) * np.linalg.norm(rows, axis=1)
    moves = scale > 1e-9
    return np.where(moves, rows @ x / np.where(moves, scale, 1), 0)
