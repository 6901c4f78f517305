"""Recorded activations through the real command, and its strictness."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.parity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_covered_array_is_reproduced(shared, tmp_path):
    dump = tmp_path / "dump.npz"
    done = run(shared / "oracles/tavr_seed0", "--dump", dump)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    with np.load(dump) as computed:
        for file in ("forward", "forward_small", "schedule", "sampler", "chunking"):
            assert any(name.startswith(f"{file}/") for name in computed), file
        with np.load(shared / "oracles/tavr_seed0/forward.npz") as expected:
            a, b = computed["forward/a_out"], expected["a_out"]
        assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)


@pytest.fixture
def folder(shared, tmp_path):
    """A copy with one small file of cases, to damage."""
    for name in ("config.json", "forward_small.npz", "transformer_small.safetensors"):
        shutil.copy(shared / "oracles/tavr_seed0" / name, tmp_path / name)
    return tmp_path


def test_a_wrong_weight_fails_with_exit_code_1(folder):
    config = json.loads((folder / "config.json").read_text())
    config["transformer"]["eps"] = 1e-5
    (folder / "config.json").write_text(json.dumps(config))
    done = run(folder)
    assert done.returncode == 1 and "FAIL" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("transformer_small.safetensors", b"damaged", "transformer_small.safetensors"),
        ("forward_small.npz", b"damaged", "forward_small.npz"),
        ("config.json", b"{", "config.json"),
    ],
)
def test_a_damaged_file_is_one_line_and_exit_code_2(folder, name, content, named):
    (folder / name).write_bytes(content)
    done = run(folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and named in done.stderr
