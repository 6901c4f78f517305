"""The trunk of the face and the lip-sync network: a small residual network (ours).

Sized to learn from procedural faces in minutes on two CPU cores. Group norms only: an
embedding must not depend on the batch it is computed in.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.encoders.vae_blocks import lecun_uniform

MULTIPLIERS = (1, 2, 4)  # of the width, at 1/2, 1/4 and 1/8 of the input size
STRIDE = 16  # of the output grid


class Residual(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = _norm(width, rngs), _norm(width, rngs)
        self.conv1, self.conv2 = (_conv(width, width, 3, 1, rngs) for _ in range(2))

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
        """Same shape."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        return x + self.conv2(nnx.silu(self.norm2(y)))


class Trunk(nnx.Module):
    """Square images, a multiple of 16 wide, to feature vectors that know places."""

    def __init__(self, size: int, width: int, out_dim: int, *, rngs: nnx.Rngs):
        if size % STRIDE:
            raise ValueError(f"size {size}: expected a multiple of {STRIDE}")
        layers, last = [_conv(3, width, 5, 2, rngs)], width
        for multiplier in MULTIPLIERS:
            if multiplier * width != last:
                layers.append(_conv(last, multiplier * width, 3, 2, rngs))
            last = multiplier * width
            layers.append(Residual(last, rngs=rngs))
        self.layers = nnx.List(layers)
        self.norm = _norm(last, rngs)
        cells = (size // STRIDE) ** 2
        self.out = linear(cells * last, out_dim, rngs)

    def __call__(self, x: Float[Array, "B Y X 3"]) -> Float[Array, "B D"]:
        """Pixels in [-1, 1]."""
        for layer in self.layers:
            x = layer(x)
        x = nnx.avg_pool(nnx.silu(self.norm(x)), (2, 2), (2, 2))
        return self.out(x.reshape(x.shape[0], -1))


def linear(in_dim: int, out_dim: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose initial draw compiles fast."""
    return nnx.Linear(in_dim, out_dim, kernel_init=lecun_uniform, rngs=rngs)


def unit(x: Float[Array, "*B Z"]) -> Float[Array, "*B Z"]:
    """On the unit sphere; a zero vector stays zero, with a finite slope."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-12))


def _norm(width: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    return nnx.GroupNorm(width, num_groups=min(8, width), rngs=rngs)


def _conv(in_dim: int, out_dim: int, size: int, stride: int, rngs: nnx.Rngs):
    return nnx.Conv(
        in_dim,
        out_dim,
        (size, size),
        strides=stride,
        kernel_init=lecun_uniform,
        rngs=rngs,
    )
