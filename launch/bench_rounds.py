"""Time in turn: A B C, a pause after each, A B C again.

What is compared runs within a second of each other, so a neighbour's load falls on all
of it; the pause lets the threads of one framework go to sleep before the other starts
(OpenMP's wait busily for a while). Calls return when their result is there; the first
call of each, which compiles, is timed apart.

On a machine that others use, wall time says little even so: two threads of which one
has to wait for a core take as long as the slower. Processor time of one thread is then
the better clock: what others do costs it only caches.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

PAUSE = 0.02  # seconds

Calls = Mapping[str, Callable[[], Any]]


def first(calls: Calls) -> dict[str, float]:
    """Seconds of one call of each."""
    return {name: timed(call)[1] for name, call in calls.items()}


def in_turn(
    calls: Calls, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every later call, `rounds` of each, after one that does not count.

    `clock`: or time.process_time.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(1 + rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            seconds = timed(call, clock)[1]
            if number:
                times[name].append(seconds)
    return times


def timed(
    call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> tuple[Any, float]:
    """A result and its seconds."""
    start = clock()
    result = call()
    return result, clock() - start
