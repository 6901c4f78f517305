"""The Wan 2.1 causal video autoencoder: frames <-> latents, 4x in time, 8x in space.

(1) latents = (posterior mean - latents_mean) * (1 / latents_std)
(2) 1 + 4k frames -> 1 + k latents -> 1 + 4k frames; frames beyond 1 + 4k are ignored

Ours, off in the official codec: with `cosines` the network reads and writes cosine
coefficients of whole latents instead of pixels (`vae_transform.py`), all at the size of
the latents, and adds to what the first z_dim of them are:

(3) mean = coefficients[: z_dim] + network,   coefficients = [mean, 0] + network

A fresh one adds 0: it starts as a codec of blurred pictures, not of noise.

A whole clip at once equals the released frame-by-frame evaluation and the same clip in
pieces of any size (`vae_stream.py`): one network, with or without memory. Under a mesh
(`jax.set_mesh`) its devices share the columns of the video (`vae_columns.py`).
Source: TAVR_SPEC 6 and 9.5; layers in `vae_blocks.py`, published names in
`weights_vae.py`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tavr_jax.encoders.vae_blocks import (
    CausalConv,
    ChannelNorm,
    Downsample,
    Memory,
    Middle,
    ResidualBlock,
    Upsample,
    run,
)
from tavr_jax.encoders.vae_columns import Columns, spread
from tavr_jax.encoders.vae_transform import SIDE, SPAN, forward, inverse
from tavr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The section `codec` of a config; meanings and values are there."""

    base_dim: int
    z_dim: int
    cosines: int
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

    def __post_init__(self):
        """InputError: (2) would not hold, or a reference would not start a latent."""
        if self.cosines:
            self._check_cosines()
        elif sum(self.temporal_downsample) != 2:
            raise InputError(
                f"config: codec.temporal_downsample={self.temporal_downsample}: a "
                "latent covers 4 frames; set two of them true"
            )
        if self.reference_prefix % SPAN != 1:
            raise InputError(
                f"config: codec.reference_prefix={self.reference_prefix}: frame 0 is a "
                f"latent, then every {SPAN}; give 1 + {SPAN}k, as released 25"
            )

    @property
    def stride(self) -> int:
        """Pixels of a latent along rows and columns."""
        return SIDE if self.cosines else 2 ** (len(self.dim_mult) - 1)

    def _check_cosines(self) -> None:
        most = SPAN * SIDE**2 * 3
        if not self.z_dim <= self.cosines <= most:
            raise InputError(
                f"config: codec.cosines={self.cosines}: expected 0 (pixels), or "
                f"codec.z_dim={self.z_dim} to {most}"
            )
        if len(self.dim_mult) != 1 or self.temporal_downsample:
            raise InputError(
                f"config: codec.cosines={self.cosines}: they are at the size of "
                "latents; give one level in codec.dim_mult, and an empty "
                "codec.temporal_downsample"
            )


class Encoder(nnx.Module):
    """Frames to the 2 x z_dim channels of the posterior, before `quant`."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        dims = [config.base_dim * m for m in config.dim_mult]
        self.conv_in = CausalConv(
            config.cosines or 3, config.base_dim, (3, 3, 3), rngs=rngs
        )
        blocks, width = [], config.base_dim
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
        self.conv_out = _end(width, 2 * config.z_dim, config, rngs)

    def __call__(
        self,
        frames: Float[Array, "B F Y X D"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B T H W Z"], Memory]:
        """F = 4T - 3; after the first piece, 4T. D = 3; cosines: their number, F = T"""
        layers = [self.conv_in, *self.blocks, self.middle, self._head]
        return run(layers, frames, memory, columns)

    def _head(self, x: Array, memory: Memory, columns: Columns | None):
        return self.conv_out(nnx.silu(self.norm_out(x)), memory, columns)


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
        self.conv_out = _end(width, config.cosines or 3, config, rngs)

    def __call__(
        self,
        latents: Float[Array, "B T H W C"],
        memory: Memory = None,
        columns: Columns | None = None,
    ) -> tuple[Float[Array, "B F Y X D"], Memory]:
        """F = 4T - 3, not clamped; after the first piece, 4T. D as of `Encoder`."""
        layers = [self.conv_in, self.middle, *self.blocks, self._head]
        return run(layers, latents, memory, columns)

    def _head(self, x: Array, memory: Memory, columns: Columns | None):
        return self.conv_out(nnx.silu(self.norm_out(x)), memory, columns)


def _end(width: int, out_dim: int, config: CodecConfig, rngs: nnx.Rngs) -> CausalConv:
    """The last layer; that of (3) starts at 0."""
    newest = jnp.zeros((3, 3, width, out_dim)) if config.cosines else None
    return CausalConv(width, out_dim, (3, 3, 3), rngs=rngs, newest=newest)


class Codec(nnx.Module):
    """The autoencoder with its normalised latents, equation (1).

    A video may come in pieces: a method `..._step` takes the memory that the piece
    before returned, None for the first, and returns its own beside its result.
    """

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        wide = 2 * config.z_dim
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.quant = CausalConv(wide, wide, (1, 1, 1), rngs=rngs)
        self.post_quant = CausalConv(config.z_dim, config.z_dim, (1, 1, 1), rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, frames: Float[Array, "B F Y X 3"]) -> Float[Array, "B T H W C"]:
        """Normalised posterior mean of frames in [-1, 1]; T = 1 + (F - 1) // 4."""
        kept = 1 + (frames.shape[1] - 1) // SPAN * SPAN
        return self.normalised(self.posterior_step(frames[:, :kept])[0])

    def posterior_step(
        self, frames: Float[Array, "B F Y X 3"], memory: Memory = None
    ) -> tuple[Float[Array, "B T H W C"], Float[Array, "B T H W C"], Memory]:
        """Mean and log-variance of the next 4T frames; the first piece has 4T - 3."""
        stride = self.config.stride
        both, memory = spread(_posterior, self, frames, memory, stride)
        mean, logvar = jnp.split(both, 2, axis=-1)
        return mean, logvar, memory

    def normalised(self, mean: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Latents of a posterior mean, equation (1)."""
        center, scale = self._statistics(mean.dtype)
        return (mean - center) * scale

    def decode(
        self, latents: Float[Array, "B T H W C"], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "B F Y X 3"]:
        """Frames in [-1, 1] of normalised latents; F = 4T - 3.

        The release decodes in float16 (TAVR_SPEC 6); the norms stay float32.
        """
        return self.decode_step(latents, None, dtype)[0]

    def decode_step(
        self,
        latents: Float[Array, "B T H W C"],
        memory: Memory = None,
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[Float[Array, "B F Y X 3"], Memory]:
        """`decode` of the next T latents: 4T frames, of the first piece 4T - 3."""
        frames, memory = spread(_decoded, self, latents.astype(dtype), memory, 1)
        return jnp.clip(frames, -1.0, 1.0), memory

    def unclamped(
        self, latents: Float[Array, "B T H W C"]
    ) -> Float[Array, "B F Y X 3"]:
        """What `decode` clamps: a training loss needs the slope outside [-1, 1]."""
        return spread(_decoded, self, latents, None, 1)[0]

    def denormalised(
        self, latents: Float[Array, "B T H W C"]
    ) -> Float[Array, "B T H W C"]:
        """The way back of `normalised`."""
        center, scale = self._statistics(latents.dtype)
        return latents / scale + center

    def _statistics(self, dtype: DTypeLike) -> tuple[Array, Array]:
        shape = (1, 1, 1, 1, self.config.z_dim)
        mean = jnp.array(self.config.latents_mean, dtype).reshape(shape)
        std = jnp.array(self.config.latents_std, dtype).reshape(shape)
        return mean, 1.0 / std


def _posterior(codec: Codec, frames: Array, memory: Memory, columns: Columns | None):
    count, x = codec.config.cosines, frames
    if count:
        x = seen = forward(frames, count, first=memory is None)
    x, memory = codec.encoder(x, memory, columns)
    both, _ = codec.quant(x)
    if count:
        both += _padded(seen[..., : codec.config.z_dim], both.shape[-1])
    return both, memory


def _decoded(codec: Codec, latents: Array, memory: Memory, columns: Columns | None):
    count, first = codec.config.cosines, memory is None
    mean = codec.denormalised(latents)
    x, _ = codec.post_quant(mean)
    x, memory = codec.decoder(x, memory, columns)
    if count:
        x = inverse(x + _padded(mean, count), first=first)
    return x, memory


def _padded(x: Float[Array, "B T H W C"], channels: int) -> Float[Array, "B T H W D"]:
    """With channels of zeros behind."""
    return jnp.pad(x, [(0, 0)] * 4 + [(0, channels - x.shape[-1])])


def encode_reference(
    codec: Codec, frames: Float[Array, "B F Y X 3"]
) -> Float[Array, "B R H W C"]:
    """Latents of a reference clip; latent j covers exactly frames 4j..4j+3.

    Copies of frame 0 stand in front, so that no latent of the clip itself is a cold
    start; the last F // 4 latents are kept. Source: TAVR_SPEC 9.5. A long clip at full
    size: `vae_stream.encode_reference_stream`.
    """
    prefix = jnp.repeat(frames[:, :1], codec.config.reference_prefix, axis=1)
    latents = codec.encode(jnp.concatenate([prefix, frames], axis=1))
    return latents[:, latents.shape[1] - frames.shape[1] // SPAN :]
