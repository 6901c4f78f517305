"""Files of weights, whatever their format: names and arrays, nothing executed.

    NAME.safetensors                    one file
    NAME.safetensors.index.json         which tensor is in which file beside it
    NAME.pth  .pt  .bin                 torch.save of a state dict (torch_files.py)
    FOLDER                              one of: *.safetensors.index.json, *.safetensors,
                                        pytorch_model.bin.index.json, pytorch_model.bin

A tensor is read when it is asked for, and not kept.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tavr_jax.encoders import safetensors_files, torch_files
from tavr_jax.encoders.safetensors_files import Planned
from tavr_jax.encoders.stored import Stored, file_size
from tavr_jax.errors import InputError

_LARGEST_INDEX = 100_000_000


class Tensors(Mapping[str, np.ndarray]):
    """Named tensors of one source; `tensors[name]` reads one from the file.

    `path` is for messages, `metadata` what the file says about itself.
    """

    def __init__(
        self, path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, str]
    ):
        self.path = path
        self.metadata = dict(metadata)
        self._stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._stored[name].read()

    def __contains__(self, name: object) -> bool:  # Mapping's would read the tensor
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """As stored; reads nothing."""
        return self._stored[name].shape

    def dtype(self, name: str) -> np.dtype:
        """As stored; reads nothing."""
        return self._stored[name].dtype

    def nbytes(self) -> int:
        """Of all tensors: what a progress bar ends at."""
        return sum(
            math.prod(self.shape(name)) * self.dtype(name).itemsize for name in self
        )

    def without_prefix(self, prefix: str) -> "Tensors":
        """Names that begin with `prefix` lose it, the others stay.

        InputError if two tensors would have the same name.
        """
        renamed: dict[str, Stored] = {}
        for name, stored in self._stored.items():
            short = name.removeprefix(prefix)
            if short in renamed:
                raise InputError(
                    f"{self.path}: tensor {short!r} is there with and without "
                    f"{prefix!r}; keep one"
                )
            renamed[short] = stored
        return Tensors(self.path, renamed, self.metadata)


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a file, an index or a folder. InputError names what is wrong."""
    path = Path(path)
    if path.is_dir():
        path = _inside(path)
    if path.suffix == ".json":
        return _open_index(path)
    if torch_files.looks_like_one(path):
        return Tensors(path, torch_files.scan(path), {})
    return Tensors(path, *safetensors_files.scan(path))


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors in the dtype they are stored in. See `open_tensors`."""
    return dict(open_tensors(path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the file says about itself: the commands and seeds that made it."""
    return open_tensors(path).metadata


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """One safetensors file, all or nothing."""
    planned = [
        Planned(name, array.shape, array.dtype, lambda array=array: array)
        for name, array in tensors.items()
    ]
    safetensors_files.write(Path(path), planned, metadata)


def check_names(
    tensors: Tensors,
    expected: Mapping[str, tuple[int, ...]],
    ignored: Sequence[str] = (),
) -> None:
    """Strict both ways: InputError on an unknown, missing or misshapen tensor.

    `ignored`: regular expressions of whole names that may be there and are not needed.
    """
    path = tensors.path
    for name in sorted(set(tensors) - set(expected)):
        if not any(re.fullmatch(pattern, name) for pattern in ignored):
            raise InputError(
                f"{path}: unknown tensor {name[:200]!r}; is it for another network?"
            )
    for name in sorted(set(expected) - set(tensors)):
        raise InputError(f"{path}: tensor {name!r} is missing; is the file complete?")
    for name, shape in expected.items():
        if tensors.shape(name) != tuple(shape):
            raise InputError(
                f"{path}: tensor {name!r} has shape {tensors.shape(name)}, "
                f"expected {tuple(shape)}; the config is of another size"
            )


def _inside(folder: Path) -> Path:
    for pattern in (
        "*.safetensors.index.json",
        "*.safetensors",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin",
    ):
        found = sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))
        if len(found) > 1:
            raise InputError(
                f"{folder}: holds {found[0].name} and {found[1].name}; name the one "
                "you mean"
            )
        if found:
            return found[0]
    raise InputError(
        f"{folder}: no weights in this folder; expected *.safetensors, "
        "*.safetensors.index.json or pytorch_model.bin"
    )


def _open_index(path: Path) -> Tensors:
    """`weight_map`: tensor -> file name; both sides have to agree."""
    if file_size(path) > _LARGEST_INDEX:
        raise InputError(f"{path}: too large for an index of tensors")
    places = safetensors_files.read_json(path, path.read_bytes()).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path}: weight_map: missing; is it an index of tensors?")
    found: dict[str, Stored] = {}
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name or name.endswith(".json"):
            raise InputError(
                f"{path}: weight_map: {name[:200]!r} is not the name of a file of "
                "tensors beside it"
            )
        for tensor, stored in open_tensors(path.parent / name)._stored.items():
            if places.get(tensor) != name:
                raise InputError(
                    f"{path}: tensor {tensor[:200]!r} is in {name}, which the index "
                    "does not say; fetch both again"
                )
            found[tensor] = stored
    for tensor, name in places.items():
        if tensor not in found:
            raise InputError(f"{path}: tensor {tensor[:200]!r} is not in {name}")
    return Tensors(path, found, {})
