"""From conditions to a whole talking video: chunks, guidance, sampler, decoder.

    (1) frames = 4 ceil((rows - 1) / 4) + 1: whole latents that cover the speech; what
        exceeds it is cut off after decoding
    (2) byte = trunc(((x + 1) / 2) 255) in float16, x in [-1, 1]      [TAVR_SPEC 13]

Latents after the last frame are noise on the canvas (`diffusion/chunks.py`). The
decoder is causal, so they are not decoded at all: the frames are the same.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from numpy import ndarray

from tavr_jax.diffusion import chunks
from tavr_jax.diffusion.guidance import Network, guided, switched, without_reference
from tavr_jax.diffusion.sampler import unipc_sample
from tavr_jax.diffusion.schedule import unipc
from tavr_jax.encoders.vae import Codec
from tavr_jax.errors import InputError
from tavr_jax.types import Conditions, PyTree

# (weights, noise of a chunk, its conditions, negative text) -> its latents
Sampler = Callable[[PyTree, Array, Conditions, Array], Array]


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Section `sampler`; meanings and values are in configs/base.py."""

    steps: int
    shift: float
    text_scale: float
    audio_scale: float
    start_use_videoref_step: int
    round_bf16: bool

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"sampler.steps: {self.steps}: give at least 1")
        if self.shift <= 0:
            raise InputError(f"sampler.shift: {self.shift}: give more than 0")


class Request(NamedTuple):
    """What one video is made from, without a batch axis."""

    still: Float[ndarray, "1 H W C"]
    still_tokens: Bool[ndarray, "h w"]
    reference: Float[ndarray, "R H W C"]
    reference_tokens: Bool[ndarray, "R h w"]
    reference_audio: Float[ndarray, "Q V"] | None  # None: the reference is silent
    text: Float[ndarray, "L E"]
    null_text: Float[ndarray, "L E"]
    negative_text: Float[ndarray, "L E"]
    audio: Float[ndarray, "rows U"]  # the whole speech, a row a frame


def num_frames(rows: int) -> int:
    """(1)."""
    return 4 * -(-(rows - 1) // 4) + 1


def sampler(
    graph: nnx.GraphDef, config: SamplerConfig, on_step: Callable[[], None]
) -> Sampler:
    """The compiled sampler of a transformer's graph; weights are an argument.

    `on_step` is called from the device after every step, to count.
    """
    schedule = unipc(config.steps, config.shift)

    @jax.jit
    def sample(weights, noise, conditions, negative_text):
        model = nnx.merge(graph, weights)
        network = Network(model.prefill, model)
        velocity = switched(
            _guided(network, without_reference(conditions), negative_text, config),
            _guided(network, conditions, negative_text, config),
            config.start_use_videoref_step,
        )

        def counted(x, timestep, step):
            jax.debug.callback(on_step)
            return velocity(x, timestep, step)

        return unipc_sample(counted, noise, schedule, config.round_bf16)

    return sample


def latents(
    sample: Sampler,
    weights: PyTree,
    request: Request,
    plan: chunks.Plan,
    key: Array,
) -> Float[Array, "1 T H W C"]:
    """All latents of the video, T = plan.latents. `key` is consumed."""
    _, height, width, channels = request.still.shape
    noise, extra = chunks.draw_noise(key, plan, (1, height, width, channels))
    conditions = first_conditions(request, plan.motion)
    negative = jnp.asarray(request.negative_text, jnp.float32)[None]

    def denoise(noise: Array, conditions: Conditions) -> Array:
        return sample(weights, noise, conditions, negative)

    track = jnp.asarray(request.audio, jnp.float32)[None]
    finished = chunks.generate(denoise, conditions, track, noise, extra, plan)
    return chunks.stitch(noise, finished)[:, : plan.latents]


def first_conditions(request: Request, motion: int) -> Conditions:
    """Conditions of the first chunk, B = 1; its audio is cut from the track later."""
    hears = request.reference_audio is not None
    rows, width = 4 * request.reference.shape[0], request.audio.shape[1]
    spoken = request.reference_audio if hears else np.zeros((rows, width))
    shown = request.still.repeat(motion, axis=0)
    one = Conditions(
        still=request.still,
        still_tokens=request.still_tokens,
        motion=np.zeros_like(shown),
        has_motion=np.bool_(False),
        reference=request.reference,
        reference_tokens=request.reference_tokens,
        text=request.text,
        null_text=request.null_text,
        audio=request.audio,
        has_audio=np.bool_(True),
        reference_audio=spoken,
        has_reference_audio=np.bool_(hears),
    )
    return jax.tree.map(_batched, one)


def decode(
    codec: Codec, latents: Float[Array, "1 T H W C"], frames: int
) -> UInt8[ndarray, "F Y X 3"]:
    """Pictures of finished latents, the first `frames` of 4T - 3."""
    graph, weights = nnx.split(codec)
    return to_pixels(np.asarray(_decode(graph, weights, latents)[0]))[:frames]


def to_pixels(frames: Float[ndarray, "F Y X 3"]) -> UInt8[ndarray, "F Y X 3"]:
    """(2)."""
    half = np.clip(frames, -1, 1).astype(np.float16)
    return ((half + np.float16(1)) * np.float16(0.5) * np.float16(255)).astype(np.uint8)


@partial(jax.jit, static_argnums=0)
def _decode(graph: nnx.GraphDef, weights: PyTree, latents: Array) -> Array:
    return nnx.merge(graph, weights).decode(latents)


def _guided(network, conditions, negative_text, config: SamplerConfig):
    return guided(
        network, conditions, negative_text, config.text_scale, config.audio_scale
    )


def _batched(leaf) -> Array:
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf if leaf.dtype == bool else leaf.astype(np.float32))[None]
