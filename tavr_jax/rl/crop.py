"""Faces cut out of decoded frames, as the pool's faces were cut out of files."""

import jax.numpy as jnp
from jaxtyping import Array, Float

CROP = 1.25  # side of a face crop / longer side of the face box


def crop(
    frames: Float[Array, "N F Y X 3"], boxes: Float[Array, "N F 4"], size: int
) -> Float[Array, "N F size size 3"]:
    """Faces cut out as the pool's faces were: squares on the centre of the box, 1.25
    times its longer side wide, the frame's edge repeated outside of it.

    `boxes` are (left, top, right, bottom) in 0..1.
    """
    rows, columns = frames.shape[2:4]
    pixels = boxes * jnp.array([columns, rows, columns, rows], jnp.float32)[None, None]
    low, high = pixels[..., :2], pixels[..., 2:]
    side = jnp.maximum(CROP * (high - low).max(-1), 1.0)
    start = (low + high - side[..., None]) / 2
    across = _resampling(start[..., 0], side, columns, size)
    down = _resampling(start[..., 1], side, rows, size)
    cut = jnp.einsum("nfoy,nfyxc->nfoxc", down, frames)
    return jnp.einsum("nfpx,nfoxc->nfopc", across, cut)


def _resampling(
    start: Float[Array, "N F"], side: Float[Array, "N F"], pixels: int, size: int
) -> Float[Array, "N F size pixels"]:
    """Rows of weights: `size` samples of an axis from `start` on, `side` pixels wide.

    Linear between pixels; wider triangles where the crop shrinks, against aliasing.
    """
    step = side[..., None] / size
    at = start[..., None] + (jnp.arange(size) + 0.5)[None, None] * step - 0.5
    at = jnp.clip(at, 0.0, pixels - 1.0)[..., None]
    distance = jnp.abs(jnp.arange(pixels)[None, None, None] - at)
    weights = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0)[..., None], 0.0)
    return weights / weights.sum(-1, keepdims=True)
