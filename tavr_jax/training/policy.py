"""Stage 3: the step that improves rewards, by the algorithm of rl/grpo.py or rl/nft.py.

One step of the loop:

    (1) roll out G members for each of B samples under the policy, or its average; what
        they continue is noised as in stages 1 and 2 (supervised.py, (4)), else it
        would unlearn to continue what is not clean
    (2) score them, turn scores into advantages within each group
    (3) `updates` times: the algorithm's loss of the rollouts + kl_weight x the distance
        to the reference policy, one optimizer update

The reference policy is the one stage 3 started from: other values of the parameters
that are trained, and the same frozen ones.

The gradient of (3) is taken in `optimizer.accumulate` parts, one after another. A part
has some members of some samples, so that even one group need not fit in memory; each
part prefills the reference of its samples. Groups are cut only as far as samples run
out, or the mesh needs members on every device. Rollouts are not cut.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.rl import rollout
from tavr_jax.rl.advantages import advantages
from tavr_jax.rl.grpo import GRPO
from tavr_jax.rl.nft import NFT
from tavr_jax.rl.rollout import Algorithm, PolicyConfig, Scored, group_velocity
from tavr_jax.training.accumulate import value_and_grad
from tavr_jax.training.optimizer import OptimizerConfig, apply_update
from tavr_jax.training.state import Step, TrainState, carried, sampling_params
from tavr_jax.training.supervised import FlowConfig, noise_motion, target_latents
from tavr_jax.types import Batch, Conditions, Metrics, PyTree

# (latents of N = B G samples, batch, key) -> score " N" by name; frozen weights are
# leaves of a jax.tree_util.Partial. Names without a weight are measured, not learned.
Reward = Callable[[Array, Batch, Array], dict[str, Array]]

ALGORITHMS: dict[str, Algorithm] = {"grpo": GRPO, "nft": NFT}
_WORST = ("ratio_max", "rollout_gap", "skipped")  # reported as the largest of a step


class Policy(NamedTuple):
    """What is the same in every call of a step."""

    network: Callable[[PyTree], Network]
    algorithm: Algorithm
    config: PolicyConfig
    optimizer: OptimizerConfig
    conditions: Conditions  # of B samples


def make_step(
    network: Callable[[PyTree], Network],
    reward: Reward,
    reference: PyTree,
    config: PolicyConfig,
    flow: FlowConfig,
    optimizer: OptimizerConfig,
) -> Step:
    """(1)-(3). Of `flow`: motion_noise. `reference`: values of the trained parameters
    to stay near; None where policy.kl_weight is 0."""
    algorithm = ALGORITHMS[config.algorithm]
    if config.algorithm == "grpo" and not config.eta > 0:
        raise InputError(
            f"policy.eta: {config.eta}: without noise the rollouts of a group are one; "
            "expected more than 0"
        )

    def step(network, reference, reward, state: TrainState, batch: Batch, key: Array):
        motion_key, rollout_key, reward_key, learn_key = jax.random.split(key, 4)
        conditions = noise_motion(batch.conditions, flow, motion_key)
        batch = batch._replace(conditions=conditions)
        policy = Policy(network, algorithm, config, optimizer, conditions)
        old = sampling_params(state) if algorithm.averaged else state.params
        drawn = target_latents(conditions, batch.latents.shape[1])
        start = rollout.begin(conditions, drawn, config.group_size)
        velocity = group_velocity(network(old), conditions, config.group_size, config)
        rolled = algorithm.roll_out(velocity, start, config, rollout_key)
        scores = reward(rolled.latents, batch, reward_key)
        advantage, metrics = score(scores, config)
        questions = algorithm.questions(
            Scored(rolled, advantage, start.drawn),
            _answers(policy, old),
            _answers(policy, reference) if config.kl_weight else None,
            config,
        )
        state, learned = _learn(policy, state, questions, learn_key)
        metrics = {**metrics, **learned, "clip": batch.clip}
        return state._replace(step=state.step + 1), metrics

    reference = reference if config.kl_weight else None
    return jax.tree_util.Partial(step, carried(network), reference, carried(reward))


def score(
    scores: dict[str, Float[Array, " N"]], config: PolicyConfig
) -> tuple[Float[Array, " N"], Metrics]:
    """(2): advantage of every member, and the means to report."""
    # a reward that weighs nothing does no harm either, where it is not finite
    weights = {name: w for name, w in config.weights.items() if w}
    grouped = {n: scores[n].reshape(-1, config.group_size) for n in weights}
    advantage = advantages(grouped, weights, config.advantage_clip)
    metrics = {
        f"reward_{name}" if name in config.weights else name: values.mean()
        for name, values in scores.items()
    }
    metrics["reward"] = sum(w * scores[name].mean() for name, w in weights.items())
    metrics["advantage_std"] = advantage.std()
    return advantage.reshape(-1), metrics


def _answers(policy: Policy, params: PyTree) -> rollout.Answers:
    """All members asked under parameters that do not learn, one call after another."""

    def answers(x: Array, timesteps: Array) -> Array:
        velocity = group_velocity(
            policy.network(params),
            policy.conditions,
            policy.config.group_size,
            policy.config,
        )
        return jax.lax.map(lambda asked: velocity(*asked), (x, timesteps))

    return answers


def _learn(
    policy: Policy,
    state: TrainState,
    questions: Callable[[Array], PyTree],
    key: Array,
) -> tuple[TrainState, Metrics]:
    """(3), all updates in one scan, so that the network is compiled once."""
    updates = policy.config.updates

    def update(state: TrainState, inputs: tuple[Array, Array]):
        first, key = inputs
        metrics, grads = _gradient(policy, state.params, questions(key), first)
        value = metrics["clip_loss"].mean()
        state, applied = apply_update(state, value, grads, policy.optimizer)
        return state, {"loss": value, **metrics, **applied}

    inputs = (jnp.arange(updates) == 0, jax.random.split(key, updates))
    state, metrics = jax.lax.scan(update, state, inputs)
    return state, {name: _reduced(name, value, 0) for name, value in metrics.items()}


def _gradient(
    policy: Policy, params: PyTree, questions: PyTree, first: Array
) -> tuple[Metrics, PyTree]:
    """Metrics and mean gradient of the "k" questions, one after another and each in
    parts; "clip_loss" of shape (B,) is the loss of each sample."""
    config, parts = policy.config, policy.optimizer.accumulate
    samples = policy.conditions.has_audio.shape[0]
    shares = sharding.shares("B")
    cuts = cuts_of_a_group(samples, config.group_size, parts, shares)
    members = config.group_size // cuts
    conditions = jax.tree.map(lambda x: jnp.repeat(x, cuts, axis=0), policy.conditions)

    def loss(params: PyTree, example: tuple[Conditions, PyTree]):
        """Of rows: cuts of groups, with the conditions of their sample."""
        conditions, question = example
        velocity = group_velocity(policy.network(params), conditions, members, config)
        question = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), question)
        losses, metrics = policy.algorithm.loss(velocity, question, first, config)
        metrics = {**metrics, "clip_loss": losses}
        rows = {
            name: _reduced(name, value.reshape(-1, members), 1)
            for name, value in metrics.items()
        }
        return losses.mean(), rows

    gradient = value_and_grad(loss, parts)

    def one(total: PyTree, question: PyTree):
        rows = jax.tree.map(lambda x: x.reshape(-1, members, *x.shape[1:]), question)
        (_, metrics), grads = gradient(params, (conditions, rows))
        return jax.tree.map(jnp.add, total, grads), metrics

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, metrics = jax.lax.scan(one, zeros, questions)  # metrics: "k rows"
    count = jax.tree.leaves(questions)[0].shape[0]
    grads = jax.tree.map(lambda g: g / count, total)
    per_clip = metrics.pop("clip_loss").mean(0).reshape(samples, cuts).mean(1)
    found = {name: _reduced(name, value, None) for name, value in metrics.items()}
    return {**found, "clip_loss": per_clip}, grads


def cuts_of_a_group(samples: int, group: int, parts: int, shares: int) -> int:
    """Into how many pieces each group falls, so that `parts` of equal size can be made
    of them on `shares` devices: as few as possible, for each piece prefills.

    InputError where none fits.
    """
    if parts == 1:
        return 1
    for cuts in (n for n in range(1, group + 1) if group % n == 0):
        rows = samples * cuts
        if rows % parts or samples * group // parts % shares:
            continue
        if rows % shares == 0 and rows // parts % shares:
            continue  # whole samples on every device, and then too few of them
        return cuts
    raise InputError(
        f"optimizer.accumulate: {parts} parts do not divide data.batch_size {samples} "
        f"x policy.group_size {group} rollouts on {shares} devices; change one of them"
    )


def _reduced(name: str, values: Array, axis: int | None) -> Array:
    """Means, but the worst of what should be small."""
    return values.max(axis) if name in _WORST else values.mean(axis)
