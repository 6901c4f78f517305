"""Rotary positions in three dimensions.

    (1) d = d_t + d_y + d_x,  d_y = d_x = 2 (d // 6),  d_t = d - d_y - d_x
    (2) angle(p, j) = p * 10000^(-2j / d_axis),  j < d_axis / 2, one ladder per axis
    (3) channels (2j, 2j+1) turn by it: (a cos - b sin, a sin + b cos)

Time positions: slot for video, 0 for the ref row, `videoref_rope_offset` + slot for the
reference. Row and column positions are scaled by `rope_spatial_stride`.
Source: TAVR_SPEC 10.3. Tables are made in float64: at position 260 float32 angles
would already lose 1e-5.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def split_head(head_dim: int) -> tuple[int, int, int]:
    """(1): channels of a head given to time, rows and columns."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def angles(positions: np.ndarray, channels: int) -> np.ndarray:
    """(2): float64 angles, one row a position, `channels // 2` columns."""
    ladder = 10000.0 ** (-np.arange(0, channels, 2, dtype=np.float64) / channels)
    return np.outer(positions.astype(np.float64), ladder)


def table(
    slot: Int[Array, "*n"],
    row: Int[Array, "*n"],
    column: Int[Array, "*n"],
    head_dim: int,
    slot_positions: np.ndarray,
    grid: tuple[int, int],
    stride: float,
) -> tuple[Float[Array, "*n half"], Float[Array, "*n half"]]:
    """Cosines and sines of every token, float32, `half` = head_dim / 2.

    `slot`, `row`, `column` index the positions: `slot_positions` in time, 0.. in space.
    """
    t, y, x = split_head(head_dim)
    axes = (
        (slot, angles(slot_positions, t)),
        (row, angles(np.arange(grid[0]) * stride, y)),
        (column, angles(np.arange(grid[1]) * stride, x)),
    )

    def gather(function) -> Array:
        tables = [(i, jnp.asarray(function(a), jnp.float32)) for i, a in axes]
        return jnp.concatenate([rows[i] for i, rows in tables], axis=-1)

    return gather(np.cos), gather(np.sin)


def rotate(
    x: Float[Array, "B n K d"],
    cos: Float[Array, "B n half"],
    sin: Float[Array, "B n half"],
) -> Float[Array, "B n K d"]:
    """(3), in float32."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    a, b = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape)
