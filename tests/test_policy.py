"""The step of stage 3 on a network whose best policy is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rl import policy
from test_training import ADAM, global_batch, toy_network, toy_params

from tavr_jax.training import optimizer
from tavr_jax.training.policy import make_step

LEARNS = policy(group_size=8, stochastic_steps=1, clip_range=0.2, updates=2)
SLOW = dataclasses.replace(ADAM, learning_rate=0.01, clip_norm=1e9)


def bright(gain, last, latents, batch, key):
    """Identity wants a high mean, lipsync does not care."""
    mean = gain * latents.mean((1, 2, 3, 4))
    return {"identity": mean.at[-1].add(last), "lipsync": jnp.zeros_like(mean)}


# The numbers are leaves, as the weights of the frozen networks are.
BRIGHT = jax.tree_util.Partial(bright, jnp.ones(()), jnp.zeros(()))


@functools.cache  # compiling takes longer than learning
def compiled(config):
    step = make_step(toy_network, BRIGHT, toy_params(), config, SLOW)
    return step, jax.jit(lambda step, *args: step(*args))


def take(config, steps, gain=1.0, last=0.0):
    """(state, metrics of every step)."""
    step, run = compiled(config)
    reference, reward = step.args
    reward = jax.tree_util.Partial(reward.func, jnp.array(gain), jnp.array(last))
    step = jax.tree_util.Partial(step.func, reference, reward)
    state, batch = optimizer.create_state(toy_params(), SLOW), global_batch(2)
    history = []
    for i in range(steps):
        state, metrics = run(step, state, batch, jax.random.key(i))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def learned():
    return take(LEARNS, 40)


@pytest.fixture(scope="module")
def held():
    """One update a step, and a KL that outweighs every reward."""
    return take(dataclasses.replace(LEARNS, kl_weight=1000.0, updates=1), 40)


def test_reward_rises_on_policy(learned):
    _, history = learned
    rewards = [m["reward"] for m in history]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.25
    # brighter latents come from a lower velocity
    assert (learned[0].params["bias"] < -0.1).all()


def test_everything_promised_is_reported(learned):
    promised = {"reward", "reward_identity", "reward_lipsync", "kl", "ratio"}
    promised |= {"ratio_max", "clip_fraction", "advantage_std", "loss", "grad_norm"}
    for metrics in learned[1]:
        assert promised <= metrics.keys()
        assert all(np.isfinite(metrics[name]) for name in promised)
    first = learned[1][0]
    assert first["reward"] == first["reward_identity"]
    assert first["kl"] < learned[1][-1]["kl"]
    assert int(learned[0].step) == 40


def test_first_update_has_ratio_exactly_one(held):
    for metrics in held[1]:
        assert metrics["ratio"] == metrics["ratio_max"] == 1.0
        assert metrics["clip_fraction"] == 0.0
        assert metrics["rollout_gap"] < 1e-5


def test_later_updates_leave_ratio_one(learned):
    assert learned[1][0]["ratio_max"] > 1.0
    assert all(m["rollout_gap"] < 1e-5 for m in learned[1])


def test_without_rewards_to_compare_there_is_nothing_to_learn(learned):
    # and it starts at its own reference, so the KL has no gradient either
    _, history = take(LEARNS, 1, gain=0.0)
    assert history[0]["advantage_std"] == 0
    assert history[0]["kl"] == pytest.approx(0, abs=1e-9)


def test_kl_holds_the_policy_near_its_reference(held, learned):
    drift = [np.abs(np.asarray(s.params["bias"])).max() for s, _ in (held, learned)]
    assert drift[0] < 0.5 * drift[1]


def test_a_reward_that_breaks_is_skipped_and_its_clip_named():
    state, history = take(LEARNS, 1, last=jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, state.params, toy_params())
    metrics = history[0]
    assert metrics["skipped"] == 1
    bad = metrics["clip"][~np.isfinite(metrics["clip_loss"])]
    np.testing.assert_array_equal(bad, metrics["clip"][-1:])
    assert int(state.step) == 1
