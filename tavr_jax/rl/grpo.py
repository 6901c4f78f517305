"""GRPO: the policy gradient of stochastic steps, with clipped ratios.

The members of a group start from one noise, and most of their steps are the Euler ODE;
`stochastic_steps` of them, drawn from the first `window` share of the schedule, are a
stochastic step of sde.py. With one such step, everything in which two members differ
was decided there, and its reward is credited there.

    (1) ratio = exp(log ratio), sde.py (6)
    (2) loss  = max(-A ratio, -A clip(ratio, 1 - c, 1 + c)) + kl_weight KL, sde.py (5)

In the first update after a rollout the ratio is exactly 1 and the gradient is that of
plain policy gradient: what the log ratio is off by there is how differently the same
network computed the same step twice (rounding), and `rollout_gap` reports it.

Sources: Flow-GRPO (2505.05470), MixGRPO (2507.21802) for the window. TAVR does not
publish its algorithm; which pieces are joined here, and their numbers, are ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tavr_jax.diffusion import schedule
from tavr_jax.rl import sde
from tavr_jax.rl.rollout import (
    Algorithm,
    Answers,
    GroupVelocity,
    PolicyConfig,
    Rollout,
    Scored,
    Start,
    repeated,
)
from tavr_jax.rl.sde import Levels, Transition
from tavr_jax.types import Metrics


class Trace(NamedTuple):
    """What the "k" stochastic steps need to be judged again under other parameters."""

    start: Float[Array, "k N T H W C"]  # x before a stochastic step
    following: Float[Array, "k N T H W C"]  # x after it
    mean: Float[Array, "k N T H W C"]  # of that step, under the policy that rolled out
    index: Int[Array, " k"]  # which steps of the schedule they were, ascending


class Question(NamedTuple):
    """One stochastic step of every member."""

    start: Float[Array, "N T H W C"]
    following: Float[Array, "N T H W C"]
    mean: Float[Array, "N T H W C"]  # under the policy that rolled out
    reference: Float[Array, "N T H W C"] | None  # mean under the reference policy
    index: Int[Array, " N"]  # the same for all
    advantage: Float[Array, " N"]
    drawn: Bool[Array, "N T"]


def stochastic_indices(config: PolicyConfig, key: Array) -> Int[Array, " k"]:
    """Which steps are stochastic, ascending. The last never is: cps has no noise there.

    `key` is consumed.
    """
    room = max(config.stochastic_steps, round(config.window * config.steps))
    room = min(room, config.steps - 1)
    drawn = jax.random.choice(key, room, (config.stochastic_steps,), replace=False)
    return jnp.sort(drawn)


def roll_out(
    velocity: GroupVelocity, start: Start, config: PolicyConfig, key: Array
) -> Rollout:
    """From one noise a group to samples, with a `Trace`. `key` is consumed."""
    start_key, index_key, noise_key = jax.random.split(key, 3)
    shape = start.given.shape
    shared = jax.random.normal(start_key, (shape[0] // config.group_size, *shape[1:]))
    begun = start.filled(repeated(shared, config.group_size))
    index = stochastic_indices(config, index_key)
    blank = jnp.zeros((config.stochastic_steps, *shape))

    def step(carry: Rollout, i: Array) -> tuple[Rollout, None]:
        x, trace = carry
        stochastic = (index == i).any()
        eta = jnp.where(stochastic, config.eta, 0.0)
        transition = judge(velocity, x, i, config, eta)
        noise = jax.random.normal(jax.random.fold_in(noise_key, i), x.shape)
        following = start.filled(transition.mean + transition.std * noise)

        slot = jnp.searchsorted(index, i)
        write = jnp.where(stochastic, slot, config.stochastic_steps)  # past end: drop
        return Rollout(
            following,
            Trace(
                start=trace.start.at[write].set(x, mode="drop"),
                following=trace.following.at[write].set(following, mode="drop"),
                mean=trace.mean.at[write].set(transition.mean, mode="drop"),
                index=index,
            ),
        ), None

    kept = Rollout(begun, Trace(blank, blank, blank, index))
    return jax.lax.scan(step, kept, jnp.arange(config.steps))[0]


def judge(
    velocity: GroupVelocity,
    x: Float[Array, "N T H W C"],
    index: Int[Array, ""],
    config: PolicyConfig,
    eta: Array | float,
) -> Transition:
    """The Gaussian of step `index` from x, under the parameters inside `velocity`."""
    grid = schedule.euler(config.steps, config.shift)
    timestep = jnp.asarray(grid.timesteps)[index]
    answer = velocity(x, jnp.broadcast_to(timestep, x.shape[:1]))
    return _transition(x, answer, index, config, eta)


def questions(
    scored: Scored,
    old: Answers,
    reference: Answers | None,
    config: PolicyConfig,
) -> Callable[[Array], Question]:
    """The stochastic steps: the same in every update, so the key is not needed."""
    del old  # its means were noted while rolling out
    trace = scored.rolled.trace
    steps = trace.index.shape[0]
    index = jnp.broadcast_to(trace.index[:, None], trace.start.shape[:2])
    means = None
    if reference is not None:
        timesteps = jnp.asarray(schedule.euler(config.steps, config.shift).timesteps)
        velocity = reference(trace.start, timesteps[index])
        means = jax.vmap(lambda x, v, i: _transition(x, v, i, config, config.eta).mean)(
            trace.start, velocity, trace.index
        )
    found = Question(
        trace.start,
        trace.following,
        trace.mean,
        means,
        index,
        jnp.broadcast_to(scored.advantage, (steps, *scored.advantage.shape)),
        jnp.broadcast_to(scored.drawn, (steps, *scored.drawn.shape)),
    )
    return lambda key: found


def loss(
    velocity: GroupVelocity, question: Question, first: Array, config: PolicyConfig
) -> tuple[Float[Array, " N"], Metrics]:
    """(1), (2)."""
    q = question
    new = judge(velocity, q.start, q.index[0], config, config.eta)
    old = Transition(q.mean, new.std)
    log = sde.log_ratio(config.sde, q.following, new, old, q.drawn, config.ratio_norm)
    gap = jnp.where(first, jnp.abs(log), 0.0)
    log = jnp.where(first, log - jax.lax.stop_gradient(log), log)
    losses, ratio = clipped_loss(log, q.advantage, config.clip_range)
    beyond = jnp.abs(ratio - 1.0) > config.clip_range
    metrics = {
        "ratio": ratio,
        "ratio_max": ratio,
        "clip_fraction": beyond.astype(jnp.float32),
        "rollout_gap": gap,
    }
    if q.reference is not None:
        kl = sde.kl(config.sde, new, q.reference, q.drawn)
        losses = losses + config.kl_weight * kl
        metrics["kl"] = kl
    return losses, metrics


def clipped_loss(
    log_ratio: Float[Array, " N"], advantage: Float[Array, " N"], clip_range: float
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """(1) and the first term of (2): ratio and loss of every rollout, loss first."""
    ratio = jnp.exp(log_ratio)
    held = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return jnp.maximum(-advantage * ratio, -advantage * held), ratio


def _transition(
    x: Array, velocity: Array, index: Array, config: PolicyConfig, eta: Array | float
) -> Transition:
    sigmas = jnp.asarray(schedule.euler(config.steps, config.shift).sigmas)
    levels = Levels(sigmas[index], sigmas[index + 1], sigmas[1])
    return sde.STEPS[config.sde](x, velocity, levels, eta)


GRPO = Algorithm(averaged=False, roll_out=roll_out, questions=questions, loss=loss)
