"""The transformer's published names (TAVR_SPEC 16).

Ours -> official is a chain of exact renames; official Linear weights are (out, in),
ours (in, out); per-layer tensors are stacked on a leading layer axis. Nothing is fused,
so the way back is the same table read from right to left.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from flax import nnx
from jax.typing import DTypeLike

from tavr_jax.encoders.published import Entry, Key, Module, Progress, fill, save
from tavr_jax.encoders.tensors import Tensors, open_tensors

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
# Some tools store the transformer as a part of a larger model.
_PREFIX = "model.diffusion_model."


def entries(model: nnx.Module) -> list[Entry]:
    """One published tensor per parameter and layer; `model` may be abstract."""
    patch = model.config.patch_size
    table = []
    for ours, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if ours[0] == "blocks":
            for layer in range(variable.shape[0]):
                name, shape, axes = _official(ours[1:], variable.shape[1:], patch)
                table.append(Entry(f"blocks.{layer}.{name}", shape, ours, layer, axes))
        else:
            name, shape, axes = _official(ours, variable.shape, patch)
            table.append(Entry(name, shape, ours, None, axes))
    return table


def open_published(path: str | Path) -> Tensors:
    """A published file under its own names, whatever part of a model it was stored as.

    InputError as of `open_tensors`.
    """
    return open_tensors(path).without_prefix(_PREFIX)


def load_transformer(
    path: str | Path,
    model: Module,
    *,
    dtype: DTypeLike | None = None,
    progress: Progress | None = None,
) -> Module:
    """A copy of `model`, which may be abstract, with the weights of a published file.

    See `published.fill` for `dtype`, shardings and errors.
    """
    tensors = open_published(path)
    return fill(tensors, model, entries(model), dtype=dtype, progress=progress)


def save_transformer(
    path: str | Path,
    model: nnx.Module,
    metadata: Mapping[str, str],
    *,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write `model` under its published names in the dtypes it has.

    Returns the file, or the index of several. See `published.save`.
    """
    table = entries(model)
    return save(
        path, model, table, metadata, shard_bytes=shard_bytes, progress=progress
    )


def _official(
    ours: Key, shape: tuple[int, ...], patch: tuple[int, int, int]
) -> tuple[str, tuple[int, ...], tuple[int, ...] | None]:
    """Name, published shape and the transpose that leads to ours."""
    name = ".".join(map(str, ours))
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    if ours == ("patch_embedding", "kernel"):  # published as a convolution
        rows, out = shape
        return name, (out, rows // math.prod(patch), *patch), (2, 3, 4, 1, 0)
    if ours[-1] == "kernel":
        return name, shape[::-1], (1, 0)
    return name, (1,) * _LEADING.get(name, 0) + tuple(shape), None
