"""DiffusionNFT: better and worse samples pull the velocity apart, without densities.

The old policy rolls out by the ODE. Its sample x0 is noised again, and the network is
asked at that level what it was asked when flow matching was trained. With v the
velocity of the policy, v_old of the old one, b = nft_beta, x0(u) = x - sigma u:

    (1) sigma = shifted(u), u uniform in [0, 1);  x = (1 - sigma) x0 + sigma e
    (2) v+ = b v + (1 - b) v_old,   v- = (1 + b) v_old - b v
    (3) r  = A / (2 limit) + 1/2, A in +- limit (advantages.py)
    (4) E+ = avg((x0(v+) - x0)^2) / avg(|x0(v+) - x0|), E- of v-; denominators detached
    (5) loss = limit (r E+ + (1 - r) E-) / b + kl_weight avg((v - v_ref)^2)

A good sample (r = 1) is learned as data; a bad one (r = 0) is learned by the mirror
image of the policy about the old one, which pushes the policy away from it. Where all
samples are alike (r = 1/2) both pulls cancel at v = v_old. Noise level and noise are
drawn anew for every member and update. Latents that were given are in x as they are,
and nothing is asked of them. kl_weight weighs a velocity here, not a density as in
grpo: it needs another value (the paper's is 1e-4).

The old policy is the average of the weights (optimizer.ema_decay, ema_ramp); where
there is none it is the policy at the start of the step.

Source: DiffusionNFT (2509.16117). The time shift of (1) is ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion import flow, sampler, schedule
from tavr_jax.rl.average import average
from tavr_jax.rl.rollout import (
    Algorithm,
    Answers,
    GroupVelocity,
    PolicyConfig,
    Rollout,
    Scored,
    Start,
)
from tavr_jax.types import Metrics

_ERROR_FLOOR = 1e-5  # of a denominator of (4)


class Question(NamedTuple):
    """A noised sample of every member."""

    x: Float[Array, "N T H W C"]
    sigma: Float[Array, " N"]
    clean: Float[Array, "N T H W C"]  # x0
    old: Float[Array, "N T H W C"]  # v_old
    reference: Float[Array, "N T H W C"] | None  # v_ref
    advantage: Float[Array, " N"]
    drawn: Bool[Array, "N T"]


def roll_out(
    velocity: GroupVelocity, start: Start, config: PolicyConfig, key: Array
) -> Rollout:
    """By the ODE, each member from noise of its own: nothing else tells them apart.

    `key` is consumed.
    """
    begun = start.filled(jax.random.normal(key, start.given.shape))
    drawn = start.drawn[:, :, None, None, None]

    def held(x: Array, timestep: Array, index: Array) -> Array:
        del index
        return jnp.where(drawn, velocity(x, timestep), 0.0)

    grid = schedule.euler(config.steps, config.shift)
    return Rollout(sampler.euler_sample(held, begun, grid), None)


def questions(
    scored: Scored,
    old: Answers,
    reference: Answers | None,
    config: PolicyConfig,
) -> Callable[[Array], Question]:
    """One network call per member and update, at levels of its own."""
    clean, drawn = scored.rolled.latents, scored.drawn

    def drawn_anew(key: Array) -> Question:
        level_key, noise_key = jax.random.split(key)
        u = jax.random.uniform(level_key, clean.shape[:1])
        sigma = flow.shifted(u, config.shift)
        noise = jax.random.normal(noise_key, clean.shape)
        noised = flow.noised(clean, noise, sigma)
        x = jnp.where(drawn[:, :, None, None, None], noised, clean)
        asked = (x[None], schedule.TRAIN_TIMESTEPS * sigma[None])
        question = Question(
            x,
            sigma,
            clean,
            old(*asked)[0],
            None if reference is None else reference(*asked)[0],
            scored.advantage,
            drawn,
        )
        return jax.tree.map(lambda leaf: leaf[None], question)

    return drawn_anew


def loss(
    velocity: GroupVelocity, question: Question, first: Array, config: PolicyConfig
) -> tuple[Float[Array, " N"], Metrics]:
    """(2)-(5)."""
    del first
    q, beta, limit = question, config.nft_beta, config.advantage_clip
    v = velocity(q.x, schedule.TRAIN_TIMESTEPS * q.sigma)
    good = _error(q, beta * v + (1.0 - beta) * q.old)
    bad = _error(q, (1.0 + beta) * q.old - beta * v)
    better = q.advantage / (2.0 * limit) + 0.5
    losses = limit * (better * good + (1.0 - better) * bad) / beta
    metrics = {
        "better": better,
        "old_gap": average(jnp.square(v - q.old), q.drawn),
    }
    if q.reference is not None:
        kl = average(jnp.square(v - q.reference), q.drawn)
        losses = losses + config.kl_weight * kl
        metrics["kl"] = kl
    return losses, metrics


def _error(question: Question, velocity: Array) -> Float[Array, " N"]:
    """(4) of one velocity."""
    level = question.sigma[:, None, None, None, None]
    off = flow.denoised(question.x, velocity, level) - question.clean
    scale = average(jnp.abs(jax.lax.stop_gradient(off)), question.drawn)
    squares = average(jnp.square(off), question.drawn)
    return squares / jnp.maximum(scale, _ERROR_FLOOR)


NFT = Algorithm(averaged=True, roll_out=roll_out, questions=questions, loss=loss)
