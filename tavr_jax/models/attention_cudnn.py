"""Attention by cuDNN's fused kernels, on NVIDIA GPUs.

cuDNN wants a mask as a bias of queries x keys, which is quadratic, or as a length. A
softmax does not see the order of its keys, so kept keys move to the front and the mask
becomes how many they are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

IMPLEMENTATION = "cudnn"


def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    kept: Bool[Array, "B m"] | None,
) -> Float[Array, "B n K d"]:
    """`attention.attend` for 16-bit numbers and heads of up to 128 channels.

    Where no key is kept, the first is read: its number is finite.
    """
    lengths = None
    if kept is not None:
        order = jnp.argsort(~kept, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        lengths = jnp.maximum(kept.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation=IMPLEMENTATION
    )
