"""Stages 1 and 2: what is drawn, and where learning ends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_training import (
    ADAM,
    NO_DROPS,
    global_batch,
    make_batch,
    toy_network,
    toy_params,
)

from configs import audio_to_video, text_to_video
from tavr_jax.diffusion import guidance
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.training import optimizer, supervised
from tavr_jax.training.state import sampling_params
from tavr_jax.training.supervised import Example, FlowConfig

KEY = jax.random.key(5)


def recipe(**fields) -> FlowConfig:
    return dataclasses.replace(NO_DROPS, **fields)


def drawn(batch, **fields) -> Example:
    return compiled_draw(recipe(**fields))(batch, KEY)


@functools.cache
def compiled_draw(config):
    return jax.jit(supervised.flow_draw(config))


@functools.cache
def compiled_loss(network, config):
    return jax.jit(supervised.flow_loss(network, config))


def errors_of(network, params, example, **fields) -> np.ndarray:
    """Loss of each sample."""
    mean, metrics = compiled_loss(network, recipe(**fields))(params, example)
    np.testing.assert_allclose(mean, metrics["clip_loss"].mean(), rtol=1e-6)
    np.testing.assert_array_equal(metrics["clip"], example.clip)
    return np.asarray(metrics["clip_loss"])


def drop(conditions, **fields):
    dropped = jax.jit(supervised.drop_conditions, static_argnums=1)
    return dropped(conditions, recipe(**fields), KEY)


def many(rows: int):
    """The same conditions for every sample."""
    return jax.tree.map(
        lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:])), make_batch(1).conditions
    )


def is_uniform(values) -> bool:
    """Kolmogorov-Smirnov: one honest sample in a thousand would fail."""
    return stats.kstest(np.asarray(values, np.float64), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("density", "mean", "std"),
    [("uniform", 0.0, 1.0), ("logit_normal", 0.0, 1.0), ("logit_normal", 0.7, 0.5)],
)
def test_noise_levels_have_the_density_that_is_asked_for(density, mean, std):
    config = recipe(density=density, density_mean=mean, density_std=std)
    sigma = np.asarray(supervised.noise_levels(config, 20000, KEY), np.float64)
    u = sigma / (3 - 2 * sigma)  # the shift undone
    if density == "uniform":
        assert is_uniform(u)
    else:
        logit = np.log(u / (1 - u))
        assert is_uniform(stats.norm.cdf(logit, mean, std))
        assert not is_uniform(stats.norm.cdf(logit, mean + 0.05, std))


def test_the_network_is_told_the_level_of_the_noise_it_sees():
    def network(params):
        def velocity(x, timestep, conditions, cache):
            return x + timestep[:, None, None, None, None]

        return Network(lambda conditions: None, velocity)

    example = jax.tree.map(np.asarray, drawn(global_batch(6)))
    errors = errors_of(network, {}, example)
    level = np.float64(example.sigma)[:, None, None, None, None]
    x = (1 - level) * example.clean + level * example.noise
    wrong = x + 1000 * level - (example.noise - example.clean)
    np.testing.assert_allclose(errors, (wrong**2).mean((1, 2, 3, 4)), rtol=1e-5)


def test_conditions_are_dropped_by_independent_coins():
    rows = 4000
    c = many(rows)
    shares = {"audio": 0.5, "text": 0.3, "reference": 0.2, "still": 0.4}
    d = drop(c, **{f"drop_{name}": share for name, share in shares.items()})
    c, d = jax.tree.map(np.asarray, (c, d))
    off = {
        "audio": ~d.has_audio,
        "text": (d.text == c.null_text).all((1, 2)),
        "reference": ~d.reference_tokens.any((1, 2, 3)),
        "still": ~d.still_tokens.any((1, 2)),
    }
    for name, share in shares.items():
        assert abs(off[name].mean() - share) < 4 * np.sqrt(share / rows)
    between = np.corrcoef(np.stack(list(off.values())))
    assert np.abs(between - np.eye(4)).max() < 4 / np.sqrt(rows)
    # both tracks are one coin; a reference takes its own away with it
    heard = ~off["audio"] & ~off["reference"]
    np.testing.assert_array_equal(d.has_reference_audio, heard)
    np.testing.assert_array_equal(off["still"], (d.still == 0).all((1, 2, 3, 4)))
    np.testing.assert_array_equal(d.motion, c.motion)
    np.testing.assert_array_equal(d.null_text, c.null_text)


def test_what_is_dropped_is_what_guidance_will_ask_for():
    c = global_batch(3).conditions
    for asked, fields in (
        (c, {}),
        (guidance.without_audio(c), {"drop_audio": 1.0}),
        (guidance.without_reference(c), {"drop_reference": 1.0}),
        (c._replace(text=c.null_text), {"drop_text": 1.0}),
    ):
        jax.tree.map(np.testing.assert_array_equal, drop(c, **fields), asked)


@pytest.mark.parametrize("stage", [text_to_video, audio_to_video])
def test_stages_before_the_first_are_told_no_reference_and_no_scene(stage):
    config = stage.get_config("tiny")
    assert config.data.continuation == 0
    told = jax.tree.map(np.asarray, drop(many(50), **config.flow))
    assert not told.reference_tokens.any() and not told.still_tokens.any()
    assert not told.has_reference_audio.any()
    assert told.has_audio.any() == (stage is audio_to_video)


def test_motion_noise_reaches_continuations_only_at_levels_drawn_for_each():
    has_motion = np.arange(2000) % 3 > 0
    c = many(len(has_motion))
    c = c._replace(has_motion=has_motion, motion=jnp.full(c.motion.shape, 1e3))
    noise = jax.jit(supervised.noise_motion, static_argnums=1)
    noised = noise(c, recipe(motion_noise=0.4), KEY)
    untouched = noised._replace(motion=c.motion)
    jax.tree.map(np.testing.assert_array_equal, untouched, c)
    moved = np.asarray(noised.motion, np.float64)
    np.testing.assert_array_equal(moved[~has_motion], 1e3)
    moved = moved[has_motion]
    # (1 - s) 1000 + s e: the mean tells s, what is left is s e
    level = 1 - moved.mean((1, 2, 3, 4)) / 1e3
    assert is_uniform(level / 0.4)
    e = (moved - moved.mean((1, 2, 3, 4), keepdims=True))[level > 0.05]
    e /= level[level > 0.05, None, None, None, None]
    assert abs(e.std() - 1) < 0.02

    clean = noise(c, recipe(motion_noise=0.0), KEY)
    jax.tree.map(np.testing.assert_array_equal, clean, c)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("density", "normal"),
        ("drop_still", 1.5),
        ("motion_noise", -0.1),
        ("face_weight", 0.0),
        ("density_std", 0.0),
    ],
)
def test_a_field_without_meaning_is_refused_by_its_name(field, value):
    with pytest.raises(InputError, match=rf"^flow\.{field}: .*expected"):
        recipe(**{field: value})


def test_frozen_weights_of_the_network_are_leaves_of_the_step():
    frozen = jnp.arange(3.0)

    def network(frozen, params):
        return toy_network({**params, "bias": frozen})

    bound = jax.tree_util.Partial(network, frozen)
    loss = supervised.flow_loss(bound, NO_DROPS)
    step = supervised.make_step(supervised.flow_draw(NO_DROPS), loss, ADAM)
    for part in (loss, step):
        (leaf,) = jax.tree.leaves(part)
        assert leaf is frozen
    params = {"kernel": toy_params()["kernel"]}
    state = optimizer.create_state(params, ADAM)
    run = jax.jit(lambda step, *args: step(*args)[1]["loss"])
    losses = [
        run(jax.tree.map(lambda x, k=k: k * x, step), state, global_batch(2), KEY)
        for k in (1.0, 2.0)
    ]
    assert losses[0] != losses[1] and run._cache_size() == 1


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_the_loss_of_a_solvable_flow_falls_to_its_known_minimum(density):
    # Latents are normal with mean m and deviation s, so of all functions of x
    #     v = -m + (sigma - (1 - sigma) s^2) / V (x - (1 - sigma) m)
    # is the best, by s^2 / V, with V = (1 - sigma)^2 s^2 + sigma^2 the variance of x.
    config = recipe(density=density, density_mean=-0.5, density_std=0.8)
    mean, deviation = jnp.array([1.0, -2.0, 0.5]), 0.5

    def network(params):
        def velocity(x, timestep, conditions, cache):
            sigma = (timestep / 1000)[:, None, None, None, None]
            m = params["mean"][None, None, None, None]
            square = jnp.exp(2 * params["log"])
            variance = (1 - sigma) ** 2 * square + sigma**2
            slope = (sigma - (1 - sigma) * square) / variance
            return slope * (x - (1 - sigma) * m) - m

        return Network(lambda conditions: None, velocity)

    def batch(key, rows):
        noise = jax.random.normal(key, (rows, 5, 4, 4, 3))
        one = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), global_batch(1))
        return one._replace(latents=mean[None, None, None, None] + deviation * noise)

    draw, loss = supervised.flow_draw(config), supervised.flow_loss(network, config)
    step = supervised.make_step(draw, loss, ADAM)

    @jax.jit
    def learn(state):
        def one(state, key):
            data_key, key = jax.random.split(key)
            state, metrics = step(state, batch(data_key, 64), key)
            return state, metrics["loss"]

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(1), 300))

    start = {"mean": jnp.zeros(3), "log": jnp.zeros(())}
    state, losses = learn(optimizer.create_state(start, ADAM))
    learned = sampling_params(state)
    best = {"mean": mean, "log": jnp.log(deviation)}
    example = draw(batch(KEY, 4000), KEY)
    reached, least = (jax.jit(loss)(p, example)[0] for p in (learned, best))

    u = (np.arange(100_000) + 0.5) / 100_000
    if density == "logit_normal":
        u = 1 / (1 + np.exp(0.5 - 0.8 * stats.norm.ppf(u)))
    sigma = 3 * u / (1 + 2 * u)
    square = deviation**2
    minimum = (square / ((1 - sigma) ** 2 * square + sigma**2)).mean()
    np.testing.assert_allclose(least, minimum, rtol=0.015)
    assert losses[0] > 2 * minimum
    assert least <= reached < 1.01 * least
    np.testing.assert_allclose(learned["mean"], mean, atol=0.05)
    np.testing.assert_allclose(jnp.exp(learned["log"]), deviation, atol=0.02)
