import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny_dataset
from flax import nnx

from configs import face, policy, same_scene
from launch import build, checkpoints, origin, parity_wan, stages
from launch.parity import compare
from launch.parity_oracle import FORWARD, Oracle
from launch.start import Start, begin
from tavr_jax.encoders import weights, weights_wan
from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.encoders.weights_tavr import save_transformer
from tavr_jax.errors import InputError
from tavr_jax.parallel import checksum
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import checkpoint, lora
from tavr_jax.training.report import Report

GOLDEN = Path(__file__).parent / "golden" / "wan"


def tiny(trainable: str = "all", init_from: Path | str = "", seed: int = 42):
    config = same_scene.get_config("tiny")
    config.optimizer.trainable, config.lora.rank = trainable, 4
    config.init_from, config.seed = str(init_from), seed
    return config


def started(config, workdir: Path, resuming: bool = False, devices: int = 1) -> Start:
    config.parallel.data, config.parallel.fsdp = 1, devices
    mesh = make_mesh(MeshConfig(**config.parallel), jax.devices()[:devices])
    start = begin(config, mesh, workdir, resuming)
    if not resuming:
        origin.write(workdir, start.base)
    return start


def flat(state) -> dict[str, np.ndarray]:
    if isinstance(state, nnx.Module):
        state = nnx.state(state, nnx.Param)
    flat = nnx.to_flat_state(state)
    return {"/".join(map(str, k)): np.asarray(v.get_value()) for k, v in flat}


def assert_same(found, expected, exact: bool = True) -> None:
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if exact:
            np.testing.assert_array_equal(found[name], value, name)
        else:
            np.testing.assert_allclose(found[name], value, 1e-5, 1e-6, err_msg=name)


def moved(params):
    """Parameters after some training."""
    rng = np.random.default_rng(5)

    def move(x):
        away = x + 0.1 * rng.standard_normal(x.shape, np.float32)
        return jax.device_put(away.astype(x.dtype), x.sharding)

    return jax.tree.map(move, params)


def finish(workdir: Path, config, params, step: int = 7) -> Path:
    """What a run leaves behind, as far as loading it goes."""
    folder = workdir / "checkpoints" / str(step)
    checkpoint.save_tree(folder / "params", params)
    for item in checkpoint._ITEMS:
        (folder / item).mkdir(exist_ok=True)
    (folder / "_CHECKPOINT_METADATA").touch()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def plain(seed: int = 42):
    return build.transformer(tiny(seed=seed))


# --- seeded --------------------------------------------------------------------------


def test_trained_and_frozen_together_are_the_seeded_network(tmp_path):
    config = tiny("blocks/ffn/.*")
    start = started(config, tmp_path, devices=8)
    trained = start.params()
    assert_same(start.whole(trained), plain(), False)  # jit rounds in another order
    assert flat(trained).keys() == flat(start.abstract).keys()
    assert not flat(trained).keys() & flat(start.frozen).keys()
    assert start.facts == {}
    # Nothing large is whole on one device.
    for leaf in jax.tree.leaves((trained, start.frozen)):
        assert leaf.addressable_shards[0].data.nbytes <= max(leaf.nbytes / 8, 2048)
    # They are leaves of the network, not constants of its program.
    held = sum(x.size for x in jax.tree.leaves(start.network()))
    assert held == sum(x.size for x in flat(start.frozen).values()) > 0


# --- Wan -----------------------------------------------------------------------------


def wan_config(oracle: Oracle):
    """The recorded network's sizes."""
    config = tiny("new")
    sizes = parity_wan._config(oracle)
    config.model.update({name: getattr(sizes, name) for name in config.model})
    return config


def wan_file(layout: str, folder: Path, model: nnx.Module) -> Path:
    """The recorded weights under other names."""
    theirs = read_tensors(GOLDEN / "diffusers.safetensors")
    path = folder / f"{layout}.safetensors"
    if layout == "diffusers":
        write_tensors(path, theirs, {})
        return path
    prefix = "model.diffusion_model." if layout == "comfyui" else ""
    names = zip(
        weights_wan.entries(model, diffusers=True),
        weights_wan.entries(model),
        strict=True,
    )
    write_tensors(path, {prefix + o.official: theirs[d.official] for d, o in names}, {})
    return path


def test_a_run_from_wan_begins_as_wan_and_learns_what_is_new(tmp_path):
    oracle = Oracle.open(GOLDEN / "cases.npz")
    config = wan_config(oracle)
    model = build.abstract_transformer(config)
    starts = []
    for layout in ("original", "comfyui", "diffusers"):
        config.init_from = str(wan_file(layout, tmp_path, model))
        starts.append(started(config, tmp_path / layout))
    start, params = starts[0], starts[0].params()
    for path, other in zip(("comfyui", "diffusers"), starts[1:], strict=True):
        assert_same(other.whole(other.params()), start.whole(params))
        assert other.facts["path"] == str(tmp_path / f"{path}.safetensors")
        assert other.facts["fingerprint"] == start.facts["fingerprint"] != ""

    latents, time, told = parity_wan._inputs(oracle, model, "a", 0)

    @jax.jit
    def slopes(params, told):
        def loss(params):
            network = start.network()(params)
            v = network.velocity(latents, time, told, network.prefill(told))
            return jnp.square(v).mean(), v

        return jax.grad(loss, has_aux=True)(params)

    velocity = np.moveaxis(np.asarray(slopes(params, told)[1]), -1, 1)
    assert compare(velocity, oracle.expected("a_v")) <= FORWARD

    # Whatever it is shown from now on reaches what is new.
    seen = told._replace(
        still_tokens=jnp.ones_like(told.still_tokens),
        has_motion=jnp.ones_like(told.has_motion),
    )
    found = flat(slopes(params, seen)[0])
    assert found.keys() == flat(start.abstract).keys()
    for name in ("blocks/audio_attn/o/kernel", "blocks/audio_attn/o/bias"):
        assert (np.abs(found[name]).max(-1) > 0).all()
    masks = found["patch_embedding/kernel"].reshape(4, -1, config.model.dim)[:, -2:]
    assert (np.abs(masks).max((0, 2)) > 0).all()
    assert np.abs(found["still_embedding"]).max() > 0


def test_what_wan_has_not_is_seeded_and_frozen_where_it_is_not_trained(tmp_path):
    config = tiny("blocks/self_attn/.*")
    shapes = build.abstract_transformer(config)
    rng = np.random.default_rng(0)
    tensors = {
        e.official: rng.standard_normal(e.shape, np.float32).astype(ml_dtypes.bfloat16)
        for e in weights_wan.entries(shapes)
    }
    write_tensors(tmp_path / "wan.safetensors", tensors, {})
    config.init_from = str(tmp_path / "wan.safetensors")
    start = started(config, tmp_path / "W")
    frozen, seeded = flat(start.frozen), flat(plain())
    np.testing.assert_allclose(frozen["null_audio"], seeded["null_audio"], 1e-6)
    assert not frozen["blocks/audio_attn/o/kernel"].any()
    assert frozen["blocks/ffn/up/kernel"].dtype == ml_dtypes.bfloat16


# --- published and ours --------------------------------------------------------------


@pytest.fixture(scope="module")
def tavr(tmp_path_factory) -> Path:
    """A published file in bfloat16."""
    model = plain(seed=1)
    graph, state = nnx.split(model)
    state = moved(jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    path = tmp_path_factory.mktemp("published") / "tavr.safetensors"
    return save_transformer(path, nnx.merge(graph, state), {})


def test_published_weights_train_in_float32_and_freeze_as_stored(tavr, tmp_path):
    start = started(tiny("attention", tavr), tmp_path)
    trained = flat(start.params())
    assert {x.dtype.name for x in trained.values()} == {"float32"}
    assert {x.dtype.name for x in flat(start.frozen).values()} == {"bfloat16"}
    whole = started(tiny("all", tavr), tmp_path / "all")
    assert flat(whole.frozen) == {}
    params = whole.params()
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    assert_same(start.whole(start.params()), params)
    stored = read_tensors(tavr)["blocks.1.ffn.0.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(flat(params)["blocks/ffn/up/kernel"][1], stored)


@pytest.fixture(scope="module")
def run(tavr, tmp_path_factory) -> tuple[Path, nnx.Module]:
    """A finished run that trained additions to published weights, and what it is."""
    workdir = tmp_path_factory.mktemp("lora")
    config = tiny("lora", tavr, seed=3)
    start = started(config, workdir, devices=8)
    assert {name[-6:] for name in flat(start.abstract)} == set(lora.FACTORS)
    params = moved(start.params())
    finish(workdir, config, params)
    return workdir, lora.merge(nnx.merge(start.graph, start.whole(params)))


def test_a_run_with_additions_loads_as_a_whole_plain_network(run):
    workdir, merged = run
    for path in (workdir, workdir / "checkpoints" / "7"):
        config = checkpoints.config_of(path, None, {})
        assert config.optimizer.trainable == "lora"
        loaded = checkpoints.load(path, config)
        assert_same(loaded.weights, merged)
        assert loaded.fingerprint == weights.fingerprint(merged)
        graph, _ = nnx.split(build.abstract_transformer(config), nnx.Param)
        assert loaded.graph == graph
    embedding = loaded.weights["blocks"]["ffn"]["up"]["kernel"].get_value()
    assert embedding.dtype == jnp.bfloat16


def test_a_chain_of_runs_is_followed_to_its_first(run, tmp_path):
    """Additions to a subset to additions to published weights; other seeds each."""
    workdir, merged = run
    config = tiny("head/.*", workdir, seed=8)
    start = started(config, tmp_path / "head")
    resolved = workdir / "checkpoints" / "7"
    assert start.facts["path"] == str(resolved)
    # Merged on other devices: a sum may be rounded to the other side, in bfloat16.
    for name, value in flat(start.whole(start.params())).items():
        expected = flat(merged)[name].astype(np.float32)
        np.testing.assert_allclose(value.astype(np.float32), expected, 0.01, 1e-4)
    params = moved(start.params())
    finish(tmp_path / "head", config, params)
    third = started(tiny("lora", tmp_path / "head"), tmp_path / "third")
    whole = flat(third.whole(third.params()))
    assert_same(third.frozen, start.whole(params))
    assert not whole["blocks/ffn/up/lora_b"].any()


def test_what_is_not_stored_comes_from_the_seed_of_its_own_run(tmp_path):
    config = tiny("head/.*")
    first = started(config, tmp_path / "first")
    params = first.params()
    finish(tmp_path / "first", config, params)
    second = started(tiny("lora", tmp_path / "first", seed=4), tmp_path / "second")
    assert_same(second.frozen, first.whole(params))


def test_a_base_that_is_missing_further_down_is_named(tavr, tmp_path):
    base = tmp_path / "base.safetensors"
    shutil.copy(tavr, base)
    config = tiny("head/.*", base)
    finish(tmp_path / "first", config, started(config, tmp_path / "first").params())
    base.unlink()
    with pytest.raises(InputError, match=r"base\.safetensors: not there"):
        started(tiny("lora", tmp_path / "first"), tmp_path / "second")


def test_a_resumed_run_wants_the_weights_that_it_started_from(tavr, tmp_path):
    base, workdir = tmp_path / "base.safetensors", tmp_path / "W"
    shutil.copy(tavr, base)
    config = tiny("lora", base)
    before = started(config, workdir)
    place = tmp_path / "moved.safetensors"
    base.rename(place)
    with pytest.raises(InputError, match=r"base\.safetensors: not there, .*init_from="):
        started(config, workdir, True)
    config.init_from = str(place)
    assert_same(started(config, workdir, True).frozen, before.frozen)

    tensors = read_tensors(place)
    tensors["blocks.1.ffn.0.weight"][3, 5] *= 2
    write_tensors(base, tensors, {})
    with pytest.raises(InputError, match=r"init_from: .*moved.* started from .*base"):
        started(config, workdir, True)
    config.init_from = str(base)
    with pytest.raises(InputError, match=r"base\.safetensors: other weights .*init_"):
        started(config, workdir, True)


def test_a_later_start_without_a_checkpoint_is_a_first_one(tavr, tmp_path):
    started(tiny("lora", tavr), tmp_path)
    started(tiny("all", tavr), tmp_path)
    assert origin.read(tmp_path).trainable == "all"


def test_the_reference_policy_is_what_is_trained_and_is_kept(tavr, tmp_path):
    config = tiny("lora", tavr)
    start = started(config, tmp_path)
    reference = start.reference(tmp_path, False)
    assert_same(reference, start.params())
    assert {name[-6:] for name in flat(reference)} == set(lora.FACTORS)
    again = started(config, tmp_path, True).reference(tmp_path, True)
    assert_same(again, reference)


# --- other networks ------------------------------------------------------------------


def test_other_networks_are_trained_whole(tmp_path):
    config = face.get_config("tiny")
    start = started(config, tmp_path / "first")
    params = moved(start.params())
    model = nnx.merge(start.graph, params)
    weights.save_network(tmp_path / "face.safetensors", model, {})
    finish(tmp_path / "first", config, params)
    for source in (tmp_path / "face.safetensors", tmp_path / "first"):
        config.init_from = str(source)
        assert_same(started(config, tmp_path / "second").params(), params)
    config.optimizer.trainable = "new"
    with pytest.raises(InputError, match="trainable: 'new': stage face trains all"):
        started(config, tmp_path / "third")


# --- fingerprints --------------------------------------------------------------------


def test_a_fingerprint_sees_every_change_and_no_sharding():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 16, 3), np.float32)
    first = checksum.fingerprint({"x": jnp.asarray(x)})
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    for spec in (("a",), ("b", "a"), (None, ("a", "b"))):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        assert checksum.fingerprint({"x": jax.device_put(x, place)}) == first
    touched = x.copy()
    touched.view(np.uint32)[4, 2, 1] ^= 1
    others = [
        {"x": touched},
        {"x": x[:, ::-1]},
        {"x": np.roll(x, 1, 2)},
        {"x": x.reshape(16, 8, 3)},
        {"y": x},
        {"x": x.astype(ml_dtypes.bfloat16)},
        {"x": x, "y": x[0]},
    ]
    marks = {checksum.fingerprint(jax.tree.map(jnp.asarray, o)) for o in others}
    assert len(marks) == len(others) and first not in marks


def test_what_a_finished_network_leaves_is_what_it_learned(tmp_path, capsys):
    config = face.get_config("tiny")
    start = started(config, tmp_path, devices=2)
    learned = moved(start.params())
    report = Report(tmp_path, "face", 1, None)
    stages.export(config, report, start.graph, learned)
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'face.safetensors'}: ")
    config.networks.face = str(tmp_path / "face.safetensors")
    assert_same(build.face_net(config), learned)


def test_footage_is_not_rewarded_by_networks_of_drawn_people():
    official = policy.get_config("tavr_14b")
    with pytest.raises(InputError, match=r"networks\.face: mini has seen drawn people"):
        stages.check_judges(official)
    official.networks.face = "face.safetensors"
    with pytest.raises(InputError, match=r"networks\.lipsync: .*lipsync_weight=0"):
        stages.check_judges(official)
    official.policy.lipsync_weight = 0.0
    stages.check_judges(official)
    stages.check_judges(policy.get_config("mini"))


def test_every_dataset_has_to_be_of_the_codec(tmp_path, monkeypatch):
    config = same_scene.get_config("tiny")
    codec = build.codec(config)
    one, two = (tiny_dataset.write(tmp_path / name) for name in ("one", "two"))
    config.data.path = f"{one}:0.5,{two}:0.5"
    stages.check_codec(config, codec)
    monkeypatch.setattr(tiny_dataset, "fingerprint", lambda codec: "another")
    other = tiny_dataset.write(tmp_path / "other")
    config.data.path = f"{one}:0.5,{other}:0.5"
    with pytest.raises(InputError, match=rf"the latents of {other} \(another\)"):
        stages.check_codec(config, codec)
