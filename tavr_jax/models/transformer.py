"""The TAVR transformer: velocity of one chunk, given everything that conditions it.

    (1) reference --patch--> tokens --blocks--> keys and values      `prefill`, once
    (2) [chunk; ref row] --patch--> tokens --blocks--> head --> velocity

(1) does not depend on noise, time or caption: its result is a cache, exact over steps,
guidance branches (one for reference audio on, one for off), chunks and group members.
Source: TAVR_SPEC 10; parameter names of the published file are mapped in
`encoders/weights_tavr.py`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tavr_jax.errors import InputError
from tavr_jax.models import preconditioning, rope, tokens
from tavr_jax.models.attention import KERNELS
from tavr_jax.models.attention_local import Nearby
from tavr_jax.models.attention_sharded import KEPT, kept_axes
from tavr_jax.models.blocks import Block, Main, Reference, Rope
from tavr_jax.models.layers import (
    MLP,
    layer_norm,
    linear,
    modulate,
    normal,
    timestep_features,
    zeros,
)
from tavr_jax.parallel import sharding
from tavr_jax.parallel.sharding import constrain
from tavr_jax.types import Conditions

BLOCK_INPUT = "block_input"
# model.remat: what the backward pass does not compute again; None: nothing of a block.
# The outputs of blocks cannot be offloaded by name, their inputs can.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(KEPT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[KEPT],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes; every field is explained where it is declared, in configs/base.py."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    freq_dim: int
    text_dim: int
    text_len: int
    audio_dim: int
    videoref_audio_dim: int
    adapter_dim: int
    in_channels: int
    out_dim: int
    latents_deviation: tuple[float, ...]
    patch_size: tuple[int, int, int]
    rope_spatial_stride: float
    videoref_rope_offset: int
    eps: float
    adapter_norm_eps: float
    audio_window: int
    audio_per_latent: int
    num_video_latents: int
    num_ref: int
    num_videoref_latents: int
    still_bucket: int
    reference_bucket: int
    reference_attention: str
    reference_window: int
    attention: str
    dtype: str
    remat: str

    def __post_init__(self):
        for field, known in (
            ("attention", KERNELS),
            ("reference_attention", ("global", "frame", "window")),
            ("remat", tuple(REMAT)),
        ):
            value = getattr(self, field)
            if value not in known:
                raise InputError(
                    f"model.{field}: {value!r}: expected {' | '.join(known)}"
                )
        if self.reference_window < 0:
            raise InputError(
                f"model.reference_window: {self.reference_window}: expected 0 or more"
            )
        given = self.latents_deviation
        if given and (len(given) != self.out_dim or min(given) <= 0):
            raise InputError(
                f"model.latents_deviation: {given}: expected nothing, or a number "
                f"above 0 for each of the {self.out_dim} channels"
            )

    @property
    def reach(self) -> int | None:
        """Latents on either side that a reference token reads; None: all."""
        windows = {"frame": 0, "window": self.reference_window}
        return windows.get(self.reference_attention)


class ReferenceCache(NamedTuple):
    """Keys and values of the reference in every layer.

    B samples, or one for every group of them: the members of a group, next to each
    other in the batch of the main stream, read the same.
    """

    keys: Float[Array, "layers B M K d"]
    values: Float[Array, "layers B M K d"]
    valid: Bool[Array, "B M"]


class Transformer(nnx.Module):
    """Sizes from the config, grids from the inputs."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        c, width, dtype = config, config.dim, config.dtype
        patch = c.in_channels * c.patch_size[1] * c.patch_size[2]
        self.patch_embedding = linear(patch, width, dtype, rngs)
        self.text_embedding = MLP(c.text_dim, width, width, dtype, rngs)
        # Time and head stay in float32, as released.
        self.time_in = linear(c.freq_dim, width, "float32", rngs)
        self.time_out = linear(width, width, "float32", rngs)
        self.time_projection = linear(width, 6 * width, "float32", rngs)
        self.time_embedding_videoref = nnx.Param(jnp.zeros(width))
        self.audio_embedding = MLP(c.audio_dim, width, width, dtype, rngs)
        self.audio_positions = _rows(c.audio_window, width, rngs)
        self.null_audio = _rows(1, c.audio_dim, rngs)
        self.still_embedding = _rows(1, width, rngs)
        self.reference_embedding = _rows(1, width, rngs)
        self.reference_audio_embedding = MLP(
            c.videoref_audio_dim, width, width, dtype, rngs
        )
        self.null_reference_audio = _rows(1, c.videoref_audio_dim, rngs)
        self.reference_audio_positions = _rows(c.audio_per_latent, width, rngs)
        self.blocks = _stack(config, rngs)
        self.head_modulation = nnx.Param(normal(rngs.params(), (2, width)))
        outputs = c.out_dim * c.patch_size[1] * c.patch_size[2]
        self.head = linear(width, outputs, "float32", rngs, kernel_init=zeros)

    def prefill(self, conditions: Conditions) -> ReferenceCache:
        """(1): the reference's keys and values in every layer."""
        x, context = self.embed_reference(conditions)
        graph, layers = nnx.split(self.blocks)

        def layer(x, weights):
            parts = nnx.merge(graph, weights).reference(x, context)
            return parts.x, (parts.keys, parts.values)

        _, (keys, values) = jax.lax.scan(self._remat(layer), x, layers)
        cache = ReferenceCache(keys, values, context.valid)
        places = self.cache_specs(len(context.valid))
        return jax.tree.map(sharding.pin, cache, places)

    def cache_specs(self, samples: int) -> ReferenceCache:
        """Where a cache of `samples` lives on the mesh around us, as PartitionSpecs.

        `prefill` leaves it there and every call reads it there: heads over (tensor,
        context), or tokens over context where the heads do not divide (ring).
        """
        axes = kept_axes(self.config.num_heads)
        batch = sharding.fitting((samples,), "B")[0]
        keys, values, valid = ((batch, *sharding.spec(*x)[1:]) for x in axes)
        return ReferenceCache(
            PartitionSpec(None, *keys),
            PartitionSpec(None, *values),
            PartitionSpec(*valid),
        )

    def __call__(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"],
        conditions: Conditions,
        cache: ReferenceCache,
    ) -> Float[Array, "B T H W C"]:
        """(2): velocity of the chunk, float32.

        `timestep` is in 0..1000 (sigma x 1000). In a continuation the first P latents
        are overwritten by `conditions.motion`; their output has no meaning.
        """
        x, context = self.embed_main(latents, timestep, conditions)
        graph, layers = nnx.split(self.blocks)

        def layer(x, slices):
            weights, keys, values = slices
            block = nnx.merge(graph, weights)
            return block.main(x, context, keys, values, cache.valid).x, None

        x, _ = jax.lax.scan(self._remat(layer), x, (layers, cache.keys, cache.values))
        output = self.unembed(x, timestep, latents.shape, context.layout)
        if not self.config.latents_deviation:
            return output
        return preconditioning.velocity(
            output, latents, timestep, self.config.latents_deviation
        )

    def embed_main(
        self,
        latents: Float[Array, "B T H W C"],
        timestep: Float[Array, " B"],
        conditions: Conditions,
    ) -> tuple[Float[Array, "B N D"], Main]:
        """Tokens of chunk and ref row, packed, and what the blocks read beside them."""
        c = self.config
        slots, runs = latents.shape[1], sharding.shares("N")
        patches = tokens.patchify(main_input(latents, conditions), c.patch_size)
        batch, _, h, w, _ = patches.shape
        still = conditions.still_tokens.reshape(batch, -1)
        still, taken = tokens.pack(still, c.still_bucket, runs)
        layout = tokens.Layout(runs, slots, h * w, still.shape[1] // runs)
        indices, valid = layout.order(still, taken)
        # The ref row stands at time 0, like the first video latent.
        times = np.append(np.arange(slots), np.zeros(c.num_ref))
        context = Main(
            rope=self._rope(indices, times, (h, w)),
            valid=valid,
            modulation=self._project_time(self.time(timestep)),
            still_embedding=self.still_embedding[0],
            text=constrain(self.text_embedding(conditions.text), "B", None, None),
            audio=self.audio_tokens(conditions),
            audio_positions=self.audio_positions[...],
            layout=layout,
        )
        return self._embed(patches, indices), context

    def embed_reference(
        self, conditions: Conditions
    ) -> tuple[Float[Array, "B M D"], Reference]:
        """Valid reference tokens, packed, and what the blocks read beside them."""
        c = self.config
        patches = tokens.patchify(reference_input(conditions), c.patch_size)
        batch, slots, h, w, _ = patches.shape
        valid = conditions.reference_tokens.reshape(batch, slots, h * w)
        runs, near, heard = sharding.shares("N"), None, None
        if c.reach is not None:
            room = -(-c.reference_bucket // c.num_videoref_latents)
            indices, valid, layout = tokens.pack_latents(valid, room, runs)
            near = Nearby(layout, c.reach)
        else:
            valid = valid.reshape(batch, slots * h * w)
            indices, valid = tokens.pack(valid, c.reference_bucket, runs)
            rows = jnp.arange(slots * c.audio_per_latent) // c.audio_per_latent
            heard = (indices // (h * w))[:, :, None] == rows[None, None]
        time = self.time(jnp.zeros(batch)) + self.time_embedding_videoref[...][None]
        context = Reference(
            rope=self._rope(indices, c.videoref_rope_offset + np.arange(slots), (h, w)),
            valid=valid,
            modulation=self._project_time(time),
            embedding=self.reference_embedding[0],
            text=constrain(self.text_embedding(conditions.null_text), "B", None, None),
            audio=self.reference_audio_tokens(conditions),
            audio_positions=jnp.tile(self.reference_audio_positions[...], (slots, 1)),
            near=near,
            audio_mask=heard,
        )
        return self._embed(patches, indices), context

    def patch(self, patches: Float[Array, "B *n p"]) -> Float[Array, "B *n D"]:
        """One 18-channel convolution with kernel = stride, as a dense layer."""
        return self.patch_embedding(patches).astype(jnp.float32)

    def time(self, timestep: Float[Array, " B"]) -> Float[Array, "B D"]:
        """e(t) = W2 silu(W1 f(t))."""
        features = timestep_features(timestep, self.config.freq_dim)
        hidden = constrain(self.time_in(features), "B", None)
        return constrain(self.time_out(jax.nn.silu(hidden)), "B", None)

    def audio_tokens(self, conditions: Conditions) -> Float[Array, "B a D"]:
        """Driving audio, the learned null where it is absent.

        A first frame has one row and every later latent four, so three nulls stand in
        front; a track whose length is already a multiple of four is taken as it is.
        """
        rows = conditions.audio
        null = self.null_audio[...][None]
        missing = -rows.shape[1] % self.config.audio_per_latent
        front = jnp.broadcast_to(null, (rows.shape[0], missing, rows.shape[2]))
        rows = jnp.concatenate([front.astype(rows.dtype), rows], axis=1)
        present = conditions.has_audio[:, None, None]
        rows = self.audio_embedding(jnp.where(present, rows, null))
        return constrain(rows, "B", None, None)

    def reference_audio_tokens(self, conditions: Conditions) -> Float[Array, "B Q D"]:
        """Reference audio, the learned null where it is absent."""
        present = conditions.has_reference_audio[:, None, None]
        null = self.null_reference_audio[...][None]
        rows = jnp.where(present, conditions.reference_audio, null)
        return constrain(self.reference_audio_embedding(rows), "B", None, None)

    def unembed(
        self,
        x: Float[Array, "B N D"],
        timestep: Float[Array, " B"],
        shape: tuple[int, ...],
        layout: tokens.Layout,
    ) -> Float[Array, "B T H W C"]:
        """Head: video tokens back to the latent grid."""
        _, py, px = self.config.patch_size
        batch, slots, rows, columns, _ = shape
        h, w = rows // py, columns // px
        patches = self.head_patches(layout.video_of(x), timestep)
        patches = layout.frames(patches)[:, :, : h * w]
        patches = patches.reshape(batch, slots, h, w, -1)
        return tokens.unpatchify(patches, self.config.patch_size)

    def head_patches(
        self, x: Float[Array, "B video D"], timestep: Float[Array, " B"]
    ) -> Float[Array, "B video p"]:
        """The head before unpatchify, p ordered (row, column, channel).

        It adds e(t) itself, not its projection.
        """
        rows = self.head_modulation[...][None] + self.time(timestep)[:, None]
        shift, scale = rows[:, :1], rows[:, 1:]
        return self.head(modulate(layer_norm(x, self.config.eps), shift, scale))

    def _embed(
        self, patches: Float[Array, "B T h w p"], indices: Int[Array, "B N"]
    ) -> Float[Array, "B N D"]:
        flat = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        x = self.patch(tokens.take(flat, constrain(indices, "B", "N")))
        return constrain(x, "B", "N", None)

    def _project_time(self, time: Float[Array, "B D"]) -> Float[Array, "B six D"]:
        rows = self.time_projection(jax.nn.silu(time))
        rows = constrain(rows, "B", None)
        return rows.reshape(time.shape[0], 6, -1)

    def _rope(self, indices: Array, times: np.ndarray, grid: tuple[int, int]) -> Rope:
        c = self.config
        h, w = grid
        place = (indices // (h * w), indices // w % h, indices % w)
        head = c.dim // c.num_heads
        return Rope(*rope.table(*place, head, times, grid, c.rope_spatial_stride))

    def _remat(self, layer):
        policy = REMAT[self.config.remat]
        if policy is None:
            return layer

        def named(x, slices):
            return layer(checkpoint_name(x, BLOCK_INPUT), slices)

        return jax.checkpoint(named, prevent_cse=False, policy=policy)


def main_input(
    latents: Float[Array, "B T H W C"], conditions: Conditions
) -> Float[Array, "B slots H W channels"]:
    """Chunk and ref row with their two mask channels (table of TAVR_SPEC 10.1)."""
    motion = conditions.motion
    continues = conditions.has_motion[:, None, None, None, None]
    head = jnp.where(continues, motion, latents[:, : motion.shape[1]])
    video = jnp.concatenate([head, latents[:, motion.shape[1] :]], axis=1)
    frame = jnp.zeros_like(video[..., :1])
    moves = frame.at[:, : motion.shape[1]].set(continues.astype(frame.dtype))
    video = jnp.concatenate([video, frame, moves], axis=-1)
    one = jnp.ones_like(conditions.still[..., :1])
    still = jnp.concatenate([conditions.still, one, jnp.zeros_like(one)], axis=-1)
    return jnp.concatenate([video, still], axis=1)


def reference_input(conditions: Conditions) -> Float[Array, "B R H W channels"]:
    """Reference latents: reference mask 1, motion mask 0."""
    one = jnp.ones_like(conditions.reference[..., :1])
    return jnp.concatenate([conditions.reference, one, jnp.zeros_like(one)], axis=-1)


def _rows(count: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs.params(), (count, width)))


def _stack(config: TransformerConfig, rngs: nnx.Rngs) -> Block:
    """All layers as one Block whose weights have a leading layer axis."""

    @nnx.split_rngs(splits=config.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return create(rngs)
