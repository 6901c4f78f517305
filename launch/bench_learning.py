"""The cases that learn, or roll out to learn (launch.bench).

gradient  loss of flow matching and its gradient, the reference learned too
train     the same, clipping and AdamW: a step of stages 1 and 2 in one part, without
          the average of the weights; all of it is trained
rollout   a group of policy.group_size members, policy.steps steps, references
          included: stage 3 before its rewards. Without noise, so that both sides
          can be compared; drawing it costs nothing that would show
"""

import dataclasses
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench_problem
from launch.bench_cases import Case, Pairs, Program
from launch.bench_problem import Problem
from tavr_jax.diffusion.guidance import Network
from tavr_jax.models import flops
from tavr_jax.rl import grpo
from tavr_jax.rl import rollout as groups
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training import optimizer, supervised
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import Loss
from tavr_jax.training.supervised import Example, FlowConfig
from tavr_jax.types import PyTree

CALLS = 10_000  # rates of so many steps are known


def gradient(p: Problem, torch: ModuleType | None) -> Case:
    """See the module; `torch` as in bench_cases."""
    example = _example(p)
    run = jax.jit(jax.value_and_grad(_loss(p), has_aux=True))

    def pairs(ours, theirs) -> Pairs:
        (value, _), grads = ours
        grads = torch.weights(p, grads)
        sides = [[side[name] for name in grads] for side in (grads, theirs[1])]
        whole = [np.concatenate([torch.array(x).ravel() for x in s]) for s in sides]
        return [(np.float32(value), torch.array(theirs[0])), tuple(whole)]

    work = flops.step(p.model, p.sizes, p.samples)
    theirs = torch and torch.gradient(p, example)
    ours = Program(run, p.params, example)
    return Case(f"gradient {p.told()}", work, ours, theirs, pairs)


def train(p: Problem, torch: ModuleType | None) -> Case:
    """See the module."""
    example, rates = _example(p), _rates(p)
    step = supervised.make_step(lambda batch, key: batch, _loss(p), rates)
    run, key = jax.jit(step, donate_argnums=0), jax.random.key(0)
    state = optimizer.create_state(jax.tree.map(jnp.copy, p.params), rates)

    def following(result) -> tuple:
        return result[0], example, key

    def pairs(ours, theirs) -> Pairs:
        ours = (ours[1]["loss"], ours[1]["grad_norm"])
        sides = zip(ours, theirs, strict=True)
        return [(np.float32(a), torch.array(b)) for a, b in sides]

    rate = jax.vmap(partial(optimizer.learning_rate, rates))(jnp.arange(CALLS))
    work = flops.step(p.model, p.sizes, p.samples)
    theirs = torch and torch.train(p, example, rates, rate.tolist())
    ours = Program(run, state, example, key, following=following)
    return Case(f"train {p.told()}", work, ours, theirs, pairs)


def rollout(p: Problem, torch: ModuleType | None) -> Case:
    """See the module."""
    params, policy = bench_problem.stored(p), _policy(p)
    predicted = jnp.ones(p.latents.shape[:2], bool)

    @jax.jit
    def run(params, conditions, predicted, key):
        model, group = p.network(params), policy.group_size
        network = Network(model.prefill, model)
        velocity = groups.group_velocity(network, conditions, group, policy)
        start = groups.begin(conditions, predicted, group)
        return grpo.roll_out(velocity, start, policy, key)

    key = jax.random.key(p.config.seed)
    ours = Program(run, params, p.conditions, predicted, key)

    def pairs(ours, theirs) -> Pairs:
        return [(np.float32(ours.latents), torch.array(theirs))]

    scales = (policy.text_scale, policy.audio_scale)
    branches = 1 + sum(scale != 1 for scale in scales)
    main, reference = (f(p.model, p.sizes).total for f in (flops.main, flops.prefill))
    calls = policy.group_size * policy.steps * branches
    work = p.samples * (calls * main + (1 + (policy.audio_scale != 1)) * reference)
    # `trace.start` is the state before the only noted step, the first.
    theirs = torch and torch.rollout(p, params, lambda: ours().trace.start[0], policy)
    name = f"rollout {policy.group_size} x {policy.steps} steps, {p.told()}"
    return Case(name, work, ours, theirs, pairs)


def _example(p: Problem) -> Example:
    rng = np.random.default_rng(p.config.seed + 1)
    frames = 4 * p.model.num_video_latents - 3
    return Example(
        clean=p.latents,
        noise=jnp.asarray(rng.standard_normal(p.latents.shape, np.float32)),
        sigma=jnp.asarray(rng.uniform(0.1, 0.9, p.samples), jnp.float32),
        conditions=p.conditions,
        face_box=jnp.zeros((p.samples, frames, 4)),
        clip=jnp.arange(p.samples),
    )


def _loss(p: Problem) -> Loss:
    def network(params: PyTree) -> Network:
        model = p.network(params)
        return Network(model.prefill, model)

    recipe: dict[str, Any] = {**p.config.flow, "face_weight": 1.0, "lips_weight": 1.0}
    return supervised.flow_loss(network, FlowConfig(**recipe))


def _rates(p: Problem) -> OptimizerConfig:
    rates = OptimizerConfig(**p.config.optimizer)
    return dataclasses.replace(rates, trainable="all", accumulate=1, ema_decay=0.0)


def _policy(p: Problem) -> PolicyConfig:
    """Its stochastic step is the first, and has no noise."""
    policy = PolicyConfig(**p.config.policy)
    window = 1 / policy.steps
    return dataclasses.replace(
        policy, sde="flow", eta=0.0, stochastic_steps=1, window=window
    )
