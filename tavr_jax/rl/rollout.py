"""Rollouts: groups of samples that start from one noise and part at stochastic steps.

Most steps are the deterministic Euler ODE; `stochastic_steps` of them, drawn from the
first `window` share of the schedule, take a stochastic step of `objective.STEPS`. With
one such step, everything in which two members of a group differ was decided there, and
its reward is credited there.

The reference is prefilled once per sample and shared by the members of its group.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tavr_jax.diffusion.guidance import Network, guided
from tavr_jax.diffusion.schedule import Schedule
from tavr_jax.errors import InputError
from tavr_jax.parallel.sharding import constrain
from tavr_jax.rl import objective
from tavr_jax.rl.objective import Levels, Transition
from tavr_jax.types import Conditions, PyTree

# (latents, timestep) -> velocity, guidance and caches inside
GroupVelocity = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Section `policy`; meanings and values are in configs/base.py."""

    group_size: int
    steps: int
    shift: float
    sde: str
    eta: float
    stochastic_steps: int
    window: float
    audio_scale: float
    text_scale: float
    updates: int
    clip_range: float
    kl_weight: float
    advantage_clip: float
    reward_latents: int
    identity_weight: float
    lipsync_weight: float

    def __post_init__(self):
        if self.sde not in objective.STEPS:
            expected = " | ".join(objective.STEPS)
            raise InputError(f"policy.sde: {self.sde!r}: expected {expected}")
        if not 0 < self.stochastic_steps < self.steps:
            raise InputError(
                f"policy.stochastic_steps: {self.stochastic_steps}: expected 1 to "
                f"{self.steps - 1}; the last of policy.steps is never stochastic"
            )
        if self.group_size < 2 or self.updates < 1:
            raise InputError(
                f"policy: group_size {self.group_size}, updates {self.updates}: a "
                "group needs 2 members to compare, and a step 1 update"
            )


class Rollout(NamedTuple):
    """N = B G finished samples, members of a group next to each other, and what their
    "k" stochastic steps need to be judged again under other parameters."""

    latents: Float[Array, "N T H W C"]  # at sigma 0
    start: Float[Array, "k N T H W C"]  # x before a stochastic step
    following: Float[Array, "k N T H W C"]  # x after it
    mean: Float[Array, "k N T H W C"]  # of that step, under the policy that rolled out
    log_prob: Float[Array, "k N"]
    index: Int[Array, " k"]  # which steps of the schedule they were, ascending


def repeated(tree: PyTree, group: int) -> PyTree:
    """Every sample `group` times in a row, the rows split over the batch axes."""
    return jax.tree.map(lambda x: constrain(jnp.repeat(x, group, axis=0), "B"), tree)


def group_velocity(
    network: Network, conditions: Conditions, config: PolicyConfig
) -> GroupVelocity:
    """Guided velocity of all members of all groups. `conditions` has one row a sample.

    The empty caption stands in for a negative one.
    """
    group = config.group_size

    def prefill(members: Conditions) -> PyTree:
        samples = jax.tree.map(lambda x: x[::group], members)
        return _repeat_cache(network.prefill, samples, group)

    members = repeated(conditions, group)
    return guided(
        Network(prefill, network.velocity),
        members,
        members.null_text,
        config.text_scale,
        config.audio_scale,
    )


def stochastic_indices(config: PolicyConfig, key: Array) -> Int[Array, " k"]:
    """Which steps are stochastic, ascending. The last never is: (3) has no noise there.

    `key` is consumed.
    """
    room = max(config.stochastic_steps, round(config.window * config.steps))
    room = min(room, config.steps - 1)
    drawn = jax.random.choice(key, room, (config.stochastic_steps,), replace=False)
    return jnp.sort(drawn)


def rollout(
    velocity: GroupVelocity,
    noise: Float[Array, "N T H W C"],
    motion: Float[Array, "N P H W C"],
    mask: Bool[Array, "N T"],
    schedule: Schedule,
    config: PolicyConfig,
    key: Array,
) -> Rollout:
    """From shared noise to samples. `mask` is false for latents given by `motion`.

    `noise` repeats one draw over each group; `key` is consumed.
    """
    index_key, noise_key = jax.random.split(key)
    index = stochastic_indices(config, index_key)
    drawn = mask[:, :, None, None, None]
    rest = noise.shape[1] - motion.shape[1]
    given = jnp.pad(motion, ((0, 0), (0, rest), (0, 0), (0, 0), (0, 0)))
    start = jnp.where(drawn, noise, given)
    kept = Rollout(
        latents=start,
        start=jnp.zeros((config.stochastic_steps, *start.shape)),
        following=jnp.zeros((config.stochastic_steps, *start.shape)),
        mean=jnp.zeros((config.stochastic_steps, *start.shape)),
        log_prob=jnp.zeros((config.stochastic_steps, start.shape[0])),
        index=index,
    )

    def step(carry: Rollout, i: Array) -> tuple[Rollout, None]:
        x = carry.latents
        stochastic = (index == i).any()
        eta = jnp.where(stochastic, config.eta, 0.0)
        transition = _transition(velocity, x, i, schedule, config, eta)
        draw = jax.random.normal(jax.random.fold_in(noise_key, i), x.shape)
        following = transition.mean + transition.std * draw
        following = jnp.where(drawn, following, given)
        # An ODE step has no density; its value here is dropped below.
        dense = transition._replace(std=jnp.where(stochastic, transition.std, 1.0))
        log_prob = objective.log_prob(config.sde, following, dense, mask)

        slot = jnp.searchsorted(index, i)
        write = jnp.where(stochastic, slot, config.stochastic_steps)  # past end: drop
        return carry._replace(
            latents=following,
            start=carry.start.at[write].set(x, mode="drop"),
            following=carry.following.at[write].set(following, mode="drop"),
            mean=carry.mean.at[write].set(transition.mean, mode="drop"),
            log_prob=carry.log_prob.at[write].set(log_prob, mode="drop"),
        ), None

    return jax.lax.scan(step, kept, jnp.arange(config.steps))[0]


def judge(
    velocity: GroupVelocity,
    start: Float[Array, "N T H W C"],
    index: Int[Array, ""],
    schedule: Schedule,
    config: PolicyConfig,
) -> Transition:
    """The Gaussian of one stochastic step under the parameters inside `velocity`."""
    return _transition(velocity, start, index, schedule, config, config.eta)


def _transition(
    velocity: GroupVelocity,
    x: Array,
    index: Array,
    schedule: Schedule,
    config: PolicyConfig,
    eta: Array | float,
) -> Transition:
    sigmas = jnp.asarray(schedule.sigmas)
    timestep = jnp.asarray(schedule.timesteps)[index]
    v = velocity(x, jnp.broadcast_to(timestep, x.shape[:1]))
    levels = Levels(sigmas[index], sigmas[index + 1], sigmas[1])
    return objective.STEPS[config.sde](x, v, levels, eta)


def _repeat_cache(
    prefill: Callable[[Conditions], PyTree], samples: Conditions, group: int
) -> PyTree:
    """The cache of `samples`, its sample axis (wherever a leaf has it) repeated."""
    cache = prefill(samples)
    # A cache may stack layers in front; the sample axis is the one that grows.
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), samples)
    double = jax.eval_shape(prefill, twice)

    def repeat(leaf: Array, other: jax.ShapeDtypeStruct) -> Array:
        grown = [i for i, n in enumerate(leaf.shape) if other.shape[i] != n]
        if not grown:
            return leaf
        places = [None] * grown[0] + ["B"]
        return constrain(jnp.repeat(leaf, group, axis=grown[0]), *places)

    return jax.tree.map(repeat, cache, double)
