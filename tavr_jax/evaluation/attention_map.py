"""Which tokens a token of the target reads, as maps over the frames that are read.

    (1) p_ij = softmax_j(q_i . k_j / sqrt(d)), over kept keys j: those of the main
        stream and of the reference together          (models/attention.py, (1))

q and k are the model's own, watched while its blocks run: the maps are of the attention
that makes the video. Which layers and heads a picture is the mean of is for whoever
draws it to choose (ours; the paper shows one and does not say).
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from numpy import ndarray

from tavr_jax.models import tokens
from tavr_jax.models.blocks import Attention
from tavr_jax.models.tokens import Layout
from tavr_jax.models.transformer import ReferenceCache, Transformer, TransformerConfig
from tavr_jax.types import Conditions

DIM, GLOW = 0.45, 0.75  # of an overlay: what is left of a frame, the strongest heat
SIDE, GAP = 160, 2  # of a sheet: pixels of a frame, about, and around it


class Read(NamedTuple):
    """What n tokens read, in every layer and head: shares, which sum to 1 over all
    three. A token that is masked or not packed has 0."""

    video: Float[Array, "layers B n K T h w"]
    still: Float[Array, "layers B n K h w"]
    reference: Float[Array, "layers B n K R h w"]

    def totals(self) -> dict[str, Float[Array, "layers B n K"]]:
        """How much is read of each of the three."""
        return {
            name: part.sum(axis=tuple(range(4, part.ndim)))
            for name, part in self._asdict().items()
        }


def attention_map(
    model: Transformer,
    latents: Float[Array, "B T H W C"],
    timestep: Float[Array, " B"],
    conditions: Conditions,
    cache: ReferenceCache,
    targets: Int[Array, "n 3"] | Int[ndarray, "n 3"],
) -> Read:
    """(1) for the video tokens `targets`, each (latent, row, column) of the token grid.

    The other arguments are those of a call of the model. `cache` is what its `prefill`
    made of the same conditions: whole, not `generate.shortened`, a row a sample.
    """
    x, context = model.embed_main(latents, timestep, conditions)
    layout, grid = context.layout, conditions.still_tokens.shape[1:]
    main = main_places(conditions.still_tokens, layout, model.config)
    reference = reference_places(conditions.reference_tokens, layout, model.config)
    wanted = jnp.asarray(targets) @ jnp.array([layout.area, grid[1], 1])
    is_there = (main[:, None] == wanted[None, :, None]) & context.valid[:, None]
    asking = is_there.argmax(axis=2)[:, :, None, None]
    graph, layers = nnx.split(model.blocks)

    def layer(x, slices):
        weights, keys, values = slices
        block = nnx.merge(graph, weights)
        seen = _watched(block.self_attn)
        x = block.main(x, context, keys, values, cache.valid).x
        ((q, own),) = seen
        keys = jnp.concatenate([own, keys], axis=1)
        valid = jnp.concatenate([context.valid, cache.valid], axis=1)
        return x, shares(jnp.take_along_axis(q, asking, axis=1), keys, valid)

    _, found = jax.lax.scan(layer, x, (layers, cache.keys, cache.values))
    own = main.shape[1]
    slots, count = layout.slots, conditions.reference_tokens.shape[1]
    of_main = _on_grid(found[..., :own], main, (slots + 1, *grid))
    of_reference = _on_grid(found[..., own:], reference, (count, *grid))
    return Read(of_main[..., :slots, :, :], of_main[..., slots, :, :], of_reference)


def shares(
    q: Float[Array, "B n K d"], k: Float[Array, "B m K d"], valid: Bool[Array, "B m"]
) -> Float[Array, "B n K m"]:
    """(1); float32, exactly 0 where a key is not kept."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("bnkd,bmkd->bnkm", q, k) / np.sqrt(q.shape[-1])
    return jax.nn.softmax(scores, axis=-1, where=valid[:, None, None])


def main_places(
    still: Bool[Array, "B h w"], layout: Layout, config: TransformerConfig
) -> Int[Array, "B N"]:
    """Where packed tokens of the main stream lie: T h w of the video, then h w."""
    flat = still.reshape(len(still), -1)
    indices, taken = tokens.pack(flat, config.still_bucket, layout.runs)
    return layout.order(indices, taken)[0]


def reference_places(
    valid: Bool[Array, "B R h w"], layout: Layout, config: TransformerConfig
) -> Int[Array, "B M"]:
    """Where packed tokens of the reference lie among its R h w."""
    batch, latents, *_ = valid.shape
    if config.reach is None:
        flat = valid.reshape(batch, -1)
        return tokens.pack(flat, config.reference_bucket, layout.runs)[0]
    room = -(-config.reference_bucket // config.num_videoref_latents)
    return tokens.pack_latents(valid.reshape(batch, latents, -1), room, layout.runs)[0]


def overlay(
    frames: UInt8[ndarray, "R Y X 3"], heat: Float[ndarray, "R h w"]
) -> UInt8[ndarray, "R Y X 3"]:
    """Darkened frames through which what is read shines, token by token; the brightest
    token of all frames is the one that is read most."""
    rows, columns = (frames.shape[i] // heat.shape[i] for i in (1, 2))
    scaled = np.asarray(heat, np.float32) / max(float(np.max(heat)), 1e-30)
    levels = np.rint(255 * scaled.repeat(rows, axis=1).repeat(columns, axis=2))
    colours = [
        cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]
        for level in levels.astype(np.uint8)
    ]
    mixed = DIM * frames + GLOW * np.stack(colours)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def kept(
    frames: UInt8[ndarray, "R Y X 3"], valid: Bool[ndarray, "R h w"]
) -> UInt8[ndarray, "R Y X 3"]:
    """Frames, black where their tokens are dropped."""
    rows, columns = (frames.shape[i] // valid.shape[i] for i in (1, 2))
    large = valid.repeat(rows, axis=1).repeat(columns, axis=2)
    return frames * large[..., None]


def sheet(rows: Sequence[ndarray]) -> UInt8[ndarray, "_ _ 3"]:
    """Rows of uint8 frames (R Y X 3) of one size as one picture.

    A frame is enlarged to about SIDE pixels; a shorter row is filled up with white.
    """
    scale = -(-SIDE // rows[0].shape[2])
    most = max(map(len, rows))
    lines = []
    for frames in rows:
        large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        free = ((0, most - len(frames)), (GAP, GAP), (GAP, GAP), (0, 0))
        framed = np.pad(large, free, constant_values=255)
        framed[len(frames) :] = 255
        lines.append(np.concatenate(list(framed), axis=1))
    return np.concatenate(lines)


def _watched(attention: Attention) -> list[tuple[Array, Array]]:
    """Fills with the q and k of every call of this layer's self-attention."""
    seen, ask = [], attention.qkv

    def qkv(x, positions):
        q, k, v = ask(x, positions)
        seen.append((q, k))
        return q, k, v

    attention.qkv = qkv
    return seen


def _on_grid(
    found: Float[Array, "layers B n K m"],
    places: Int[Array, "B m"],
    grid: tuple[int, ...],
) -> Float[Array, "layers B n K ..."]:
    """Shares of packed tokens back where the tokens are."""

    def of_sample(found, places):
        empty = jnp.zeros((*found.shape[:-1], int(np.prod(grid))))
        return empty.at[..., places].add(found)

    made = jax.vmap(of_sample, in_axes=(1, 0), out_axes=1)(found, places)
    return made.reshape(*made.shape[:-1], *grid)
