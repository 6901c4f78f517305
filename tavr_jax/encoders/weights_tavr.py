"""The transformer's published names (TAVR_SPEC 16), checked both ways.

Ours -> official is a chain of exact renames; official Linear weights are (out, in),
ours (in, out); per-layer tensors are stacked on a leading layer axis. Nothing is fused,
so the way back is the same table read from right to left.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tavr_jax.encoders.tensors import check_names, read_tensors, write_tensors

_RENAMES = (
    (r"^audio_embedding\b", "aud_embedding"),
    (r"^reference_audio_embedding\b", "videoref_aud_embedding"),
    (r"^time_in\b", "time_embedding.0"),
    (r"^time_out\b", "time_embedding.2"),
    (r"^time_projection\b", "time_projection.1"),
    (r"^audio_positions$", "audio_pos_embedding.weight"),
    (r"^null_audio$", "null_audio_feature.weight"),
    (r"^still_embedding$", "ref_pos_embedding.weight"),
    (r"^reference_embedding$", "cross_videoref_pos_embedding.weight"),
    (r"^null_reference_audio$", "null_videoref_audio_feature.weight"),
    (r"^reference_audio_positions$", "videoref_audio_pos_embedding.weight"),
    (r"^head_modulation$", "head.modulation"),
    (r"^head\.(kernel|bias)$", r"head.head.\1"),
    (r"\badapter_(q|k|v)\.norm\b", r"videoref_aud_\1_adapter.0"),
    (r"\badapter_(q|k|v)\.down\b", r"videoref_aud_\1_adapter.1"),
    (r"\badapter_(q|k|v)\.up\b", r"videoref_aud_\1_adapter.3"),
    (r"(embedding|ffn)\.up\b", r"\1.0"),
    (r"(embedding|ffn)\.down\b", r"\1.2"),
    (r"\.(kernel|scale)$", ".weight"),
)
# Published with one or two leading axes of length 1.
_LEADING = {"time_embedding_videoref": 1, "head.modulation": 1, "modulation": 1}


class Entry(NamedTuple):
    """One published tensor and where it lives here."""

    official: str
    shape: tuple[int, ...]  # as published
    ours: tuple[str, ...]
    layer: int | None  # which slice of a stacked tensor


def load_transformer(path: str | Path, model: nnx.Module, patch: tuple) -> None:
    """Fill `model` from a published file, in float32. InputError names a bad tensor.

    `patch` is the config's patch_size: the patch embedding is published as a
    convolution.
    """
    found = read_tensors(path)
    flat = _flat(model)
    entries = list(_entries(flat, patch))
    check_names(path, found, {e.official: e.shape for e in entries})
    values: dict[tuple, np.ndarray] = {}
    for e in entries:
        array = _to_ours(e, found[e.official].astype(np.float32), patch)
        if e.layer is None:
            values[e.ours] = array
        else:
            stack = values.setdefault(e.ours, np.empty(flat[e.ours].shape, np.float32))
            stack[e.layer] = array
    for name, variable in flat.items():
        variable[...] = jnp.asarray(values[name].reshape(variable.shape))


def save_transformer(
    path: str | Path, model: nnx.Module, patch: tuple, metadata: dict[str, str]
) -> None:
    """Write `model` under its published names, in float32."""
    flat = _flat(model)
    tensors = {}
    for e in _entries(flat, patch):
        array = np.asarray(flat[e.ours][...])
        array = array if e.layer is None else array[e.layer]
        tensors[e.official] = _to_official(e, array, patch)
    write_tensors(path, tensors, metadata)


def _flat(model: nnx.Module) -> dict[tuple, nnx.Param]:
    # Not nnx.split: the module's own variables, so that assigning fills the module.
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def _entries(flat: dict[tuple, nnx.Param], patch: tuple) -> Iterator[Entry]:
    for ours, variable in flat.items():
        if ours[0] == "blocks":
            for layer in range(variable.shape[0]):
                name, shape = _official(ours[1:], variable.shape[1:], patch)
                yield Entry(f"blocks.{layer}.{name}", shape, ours, layer)
        else:
            yield Entry(*_official(ours, variable.shape, patch), ours, None)


def _official(ours: tuple, shape: tuple, patch: tuple) -> tuple[str, tuple[int, ...]]:
    name = ".".join(map(str, ours))
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if ours == ("patch_embedding", "kernel"):
        return name, (shape[1], shape[0] // int(np.prod(patch)), *patch)
    if ours[-1] == "kernel":
        return name, shape[::-1]
    return name, (1,) * _LEADING.get(name, 0) + tuple(shape)


def _to_ours(entry: Entry, array: np.ndarray, patch: tuple) -> np.ndarray:
    if entry.ours == ("patch_embedding", "kernel"):
        return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])
    if entry.ours[-1] == "kernel":
        return array.T
    return array.reshape(entry.shape[_LEADING.get(_short(entry), 0) :])


def _to_official(entry: Entry, array: np.ndarray, patch: tuple) -> np.ndarray:
    if entry.ours == ("patch_embedding", "kernel"):
        return array.reshape(*patch, -1, array.shape[-1]).transpose(4, 3, 0, 1, 2)
    if entry.ours[-1] == "kernel":
        return array.T
    return array.reshape(entry.shape)


def _short(entry: Entry) -> str:
    return re.sub(r"^blocks\.\d+\.", "", entry.official)
