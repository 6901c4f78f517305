"""Attention in plain XLA, queries in tiles: memory linear in the sequence.

Backward computes the scores of each tile again; to keep them would be quadratic. The
softmax over keys that come in parts, as ring attention reads them:

    (1) m' = max(m, max_j s_j)                    s_j = q . k_j / sqrt(d)
    (2) l' = e^(m - m') l + sum_j e^(s_j - m')
    (3) o' = e^(m - m') o + sum_j e^(s_j - m') v_j,  out = o / l at the end

Milakov and Gimelshein 2018, arXiv 1805.02867.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Scores of one tile: small enough to stay in cache, large enough for the matrix unit.
QUERY_TILE = 512
# Far below any score, and finite: a row of nothing else is a mean, not a NaN.
MASKED = -1e30


class Partial(NamedTuple):
    """Attention to the keys read so far, float32."""

    out: Float[Array, "B n K d"]  # o of (3)
    most: Float[Array, "B n K"]  # m of (1)
    total: Float[Array, "B n K"]  # l of (2)


def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
) -> Float[Array, "B n K d"]:
    """`attention.attend`, without a choice."""

    def tile(parts):
        return _tile(parts[0], k, v, parts[1] if wide else mask)

    wide = mask is not None and mask.shape[1] > 1
    return _over_tiles(tile, (q, mask) if wide else (q,))


def start(q: Float[Array, "B n K d"]) -> Partial:
    """No key read yet."""
    rows = q.shape[:-1]
    return Partial(
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(rows, MASKED, jnp.float32),
        jnp.zeros(rows, jnp.float32),
    )


def extend(
    before: Partial,
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B 1 m"],
) -> Partial:
    """(1) to (3): read these keys too."""

    def tile(parts) -> Partial:
        q, old = parts
        scores = _scores(q, k, mask)
        most = jnp.maximum(old.most, scores.max(-1).swapaxes(1, 2))
        weights = jnp.exp(scores - most.swapaxes(1, 2)[..., None])
        total = weights.sum(-1).swapaxes(1, 2)
        out = jnp.einsum(
            "bknm,bmkd->bnkd",
            weights.astype(v.dtype),
            v,
            preferred_element_type=jnp.float32,
        )
        faded = jnp.exp(old.most - most)
        out = faded[..., None] * old.out + out
        return Partial(out, most, faded * old.total + total)

    return _over_tiles(tile, (q, before))


def finish(read: Partial, dtype) -> Float[Array, "B n K d"]:
    """Out of (3)."""
    return (read.out / read.total[..., None]).astype(dtype)


def _over_tiles(tile: Callable, rows):
    """`tile` of QUERY_TILE rows of every leaf "B n ..." at a time."""
    count = jax.tree.leaves(rows)[0].shape[1]
    tiles, rest = divmod(count, QUERY_TILE)
    if tiles + (rest > 0) <= 1:
        return tile(rows)
    done = tiles * QUERY_TILE

    def cut(leaf: Array) -> Array:
        whole = leaf[:, :done]
        shape = (leaf.shape[0], tiles, QUERY_TILE, *leaf.shape[2:])
        return whole.reshape(shape).swapaxes(0, 1)

    def join(leaf: Array) -> Array:
        leaf = leaf.swapaxes(0, 1)
        return leaf.reshape(leaf.shape[0], done, *leaf.shape[3:])

    again = jax.checkpoint(tile, prevent_cse=False)
    body = jax.tree.map(join, jax.lax.map(again, jax.tree.map(cut, rows)))
    if not rest:
        return body
    tail = tile(jax.tree.map(lambda leaf: leaf[:, done:], rows))
    return jax.tree.map(lambda *ends: jnp.concatenate(ends, axis=1), body, tail)


def _tile(q, k, v, mask) -> Array:
    weights = jax.nn.softmax(_scores(q, k, mask), axis=-1).astype(v.dtype)
    return jnp.einsum("bknm,bmkd->bnkd", weights, v)


def _scores(q, k, mask) -> Float[Array, "B K n m"]:
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    scores = scores / np.sqrt(q.shape[-1])
    return scores if mask is None else jnp.where(mask[:, None], scores, MASKED)
