"""State dicts written by torch.save, read without PyTorch and without running pickles.

    ARCHIVE/data.pkl            names, shapes, strides; a program for a stack machine
    ARCHIVE/data/<key>          one block of numbers ("storage"), shared by tensors
    ARCHIVE/byteorder           "little" (absent in old files)

The program is interpreted here: numbers, texts, containers, and the calls by which a
state dict names its tensors. Anything else it asks for is an InputError that says what
was asked; nothing of the file is ever imported or called. Blocks stay in the file until
their tensor is asked for, and none may be compressed: what is in memory is never more
than what is on disk.
"""

import io
import math
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tavr_jax.encoders import pickles
from tavr_jax.encoders.pickles import View
from tavr_jax.encoders.stored import Stored, file_size, read_at
from tavr_jax.errors import InputError

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model")
_LARGEST_READ = 64 << 20  # of the directory and of the program; data is not in them
# What zipfile raises for what it does not like or does not know.
_UNREADABLE = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    ValueError,
    struct.error,
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Place(NamedTuple):
    """Where a block of numbers lies in the file."""

    offset: int
    size: int


def looks_like_one(path: Path) -> bool:
    """By its name, or because it is a zip archive."""
    if path.suffix in _SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except (OSError, ValueError):
        return False


def scan(path: Path) -> dict[str, Stored]:
    """The tensors of a file, unread; of {"state_dict": ...} and {"model": ...} those
    inside.

    InputError for a file that is damaged, compressed, big-endian, of the format before
    PyTorch 1.6, or that asks for more than a state dict needs.
    """
    size = file_size(path)
    try:
        program, places = _archive(path)
    except _UNREADABLE as error:
        line = " ".join(str(error).split())[:100]
        raise _unsound(path, line) from error
    read = pickles.read(path, program)
    for wrapper in _WRAPPERS:
        if isinstance(read, dict) and isinstance(read.get(wrapper), dict):
            read = read[wrapper]
    if not isinstance(read, dict) or not read:
        raise InputError(f"{path}: holds no state dict; save one with torch.save")
    found = {}
    for name, value in read.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise InputError(
                f"{path}: entry {str(name)[:200]!r} is not a tensor; save the state "
                "dict alone"
            )
        found[name] = _stored(path, size, name, value, places)
    return found


class _Bounded(io.FileIO):
    """A file whose claims about its own directory cannot fill the memory."""

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            place = self.tell()
            size = self.seek(0, io.SEEK_END) - place
            self.seek(place)
        if size > _LARGEST_READ:
            raise ValueError(f"a directory of {size} bytes")
        return super().read(size)


def _archive(path: Path) -> tuple[bytes, dict[str, Place]]:
    """The program, and where the block of every key is."""
    with _Bounded(path) as file:
        if file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise InputError(
                f"{path}: written in PyTorch's format before 1.6, which only PyTorch "
                "reads; load it there with weights_only=True and save it again"
            )
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        programs = [m for m in members if m.filename.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError("not an archive of torch.save")
        root = programs[0].filename.removesuffix("data.pkl")
        places: dict[str, Place] = {}
        for member in members:
            if not member.filename.startswith(root):
                continue
            name = member.filename.removeprefix(root)
            if name in places:
                raise ValueError(f"{name[:100]!r} is there twice")
            places[name] = _place(file, member)
        if "byteorder" in places:
            order = _small(file, places["byteorder"])
            if order.strip() != b"little":
                raise InputError(
                    f"{path}: its numbers are big-endian; save it on another machine"
                )
        program = _small(file, places["data.pkl"])
    blocks = {
        name.removeprefix("data/"): place
        for name, place in places.items()
        if name.startswith("data/")
    }
    return program, blocks


def _place(file: _Bounded, member: zipfile.ZipInfo) -> Place:
    name = repr(member.filename[:100])
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{name} is compressed or encrypted")
    if member.file_size != member.compress_size:
        raise ValueError(f"{name} has two sizes")
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    magic, letters, extra = _LOCAL_HEADER.unpack(header)
    offset = member.header_offset + _LOCAL_HEADER.size + letters + extra
    if magic != b"PK\x03\x04" or offset + member.file_size > file.seek(0, io.SEEK_END):
        raise ValueError(f"{name} is not where the directory says")
    return Place(offset, member.file_size)


def _small(file: _Bounded, place: Place) -> bytes:
    file.seek(place.offset)
    return file.read(place.size)


def _stored(
    path: Path, size: int, name: str, view: View, places: dict[str, Place]
) -> Stored:
    """Checked against its block, so that reading can only fail if the file changes."""
    storage, dtype = view.storage, view.storage.dtype
    place = places.get(storage.key)
    if place is None or storage.count * dtype.itemsize > place.size:
        raise _unsound(path, f"the numbers of tensor {name[:200]!r} are not there")
    steps = zip(view.shape, view.strides, strict=True)
    count = math.prod(view.shape)
    extent = 1 + sum((n - 1) * step for n, step in steps) if count else 0
    if view.offset + extent > storage.count or count * dtype.itemsize > size:
        raise _unsound(path, f"tensor {name[:200]!r} does not fit its numbers")
    offset = place.offset + view.offset * dtype.itemsize
    return Stored(view.shape, dtype, partial(_read, path, offset, extent, view))


def _read(path: Path, offset: int, extent: int, view: View) -> np.ndarray:
    """The stretch of numbers that the tensor touches, then its rows and columns."""
    dtype = view.storage.dtype
    numbers = read_at(path, offset, (extent,), dtype)
    strides = [step * dtype.itemsize for step in view.strides]
    if not extent:
        return numbers.reshape(view.shape)
    viewed = np.lib.stride_tricks.as_strided(numbers, view.shape, strides)
    return viewed if viewed.flags.c_contiguous else viewed.copy()


def _unsound(path: Path, what: Any) -> InputError:
    return InputError(f"{path}: not a readable PyTorch file ({what}); fetch it again")
