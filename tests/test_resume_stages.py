"""Every stage, interrupted and gone on with, is bit for bit the stage that was not.

The real commands' code (launch.train) on the tiny transformer, two devices, weights
split over them. One case is quick; all of them:

    pytest -m slow tests/test_resume_stages.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Makes a case of stages.py, what it starts from first, and gives its folder."""
    output = tmp_path_factory.mktemp("stages")
    dataset = output / "dataset"
    # Programs are compiled once and kept; the three runs of a case share them.
    kept = {"JAX_COMPILATION_CACHE_DIR": str(output / "xla")}
    environment = os.environ | kept | {"PYTHONPATH": str(HERE.parent)}

    def make(*cases):
        for case in cases:
            if not (output / case).exists():
                command = [sys.executable, HERE / "stages.py", dataset, output, case]
                done = subprocess.run(
                    command, env=environment, capture_output=True, text=True
                )
                assert done.returncode == 0, done.stdout + done.stderr
                assert "resumed at step 1" in done.stdout
        return output / cases[-1]

    return make


def clocked(name):
    """Whether a metric depends on how fast this machine is."""
    return "second" in name or name == "mfu"


def check(folder):
    """State, data order, logged numbers and what the next run would be told (guard,
    iterator, open lines) of the two runs, to the bit."""
    straight, broken = folder / "straight", folder / "broken"
    with np.load(straight / "state.npz") as a, np.load(broken / "state.npz") as b:
        assert sorted(a) == sorted(b)
        kinds = {name.partition("[")[0].strip(".") for name in a}
        assert kinds == {"step", "params", "opt_state", "ema"}
        assert a[".step"] == 3
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        params = [name for name in a if name.startswith(".params")]
        averages = [name.replace(".params", ".ema", 1) for name in params]
        assert any(map(lambda n, e: (a[n] != a[e]).any(), params, averages))
    clips = [json.loads((run / "clips.json").read_text()) for run in (straight, broken)]
    assert clips[0] == clips[1] and len(clips[0]) == 3
    logged = []
    for run in (straight, broken):
        lines = map(json.loads, (run / "metrics.jsonl").open())
        logged.append([[(n, v) for n, v in x.items() if not clocked(n)] for x in lines])
    assert logged[0] == logged[1] and [dict(x)["step"] for x in logged[0]] == [1, 2, 3]
    noted = [run / "checkpoints/3/progress/metadata" for run in (straight, broken)]
    noted = [json.loads(file.read_text()) for file in noted]
    assert noted[0] == noted[1] and noted[0]["batches"]
    stage = json.loads((straight / "config.json").read_text())["stage"]
    assert bool(noted[0]["notes"]["watch"]) == (stage == "policy")
    starts = [json.loads((run / "run.json").read_text()) for run in (straight, broken)]
    assert list(map(len, starts)) == [1, 2]


def test_stage_1(trained):
    check(trained("same_scene"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    [
        ("same_scene", "cross_scene"),
        ("same_scene", "lora"),
        ("same_scene", "cross_scene", "grpo"),
        ("same_scene", "cross_scene", "nft"),
    ],
    ids=lambda cases: cases[-1],
)
def test_later_stages(trained, cases):
    check(trained(*cases))
