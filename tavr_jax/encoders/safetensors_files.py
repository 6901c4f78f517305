"""The safetensors format, tensor by tensor in both directions.

    8 bytes             length n of the header, little-endian
    n bytes             JSON: name -> {dtype, shape, data_offsets}; "__metadata__" ->
                        name -> text
    the rest            the tensors, end to end, row-major, little-endian

The `safetensors` package maps the whole file to read one tensor, and needs all tensors
in memory to write one file; a checkpoint of 38 GB wants neither.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from tavr_jax.encoders.stored import Stored, file_size, read_at
from tavr_jax.errors import InputError

# In the order in which a file has them.
DTYPES = {
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the limit of the format
_METADATA = "__metadata__"


class Planned(NamedTuple):
    """A tensor that will be written; `make()` is called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def scan(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a file, unread, and its text metadata.

    InputError unless the tensors fill the file exactly, none overlapping.
    """
    size = file_size(path)
    header, start = _header(path, size)
    metadata = header.pop(_METADATA, {})
    texts = isinstance(metadata, dict) and all(
        isinstance(text, str) for text in metadata.values()
    )
    if not texts:
        raise _unsound(path, "its metadata is not text")
    found, spans = {}, []
    for name, fields in header.items():
        shape, dtype, (begin, end) = _fields(path, name, fields)
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise _unsound(path, f"tensor {name[:200]!r} has {end - begin} bytes")
        spans.append((begin, end))
        found[name] = Stored(
            shape, dtype, partial(read_at, path, start + begin, shape, dtype)
        )
    last = 0
    for begin, end in sorted(spans):
        if begin != last:
            raise _unsound(path, "tensors overlap or leave a hole")
        last = end
    if start + last != size:
        raise _unsound(path, f"it has {size} bytes, its header says {start + last}")
    return found, metadata


def write(path: Path, tensors: Iterable[Planned], metadata: Mapping[str, str]) -> None:
    """All or nothing: a temporary file beside it, then a rename.

    One tensor is in memory at a time. Same order and padding as the package's.
    """
    order = list(DTYPES.values())
    ordered = sorted(tensors, key=lambda t: (order.index(t.dtype), t.name))
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for tensor in ordered:
        if tensor.name in header:
            raise ValueError(f"{path}: two tensors are called {tensor.name!r}")
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        with open(unfinished, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in ordered:
                _append(file, tensor)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path, text: bytes) -> dict[str, Any]:
    """A JSON object without repeated names. InputError otherwise."""
    try:
        read = json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _unsound(path, f"{' '.join(str(error).split())[:100]}") from error
    if not isinstance(read, dict):
        raise _unsound(path, "its JSON is not an object")
    return read


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise _unsound(path, f"it has {size} bytes")
    length = int(read_at(path, 0, (), np.dtype("<u8")))
    if length > min(_LONGEST_HEADER, size - 8):
        raise _unsound(path, f"its header claims {length} bytes")
    text = read_at(path, 8, (length,), np.dtype(np.uint8)).tobytes()
    return read_json(path, text), 8 + length


def _fields(
    path: Path, name: str, fields: Any
) -> tuple[tuple[int, ...], np.dtype, tuple[int, int]]:
    if not isinstance(fields, dict) or fields.keys() != {
        "dtype",
        "shape",
        "data_offsets",
    }:
        raise _unsound(path, f"tensor {name[:200]!r} is not described")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _unsound(path, f"tensor {name[:200]!r} is of unknown type")
    if not _naturals(shape) or len(shape) > 32 or not _naturals(offsets):
        raise _unsound(path, f"tensor {name[:200]!r} has no sound shape or place")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _unsound(path, f"tensor {name[:200]!r} has no sound place")
    return tuple(shape), DTYPES[dtype], (offsets[0], offsets[1])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(v) is int and 0 <= v < 2**63 for v in values
    )


def _append(file: BinaryIO, tensor: Planned) -> None:
    array = np.ascontiguousarray(tensor.make())
    if array.dtype != tensor.dtype or array.size != math.prod(tensor.shape):
        raise ValueError(f"{tensor.name}: {array.dtype} {array.shape} is not planned")
    file.write(memoryview(array.reshape(-1).view(np.uint8)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name is repeated")
    return read


def _unsound(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: not a readable safetensors file ({what}); fetch it again"
    )
