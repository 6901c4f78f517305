"""Laws of stochastic steps, advantages and GRPO, and the numbers of Flow-GRPO."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_training import global_batch, toy_network
from test_transformer import CONFIG, GRID, conditions

from configs import base
from tavr_jax.diffusion import sampler, schedule
from tavr_jax.diffusion.guidance import Network, guided
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.rl import advantages, grpo, rollout, sde
from tavr_jax.rl.rollout import PolicyConfig, group_velocity, prefills, repeated
from tavr_jax.rl.sde import Levels, Transition

SHIFTS, INDICES = (1, 3, 5), (0, 1, 5, 9)
POLICY = dataclasses.replace(
    PolicyConfig(**base.policy()),
    group_size=3,
    steps=6,
    shift=3.0,
    stochastic_steps=2,
    window=0.6,
    updates=1,
    kl_weight=0.01,
    reward_latents=2,
    lipsync_weight=0.5,
    motion_weight=0.0,
    light_weight=0.0,
)


def policy(**changes) -> PolicyConfig:
    return dataclasses.replace(POLICY, **changes)


@pytest.fixture(scope="module")
def oracle(shared):
    with np.load(shared / "oracles/wan_seed0/flow_grpo/cases.npz") as cases:
        return dict(cases)


@pytest.mark.parametrize("shift", SHIFTS)
def test_steps_ratio_and_kl_are_those_of_flow_grpo(oracle, shift):
    checked = 0
    for i in INDICES:
        sigmas = oracle[f"s{shift}_sigmas"]
        levels = Levels(sigmas[i], sigmas[i + 1], sigmas[1])
        x, v, v_new, noise = (
            # (B, C, T, H, W) there
            jnp.asarray(oracle[f"s{shift}_i{i}_{n}"].transpose(0, 2, 3, 4, 1))
            for n in ("x", "v", "v_new", "noise")
        )
        mask = jnp.ones(x.shape[:2], bool)
        for eta in (0.7, 0.3):
            case = f"s{shift}_i{i}_l{eta}"
            if f"{case}_std" not in oracle:
                continue
            old = sde.flow_step(x, v, levels, eta)
            new = sde.flow_step(x, v_new, levels, eta)
            following = old.mean + old.std * noise
            logs = [sde.log_prob("flow", following, t, mask) for t in (old, new)]
            plain = sde.log_ratio("flow", following, new, old, mask, False)
            ratio = grpo.clipped_loss(plain, logs[0], 1.0)[1]
            kl = sde.kl("flow", new, old.mean, mask)
            deviation = oracle[f"{case}_std"] * oracle[f"{case}_sqrt_dt"]
            _close(old.mean, oracle[f"{case}_mean"].transpose(0, 2, 3, 4, 1))
            _close(following, oracle[f"{case}_next"].transpose(0, 2, 3, 4, 1))
            _close(old.std, deviation)
            _close(logs[0], oracle[f"{case}_logp"])
            _close(logs[1], oracle[f"{case}_logp_newpolicy"])
            _close(ratio, oracle[f"{case}_ratio"])
            # differences of means of order 1 in float32
            np.testing.assert_allclose(kl, oracle[f"{case}_kl"], rtol=2e-3)
            checked += 1
            if f"{case}_cps_std" in oracle:
                cps = sde.cps_step(x, v, levels, eta)
                following = cps.mean + cps.std * noise
                log = sde.log_prob("cps", following, cps, mask)
                _close(cps.mean, oracle[f"{case}_cps_mean"].transpose(0, 2, 3, 4, 1))
                _close(cps.std, oracle[f"{case}_cps_std"])
                _close(log, oracle[f"{case}_cps_logp"])
    assert checked == 5


def test_advantages_and_clipped_loss_are_those_of_flow_grpo(oracle):
    for group in np.unique(oracle["groups"]):
        members = oracle["groups"] == group
        rewards = jnp.asarray(oracle["rewards"][members])[None]
        ours = advantages.group_advantages(rewards)
        _close(ours[0], oracle["adv_group_std"][members])
    names = ("ppo_logp_new", "ppo_logp_old", "adv_group_std")
    new, old, advantage = (jnp.asarray(oracle[name]) for name in names)
    for clip in (0.0001, 0.001, 0.2):
        loss, ratio = grpo.clipped_loss(new - old, advantage, clip)
        _close(loss, oracle[f"ppo_clip{clip}_per_sample"])
        beyond = np.mean(np.abs(np.asarray(ratio) - 1) > clip)
        assert beyond == oracle[f"ppo_clip{clip}_frac"]


def test_dance_step_follows_its_score():
    # Where the data is one point, the marginal is a known Gaussian: the score of
    # N((1 - s) x0, s^2) is -(x - (1 - s) x0) / s^2 and v = (x - x0) / s.
    x0, s, following, eta = 2.0, 0.8, 0.7, 0.3
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 1))
    ours = sde.dance_step(x, (x - x0) / s, Levels(s, following, 0.9), eta)
    log_density = lambda x: -jnp.sum((x - (1 - s) * x0) ** 2) / (2 * s**2)  # noqa: E731
    delta = following - s
    expected = x + (x - x0) / s * delta - eta**2 / 2 * jax.grad(log_density)(x) * delta
    _close(ours.mean, expected)


def test_normalised_ratio_is_the_one_of_grpo_guard():
    # Guard: (log p - log p_old) std + avg(d^2) / (2 std), of the whole Gaussian
    x, d, noise = jax.random.normal(jax.random.key(0), (3, 4, 3, 2, 2, 5))
    mask = jnp.arange(3)[None] > jnp.array([[-1], [0], [1], [-1]])
    for std in (0.05, 1.0):
        old, new = Transition(x, std), Transition(x + 0.1 * d, std)
        following = old.mean + std * noise
        logs = [sde.log_prob("flow", following, t, mask) for t in (new, old)]
        moved = sde.kl("flow", new, old.mean, mask) * std
        guard = (logs[0] - logs[1]) * std + moved
        ours = sde.log_ratio("flow", following, new, old, mask, True)
        np.testing.assert_allclose(ours, guard, rtol=1e-3, atol=1e-4)
        # cps drops 1 / (2 std^2) of its density, but not of this ratio
        cps = sde.log_ratio("cps", following, new, old, mask, True)
        np.testing.assert_array_equal(cps, ours)


def test_normalised_ratio_has_mean_zero_at_every_noise_level():
    # Plain ratios of the same change of the mean lie below 1, and the further the less
    # noise a step has; normalised ones know neither.
    noise, d = jax.random.normal(jax.random.key(0), (2, 4000, 1, 2, 2, 2))
    d, mask = 0.05 * d[:1], jnp.ones((4000, 1), bool)
    found = {}
    for std in (0.02, 0.2, 2.0):
        old = Transition(jnp.zeros_like(noise), jnp.float32(std))
        new = Transition(old.mean + d, jnp.float32(std))
        for normalised in (True, False):
            log = sde.log_ratio("flow", std * noise, new, old, mask, normalised)
            found[normalised, std] = float(log.mean()), float(log.std())
    size = float(jnp.square(d).mean())
    for std in (0.02, 0.2, 2.0):
        mean, spread = found[True, std]
        assert abs(mean) < 4 * spread / np.sqrt(4000)
        np.testing.assert_allclose(spread, np.sqrt(size / 8), rtol=0.05)
        mean, spread = found[False, std]
        assert abs(mean + size / (2 * std**2)) < 4 * spread / np.sqrt(4000)
        np.testing.assert_allclose(spread, np.sqrt(size / 8) / std, rtol=0.05)


@pytest.mark.parametrize("kind", sde.STEPS)
def test_without_noise_a_stochastic_rollout_is_the_ode(kind):
    config = policy(sde=kind, eta=0.0)
    rolled, velocity, start = _rolled(config)
    levels = schedule.euler(config.steps, config.shift)
    step = lambda x, t, _: velocity(x, t)  # noqa: E731
    # where nothing moves, a rollout ends in the noise it began with
    still = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    noise = grpo.roll_out(still, start, config, jax.random.key(2)).latents
    ode = jax.jit(lambda noise: sampler.euler_sample(step, noise, levels))(noise)
    np.testing.assert_allclose(rolled.latents, ode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sde.STEPS)
def test_rollout_is_reproduced_by_judging_its_stochastic_steps(kind):
    config = policy(sde=kind)
    rolled, velocity, start = _rolled(config)
    trace = rolled.trace
    for k in range(config.stochastic_steps):
        new = grpo.judge(velocity, trace.start[k], trace.index[k], config, config.eta)
        np.testing.assert_allclose(new.mean, trace.mean[k], atol=1e-6)
        old = Transition(trace.mean[k], new.std)
        for normalised in (True, False):
            log = sde.log_ratio(
                kind, trace.following[k], new, old, start.drawn, normalised
            )
            np.testing.assert_allclose(log, 0, atol=1e-5)
        noise = (trace.following[k] - new.mean) / new.std
        assert abs(float(noise.std()) - 1) < 0.1


def test_members_share_everything_before_the_first_stochastic_step():
    config = policy()
    trace = _rolled(config)[0].trace
    start, following = (
        np.asarray(x[0]).reshape(-1, config.group_size, *x.shape[2:])
        for x in (trace.start, trace.following)
    )
    np.testing.assert_array_equal(start, np.repeat(start[:, :1], 3, axis=1))
    assert np.abs(following[:, 0] - following[:, 1]).min() > 0
    assert np.abs(start[0, 0] - start[1, 0]).max() > 0


def test_motion_latents_are_kept_and_have_no_probability():
    batch = global_batch(2, continues=True)
    config = policy()
    rolled, _, start = _rolled(config, continues=True)
    motion = np.repeat(batch.conditions.motion, config.group_size, axis=0)
    given = motion.shape[1]
    np.testing.assert_array_equal(rolled.latents[:, :given], motion)
    following, mean = rolled.trace.following[0], rolled.trace.mean[0]
    old, new = Transition(mean, jnp.float32(0.5)), Transition(mean + 0.1, 0.5)
    for normalised in (True, False):
        logs = [
            sde.log_ratio("flow", x, new, old, start.drawn, normalised)
            for x in (following.at[:, :given].add(100.0), following)
        ]
        np.testing.assert_array_equal(*logs)
        assert np.abs(logs[0]).min() > 0


def test_reference_is_prefilled_once_per_sample_and_held_once():
    seen = []
    toy = toy_network({"kernel": jnp.eye(3), "bias": jnp.zeros(3)})

    def prefill(conditions):
        seen.append(conditions.reference.shape[0])
        return toy.prefill(conditions)

    def velocity(x, t, conditions, cache):
        assert (len(x), len(conditions.text), len(cache)) == (6, 6, 2)
        return toy.velocity(x, t, conditions, cache)

    batch, config = global_batch(2), policy()
    grouped = group_velocity(Network(prefill, velocity), batch.conditions, 3, config)
    plain = repeated(batch.conditions, 3)
    x = jax.random.normal(jax.random.key(0), (6, *batch.latents.shape[1:]))
    t = jnp.full(6, 500.0)
    expected = toy.velocity(x, t, plain, toy.prefill(plain))
    np.testing.assert_array_equal(grouped(x, t), expected)
    assert seen == [2]


@pytest.mark.parametrize(
    ("samples", "group", "shares", "times"),
    [
        (2, 3, 1, 1),
        (8, 8, 4, 1),
        (2, 4, 8, 4),
        (8, 8, 64, 8),
        (6, 4, 8, 4),
        (4, 6, 8, 2),
    ],
)
def test_devices_with_parts_of_a_group_prefill_and_hold_its_reference(
    samples, group, shares, times, monkeypatch
):
    """And no device any other: rows of the cache divide wherever members do."""
    monkeypatch.setattr(sharding, "shares", {"B": shares}.get)
    assert prefills(samples, group) == times
    assert group % times == 0 and samples * times % shares == 0


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 4, 2, 1)])
def test_a_cache_that_a_group_shares_is_a_cache_of_each(shape):
    """Two samples, which four devices do not divide, and three guided branches."""
    made = Transformer(CONFIG, rngs=nnx.Rngs(0))
    graph, params = nnx.split(made, nnx.Param)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * rng.standard_normal(x.shape, "f"), params)
    told, config = conditions(), policy(audio_scale=1.5, text_scale=2.0)
    x = jnp.asarray(
        rng.standard_normal((8, CONFIG.num_video_latents, GRID, GRID, 16), "f")
    )
    t = jnp.linspace(100.0, 900.0, 8)

    held = []

    def of_groups(params, told):
        model = nnx.merge(graph, params)

        def prefill(conditions):
            cache = model.prefill(conditions)
            jax.debug.inspect_array_sharding(cache.keys, callback=held.append)
            return cache

        net = Network(prefill, model)
        return group_velocity(net, told, 4, config)(x, t)

    def of_each(params, told):
        model, each = nnx.merge(graph, params), repeated(told, 4)
        net = Network(model.prefill, model)
        return guided(net, each, each.null_text, 2.0, 1.5)(x, t)

    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    params = jax.device_put(params, sharding.parameters(mesh, params))
    with jax.set_mesh(mesh):
        ours, theirs = (jax.jit(f)(params, told) for f in (of_groups, of_each))
    _close(ours, theirs)
    assert np.abs(ours[0] - ours[4]).max() > 0.1
    rows = max(2, shape[1])
    assert held[0].shard_shape((1, rows, 1, 2, 1))[1] == rows // shape[1]


def test_stochastic_steps_come_from_the_window_and_never_twice():
    config = policy(steps=10, stochastic_steps=3, window=0.5)
    drawn = np.array(
        [grpo.stochastic_indices(config, jax.random.key(seed)) for seed in range(60)]
    )
    assert set(drawn.ravel()) == set(range(5))
    assert (np.diff(drawn, axis=1) > 0).all()
    last = grpo.stochastic_indices(policy(window=1.0), jax.random.key(0)).max()
    assert last < 5


def test_advantages_of_a_group_sum_to_zero_and_forget_scales():
    one, two = jax.random.normal(jax.random.key(0), (2, 4, 5))
    weights = {"identity": 1.0, "lipsync": 0.5}
    combine = advantages.advantages
    ours = combine({"identity": one, "lipsync": two}, weights, 1e9)
    scaled = {"identity": one * 50 + 3, "lipsync": two}
    np.testing.assert_allclose(ours.sum(1), 0, atol=1e-5)
    assert float(jnp.abs(ours).min()) > 0
    np.testing.assert_allclose(combine(scaled, weights, 1e9), ours, 0, 1e-3)
    assert combine(scaled, weights, 0.1).max() == pytest.approx(0.1)
    np.testing.assert_array_equal(advantages.group_advantages(jnp.ones((2, 3))), 0)


@pytest.mark.parametrize("normalised", [True, False])
def test_policy_gradient_of_a_gaussian_is_the_closed_form(normalised):
    # v = b everywhere, so the mean moves by dm/db = (1 + a^2 (1 - s) / (2 s)) D for
    # each element, and the gradient of -A log p is -A avg(x' - mean) / std^2 dm/db;
    # normalised, of -A avg(e d), -A avg(x' - mean) / std dm/db.
    config = policy(steps=4, shift=3.0, ratio_norm=normalised, kl_weight=0.0)
    x, noise = jax.random.normal(jax.random.key(0), (2, 6, 2, 3, 3, 1))
    advantage = jax.random.normal(jax.random.key(1), (6,))
    index, b = 1, 0.3
    s, following_level = schedule.euler(4, 3.0).sigmas[index : index + 2]
    delta = following_level - s
    a = config.eta * np.sqrt(s / (1 - s))
    std, slope = a * np.sqrt(-delta), (1 + a**2 * (1 - s) / (2 * s)) * delta
    constant = lambda b: lambda x, t: jnp.broadcast_to(b, x.shape)  # noqa: E731
    old = grpo.judge(constant(b), x, jnp.int32(index), config, config.eta)
    question = grpo.Question(
        start=x,
        following=old.mean + old.std * noise,
        mean=old.mean,
        reference=None,
        index=jnp.full(6, index),
        advantage=advantage,
        drawn=jnp.ones((6, 2), bool),
    )

    def loss(b, first):
        losses, metrics = grpo.loss(constant(b), question, first, config)
        return losses.mean(), metrics

    derive = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, metrics), gradient = derive(jnp.float32(b), jnp.array(True))
    pull = np.asarray(noise).mean((1, 2, 3, 4)) / (1.0 if normalised else std)
    np.testing.assert_array_equal(metrics["ratio"], 1.0)
    assert metrics["rollout_gap"].max() < 1e-5
    np.testing.assert_allclose(gradient, np.mean(-advantage * pull * slope), rtol=1e-4)
    # however differently the rollout was computed, of which `rollout_gap` tells
    question = question._replace(mean=question.mean + 1e-3)
    _, metrics = loss(jnp.float32(b), jnp.array(True))
    np.testing.assert_array_equal(metrics["ratio"], 1.0)
    assert metrics["rollout_gap"].min() > 1e-6
    _, metrics = loss(jnp.float32(b), jnp.array(False))
    assert (
        jnp.abs(metrics["ratio"] - 1).min() > 1e-6 and not metrics["rollout_gap"].any()
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algorithm", "ppo"),
        ("sde", "ode"),
        ("stochastic_steps", 6),
        ("group_size", 1),
        ("updates", 0),
        ("clip_range", 0.0),
        ("nft_beta", 0.0),
        ("guard_window", 1),
        ("guard_fall", 1.0),
    ],
)
def test_impossible_policies_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=rf"policy.*{field}"):
        policy(**{field: value})


def test_a_policy_without_any_reward_is_refused():
    with pytest.raises(InputError, match="light_weight are all 0"):
        policy(identity_weight=0.0, lipsync_weight=0.0)


@functools.cache  # compiling takes longer than rolling out
def _rolled(config, continues=False):
    """(rollout, velocity, start) of the toy network."""
    batch = global_batch(2, continues=continues)
    params = {"kernel": 0.3 * jnp.eye(3), "bias": jnp.full(3, 0.1)}
    group = config.group_size
    velocity = group_velocity(toy_network(params), batch.conditions, group, config)
    given = jnp.arange(batch.latents.shape[1])[None] < batch.conditions.motion.shape[1]
    drawn = ~(given & batch.conditions.has_motion[:, None])
    start = rollout.begin(batch.conditions, drawn, group)
    roll = jax.jit(lambda s: grpo.roll_out(velocity, s, config, jax.random.key(2)))
    return roll(start), velocity, start


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
