"""The umT5 encoder: token ids to text rows.

    (1) rms(x) = x / sqrt(mean(x^2) + eps) * scale          no mean, no bias
    (2) x += O softmax(q k^T + B + mask) v  on rms(x)       scores are not scaled
    (3) x += W2 (gelu_tanh(W_gate y) * (W1 y)),  y = rms(x)
    (4) B[q, k] = table[bucket(k - q)], every layer has its own table
    (5) bucket(r) = half [r > 0] + (m if m < exact else min(half - 1, exact +
            floor((half - exact) ln(m / exact) / ln(max_distance / exact)))),
        m = |r|, half = buckets / 2, exact = half / 2
    (6) rows = rms(x after the last layer)

Keys that `mask` leaves out are never read, so padding changes nothing. No linear layer
has a bias. Source: TAVR_SPEC 5; Xue et al. 2021 (arXiv 2010.11934), Chung et al. 2023
(2304.09151).
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

# Far below any score, and finite: a row of nothing else is a mean, not a NaN.
_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Umt5Config:
    """Sizes of a published file, read from it by `weights_umt5.load_umt5`."""

    vocabulary: int
    dim: int  # of the rows
    ffn_dim: int
    head_dim: int
    num_heads: int
    num_layers: int
    buckets: int
    max_distance: int  # beyond it all distances share the last bucket
    eps: float
    dtype: str  # of products and stream; the weights keep whatever they are loaded in


class RMSNorm(nnx.Module):
    """(1)."""

    def __init__(self, config: Umt5Config, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones(config.dim))
        self.eps = config.eps

    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Statistics in float32, result in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        mean = jnp.square(wide).mean(-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype)
        return normed * self.scale[...].astype(x.dtype).reshape(1, 1, -1)


class SelfAttention(nnx.Module):
    """The sum of (2)."""

    def __init__(self, config: Umt5Config, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        self.q = _linear(config.dim, inner, config, rngs)
        self.k = _linear(config.dim, inner, config, rngs)
        self.v = _linear(config.dim, inner, config, rngs)
        self.o = _linear(inner, config.dim, config, rngs)
        self.table = _normal((config.buckets, config.num_heads), rngs)
        self.heads = config.num_heads

    def __call__(
        self,
        x: Float[Array, "B L E"],
        buckets: Int[Array, "L L"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B L E"]:
        """`buckets` of every query and key, `mask` true for keys that are read."""
        q, k, v = (self._split(part(x)) for part in (self.q, self.k, self.v))
        scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
        bias = self.table[...].astype(jnp.float32)[buckets]
        scores = scores + bias.transpose(2, 0, 1)[None]
        scores = jnp.where(mask[:, None, None], scores, _MASKED)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        out = jnp.einsum("bknm,bmkd->bnkd", weights, v)
        return self.o(out.reshape(*x.shape[:2], -1))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class GatedMLP(nnx.Module):
    """The sum of (3)."""

    def __init__(self, config: Umt5Config, rngs: nnx.Rngs):
        self.gate = _linear(config.dim, config.ffn_dim, config, rngs)
        self.up = _linear(config.dim, config.ffn_dim, config, rngs)
        self.down = _linear(config.ffn_dim, config.dim, config, rngs)

    def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Two projections, one of them a gate, and one back."""
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


class Block(nnx.Module):
    """(2) and (3)."""

    def __init__(self, config: Umt5Config, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config, rngs)
        self.attention = SelfAttention(config, rngs)
        self.norm2 = RMSNorm(config, rngs)
        self.ffn = GatedMLP(config, rngs)

    def __call__(
        self,
        x: Float[Array, "B L E"],
        buckets: Int[Array, "L L"],
        mask: Bool[Array, "B L"],
    ) -> Float[Array, "B L E"]:
        """Rows after the layer."""
        x = x + self.attention(self.norm1(x), buckets, mask)
        return x + self.ffn(self.norm2(x))


class Umt5(nnx.Module):
    """The encoder. Layers are one Block whose weights have a leading layer axis.

    Not for jit as a whole: it compiles one layer and runs it for each. In a scan XLA
    would widen the bfloat16 weights of all layers at once on the CPU: 18.5 GB more.
    """

    def __init__(self, config: Umt5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = _normal((config.vocabulary, config.dim), rngs)
        self.blocks = _stack(config, rngs)
        self.norm = RMSNorm(config, rngs)

    def __call__(
        self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> Float[Array, "B L E"]:
        """(6), of all positions; those that `mask` leaves out have no meaning."""
        x = self.embed(ids)
        for after in self.layers(x, mask):
            x = after
        return self.norm(x)

    def layers(
        self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"]
    ) -> Iterator[Float[Array, "B L E"]]:
        """The stream after every layer."""
        buckets = self.buckets(x.shape[1])
        graph, weights = nnx.split(self.blocks)
        for index in range(self.config.num_layers):
            x = _layer(graph, weights, index, x, buckets, mask)
            yield x

    def embed(self, ids: Int[Array, "B L"]) -> Float[Array, "B L E"]:
        """Rows before the first layer."""
        return self.embedding[...][ids].astype(self.config.dtype)

    def buckets(self, length: int) -> Int[Array, "L L"]:
        """(5) of key position minus query position."""
        place = np.arange(length)
        relative = place[None] - place[:, None]
        c = self.config
        return jnp.asarray(relative_buckets(relative, c.buckets, c.max_distance))


@functools.partial(jax.jit, static_argnums=0)
def _layer(graph, weights, index, x, buckets, mask) -> Array:
    block = nnx.merge(graph, jax.tree.map(lambda w: w[index], weights))
    return block(x, buckets, mask)


def relative_buckets(
    relative: Int[np.ndarray, "*n"], buckets: int, max_distance: int
) -> Int[np.ndarray, "*n"]:
    """(5), int32, from whole-number thresholds.

    Distances such as 16, 32, 64 lie exactly on a boundary, where a logarithm may be
    rounded to either side: bucket exact + j begins at the smallest m with
    (m / exact)^n >= (max_distance / exact)^j, n = half - exact.
    """
    half = buckets // 2
    exact = half // 2
    n = half - exact
    begins = list(range(1, exact + 1))
    for j in range(1, n):
        m = begins[-1]
        while m**n < exact ** (n - j) * max_distance**j:
            m += 1
        begins.append(m)
    within = np.searchsorted(begins, np.abs(relative), side="right")
    return (half * (relative > 0) + within).astype(np.int32)


def _linear(inputs: int, outputs: int, config: Umt5Config, rngs: nnx.Rngs):
    return nnx.Linear(inputs, outputs, use_bias=False, dtype=config.dtype, rngs=rngs)


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), shape))


def _stack(config: Umt5Config, rngs: nnx.Rngs) -> Block:
    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
