"""The transformer's small parts. Names follow the published tensors' roles.

    (1) layer_norm(x) = (x - mean) / sqrt(var + eps), float32, no parameters
    (2) modulate(x, shift, scale) = x (1 + scale) + shift
    (3) rms_norm(x) = x / sqrt(mean(x^2) + eps) * scale, over all D channels at once
    (4) mlp(x) = W2 gelu_tanh(W1 x)
    (5) adapter(x) = W2 gelu_erf(W1 norm(x)), its norm affine with its own eps

Source: TAVR_SPEC 10.2 to 10.5. Matrix products run in `dtype`, the rest in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.parallel.sharding import constrain

zeros = nnx.initializers.zeros_init()


def normal(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Small normal numbers, for tables of embeddings."""
    return 0.02 * _drawn(key, shape, dtype)


def lecun(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Kernels (in, out) that keep the variance of their input."""
    return _drawn(key, shape, dtype) / np.sqrt(shape[0])


def _drawn(key: Array, shape: tuple[int, ...], dtype) -> Array:
    # Flat: XLA compiles a draw of several axes ten times slower.
    return jax.random.normal(key, (int(np.prod(shape)),), dtype).reshape(shape)


def linear(inputs: int, outputs: int, dtype: str, rngs: nnx.Rngs, kernel_init=lecun):
    """A dense layer with float32 weights, computed in `dtype`."""
    return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs, kernel_init=kernel_init)


def layer_norm(x: Float[Array, "*n D"], eps: float) -> Float[Array, "*n D"]:
    """(1)."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """(2)."""
    return x * (1 + scale) + shift


class Norm(nnx.Module):
    """(1) with a learned scale and bias."""

    def __init__(self, width: int, eps: float, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Normalise over channels."""
        shape = (1,) * (x.ndim - 1) + (-1,)
        scale, bias = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return layer_norm(x, self.eps) * scale + bias


class RMSNorm(nnx.Module):
    """(3), before the split into heads."""

    def __init__(self, width: int, eps: float, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Statistics in float32, result in the dtype of `x`, as released."""
        wide = x.astype(jnp.float32)
        mean = jnp.square(wide).mean(-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return normed * scale.astype(x.dtype)


class MLP(nnx.Module):
    """(4)."""

    def __init__(self, inputs, hidden, outputs, dtype, rngs):
        self.up = linear(inputs, hidden, dtype, rngs)
        self.down = linear(hidden, outputs, dtype, rngs)

    def __call__(self, x: Float[Array, "B *n i"]) -> Float[Array, "B *n o"]:
        """Two dense layers."""
        # Else XLA may split it like the weights, and then all of it over again.
        hidden = constrain(self.up(x), "B")
        return self.down(jax.nn.gelu(hidden, approximate=True))


class Adapter(nnx.Module):
    """(5). Starts as zero: a fresh adapter changes nothing."""

    def __init__(self, width, inner, eps, dtype, rngs):
        self.norm = Norm(width, eps, rngs)
        self.down = linear(width, inner, dtype, rngs)
        self.up = linear(inner, width, dtype, rngs, kernel_init=zeros)

    def __call__(self, x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
        """Down, exact GELU, up."""
        return self.up(jax.nn.gelu(self.down(self.norm(x)), approximate=False))


def timestep_features(t: Float[Array, " B"], width: int) -> Float[Array, "B f"]:
    """[cos(t w_k), sin(t w_k)], w_k = 10000^(-k / (width/2)), for t in 0..1000.

    The whole part of t is looked up in a float64 table and the rest is turned on top
    of it: float32 angles near 1000 alone would cost 3e-5.
    """
    rates = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2))
    whole = np.outer(np.arange(1001, dtype=np.float64), rates)
    floor = jnp.clip(jnp.floor(t), 0, 1000).astype(jnp.int32)
    rest = (t.astype(jnp.float32) - floor)[:, None] * jnp.asarray(
        rates, jnp.float32
    ).reshape(1, -1)
    cos = jnp.asarray(np.cos(whole), jnp.float32)[floor]
    sin = jnp.asarray(np.sin(whole), jnp.float32)[floor]
    return jnp.concatenate(
        [
            cos * jnp.cos(rest) - sin * jnp.sin(rest),
            sin * jnp.cos(rest) + cos * jnp.sin(rest),
        ],
        axis=-1,
    )
