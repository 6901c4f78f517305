"""One tensor in a file: what it is, and how to read it without the rest of the file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  teaches numpy the name bfloat16
import numpy as np

from tavr_jax.errors import InputError


class Stored(NamedTuple):
    """A tensor that is still in its file; `read()` brings it into memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def read_at(
    path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Little-endian numbers at a byte offset of a file.

    Read, not mapped: the pages of a mapped file count as memory of this process.
    InputError where the file ends too early.
    """
    array = np.empty(shape, dtype)
    rest = memoryview(array.reshape(-1).view(np.uint8))
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise InputError(f"{path}: ends too early; fetch it again")
                rest = rest[count:]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return array


def file_size(path: Path) -> int:
    """Bytes of a file. InputError if there is none."""
    try:
        if path.is_file():
            return os.path.getsize(path)
    except (OSError, ValueError):  # ValueError: a null byte in the name
        pass
    raise InputError(f"{path}: no such file; expected a file of weights")
