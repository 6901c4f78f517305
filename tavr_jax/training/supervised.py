"""Stages 1 and 2 (flow matching), and the step of every stage with a plain loss.

    (1) sigma = shifted(u), u uniform in [0, 1);  x = (1 - sigma) x0 + sigma e
    (2) loss = mean over samples and target elements of (v(x, 1000 sigma) - (e - x0))^2

Target elements are the video latents, but for the first P of a continuation: those are
given clean, so their velocity means nothing. Conditions are dropped per sample, and
independently of each other, to the state in which guidance will query them:

    (3) audio -> learned nulls, driving and reference audio together
    (4) caption -> empty caption
    (5) reference -> no valid token, zero latents, no reference audio

Shares of (3)-(5) are our recipe; the official training is not published.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion import flow
from tavr_jax.diffusion.guidance import Network
from tavr_jax.training.optimizer import OptimizerConfig, apply_update
from tavr_jax.training.state import Loss, Step, TrainState
from tavr_jax.types import Batch, Conditions, Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Section `flow`; meanings and values are in configs/base.py."""

    shift: float
    num_train_timesteps: int
    drop_audio: float
    drop_text: float
    drop_reference: float


def make_step(loss: Loss, config: OptimizerConfig) -> Step:
    """One gradient of `loss`, one update."""

    def step(state: TrainState, batch: PyTree, key: Array):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), grads = gradient(state.params, batch, key)
        state, applied = apply_update(state, value, grads, config)
        metrics = {"loss": value, **metrics, **applied}
        return state._replace(step=state.step + 1), metrics

    return step


def flow_loss(network: Callable[[PyTree], Network], config: FlowConfig) -> Loss:
    """(1)-(5) for a network that is a function of its parameters."""

    def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        clean = batch.latents
        u = jax.random.uniform(time_key, clean.shape[:1])
        sigma = flow.shifted(u, config.shift)
        noise = jax.random.normal(noise_key, clean.shape)
        conditions = drop_conditions(batch.conditions, config, drop_key)

        net = network(params)
        cache = net.prefill(conditions)
        velocity = net.velocity(
            flow.noised(clean, noise, sigma),
            sigma * config.num_train_timesteps,
            conditions,
            cache,
        )
        target = flow.velocity_target(clean, noise)
        errors = masked_mean(
            jnp.square(velocity - target), target_latents(conditions, clean.shape[1])
        )
        return errors.mean(), {"clip_loss": errors, "clip": batch.clip}

    return loss


def drop_conditions(
    conditions: Conditions, config: FlowConfig, key: Array
) -> Conditions:
    """(3)-(5), each with its own coin per sample."""
    samples = conditions.has_audio.shape
    audio_key, text_key, reference_key = jax.random.split(key, 3)
    audio = jax.random.bernoulli(audio_key, config.drop_audio, samples)
    text = jax.random.bernoulli(text_key, config.drop_text, samples)
    reference = jax.random.bernoulli(reference_key, config.drop_reference, samples)
    c = conditions
    return c._replace(
        has_audio=c.has_audio & ~audio,
        has_reference_audio=c.has_reference_audio & ~audio & ~reference,
        text=jnp.where(text[:, None, None], c.null_text, c.text),
        reference=jnp.where(reference[:, None, None, None, None], 0.0, c.reference),
        reference_tokens=c.reference_tokens & ~reference[:, None, None, None],
    )


def target_latents(conditions: Conditions, latents: int) -> Bool[Array, "B T"]:
    """False for the motion latents of a continuation: they are not predicted."""
    given = jnp.arange(latents)[None] < conditions.motion.shape[1]
    return ~(given & conditions.has_motion[:, None])


def masked_mean(
    values: Float[Array, "B T H W C"], mask: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """Mean of each sample over the latents that `mask` keeps."""
    kept = mask.astype(values.dtype)
    return (values.mean((2, 3, 4)) * kept).sum(1) / kept.sum(1)
