"""Long video: chunks of T latents that overlap by P motion latents.

    (1) latents L = (frames - 1) // 4 + 1, chunks = ceil((L - T) / (T - P)) + 1, at
        least one; the canvas has L + tail latents
    (2) chunk i reads noise at canvas latents [i (T-P), i (T-P) + T), which may reach
        beyond the canvas
    (3) chunk i hears audio rows [4 i (T-P), 4 i (T-P) + 4 (T-1) + 1), the last repeated
    (4) chunk i > 0 starts from the last P latents of chunk i-1, and its ref row is the
        first latent of chunk 0, all of it valid
    (5) chunk i > 0 writes all but its first P latents; canvas latents that no chunk
        reaches remain noise, and are cut off after decoding

No chunk writes what another has written, so latents can be decoded as they finish, and
noise has a key of its own for every latent: nothing here grows with the video.
Source: TAVR_SPEC 12.5.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy import ndarray

from tavr_jax.errors import InputError
from tavr_jax.types import Conditions

FRAMES_PER_LATENT = 4

# (noise of the chunk, its conditions) -> finished latents of the chunk
Denoise = Callable[[Array, Conditions], Array]
# first canvas latent of a chunk -> its noise, "B T H W C"
Noise = Callable[[int], Array]
# index of a chunk -> its latents, where an earlier run has finished it
Finished = Callable[[int], Array | None]


class Span(NamedTuple):
    """Where one chunk stands on the canvas, in latents."""

    read: int  # first latent of its noise
    skip: int  # latents at its head that are not written
    start: int  # first latent it writes
    stop: int  # one past the last


class Plan(NamedTuple):
    """The whole video, in latents."""

    frames: int
    latents: int  # L
    canvas: int  # L + tail
    size: int  # T
    motion: int  # P
    spans: tuple[Span, ...]


def plan(frames: int, size: int, motion: int, tail: int) -> Plan:
    """(1), (2), (5). InputError when the video has fewer than two latents."""
    latents = (frames - 1) // FRAMES_PER_LATENT + 1
    stride = size - motion
    count = -((size - latents) // stride) + 1
    if count < 1:
        raise InputError(
            f"num_frames: {frames} frames are {latents} latents, too few for a chunk; "
            "give longer speech"
        )
    canvas = latents + tail
    spans = tuple(
        Span(
            i * stride,
            motion if i else 0,
            i * stride + (motion if i else 0),
            min(i * stride + size, canvas),
        )
        for i in range(count)
    )
    return Plan(frames, latents, canvas, size, motion, spans)


def draw_noise(
    key: Array, start: int, size: int, shape: tuple[int, int, int, int]
) -> Float[Array, "B T H W C"]:
    """Standard normal canvas latents [start, start + size); `shape` is (B, H, W, C).

    A latent has the same noise whatever is drawn beside it. `key` is consumed.
    """

    def draw(index: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), shape)

    return jax.vmap(draw, out_axes=1)(start + jnp.arange(size))


def audio_window(
    track: Float[ndarray, "B n U"], index: int, size: int, motion: int
) -> Float[Array, "B A U"]:
    """(3). The track stays on the host: only a window of it is needed at a time."""
    start = FRAMES_PER_LATENT * index * (size - motion)
    rows = start + np.arange(FRAMES_PER_LATENT * (size - 1) + 1)
    return jnp.asarray(track[:, np.minimum(rows, track.shape[1] - 1)], jnp.float32)


def chunk_conditions(
    conditions: Conditions,
    track: Float[ndarray, "B n U"],
    plan: Plan,
    index: int,
    first: Float[Array, "B T H W C"] | None,
    previous: Float[Array, "B T H W C"] | None,
) -> Conditions:
    """(3) and (4): `conditions` are those of chunk 0, but for the audio."""
    audio = audio_window(track, index, plan.size, plan.motion)
    if index == 0:
        none = jnp.zeros_like(conditions.has_motion)
        return conditions._replace(audio=audio, has_motion=none)
    return conditions._replace(
        audio=audio,
        still=first[:, :1],
        still_tokens=jnp.ones_like(conditions.still_tokens),
        motion=previous[:, plan.size - plan.motion :],
        has_motion=jnp.ones_like(conditions.has_motion),
    )


def generate(
    denoise: Denoise,
    conditions: Conditions,
    track: Float[ndarray, "B n U"],
    noise: Noise,
    plan: Plan,
    finished: Finished = lambda index: None,
) -> Iterator[tuple[Span, Float[Array, "B T H W C"]]]:
    """All chunks, one after another, with the span each one writes."""
    first = previous = None
    for index, span in enumerate(plan.spans):
        chunk = finished(index)
        if chunk is None:
            told = chunk_conditions(conditions, track, plan, index, first, previous)
            chunk = denoise(noise(span.read), told)
            if index:
                chunk = jnp.concatenate([told.motion, chunk[:, plan.motion :]], axis=1)
        first = chunk if first is None else first
        previous = chunk
        yield span, chunk


def in_order(
    chunks: Iterator[tuple[Span, Float[Array, "B T H W C"]]], plan: Plan
) -> Iterator[Float[Array, "B n H W C"]]:
    """What each chunk writes, by (5), up to the last latent of the video."""
    for span, chunk in chunks:
        stop = min(span.stop, plan.latents)
        yield chunk[:, span.skip : span.skip + stop - span.start]
