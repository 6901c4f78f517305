"""Three-way guidance and the reference switch.

    c = v(caption, audio, reference audio)
    (1) v = c + (audio_scale - 1) (c - v(caption, no audio, no reference audio))
              + (text_scale - 1) (c - v(negative, audio, reference audio))

A scale of 1 drops its branch. Reference latents and the reference's empty caption are
the same in all three, so two prefills serve all branches, steps and chunks of a video.

The branches are called one by one, or as neighbouring rows of one batch, where a mesh
splits the batch: then each device has some of the branches, with the cache of each.
Source: TAVR_SPEC 12.3, 12.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tavr_jax.parallel.sharding import constrain
from tavr_jax.types import Conditions, PyTree

# (latents, timestep) -> velocity
Velocity = Callable[[Array, Array], Array]


class Network(NamedTuple):
    """What a sampler needs of a network: two functions of arrays."""

    prefill: Callable[[Conditions], Any]
    velocity: Callable[[Array, Array, Conditions, Any], Array]


class Scales(NamedTuple):
    """Of (1)."""

    text: float
    audio: float


class Caches(NamedTuple):
    """The reference as branches see it that are called one by one."""

    full: Any
    mute: Any  # without its audio; None where no branch reads it


def guided(
    network: Network,
    conditions: Conditions,
    negative_text: Float[Array, "B L E"],
    text_scale: float,
    audio_scale: float,
) -> Velocity:
    """(1), one by one, its references prefilled once."""
    scales = Scales(text_scale, audio_scale)
    caches = prefill_one_by_one(network, conditions, scales)
    return one_by_one(network, conditions, negative_text, scales, caches)


def prefill_one_by_one(
    network: Network, conditions: Conditions, scales: Scales
) -> Caches:
    """What `one_by_one` reads."""
    full = network.prefill(conditions)
    if scales.audio == 1:
        return Caches(full, None)
    return Caches(full, network.prefill(without_audio(conditions)))


def one_by_one(
    network: Network,
    conditions: Conditions,
    negative_text: Float[Array, "B L E"],
    scales: Scales,
    caches: Caches,
) -> Velocity:
    """(1), a call for each branch."""
    mute = without_audio(conditions)
    negative = conditions._replace(text=negative_text)

    def velocity(latents: Array, timestep: Array) -> Array:
        c = network.velocity(latents, timestep, conditions, caches.full)
        v = c
        if scales.audio != 1:
            other = network.velocity(latents, timestep, mute, caches.mute)
            v = v + (scales.audio - 1) * (c - other)
        if scales.text != 1:
            other = network.velocity(latents, timestep, negative, caches.full)
            v = v + (scales.text - 1) * (c - other)
        return v

    return velocity


def prefill_batched(network: Network, conditions: Conditions, scales: Scales) -> Any:
    """What `batched` reads: a row for every branch of every sample."""
    text = conditions.text  # no reference reads it
    return network.prefill(_branches(conditions, text, scales))


def batched(
    network: Network,
    conditions: Conditions,
    negative_text: Float[Array, "B L E"],
    scales: Scales,
    cache: Any,
) -> Velocity:
    """(1), one call for all branches."""
    rows = _branches(conditions, negative_text, scales)
    count = rows.has_audio.shape[0] // conditions.has_audio.shape[0]

    def velocity(latents: Array, timestep: Array) -> Array:
        x, t = (jnp.repeat(one, count, axis=0) for one in (latents, timestep))
        found = network.velocity(x, t, rows, cache)
        c, *others = found.reshape(-1, count, *found.shape[1:]).swapaxes(0, 1)
        v = c
        if scales.audio != 1:
            v = v + (scales.audio - 1) * (c - others.pop(0))
        if scales.text != 1:
            v = v + (scales.text - 1) * (c - others.pop(0))
        return v

    return velocity


def in_shares(network: Network, shares: int) -> Network:
    """`network`, called with rows that `shares` parts of a mesh divide.

    Where samples do not, some come again: devices that would wait compute copies.
    """

    def filled(tree: PyTree) -> PyTree:
        rows = jax.tree.leaves(tree)[0].shape[0]
        if rows % shares:
            places = np.arange(rows + -rows % shares) % rows
            tree = jax.tree.map(lambda x: x[places], tree)
        return jax.tree.map(lambda x: constrain(x, "B"), tree)

    def velocity(latents: Array, timestep: Array, conditions: Conditions, cache: Any):
        asked = filled((latents, timestep, conditions))
        return network.velocity(*asked, cache)[: latents.shape[0]]

    if shares == 1:
        return network
    return Network(lambda conditions: network.prefill(filled(conditions)), velocity)


def switched(
    hidden: Velocity, shown: Velocity, start: int
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


def _branches(
    conditions: Conditions, negative_text: Float[Array, "B L E"], scales: Scales
) -> Conditions:
    """Those of (1) in its order, the branches of a sample next to each other."""
    branches = [conditions]
    if scales.audio != 1:
        branches.append(without_audio(conditions))
    if scales.text != 1:
        branches.append(conditions._replace(text=negative_text))

    def rows(*leaves: Array) -> Array:
        leaf = jnp.stack(leaves, axis=1)
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree.map(rows, *branches)
