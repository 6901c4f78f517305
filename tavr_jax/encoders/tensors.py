"""Safetensors files: names and arrays, nothing executed, errors that name the file."""

import os
from pathlib import Path

import ml_dtypes  # noqa: F401  teaches numpy the name bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tavr_jax.errors import InputError


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file in the dtype they are stored in.

    Raises InputError when the file is missing or is not a sound safetensors file.
    """
    with _open(path) as file:
        return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """What the file says about itself: the commands and seeds that made it."""
    with _open(path) as file:
        return file.metadata() or {}


def write_tensors(
    path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Write all or nothing: a temporary file beside it, then a rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    solid = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(solid, str(partial), metadata)
    partial.chmod(0o644)  # the library makes it private
    os.replace(partial, path)


def check_names(path: str | Path, found: dict, expected: dict) -> None:
    """Strict both ways: InputError on an unknown, missing or misshapen tensor."""
    for name in sorted(set(found) - set(expected)):
        raise InputError(f"{path}: unknown tensor {name!r}; is it for another network?")
    for name in sorted(set(expected) - set(found)):
        raise InputError(f"{path}: tensor {name!r} is missing; is the file complete?")
    for name, shape in expected.items():
        if tuple(found[name].shape) != tuple(shape):
            raise InputError(
                f"{path}: tensor {name!r} has shape {tuple(found[name].shape)}, "
                f"expected {tuple(shape)}; the config is of another size"
            )


def _open(path: str | Path):
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a .safetensors file")
    try:
        return safe_open(str(path), framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); fetch it again"
        ) from error
