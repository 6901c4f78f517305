"""What is on disk can be trusted: complete, of this network, of this run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_training import create_toy, run_toy, tiny_config, toy_batches

from tavr_jax.errors import InputError
from tavr_jax.training.checkpoint import (
    Checkpoints,
    load_params,
    load_tree,
    read_config,
    save_tree,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2, and the state after step 2."""
    workdir = tmp_path_factory.mktemp("finished")
    state = run_toy(workdir, 2, checkpoint_every=1)
    return workdir, jax.device_get(state)


@pytest.fixture
def workdir(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "w")
    return tmp_path / "w"


def test_weights_come_back_averaged_or_as_trained(finished):
    workdir, state = finished
    abstract = jax.eval_shape(create_toy).params
    for path in (workdir, workdir / "checkpoints" / "2"):
        for ema, expected in ((True, state.ema), (False, state.params)):
            loaded = load_params(path, abstract, ema=ema)
            jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert not np.array_equal(state.ema["bias"], state.params["bias"])


def test_loaded_weights_land_on_one_device_unless_told_otherwise(finished):
    # written from two devices
    loaded = load_params(finished[0], jax.eval_shape(create_toy).params)
    assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(loaded))


def test_half_written_checkpoints_are_ignored(workdir):
    folder = workdir / "checkpoints"
    # killed while writing; killed while copying; not a step at all
    shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp-17")
    shutil.copytree(folder / "2", folder / "3")
    (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(folder / "2", folder / "5")
    shutil.rmtree(folder / "5" / "data")
    assert Checkpoints(workdir, tiny_config()).latest() == 2
    state = run_toy(workdir, 6, checkpoint_every=1)
    assert int(state.step) == 6
    assert Checkpoints(workdir, tiny_config()).latest() == 6


def test_damaged_checkpoint_is_named(workdir, finished):
    for file in (workdir / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    checkpoints = Checkpoints(workdir, tiny_config())
    abstract = jax.eval_shape(create_toy)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    with pytest.raises(InputError, match=r"checkpoints/2: cannot be restored"):
        checkpoints.restore(abstract, toy_batches(8))


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run_toy(tmp_path, 5, checkpoint_every=1, keep=2)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["4", "5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: {**p, "bias": jnp.zeros(4)},
            r"bias has shape \(3,\), expected \(4,",
        ),
        (lambda p: {"bias": p["bias"]}, r"kernel is unknown"),
        (lambda p: {**p, "extra": p["bias"]}, r"extra is missing"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(finished, change, message):
    abstract = jax.eval_shape(lambda: change(create_toy().params))
    with pytest.raises(InputError, match=message):
        load_params(finished[0], abstract)


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="no complete checkpoint"):
        load_params(tmp_path, {})
    with pytest.raises(InputError, match=r"config\.json: not found"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_config(tmp_path)


def test_config_survives_the_disk(finished):
    config = tiny_config(steps=2, checkpoint_every=1)
    assert read_config(finished[0]).to_dict() == config.to_dict()
    assert (
        json.loads((finished[0] / "config.json").read_text())["stage"] == "same_scene"
    )


@pytest.mark.parametrize(
    ("field", "value"), [("model.dim", 64), ("stage", "codec"), ("data.batch_size", 4)]
)
def test_another_run_is_not_resumed(workdir, field, value):
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    before = (workdir / "config.json").read_text()
    with pytest.raises(InputError, match=rf"--config\.{field}: .*{value!r}, but"):
        Checkpoints(workdir, config)
    assert (workdir / "config.json").read_text() == before


def test_rates_and_lengths_may_change(workdir):
    config = tiny_config(steps=99)
    config.optimizer.learning_rate = 1.0
    assert Checkpoints(workdir, config).latest() == 2
    assert read_config(workdir).train.steps == 99


def test_modules_travel_under_their_own_names(tmp_path):
    module = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    params = nnx.state(module, nnx.Param)
    save_tree(tmp_path / "start", params)
    loaded = load_tree(tmp_path / "start", jax.eval_shape(lambda: params))
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    wider = nnx.state(nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0))), nnx.Param)
    with pytest.raises(InputError, match=r"layers/1/.* is unknown"):
        load_tree(tmp_path / "start", wider)
