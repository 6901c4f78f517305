"""From latents to tokens and back, and the packing of valid tokens.

Invalid tokens are never keys and never influence valid ones (TAVR_SPEC 10.1), so they
are dropped: valid tokens move, in order, to the front of a bucket of static size, and
a mask tells the rest. Equal to the unpacked result, cheaper.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def patchify(
    latents: Float[Array, "B T H W c"], patch: tuple[int, int, int]
) -> Float[Array, "B T h w p"]:
    """Cut the latent grid into patches; p is ordered (row, column, channel)."""
    _, py, px = patch
    b, t, rows, columns, c = latents.shape
    x = latents.reshape(b, t, rows // py, py, columns // px, px, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(
        b, t, rows // py, columns // px, py * px * c
    )


def unpatchify(
    patches: Float[Array, "B T h w p"], patch: tuple[int, int, int]
) -> Float[Array, "B T H W c"]:
    """Inverse of `patchify`."""
    _, py, px = patch
    b, t, h, w, p = patches.shape
    x = patches.reshape(b, t, h, w, py, px, p // (py * px))
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * py, w * px, -1)


def pack(
    valid: Bool[Array, "B n"], bucket: int
) -> tuple[Int[Array, "B m"], Bool[Array, "B m"]]:
    """Indices of the valid tokens, in order, and which of the m places are taken.

    m = `bucket`, or all n tokens when it is 0. The caller makes sure that a bucket is
    never too small: inside jit nothing can be raised, so the loader checks.
    """
    places = min(bucket, valid.shape[1]) if bucket else valid.shape[1]
    indices = jnp.argsort(~valid, axis=1, stable=True)[:, :places]
    return indices, jnp.take_along_axis(valid, indices, axis=1)


def take(
    tokens: Float[Array, "B n D"], indices: Int[Array, "B m"]
) -> Float[Array, "B m D"]:
    """Tokens at `indices`."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)
