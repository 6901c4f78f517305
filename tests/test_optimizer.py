import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from tavr_jax.errors import InputError
from tavr_jax.training.optimizer import (
    OptimizerConfig,
    apply_update,
    average_decay,
    create_state,
    learning_rate,
)
from tavr_jax.training.state import sampling_params

ADAM = dataclasses.replace(
    OptimizerConfig(**base.optimizer()), learning_rate=0.1, warmup_steps=4
)


def params() -> dict:
    """Two stacked layers: their biases have two axes, and do not decay."""
    return {"kernel": jnp.arange(1.0, 9.0).reshape(2, 2, 2), "bias": jnp.ones((2, 2))}


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    return np.array([float(learning_rate(config, jnp.int32(t))) for t in range(steps)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_in_a_line_and_falls_as_asked(schedule, warmup):
    config = dataclasses.replace(
        ADAM,
        schedule=schedule,
        schedule_steps=24,
        final_rate=0.2,
        warmup_steps=warmup,
    )
    found = rates(config, 40) / config.learning_rate
    np.testing.assert_allclose(
        found[: warmup + 1], np.arange(1, warmup + 2) / (warmup + 1), rtol=1e-6
    )
    p = np.clip((np.arange(warmup, 40) - warmup) / (24 - warmup), 0, 1)
    falls = {
        "constant": np.ones_like(p),
        "linear": 1 - 0.8 * p,
        "cosine": 0.2 + 0.8 * (1 + np.cos(np.pi * p)) / 2,
    }
    np.testing.assert_allclose(found[warmup:], falls[schedule], rtol=1e-5)


def test_the_update_is_adamw_at_that_rate():
    """By optax's own AdamW, fed the clipped gradient and our rate."""
    config = dataclasses.replace(
        ADAM, schedule="cosine", schedule_steps=8, clip_norm=0.5, weight_decay=0.1
    )
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(
            lambda t: learning_rate(config, t),
            config.b1,
            config.b2,
            weight_decay=0.1,
            mask={"kernel": True, "bias": False},
        ),
    )
    state, expected = create_state(params(), config), params()
    moments = theirs.init(expected)
    for step in range(6):
        grads = jax.tree.map(lambda w, s=step: jnp.sin(w + s), expected)
        updates, moments = theirs.update(grads, moments, expected)
        expected = optax.apply_updates(expected, updates)
        state, _ = apply_update(state, jnp.zeros(()), grads, config)
        state = state._replace(step=state.step + 1)
        for name, value in expected.items():
            np.testing.assert_allclose(state.params[name], value, rtol=1e-6)


def test_the_averages_decay_grows_to_its_limit():
    config = dataclasses.replace(ADAM, ema_decay=0.5, ema_ramp=0.2)
    found = [float(average_decay(config, jnp.int32(t))) for t in range(5)]
    np.testing.assert_allclose(found, [0.0, 0.2, 0.4, 0.5, 0.5], rtol=1e-6)
    at_once = dataclasses.replace(config, ema_ramp=0.0)
    assert float(average_decay(at_once, jnp.int32(0))) == 0.5

    state = create_state(params(), config)
    grads = jax.tree.map(jnp.ones_like, state.params)
    average = np.asarray(state.params["kernel"], np.float64)
    for decay in found:
        state, _ = apply_update(state, jnp.zeros(()), grads, config)
        state = state._replace(step=state.step + 1)
        average = decay * average + (1 - decay) * np.asarray(state.params["kernel"])
        np.testing.assert_allclose(state.ema["kernel"], average, rtol=1e-6)


def test_there_may_be_no_average():
    off = create_state(params(), dataclasses.replace(ADAM, ema_decay=0.0))
    assert off.ema is None and sampling_params(off) is off.params


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_moves_nothing(where):
    config = dataclasses.replace(ADAM, ema_ramp=0.1)
    state = create_state(params(), config)
    grads = jax.tree.map(jnp.ones_like, state.params)
    state, _ = apply_update(state, jnp.zeros(()), grads, config)
    bad = dict(grads, bias=grads["bias"].at[1, 0].set(jnp.nan))
    loss = jnp.float32(jnp.inf if where == "loss" else 0.0)
    after, metrics = apply_update(
        state, loss, bad if where == "gradient" else grads, config
    )
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_master_weights_stay_float32_under_bfloat16_gradients():
    state = create_state(params(), ADAM)
    grads = jax.tree.map(lambda w: w.astype(jnp.bfloat16), state.params)
    state, _ = apply_update(state, jnp.zeros(()), grads, ADAM)
    for leaf in jax.tree.leaves((state.params, state.ema)):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("schedule", "step", "constant | linear | cosine"),
        ("learning_rate", -1.0, "0 or more"),
        ("final_rate", 1.5, "0 to 1"),
        ("b2", 1.0, "below 1"),
        ("clip_norm", 0.0, "inf"),
        ("accumulate", 0, "1 or more"),
        ("ema_decay", 1.0, "no average"),
        ("ema_ramp", -0.1, "no ramp"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(field, value, remedy):
    with pytest.raises(InputError, match=rf"^optimizer\.{field}: .*{remedy}") as told:
        dataclasses.replace(ADAM, **{field: value})
    assert "\n" not in str(told.value)


def test_a_schedule_has_to_outlast_the_warm_up():
    short = {"schedule_steps": 4, "warmup_steps": 4}
    dataclasses.replace(ADAM, schedule="constant", **short)
    with pytest.raises(InputError, match=r"schedule_steps: 4: .*warmup_steps = 4"):
        dataclasses.replace(ADAM, schedule="cosine", **short)
