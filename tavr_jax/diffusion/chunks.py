"""Long video: chunks of T latents that overlap by P motion latents.

    (1) latents L = (frames - 1) // 4 + 1, chunks = ceil((L - T) / (T - P)) + 1, at
        least one; the canvas has L + tail latents
    (2) chunk i reads noise at canvas latents [i (T-P), i (T-P) + T), completed by extra
        noise where the canvas ends
    (3) chunk i hears audio rows [4 i (T-P), 4 i (T-P) + 4 (T-1) + 1), the last repeated
    (4) chunk i > 0 starts from the last P latents of chunk i-1, and its ref row is the
        first latent of chunk 0, all of it valid
    (5) chunk i > 0 writes all but its first P latents; canvas latents that no chunk
        reaches remain noise, and are cut off after decoding

Source: TAVR_SPEC 12.5.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tavr_jax.errors import InputError
from tavr_jax.types import Conditions

FRAMES_PER_LATENT = 4

# (noise of the chunk, its conditions) -> finished latents of the chunk
Denoise = Callable[[Array, Conditions], Array]


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
    key: Array, plan: Plan, shape: tuple[int, int, int, int]
) -> tuple[Float[Array, "B n H W C"], Float[Array, "B extra H W C"]]:
    """Standard normal canvas and the extra latents that complete the last chunk.

    `shape` is (B, H, W, C). `key` is consumed.
    """
    batch, rows, columns, channels = shape
    extra = max(0, plan.spans[-1].read + plan.size - plan.canvas)
    noise = jax.random.normal(
        key, (batch, plan.canvas + extra, rows, columns, channels)
    )
    return noise[:, : plan.canvas], noise[:, plan.canvas :]


def audio_window(
    track: Float[Array, "B n U"], index: int, size: int, motion: int
) -> Float[Array, "B A U"]:
    """(3)."""
    start = FRAMES_PER_LATENT * index * (size - motion)
    rows = start + jnp.arange(FRAMES_PER_LATENT * (size - 1) + 1)
    return track[:, jnp.minimum(rows, track.shape[1] - 1)]


def chunk_conditions(
    conditions: Conditions,
    track: Float[Array, "B n U"],
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
    track: Float[Array, "B n U"],
    noise: Float[Array, "B canvas H W C"],
    extra: Float[Array, "B extra H W C"],
    plan: Plan,
) -> Iterator[tuple[Span, Float[Array, "B T H W C"]]]:
    """Finished chunks, one after another, with the span each one writes."""
    everything = jnp.concatenate([noise, extra], axis=1)
    first = previous = None
    for index, span in enumerate(plan.spans):
        told = chunk_conditions(conditions, track, plan, index, first, previous)
        chunk = denoise(everything[:, span.read : span.read + plan.size], told)
        if index:
            chunk = jnp.concatenate([told.motion, chunk[:, plan.motion :]], axis=1)
        first = chunk if first is None else first
        previous = chunk
        yield span, chunk


def stitch(
    noise: Float[Array, "B canvas H W C"],
    finished: Iterator[tuple[Span, Float[Array, "B T H W C"]]],
) -> Float[Array, "B canvas H W C"]:
    """(5)."""
    canvas = noise
    for span, chunk in finished:
        piece = chunk[:, span.skip : span.skip + span.stop - span.start]
        canvas = canvas.at[:, span.start : span.stop].set(piece)
    return canvas
