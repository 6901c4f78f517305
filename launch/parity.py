"""Does this machine reproduce the reference activations?

    python -m launch.parity ORACLE_DIR [--dump OUT.npz] [--only PATTERN]

Replays every case of a folder of reference inputs and outputs (its README explains each
array, its config.json gives the sizes), prints one line an array and exits 1 if any
fails. `--dump` writes what was computed under `<npz path without ending>/<array name>`.
`--only` keeps the arrays whose key (for example forward/a_out) contains PATTERN or
matches it as a shell pattern.
"""

import fnmatch
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from launch import cli, parity_forward, parity_sampling
from launch.parity_oracle import Check, Oracle
from tavr_jax.errors import InputError

DUMP = flags.DEFINE_string("dump", None, "Write every computed array to this .npz.")
ONLY = flags.DEFINE_string("only", None, "Replay only arrays that match this pattern.")

REPLAYS: dict[str, Callable[[Oracle], list[Check]]] = {
    "forward": parity_forward.replay_forward,
    "forward_small": parity_forward.replay_forward_small,
    "schedule": parity_sampling.replay_schedule,
    "sampler": parity_sampling.replay_sampler,
    "chunking": parity_sampling.replay_chunking,
}


class Result(NamedTuple):
    """One compared array."""

    key: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.error <= self.tolerance


def main() -> None:
    """Replay a folder."""
    folder = Path(_folder())
    jax.config.update("jax_default_matmul_precision", "highest")
    computed: dict[str, np.ndarray] = {}
    results: list[Result] = []
    for path in sorted(folder.rglob("*.npz")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        results += _replay(folder, path, key, computed)
    if DUMP.value:
        _dump(Path(DUMP.value), computed)
    if not results:
        raise InputError(f"{folder}: nothing to replay (--only {ONLY.value})")
    failed = [r for r in results if not r.passed]
    worst = max(r.error for r in results)
    print(
        f"{len(results)} arrays, {len(failed)} failed; largest relative error "
        f"{worst:.2e}"
    )
    if failed:
        sys.exit(1)


def compare(computed: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error; for integers and booleans the share that differs."""
    if computed.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "iub":
        return float(np.mean(computed != expected)) if expected.size else 0.0
    difference = np.linalg.norm((computed - expected).astype(np.float64).ravel())
    scale = np.linalg.norm(expected.astype(np.float64).ravel())
    return float(difference / scale if scale else difference)


def _replay(folder: Path, path: Path, key: str, computed: dict) -> list[Result]:
    oracle = Oracle.open(folder, path)
    checks = REPLAYS[key](oracle) if key in REPLAYS else []
    results = []
    for check in checks:
        name = f"{key}/{check.name}"
        if not _wanted(name):
            continue
        value = np.asarray(check.compute())
        computed[name] = value
        result = Result(
            name, compare(value, oracle.expected(check.name)), check.tolerance
        )
        results.append(result)
        verdict = "pass" if result.passed else "FAIL"
        print(
            f"{name:<44} {result.error:9.2e}  tolerance {result.tolerance:.0e}  "
            f"{verdict}",
            flush=True,
        )
    covered = {check.name for check in checks} | oracle.inputs
    for name in oracle.names:
        if name not in covered and _wanted(f"{key}/{name}"):
            print(f"{key + '/' + name:<44} not covered yet")
    return results


def _wanted(name: str) -> bool:
    pattern = ONLY.value
    return not pattern or pattern in name or fnmatch.fnmatch(name, pattern)


def _folder() -> str:
    folder = cli.positional("ORACLE_DIR")
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder}: no config.json; expected a folder of oracles")
    try:
        json.loads((Path(folder) / "config.json").read_text())
    except ValueError as error:
        raise InputError(f"{folder}/config.json: not JSON ({error})") from error
    return folder


def _dump(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
    print(f"wrote {len(arrays)} arrays to {path}")


if __name__ == "__main__":
    cli.run(main, __doc__, positional=1)
