"""Where a run's weights come from: WORKDIR/run.json, one entry a start or resume.

    started    time, UTC
    config     its name                     command    as it was given
    git        commit, dirty; or null       versions   of what computes and stores
    devices    platform, kind, count        hosts      processes of the run
    data       fingerprint of the datasets  start      what the weights started from

It names no user, no machine and no variable of the environment: a home folder in a
command is written ~.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines import records, sources
from data_pipelines.prepare import checksums
from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.storage import Place

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# what training reads of a dataset; pages and notes beside it may change
_INDEX = (records.INDEX, records.NULL_TEXT)
_READ = (*_INDEX, "clips/", "encoded/")


def fingerprint(config: ConfigDict) -> str:
    """Of the contents of the datasets of data.path and their weights, not of where
    they lie.

    By the checksums that launch.prepare_data wrote, so it costs no reading of footage;
    those of the index, which says what is read, are always computed, and all of them
    where none were written. InputError: no dataset there.
    """
    sums = hashlib.sha256()
    for path, weight in sources.paths(config).items():
        sums.update(f"{weight:.9g}\n".encode())
        for name, found in sorted(_checksums(storage.place(path)).items()):
            if name.startswith(_READ):
                sums.update(f"{name} {found}\n".encode())
    return sums.hexdigest()[:16]


def write(workdir: Place, config: ConfigDict, data: str, start: dict[str, str]) -> None:
    """Append an entry to WORKDIR/run.json, in the first process.

    `data` of `fingerprint`, `start` what the weights started from. InputError: the file
    cannot be read or written.
    """
    if jax.process_index():
        return
    path = workdir / "run.json"
    try:
        entries = json.loads(path.read_text("utf-8")) if path.exists() else []
        entries.append(_entry(config, data, start))
        storage.write_text(path, json.dumps(entries, indent=2) + "\n")
    except (OSError, ValueError) as error:
        if storage.may_pass(error):
            raise
        line = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read or written ({line}); it says what was run here: "
            "move it away to begin another"
        ) from error


def git(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root`, and whether files in it differ from that."""
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return None  # installed as a package, maybe inside another checkout
    changed = _git(root, "status", "--porcelain")
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(changed)}


def _entry(config: ConfigDict, data: str, start: dict[str, str]) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.name,
        "command": _command(sys.argv),
        "git": git(ROOT),
        "versions": {name: metadata.version(name) for name in PACKAGES}
        | {"python": ".".join(map(str, sys.version_info[:3]))},
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "hosts": jax.process_count(),
        "data": data,
        "start": {name: nobodys(value) for name, value in start.items()},
    }


def _command(argv: Sequence[str]) -> list[str]:
    """`python -m launch.train ...`: where Python and this code lie says who runs it."""
    program = Path(argv[0])
    module = f"{program.parent.name}.{program.stem}"
    return ["python", "-m", module, *map(nobodys, argv[1:])]


def nobodys(text: str) -> str:
    """Without the name of the home folder: what files tell that others may see."""
    home = re.escape(str(Path.home()))
    return re.sub(rf"(?<![\w/.]){home}(?=[/,:]|$)", "~", text)


def _checksums(root: Place) -> dict[str, str]:
    """SHA-256 of every file of a dataset, by name."""
    records.read_summary(root)  # says what is wrong where there is no dataset
    try:
        written = dict(json.loads((root / checksums.CHECKSUMS).read_text("utf-8")))
        return written | {name: _sum(root / name) for name in _INDEX}
    except (OSError, ValueError, TypeError) as error:
        if storage.may_pass(error):
            raise
        if storage.is_bucket(root):
            raise InputError(
                f"{root / checksums.CHECKSUMS}: cannot be read ({error}), and in a "
                "bucket nothing is summed again; copy the whole dataset there"
            ) from error
        files = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): _sum(path) for path in files}


def _sum(path: Place) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
