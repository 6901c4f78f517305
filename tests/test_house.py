"""The house itself: packaging, import contracts, configs, file sizes, README."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from setuptools import find_packages

from configs import (
    audio_to_video,
    base,
    codec,
    cross_scene,
    face,
    lipsync,
    models,
    policy,
    policy_nft,
    same_scene,
    text_to_video,
)
from launch import build
from tavr_jax.encoders.weights_tavr import entries

ROOT = Path(__file__).parents[1]
ROOMS = ("tavr_jax", "configs", "data_pipelines", "launch")
STAGES = (text_to_video, audio_to_video, same_scene, cross_scene, policy, policy_nft)
NETWORKS = {codec: build.codec, face: build.face_net, lipsync: build.sync_net}


def sources(*rooms: str) -> dict[str, str]:
    paths = [p for room in rooms for p in sorted((ROOT / room).rglob("*.py"))]
    return {str(p.relative_to(ROOT)): p.read_text() for p in paths}


def test_every_folder_of_code_is_packaged_and_no_test_is():
    packaged = set(find_packages(str(ROOT), include=[f"{room}*" for room in ROOMS]))
    folders = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for p in (ROOT / room).rglob("*.py")
    }
    assert folders == packaged
    assert not any("tests" in name for name in packaged)
    text = (ROOT / "setup.py").read_text()
    for path in ROOT.glob("tavr_jax/**/*"):
        if path.is_file() and path.suffix not in (".py", ".pyc", ".md"):
            folder = path.relative_to(ROOT / "tavr_jax").parts[0]
            assert f'"{folder}/' in text, f"{path}: not in package_data of setup.py"


def test_import_contracts_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    ruff = str(Path(sys.executable).parent / "ruff")
    for command in ("check", "format --check"):
        done = subprocess.run(
            [ruff, *command.split(), "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("size", models.SIZES)
@pytest.mark.parametrize("stage", STAGES, ids=lambda m: m.__name__)
def test_every_config_builds_its_transformer(stage, size):
    config = stage.get_config(size)
    abstract = build.abstract_transformer(config)
    c = config.model
    assert c.dim % c.num_heads == 0
    assert c.num_heads % 2 == 0 or c.num_heads == 1
    expected = {"tavr_14b": 18_905_907_264}.get(size)
    if expected:
        assert build.parameters(abstract) == expected


@pytest.mark.parametrize("size", ["mini", "tiny"])
@pytest.mark.parametrize("stage", NETWORKS, ids=lambda m: m.__name__)
def test_every_network_config_builds_its_network(stage, size):
    config = stage.get_config(size)
    config.networks.codec = config.networks.face = config.networks.lipsync = "random"
    made = nnx.eval_shape(lambda: NETWORKS[stage](config))
    assert build.parameters(made) > 0


def test_the_official_file_has_2310_tensors_of_these_names():
    """The table of the published checkpoint, without allocating it."""
    abstract = build.abstract_transformer(same_scene.get_config("tavr_14b"))
    shapes = {e.official: e.shape for e in entries(abstract)}
    assert len(shapes) == 2310
    assert sum(int(np.prod(s)) for s in shapes.values()) == 18_905_907_264
    for name, shape in {
        "patch_embedding.weight": (5120, 18, 1, 2, 2),
        "blocks.39.modulation": (1, 6, 5120),
        "blocks.0.audio_attn.videoref_aud_q_adapter.1.weight": (256, 5120),
        "blocks.7.audio_attn.videoref_aud_v_adapter.0.bias": (5120,),
        "blocks.3.ffn.0.weight": (13824, 5120),
        "time_embedding_videoref": (1, 5120),
        "time_projection.1.weight": (30720, 5120),
        "head.head.weight": (64, 5120),
        "head.modulation": (1, 2, 5120),
        "null_audio_feature.weight": (1, 8192),
        "videoref_aud_embedding.0.weight": (5120, 2048),
        "videoref_audio_pos_embedding.weight": (4, 5120),
    }.items():
        assert shapes[name] == shape, name


def test_every_config_field_is_read_somewhere():
    code = "\n".join(sources("tavr_jax", "data_pipelines", "launch").values())

    def leaves(section: ConfigDict, prefix: str = ""):
        for name, value in section.items():
            if isinstance(value, ConfigDict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name, name

    unread = [
        path
        for path, name in leaves(base.get_config())
        if not re.search(rf"\.{name}\b", code)
    ]
    assert not unread, f"declared in configs/base.py, read by nothing: {unread}"


def test_every_config_field_has_a_comment():
    text = (ROOT / "configs/base.py").read_text().split("def model()")[1]
    lines = text.splitlines()
    bare = [
        line.strip()
        for above, line in itertools.pairwise(lines)
        if re.match(r"    c\.\w+ = [^(]*$", line)
        and "#" not in line
        and not above.strip().startswith(("#", "c."))
    ]
    assert not bare, bare


def test_files_stay_short():
    long = {
        name: text.count("\n")
        for name, text in sources(*ROOMS, "tests").items()
        if text.count("\n") > 450
    }
    assert not long, long


def test_the_code_has_no_second_default():
    """`config.get(x, default)` and defaults of config dataclasses are banned."""
    for name, text in sources("tavr_jax", "data_pipelines", "launch").items():
        assert not re.search(r"config\.get\(", text), name
        for body in re.findall(r"class \w+Config:\n(.*?)(?=\n\S|\Z)", text, re.S):
            defaults = re.findall(r"^    \w+: .* = .*$", body, re.M)
            assert not defaults, (name, defaults)


def test_the_readme_tree_is_the_real_tree():
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```tree\n(.*?)```", readme, re.S)
    assert tree, "README.md has no ```tree block"
    for name in sources(*ROOMS):
        path = Path(name)
        if path.name != "__init__.py":
            assert path.name in tree[1], f"{name}: not in the README's tree"
    for shown in re.findall(r"\b[\w/]+\.(?:py|sh|txt|toml|html)\b", tree[1]):
        hits = list(ROOT.rglob(Path(shown).name))
        assert hits, f"README's tree shows {shown}, which does not exist"
