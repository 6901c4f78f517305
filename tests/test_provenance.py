"""What a run says about where its weights come from."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import tiny_dataset

from configs import same_scene
from data_pipelines import records
from data_pipelines.prepare import checksums
from launch import provenance
from tavr_jax.errors import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tiny_dataset.write(tmp_path_factory.mktemp("data") / "one")
    checksums.write(root)
    return root


def of(path):
    config = same_scene.get_config("tiny")
    config.data.path = str(path)
    return provenance.fingerprint(config)


def test_data_is_told_by_its_contents_not_by_its_place(dataset, tmp_path):
    known = of(dataset)
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)
    (moved / "notes.html").write_text("a page beside it")
    checksums.write(moved)
    assert of(moved) == of(f"{moved}:3") == known
    (moved / checksums.CHECKSUMS).unlink()
    assert of(moved) == known, "computed where it was not written"

    rows = np.load(moved / records.NULL_TEXT)
    np.save(moved / records.NULL_TEXT, rows + 1)
    assert of(moved) != known
    np.save(moved / records.NULL_TEXT, rows)
    shard = next((moved / "encoded").rglob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert of(moved) != known


def test_a_mixture_is_told_by_its_parts_and_weights(dataset, tmp_path):
    (tmp_path / "again").symlink_to(dataset)
    mixed = {of(f"{dataset}:{a},{tmp_path / 'again'}:{b}") for a, b in [(1, 1), (3, 1)]}
    assert len(mixed | {of(dataset)}) == 3
    with pytest.raises(InputError, match="holds no dataset"):
        of(tmp_path)


def test_every_start_adds_an_entry_that_names_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    command = [
        "/home/somebody/tavr/launch/train.py",
        "--config",
        "configs/face.py:tiny",
    ]
    command += ["--workdir=/home/somebody/w", "--config.data.path=/data/home/somebody"]
    monkeypatch.setattr("sys.argv", command)
    config = same_scene.get_config("tiny")
    for _ in range(2):
        facts = {"path": "/home/somebody/start", "fingerprint": "f" * 16}
        provenance.write(tmp_path, config, "d" * 16, facts)
    text = (tmp_path / "run.json").read_text()
    first, second = json.loads(text)
    assert first["started"] <= second["started"]
    assert second["command"] == [
        "python", "-m", "launch.train", "--config", "configs/face.py:tiny",
        "--workdir=~/w", "--config.data.path=/data/home/somebody",
    ]  # fmt: skip
    assert second["start"] == {"path": "~/start", "fingerprint": "f" * 16}
    assert second["data"] == "d" * 16 and second["config"] == "same_scene:tiny"
    assert second["devices"]["count"] == 8 and second["hosts"] == 1
    assert set(second["versions"]) == {*provenance.PACKAGES, "python"}
    assert "secret" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]

    (tmp_path / "run.json").write_text("[")
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        provenance.write(tmp_path, config, "", {})


def test_a_checkout_is_named_by_its_commit_and_whether_it_was_changed(tmp_path):
    def git(*arguments):
        settings = ["-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path)]
        subprocess.run(["git", *settings, *arguments], check=True, capture_output=True)

    assert provenance.git(tmp_path) is None
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "m")
    found = provenance.git(tmp_path)
    assert len(found["commit"]) == 40 and not found["dirty"]
    (tmp_path / "code.py").write_text("2")
    assert provenance.git(tmp_path) == found | {"dirty": True}
    (tmp_path / "inside").mkdir()
    assert provenance.git(tmp_path / "inside") is None, "somebody else's checkout"
