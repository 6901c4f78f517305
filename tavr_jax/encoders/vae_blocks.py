"""Layers of the Wan 2.1 video autoencoder, channel-last.

(1) causal convolution   y_t = sum_{i<k} W_i * x_{t-k+1+i},  x_{t<0} = 0
(2) norm                 y = x / max(|x|_2 over channels, 1e-12) * sqrt(C) * gamma
(3) time halving         y_0 = x_0,  y_k = W [x_{2k-2}, x_{2k-1}, x_{2k}]
(4) time doubling        y_0 = x_0,  (y_{2k-1}, y_{2k}) = the two halves of the 2C
                         channels of (1) on x_1.. with zero history
(5) residual block       x + conv(silu(norm(conv(silu(norm(x))))))

A fresh network is a codec of stills (ours): taps on past frames and the ends of
residual branches are 0, (3) keeps the newest frame, (4) repeats it. So what is learned
from stills, at a fraction of the cost, is where learning from clips can start.

Layers that look back in time take what they remember and return (output, new memory),
so that a clip may come in pieces. Memory is None before frame 0, and then always of one
shape: (1) its last k-1 inputs, (3) its last input, (4) that of its convolution, zeros
until frame 1. A piece that starts a clip has an odd number of frames, a later one an
even number. Without memory a whole clip is one piece.

Everything computes in the dtype of its input; parameters stay float32.

`columns` tells a layer which columns of the video it holds (`vae_columns.py`); None:
all. Convolutions: `vae_conv.py`.

Source: TAVR_SPEC 6.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.encoders import vae_conv, vae_conv_direct
from tavr_jax.encoders.vae_columns import Columns
from tavr_jax.encoders.vae_conv_direct import Padding
from tavr_jax.types import PyTree

Memory = PyTree  # arrays (B, frames, Y, X, C) of a layer, or layers; None: no frame yet


def lecun_uniform(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Initial kernel (taps..., in, out) that keeps the variance of its input."""
    size = math.prod(shape)
    bound = (3.0 / math.prod(shape[:-1])) ** 0.5
    # drawn flat: XLA compiles a draw of many axes ten times slower
    return jax.random.uniform(key, (size,), dtype, minval=-bound, maxval=bound).reshape(
        shape
    )


def run(
    layers: Sequence[Callable],
    x: Float[Array, "B T Y X C"],
    memory: Memory,
    columns: Columns | None,
) -> tuple[Float[Array, "B t y x D"], Memory]:
    """Layer after layer; their memories are in the same order."""
    kept = []
    for layer, before in zip(layers, memory or [None] * len(layers), strict=True):
        x, after = layer(x, before, columns)
        kept.append(after)
    return x, tuple(kept)


def _latest(x: Array, count: int) -> Array:
    """The last frames, behind zeros where there are fewer."""
    x = x[:, max(x.shape[1] - count, 0) :]
    return jnp.pad(x, ((0, 0), (count - x.shape[1], 0), (0, 0), (0, 0), (0, 0)))


def _vector(values: Array, like: Array) -> Array:
    return values.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _widened(
    x: Array, padding: Padding, columns: Columns | None
) -> tuple[Array, Padding]:
    """x with the neighbours' columns that a kernel reaches, and the zeros to put."""
    if columns is None or not any(padding[1]):
        return x, padding
    return columns.halo(x, *padding[1]), (padding[0], (0, 0))


class Conv2d(nnx.Module):
    """A convolution of each frame by itself."""

    def __init__(self, in_dim: int, out_dim: int, size: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(
            lecun_uniform(rngs.params(), (size, size, in_dim, out_dim))
        )
        self.bias = nnx.Param(jnp.zeros(out_dim))

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        columns: Columns | None = None,
        *,
        halve: bool = False,
    ) -> Float[Array, "B T y x D"]:
        """Zero padding of half a kernel on each side; `halve`: stride 2, and all of it
        at the end."""
        half = self.kernel.shape[0] // 2
        around = (0, 2 * half - 1) if halve else (half, half)
        kernel = self.kernel[...].astype(x.dtype)[None]
        x, padding = _widened(x, (around, around), columns)
        if halve:
            y = vae_conv_direct.convolve(x, kernel, padding, stride=2)
        else:
            y = vae_conv.convolve(x, kernel, padding)
        return y + _vector(self.bias[...], y)


class CausalConv(nnx.Module):
    """Equation (1) in time, zero-padded 'same' convolution in space."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: tuple[int, int, int],
        *,
        rngs: nnx.Rngs,
        newest: Array | None = None,
    ):
        """`newest`: initial tap on the newest frame, (rows, columns, in, out)."""
        shape = (*size[1:], in_dim, out_dim)
        if newest is None:
            newest = lecun_uniform(rngs.params(), shape)
        past = jnp.zeros((size[0] - 1, *shape))
        self.kernel = nnx.Param(jnp.concatenate([past, newest[None]]))
        self.bias = nnx.Param(jnp.zeros(out_dim))

    @property
    def reach(self) -> int:
        """Frames it looks back."""
        return self.kernel.shape[0] - 1

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B T Y X D"], Memory]:
        """The same number of frames; frame t sees frames t-k+1..t."""
        frames = x.shape[1]
        if memory is None:
            # taps that only ever meet the padding are skipped: a still costs a third
            seen = _latest(x, frames + min(self.reach, frames - 1))
        else:
            seen = jnp.concatenate([memory, x], axis=1)
        kept = _latest(seen, self.reach)
        kernel = self.kernel[frames - seen.shape[1] - 1 :].astype(x.dtype)
        rows, width = kernel.shape[1] // 2, kernel.shape[2] // 2
        seen, padding = _widened(seen, ((rows, rows), (width, width)), columns)
        y = vae_conv.convolve(seen, kernel, padding)
        return y + _vector(self.bias[...], y), kept

    def apply_taps(self, taps: tuple[Array, ...]) -> Array:
        """A kernel in time alone, each tap times its own frames."""
        x = jnp.concatenate(taps, axis=-1)
        y = x @ self.kernel[...].reshape(x.shape[-1], -1).astype(x.dtype)
        return y + _vector(self.bias[...], y)


class ChannelNorm(nnx.Module):
    """Equation (2), evaluated in float32."""

    def __init__(self, dim: int):
        self.gamma = nnx.Param(jnp.ones(dim))

    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Normalise the last axis."""
        wide = x.astype(jnp.float32)
        square = jnp.sum(wide * wide, axis=-1, keepdims=True)
        # max inside the root: the gradient at an all-zero pixel is 0, not NaN
        scale = jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * x.shape[-1] ** 0.5
        return (wide * scale * _vector(self.gamma[...], wide)).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Equation (5); a 1x1x1 shortcut carries x where the width changes."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(in_dim)
        self.conv1 = CausalConv(in_dim, out_dim, (3, 3, 3), rngs=rngs)
        self.norm2 = ChannelNorm(out_dim)
        nothing = jnp.zeros((3, 3, out_dim, out_dim))
        self.conv2 = CausalConv(out_dim, out_dim, (3, 3, 3), rngs=rngs, newest=nothing)
        self.shortcut = (
            CausalConv(in_dim, out_dim, (1, 1, 1), rngs=rngs)
            if in_dim != out_dim
            else None
        )

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B T Y X D"], Memory]:
        """Same grid, new width."""
        first, second = memory or (None, None)
        y, first = self.conv1(nnx.silu(self.norm1(x)), first, columns)
        y, second = self.conv2(nnx.silu(self.norm2(y)), second, columns)
        carried = x if self.shortcut is None else self.shortcut(x)[0]
        return y + carried, (first, second)


class FrameAttention(nnx.Module):
    """One head over the positions of each frame by itself, with its residual."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(dim)
        self.qkv = Conv2d(dim, 3 * dim, 1, rngs=rngs)
        self.proj = Conv2d(dim, dim, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T Y X C"], columns: Columns | None = None
    ) -> Float[Array, "B T Y X C"]:
        """Frame after frame: the score matrix of a single frame is large enough."""
        dim = x.shape[-1]
        qkv = self.qkv(self.norm(x)).reshape(-1, *x.shape[2:4], 3 * dim)
        q, shown, there = qkv[..., :dim], qkv[..., dim:], None
        if columns is not None:
            shown = columns.gathered(shown, axis=2)
            there = jnp.arange(shown.shape[2]) < columns.width
            there = jnp.tile(there, shown.shape[1])[None]

        def attend(frame: tuple[Array, Array]) -> Array:
            q, (k, v) = frame[0], jnp.split(frame[1], 2, axis=-1)
            scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores / dim**0.5, axis=-1, where=there)
            return weights.astype(v.dtype) @ v

        flat = q.reshape(len(q), -1, dim), shown.reshape(len(q), -1, 2 * dim)
        return x + self.proj(jax.lax.map(attend, flat).reshape(x.shape))


class Middle(nnx.Module):
    """The bottleneck: residual, attention, residual."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.first = ResidualBlock(dim, dim, rngs=rngs)
        self.attention = FrameAttention(dim, rngs=rngs)
        self.second = ResidualBlock(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B T Y X C"], Memory]:
        """Same shape."""
        first, second = memory or (None, None)
        x, first = self.first(x, first, columns)
        x, second = self.second(self.attention(x, columns), second, columns)
        return x, (first, second)


def _time_conv(newest: Array, rngs: nnx.Rngs) -> CausalConv:
    return CausalConv(*newest.shape, (3, 1, 1), rngs=rngs, newest=newest[None, None])


class Downsample(nnx.Module):
    """Halve rows and columns; with `temporal`, also time by equation (3)."""

    def __init__(self, dim: int, temporal: bool, *, rngs: nnx.Rngs):
        self.conv = Conv2d(dim, dim, 3, rngs=rngs)
        self.time_conv = _time_conv(jnp.eye(dim), rngs) if temporal else None

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B t y x C"], Memory]:
        """1 + 2k frames become 1 + k; after the first piece, 2k become k."""
        x = self.conv(x, columns, halve=True)
        if self.time_conv is None:
            return x, ()
        bypass = x[:, : int(memory is None)]
        seen = x if memory is None else jnp.concatenate([memory, x], axis=1)
        newest = seen[:, -1:]
        if seen.shape[1] == 1:
            return bypass, newest
        taps = seen[:, :-2:2], seen[:, 1:-1:2], seen[:, 2::2]
        y = self.time_conv.apply_taps(taps)
        return jnp.concatenate([bypass, y], axis=1), newest


class Upsample(nnx.Module):
    """Double rows and columns, halve the width; with `temporal`, also equation (4)."""

    def __init__(self, dim: int, temporal: bool, *, rngs: nnx.Rngs):
        self.time_conv = (
            _time_conv(jnp.tile(jnp.eye(dim), 2), rngs) if temporal else None
        )
        self.conv = Conv2d(dim, dim // 2, 3, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T Y X C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B t y x D"], Memory]:
        """1 + k frames become 1 + 2k; after the first piece, k become 2k."""
        if self.time_conv is None:
            memory = ()
        else:
            x, memory = self._doubled(x, memory)
        return self.conv(
            jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), columns
        ), memory

    def _doubled(self, x: Array, memory: Memory) -> tuple[Array, Memory]:
        start = int(memory is None)
        single, x = x[:, :start], x[:, start:]
        if not x.shape[1]:
            return single, _latest(x, self.time_conv.reach)
        y, memory = self.time_conv(x, memory)
        pairs = jnp.stack(jnp.split(y, 2, axis=-1), axis=2)
        pairs = pairs.reshape(x.shape[0], 2 * x.shape[1], *x.shape[2:])
        return jnp.concatenate([single, pairs], axis=1), memory
