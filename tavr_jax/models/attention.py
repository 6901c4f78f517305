"""Softmax attention behind one signature.

    (1) out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,  over kept keys j

Queries are taken in tiles, so memory is linear in the sequence; a query whose keys are
all masked gets a finite number that nobody reads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

# Scores of one tile: small enough to stay in cache, large enough for the matrix unit.
QUERY_TILE = 512
# Far below any score, and finite: a row of nothing else is a mean, not a NaN.
MASKED = -1e30


def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None = None,
) -> Float[Array, "B n K d"]:
    """(1). `mask` is true where a query may read a key; q = n, or 1 for all alike."""
    mask = None if mask is None else mask[:, None]
    tiles, rest = divmod(q.shape[1], QUERY_TILE)
    if tiles + (rest > 0) <= 1:
        return _tile(q, k, v, mask)
    done = tiles * QUERY_TILE
    body = _tiled(q[:, :done], k, v, mask, tiles)
    if not rest:
        return body
    tail = mask if mask is None or mask.shape[2] == 1 else mask[:, :, done:]
    return jnp.concatenate([body, _tile(q[:, done:], k, v, tail)], axis=1)


def _tiled(q, k, v, mask, tiles: int) -> Array:
    b, n, heads, d = q.shape
    queries = q.reshape(b, tiles, QUERY_TILE, heads, d).swapaxes(0, 1)
    if mask is None or mask.shape[2] == 1:
        out = jax.lax.map(lambda tile: _tile(tile, k, v, mask), queries)
    else:
        masks = mask[:, :, :n].reshape(b, 1, tiles, QUERY_TILE, -1)
        pairs = (queries, masks.transpose(2, 0, 1, 3, 4))
        out = jax.lax.map(lambda pair: _tile(pair[0], k, v, pair[1]), pairs)
    return out.swapaxes(0, 1).reshape(b, n, heads, d)


def _tile(q, k, v, mask) -> Array:
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    scores = scores / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bknm,bmkd->bnkd", weights, v)
