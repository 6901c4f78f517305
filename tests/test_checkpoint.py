"""What is on disk can be trusted: complete, of this network, of this run."""

import ctypes
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_training import claimed, create_toy, run_toy, tiny_config, toy_batches

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training.checkpoint import (
    Checkpoints,
    load_params,
    load_tree,
    read_config,
    save_tree,
)
from tavr_jax.training.state import TrainState


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
    shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2", folder / "3")
    (folder / "3" / "_CHECKPOINT_METADATA").unlink()
    shutil.copytree(folder / "2", folder / "5")
    shutil.rmtree(folder / "5" / "progress")
    assert claimed(workdir, tiny_config()).latest() == 2
    assert not list(folder.glob("*-tmp-*")), "a whole state, kept for nobody"
    state = run_toy(workdir, 6, checkpoint_every=1)
    assert int(state.step) == 6
    assert claimed(workdir, tiny_config()).latest() == 6


def test_damaged_checkpoint_is_named(workdir, finished):
    for file in (workdir / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    checkpoints = claimed(workdir, tiny_config())
    abstract = jax.eval_shape(create_toy)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract
    )
    folder = workdir / "checkpoints" / "2"
    with pytest.raises(InputError, match="params: cannot be read"):
        load_params(folder, abstract.params, ema=False)
    with pytest.raises(InputError, match=r"checkpoints/2: cannot be restored"):
        checkpoints.restore(abstract, toy_batches(8))


@pytest.mark.parametrize(
    ("every", "keep", "keep_every", "left"),
    [(1, 2, 0, [5, 6]), (1, 1, 3, [3, 6]), (4, 1, 3, [3, 6, 7])],
)
def test_the_newest_are_kept_and_some_for_good(tmp_path, every, keep, keep_every, left):
    steps = max(left)
    run_toy(tmp_path, steps, checkpoint_every=every, keep=keep, keep_every=keep_every)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == left


@pytest.fixture
def large():
    """A state that takes long to write, what it holds, and its shapes."""
    mesh = make_mesh(MeshConfig(1, -1, 1, 1), jax.devices()[:2])

    def create():
        wide = {"kernel": jnp.arange(8_000_000.0), "bias": jnp.ones(3)}
        return TrainState(jnp.int32(7), wide, jax.tree.map(jnp.cos, wide), None)

    abstract = sharding.abstract(mesh, jax.eval_shape(create))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.block_until_ready(jax.jit(create, out_shardings=shardings)())
    return state, jax.tree.map(np.array, state), abstract


def overwrite(tree):
    """Fill the memory of every array, whoever looks at it."""
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            data = shard.data
            ctypes.memset(data.unsafe_buffer_pointer(), 0x7F, data.nbytes)


def test_what_is_saved_is_the_state_of_that_moment(tmp_path, large):
    """Checkpoints are written while training goes on in the same memory."""
    state, expected, abstract = large
    checkpoints = claimed(tmp_path, tiny_config())
    checkpoints.save(state, toy_batches(8), {})
    overwrite(state)
    checkpoints.close()
    assert not np.array_equal(state.params["bias"], expected.params["bias"])
    checkpoints = claimed(tmp_path, tiny_config())
    restored = checkpoints.restore(abstract, toy_batches(8))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, large):
    state, expected, abstract = large
    checkpoints = claimed(tmp_path, tiny_config())
    checkpoints.save(state, toy_batches(8), {})
    checkpoints.close()
    checkpoints = claimed(tmp_path, tiny_config())
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
    try:
        with pytest.raises(InputError, match=r"/checkpoints.* cannot be written") as e:
            checkpoints.save(state._replace(step=8), toy_batches(8), {})
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert "make room" in str(e.value) and "\n" not in str(e.value)
    checkpoints = claimed(tmp_path, tiny_config())
    restored = checkpoints.restore(abstract, toy_batches(8))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_a_folder_that_cannot_be_written_is_not_taken_for_a_full_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file/w: cannot be written .*is the fol"
    ) as e:
        save_tree(tmp_path / "file" / "w", {"w": jnp.ones(3)})
    assert "room" not in str(e.value) and "\n" not in str(e.value)


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
    ("field", "value"),
    [
        ("model.dim", 64),
        ("stage", "codec"),
        ("data.batch_size", 4),
        ("data.workers", 2),
        ("networks.codec", "elsewhere"),
        ("optimizer.trainable", "lora"),
        ("lora.rank", 3),
        ("policy.eta", 0.1),
    ],
)
def test_another_run_is_not_resumed(workdir, field, value):
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    before = (workdir / "config.json").read_text()
    with pytest.raises(InputError, match=rf"--config\.{field}: .*{value!r}, but"):
        Checkpoints(workdir, config, "toys")
    assert (workdir / "config.json").read_text() == before


def test_other_data_is_refused_wherever_it_lies(workdir):
    config = tiny_config()
    config.data.path = "moved/elsewhere"
    Checkpoints(workdir, config, "toys")
    before = (workdir / "config.json").read_text()
    config.data.path = "third"
    with pytest.raises(InputError, match=r"--config\.data\.path: third: not the data"):
        Checkpoints(workdir, config, "other toys")
    assert (workdir / "config.json").read_text() == before


def test_rates_lengths_parts_and_guards_may_change(workdir):
    config = tiny_config(steps=99)
    config.optimizer.learning_rate, config.optimizer.accumulate = 1.0, 4
    config.policy.guard_fall = 0.0
    assert claimed(workdir, config).latest() == 2
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
