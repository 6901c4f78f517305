"""Three-way guidance and the reference switch.

    c = v(caption, audio, reference audio)
    (1) v = c + (audio_scale - 1) (c - v(caption, no audio, no reference audio))
              + (text_scale - 1) (c - v(negative, audio, reference audio))

A scale of 1 drops its branch. Reference latents and the reference's empty caption are
the same in all three, so two prefills serve all branches and all steps.
Source: TAVR_SPEC 12.3, 12.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tavr_jax.types import Conditions


class Network(NamedTuple):
    """What a sampler needs of a network: two functions of arrays."""

    prefill: Callable[[Conditions], Any]
    velocity: Callable[[Array, Array, Conditions, Any], Array]


def guided(
    network: Network,
    conditions: Conditions,
    negative_text: Float[Array, "B L E"],
    text_scale: float,
    audio_scale: float,
) -> Callable[[Array, Array], Array]:
    """(1) as a function of (latents, timestep), its references prefilled once."""
    full = network.prefill(conditions)
    mute = without_audio(conditions)
    mute_cache = network.prefill(mute) if audio_scale != 1 else None
    negative = conditions._replace(text=negative_text)

    def velocity(latents: Array, timestep: Array) -> Array:
        c = network.velocity(latents, timestep, conditions, full)
        v = c
        if audio_scale != 1:
            other = network.velocity(latents, timestep, mute, mute_cache)
            v = v + (audio_scale - 1) * (c - other)
        if text_scale != 1:
            other = network.velocity(latents, timestep, negative, full)
            v = v + (text_scale - 1) * (c - other)
        return v

    return velocity


def switched(
    hidden: Callable[[Array, Array], Array],
    shown: Callable[[Array, Array], Array],
    start: int,
) -> Callable[[Array, Array, Array], Array]:
    """Reference hidden before step `start`, always where `start` < 0."""
    if start == 0:
        return lambda x, t, step: shown(x, t)
    if start < 0:
        return lambda x, t, step: hidden(x, t)
    return lambda x, t, step: jax.lax.cond(step < start, hidden, shown, x, t)


def without_audio(conditions: Conditions) -> Conditions:
    """Both learned nulls in place of the two tracks."""
    off = jnp.zeros_like(conditions.has_audio)
    return conditions._replace(has_audio=off, has_reference_audio=off)


def without_reference(conditions: Conditions) -> Conditions:
    """No valid reference token, zero latents, null reference audio."""
    return conditions._replace(
        reference=jnp.zeros_like(conditions.reference),
        reference_tokens=jnp.zeros_like(conditions.reference_tokens),
        has_reference_audio=jnp.zeros_like(conditions.has_reference_audio),
    )
