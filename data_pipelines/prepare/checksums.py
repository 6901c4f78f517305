"""Whether a dataset is as it was written: SHA-256 of each of its files.

DATASET/checksums.json    {"path below DATASET": "sha256 in hex", ...}
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tavr_jax.errors import InputError

CHECKSUMS = "checksums.json"


def write(root: Path, apart: Sequence[str] = ()) -> None:
    """Write the sums of all files below `root`, but for the folders `apart`."""
    names = [name for name in _files(root) if name.split("/")[0] not in apart]
    sums = {name: _sum(root / name) for name in names}
    (root / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")


def verify(root: Path) -> int:
    """The number of files, all of them as they were written.

    InputError: no sums, a file missing, changed or not of the dataset.
    """
    try:
        sums = json.loads((root / CHECKSUMS).read_text())
        expected = sorted(sums)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{root / CHECKSUMS}: cannot be read ({error}); run launch.prepare_data"
        ) from error
    found = _files(root)
    if odd := sorted(set(expected) ^ set(found)):
        what = "is missing" if odd[0] in sums else "is not of this dataset"
        raise InputError(f"{root / odd[0]}: {what}; copy the dataset again")
    for name in expected:
        if _sum(root / name) != sums[name]:
            raise InputError(
                f"{root / name}: damaged: not the SHA-256 of {CHECKSUMS}; copy the "
                "dataset again, or remove it and run launch.prepare_data"
            )
    return len(expected)


def _files(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path != root / CHECKSUMS
    )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
