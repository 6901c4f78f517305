"""wav2vec 2.0: a wave at 16 kHz to hidden states, one step every 20 ms.

With Conv strided and without padding, gelu exact, and N layers of width D:

    (1) y_0 = wave,  y_i = act(norm_i(Conv_i(y_{i-1}))): the front end, 400 samples a
        step, 320 samples between steps; steps(n) = (n - 400) // 320 + 1
        norm "layer": over the channels of every step, in every layer
        norm "group": over time, each channel by itself, in the first layer only
    (2) features = LN(y),  x = W features + b
    (3) p = act(Conv_pos(x)), grouped; its kernel is g v / |v|, |v| over a tap
    (4) plain:   h_0 = LN(x + p),  h_i = LN'(z + FF(z)),  z = LN(h_{i-1} + Att(h_{i-1}))
                 last = h_N
    (5) stable:  h_0 = x + p,      h_i = z + FF(LN'(z)),  z = h_{i-1} + Att(LN(h_{i-1}))
                 last = LN_final(h_N)

`base` models are "group" and plain, xlsr models "layer" and stable. Source: Baevski et
al. 2020; TAVR_SPEC 3.2, whose "hidden state N" is `last`. Convolutions are written as
matrix products: XLA's own are several times slower on a CPU.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tavr_jax.encoders.convnet import linear
from tavr_jax.encoders.published_config import read_fields, read_object, require
from tavr_jax.encoders.vae_blocks import lecun_uniform
from tavr_jax.errors import InputError

FRONT_EPS = 1e-5  # of the front end's norms; no config field says it

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
NORMS = ("group", "layer")


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """The fields of a published config.json that change the result, by their names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_dim: tuple[int, ...]
    conv_kernel: tuple[int, ...]
    conv_stride: tuple[int, ...]
    conv_bias: bool
    feat_extract_norm: str
    feat_extract_activation: str
    hidden_act: str
    do_stable_layer_norm: bool
    num_conv_pos_embeddings: int
    num_conv_pos_embedding_groups: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, path: str | Path) -> "Wav2Vec2Config":
        """A published config.json. InputError: not readable, or another network's."""
        return cls.from_fields(read_object(path), str(path))

    @classmethod
    def from_fields(cls, found: dict, source: str) -> "Wav2Vec2Config":
        """The same from what a file `source` holds. InputError names the field."""
        config = cls(**read_fields(cls, found, source, "wav2vec2"))
        for name in ("add_adapter", "adapter_attn_dim"):
            if found.get(name):
                raise InputError(
                    f"{source}: {name}: adapters are not built here; give a model "
                    "without them"
                )
        check = partial(require, source=source, config=config)
        for name in ("feat_extract_activation", "hidden_act"):
            known = getattr(config, name) in ACTIVATIONS
            expected = f"expected one of {', '.join(ACTIVATIONS)}"
            check(known, field=name, remedy=expected)
        check(
            config.feat_extract_norm in NORMS,
            field="feat_extract_norm",
            remedy=f"expected one of {', '.join(NORMS)}",
        )
        for name in ("conv_kernel", "conv_stride"):
            same = len(getattr(config, name)) == len(config.conv_dim) > 0
            check(same, field=name, remedy="expected one number for each of conv_dim")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            divides = config.hidden_size % getattr(config, name) == 0
            remedy = f"expected a divisor of {config.hidden_size}"
            check(divides, field=name, remedy=remedy)
        return config

    @property
    def stride(self) -> int:
        """Samples from step to step: 320."""
        return math.prod(self.conv_stride)

    @property
    def reach(self) -> int:
        """Samples that one step hears: 400."""
        reach = 1
        for size, stride in zip(
            self.conv_kernel[::-1], self.conv_stride[::-1], strict=True
        ):
            reach = (reach - 1) * stride + size
        return reach

    def steps(self, samples: int) -> int:
        """(1): steps of a wave; 0 if it is too short for one."""
        return max(0, (samples - self.reach) // self.stride + 1)


class Heard(NamedTuple):
    """What the network makes of a wave."""

    features: Float[Array, "B T C"]  # (2), before W
    hidden: Float[Array, "layers B T D"]  # h_0 .. h_N
    last: Float[Array, "B T D"]


class Front(nnx.Module):
    """One layer of (1)."""

    def __init__(
        self, config: Wav2Vec2Config, index: int, in_dim: int, *, rngs: nnx.Rngs
    ):
        out_dim, size = config.conv_dim[index], config.conv_kernel[index]
        self.stride = config.conv_stride[index]
        self.activation = config.feat_extract_activation
        kernel = lecun_uniform(rngs.params(), (size, in_dim, out_dim))
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(out_dim)) if config.conv_bias else None
        per_step = config.feat_extract_norm == "layer"
        self.over_time = not per_step
        self.norm = (
            layer_norm(out_dim, FRONT_EPS, rngs) if per_step or index == 0 else None
        )

    def __call__(
        self, x: Float[Array, "B n c"], valid: Int[Array, " B"] | None
    ) -> Float[Array, "B t C"]:
        """`valid` counts the outputs that are sound, for statistics over time."""
        size, in_dim, out_dim = self.kernel.shape
        x = windows(x, size, self.stride)
        x = x @ self.kernel[...].reshape(size * in_dim, out_dim)
        if self.bias is not None:
            x = x + _last_axis(self.bias[...])
        if self.norm is not None:
            x = self._over_time(x, valid) if self.over_time else self.norm(x)
        return ACTIVATIONS[self.activation](x)

    def _over_time(self, x: Array, valid: Array | None) -> Array:
        steps = x.shape[1]
        count = jnp.full(x.shape[:1], steps) if valid is None else valid
        inside = jnp.arange(steps)[None] < count[:, None]
        share = inside / jnp.maximum(count, 1)[:, None]

        def mean(x: Array) -> Array:
            # a product: XLA's masked sums over the first axis are 20 times slower
            return jnp.einsum("bt,btc->bc", share, x, precision="highest")[:, None]

        x = x - mean(x)
        normed = x * jax.lax.rsqrt(mean(jnp.square(x)) + FRONT_EPS)
        return normed * _last_axis(self.norm.scale[...]) + _last_axis(
            self.norm.bias[...]
        )


class Positions(nnx.Module):
    """(3): a wide grouped convolution says where a step stands."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        width, taps = config.hidden_size, config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        self.activation = config.feat_extract_activation
        shape = (taps, width // self.groups, width)
        self.direction = nnx.Param(lecun_uniform(rngs.params(), shape))
        self.gain = nnx.Param(jnp.ones(taps))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Zeros beyond both ends; an even number of taps looks back one step more."""
        taps, inner, width = self.direction.shape
        batch, steps, _ = x.shape
        half = taps // 2
        padded = jnp.pad(x, ((0, 0), (half, taps - 1 - half), (0, 0)))
        split = padded.reshape(batch, -1, self.groups, inner).transpose(2, 0, 1, 3)
        kernel = self.kernel().reshape(taps * inner, self.groups, -1)
        heard = jnp.arange(steps)[:, None] + jnp.arange(taps)[None]

        def group(pair: tuple[Array, Array]) -> Array:
            rows, kernel = pair
            return rows[:, heard].reshape(batch, steps, taps * inner) @ kernel

        # one group after another: all windows at once would be 128 times the input
        y = jax.lax.map(group, (split, kernel.transpose(1, 0, 2)))
        y = y.transpose(1, 2, 0, 3).reshape(batch, steps, width)
        return ACTIVATIONS[self.activation](y + _last_axis(self.bias[...]))

    def kernel(self) -> Float[Array, "taps inner D"]:
        """g v / |v|."""
        v = self.direction[...]
        length = jnp.sqrt(jnp.square(v).sum((1, 2), keepdims=True))
        return v * (self.gain[...][:, None, None] / length)


class Layer(nnx.Module):
    """One layer of (4) or (5)."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.heads, self.stable = (
            config.num_attention_heads,
            config.do_stable_layer_norm,
        )
        self.activation = config.hidden_act
        self.q, self.k, self.v, self.o = (linear(width, width, rngs) for _ in range(4))
        self.norm = layer_norm(width, config.layer_norm_eps, rngs)
        self.up = linear(width, inner, rngs)
        self.down = linear(inner, width, rngs)
        self.norm_out = layer_norm(width, config.layer_norm_eps, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], valid: Int[Array, " B"] | None
    ) -> Float[Array, "B T D"]:
        """Steps from `valid` on are heard by nobody."""
        if self.stable:
            z = x + self.attend(self.norm(x), valid)
            return z + self.feed(self.norm_out(z))
        z = self.norm(x + self.attend(x, valid))
        return self.norm_out(z + self.feed(z))

    def feed(self, x: Array) -> Array:
        """W2 act(W1 x)."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))

    def attend(self, x: Array, valid: Array | None) -> Array:
        """Every step hears every other."""
        heard = attention(self.q(x), self.k(x), self.v(x), self.heads, valid)
        return self.o(heard)


class Wav2Vec2(nnx.Module):
    """Sizes from the config, length from the wave."""

    def __init__(self, config: Wav2Vec2Config, *, rngs: nnx.Rngs):
        self.config = config
        widths = (1, *config.conv_dim)
        self.front = nnx.List(
            [Front(config, i, widths[i], rngs=rngs) for i in range(len(widths) - 1)]
        )
        self.features_norm = layer_norm(widths[-1], config.layer_norm_eps, rngs)
        self.projection = linear(widths[-1], config.hidden_size, rngs)
        self.positions = Positions(config, rngs=rngs)
        self.layers = stacked(Layer, config, config.num_hidden_layers, rngs)
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs)

    def __call__(
        self,
        wave: Float[Array, "B n"],
        samples: Int[Array, " B"] | None = None,
    ) -> Heard:
        """Hidden states of normalised waves, one row of 20 ms after another.

        `samples` says how long each wave is: what follows is padding and changes
        nothing before it; rows of padding have no meaning. (The published code has no
        such mask for "group" models; without padding the two agree.) ValueError: the
        waves are too short for one step.
        """
        c = self.config
        if not c.steps(wave.shape[1]):
            raise ValueError(f"{wave.shape[1]} samples: one step needs {c.reach}")
        x, valid = wave[..., None], samples
        for layer, size, stride in zip(
            self.front, c.conv_kernel, c.conv_stride, strict=True
        ):
            if valid is not None:
                valid = jnp.maximum((valid - size) // stride + 1, 0)
            x = layer(x, valid)
        features = self.features_norm(x)
        x = self.projection(features)
        if valid is not None:
            inside = jnp.arange(x.shape[1])[None] < valid[:, None]
            x = x * inside[..., None]
        x = x + self.positions(x)
        x = x if c.do_stable_layer_norm else self.norm(x)
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, weights) -> tuple[Array, Array]:
            x = nnx.merge(graph, weights)(x, valid)
            return x, x

        last, later = jax.lax.scan(layer, x, weights)
        hidden = jnp.concatenate([x[None], later])
        return Heard(
            features, hidden, self.norm(last) if c.do_stable_layer_norm else last
        )


def attention(
    q: Float[Array, "B T D"],
    k: Float[Array, "B T D"],
    v: Float[Array, "B T D"],
    heads: int,
    valid: Int[Array, " B"] | None,
) -> Float[Array, "B T D"]:
    """softmax(q k / sqrt(D / heads)) v of each head, over the first `valid` steps."""
    batch, steps, width = q.shape
    inner = width // heads

    def by_head(x: Array) -> Array:
        split = x.reshape(batch, steps, heads, inner).transpose(0, 2, 1, 3)
        return split.reshape(-1, steps, inner)

    count = jnp.full(batch, steps) if valid is None else valid

    def one_head(parts: tuple[Array, ...]) -> Array:
        q, k, v, count = parts
        heard = (jnp.arange(steps) < count)[None]
        scores = jnp.where(heard, q @ k.T, jnp.finfo(q.dtype).min)
        return jax.nn.softmax(scores, axis=-1) @ v

    # head by head: XLA's batched products on a CPU are several times slower
    each = (by_head(q * inner**-0.5), by_head(k), by_head(v), jnp.repeat(count, heads))
    y = jax.lax.map(one_head, each).reshape(batch, heads, steps, inner)
    return y.transpose(0, 2, 1, 3).reshape(batch, steps, width)


def windows(
    x: Float[Array, "B n c"], size: int, stride: int
) -> Float[Array, "B t taps"]:
    """What each output of a convolution without padding sees; taps = size * c."""
    count = (x.shape[1] - size) // stride + 1
    end = stride * (count - 1) + 1
    taps = [x[:, i : i + end : stride] for i in range(size)]
    return jnp.concatenate(taps, axis=-1)


def stacked(layer: type, config: Any, count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one whose weights have a leading layer axis."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs: nnx.Rngs) -> nnx.Module:
        return layer(config, rngs=rngs)

    return create(rngs)


def layer_norm(width: int, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Over channels, with scale and bias."""
    # the fast variance loses digits where the mean is large
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


def _last_axis(values: Array) -> Float[Array, "1 1 C"]:
    return values[None, None, :]
