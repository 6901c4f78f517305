"""Laws of DiffusionNFT on velocities that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rl import policy

from tavr_jax.diffusion import sampler, schedule
from tavr_jax.rl import nft
from tavr_jax.rl.rollout import Rollout, Scored, Start

NFT = policy(algorithm="nft", kl_weight=0.0, advantage_clip=5.0)
SHAPE = (6, 3, 4, 4, 2)
MASK = np.ones(SHAPE[:2], bool)
MASK[::2, 0] = False  # a given latent


def question(advantage, old=0.0, reference=None, seed=0, config=NFT):
    """A question about random samples; `old` and `reference` are velocities."""
    clean = jax.random.normal(jax.random.key(seed), SHAPE)
    advantage = jnp.broadcast_to(jnp.float32(advantage), SHAPE[:1])
    scored = Scored(Rollout(clean, None), advantage, jnp.asarray(MASK))
    known = None if reference is None else lambda x, t: jnp.full_like(x, reference)
    ask = nft.questions(scored, lambda x, t: jnp.full_like(x, old), known, config)
    return jax.tree.map(lambda leaf: leaf[0], ask(jax.random.key(seed + 1)))


def answered(velocity, asked, config=NFT):
    return nft.loss(lambda x, t: velocity, asked, jnp.array(True), config)


def gradient(velocity, asked, config=NFT):
    return jax.grad(lambda v: answered(v, asked, config)[0].sum())(velocity)


def errors(velocity, asked):
    """Of x0, (4) of nft.py by its words."""
    level = np.asarray(asked.sigma)[:, None, None, None, None]
    off = np.asarray(asked.x - level * velocity - asked.clean)
    found = [row[mask] for row, mask in zip(off, MASK, strict=True)]
    return np.array([np.mean(r**2) / np.abs(r).mean() for r in found])


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_good_samples_are_learned_as_data_and_bad_ones_as_their_mirror(beta):
    config = policy(algorithm="nft", kl_weight=0.0, nft_beta=beta)
    limit = config.advantage_clip
    v = 0.3 * jax.random.normal(jax.random.key(5), SHAPE)
    for advantage, side in ((limit, 1.0), (-limit, -1.0)):
        asked = question(advantage, old=0.2)
        mixed = 0.2 + side * beta * (v - 0.2)
        expected = limit * errors(mixed, asked) / beta
        found = answered(v, asked, config)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_limits_push_towards_and_away_from_the_sample():
    # one small step down the gradient, from the old policy
    for advantage, side in ((5.0, 1.0), (-5.0, -1.0)):
        asked = question(advantage, old=0.2)
        down = -gradient(asked.old, asked)
        level = asked.sigma[:, None, None, None, None]
        towards = (asked.x - asked.clean) / level - asked.old  # the sample's velocity
        assert float((down * towards).sum()) * side > 0


def test_equal_rewards_leave_the_old_policy_where_it_is():
    # r = 1/2: both pulls cancel at v = v_old; elsewhere they lead back to it
    asked = question(0.0, old=0.2)
    at_old = gradient(asked.old, asked)
    np.testing.assert_allclose(at_old, 0, atol=1e-6)
    assert float(jnp.abs(gradient(asked.old, question(1.0, old=0.2))).max()) > 1e-4
    for seed in range(3):
        away = jax.random.normal(jax.random.key(seed), SHAPE)
        assert float((gradient(asked.old + away, asked) * away).sum()) > 0


def test_opposite_advantages_of_one_sample_cancel_at_the_old_policy():
    up, down = (gradient(q.old, q) for q in (question(2.0), question(-2.0)))
    np.testing.assert_allclose(up, -down, atol=1e-6)
    assert float(jnp.abs(up).max()) > 1e-4


def test_the_reference_pulls_by_the_distance_of_velocities():
    config = policy(algorithm="nft", kl_weight=0.5)
    v = jnp.full(SHAPE, 0.7)
    losses, metrics = answered(v, question(1.0, reference=0.2), config)
    plain, _ = answered(v, question(1.0), config)
    np.testing.assert_allclose(metrics["kl"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(losses - plain, 0.125, rtol=1e-4)


def test_given_latents_are_shown_clean_and_not_asked_for():
    asked = question(3.0, old=0.2, reference=0.1)
    given = ~jnp.asarray(MASK)
    np.testing.assert_array_equal(asked.x[given], asked.clean[given])
    config = policy(algorithm="nft", kl_weight=0.5)
    slope = gradient(jnp.full(SHAPE, 0.5), asked, config)
    np.testing.assert_array_equal(slope[given], 0.0)
    assert float(jnp.abs(slope[~given]).min()) > 0


def test_levels_are_shifted_and_new_for_every_member_and_update():
    clean = jnp.zeros((2000, 1, 1, 1, 1))
    scored = Scored(Rollout(clean, None), jnp.zeros(2000), jnp.ones((2000, 1), bool))
    seen = []

    def old(x, t):
        seen.append(np.asarray(t))
        return x

    ask = nft.questions(scored, old, None, NFT)
    first, second = ask(jax.random.key(0)), ask(jax.random.key(1))
    sigma = np.asarray(first.sigma[0])
    u = sigma / (NFT.shift - (NFT.shift - 1) * sigma)  # the shift undone
    assert np.abs(np.sort(u) - np.linspace(0, 1, 2000)).max() < 0.04
    np.testing.assert_allclose(seen[0][0], 1000 * sigma, rtol=1e-6)
    assert not np.array_equal(first.sigma, second.sigma)
    assert not np.array_equal(first.x, second.x)


def test_rollouts_are_the_ode_and_keep_what_is_given():
    given = jax.random.normal(jax.random.key(3), SHAPE)
    start = Start(
        jnp.where(MASK[:, :, None, None, None], 0.0, given), jnp.asarray(MASK)
    )
    bend = lambda x, t: 0.3 * x + t[:, None, None, None, None] / 1000  # noqa: E731
    rolled = nft.roll_out(bend, start, NFT, jax.random.key(4)).latents
    np.testing.assert_array_equal(rolled[~MASK], given[~MASK])
    still = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    noise = nft.roll_out(still, start, NFT, jax.random.key(4)).latents
    grid = schedule.euler(NFT.steps, NFT.shift)
    ode = sampler.euler_sample(lambda x, t, i: bend(x, t), noise, grid)
    np.testing.assert_allclose(rolled[MASK], ode[MASK], rtol=1e-5)
    # members of a group have nothing but their noise to differ in
    assert np.abs(np.diff(noise[1::2], axis=0)).min() > 0
