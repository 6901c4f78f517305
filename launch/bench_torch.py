"""The transformer in plain PyTorch: what the benches measure ours against.

Written from TAVR_SPEC 10 for speed without custom kernels: only valid tokens exist, the
reference is a cache, attention is F.scaled_dot_product_attention without masks (flash
attention where the device has it), matrices are in the dtype of the weights, norms and
the residual stream in float32. Modules have the published names, so that our weights
carry over by the table that loads official ones. All samples of a batch have the same
valid tokens, no chunk continues another, and every track is present or all are absent.

    letters as in tavr_jax/types.py, but PyTorch's order: latents are "B C T H W"
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tavr_jax.models.transformer import TransformerConfig


class Told(NamedTuple):
    """What the network is told, and where its tokens stand (TAVR_SPEC 10.3)."""

    still: Tensor  # B C 1 H W
    still_tokens: Tensor  # indices into h w
    reference: Tensor  # B C R H W
    reference_tokens: Tensor  # indices into R h w
    text: Tensor
    null_text: Tensor
    audio: Tensor
    reference_audio: Tensor
    heard: bool
    turns: Tensor  # N d/2, complex
    reference_turns: Tensor  # M d/2, complex


class Dense(nn.Linear):
    """A product in the dtype `product`, whatever the weights are stored in."""

    product = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """x W + b."""
        return F.linear(*(y.to(self.product) for y in (x, self.weight, self.bias)))


class Row(nn.Module):
    """A learned table; published as an embedding."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))


class Root(Row):
    """Root-mean-square norm over all channels of all heads."""

    def __init__(self, width: int, eps: float):
        super().__init__(1, width)
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """The dtype of `x` stays."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


class Embedding(nn.Module):
    """The convolution whose kernel is its stride, as a product of packed patches."""

    product = torch.float32

    def __init__(self, inputs: int, width: int, patch: tuple[int, int, int]):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, inputs, *patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Tokens at these indices, float32."""
        b, c, t, rows, columns = latents.shape
        _, py, px = self.weight.shape[2:]
        x = latents.reshape(b, c, t, rows // py, py, columns // px, px)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, -1, c * py * px)
        parts = x[:, tokens], self.weight.flatten(1), self.bias
        return F.linear(*(y.to(self.product) for y in parts)).float()


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """With tanh GELU."""
    return nn.Sequential(
        Dense(inputs, hidden), nn.GELU(approximate="tanh"), Dense(hidden, outputs)
    )


def adapter(width: int, inner: int, eps: float) -> nn.Sequential:
    """With exact GELU and a norm of its own."""
    return nn.Sequential(
        nn.LayerNorm(width, eps), Dense(width, inner), nn.GELU(), Dense(inner, width)
    )


class Attention(nn.Module):
    """q, k, v, o and the norms of q and k."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.q, self.k, self.v, self.o = (Dense(c.dim, c.dim) for _ in range(4))
        self.norm_q, self.norm_k = Root(c.dim, c.eps), Root(c.dim, c.eps)
        self.heads = c.num_heads

    def split(self, x: Tensor) -> Tensor:
        """Heads before tokens."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def read(self, q: Tensor, k: Tensor, v: Tensor, mask=None) -> Tensor:
        """Attention and the output projection."""
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(out.transpose(-3, -2).flatten(-2))

    def among(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads of self-attention, turned."""
        q, k = self.norm_q(self.q(x)), self.norm_k(self.k(x))
        v = self.split(self.v(x))
        return _turned(self.split(q), turns), _turned(self.split(k), turns), v

    def cross(self, x: Tensor, rows: Tensor) -> Tensor:
        """Read all `rows`."""
        q, k = self.norm_q(self.q(x)), self.norm_k(self.k(rows))
        return self.read(self.split(q), self.split(k), self.split(self.v(rows)))


class AudioAttention(Attention):
    """Windows of driving audio, or the rows of a reference latent."""

    def __init__(self, c: TransformerConfig):
        super().__init__(c)
        for name in "qkv":
            part = adapter(c.dim, c.adapter_dim, c.adapter_norm_eps)
            setattr(self, f"videoref_aud_{name}_adapter", part)
        self.window, self.stride = c.audio_window, c.audio_per_latent

    def driving(self, x: Tensor, audio: Tensor, positions: Tensor) -> Tensor:
        """x: B T hw D."""
        pad = (self.window - self.stride) // 2
        k, v = self.norm_k(self.k(audio)), self.v(audio)
        k, v = (F.pad(y, (0, 0, pad, pad)).unfold(1, self.window, self.stride)
                for y in (k, v))  # fmt: skip
        k, v = k.transpose(-1, -2) + positions.to(k.dtype), v.transpose(-1, -2)
        q = self.norm_q(self.q(x))
        return self.read(self.split(q), self.split(k), self.split(v))

    def reference(
        self, x: Tensor, rows: Tensor, positions: Tensor, seen: Tensor
    ) -> Tensor:
        """Tokens read the rows that they have `seen`."""
        q = self.norm_q(self.q(x) + self.videoref_aud_q_adapter(x))
        k = self.norm_k(self.k(rows) + self.videoref_aud_k_adapter(rows))
        k = k + positions.to(k.dtype)
        v = self.v(rows) + self.videoref_aud_v_adapter(rows)
        return self.read(self.split(q), self.split(k), self.split(v), seen)


class Block(nn.Module):
    """TAVR_SPEC 10.4."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(1, 6, c.dim))
        self.self_attn, self.cross_attn = Attention(c), Attention(c)
        self.audio_attn = AudioAttention(c)
        self.norm3, self.norm4 = (nn.LayerNorm(c.dim, c.eps) for _ in range(2))
        self.ffn, self.eps = mlp(c.dim, c.ffn_dim, c.dim), c.eps

    def main(self, x, row, time, turns, text, audio, positions, slots, keys, values):
        """`row`: what is added behind the video, and to how many tokens."""
        video = x.shape[1] - row[1]
        x = torch.cat([x[:, :video], x[:, video:] + row[0]], 1)
        m = (self.modulation + time).unsqueeze(2).unbind(1)
        q, k, v = self.self_attn.among(self.modulated(x, m[0], m[1]), turns)
        k, v = torch.cat([k, keys], 2), torch.cat([v, values], 2)
        x = x + m[2] * self.self_attn.read(q, k, v)
        x = x + self.cross_attn.cross(self.norm3(x), text)
        frames = self.norm4(x[:, :video]).unflatten(1, (slots, -1))
        heard = self.audio_attn.driving(frames, audio, positions).flatten(1, 2)
        x = torch.cat([x[:, :video] + heard, x[:, video:]], 1)
        return x + m[5] * self.ffn(self.modulated(x, m[3], m[4]))

    def reference(self, x, row, time, turns, text, rows, positions, seen):
        """Also returns keys and values."""
        x = x + row
        m = (self.modulation + time).unsqueeze(2).unbind(1)
        q, k, v = self.self_attn.among(self.modulated(x, m[0], m[1]), turns)
        x = x + m[2] * self.self_attn.read(q, k, v)
        x = x + self.cross_attn.cross(self.norm3(x), text)
        x = x + self.audio_attn.reference(self.norm4(x), rows, positions, seen)
        return x + m[5] * self.ffn(self.modulated(x, m[3], m[4])), k, v

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """LN(x) (1 + scale) + shift."""
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(shift, x, 1 + scale)


class Head(nn.Module):
    """TAVR_SPEC 10.5."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        _, py, px = c.patch_size
        self.modulation = nn.Parameter(torch.empty(1, 2, c.dim))
        self.head, self.eps = Dense(c.dim, c.out_dim * py * px), c.eps

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Patches of velocity."""
        shift, scale = (self.modulation + time[:, None]).unsqueeze(2).unbind(1)
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return self.head(torch.addcmul(shift, x, 1 + scale))


class Transformer(nn.Module):
    """`prefill` and `forward`, as ours."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.config, width = c, c.dim
        self.patch_embedding = Embedding(c.in_channels, width, c.patch_size)
        self.text_embedding = mlp(c.text_dim, width, width)
        self.time_embedding = nn.Sequential(
            Dense(c.freq_dim, width), nn.SiLU(), Dense(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Dense(width, 6 * width))
        self.time_embedding_videoref = nn.Parameter(torch.empty(1, width))
        self.aud_embedding = mlp(c.audio_dim, width, width)
        self.audio_pos_embedding = Row(c.audio_window, width)
        self.null_audio_feature = Row(1, c.audio_dim)
        self.ref_pos_embedding = Row(1, width)
        self.cross_videoref_pos_embedding = Row(1, width)
        self.videoref_aud_embedding = mlp(c.videoref_audio_dim, width, width)
        self.null_videoref_audio_feature = Row(1, c.videoref_audio_dim)
        self.videoref_audio_pos_embedding = Row(c.audio_per_latent, width)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c.num_layers)])
        self.head = Head(c)
        for name, module in self.named_modules():
            wide = name.startswith(("time_", "head"))
            if isinstance(module, Dense | Embedding) and not wide:
                module.product = getattr(torch, c.dtype)

    def prefill(self, told: Told) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the reference, layer by layer."""
        x, *context = self.of_reference(told)
        found = []
        for block in self.blocks:
            x, k, v = self.call(block.reference, x, *context)
            found.append((k, v))
        return found

    def forward(self, latents: Tensor, t: Tensor, told: Told, cache: list) -> Tensor:
        """Velocity, B C T H W."""
        x, *context = self.of_main(latents, t, told)
        for block, seen in zip(self.blocks, cache, strict=True):
            x = self.call(block.main, x, *context, *seen)
        return self.unpatched(x, self.time(t), latents.shape)

    def of_main(self, latents: Tensor, t: Tensor, told: Told) -> tuple:
        """Tokens, and what `Block.main` reads beside them, keys and values apart."""
        batch, _, slots = latents.shape[:3]
        moves = torch.zeros_like(latents[:, :1])
        video = torch.cat([latents, moves, moves], 1)
        one = torch.ones_like(told.still[:, :1])
        still = torch.cat([told.still, one, torch.zeros_like(one)], 1)
        behind = slots * self.area(latents)
        places = torch.arange(behind, device=latents.device)
        places = torch.cat([places, behind + told.still_tokens])
        x = self.patch_embedding(torch.cat([video, still], 2), places)
        null = self.null_audio_feature.weight[None].to(told.audio.dtype)
        rows = told.audio if told.heard else null.expand_as(told.audio)
        missing = -rows.shape[1] % self.config.audio_per_latent
        rows = torch.cat([null.expand(batch, missing, -1), rows], 1)
        row = self.ref_pos_embedding.weight, len(told.still_tokens)
        time = self.time_projection(self.time(t)).unflatten(1, (6, -1))
        text, audio = self.text_embedding(told.text), self.aud_embedding(rows)
        positions = self.audio_pos_embedding.weight
        return x, row, time, told.turns, text, audio, positions, slots

    def of_reference(self, told: Told) -> tuple:
        """The same for `Block.reference`."""
        c, batch, slots = self.config, len(told.reference), told.reference.shape[2]
        one = torch.ones_like(told.reference[:, :1])
        whole = torch.cat([told.reference, one, torch.zeros_like(one)], 1)
        x = self.patch_embedding(whole, told.reference_tokens)
        area = self.area(told.reference)
        rows = torch.arange(slots, device=x.device).repeat_interleave(
            c.audio_per_latent
        )
        seen = (told.reference_tokens // area)[:, None] == rows[None]
        null = self.null_videoref_audio_feature.weight[None]
        heard = told.reference_audio
        heard = heard if told.heard else null.to(heard.dtype).expand_as(heard)
        time = self.time(torch.zeros(batch, device=x.device))
        time = self.time_projection(time + self.time_embedding_videoref)
        positions = self.videoref_audio_pos_embedding.weight.repeat(slots, 1)
        return (
            x,
            self.cross_videoref_pos_embedding.weight,
            time.unflatten(1, (6, -1)),
            told.reference_turns,
            self.text_embedding(told.null_text),
            self.videoref_aud_embedding(heard),
            positions,
            seen,
        )

    def area(self, latents: Tensor) -> int:
        """Tokens of one latent."""
        _, py, px = self.config.patch_size
        return latents.shape[3] * latents.shape[4] // (py * px)

    def time(self, t: Tensor) -> Tensor:
        """e(t)."""
        half = self.config.freq_dim // 2
        steps = torch.arange(half, dtype=torch.float64, device=t.device)
        angles = t.double()[:, None] * 10000 ** (-steps / half)
        features = torch.cat([angles.cos(), angles.sin()], 1).float()
        return self.time_embedding(features)

    def unpatched(self, x: Tensor, time: Tensor, shape: torch.Size) -> Tensor:
        """The head, and video tokens back in their places."""
        b, c, t, rows, columns = shape
        _, py, px = self.config.patch_size
        x = self.head(x[:, : t * rows * columns // (py * px)], time)
        x = x.reshape(b, t, rows // py, columns // px, py, px, c)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(shape)

    def call(self, layer, *arguments):
        """With rematerialisation where the config has it."""
        if self.config.remat and torch.is_grad_enabled():
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def turns(c: TransformerConfig, slots: Tensor, tokens: Tensor, grid) -> Tensor:
    """TAVR_SPEC 10.3 for `tokens`, indices into slots x h x w at times `slots`."""
    h, w = grid
    head = c.dim // c.num_heads
    space = 2 * (head // 6)
    row, column = tokens // w % h, tokens % w
    places = slots[tokens // (h * w)], row, column
    stride = c.rope_spatial_stride
    parts = []
    for place, size, scale in zip(
        places, (head - 2 * space, space, space), (1, stride, stride), strict=True
    ):
        steps = torch.arange(0, size, 2, dtype=torch.float64, device=tokens.device)
        parts.append(torch.outer(place.double() * scale, 10000 ** (-steps / size)))
    angles = torch.cat(parts, 1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
