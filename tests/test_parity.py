"""Recorded activations through the real command, and its strictness."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from launch.parity_oracle import Oracle
from tavr_jax.errors import InputError


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.parity", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("tavr_seed0", 12),
        ("wan_seed0", 11),
    ],
)
def test_every_array_is_reproduced_or_excused(shared, tmp_path, folder, files):
    dump = tmp_path / "dump.npz"
    done = run(shared / "oracles" / folder, "--dump", dump)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "no replay is written" not in done.stdout
    with np.load(dump) as computed:
        assert len({name.rpartition("/")[0] for name in computed}) == files
        if folder == "tavr_seed0":
            with np.load(shared / "oracles" / folder / "forward.npz") as expected:
                a, b = computed["forward/a_out"], expected["a_out"]
            assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)


def test_bfloat16_is_within_what_it_costs(shared):
    done = run(shared / "oracles/tavr_seed0", "--dtype", "bfloat16", "--only", "a_out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "forward/a_out_bf16" in done.stdout and "2 arrays" in done.stdout


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
        ("config.json", b"[1]", "config.json"),
    ],
)
def test_a_damaged_file_is_one_line_and_exit_code_2(folder, name, content, named):
    (folder / name).write_bytes(content)
    done = run(folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and named in done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_never_end_in_anything_but_a_line(folder, seed):
    rng = np.random.default_rng(seed)
    for name in ("forward_small.npz", "config.json"):
        path = folder / name
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(
                whole[: rng.integers(len(whole)) if rng.random() < 0.3 else None]
            )
            for at in rng.integers(0, max(len(damaged), 1), 8):
                if len(damaged):
                    damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                Oracle.open(folder / "forward_small.npz")
            except InputError as error:
                assert "\n" not in str(error) and str(folder) in str(error)
        path.write_bytes(whole)
