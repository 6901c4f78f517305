"""Several endless streams as one: which stream a position reads, and which item of it.

    (1) parts are taken in turn so that after p positions part 1 had
        c = floor(w1 p + 1/2) of them; the other p - c go to the other parts alike
    (2) curriculum: over so many positions, in ten steps, weights go from the first kind
        alone to the weights written

Both are exact sums of whole numbers, so any position is found without the ones before
it, no item is left out, none comes twice, on any number of hosts. All of it is ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tavr_jax.errors import InputError

_UNIT = 1 << 20  # weights are whole shares of it
_STEPS = 10  # (2)


class _Phase(NamedTuple):
    first: int  # position
    before: tuple[int, ...]  # items of every part that earlier phases took
    shares: tuple[int, ...]


class Mixture:
    """Positions -> (part, item)."""

    def __init__(
        self, weights: Sequence[float], start: Sequence[float] = (), length: int = 0
    ):
        """`weights` of the parts; from `start` to them over `length` positions. (2)"""
        self._phases: list[_Phase] = []
        first, before = 0, (0,) * len(weights)
        for step in range(_STEPS if length and tuple(start) != tuple(weights) else 0):
            t = step / _STEPS
            mixed = [(1 - t) * a + t * b for a, b in zip(start, weights, strict=True)]
            phase = _Phase(first, before, _shares(mixed))
            self._phases.append(phase)
            count = length * (step + 1) // _STEPS - first
            taken = _taken(count, phase.shares)
            before = tuple(a + b for a, b in zip(before, taken, strict=True))
            first += count
        self._phases.append(_Phase(first, before, _shares(weights)))

    def locate(self, position: int) -> tuple[int, int]:
        """Which part a position reads, and how many items of it come before."""
        phase = next(p for p in reversed(self._phases) if p.first <= position)
        part, item = _locate(position - phase.first, phase.shares)
        return part, phase.before[part] + item


def weighted(text: str, field: str) -> dict[str, float]:
    """ "A:0.7,B:0.3" -> names and weights that sum to 1; "A" alone weighs 1.

    InputError: a weight that is no positive number, a name twice, no name.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, tail = part.strip().rpartition(":")
        try:
            weight = float(tail) if colon else 1.0
        except ValueError:  # a colon inside a name, as in gs://bucket
            name, colon, weight = "", "", 1.0
        name = name if colon else part.strip()
        if not name or name in found or not 0 < weight < float("inf"):
            raise InputError(
                f"{field}={text}: {part.strip() or 'nothing'!r}: give NAME or "
                "NAME:WEIGHT,NAME:WEIGHT, every name once, weights above 0"
            )
        found[name] = weight
    total = sum(found.values())
    return {name: weight / total for name, weight in found.items()}


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    shares = [round(weight / sum(weights) * _UNIT) for weight in weights]
    largest = max(range(len(shares)), key=shares.__getitem__)
    shares[largest] += _UNIT - sum(shares)
    return tuple(shares)


def _first(count: int, share: int, total: int) -> int:
    """(1), exactly."""
    return (2 * count * share + total) // (2 * total) if total else 0


def _taken(count: int, shares: Sequence[int]) -> list[int]:
    """Items of every part in the first `count` positions."""
    taken, total = [], sum(shares)
    for share in shares:
        taken.append(_first(count, share, total))
        count, total = count - taken[-1], total - share
    return taken


def _locate(position: int, shares: Sequence[int]) -> tuple[int, int]:
    total = sum(shares)
    for part, share in enumerate(shares):
        before = _first(position, share, total)
        if _first(position + 1, share, total) > before:
            return part, before
        position, total = position - before, total - share
    raise AssertionError("shares sum to nothing")
