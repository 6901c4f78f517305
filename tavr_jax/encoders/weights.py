"""Weights of the frozen networks that this repository trains, on disk.

One safetensors file, a tensor per parameter, named by its path in the module
("encoder.blocks.0.conv1.kernel"), with text metadata. Strict both ways: a tensor that
is unknown, missing or misshapen is an InputError that names it.
"""

import hashlib
import os
from collections.abc import Mapping

import numpy as np
from flax import nnx

from tavr_jax.encoders import published
from tavr_jax.encoders.published import Entry, Module
from tavr_jax.encoders.tensors import open_tensors


def save_network(
    path: str | os.PathLike[str], module: nnx.Module, metadata: Mapping[str, str]
) -> None:
    """Write the parameters and text metadata (command, seed, ...); atomic."""
    published.save(path, module, entries(module), metadata)


def load_network(path: str | os.PathLike[str], module: Module) -> Module:
    """A copy of `module` with the weights of a file of `save_network`.

    `module` may be abstract (`nnx.eval_shape`): its own weights are not looked at.
    """
    return published.fill(open_tensors(path), module, entries(module))


def entries(module: nnx.Module) -> list[Entry]:
    """Our own names and layouts, stacks of layers whole."""
    return [
        Entry(".".join(map(str, keys)), tuple(value.shape), keys, None, None)
        for keys, value in nnx.to_flat_state(nnx.state(module, nnx.Param))
    ]


def fingerprint(module: nnx.Module) -> str:
    """Twelve hex digits of names, shapes and values: equal if and only if they are."""
    digest = hashlib.sha256()
    flat = dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))
    for name, keys in sorted((".".join(map(str, keys)), keys) for keys in flat):
        value = flat[keys]
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
        # Layer by layer: a stack of the official size has 6 GB, maybe spread out.
        for layer in range(value.shape[0]) if value.ndim > 2 else (None,):
            array = published.fetch(value.get_value(), layer)
            digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()[:12]
