"""Laws of what a velocity is from the noisy latents alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tavr_jax.models import preconditioning
from tests.test_transformer import (
    CONFIG,
    LATENTS,
    TIME,
    conditions,
    model,
    resized,
    velocity,
)

__all__ = ["model"]  # a fixture of test_transformer.py
SIZE = (1, 4, 64, 64, 16)


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_what_remains_has_unit_variance_and_nothing_of_x(sigma, deviation):
    clean, noise = jax.random.normal(jax.random.key(0), (2, *SIZE))
    clean *= deviation
    x = (1 - sigma) * clean + sigma * noise
    timestep, each = jnp.full(1, 1000 * sigma), (deviation,) * 16
    known = preconditioning.velocity(jnp.zeros(SIZE), x, timestep, each)
    scale = preconditioning.velocity(jnp.ones(SIZE), x, timestep, each) - known
    remains = np.asarray((noise - clean - known) / scale)
    assert remains.std() == pytest.approx(1, abs=0.01)
    assert np.mean(remains * np.asarray(x)) == pytest.approx(0, abs=0.01)


def test_pure_noise_leaves_the_clean_latents_to_the_network():
    clean, noise = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 4, 16))
    found = preconditioning.velocity(
        jnp.asarray(-clean), jnp.asarray(noise), jnp.full(2, 1000.0), (1.0,) * 16
    )
    np.testing.assert_allclose(found, noise - clean, atol=1e-6)


def test_the_transformer_gives_the_rest(model):
    told = conditions()
    each = (0.5, 2.0) * 8
    assert not CONFIG.latents_deviation
    found = velocity(resized(model, latents_deviation=each), told)
    official = velocity(model, told)
    expected = preconditioning.velocity(jnp.asarray(official), LATENTS, TIME, each)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, official, atol=1e-2)
