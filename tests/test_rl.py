"""Laws of the policy gradient, and the numbers of Flow-GRPO."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import global_batch, toy_network

from data_pipelines.people import crop_faces
from tavr_jax.diffusion import sampler, schedule
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.rl import objective, rewards
from tavr_jax.rl.objective import Levels, Transition
from tavr_jax.rl.rollout import (
    PolicyConfig,
    group_velocity,
    judge,
    repeated,
    rollout,
    stochastic_indices,
)

SHIFTS, INDICES = (1, 3, 5), (0, 1, 5, 9)


def policy(**changes) -> PolicyConfig:
    fields = {
        "group_size": 3,
        "steps": 6,
        "shift": 3.0,
        "sde": "flow",
        "eta": 0.7,
        "stochastic_steps": 2,
        "window": 0.6,
        "audio_scale": 1.0,
        "text_scale": 1.0,
        "updates": 1,
        "clip_range": 1e-3,
        "kl_weight": 0.01,
        "advantage_clip": 5.0,
        "reward_latents": 2,
        "identity_weight": 1.0,
        "lipsync_weight": 0.5,
    }
    return PolicyConfig(**{**fields, **changes})


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
            old = objective.flow_step(x, v, levels, eta)
            new = objective.flow_step(x, v_new, levels, eta)
            following = old.mean + old.std * noise
            logs = [objective.log_prob("flow", following, t, mask) for t in (old, new)]
            ratio = objective.clipped_loss(logs[1], logs[0], logs[0], 1.0)[1]
            kl = objective.kl("flow", new, old.mean, mask)
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
                cps = objective.cps_step(x, v, levels, eta)
                following = cps.mean + cps.std * noise
                log = objective.log_prob("cps", following, cps, mask)
                _close(cps.mean, oracle[f"{case}_cps_mean"].transpose(0, 2, 3, 4, 1))
                _close(cps.std, oracle[f"{case}_cps_std"])
                _close(log, oracle[f"{case}_cps_logp"])
    assert checked == 5


def test_advantages_and_clipped_loss_are_those_of_flow_grpo(oracle):
    for group in np.unique(oracle["groups"]):
        members = oracle["groups"] == group
        ours = objective.group_advantages(jnp.asarray(oracle["rewards"][members])[None])
        _close(ours[0], oracle["adv_group_std"][members])
    names = ("ppo_logp_new", "ppo_logp_old", "adv_group_std")
    new, old, advantage = (jnp.asarray(oracle[name]) for name in names)
    for clip in (0.0001, 0.001, 0.2):
        loss, ratio = objective.clipped_loss(new, old, advantage, clip)
        _close(loss, oracle[f"ppo_clip{clip}_per_sample"])
        beyond = np.mean(np.abs(np.asarray(ratio) - 1) > clip)
        assert beyond == oracle[f"ppo_clip{clip}_frac"]


def test_dance_step_follows_its_score():
    # Where the data is one point, the marginal is a known Gaussian: the score of
    # N((1 - s) x0, s^2) is -(x - (1 - s) x0) / s^2 and v = (x - x0) / s.
    x0, s, following, eta = 2.0, 0.8, 0.7, 0.3
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 1))
    ours = objective.dance_step(x, (x - x0) / s, Levels(s, following, 0.9), eta)
    log_density = lambda x: -jnp.sum((x - (1 - s) * x0) ** 2) / (2 * s**2)  # noqa: E731
    delta = following - s
    expected = x + (x - x0) / s * delta - eta**2 / 2 * jax.grad(log_density)(x) * delta
    _close(ours.mean, expected)


@pytest.mark.parametrize("sde", objective.STEPS)
def test_without_noise_a_stochastic_rollout_is_the_ode(sde):
    config = policy(sde=sde, eta=0.0)
    rolled, velocity, noise = _rolled(config)
    levels = schedule.euler(config.steps, config.shift)
    step = lambda x, t, _: velocity(x, t)  # noqa: E731
    ode = jax.jit(lambda noise: sampler.euler_sample(step, noise, levels))(noise)
    np.testing.assert_allclose(rolled.latents, ode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sde", objective.STEPS)
def test_rollout_is_reproduced_by_judging_its_stochastic_steps(sde):
    config = policy(sde=sde)
    rolled, velocity, _ = _rolled(config)
    levels = schedule.euler(config.steps, config.shift)
    mask = jnp.ones(rolled.latents.shape[:2], bool)
    for k in range(config.stochastic_steps):
        again = judge(velocity, rolled.start[k], rolled.index[k], levels, config)
        log = objective.log_prob(sde, rolled.following[k], again, mask)
        np.testing.assert_allclose(again.mean, rolled.mean[k], atol=1e-6)
        np.testing.assert_allclose(log, rolled.log_prob[k], atol=1e-6)
        noise = (rolled.following[k] - again.mean) / again.std
        assert abs(float(noise.std()) - 1) < 0.1


def test_members_share_everything_before_the_first_stochastic_step():
    config = policy()
    rolled, _, _ = _rolled(config)
    start, following = (
        np.asarray(x[0]).reshape(-1, config.group_size, *x.shape[2:])
        for x in (rolled.start, rolled.following)
    )
    np.testing.assert_array_equal(start, np.repeat(start[:, :1], 3, axis=1))
    assert np.abs(following[:, 0] - following[:, 1]).min() > 0
    assert np.abs(start[0, 0] - start[1, 0]).max() > 0


def test_motion_latents_are_kept_and_have_no_probability():
    batch = global_batch(2, continues=True)
    config = policy()
    rolled, _, _ = _rolled(config, continues=True)
    motion = np.repeat(batch.conditions.motion, config.group_size, axis=0)
    given = motion.shape[1]
    np.testing.assert_array_equal(rolled.latents[:, :given], motion)
    moved = rolled.following[0].at[:, :given].add(100.0)
    mask = jnp.arange(moved.shape[1])[None] >= jnp.full((moved.shape[0], 1), given)
    transition = Transition(rolled.mean[0], jnp.float32(1.0))
    logs = [
        objective.log_prob("flow", x, transition, mask)
        for x in (moved, rolled.following[0])
    ]
    np.testing.assert_array_equal(*logs)


def test_reference_is_prefilled_once_per_sample_and_shared_by_its_group():
    seen = []
    toy = toy_network({"kernel": jnp.eye(3), "bias": jnp.zeros(3)})

    def prefill(conditions):
        seen.append(conditions.reference.shape[0])
        # stacked layers in front of the sample axis, and a leaf without one
        cache = toy.prefill(conditions)
        return jnp.stack([cache, cache]), jnp.ones(5)

    def velocity(x, t, conditions, cache):
        assert cache[0].shape[:2] == (2, 6) and cache[1].shape == (5,)
        return toy.velocity(x, t, conditions, cache[0][1])

    batch, config = global_batch(2), policy()
    grouped = group_velocity(Network(prefill, velocity), batch.conditions, config)
    plain = repeated(batch.conditions, config.group_size)
    x = jax.random.normal(jax.random.key(0), (6, *batch.latents.shape[1:]))
    t = jnp.full(6, 500.0)
    expected = toy.velocity(x, t, plain, toy.prefill(plain))
    np.testing.assert_array_equal(grouped(x, t), expected)
    assert seen[0] == 2 and 6 not in seen


def test_stochastic_steps_come_from_the_window_and_never_twice():
    config = policy(steps=10, stochastic_steps=3, window=0.5)
    drawn = np.array(
        [stochastic_indices(config, jax.random.key(seed)) for seed in range(60)]
    )
    assert set(drawn.ravel()) == set(range(5))
    assert (np.diff(drawn, axis=1) > 0).all()
    assert stochastic_indices(policy(window=1.0), jax.random.key(0)).max() < 5


def test_advantages_of_a_group_sum_to_zero_and_forget_scales():
    one, two = jax.random.normal(jax.random.key(0), (2, 4, 5))
    weights = {"identity": 1.0, "lipsync": 0.5}
    ours = objective.advantages({"identity": one, "lipsync": two}, weights, 1e9)
    scaled = {"identity": one * 50 + 3, "lipsync": two}
    np.testing.assert_allclose(ours.sum(1), 0, atol=1e-5)
    np.testing.assert_allclose(
        objective.advantages(scaled, weights, 1e9), ours, 0, 1e-3
    )
    assert objective.advantages(scaled, weights, 0.1).max() == pytest.approx(0.1)
    np.testing.assert_array_equal(objective.group_advantages(jnp.ones((2, 3))), 0)


def test_policy_gradient_of_a_gaussian_is_the_closed_form():
    # v = b everywhere, so the mean moves by dm/db = (1 + a^2 (1 - s) / (2 s)) D for
    # each element, and the gradient of -A log p is -A avg(x' - mean) / std^2 dm/db.
    key, noise_key, adv_key = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key, (6, 2, 3, 3, 1))
    levels, eta, b = Levels(0.9, 0.8, 0.95), 0.7, 0.3
    advantage = jax.random.normal(adv_key, (6,))
    mask = jnp.ones((6, 2), bool)
    old = objective.flow_step(x, jnp.full_like(x, b), levels, eta)
    following = old.mean + old.std * jax.random.normal(noise_key, x.shape)

    def loss(b):
        new = objective.flow_step(x, jnp.full_like(x, b), levels, eta)
        log = objective.log_prob("flow", following, new, mask)
        losses, ratio = objective.clipped_loss(
            log, jax.lax.stop_gradient(log), advantage, 1e-3
        )
        return losses.mean(), ratio

    derive = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, ratio), gradient = derive(jnp.float32(b))
    s, delta = 0.9, -0.1
    a = eta * np.sqrt(s / (1 - s))
    slope = (1 + a**2 * (1 - s) / (2 * s)) * delta
    pull = np.asarray(following - old.mean).mean((1, 2, 3, 4)) / (a**2 * -delta)
    np.testing.assert_array_equal(ratio, 1.0)
    np.testing.assert_allclose(gradient, np.mean(-advantage * pull * slope), rtol=1e-4)


def test_reward_crops_are_those_of_the_identity_pool():
    # a smooth picture, boxes inside and across the edge, shrunk and enlarged
    rng = np.random.default_rng(0)
    coarse = rng.random((3, 6, 8, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (3, 72, 96, 3), "cubic")
    frames = np.clip(np.asarray(smooth) * 255, 0, 255).astype(np.uint8)
    boxes = np.array(
        [[0.3, 0.2, 0.6, 0.6], [0.0, 0.5, 0.3, 1.0], [0.4, 0.4, 0.5, 0.5]], np.float32
    )
    theirs = crop_faces(frames, boxes, 16, 3).astype(np.float32)
    pixels = jnp.asarray(frames[None], jnp.float32)
    ours = rewards.crop(pixels, jnp.asarray(boxes)[None], 16)[0]
    assert np.abs(np.asarray(ours) - theirs).mean() < 3.0  # of 255 levels


def test_rewards_see_the_frames_and_speech_of_the_decoded_window():
    # Latents number their time; decoding keeps the numbers, as if each latent after
    # the first made 4 frames: frame f of window start w shows w + f / 4.
    batch = global_batch(2)
    frames = 4 * (batch.latents.shape[1] - 1) + 1
    mel = jnp.broadcast_to(jnp.arange(1.0 * frames)[None, :, None], (2, frames, 3))
    batch = batch._replace(mel=mel)
    latents = jnp.broadcast_to(
        jnp.arange(5.0).reshape(1, 5, 1, 1, 1), (4, *batch.latents.shape[1:])
    )

    def decode(window):
        steps = jnp.arange(4 * window.shape[1] - 3) / 4
        shown = window[:, 0, 0, 0, 0][:, None] + steps[None]
        return jnp.broadcast_to(
            shown[:, :, None, None, None], (*shown.shape, 16, 16, 3)
        )

    def confidence(faces, mel):
        return jnp.abs(faces[..., 0, 0, 0] * 4 - mel[..., 0]).max(1)

    judges = rewards.Judges(decode, lambda f: f[:, 0, 0], confidence, 8, 8)
    for seed in range(5):
        scores = rewards.rewards(judges, latents, batch, 3, jax.random.key(seed))
        np.testing.assert_allclose(scores["lipsync"], 0, atol=1e-4)


def test_identity_is_the_mean_over_all_pairs():
    key = jax.random.key(0)
    faces, pool = jax.random.normal(key, (2, 3, 4)), jax.random.normal(key, (2, 5, 4))
    pairs = jnp.einsum("nfz,njz->nfj", faces, pool).mean((1, 2))
    np.testing.assert_allclose(rewards.identity(faces, pool), pairs, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sde", "ode"), ("stochastic_steps", 6), ("group_size", 1), ("updates", 0)],
)
def test_impossible_policies_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=rf"policy.*{field}"):
        policy(**{field: value})


@functools.cache  # compiling takes longer than rolling out
def _rolled(config, continues=False):
    batch = global_batch(2, continues=continues)
    params = {"kernel": 0.3 * jnp.eye(3), "bias": jnp.full(3, 0.1)}
    network = toy_network(params)
    velocity = group_velocity(network, batch.conditions, config)
    noise = jax.random.normal(jax.random.key(1), batch.latents.shape)
    noise, motion = repeated((noise, batch.conditions.motion), config.group_size)
    given = jnp.arange(noise.shape[1])[None] < motion.shape[1]
    has_motion = repeated(batch.conditions.has_motion, config.group_size)
    levels = schedule.euler(config.steps, config.shift)
    mask = ~(given & has_motion[:, None])
    roll = jax.jit(lambda *a: rollout(velocity, *a, levels, config, jax.random.key(2)))
    return roll(noise, motion, mask), velocity, noise


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
