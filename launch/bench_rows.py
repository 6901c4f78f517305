"""What a bench finds: rows of costs, as lines, as JSON, and against an older file.

    {"schema": 1, "time": UTC, "command": [...], "machine": {...}, "versions": {...},
     "rows": [{"name", "unit", "cost": [one a round], "flops", "first", "load",
               "reference": null or {"name", "cost", "error", "tolerance"},
               "peak": null or [FLOP/s, one a round], "facts": {...}}],
     "left_out": [{"name", "why"}]}

A cost is a time or a memory: smaller is better. What is compared is measured in turn in
every round, so a ratio is the median of the ratios of the rounds: what slows the
machine slows both.
"""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from launch.provenance import nobodys
from tavr_jax.errors import InputError

SCHEMA = 1
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers")


class Reference(NamedTuple):
    """The same computed by somebody else."""

    name: str
    cost: list[float]  # one a round, in the row's unit
    error: float | None = None  # |ours - theirs| / |theirs|
    tolerance: float | None = None


class Row(NamedTuple):
    """One thing measured. `name` has its sizes in it: rows of two files meet by it."""

    name: str
    cost: list[float]  # one a round
    unit: str = "ms"
    flops: float | None = None  # of one call
    first: float | None = None  # seconds of the first call, most of it compiling
    load: float | None = None  # of the machine, in processes, when it ended
    reference: Reference | None = None
    peak: list[float] | None = None  # FLOP/s of a square product, one a round
    facts: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's, never written to)


class LeftOut(NamedTuple):
    """What could not be measured."""

    name: str
    why: str


def ratios(row: Row) -> list[float]:
    """Ours / the reference's, round by round. Below 1 we are faster."""
    pairs = zip(row.cost, row.reference.cost, strict=True)
    return [ours / theirs for ours, theirs in pairs]


def rates(row: Row) -> list[float]:
    """FLOP/s, round by round."""
    return [1e3 * row.flops / cost for cost in row.cost]


def shares(row: Row) -> list[float]:
    """Of the matmul peak, round by round."""
    return [a / b for a, b in zip(rates(row), row.peak, strict=True)]


def lines(row: Row | LeftOut) -> list[str]:
    """For the terminal."""
    if isinstance(row, LeftOut):
        return [f"{row.name}: {row.why}"]
    found = [f"{row.name}", f"    {_spread(row.cost, '.4g')} {row.unit}"]
    if row.flops:
        rate = statistics.median(rates(row)) / 1e12
        found[-1] += f", {row.flops / 1e9:.4g} GFLOP, {rate:.4g} TFLOP/s"
    if row.flops and row.peak:
        found.append(f"    {_spread(shares(row), '.2f')} of the matmul peak")
    if other := row.reference:
        text = f"    {_spread(ratios(row), '.2f')} of the time of {other.name}"
        if other.error is not None:
            text += f"; outputs differ by {other.error:.1e} <= {other.tolerance:g}"
        found.append(text)
    notes = [f"first call {row.first:.1f} s"] if row.first is not None else []
    notes += [f"load {row.load:.1f}"] if row.load is not None else []
    return [*found, f"    {', '.join(notes)}"] if notes else found


def report(found: Sequence[Row | LeftOut]) -> dict[str, Any]:
    """All of it, for json.dump."""
    rows = [row for row in found if isinstance(row, Row)]
    left_out = [row for row in found if isinstance(row, LeftOut)]
    return {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [nobodys(word) for word in sys.argv],
        "machine": machine(),
        "versions": versions(),
        "rows": [
            row._asdict() | {"reference": row.reference and row.reference._asdict()}
            for row in rows
        ],
        "left_out": [row._asdict() for row in left_out],
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on; it names no user and no host."""
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that compute, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read(path: Path) -> dict[str, Any]:
    """A file of an earlier run. InputError: not there, or something else."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']}, expected {SCHEMA}")
        for row in found["rows"]:
            _ = statistics.median(row["cost"]), row["name"], row["peak"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InputError(
            f"--compare: {path}: not a file of launch.bench --json ({why})"
        ) from error
    return found


def compare(old: dict[str, Any], new: dict[str, Any], slack: float) -> tuple[str, bool]:
    """The table of new / old, and whether a row costs more than `slack` times as much.

    Judged is cost x matmul peak where both runs measured one, so that neither another
    load nor another clock counts; else the cost itself. A row that only one of them
    has is named and not judged, but what the older one had and memory no longer holds
    counts as slower.
    """
    before = {row["name"]: row for row in old["rows"]}
    after = {row["name"]: row for row in new["rows"]}
    told, slower = [f"{'new / old':>10}  judged"], False
    for name, row in after.items():
        if name not in before:
            told.append(f"{'':>10}  new     {name}")
            continue
        plain, judged = _change(before[name], row)
        worse = judged > slack
        slower |= worse
        mark = f"SLOWER than {slack:g}" if worse else ""
        told.append(f"{plain:10.2f}  {judged:6.2f}  {name} {mark}".rstrip())
    told += [f"{'':>10}  gone    {name}" for name in before if name not in after]
    for name, why in _lost(old, new).items():
        told.append(f"{'':>10}  LOST    {name}: {why}")
        slower = True
    for fact in ("cpu", "device"):
        if old["machine"].get(fact) != new["machine"].get(fact):
            told.append(f"not the same {fact}: {old['machine'].get(fact)} before")
    return "\n".join(told), slower


def common(old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """What of an older run is in a new one: rows, and parts that were left out."""
    names, now = ({row["name"] for row in run["rows"]} for run in (old, new))
    return names & now | set(_lost(old, new))


def _lost(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What was measured once and is left out now, and why. The name of what is left out
    is how the names of its rows begin."""
    names = [row["name"] for row in old["rows"]]
    return {
        part["name"]: part["why"]
        for part in new["left_out"]
        if any(name.startswith(f"{part['name']} ") for name in names)
    }


def _change(old: dict, new: dict) -> tuple[float, float]:
    plain = statistics.median(new["cost"]) / statistics.median(old["cost"])
    if not (old["peak"] and new["peak"]):
        return plain, plain
    works = [
        statistics.median(c * p for c, p in zip(row["cost"], row["peak"], strict=True))
        for row in (new, old)
    ]
    return plain, works[0] / works[1]


def _spread(values: Sequence[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}} to {max(values):{form}})"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if "model name" in x)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
