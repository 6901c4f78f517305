"""Wan 2.1 text-to-video weights into a TAVR transformer: where training starts.

TAVR's network is Wan's with more inputs. Wan's tensors are read under its own names,
ComfyUI's (a prefix) or diffusers'. What TAVR adds keeps its fresh values, but for what
has to be zero so that the network is still Wan's own where there is no valid ref-row
and no valid reference token:

    (1) rows of the patch embedding that read the two mask channels
    (2) the output projection of audio attention, weight and bias

Gradients reach both at the first step, what audio attention reads from the second on.
Source: TAVR_SPEC 16 for TAVR's names; Wan2.1-T2V-1.3B and -14B for Wan's.
"""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from tavr_jax.encoders import weights_tavr
from tavr_jax.encoders.published import Entry, Key, Module, Progress, fill
from tavr_jax.encoders.tensors import Tensors, open_tensors

_PREFIX = "model.diffusion_model."  # ComfyUI's
_MASKS = 2  # input channels after the latent's (TAVR_SPEC 10.1)
_PATCH: Key = ("patch_embedding", "kernel")
_ADDED = {
    "time_embedding_videoref",
    "audio_embedding",
    "audio_positions",
    "null_audio",
    "still_embedding",
    "reference_embedding",
    "reference_audio_embedding",
    "null_reference_audio",
    "reference_audio_positions",
}
_ADDED_TO_BLOCKS = {"audio_attn", "norm4"}
_DIFFUSERS = (
    (r"^(text|time)_embedding\.0\.", r"condition_embedder.\1_embedder.linear_1."),
    (r"^(text|time)_embedding\.2\.", r"condition_embedder.\1_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"\bself_attn\.", "attn1."),
    (r"\bcross_attn\.", "attn2."),
    (r"(attn\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attn\d)\.o\.", r"\1.to_out.0."),
    (r"\bnorm3\.", "norm2."),
    (r"\bffn\.0\.", "ffn.net.0.proj."),
    (r"\bffn\.2\.", "ffn.net.2."),
    (r"^head\.head\.", "proj_out."),
    (r"^(head|blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^head\.", ""),
)


class _Part(nnx.Module):
    """Parameters out of their network, in one list."""

    def __init__(self, parameters: list[nnx.Variable]):
        self.parameters = nnx.List(parameters)


def is_added(key: Key) -> bool:
    """Whether TAVR adds this parameter to Wan. The patch embedding is Wan's."""
    return key[0] in _ADDED or (key[0] == "blocks" and key[1] in _ADDED_TO_BLOCKS)


def learns_anew(key: Key) -> bool:
    """What is added, and the one parameter of Wan's that has new rows: see (1)."""
    return is_added(key) or key == _PATCH


def entries(model: nnx.Module, *, diffusers: bool = False) -> list[Entry]:
    """Wan's tensors and where they live in `model`, which may be abstract.

    The patch embedding has Wan's own shape, which is a part of ours.
    """
    table = []
    for e in weights_tavr.entries(model):
        if is_added(e.ours):
            continue
        name, shape = e.official, e.shape
        if e.ours == _PATCH:
            shape = (shape[0], shape[1] - _MASKS, *shape[2:])
        if diffusers:
            for pattern, replacement in _DIFFUSERS:
                name = re.sub(pattern, replacement, name)
        table.append(e._replace(official=name, shape=shape))
    return table


def open_wan(path: str | Path) -> tuple[Tensors, bool]:
    """Wan's tensors without ComfyUI's prefix; are the names diffusers' own?"""
    tensors = open_tensors(path).without_prefix(_PREFIX)
    return tensors, any(name.startswith("condition_embedder.") for name in tensors)


def load_wan(
    path: str | Path,
    model: Module,
    *,
    dtype: jnp.dtype | str | None = None,
    progress: Progress | None = None,
) -> Module:
    """A copy of `model`, freshly made, with Wan's weights, (1) and (2).

    What is Wan's (not `is_added`) may be abstract in `model`: it is not looked at.
    See `published.fill` for `dtype`, which is of Wan's tensors, for shardings and
    errors. An image-to-video file has tensors that are unknown here: InputError.
    """
    tensors, diffusers = open_wan(path)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    # Copies of the variables: a network shares none with another.
    flat = {key: v.replace(v.get_value()) for key, v in nnx.to_flat_state(params)}
    table = entries(model, diffusers=diffusers)
    places: dict[Key, Key] = {}
    for e in table:
        places.setdefault(e.ours, ("parameters", len(places)))
    part = _Part([_wans(key, flat[key], model.config) for key in places])
    table = [e._replace(ours=places[e.ours]) for e in table]
    part = fill(tensors, part, table, dtype=dtype, progress=progress)
    for key, (_, index) in places.items():
        value = part.parameters[index].get_value()
        if key == _PATCH:
            value = _with_masks(value, flat[key].get_value(), model.config)
        flat[key] = flat[key].replace(value)
    for name in ("kernel", "bias"):
        key = ("blocks", "audio_attn", "o", name)
        flat[key] = flat[key].replace(jnp.zeros_like(flat[key].get_value()))  # (2)
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())), rest)


def _wans(key: Key, variable: nnx.Variable, config) -> nnx.Variable:
    """A parameter as Wan has it."""
    if key != _PATCH:
        return variable
    rows = variable.shape[0] - _MASKS * math.prod(config.patch_size)
    return variable.replace(jnp.zeros((rows, variable.shape[1]), variable.dtype))


def _with_masks(
    wan: jax.Array, ours: jax.Array | jax.ShapeDtypeStruct, config
) -> jax.Array:
    """(1). Rows are ordered (time, row, column, channel)."""
    pixels = math.prod(config.patch_size)
    value = wan.reshape(pixels, -1, wan.shape[1])
    value = jnp.pad(value, ((0, 0), (0, _MASKS), (0, 0))).reshape(ours.shape)
    anywhere = isinstance(ours, jax.Array) and not ours.committed
    return (
        value if anywhere or not ours.sharding else jax.device_put(value, ours.sharding)
    )
