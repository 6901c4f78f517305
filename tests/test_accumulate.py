"""Gradients of a batch in parts are those of the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_supervised import recipe
from test_training import ADAM, global_batch, toy_network, toy_params

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import accumulate, networks, optimizer, supervised
from tavr_jax.training.accumulate import value_and_grad

RECIPE = recipe(face_weight=3.0, motion_noise=0.3, drop_reference=0.5)
KEY = jax.random.key(2)


def toy_step(parts: int):
    config = dataclasses.replace(ADAM, accumulate=parts)
    loss = supervised.flow_loss(toy_network, RECIPE)
    return supervised.make_step(supervised.flow_draw(RECIPE), loss, config)


def after_two_steps(parts: int, batch, shape=None):
    """(state, metrics), on a mesh of `shape` or on one device."""
    state = optimizer.create_state(toy_params(), ADAM)
    step = toy_step(parts)
    run = jax.jit(lambda *args: step(*args))
    if shape is None:
        for i in range(2):
            state, metrics = run(state, batch, jax.random.fold_in(KEY, i))
        return jax.device_get((state, metrics))
    mesh = make_mesh(MeshConfig(*shape))
    split = sharding.batch(mesh, len(batch.clip))
    batch = sharding.place(split, len(batch.clip), jax.tree.map(np.asarray, batch))
    state = jax.device_put(state, sharding.parameters(mesh, state))
    with jax.set_mesh(mesh):
        for i in range(2):
            state, metrics = run(state, batch, jax.random.fold_in(KEY, i))
    return jax.device_get((state, metrics))


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other
    )


@pytest.fixture(scope="module")
def whole():
    return after_two_steps(1, continuing(16))


def continuing(rows: int):
    """Half of the samples continue a chunk."""
    batch = global_batch(rows)
    has_motion = jnp.arange(rows) % 2 == 0
    return batch._replace(conditions=batch.conditions._replace(has_motion=has_motion))


@pytest.mark.parametrize("parts", [4, 16])
def test_a_batch_in_parts_is_the_batch(whole, parts):
    cut = after_two_steps(parts, continuing(16))
    assert_close(cut, whole)  # noise, order of clips and their losses among the metrics
    assert np.ptp(whole[1]["clip_loss"]) > 0.1


def test_eight_devices_in_parts_are_one_device(whole):
    assert_close(after_two_steps(2, continuing(16), (2, 4, 1, 1)), whole)


def test_no_sample_travels_to_another_device():
    mesh = make_mesh(MeshConfig(2, 4, 1, 1))
    rows = np.arange(64, dtype=np.float32).reshape(16, 4)
    placed = sharding.place(sharding.batch(mesh, 16), 16, rows)
    with jax.set_mesh(mesh):
        cut = jax.jit(accumulate.cut, static_argnums=1).lower(placed, 2).compile()
    for moves in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
        assert moves not in cut.as_text()
    parts = cut(placed)
    for shard, old in zip(parts.addressable_shards, placed.addressable_shards):  # noqa: B905
        assert shard.device == old.device
        np.testing.assert_array_equal(shard.data[:, 0], old.data)


def test_a_broken_clip_is_named_in_parts_too():
    batch = continuing(8)
    batch = batch._replace(latents=batch.latents.at[5].set(jnp.nan))
    state, metrics = after_two_steps(4, batch)
    bad = metrics["clip"][~np.isfinite(metrics["clip_loss"])]
    np.testing.assert_array_equal(bad, batch.clip[5:6])
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, toy_params())


def test_parts_that_do_not_divide_are_refused():
    batch = {"rows": jnp.zeros((8, 2))}
    cut = value_and_grad(lambda params, part: (params * part["rows"].sum(), {}), 3)
    with pytest.raises(InputError, match=r"^optimizer\.accumulate: 3 .*batch_size 8"):
        cut(1.0, batch)
    mesh = make_mesh(MeshConfig(8, 1, 1, 1))
    with jax.set_mesh(mesh), pytest.raises(InputError, match=r"2 parts .*fsdp = 8"):
        jax.jit(lambda x: accumulate.cut(x, 2))(batch)
    with pytest.raises(ValueError, match="samples in one example"):
        accumulate.cut({**batch, "other": jnp.zeros(4)}, 2)


def test_networks_that_compare_samples_are_not_trained_in_parts():
    config = dataclasses.replace(ADAM, accumulate=2)

    def loss(params, example):
        return 0.0, {}

    with pytest.raises(InputError, match=r"^optimizer\.accumulate: 2: .*set it to 1"):
        networks.make_step(networks.face_draw, loss, config)
