import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from launch import build, origin
from launch.start import begin
from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.encoders.weights_tavr import entries
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.training import checkpoint
from tavr_jax.training.checkpoint import load_params, read_config

CONFIG = "--config=configs/same_scene.py:tiny"


def convert(source, output, *more: str):
    command = [sys.executable, "-m", "launch.convert_weights"]
    command += [f"--input={source}", f"--output={output}", *more]
    root = Path(__file__).parents[1]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Random numbers of the smallest transformer; biases in float32, as any file may
    have it."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("published") / "tavr.safetensors"
    model = build.abstract_transformer(same_scene.get_config("tiny"))
    tensors = {
        e.official: rng.standard_normal(e.shape).astype(
            np.float32 if e.official.endswith("bias") else ml_dtypes.bfloat16
        )
        for e in entries(model)
    }
    write_tensors(path, tensors, {})
    return path


def same_bytes(one, other) -> bool:
    a, b = read_tensors(one), read_tensors(other)
    return a.keys() == b.keys() and all(
        (x.dtype, x.shape, x.tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
        for n, x in a.items()
    )


def test_published_to_ours_and_back_is_the_identity(published, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "deep" / "back.safetensors"
    done = convert(published, ours, CONFIG)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in ours.iterdir()} == {"config.json", "params"}
    assert read_config(ours).stage == "same_scene"
    abstract = build.abstract_transformer(same_scene.get_config("tiny"))
    params = load_params(ours, nnx.split(abstract, nnx.Param)[1])  # as init_from does
    expected = read_tensors(published)["text_embedding.0.weight"].T
    np.testing.assert_array_equal(params["text_embedding"]["up"]["kernel"], expected)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}

    done = convert(ours, back)
    assert done.returncode == 0, done.stderr
    assert same_bytes(published, back)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def finish(workdir, params) -> None:
    """A run's newest checkpoint, as far as loading it goes."""
    step = workdir / "checkpoints" / "7"
    checkpoint.save_tree(step / "params", params)
    for item in ("opt_state", "progress"):
        (step / item).mkdir()
    (step / "_CHECKPOINT_METADATA").touch()


def test_a_run_of_ours_gets_its_published_names(published, tmp_path):
    workdir, back = tmp_path / "run", tmp_path / "back.safetensors"
    assert convert(published, workdir, CONFIG).returncode == 0
    abstract = build.abstract_transformer(same_scene.get_config("tiny"))
    shapes = nnx.split(abstract, nnx.Param)[1]
    finish(workdir, load_params(workdir, shapes, stored_dtypes=True))
    shutil.rmtree(workdir / "params")
    assert convert(workdir, back).returncode == 0
    assert same_bytes(published, back)


def test_a_run_with_low_rank_additions_is_merged_into_what_it_started_from(
    published, tmp_path
):
    workdir = tmp_path / "run"
    config = same_scene.get_config("tiny")
    config.optimizer.trainable, config.lora.rank = "lora", 4
    config.init_from = str(published)
    config.parallel.data, config.parallel.fsdp = 1, -1
    start = begin(config, make_mesh(MeshConfig(**config.parallel)), workdir, False)
    origin.write(workdir, start.base)
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    finish(workdir, jax.tree.map(lambda x: x + 0.5, start.params()))
    done = convert(workdir, tmp_path / "trained.safetensors")
    assert done.returncode == 0, done.stderr
    before, after = map(read_tensors, (published, tmp_path / "trained.safetensors"))
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert before.keys() == after.keys() and len(moved) == 28  # 14 in both layers
    assert {after[name].dtype.name for name in moved} == {"bfloat16"}


def test_other_containers_hold_the_same(published, tmp_path):
    done = convert(published, tmp_path / "x.safetensors", CONFIG, "--shard_gb=1e-5")
    assert done.returncode == 0, done.stderr
    index = tmp_path / "x.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    assert len(set(places.values())) > 3 and same_bytes(published, index)
    assert str(index) in done.stdout


def test_bad_input_is_one_line_and_writes_nothing(published, tmp_path):
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"kept")
    tensors = read_tensors(published)
    tensors["head.head.bias"] = np.zeros(3, np.float32)
    write_tensors(tmp_path / "bad.safetensors", tensors, {})
    new = tmp_path / "new"
    cases = [
        (published, taken, [CONFIG], "taken.safetensors: exists"),
        (tmp_path / "bad.safetensors", new, [CONFIG], r"'head\.head\.bias' has shape"),
        (published, new, [], "missing|unknown|shape"),  # the config is tavr_14b's
        (published, new, [CONFIG, "--shard_gb=0"], "--shard_gb"),
        (tmp_path / "absent", new, [CONFIG], "--input .*absent: no such file"),
    ]
    for source, output, more, reason in cases:
        done = convert(source, output, *more)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ") and re.search(reason, line), line
        assert not new.exists() and taken.read_bytes() == b"kept"
