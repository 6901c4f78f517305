"""The codec step by step: memory does not grow with the length of a video.

(1) encode: 1 frame -> 1 latent, then steps of 4n frames -> n latents
(2) decode: 1 latent -> 1 frame, then steps of n latents -> 4n frames
(3) steps of any n give what the whole clip at once gives

What the next step must remember, a few frames of each layer (`vae_blocks.py`), travels
as an explicit pytree. Two programs are compiled a frame size and n: the first step and
all later ones. A short last step is filled up and cut: the codec is causal.
With a mesh its devices share the columns (`vae_columns.py`). The memory stays where its
columns are; what is handed out is whole on every device, for every host to read.
Source: TAVR_SPEC 6, 9.5, 13.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from numpy import ndarray

from tavr_jax.encoders.vae import SPAN, Codec
from tavr_jax.encoders.vae_blocks import Memory
from tavr_jax.parallel import sharding
from tavr_jax.types import PyTree


def encode_stream(
    codec: Codec,
    frames: Iterable[Float[Array | ndarray, "B _ Y X 3"]],
    *,
    step: int,
    mesh: Mesh | None = None,
) -> Iterator[Float[Array, "B T H W C"]]:
    """`Codec.encode` of a video that comes in blocks of any number of frames.

    Yields 1 latent, then `step` at a time; frames in [-1, 1] beyond 1 + 4k are ignored.
    """
    for mean, _ in posterior_stream(codec, frames, step=step, mesh=mesh):
        yield codec.normalised(mean)


def posterior_stream(
    codec: Codec,
    frames: Iterable[Float[Array | ndarray, "B _ Y X 3"]],
    *,
    step: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[Float[Array, "B T H W C"], Float[Array, "B T H W C"]]]:
    """Mean and log-variance that `encode_stream` makes latents of."""
    graph, weights = _placed(codec, mesh)
    memory = None
    for piece, real in _pieces(frames, 1, SPAN * step):
        count = 1 if memory is None else real // SPAN
        if count:
            with _on(mesh):
                *found, memory = _posterior_step(graph, weights, piece, memory)
            mean, logvar = (x[:, :count] for x in found)
            yield mean, logvar


def decode_stream(
    codec: Codec,
    latents: Iterable[Float[Array | ndarray, "B _ H W C"]],
    *,
    step: int,
    dtype: DTypeLike,
    mesh: Mesh | None = None,
) -> Iterator[Float[Array, "B F Y X 3"]]:
    """`Codec.decode` of latents that come in blocks of any number.

    Yields 1 frame, then 4 `step` at a time, in `dtype`.
    """
    graph, weights = _placed(codec, mesh)
    memory = None
    for piece, real in _pieces(latents, 1, step):
        count = 1 if memory is None else SPAN * real
        with _on(mesh):
            frames, memory = decode_step(graph, weights, piece, memory, dtype)
        yield frames[:, :count]


def encode_reference_stream(
    codec: Codec,
    frames: Iterable[Float[Array | ndarray, "B _ Y X 3"]],
    *,
    step: int,
    mesh: Mesh | None = None,
) -> Iterator[Float[Array, "B T H W C"]]:
    """`encode_reference` of blocks; yields `step` latents or fewer at a time.

    Frames behind the last latent that is wanted need not be given.
    """
    blocks = iter(frames)
    start = next(blocks, None)
    if start is None:
        return
    prefix = np.repeat(start[:, :1], codec.config.reference_prefix, axis=1)
    skipped = 1 + (codec.config.reference_prefix - 1) // SPAN
    whole = chain([prefix, start], blocks)
    for latents in encode_stream(codec, whole, step=step, mesh=mesh):
        kept = latents[:, skipped:]
        skipped = max(skipped - latents.shape[1], 0)
        if kept.shape[1]:
            yield kept


def _placed(codec: Codec, mesh: Mesh | None) -> tuple[nnx.GraphDef, PyTree]:
    """Weights whole on every device."""
    graph, weights = nnx.split(codec)
    if mesh is not None:
        weights = jax.device_put(weights, sharding.replicated(mesh))
    return graph, weights


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """A step at a time: a generator must not leave a mesh set where it is read."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _pieces(
    blocks: Iterable[Array | ndarray], first: int, later: int
) -> Iterator[tuple[ndarray, int]]:
    """(exactly `first`, then `later` frames, how many of them are real)."""
    held, wanted = None, first
    for block in blocks:
        block = np.asarray(block)
        held = block if held is None else np.concatenate([held, block], axis=1)
        while held.shape[1] >= wanted:
            yield held[:, :wanted], wanted
            held, wanted = held[:, wanted:], later
    rest = 0 if held is None else held.shape[1]
    if rest:
        filling = [(0, 0)] * held.ndim
        filling[1] = (0, wanted - rest)
        yield np.pad(held, filling, mode="edge"), rest


# the memory is given away: its space takes the memory that is returned
@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _posterior_step(
    graph: nnx.GraphDef, weights: PyTree, frames: Array, memory: Memory
) -> tuple[Array, Array, Memory]:
    *found, memory = nnx.merge(graph, weights).posterior_step(frames, memory)
    return *map(_whole, found), memory


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=3)
def decode_step(
    graph: nnx.GraphDef,
    weights: PyTree,
    latents: Array,
    memory: Memory,
    dtype: DTypeLike,
) -> tuple[Array, Memory]:
    """One step of (2): frames, and the memory of the next; `memory` is donated."""
    frames, memory = nnx.merge(graph, weights).decode_step(latents, memory, dtype)
    return _whole(frames), memory


def _whole(x: Array) -> Array:
    return sharding.constrain(x, *(None,) * x.ndim)
