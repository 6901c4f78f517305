"""A 3 x 3 convolution of frames in Winograd's form F(4 x 4, 3 x 3): a quarter of the
multiplications, for CPUs.

(1) y = A [sum over channels of (G w G') . (B x B')] A'    of each 6 x 6 tile x of the
    input, 4 x 4 of the output; tiles overlap by 2, . is a product point by point
(2) of the 36 points each is one matmul: (tiles, channels) x (channels, out)
(3) taps in time are more channels of (2): a frame is transformed once for all of them
(4) dx is (1) of dy with the kernel turned round; dw is that of `vae_conv_direct.py`

Computed in blocks of about as many tiles as there are output channels, so that what
stands between the three steps of (1) stays in the cache; memory beyond input and output
is one block. The last block of an axis overlaps the one before. Always in float32: the
transforms lose 3 to 4 bits of it (error 4e-6 a layer, relative), of float16 too many.
Source: Lavin and Gray 2015, arXiv 1509.09308; taps in time and blocks are ours.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tavr_jax.encoders import vae_conv_direct
from tavr_jax.encoders.vae_conv_direct import Padding

TILE = 4  # outputs of a tile along an axis; its inputs are two more
POINTS = (TILE + 2) ** 2
FRAMES = 8  # of a block at most

B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float32,
)
A = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ],
    np.float32,
)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    seen: Float[Array, "B f Y X C"],
    kernel: Float[Array, "k 3 3 C D"],
    padding: Padding,
) -> Float[Array, "B T y x D"]:
    """`vae_conv_direct.convolve` of a 3 x 3 kernel, to float32 rounding."""
    batch, frames, *size, _ = seen.shape
    out = [n + sum(p) - 2 for n, p in zip(size, padding, strict=True)]
    tiles = [-(-n // TILE) for n in out]
    around = [
        (before, TILE * t + 2 - n - before)
        for n, t, (before, _) in zip(size, tiles, padding, strict=True)
    ]
    x = jnp.pad(seen, [(0, 0), (0, 0), *around, (0, 0)])
    steps, out_dim = kernel.shape[0], kernel.shape[-1]
    whole = (frames - steps + 1, *tiles)
    block = _block(whole, max(out_dim // batch, 1))
    count = [-(-n // part) for n, part in zip(whole, block, strict=True)]
    weights = _points(kernel.astype(jnp.float32))
    extent = (batch, block[0] + steps - 1, *(TILE * n + 2 for n in block[1:]))

    def one(index: Array, y: Array) -> Array:
        nth = jnp.unravel_index(index, count)
        first = [
            jnp.minimum(i * part, n - part)
            for i, part, n in zip(nth, block, whole, strict=True)
        ]
        start = (0, first[0], TILE * first[1], TILE * first[2], 0)
        part = jax.lax.dynamic_slice(x, start, (*extent, x.shape[-1]))
        found = _convolved(part.astype(jnp.float32), weights, block)
        return jax.lax.dynamic_update_slice(y, found.astype(y.dtype), start)

    shape = (batch, whole[0], *(TILE * n for n in tiles), out_dim)
    y = jax.lax.fori_loop(0, math.prod(count), one, jnp.zeros(shape, x.dtype))
    return y[:, :, : out[0], : out[1]]


def _forward(seen: Array, kernel: Array, padding: Padding):
    return convolve(seen, kernel, padding), (seen, kernel)


def _backward(padding: Padding, kept: tuple[Array, Array], dy: Array):
    """(4)."""
    seen, kernel = kept
    past = kernel.shape[0] - 1
    turned = kernel[::-1, ::-1, ::-1].swapaxes(-1, -2)
    around = tuple((2 - before, 2 - behind) for before, behind in padding)
    later = jnp.pad(dy, ((0, 0), (past, past), (0, 0), (0, 0), (0, 0)))
    by_kernel = partial(vae_conv_direct.convolve, seen, padding=padding)
    return convolve(later, turned, around), jax.vjp(by_kernel, kernel)[1](dy)[0]


convolve.defvjp(_forward, _backward)


def _block(whole: tuple[int, ...], wanted: int) -> tuple[int, int, int]:
    """Frames, tile rows and tile columns of about `wanted` tiles."""
    frames = min(whole[0], FRAMES)
    columns = min(whole[2], -(-wanted // frames))
    return frames, min(whole[1], -(-wanted // (frames * columns))), columns


def _points(kernel: Array) -> Float[Array, "p c D"]:
    """G w G' by point, with the time taps joined on the channels."""
    steps, _, _, channels, out_dim = kernel.shape
    both = np.einsum("ia,jb->ijab", G, G).reshape(POINTS, 9)
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(9, -1)
    return (both @ flat).reshape(POINTS, steps * channels, out_dim)


def _convolved(
    x: Float[Array, "B f Y X C"], weights: Float[Array, "p c D"], block: tuple[int, ...]
) -> Float[Array, "B T y x D"]:
    """(1) of one block that has its borders."""
    frames, rows, columns = block
    batch, channels = x.shape[0], x.shape[-1]
    steps = x.shape[1] - frames + 1
    x = jnp.stack(_mixed(B, _every(x, 2, rows)))
    # one axis at a time: fused, XLA would do the first 6 times over
    x = jax.lax.optimization_barrier(x)
    x = jnp.stack(_mixed(B, _every(x, 4, columns)), axis=1)
    x = x.reshape(POINTS, batch, frames + steps - 1, rows * columns, channels)
    taps = [x[:, :, i : i + frames] for i in range(steps)]
    x = jnp.concatenate(taps, axis=-1).reshape(POINTS, -1, steps * channels)
    y = (x @ weights).reshape(6, 6, batch, frames, rows, columns, -1)
    y = jnp.stack(_mixed(A, list(y)), axis=4)  # 6, B, T, rows, 4, columns, D
    y = jax.lax.optimization_barrier(y)
    y = jnp.stack(_mixed(A, list(y)), axis=5)
    return y.reshape(batch, frames, TILE * rows, TILE * columns, -1)


def _every(x: Array, axis: int, tiles: int) -> list[Array]:
    """First to sixth row (or column) of all tiles."""
    length = TILE * (tiles - 1) + 1
    slices = jax.lax.slice_in_dim
    return [slices(x, i, i + length, TILE, axis) for i in range(TILE + 2)]


def _mixed(matrix: np.ndarray, parts: list[Array]) -> list[Array]:
    """Rows of a small constant matrix times parts; its zeros cost nothing."""
    return [
        sum(float(f) * part for f, part in zip(row, parts, strict=True) if f)
        for row in matrix
    ]
