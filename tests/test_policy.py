"""The step of stage 3 on a network whose best policy is known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rl import policy
from test_training import (
    ADAM,
    NO_DROPS,
    global_batch,
    make_batch,
    toy_network,
    toy_params,
)

from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.training import optimizer
from tavr_jax.training.policy import make_step, score

LEARNS = policy(group_size=8, stochastic_steps=1, clip_range=0.2, updates=2)
SLOW = dataclasses.replace(ADAM, learning_rate=0.01, clip_norm=1e9)
# the paper's decay is 0.001 a step; these runs are short
NFT = dataclasses.replace(LEARNS, algorithm="nft", kl_weight=1e-4)
FOLLOWS = dataclasses.replace(SLOW, ema_decay=0.5)
ALONE = dataclasses.replace(SLOW, ema_decay=0.0)
BOTH = [(LEARNS, SLOW), (NFT, FOLLOWS)]
STEPS = 40
# One update a step, and a pull that outweighs every reward.
PULLED = {"kl_weight": 1000.0, "updates": 1, "stochastic_steps": 2}
HELD = dataclasses.replace(LEARNS, **PULLED)
HELD_BOTH = [(HELD, SLOW), (dataclasses.replace(NFT, **PULLED), ALONE)]


def bright(gain, last, latents, batch, key):
    """Identity wants a high mean, lipsync does not care; the third is only measured."""
    mean = gain * latents.mean((1, 2, 3, 4))
    return {
        "identity": mean.at[-1].add(last),
        "lipsync": jnp.zeros_like(mean),
        "judged_identity": mean + 1.0,
    }


# The numbers are leaves, as the weights of the frozen networks are.
BRIGHT = jax.tree_util.Partial(bright, jnp.ones(()), jnp.zeros(()))


@functools.cache  # compiling takes longer than learning
def compiled(config, adam):
    step = make_step(toy_network, BRIGHT, toy_params(), config, NO_DROPS, adam)
    return step, jax.jit(lambda step, *args: step(*args))


def take(config, steps, gain=1.0, last=0.0, adam=SLOW, seed=0):
    """(state, metrics of every step)."""
    step, run = compiled(config, adam)
    network, reference, reward = step.args
    reward = jax.tree_util.Partial(reward.func, jnp.array(gain), jnp.array(last))
    step = jax.tree_util.Partial(step.func, network, reference, reward)
    state = optimizer.create_state(toy_params(), adam)
    batch, history = global_batch(2, seed=seed), []
    for i in range(steps):
        state, metrics = run(step, state, batch, jax.random.key(1000 * seed + i))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.fixture(scope="module")
def learned():
    return take(LEARNS, STEPS)


@pytest.mark.parametrize(("config", "adam"), BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_both_algorithms_climb_a_known_reward(config, adam, seed):
    state, history = take(config, STEPS, adam=adam, seed=seed)
    rewards = [m["reward"] for m in history]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.2
    # brighter latents come from a lower velocity
    assert (state.params["bias"] < -0.1).all()


@pytest.mark.parametrize("which", range(2))
def test_a_strong_pull_to_the_reference_holds_the_policy(which):
    drift = [
        np.abs(np.asarray(take(config, STEPS, adam=adam)[0].params["bias"])).max()
        for config, adam in (HELD_BOTH[which], BOTH[which])
    ]
    assert 0 < drift[0] < 0.5 * drift[1]


@pytest.mark.parametrize("which", range(2))
def test_nft_rolls_out_under_the_average_and_grpo_under_the_weights(which):
    config, adam = BOTH[which]
    step, run = compiled(config, adam)
    dark = {"kernel": 0.1 * jnp.eye(3), "bias": jnp.full(3, 0.5)}
    same = optimizer.create_state(toy_params(), adam)
    batch, key = global_batch(2), jax.random.key(0)
    rewards = [
        run(step, state, batch, key)[1]["reward"]
        for state in (same, same._replace(ema=dark), same._replace(params=dark))
    ]
    changed = [abs(reward - rewards[0]) > 0.1 for reward in rewards[1:]]
    assert changed == [config.algorithm == "nft", config.algorithm == "grpo"]
    # and nft measures how far the policy is from it
    if config.algorithm == "nft":
        gaps = [
            run(step, state, batch, key)[1]["old_gap"]
            for state in (same, same._replace(ema=dark))
        ]
        assert gaps[0] < 1e-2 < gaps[1]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_members_continue_what_is_noised_as_in_the_stages_before(noise):
    batch = make_batch(2, continues=True)
    clean = jnp.asarray(batch.conditions.motion)

    def seen(latents, batch, key):
        told = batch.conditions.motion
        same = jnp.repeat(told, LEARNS.group_size, axis=0)
        given = latents[:, : told.shape[1]]
        noised = jnp.full(len(latents), jnp.abs(told - clean).mean())
        return {"identity": noised, "lipsync": jnp.abs(given - same).mean((1, 2, 3, 4))}

    flow = dataclasses.replace(NO_DROPS, motion_noise=noise)
    reward = jax.tree_util.Partial(seen)
    step = make_step(toy_network, reward, toy_params(), LEARNS, flow, SLOW)
    state = optimizer.create_state(toy_params(), SLOW)
    batch = jax.tree.map(jnp.asarray, batch)
    _, metrics = jax.jit(step)(state, batch, jax.random.key(0))
    assert (metrics["reward_identity"] > 0.01) == bool(noise)
    assert metrics["reward_lipsync"] == 0


def test_everything_promised_is_reported(learned):
    promised = {"reward", "reward_identity", "reward_lipsync", "kl", "ratio"}
    promised |= {"ratio_max", "clip_fraction", "advantage_std", "loss", "grad_norm"}
    promised |= {"judged_identity", "rollout_gap", "skipped", "learning_rate"}
    for metrics in learned[1]:
        assert promised <= metrics.keys()
        assert all(np.isfinite(metrics[name]) for name in promised)
        assert all(metrics[name].ndim == 0 for name in promised)
    first = learned[1][0]
    assert first["reward"] == first["reward_identity"]
    np.testing.assert_allclose(first["judged_identity"], first["reward"] + 1, rtol=1e-5)
    assert first["kl"] < learned[1][-1]["kl"]
    assert int(learned[0].step) == STEPS


def test_first_update_has_ratio_exactly_one():
    for metrics in take(HELD, STEPS)[1]:
        assert metrics["ratio"] == metrics["ratio_max"] == 1.0
        assert metrics["clip_fraction"] == 0.0
        assert metrics["rollout_gap"] < 1e-5


def test_later_updates_leave_ratio_one(learned):
    assert learned[1][0]["ratio_max"] > 1.0
    assert all(m["rollout_gap"] < 1e-5 for m in learned[1])


@pytest.mark.parametrize(("config", "adam"), HELD_BOTH)
def test_without_rewards_to_compare_there_is_nothing_to_learn(config, adam):
    # and it starts at its own reference, so the KL has no gradient either
    _, history = take(config, 1, gain=0.0, adam=adam)
    assert history[0]["advantage_std"] == 0
    assert history[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert history[0]["grad_norm"] < 1e-6
    _, history = take(config, 1, adam=adam)
    assert history[0]["grad_norm"] > 1e-3


def test_a_reward_that_breaks_is_skipped_and_its_clip_named():
    state, history = take(LEARNS, 1, last=jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, state.params, toy_params())
    metrics = history[0]
    assert metrics["skipped"] == 1
    bad = metrics["clip"][~np.isfinite(metrics["clip_loss"])]
    np.testing.assert_array_equal(bad, metrics["clip"][-1:])
    assert int(state.step) == 1


def test_a_broken_reward_that_weighs_nothing_does_no_harm():
    scores = {"identity": jnp.full(16, jnp.nan), "lipsync": jnp.arange(16.0)}
    config = dataclasses.replace(LEARNS, identity_weight=0.0)
    advantage, metrics = score(scores, config)
    np.testing.assert_allclose(advantage.reshape(2, 8).sum(1), 0, atol=1e-5)
    assert np.isnan(metrics["reward_identity"]) and metrics["reward_lipsync"] == 7.5
    assert metrics["reward"] == config.lipsync_weight * 7.5
    assert np.isnan(score(scores, LEARNS)[0]).all()


# of 2 samples x 8 members: whole groups, then halves of groups
@pytest.mark.parametrize(("which", "parts"), [(0, 2), (0, 4), (1, 4)])
def test_parts_of_members_add_up_to_the_whole(which, parts):
    config, adam = HELD_BOTH[which]
    whole, one = take(config, 3, adam=adam)
    adam = dataclasses.replace(adam, accumulate=parts)
    state, cut = take(config, 3, adam=adam)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(near, state.params, whole.params)
    jax.tree.map(near, cut, one)


def test_parts_bound_what_the_network_sees_at_once():
    seen = []

    def network(params):
        toy = toy_network(params)

        def prefill(conditions):
            seen.append(("prefill", conditions.audio.shape[0]))
            return toy.prefill(conditions)

        def velocity(x, *rest):
            seen.append(("velocity", x.shape[0]))
            return toy.velocity(x, *rest)

        return Network(prefill, velocity)

    def calls(parts):
        seen.clear()
        adam = dataclasses.replace(SLOW, accumulate=parts)
        config = dataclasses.replace(LEARNS, kl_weight=0.0)
        step = make_step(network, BRIGHT, None, config, NO_DROPS, adam)
        state = optimizer.create_state(toy_params(), adam)
        jax.eval_shape(step, state, global_batch(2), jax.random.key(0))
        return set(seen)

    # (prefilled samples, members)
    assert calls(1) == {("prefill", 2), ("velocity", 16)}
    # the rollout as before, and parts of half a group of one sample
    assert calls(8) - calls(1) == {("prefill", 1), ("velocity", 2)}


def test_parts_that_do_not_divide_are_refused():
    step = make_step(
        toy_network,
        BRIGHT,
        toy_params(),
        LEARNS,
        NO_DROPS,
        dataclasses.replace(SLOW, accumulate=3),
    )
    state = optimizer.create_state(toy_params(), SLOW)
    with pytest.raises(InputError, match=r"accumulate: 3 parts.*group_size 8"):
        jax.eval_shape(step, state, global_batch(2), jax.random.key(0))


def test_frozen_weights_of_the_network_are_leaves_of_the_step():
    frozen = jnp.full((3,), 0.25)

    def shifted(frozen, params):
        return toy_network({**params, "bias": params["bias"] + frozen})

    network = jax.tree_util.Partial(shifted, frozen)
    step = make_step(network, BRIGHT, toy_params(), LEARNS, NO_DROPS, SLOW)
    assert any(leaf is frozen for leaf in jax.tree.leaves(step))


def test_a_gradient_without_noise_is_refused():
    config = dataclasses.replace(LEARNS, eta=0.0)
    with pytest.raises(InputError, match=r"policy\.eta: 0\.0"):
        make_step(toy_network, BRIGHT, None, config, NO_DROPS, SLOW)
