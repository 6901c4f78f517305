"""Shipping a run and loading it by name: the same weights to float16, and a card."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_docs import problems

from configs import cross_scene, face, policy, same_scene
from launch import build, checkpoints, origin, provenance, ship_card, ship_weights
from launch import shipped as carried
from launch.start import begin
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.tensors import read_metadata, read_tensors, write_tensors
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import checkpoint

ROOT = Path(__file__).parents[1]
MESH = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])
HALF = 2.0**-11  # of float16: the largest relative error of rounding
TINIEST = 2.0**-25  # and the largest absolute one, of subnormal numbers
COMMAND = "python -m launch.train --config configs/{}.py:tiny --workdir={}"


def trained(workdir: Path, stage, init_from="", seed=0, step=20) -> Path:
    """What a run leaves behind: another average than weights, two starts."""
    config = stage.get_config("tiny")
    config.init_from, config.data.path = str(init_from), "/somewhere/dataset"
    config.networks.face = config.networks.lipsync = "mini"
    start = begin(config, MESH, workdir, False)
    rng = np.random.default_rng(seed)

    def moved(x):
        away = x + 0.05 * rng.standard_normal(x.shape, np.float32)
        return jax.device_put(away.astype(x.dtype), x.sharding)

    folder, params = workdir / "checkpoints" / str(step), start.params()
    checkpoint.save_tree(folder / "params", jax.tree.map(moved, params))
    checkpoint.save_tree(folder / "ema", jax.tree.map(moved, params))
    for item in ("opt_state", "progress"):
        (folder / item).mkdir()
    (folder / "_CHECKPOINT_METADATA").touch()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    origin.write(workdir, start.base)
    before = sys.argv
    sys.argv = [str(ROOT / "launch/train.py"), "--config"]
    sys.argv += [f"configs/{config.stage}.py:tiny", f"--workdir={workdir}"]
    sys.argv += ["--config.data.path", "/somewhere/dataset", f"--config.seed={42}"]
    sys.argv += [f"--config.init_from={init_from}"] if init_from else []
    try:
        for _ in range(2):
            provenance.write(workdir, config, "f" * 16, start.facts)
    finally:
        sys.argv = before
    clock = [*range(100, 1300, 100), *range(50, 450, 50)]
    lines = [
        {"step": n + 1, "loss": 2.0 / (n + 1), "reward": 0.1 * n, "seconds": clock[n]}
        for n in range(20)
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """W with the three stages, the third one with low-rank additions."""
    root = tmp_path_factory.mktemp("W")
    trained(root / "same_scene", same_scene, seed=1)
    trained(root / "cross_scene", cross_scene, root / "same_scene", seed=2)
    trained(root / "policy", policy, root / "cross_scene", seed=3)
    return root


def ship(workdir: Path, name: str, folder: Path) -> Path:
    weights = ship_weights.gather(workdir, name, folder)
    card = ship_card.gather(weights, name, workdir, folder)
    path = ship_weights.write(weights, name, folder)
    path.with_suffix(".md").write_text(ship_card.text(card))
    return path


@pytest.fixture(scope="module")
def package(runs, tmp_path_factory) -> Path:
    """What the package would carry after the three stages were shipped."""
    folder = tmp_path_factory.mktemp("package")
    for stage in carried.STAGES:
        ship(runs / stage, stage, folder)
    return folder


@pytest.fixture
def mini(package, monkeypatch) -> Path:
    """`mini` means the stages of `package`."""
    monkeypatch.setattr(build, "ASSETS", package)
    return package


def loaded(name) -> checkpoints.Checkpoint:
    path = checkpoints.find(str(name))
    config = checkpoints.config_of(path, None, {})
    config.parallel.data, config.parallel.fsdp = 1, -1
    return checkpoints.load(path, config)


def flat(params) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(params)
    return {"/".join(map(str, k)): np.asarray(v.get_value()) for k, v in state}


def apart(one, other) -> float:
    """Largest difference, as a share of what rounding both to float16 can make."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    return max(
        (np.abs(a - other[n]) / (HALF * np.abs(other[n]) + TINIEST)).max()
        for n, a in one.items()
    )


@pytest.mark.parametrize("stage", ["same_scene", "cross_scene"])
def test_a_shipped_stage_has_the_averaged_weights_of_its_run(mini, runs, stage):
    found, run = loaded(f"mini:{stage}"), loaded(runs / stage)
    assert apart(found.weights, run.weights) <= 1.01
    assert {x.dtype.name for x in jax.tree.leaves(found.weights)} == {"float32"}
    assert found.graph == run.graph and found.path == f"mini:{stage}"
    assert found.config.name == run.config.name
    assert found.config.model.to_dict() == run.config.model.to_dict()


def test_additions_alone_are_the_run_merged(mini, runs, tmp_path):
    """Both to rounding; what they add is kept far below the rounding of a weight."""
    facts = read_metadata(mini / "policy.safetensors")
    assert facts["upon"] == "cross_scene"
    whole = ship(runs / "policy", "policy", tmp_path)  # nothing beside it
    assert "upon" not in read_metadata(whole)
    size = [p.stat().st_size for p in (mini / "policy.safetensors", whole)]
    assert size[0] < 0.7 * size[1]
    run, below = loaded(runs / "policy"), loaded(runs / "cross_scene")
    assert apart(loaded(whole).weights, run.weights) <= 1.01
    added, learned = (
        {n: x - flat(base.weights)[n] for n, x in flat(found.weights).items()}
        for found, base in ((loaded("mini"), loaded("mini:cross_scene")), (run, below))
    )
    assert np.abs(learned["blocks/ffn/up/kernel"]).max() > 0.001
    for name, expected in learned.items():
        np.testing.assert_allclose(added[name], expected, 0.01, 3e-5, err_msg=name)


def sampled(found: checkpoints.Checkpoint) -> np.ndarray:
    """Latents of one video, of conditions that depend on nothing but the config."""
    config, rng = found.config, np.random.default_rng(0)
    model = config.model

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    count, text = model.num_videoref_latents, (model.text_len, model.text_dim)
    request = generate.Request(
        still=draw(1, 4, 4, config.codec.z_dim),
        still_tokens=np.ones((2, 2), bool),
        reference=draw(count, 4, 4, config.codec.z_dim),
        reference_tokens=np.ones((count, 2, 2), bool),
        reference_audio=draw(4 * count, model.videoref_audio_dim),
        text=draw(*text),
        null_text=draw(*text),
        negative_text=draw(*text),
        audio=draw(17, model.audio_dim),
    )
    settings = generate.SamplerConfig(**config.sampler)
    plan = chunks.plan(
        17, model.num_video_latents, config.chunks.motion_latents,
        config.chunks.canvas_tail,
    )  # fmt: skip
    sampler = generate.sampler(found.graph, settings, MESH)
    weights = jax.tree.map(np.asarray, found.weights)  # of one device
    key = jax.random.key(0)
    return np.asarray(generate.latents(sampler, weights, request, plan, key))


def test_a_video_is_that_of_the_workdir(mini, runs):
    ours, run, before = (
        sampled(loaded(name))
        for name in ("mini", runs / "policy", runs / "cross_scene")
    )
    learned = np.abs(run - before).mean()
    # the state of a sampler is rounded to bfloat16 after every step
    assert np.abs(ours - run).mean() < 0.1 * learned
    assert learned > 0.02


def test_training_starts_from_a_name(mini, runs, tmp_path):
    config = policy.get_config("tiny")
    config.init_from = "mini:cross_scene"
    start = begin(config, MESH, tmp_path, False)
    expected = flat(loaded("mini:cross_scene").weights)
    frozen = flat(start.frozen)
    assert expected.keys() == frozen.keys()
    assert all(np.array_equal(frozen[n], expected[n]) for n in expected)
    origin.write(tmp_path, start.base)
    again = begin(config, MESH, tmp_path, True)
    assert apart(again.frozen, start.frozen) == 0
    # and what such a run learns is shipped upon the same stage
    workdir = trained(tmp_path / "W", policy, "mini:cross_scene", seed=9)
    weights = ship_weights.gather(workdir, "policy", mini)
    assert weights.facts["upon"] == "cross_scene"
    config = face.get_config("tiny")
    config.init_from = "mini"
    with pytest.raises(InputError, match="a transformer; stage face trains another"):
        begin(config, MESH, tmp_path, False)


def test_names_that_mean_nothing_are_one_line(package, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ASSETS", tmp_path)
    for name in ("mini:", "mini:polity", "mini:codec"):
        told = "not shipped here" if name == "mini:" else r"expected mini \| mini:same_"
        with pytest.raises(InputError, match=f"^--checkpoint {name}: .*{told}"):
            checkpoints.find(name)
    with pytest.raises(
        InputError, match=r"^--config\.init_from mini: not shipped here"
    ):
        origin.find("mini")
    shutil.copy(package / "policy.safetensors", tmp_path)
    with pytest.raises(InputError, match=r"additions to cross_scene\.safetensors"):
        loaded("mini")
    for file in ("cross_scene", "same_scene"):  # another stage under its name
        shutil.copy(
            package / f"{file}.safetensors", tmp_path / "cross_scene.safetensors"
        )
        if file == "same_scene":
            with pytest.raises(InputError, match="belong to other weights"):
                loaded("mini")
        else:
            loaded("mini")


def test_a_damaged_file_is_refused(mini, tmp_path):
    path = mini / "cross_scene.safetensors"
    facts, tensors = read_metadata(path), read_tensors(path)
    tensors["head.linear.bias" if "head.linear.bias" in tensors else min(tensors)][
        ...
    ] = 1
    write_tensors(tmp_path / path.name, tensors, facts)
    with pytest.raises(InputError, match="damaged"):
        loaded(tmp_path / path.name)


def test_another_network_of_the_package_is_loaded_by_who_reads_it(tmp_path):
    workdir = trained(tmp_path / "judge", face, seed=4)
    path = ship(workdir, "face_judge", tmp_path / "package")
    config = face.get_config("tiny")
    config.networks.face = str(path)
    found = nnx.state(build.face_net(config), nnx.Param)
    run = origin.load(origin.find(str(workdir)), config, MESH)
    assert apart(found, run.params) <= 1.01
    with pytest.raises(
        InputError, match="--name codec: is trained in stage codec, but"
    ):
        ship_weights.gather(workdir, "codec", tmp_path)
    with pytest.raises(InputError, match=r"--name x: expected codec \| face"):
        ship_weights.gather(workdir, "x", tmp_path)


# Cards


def test_a_card_says_what_was_run_how_long_and_from_what(mini, runs):
    text = (mini / "policy.md").read_text()
    assert problems(mini / "policy.md", text) == []
    # once, though the run was started twice, and no place of this machine
    command = (
        "python -m launch.train --config configs/policy.py:tiny --workdir=W/policy"
    )
    assert text.count(command) == 1 and str(runs) not in text
    assert "--config.data.path DATASET" in text and "/somewhere" not in text
    assert "--config.init_from=W/cross_scene" in text
    assert "| starts from | [cross_scene](cross_scene.md) |" in text
    assert "configs/cross_scene.py" not in text, "has a card of its own"
    assert "low-rank additions to cross_scene.safetensors" in text
    assert "ynthetic people only" in text and "Apache-2.0" in text
    row = next(line for line in text.splitlines() if line.startswith("| policy | 20 |"))
    assert "| 42 | 0.44 |" in row and "f" * 16 in row  # 1200 + 400 seconds
    assert provenance.git(ROOT)["commit"][:12] in row
    curve = re.findall(r"^\| (\d+) \| ([\d.]+) \|$", text, re.M)
    assert [int(step) for step, _ in curve] == list(range(2, 21, 2))
    np.testing.assert_allclose([float(v) for _, v in curve], np.arange(10) * 0.2 + 0.05)


def test_runs_that_led_to_it_and_have_no_card_are_told(runs, tmp_path):
    text = ship(runs / "policy", "policy", tmp_path).with_suffix(".md").read_text()
    places = [text.index(f"configs/{stage}.py:tiny") for stage in carried.STAGES]
    assert places == sorted(places)
    assert "| starts from | seeded weights |" in text


def test_the_package_may_not_grow_beyond_its_limit(mini, runs, monkeypatch):
    weights = ship_weights.gather(runs / "cross_scene", "cross_scene", mini)
    before = (mini / "cross_scene.safetensors").read_bytes()
    size = sum(p.stat().st_size for p in mini.glob("*.safetensors"))
    monkeypatch.setattr(ship_weights, "LARGEST", size)
    ship_weights.write(weights, "cross_scene", mini)  # in place of itself
    monkeypatch.setattr(ship_weights, "LARGEST", size - len(before) // 2)
    with pytest.raises(InputError, match=r"--output .*may carry 0;"):
        ship_weights.write(weights, "cross_scene", mini)
    assert (mini / "cross_scene.safetensors").read_bytes() == before


def test_numbers_beyond_float16_and_networks_from_elsewhere_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match=r"beyond float16"):
        ship_weights._half(nnx.State({"x": nnx.Param(jnp.float32([7e4]))}), tmp_path)
    workdir = tmp_path / "same_scene"
    shutil.copytree(runs / "same_scene", workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["networks"]["codec"] = str(tmp_path / "mini/codec.safetensors")
    (workdir / "config.json").write_text(json.dumps(config))
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/codec.safetensors").touch()
    with pytest.raises(InputError, match=r"networks\.codec: .*ship it there first"):
        ship_weights.gather(workdir, "same_scene", tmp_path / "other")
    weights = ship_weights.gather(workdir, "same_scene", tmp_path / "mini")
    stored = json.loads(weights.facts["config"])
    assert stored["networks"]["codec"] == "mini"
    assert stored["data"]["path"] == stored["init_from"] == ""


def test_the_command_writes_both_files_or_one_line(runs, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "launch.ship", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    data = tmp_path / "data.txt"
    data.write_text("python -m launch.render_people --output /tmp/x --people 3\n")
    done = run(
        "--workdir", runs / "same_scene", "--output", tmp_path / "out",
        "--data_commands", data, "--hardware", "one core", "--measured", "Blurs.",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"same_scene.safetensors", "same_scene.md"}
    text = (tmp_path / "out/same_scene.md").read_text()
    assert "launch.render_people --output PEOPLE --people 3" in text
    assert "| one core |" in text and text.endswith("## Measured\n\nBlurs.\n")
    facts = read_metadata(tmp_path / "out/same_scene.safetensors")
    assert "--people 3; python -m launch.train" in facts["command"]
    assert (facts["steps"], facts["seed"]) == ("20", "42")
    refused = run("--workdir", tmp_path, "--output", tmp_path / "none")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()
