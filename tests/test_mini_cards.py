"""What the package carries: small enough, and every file with a card that is of it."""

import re

import jax
import numpy as np
import pytest

from launch import checkpoints, ship_weights, shipped
from tavr_jax.encoders.tensors import open_tensors, read_tensors

FILES = sorted(shipped.folder().glob("*.safetensors"))
SIGNS = {  # what a card has to say
    "commands": r"^python -m launch\.train --config configs/\w+\.py:mini",
    "data": r"^python -m launch\.prepare_data .*\n?.*--output DATASET",
    "people": r"^python -m launch\.render_people .*--people \d+",
    "for": r"^\| for \| .{20,} \|$",
    "limits": r"^\| limits \| .*ynthetic people only.* \|$",
    "licence": r"^\| licence \| Apache-2\.0 \|$",
    "start": r"^\| starts from \| .+ \|$",
    # steps, seed, hours, hardware, commit, data
    "run": r"^\| \w+ \| \d+ \| \d+ \| \d+\.\d\d \| .{3,} \| .{3,} \| .{3,} \|$",
    "curve": r"^\| step \| .*\n\| ---.*\n(\| \d+ \| .*\n){9,}",
}
# The configs of which a stage may be made, where it is not the one of its own name.
MADE_BY = {"policy": ("policy", "policy_nft")}
STAGES = [stage for stage in shipped.STAGES if stage in {p.stem for p in FILES}]


def test_the_package_carries_at_most_its_limit_and_knows_every_file():
    assert {"codec", "face", "face_judge", "lipsync"} <= {p.stem for p in FILES}
    assert {p.stem for p in FILES} <= ship_weights.NAMES.keys()
    everything = sum(p.stat().st_size for p in shipped.folder().iterdir())
    assert everything <= ship_weights.LARGEST
    cards = {p.stem for p in shipped.folder().glob("*.md")}
    assert cards == {p.stem for p in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_a_card_is_of_its_file_and_says_all_that_made_it(file):
    text, arrays = file.with_suffix(".md").read_text(), read_tensors(file)
    missing = [n for n, sign in SIGNS.items() if not re.search(sign, text, re.M)]
    assert not missing
    count = sum(array.size for array in arrays.values())
    assert f"| file | {file.name}, {2 * count / 1e6:.2f} MB |" in text
    assert f"| holds | {count:,} numbers in float16, " in text
    assert f"| fingerprint | {shipped.fingerprint(arrays)} |" in text
    tensors = open_tensors(file)
    assert {tensors.dtype(name) for name in tensors} == {np.dtype(np.float16)}
    stage = ship_weights.NAMES[file.stem]
    configs = "|".join(MADE_BY.get(stage, (stage,)))
    assert re.search(rf"--config configs/({configs})\.py:mini", text)


@pytest.mark.parametrize("stage", STAGES)
def test_a_shipped_stage_loads_by_name_with_networks_of_the_package(stage):
    path = checkpoints.find(f"mini:{stage}")
    config = checkpoints.config_of(path, None, {})
    assert config.stage == stage
    assert config.name in [f"{made}:mini" for made in MADE_BY.get(stage, (stage,))]
    named = [config.networks[n] for n in ("codec", "text", "speech", "face", "lipsync")]
    assert {*named, config.evaluation.face} == {"mini"}
    weights = checkpoints.load(path, config).weights
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights))


def test_mini_is_the_last_stage():
    assert checkpoints.find("mini") == checkpoints.find(f"mini:{STAGES[-1]}")
