"""Attention in plain XLA, queries in tiles: memory linear in the sequence.

    (1) s_ij = q_i . k_j / sqrt(d), or -1e30 where the mask is false
    (2) lse_i = log sum_j e^(s_ij),  p_ij = e^(s_ij - lse_i),  out_i = sum_j p_ij v_j

The backward pass keeps out and lse and computes the scores of a tile again; with g the
gradient of out:

    (3) delta_i = g_i . out_i
    (4) dv_j = sum_i p_ij g_i
    (5) ds_ij = p_ij (g_i . v_j - delta_i) / sqrt(d)
    (6) dq_i = sum_j ds_ij k_j,  dk_j = sum_i ds_ij q_i

Keys that come in parts, as ring attention reads them, are read apart and joined; (4) to
(6) then hold part by part, with lse and delta of them all:

    (7) lse = log(e^lse' + e^lse''),  out = e^(lse' - lse) out' + e^(lse'' - lse) out''

Dao et al. 2022, arXiv 2205.14135. Heads go one after another where the scores of all
are many: XLA's products of two matrices are much faster on CPUs than its batched ones.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

# Queries of a tile: their scores of one head are to stay in cache.
QUERY_TILE = 512
# So many scores, or no more of them than numbers in the queries, are made at once.
AT_ONCE = 2**18
# Far below any score, and finite: a row of nothing else is finite, not a NaN.
MASKED = -1e30


class Part(NamedTuple):
    """Attention to some of the keys, float32."""

    out: Float[Array, "B n K d"]
    lse: Float[Array, "B n K"]


class Slopes(NamedTuple):
    """What (4) to (6) read of the output and its gradient."""

    grad: Float[Array, "B n K d"]  # g
    lse: Float[Array, "B n K"]
    delta: Float[Array, "B n K"]  # of (3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
    keep: str | None,
) -> Float[Array, "B n K d"]:
    """`attention.attend`, without a choice."""
    return _forward(q, k, v, mask, keep)[0]


def part(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
) -> Part:
    """(1) and (2)."""

    def head(mask, k, v, q):
        def tile(q):
            scores = _scores(q, k, mask)
            most = scores.max(-1, keepdims=True, initial=MASKED)
            weights = jnp.exp(scores - most)
            total = weights.sum(-1, keepdims=True)
            out = _dot(weights.astype(v.dtype), v) / total
            return out, (most + jnp.log(total))[:, 0]

        if few:
            return tile(q)
        return _join(jax.lax.map(tile, _cut(q)), len(q))

    few = _are_few(q, k, mask)
    out, lse = _each_head(head, few, mask, k, v, q)
    return Part(out.swapaxes(1, 2), lse.swapaxes(1, 2))


def part_gradients(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
    told: Slopes,
) -> tuple[Array, Array, Array]:
    """(4) to (6), float32: what these keys add to dq, and their dk and dv."""
    scale = 1 / math.sqrt(q.shape[-1])

    def head(mask, k, v, q, *told):
        seen = None if mask is None else mask.T

        def tile(sums, rows):
            q, grad, lse, delta = rows
            # Keys x queries: sums over queries are then plain products.
            weights = jnp.exp(_scores(k, q, seen) - lse[None])
            slopes = (weights * (_dot(v, grad.T) - delta[None]) * scale).astype(k.dtype)
            sums = (
                sums[0] + _dot(slopes, q),
                sums[1] + _dot(weights.astype(v.dtype), grad),
            )
            return sums, _dot(slopes.T, k)

        zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        if few:
            (dk, dv), dq = tile(zeros, (q, *told))
        else:
            (dk, dv), dq = jax.lax.scan(tile, zeros, _cut((q, *told)))
            dq = _join(dq, len(q))
        return dq, dk, dv

    few = _are_few(q, k, mask)
    told = told._replace(grad=told.grad.astype(v.dtype))
    found = _each_head(head, few, mask, k, v, q, *told)
    return tuple(x.swapaxes(1, 2) for x in found)


def joined(a: Part, b: Part) -> Part:
    """(7)."""
    lse = jnp.logaddexp(a.lse, b.lse)
    shares = (jnp.exp(x.lse - lse)[..., None] * x.out for x in (a, b))
    return Part(sum(shares), lse)


def slopes(read: Part, grad: Float[Array, "B n K d"]) -> Slopes:
    """(3)."""
    wide = grad.astype(jnp.float32) * read.out.astype(jnp.float32)
    return Slopes(grad, read.lse, wide.sum(-1))


def named(read: Part, dtype, keep: str | None) -> Part:
    """What the backward pass reads, under a name that rematerialising can keep."""
    read = read._replace(out=read.out.astype(dtype))
    return read if keep is None else checkpoint_name(read, keep)


def like(arrays, gradients):
    """Gradients in the dtypes of what they are of."""
    return tuple(g.astype(x.dtype) for x, g in zip(arrays, gradients, strict=True))


def _forward(q, k, v, mask, keep: str | None):
    read = named(part(q, k, v, mask), q.dtype, keep)
    return read.out, (q, k, v, mask, read)


def _backward(keep: str | None, kept, grad: Array):
    del keep
    q, k, v, mask, read = kept
    found = part_gradients(q, k, v, mask, slopes(read, grad))
    return *like((q, k, v), found), None


attend.defvjp(_forward, _backward)


def _are_few(q: Array, k: Array, mask: Array | None) -> bool:
    """Scores that may be made at once; those of a mask of pairs always are."""
    scores = math.prod(q.shape[:3]) * k.shape[1]
    pairs = mask is not None and mask.shape[1] > 1
    return pairs or scores <= max(AT_ONCE, q.size)


def _each_head(head: Callable, few: bool, mask: Array | None, *arrays: Array):
    """`head` of the sample's mask and arrays "n d" or "n", in all samples and heads."""

    def every(function: Callable, over):
        return jax.vmap(function)(over) if few else jax.lax.map(function, over)

    def sample(of_one):
        mask, *rows = of_one
        return every(lambda rows: head(mask, *rows), tuple(rows))

    return every(sample, (mask, *(x.swapaxes(1, 2) for x in arrays)))


def _scores(a, b, mask) -> Float[Array, "i j"]:
    scores = _dot(a, b.T) * (1 / math.sqrt(a.shape[-1]))
    return scores if mask is None else jnp.where(mask, scores, MASKED)


def _dot(a: Array, b: Array) -> Float[Array, "i j"]:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _cut(rows):
    """Leaves "n ..." in equal tiles, the last filled with zeros."""
    n = jax.tree.leaves(rows)[0].shape[0]
    tiles = math.ceil(n / QUERY_TILE)
    size = math.ceil(n / tiles)

    def cut(x: Array) -> Array:
        free = ((0, tiles * size - n), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, free).reshape(tiles, size, *x.shape[1:])

    return jax.tree.map(cut, rows)


def _join(tiles, n: int):
    """Inverse of `_cut`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], tiles)
