"""From conditions to a whole talking video: chunks, guidance, sampler, decoder.

    (1) frames = 4 ceil((rows - 1) / 4) + 1: whole latents that cover the speech; what
        exceeds it is cut off after decoding
    (2) byte = trunc(((x + 1) / 2) 255) in float16, x in [-1, 1]      [TAVR_SPEC 13]

Latents after the last frame are noise on the canvas (`diffusion/chunks.py`). The
decoder is causal, so they are not decoded at all: the frames are the same. For the same
reason a chunk is decoded as soon as it is finished.
"""

import dataclasses
from collections.abc import Callable, Iterator
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
from tavr_jax.encoders.vae_stream import decode_stream
from tavr_jax.errors import InputError
from tavr_jax.evaluation.unfinished import Unfinished
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


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Section `output`; meanings and values are in configs/base.py."""

    crf: int
    decode_dtype: str
    decode_latents: int
    exact_release: bool

    def __post_init__(self):
        if self.decode_latents < 1:
            raise InputError(
                f"output.decode_latents: {self.decode_latents}: give at least 1"
            )
        if self.decode_dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(
                f"output.decode_dtype: {self.decode_dtype}: give float32, bfloat16 or "
                "float16"
            )


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


def pieces(
    sample: Sampler,
    weights: PyTree,
    request: Request,
    plan: chunks.Plan,
    key: Array,
    kept: Unfinished | None = None,
) -> Iterator[Float[Array, "1 n H W C"]]:
    """The latents of the video in order, handed on as chunks finish.

    `kept` takes every finished chunk, and gives those of an earlier run. `key` is
    consumed.
    """
    _, height, width, channels = request.still.shape
    conditions = first_conditions(request, plan.motion)
    negative = jnp.asarray(request.negative_text, jnp.float32)[None]

    def noise(start: int) -> Array:
        shape = (1, height, width, channels)
        return chunks.draw_noise(key, start, plan.size, shape)

    def denoise(noise: Array, conditions: Conditions) -> Array:
        chunk = sample(weights, noise, conditions, negative)
        # by way of the host: placed on the weights' devices, what the next chunk is
        # told would have its program compiled a second time
        return jnp.asarray(np.asarray(chunk))

    track = request.audio[None]
    load = (lambda index: None) if kept is None else kept.load
    finished = chunks.generate(denoise, conditions, track, noise, plan, load)

    def saved() -> Iterator:
        for index, (span, chunk) in enumerate(finished):
            if kept is not None:
                kept.save(index, chunk)
            yield span, chunk

    yield from chunks.in_order(saved(), plan)


def latents(
    sample: Sampler,
    weights: PyTree,
    request: Request,
    plan: chunks.Plan,
    key: Array,
) -> Float[Array, "1 T H W C"]:
    """All latents of the video at once, T = plan.latents. `key` is consumed."""
    found = pieces(sample, weights, request, plan, key)
    return jnp.concatenate(list(found), axis=1)


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


def frames(
    codec: Codec,
    pieces: Iterator[Float[Array, "1 n H W C"]],
    count: int,
    config: OutputConfig,
) -> Iterator[UInt8[ndarray, "F Y X 3"]]:
    """The first `count` pictures of latents, as they come: of 4T - 3. Memory does not
    grow with the video."""
    dtype = jnp.dtype(config.decode_dtype)
    blocks = decode_stream(codec, pieces, step=config.decode_latents, dtype=dtype)
    left = count
    for block in blocks:
        kept = np.asarray(block[0, :left])
        left -= len(kept)
        if len(kept):
            yield to_pixels(kept)


def decode(
    codec: Codec, latents: Float[Array, "1 T H W C"], count: int, config: OutputConfig
) -> UInt8[ndarray, "F Y X 3"]:
    """`frames` of a short video, all at once."""
    return np.concatenate(list(frames(codec, iter([latents]), count, config)))


def to_pixels(frames: Float[ndarray, "F Y X 3"]) -> UInt8[ndarray, "F Y X 3"]:
    """(2)."""
    half = np.clip(frames, -1, 1).astype(np.float16)
    return ((half + np.float16(1)) * np.float16(0.5) * np.float16(255)).astype(np.uint8)


def _guided(network, conditions, negative_text, config: SamplerConfig):
    return guided(
        network, conditions, negative_text, config.text_scale, config.audio_scale
    )


def _batched(leaf) -> Array:
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf if leaf.dtype == bool else leaf.astype(np.float32))[None]
