"""Stage 3: the step of the policy gradient. Equations are in rl/objective.py.

One step of the loop:

    (1) roll out G members for each of B samples under the current parameters
    (2) score them, turn scores into advantages within each group
    (3) `updates` times: clipped loss of the stochastic steps + kl_weight x KL to the
        policy that stage 3 started from, one optimizer update

In the first update of (3) the log-probability of the rollout is the detached one of the
very computation that is differentiated, so its ratio is exactly 1 and its gradient is
plain policy gradient; `rollout_gap` reports how far that value is from the one found
while rolling out (rounding, and nothing else).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion import schedule
from tavr_jax.diffusion.guidance import Network
from tavr_jax.diffusion.schedule import Schedule
from tavr_jax.rl import objective
from tavr_jax.rl.rollout import (
    PolicyConfig,
    Rollout,
    group_velocity,
    judge,
    repeated,
    rollout,
)
from tavr_jax.training.optimizer import OptimizerConfig, apply_update
from tavr_jax.training.state import Step, TrainState
from tavr_jax.training.supervised import target_latents
from tavr_jax.types import Batch, Conditions, Metrics, PyTree

# (latents of N = B G samples, batch, key) -> score " N" by name; frozen weights are
# leaves of a jax.tree_util.Partial.
Reward = Callable[[Array, Batch, Array], dict[str, Array]]


class Experience(NamedTuple):
    """What an update learns from."""

    rolled: Rollout
    reference: PyTree  # means "k N T H W C" under the reference policy, or None
    advantage: Float[Array, " N"]
    mask: Bool[Array, "N T"]  # latents that were drawn, not given


class Policy(NamedTuple):
    """What is the same in every step."""

    network: Callable[[PyTree], Network]
    config: PolicyConfig
    optimizer: OptimizerConfig
    schedule: Schedule


def make_step(
    network: Callable[[PyTree], Network],
    reward: Reward,
    reference: PyTree,
    config: PolicyConfig,
    optimizer: OptimizerConfig,
) -> Step:
    """(1)-(3). `reference`: parameters of the policy to stay near; None where
    policy.kl_weight is 0."""
    levels = schedule.euler(config.steps, config.shift)
    policy = Policy(network, config, optimizer, levels)

    def step(reference, reward, state: TrainState, batch: Batch, key: Array):
        rollout_key, reward_key = jax.random.split(key)
        mask = repeated(
            target_latents(batch.conditions, batch.latents.shape[1]), config.group_size
        )
        rolled = _roll_out(policy, state.params, batch, mask, rollout_key)
        scores = reward(rolled.latents, batch, reward_key)
        advantage, metrics = score(scores, config)
        means = None
        if config.kl_weight:
            means = _means(policy, reference, batch.conditions, rolled)
        experience = Experience(rolled, means, advantage, mask)
        state, learned = _learn(policy, state, batch.conditions, experience)
        metrics = {**metrics, **learned, "clip": batch.clip}
        return state._replace(step=state.step + 1), metrics

    reference = reference if config.kl_weight else None
    return jax.tree_util.Partial(step, reference, reward)


def score(
    scores: dict[str, Float[Array, " N"]], config: PolicyConfig
) -> tuple[Float[Array, " N"], Metrics]:
    """(2): advantage of every member, and the means to report."""
    weights = {"identity": config.identity_weight, "lipsync": config.lipsync_weight}
    grouped = {n: s.reshape(-1, config.group_size) for n, s in scores.items()}
    advantage = objective.advantages(grouped, weights, config.advantage_clip)
    metrics = {f"reward_{name}": s.mean() for name, s in scores.items()}
    metrics["reward"] = sum(weights[n] * s.mean() for n, s in scores.items())
    metrics["advantage_std"] = advantage.std()
    return advantage.reshape(-1), metrics


def _roll_out(
    policy: Policy, params: PyTree, batch: Batch, mask: Array, key: Array
) -> Rollout:
    noise_key, step_key = jax.random.split(key)
    group = policy.config.group_size
    noise = repeated(jax.random.normal(noise_key, batch.latents.shape), group)
    return rollout(
        group_velocity(policy.network(params), batch.conditions, policy.config),
        noise,
        repeated(batch.conditions.motion, group),
        mask,
        policy.schedule,
        policy.config,
        step_key,
    )


def _means(
    policy: Policy, params: PyTree, conditions: Conditions, rolled: Rollout
) -> Array:
    """Means of the stochastic steps under other parameters."""
    velocity = group_velocity(policy.network(params), conditions, policy.config)
    return jax.lax.map(
        lambda at: judge(velocity, *at, policy.schedule, policy.config).mean,
        (rolled.start, rolled.index),
    )


def _learn(
    policy: Policy, state: TrainState, conditions: Conditions, experience: Experience
) -> tuple[TrainState, Metrics]:
    """(3), all updates in one scan, so that the network is compiled once."""

    def update(carry, _):
        state, old, fresh = carry
        grads, losses, metrics = _gradient(
            policy, state.params, conditions, experience, old, fresh
        )
        state, applied = apply_update(state, losses.mean(), grads, policy.optimizer)
        old = jnp.where(fresh, metrics.pop("log_prob"), old)
        per_clip = losses.reshape(-1, policy.config.group_size).mean(1)
        metrics |= {"loss": losses.mean(), "clip_loss": per_clip, **applied}
        return (state, old, jnp.zeros((), bool)), metrics

    start = (state, experience.rolled.log_prob, jnp.ones((), bool))
    (state, _, _), metrics = jax.lax.scan(update, start, length=policy.config.updates)
    return state, _summary(metrics)


def _summary(metrics: Metrics) -> Metrics:
    """Over the updates of a step: means, but the worst of what should be small."""
    worst = {name: metrics.pop(name).max() for name in ("ratio_max", "skipped")}
    gap = metrics.pop("rollout_gap")[0]  # later updates differ because they moved
    means = {name: value.mean(0) for name, value in metrics.items()}
    return {**means, **worst, "rollout_gap": gap}


def _gradient(
    policy: Policy,
    params: PyTree,
    conditions: Conditions,
    experience: Experience,
    old: Array,
    fresh: Array,
) -> tuple[PyTree, Array, Metrics]:
    """Mean gradient over the stochastic steps, one after another to save memory.

    Also each rollout's loss " N", and metrics with the log-probabilities "k N".
    """
    rolled = experience.rolled

    def loss(params, start, following, index, reference, old):
        config = policy.config
        velocity = group_velocity(policy.network(params), conditions, config)
        transition = judge(velocity, start, index, policy.schedule, config)
        new = objective.log_prob(config.sde, following, transition, experience.mask)
        detached = jax.lax.stop_gradient(new)
        losses, ratio = objective.clipped_loss(
            new,
            jnp.where(fresh, detached, old),
            experience.advantage,
            config.clip_range,
        )
        metrics = {
            "ratio": ratio.mean(),
            "ratio_max": ratio.max(),
            "clip_fraction": (jnp.abs(ratio - 1.0) > config.clip_range).mean(),
            "rollout_gap": jnp.abs(detached - old).max(),
        }
        if config.kl_weight:
            kl = objective.kl(config.sde, transition, reference, experience.mask)
            losses = losses + config.kl_weight * kl
            metrics["kl"] = kl.mean()
        return losses.mean(), (losses, metrics, detached)

    def one(total, piece):
        grads, aux = jax.grad(loss, has_aux=True)(params, *piece)
        return jax.tree.map(jnp.add, total, grads), aux

    pieces = (
        rolled.start,
        rolled.following,
        rolled.index,
        experience.reference,
        old,
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (losses, metrics, log_prob) = jax.lax.scan(one, zeros, pieces)
    grads = jax.tree.map(lambda g: g / policy.config.stochastic_steps, total)
    metrics = {
        name: value.max() if name in ("ratio_max", "rollout_gap") else value.mean()
        for name, value in metrics.items()
    }
    return grads, losses.mean(0), {**metrics, "log_prob": log_prob}
