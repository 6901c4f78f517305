"""Weights of the frozen networks on disk: ours, and the published names of the codec.

Ours: one safetensors file, a tensor per parameter, named by its path in the module
("encoder.blocks.0.conv1.kernel"), with text metadata. Published (Wan 2.1): the names
of `Wan2.1_VAE.pth` in a safetensors file, TAVR_SPEC 6. Both are strict both ways: a
tensor that is unknown, missing or misshapen is an InputError that names it.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tavr_jax.encoders.tensors import check_names, read_tensors, write_tensors
from tavr_jax.encoders.vae import Codec
from tavr_jax.errors import InputError

Network = TypeVar("Network", bound=nnx.Module)
Shape = tuple[int, ...]

# our module -> the published one; the others keep their name
_WAN_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv": "resample.1",
    "qkv": "to_qkv",
    "kernel": "weight",
}
_WAN_TOP = {
    "quant": "conv1",
    "post_quant": "conv2",
    "encoder.conv_in": "encoder.conv1",
    "encoder.blocks": "encoder.downsamples",
    "decoder.conv_in": "decoder.conv1",
    "decoder.blocks": "decoder.upsamples",
    "middle.first": "middle.0",
    "middle.attention": "middle.1",
    "middle.second": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}


def save_network(
    path: str | os.PathLike[str], module: nnx.Module, metadata: Mapping[str, str]
) -> None:
    """Write the parameters and text metadata (command, seed, ...); atomic."""
    tensors = {name: np.asarray(v[...]) for name, v in _parameters(module).items()}
    write_tensors(Path(path), tensors, dict(metadata))


def load_network(path: str | os.PathLike[str], module: Network) -> Network:
    """A copy of `module` with the weights of a file of `save_network`.

    `module` may be abstract (`nnx.eval_shape`): its own weights are not looked at.
    """
    shapes = {name: value.shape for name, value in _parameters(module).items()}
    return _filled(module, _read(path, shapes))


def load_wan_vae(path: str | os.PathLike[str], codec: Codec) -> Codec:
    """A copy of `codec`, which may be abstract, with published weights."""
    names, parameters = wan_vae_names(codec), _parameters(codec)
    found = _read(
        path,
        {
            theirs: _published_shape(ours, parameters[ours].shape)
            for ours, theirs in names.items()
        },
    )
    return _filled(codec, {ours: _ours(found[names[ours]]) for ours in names})


def wan_vae_names(codec: Codec) -> dict[str, str]:
    """Our name of every parameter of the codec -> its name in `Wan2.1_VAE.pth`."""
    return {name: _wan_name(name) for name in _parameters(codec)}


def fingerprint(module: nnx.Module) -> str:
    """Twelve hex digits of names, shapes and values: equal if and only if they are."""
    digest = hashlib.sha256()
    for name, value in sorted(_parameters(module).items()):
        array = np.ascontiguousarray(value[...])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def _parameters(module: nnx.Module) -> dict[str, nnx.Variable]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, keys)): value for keys, value in flat}


def _wan_name(name: str) -> str:
    for ours, theirs in _WAN_TOP.items():
        # whole path elements only: "quant" is no part of "post_quant"
        name = f".{name}.".replace(f".{ours}.", f".{theirs}.").strip(".")
    top, *rest = name.split(".")
    if top in ("conv1", "conv2") or rest[0] == "conv1":
        return name.replace(".kernel", ".weight")
    return ".".join([top, *(_WAN_BLOCK.get(part, part) for part in rest)])


def _published_shape(name: str, shape: Shape) -> Shape:
    """Torch layouts: kernels (out, in, taps...), gains (C, 1, 1) or (C, 1, 1, 1)."""
    if name.endswith(".kernel"):
        return (shape[-1], shape[-2], *shape[:-2])
    if name.endswith(".gamma"):
        return (*shape, 1, 1) if "attention" in name else (*shape, 1, 1, 1)
    return shape


def _ours(published: np.ndarray) -> np.ndarray:
    """The way back of `_published_shape`; no kernel of one tap has one input."""
    if published.ndim > 2 and published[0].size > 1:
        return np.moveaxis(published, (1, 0), (-2, -1))
    return published.reshape(-1)


def _read(
    path: str | os.PathLike[str], shapes: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """Exactly these tensors, all of real numbers."""
    path = Path(path)
    found = read_tensors(path)
    check_names(path, found, dict(shapes))
    for name, array in found.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(
                f"{path}: tensor {name!r} holds {array.dtype}, expected real numbers; "
                "is it a quantised file?"
            )
    return found


def _filled(module: Network, values: Mapping[str, np.ndarray]) -> Network:
    graphdef, state = nnx.split(module)
    filled = []
    for keys, variable in nnx.to_flat_state(state):
        value = jnp.asarray(values[".".join(map(str, keys))], variable.dtype)
        filled.append((keys, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(filled))
