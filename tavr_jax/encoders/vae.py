"""The Wan 2.1 causal video autoencoder: frames <-> latents, 4x in time, 8x in space.

(1) latents = (posterior mean - latents_mean) * (1 / latents_std)
(2) 1 + 4k frames -> 1 + k latents -> 1 + 4k frames; frames beyond 1 + 4k are ignored

Whole clips are evaluated at once, which equals the released frame-by-frame evaluation.
Source: TAVR_SPEC 6 and 9.5; layers in `vae_blocks.py`, published names in `weights.py`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.encoders.vae_blocks import (
    CausalConv,
    ChannelNorm,
    Downsample,
    Middle,
    ResidualBlock,
    Upsample,
)


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The section `codec` of a config; meanings and values are there."""

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    reference_prefix: int
    crop: int
    edge_weight: float
    latent_weight: float
    latent_noise: float


class Encoder(nnx.Module):
    """Frames to the 2 x z_dim channels of the posterior, before `quant`."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        dims = [config.base_dim * m for m in config.dim_mult]
        self.conv_in = CausalConv(3, dims[0], (3, 3, 3), rngs=rngs)
        blocks, width = [], dims[0]
        for level, dim in enumerate(dims):
            for _ in range(config.num_res_blocks):
                blocks.append(ResidualBlock(width, dim, rngs=rngs))
                width = dim
            if level < len(dims) - 1:
                temporal = config.temporal_downsample[level]
                blocks.append(Downsample(width, temporal, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.middle = Middle(width, rngs=rngs)
        self.norm_out = ChannelNorm(width)
        self.conv_out = CausalConv(width, 2 * config.z_dim, (3, 3, 3), rngs=rngs)

    def __call__(self, frames: Float[Array, "B F Y X 3"]) -> Float[Array, "B T H W Z"]:
        """F = 1 + 4k."""
        x = self.conv_in(frames)
        for block in self.blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Latents, after `post_quant`, to frames."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        dims = [config.base_dim * m for m in reversed(config.dim_mult)]
        self.conv_in = CausalConv(config.z_dim, dims[0], (3, 3, 3), rngs=rngs)
        self.middle = Middle(dims[0], rngs=rngs)
        blocks, width = [], dims[0]
        for level, dim in enumerate(dims):
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResidualBlock(width, dim, rngs=rngs))
                width = dim
            if level < len(dims) - 1:
                temporal = config.temporal_downsample[-1 - level]
                blocks.append(Upsample(width, temporal, rngs=rngs))
                width = width // 2
        self.blocks = nnx.List(blocks)
        self.norm_out = ChannelNorm(width)
        self.conv_out = CausalConv(width, 3, (3, 3, 3), rngs=rngs)

    def __call__(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B F Y X 3"]:
        """Not clamped."""
        x = self.middle(self.conv_in(latents))
        for block in self.blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.norm_out(x)))


class Codec(nnx.Module):
    """The autoencoder with its normalised latents, equation (1)."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        wide = 2 * config.z_dim
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quant = CausalConv(wide, wide, (1, 1, 1), rngs=rngs)
        self.post_quant = CausalConv(config.z_dim, config.z_dim, (1, 1, 1), rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, frames: Float[Array, "B F Y X 3"]) -> Float[Array, "B T H W C"]:
        """Normalised posterior mean of frames in [-1, 1]; T = 1 + (F - 1) // 4."""
        kept = 1 + (frames.shape[1] - 1) // 4 * 4
        mean = self.quant(self.encoder(frames[:, :kept]))[..., : self.config.z_dim]
        center, scale = self._statistics()
        return (mean - center) * scale

    def decode(self, latents: Float[Array, "B T H W C"]) -> Float[Array, "B F Y X 3"]:
        """Frames in [-1, 1] of normalised latents; F = 4T - 3."""
        return jnp.clip(self.unclamped(latents), -1.0, 1.0)

    def unclamped(
        self, latents: Float[Array, "B T H W C"]
    ) -> Float[Array, "B F Y X 3"]:
        """What `decode` clamps: a training loss needs the slope outside [-1, 1]."""
        center, scale = self._statistics()
        return self.decoder(self.post_quant(latents / scale + center))

    def _statistics(self) -> tuple[Array, Array]:
        shape = (1, 1, 1, 1, self.config.z_dim)
        mean = jnp.array(self.config.latents_mean, jnp.float32).reshape(shape)
        std = jnp.array(self.config.latents_std, jnp.float32).reshape(shape)
        return mean, 1.0 / std


def encode_reference(
    codec: Codec, frames: Float[Array, "B F Y X 3"]
) -> Float[Array, "B R H W C"]:
    """Latents of a reference clip; latent j covers exactly frames 4j..4j+3.

    Copies of frame 0 stand in front, so that no latent of the clip itself is a cold
    start; the last F // 4 latents are kept. Source: TAVR_SPEC 9.5.
    """
    prefix = jnp.repeat(frames[:, :1], codec.config.reference_prefix, axis=1)
    latents = codec.encode(jnp.concatenate([prefix, frames], axis=1))
    return latents[:, latents.shape[1] - frames.shape[1] // 4 :]
