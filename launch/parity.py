"""Does this machine reproduce the reference activations?

    python -m launch.parity ORACLE_DIR [--dump OUT.npz] [--only PATTERN]
    python -m launch.parity ORACLE_DIR --dtype bfloat16

Replays every case of a folder of reference inputs and outputs (its README explains each
array, each config.json gives the sizes), prints one line an array and exits 1 if any
fails. `--dump` writes what was computed under `<npz path without ending>/<array name>`.
`--only` keeps the arrays whose key (for example forward/a_out) contains PATTERN or
matches it as a shell pattern. `--dtype bfloat16` replays the transformer's velocities
with bfloat16 products and prints their error against the float32 records and, where the
folder has them, against the recorded bfloat16 run.
"""

import fnmatch
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from launch import (
    cli,
    parity_forward,
    parity_media,
    parity_metrics,
    parity_sampling,
    parity_schedulers,
    parity_speech,
    parity_text,
    parity_vae,
    parity_wan,
)
from launch.parity_oracle import Check, Oracle
from tavr_jax.errors import InputError

DUMP = flags.DEFINE_string("dump", None, "Write every computed array to this .npz.")
ONLY = flags.DEFINE_string("only", None, "Replay only arrays that match this pattern.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of the transformer's products."
)

Replay = Callable[[Oracle], list[Check]]
# the file's path in the folder, without its ending -> who replays it; first match
REPLAYS: tuple[tuple[str, Replay], ...] = (
    ("forward", parity_forward.replay_forward),
    ("forward_small", parity_forward.replay_forward_small),
    ("schedule", parity_sampling.replay_schedule),
    ("sampler", parity_sampling.replay_sampler),
    ("chunking", parity_sampling.replay_chunking),
    ("audio", parity_speech.replay_audio),
    ("masks", parity_media.replay_masks),
    ("reference", parity_media.replay_reference),
    ("media", parity_media.replay_media),
    ("text", parity_text.replay_text),
    ("umt5", parity_text.replay_umt5),
    ("vae", parity_vae.replay_vae),
    ("dit_*/cases", parity_wan.replay_dit),
    ("vae*/cases", parity_vae.replay_wan_vae),
    ("umt5*/cases", parity_text.replay_wan_umt5),
    ("wav2vec2*/cases", parity_speech.replay_wav2vec2),
    ("whisper*/cases", parity_speech.replay_whisper),
    ("audio/cases", parity_speech.replay_wan_audio),
    ("schedulers/cases", parity_schedulers.replay_schedulers),
    ("flow_grpo/cases", parity_schedulers.replay_flow_grpo),
    ("metrics/cases", parity_metrics.replay_metrics),
)
BFLOAT16: tuple[tuple[str, Replay], ...] = (
    ("forward", parity_forward.replay_bfloat16),
    ("sampler", parity_sampling.replay_bfloat16),
)


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
    folder = Path(cli.positional("ORACLE_DIR"))
    jax.config.update("jax_default_matmul_precision", "highest")
    computed: dict[str, np.ndarray] = {}
    results: list[Result] = []
    for path in _files(folder):
        key = path.relative_to(folder).with_suffix("").as_posix()
        results += _replay(path, key, computed)
    if not results:
        raise InputError(f"{folder}: nothing to replay (--only {ONLY.value})")
    if DUMP.value:
        _dump(Path(DUMP.value), computed)
    failed = [r for r in results if not r.passed]
    worst = max(r.error for r in results)
    print(
        f"{len(results)} arrays, {len(failed)} failed; largest relative error "
        f"{worst:.2e}"
    )
    if failed:
        sys.exit(1)


def compare(computed: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 error; for integers, booleans and text the share that differs."""
    if computed.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "iubU":
        return float(np.mean(computed != expected)) if expected.size else 0.0
    difference = np.linalg.norm((computed - expected).astype(np.float64).ravel())
    scale = np.linalg.norm(expected.astype(np.float64).ravel())
    return float(difference / scale if scale else difference)


def _replay(path: Path, key: str, computed: dict) -> list[Result]:
    half = DTYPE.value == "bfloat16"
    replay = _replayer(key, BFLOAT16 if half else REPLAYS)
    if half and replay is None:
        return []
    oracle = Oracle.open(path)
    checks = replay(oracle) if replay else []
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
    for name in () if half else oracle.names:
        if name not in covered and _wanted(f"{key}/{name}"):
            reason = oracle.reasons.get(name, "no replay is written for it")
            print(f"{key + '/' + name:<44} not replayed: {reason}")
    return results


def _replayer(key: str, table: tuple[tuple[str, Replay], ...]) -> Replay | None:
    return next((r for pattern, r in table if fnmatch.fnmatch(key, pattern)), None)


def _wanted(name: str) -> bool:
    pattern = ONLY.value
    return not pattern or pattern in name or fnmatch.fnmatch(name, pattern)


def _files(folder: Path) -> list[Path]:
    """Recorded arrays of a folder: every .npz, and text.json."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of oracles")
    found = sorted([*folder.rglob("*.npz"), *folder.rglob("text.json")])
    if not found:
        raise InputError(f"{folder}: no .npz in it; expected a folder of oracles")
    return found


def _dump(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}.partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
    print(f"wrote {len(arrays)} arrays to {path}")


if __name__ == "__main__":
    cli.run(main, __doc__, positional=1)
