"""Stages 1 and 2 (flow matching), and the step of every stage with a plain loss.

    (1) sigma = shifted(u), u uniform in [0, 1), or logit-normal:
        ln(u / (1 - u)) normal with density_mean and density_std
    (2) x = (1 - sigma) x0 + sigma e
    (3) loss = mean over samples of the mean, weighted by regions.py, over target
        elements of (v(x, 1000 sigma) - (e - x0))^2

Target elements are the video latents, but for the first P of a continuation: those are
given, so their velocity means nothing. When a long video is made they are the end of a
chunk that was generated, with its errors; so that training has met such a beginning,

    (4) the motion latents m of a continuation become (1 - s) m + s e', s uniform in
        [0, motion_noise], e' normal, one s a sample; the network is not told s

The network replaces x by (4) at those places itself, as in sampling. Conditions are
dropped per sample, and independently of each other, to the state in which guidance will
query them:

    (5) audio -> learned nulls, driving and reference audio together
    (6) caption -> empty caption
    (7) reference -> no valid token, zero latents, no reference audio
    (8) still -> no valid token, zero latents: nothing is known of the scene

(8) is ours: the released inference always has a still, so it has no "off" of its own,
and what it does with a reference is done. All shares, levels, weights and the
logit-normal density (Esser et al. 2024, arXiv 2403.03206) are our recipe; the official
training is not published.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tavr_jax.diffusion import flow
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.training import regions
from tavr_jax.training.accumulate import value_and_grad
from tavr_jax.training.optimizer import OptimizerConfig, apply_update
from tavr_jax.training.state import Draw, Loss, Step, TrainState, carried
from tavr_jax.types import Batch, Conditions, Metrics, PyTree

DENSITIES = ("uniform", "logit_normal")
SHARES = ("drop_audio", "drop_text", "drop_reference", "drop_still")
POSITIVE = ("shift", "num_train_timesteps", "density_std", "face_weight", "lips_weight")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Section `flow`; meanings and values are in configs/base.py."""

    shift: float
    num_train_timesteps: int
    density: str
    density_mean: float
    density_std: float
    face_weight: float
    lips_weight: float
    motion_noise: float
    drop_audio: float
    drop_text: float
    drop_reference: float
    drop_still: float

    def __post_init__(self):
        """InputError: a field has no meaning."""
        if self.density not in DENSITIES:
            raise InputError(
                f"flow.density: {self.density!r}: expected {' | '.join(DENSITIES)}"
            )
        for name in ("motion_noise", *SHARES):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"flow.{name}: {getattr(self, name)}: expected 0 to 1")
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise InputError(
                    f"flow.{name}: {getattr(self, name)}: expected more than 0"
                )


class Example(NamedTuple):
    """A batch with everything random decided."""

    clean: Float[Array, "B T H W C"]  # x0
    noise: Float[Array, "B T H W C"]  # e
    sigma: Float[Array, " B"]
    conditions: Conditions  # after (4)-(8)
    face_box: Float[Array, "B F 4"]
    clip: Int[Array, " B"]


def make_step(draw: Draw, loss: Loss, config: OptimizerConfig) -> Step:
    """One gradient of `loss`, in `optimizer.accumulate` parts, and one update."""

    def step(draw: Draw, loss: Loss, state: TrainState, batch: PyTree, key: Array):
        example = draw(batch, key)
        gradient = value_and_grad(loss, config.accumulate)
        (value, metrics), grads = gradient(state.params, example)
        state, applied = apply_update(state, value, grads, config)
        metrics = {"loss": value, **metrics, **applied}
        return state._replace(step=state.step + 1), metrics

    return jax.tree_util.Partial(step, carried(draw), carried(loss))


def flow_draw(config: FlowConfig) -> Draw:
    """(1) and (4)-(8); `Batch` -> `Example`."""

    def draw(batch: Batch, key: Array) -> Example:
        time_key, noise_key, motion_key, drop_key = jax.random.split(key, 4)
        clean = batch.latents
        noised = noise_motion(batch.conditions, config, motion_key)
        return Example(
            clean=clean,
            noise=jax.random.normal(noise_key, clean.shape),
            sigma=noise_levels(config, clean.shape[0], time_key),
            conditions=drop_conditions(noised, config, drop_key),
            face_box=batch.face_box,
            clip=batch.clip,
        )

    return draw


def flow_loss(network: Callable[[PyTree], Network], config: FlowConfig) -> Loss:
    """(2), (3) of an `Example`, for a network that is a function of its parameters."""

    def loss(
        network: Callable[[PyTree], Network], params: PyTree, example: Example
    ) -> tuple[Array, Metrics]:
        clean, noise, sigma, conditions, boxes, clip = example
        net = network(params)
        velocity = net.velocity(
            flow.noised(clean, noise, sigma),
            sigma * config.num_train_timesteps,
            conditions,
            net.prefill(conditions),
        )
        weight = regions.weights(
            boxes,
            target_latents(conditions, clean.shape[1]),
            clean.shape[2:4],
            config.face_weight,
            config.lips_weight,
        )
        squares = jnp.square(velocity - flow.velocity_target(clean, noise))
        errors = regions.weighted_mean(squares, weight)
        return errors.mean(), {"clip_loss": errors, "clip": clip}

    return jax.tree_util.Partial(loss, carried(network))


def noise_levels(config: FlowConfig, samples: int, key: Array) -> Float[Array, " B"]:
    """(1)."""
    if config.density == "uniform":
        u = jax.random.uniform(key, (samples,))
    else:
        normal = jax.random.normal(key, (samples,))
        u = jax.nn.sigmoid(config.density_mean + config.density_std * normal)
    return flow.shifted(u, config.shift)


def noise_motion(conditions: Conditions, config: FlowConfig, key: Array) -> Conditions:
    """(4)."""
    level_key, noise_key = jax.random.split(key)
    clean = conditions.motion
    level = config.motion_noise * jax.random.uniform(level_key, clean.shape[:1])
    level = jnp.where(conditions.has_motion, level, 0.0)
    noise = jax.random.normal(noise_key, clean.shape)
    return conditions._replace(motion=flow.noised(clean, noise, level))


def drop_conditions(
    conditions: Conditions, config: FlowConfig, key: Array
) -> Conditions:
    """(5)-(8), each with its own coin per sample."""
    shares = (
        config.drop_audio,
        config.drop_text,
        config.drop_reference,
        config.drop_still,
    )
    c = conditions
    coins = jax.random.uniform(key, (len(shares), *c.has_audio.shape))
    audio, text, reference, still = coins < jnp.array(shares)[:, None]
    return c._replace(
        has_audio=c.has_audio & ~audio,
        has_reference_audio=c.has_reference_audio & ~audio & ~reference,
        text=jnp.where(text[:, None, None], c.null_text, c.text),
        reference=jnp.where(reference[:, None, None, None, None], 0.0, c.reference),
        reference_tokens=c.reference_tokens & ~reference[:, None, None, None],
        still=jnp.where(still[:, None, None, None, None], 0.0, c.still),
        still_tokens=c.still_tokens & ~still[:, None, None],
    )


def target_latents(conditions: Conditions, latents: int) -> Bool[Array, "B T"]:
    """False for the motion latents of a continuation: they are not predicted."""
    given = jnp.arange(latents)[None] < conditions.motion.shape[1]
    return ~(given & conditions.has_motion[:, None])
