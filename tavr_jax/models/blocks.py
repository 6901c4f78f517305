"""One transformer block, as two streams that share its weights.

The reference stream sees neither noise, nor time, nor the caption, so it runs alone and
hands its keys and values to the main stream (TAVR_SPEC 10.4, 10.6):

    (1) m = P + E                        shift1 scale1 gate1 shift2 scale2 gate2
    (2) x += gate1 SelfAttn(modulate(LN(x)))   main reads main and reference, reference
                                               reads reference, or latents nearby
    (3) x += TextAttn(norm3(x))
    (4) x += AudioAttn(norm4(x))         video tokens: a window of driving audio;
                                         reference tokens: their own four rows, through
                                         the adapters; ref row: none
    (5) x += gate2 FFN(modulate(LN(x)))

`MainParts` and `ReferenceParts` carry the terms beside the sum, so that activations can
be compared one by one; under jit an unread term costs nothing.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from tavr_jax.models import rope
from tavr_jax.models.attention_local import Nearby
from tavr_jax.models.attention_sharded import KeysValues, attend_all, read
from tavr_jax.models.layers import (
    MLP,
    Adapter,
    Norm,
    RMSNorm,
    layer_norm,
    linear,
    modulate,
    normal,
)
from tavr_jax.models.tokens import Layout
from tavr_jax.parallel.sharding import constrain


class Rope(NamedTuple):
    """Cosines and sines of a stream's tokens."""

    cos: Float[Array, "B n half"]
    sin: Float[Array, "B n half"]


class Main(NamedTuple):
    """What every block of the main stream reads. N = T h w video tokens + ref row."""

    rope: Rope
    valid: Bool[Array, "B N"]
    modulation: Float[Array, "B six D"]
    still_embedding: Float[Array, " D"]
    text: Float[Array, "B L D"]
    audio: Float[Array, "B a D"]
    audio_positions: Float[Array, "window D"]
    layout: Layout


class Reference(NamedTuple):
    """What every block of the reference stream reads."""

    rope: Rope
    valid: Bool[Array, "B M"]
    modulation: Float[Array, "B six D"]
    embedding: Float[Array, " D"]
    text: Float[Array, "B L D"]
    audio: Float[Array, "B Q D"]
    audio_positions: Float[Array, "Q D"]
    audio_mask: Bool[Array, "B M Q"] | None  # who reads which; None: told by `near`
    near: Nearby | None  # where a latent reads those around it; None: all read all


class MainParts(NamedTuple):
    """Main stream after a block, and the terms it added."""

    x: Float[Array, "B N D"]
    self_attn: Float[Array, "B N D"]
    cross_attn: Float[Array, "B N D"]
    audio_attn: Float[Array, "B video D"]
    ffn: Float[Array, "B N D"]


class ReferenceParts(NamedTuple):
    """Reference stream after a block, its keys and values, and the terms it added."""

    x: Float[Array, "B M D"]
    keys: Float[Array, "B M K d"]
    values: Float[Array, "B M K d"]
    self_attn: Float[Array, "B M D"]
    cross_attn: Float[Array, "B M D"]
    audio_attn: Float[Array, "B M D"]
    ffn: Float[Array, "B M D"]


class Attention(nnx.Module):
    """Projections shared by all three attentions: q, k, v, o and norms of q and k."""

    def __init__(self, config, rngs: nnx.Rngs):
        width, dtype = config.dim, config.dtype
        self.q = linear(width, width, dtype, rngs)
        self.k = linear(width, width, dtype, rngs)
        self.v = linear(width, width, dtype, rngs)
        self.o = linear(width, width, dtype, rngs)
        self.norm_q = RMSNorm(width, config.eps, rngs)
        self.norm_k = RMSNorm(width, config.eps, rngs)
        self.heads, self.kernel = config.num_heads, config.attention

    def split(self, x: Float[Array, "*n D"]) -> Float[Array, "*n K d"]:
        """Into heads."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def merge(self, x: Float[Array, "*n K d"]) -> Float[Array, "*n D"]:
        """Heads back to channels, through the output projection."""
        return self.o(x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]))

    def qkv(self, x: Float[Array, "B n D"], positions: Rope):
        """Self-attention's heads, turned by their positions."""
        q = rope.rotate(self.split(self.norm_q(self.q(x))), *positions)
        k = rope.rotate(self.split(self.norm_k(self.k(x))), *positions)
        v = self.split(self.v(x))
        return q.astype(v.dtype), k.astype(v.dtype), v

    def cross(
        self, x: Float[Array, "B n D"], rows: Float[Array, "B m D"]
    ) -> Float[Array, "B n D"]:
        """Read `rows`, all of them: no mask, no positions."""
        q = self.split(self.norm_q(self.q(x)))
        k = self.split(self.norm_k(self.k(rows)))
        return self.merge(read(q, k, self.split(self.v(rows)), None, self.kernel))


class AudioAttention(Attention):
    """Video tokens read a window of driving audio, reference tokens their own rows."""

    def __init__(self, config, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        sizes = (config.dim, config.adapter_dim, config.adapter_norm_eps, config.dtype)
        self.adapter_q = Adapter(*sizes, rngs)
        self.adapter_k = Adapter(*sizes, rngs)
        self.adapter_v = Adapter(*sizes, rngs)
        self.window, self.stride = config.audio_window, config.audio_per_latent

    def driving(
        self, x: Float[Array, "B video D"], context: Main
    ) -> Float[Array, "B video D"]:
        """Tokens of latent i read `window` rows around its own.

        Padding rows are zero after projection and norm and take part in the softmax:
        their keys are the position embedding alone, their values zero.
        """
        layout = context.layout
        pad = (self.window - self.stride) // 2
        edge = ((0, 0), (pad, pad), (0, 0))
        keys = constrain(self.norm_k(self.k(context.audio)), "B", None, None)
        values = constrain(self.v(context.audio), "B", None, None)
        keys, values = jnp.pad(keys, edge), jnp.pad(values, edge)
        starts = self.stride * jnp.arange(layout.slots)
        rows = starts[:, None] + jnp.arange(self.window)[None]
        positions = context.audio_positions[None, None].astype(keys.dtype)
        keys, values = keys[:, rows] + positions, values[:, rows]
        return self._by_latent(self.norm_q(self.q(x)), keys, values, layout)

    def reference(
        self, x: Float[Array, "B M D"], context: Reference
    ) -> Float[Array, "B M D"]:
        """Tokens of reference latent j read its own rows, through the adapters."""
        rows = context.audio
        q = self.norm_q(self.q(x) + self.adapter_q(x))
        k = self.norm_k(self.k(rows) + self.adapter_k(rows))
        k = k + context.audio_positions[None].astype(k.dtype)
        v = self.v(rows) + self.adapter_v(rows)
        if context.near is not None:
            batch, count, width = k.shape
            slots = (batch, count // self.stride, self.stride, width)
            own = k.reshape(slots), v.reshape(slots)
            return self._by_latent(q, *own, context.near.layout)
        heads = (self.split(q), self.split(k), self.split(v))
        return self.merge(read(*heads, context.audio_mask, self.kernel))

    def _by_latent(
        self,
        q: Float[Array, "B n D"],
        keys: Float[Array, "B T m D"],
        values: Float[Array, "B T m D"],
        layout: Layout,
    ) -> Float[Array, "B n D"]:
        """Tokens of latent i read the m rows of latent i: linear in the latents."""
        q = layout.frames(q)
        frames = [y.reshape(-1, *y.shape[2:]) for y in (q, keys, values)]
        out = read(*(self.split(y) for y in frames), None, self.kernel)
        out = out.reshape(*q.shape[:3], *out.shape[2:])
        return self.merge(layout.in_runs(out))


class Block(nnx.Module):
    """(1) to (5)."""

    def __init__(self, config, rngs: nnx.Rngs):
        width = config.dim
        self.modulation = nnx.Param(normal(rngs.params(), (6, width)))
        self.self_attn = Attention(config, rngs)
        self.cross_attn = Attention(config, rngs)
        self.audio_attn = AudioAttention(config, rngs)
        self.norm3 = Norm(width, config.eps, rngs)
        self.norm4 = Norm(width, config.eps, rngs)
        self.ffn = MLP(width, config.ffn_dim, width, config.dtype, rngs)
        self.eps = config.eps

    def main(
        self,
        x: Float[Array, "B N D"],
        context: Main,
        reference_keys: Float[Array, "b M K d"],
        reference_values: Float[Array, "b M K d"],
        reference_valid: Bool[Array, "b M"],
    ) -> MainParts:
        """Video and ref-row tokens through the block; B / b samples read alike."""
        layout = context.layout
        embedding = constrain(context.still_embedding, None)
        x = constrain(x, "B", "N", None) + layout.on_still(embedding, x.shape[0])
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(context)

        y = modulate(layer_norm(x, self.eps), shift1, scale1)
        q, k, v = self.self_attn.qkv(y, context.rope)
        reference = KeysValues(reference_keys, reference_values, reference_valid)
        own = KeysValues(k, v, context.valid)
        self_attn, _ = attend_all(q, own, reference, None, self.self_attn.kernel)
        self_attn = self.self_attn.merge(self_attn)
        x = x + gate1 * self_attn

        cross_attn = self.cross_attn.cross(self.norm3(x), context.text)
        x = x + cross_attn
        audio_attn = self.audio_attn.driving(self.norm4(layout.video_of(x)), context)
        x = x + layout.among_all(audio_attn)
        ffn = self.ffn(modulate(layer_norm(x, self.eps), shift2, scale2))
        x = constrain(x + gate2 * ffn, "B", "N", None)
        return MainParts(x, self_attn, cross_attn, audio_attn, ffn)

    def reference(self, x: Float[Array, "B M D"], context: Reference) -> ReferenceParts:
        """Reference tokens through the block."""
        embedding = constrain(context.embedding, None).reshape(1, 1, -1)
        x = constrain(x, "B", "N", None) + embedding
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulation(context)

        y = modulate(layer_norm(x, self.eps), shift1, scale1)
        q, k, v = self.self_attn.qkv(y, context.rope)
        own = KeysValues(k, v, context.valid)
        kernel = self.self_attn.kernel
        self_attn, shown = attend_all(q, own, None, context.near, kernel)
        self_attn = self.self_attn.merge(self_attn)
        x = x + gate1 * self_attn

        cross_attn = self.cross_attn.cross(self.norm3(x), context.text)
        x = x + cross_attn
        audio_attn = self.audio_attn.reference(self.norm4(x), context)
        x = x + audio_attn
        ffn = self.ffn(modulate(layer_norm(x, self.eps), shift2, scale2))
        x = constrain(x + gate2 * ffn, "B", "N", None)
        terms = (self_attn, cross_attn, audio_attn, ffn)
        return ReferenceParts(x, shown.keys, shown.values, *terms)

    def _modulation(self, context: Main | Reference) -> list[Array]:
        own = constrain(self.modulation[...], None, None)
        rows = constrain(own[None] + context.modulation, "B", None, None)
        return [rows[:, i, None, :] for i in range(6)]
