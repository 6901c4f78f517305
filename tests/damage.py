"""Damage to files of weights: the law that reading keeps whatever the bytes are."""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tavr_jax.encoders.tensors import read_tensors
from tavr_jax.errors import InputError


def damaged(whole: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`count` files near `whole`: bits, bytes, cuts, growth, moved and repeated parts.

    Half of the damage is at the ends, where formats keep their lengths.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(whole)
        near = rng.choice([len(data), 64, 256])
        at = int(rng.integers(0, min(near, len(data))))
        at = len(data) - 1 - at if rng.random() < 0.3 else at
        match rng.integers(0, 7):
            case 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                data[at : at + 8] = rng.bytes(8)
            case 2:
                del data[at:]
            case 3:
                data += rng.bytes(int(rng.integers(1, 100)))
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 200))]
            case 5:
                data[at : at + 4] = b"\xff\xff\xff\x7f"
            case 6:
                digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
                data[digits[int(rng.integers(0, len(digits)))]] = 57
        yield bytes(data)


def check_all_survive(path: Path, contents: Iterator[bytes]) -> None:
    """Arrays or InputError that names a file, soon, and in little memory."""
    refused = 0
    for content in contents:
        path.write_bytes(content)
        started = time.monotonic()
        tracemalloc.start()
        try:
            read_tensors(path)
        except InputError as error:
            refused += 1
            assert str(path.parent) in str(error) and "\n" not in str(error)
        except Exception as error:  # say which bytes
            pytest.fail(f"{type(error).__name__}: {error} of {content[:200]!r}")
        finally:
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.monotonic() - started < 2
        assert memory < 1_000_000 + 20 * len(content)
    assert refused  # the damage is not all in the numbers
