"""A case of the model benches, measured: a row, or why there is none."""

import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench_rounds
from launch.bench_cases import Case, Program
from launch.bench_rows import LeftOut, Reference, Row

# |ours - theirs| / |theirs|: rounding of two orders of summation, by dtype. XLA's
# float32 products on GPUs are TensorFloat32, and PyTorch's are made so.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
ON_GPU = {"float32": 1e-2, "bfloat16": 3e-2}


class Way(NamedTuple):
    """How to measure."""

    rounds: int
    side: int  # rows of the square product
    threads: int  # of both
    processor: bool  # its time, not the wall's

    def told(self) -> str:
        """As part of a row's name."""
        clock = ", processor time" if self.processor else ""
        return f", {self.threads} thread{'s' * (self.threads > 1)}{clock}"


def measure(case: Case, dtype: str, way: Way) -> Row:
    """Ours, theirs and a square product in turn.

    AssertionError: the two differ, so their times mean nothing.
    """
    product = matmul(dtype, way.side, None)
    calls = {"ours": case.ours, "theirs": case.theirs, "peak": product.ours}
    calls = {name: call for name, call in calls.items() if call}
    opening = bench_rounds.first(calls)
    error, most = None, (TOLERANCE if _on_cpu() else ON_GPU)[dtype]
    if case.theirs:
        # of a second call: what a first one changed (weights) has to agree too
        error = max(map(_distance, case.pairs(case.ours(), case.theirs())))
        if not error <= most:
            raise AssertionError(
                f"{case.name}: outputs differ by {error:.1e}, more than {most:g}"
            )
    clock = time.process_time if way.processor else time.perf_counter
    times = bench_rounds.in_turn(calls, way.rounds, clock)
    costs = {name: [1e3 * t for t in found] for name, found in times.items()}
    reference = None
    if case.theirs:
        reference = Reference("PyTorch", costs["theirs"], error, most)
    return Row(
        name=case.name + way.told() * _on_cpu(),
        cost=costs["ours"],
        flops=case.flops,
        first=opening["ours"],
        load=os.getloadavg()[0],
        reference=reference,
        peak=[product.flops / seconds for seconds in times["peak"]],
        facts={"dtype": dtype, **way._asdict()},
    )


def attempt(name: str, make: Callable[[], Row]) -> Row | LeftOut:
    """What `make` measures; LeftOut where the device's memory ends."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        full = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")
        if not isinstance(error, MemoryError) and not any(x in text for x in full):
            raise
    return LeftOut(name, "out of memory: give fewer --layers, --tokens or --samples")


def matmul(dtype: str, side: int, torch: ModuleType | None) -> Case:
    """The case that is the peak: `side` x `side` by `side` x `side`."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side)), dtype)
    run = jax.jit(jnp.matmul)
    theirs = None
    if torch:
        y = torch.tensor(x)
        theirs = torch.inferred(lambda: y @ y)
    return Case(
        f"matmul {side}, {dtype}",
        2.0 * side**3,
        Program(run, x, x),
        theirs,
        lambda a, b: [(np.float32(a), torch.array(b))],
    )


def _distance(pair: tuple[np.ndarray, np.ndarray]) -> float:
    ours, theirs = pair
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {ours.shape} and {theirs.shape}")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
