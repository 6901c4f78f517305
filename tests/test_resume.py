"""A run that was interrupted is, bit for bit, the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from killed import create
from recorded import record
from test_training import Limit, create_wide, run_toy, toy_batches, wide_step

from tavr_jax.training import loop
from tavr_jax.training.checkpoint import load_params, load_tree

HERE = Path(__file__).parent


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return {line["step"]: line["loss"] for line in lines}


def test_two_and_two_steps_are_four(tmp_path):
    clips, states = [], []
    for name, stops in (("straight", [4]), ("broken", [2, 4])):
        seen = []
        for steps in stops:
            order = record(toy_batches(8), seen)
            state = run_toy(tmp_path / name, steps, batches=order)
        clips.append(seen)
        states.append(jax.device_get(state))
    assert clips[0] == clips[1] and len(clips[0]) == 4
    assert int(states[0].step) == 4
    jax.tree.map(np.testing.assert_array_equal, *states)
    logged = losses(tmp_path / "straight")
    assert losses(tmp_path / "broken") == logged and list(logged) == [1, 2, 3, 4]


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Eight devices, then two, then one, with the weights split over them: the very
    state and clips, and the weights of one device alone but for rounding."""
    clips, states = {}, {}
    for name, stops in {"one": [(6, 1)], "many": [(2, 8), (4, 2), (6, 1)]}.items():
        clips[name] = []
        for steps, devices in stops:
            toy = (wide_step, create_wide, devices)
            if name in states:  # nothing to do but to restore
                moved = run_toy(tmp_path / name, int(states[name].step), toy)
                jax.tree.map(np.testing.assert_array_equal, moved, states[name])
            order = record(toy_batches(8), clips[name])
            state = run_toy(tmp_path / name, steps, toy, batches=order)
            kernel = state.params["up"]["kernel"]
            assert kernel.addressable_shards[0].data.size == kernel.size // devices
            states[name] = jax.device_get(state)
    assert clips["one"] == clips["many"] and len(clips["one"]) == 6
    assert int(states["one"].step) == int(states["many"].step) == 6
    close = dict(rtol=1e-5, atol=2e-4)  # weights moved by 0.2; Adam divides by rounding
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), *states.values()
    )
    logged = [list(losses(tmp_path / name).values()) for name in states]
    np.testing.assert_allclose(*logged, rtol=1e-5)


def killed_at_random(workdir, steps, kills, seed):
    """Run to the end although it is killed so often; half-written checkpoints seen."""
    moments, halves = random.Random(seed), 0
    command = [sys.executable, str(HERE / "killed.py"), str(workdir), str(steps)]
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    for kill in range(kills + 1):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            for line in process.stdout:
                if kill < kills and "first step" in line:
                    break
            if kill < kills:
                # steps take milliseconds, writing one of them some hundred
                try:
                    process.wait(moments.uniform(0, 0.8))
                except subprocess.TimeoutExpired:
                    process.kill()
        halves += any((workdir / "checkpoints").glob("*-tmp*"))
    assert process.returncode == 0
    return halves


def check_killed_runs(tmp_path, steps, kills, seed):
    killed_at_random(tmp_path / "straight", steps, 0, seed)
    halves = killed_at_random(tmp_path / "killed", steps, kills, seed)
    names = ("straight", "killed")
    folders = [tmp_path / name / "checkpoints" / str(steps) for name in names]
    state = jax.eval_shape(create)
    for name in ("params", "ema"):
        a, b = (load_params(f, state.params, ema=name == "ema") for f in folders)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    a, b = (load_tree(f / "opt_state", state.opt_state) for f in folders)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    a, b = (json.loads((f / "progress/metadata").read_text()) for f in folders)
    assert a == b
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    return halves


def test_a_killed_run_ends_where_the_other_does(tmp_path):
    check_killed_runs(tmp_path, steps=8, kills=2, seed=0)


@pytest.mark.slow
def test_a_run_killed_twelve_times_ends_where_the_other_does(tmp_path):
    """pytest -m slow tests/test_resume.py"""
    assert check_killed_runs(tmp_path, steps=30, kills=12, seed=1), "no save was hit"


def test_a_stopped_run_saves_and_goes_on_where_it_was(tmp_path, capsys):
    def stop(params, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    train = {"sample_every": 1, "log_every": 100}
    state = run_toy(tmp_path / "stopped", 6, given={"on_sample": stop}, **train)
    assert int(state.step) == 4
    assert "saved at step 4; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = run_toy(tmp_path / "stopped", 6)
    assert "resumed at step 4" in capsys.readouterr().out
    straight = run_toy(tmp_path / "straight", 6)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


def test_a_line_of_means_is_of_all_its_steps_wherever_the_run_was_stopped(tmp_path):
    class Stopping(Limit):
        def see(self, step, metrics):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    given = {"watch": Stopping(99)}
    assert int(run_toy(tmp_path / "broken", 6, given=given, log_every=3).step) == 2
    for name in ("broken", "straight"):
        run_toy(tmp_path / name, 6, log_every=3)
    logged = [losses(tmp_path / name) for name in ("straight", "broken")]
    assert logged[0] == logged[1] and list(logged[0]) == [3, 6]


def test_a_stopped_run_saves_before_it_does_anything_that_takes_long(tmp_path):
    """What comes after SIGTERM may be killed any moment."""

    class Stopping:
        """Batches; asks to stop while the second step is prepared."""

        def __init__(self):
            self.batches, self.count = toy_batches(8), 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.batches)

        def get_state(self):
            saved.append(self.count)
            return self.batches.get_state()

    saved, evaluated = [], []

    def evaluate(params, step):
        evaluated.append(list(saved))
        return {}

    given = {"on_evaluate": evaluate}
    run_toy(tmp_path, 9, batches=Stopping(), given=given, evaluate_every=2)
    assert evaluated == [[2]]


@pytest.mark.parametrize("died", [2, 4])
def test_scores_that_a_killed_run_owed_are_made_up_for(tmp_path, died):
    """Of the step it saved: the last one, or one of the interval."""

    def score(params, step):
        return {"bias": float(params["bias"].sum()), "step": step}

    def dying(params, step):
        if step == died:
            raise SystemExit
        return score(params, step)

    kept = {"evaluate_every": 2, "checkpoint_every": 2}
    for name in ("straight", "broken"):
        if name == "broken":
            with pytest.raises(SystemExit):
                run_toy(tmp_path / name, 4, given={"on_evaluate": dying}, **kept)
        for _ in range(2):  # what is there is not made again
            run_toy(tmp_path / name, 4, given={"on_evaluate": score}, **kept)
    logged = []
    for name in ("straight", "broken"):
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").open())
        logged.append(
            [[(n, v) for n, v in x.items() if "second" not in n] for x in lines]
        )
    assert logged[0] == logged[1]
    assert [dict(x)["step"] for x in logged[0]] == [1, 2, 2, 3, 4, 4]


def test_ctrl_c_of_one_of_many_processes_is_what_stops_all(monkeypatch):
    """The second one kills."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(signal.SIGTERM))
    # A shell's background job, and so a test run in one, begins with SIGINT ignored.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with loop._stop_requests():
            os.kill(os.getpid(), signal.SIGINT)
            assert asked == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        with loop._stop_requests():
            pass
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, outside)
    assert asked == [signal.SIGTERM]


def test_a_finished_run_does_nothing_but_say_so(tmp_path, capsys):
    first = run_toy(tmp_path, 2)
    lines = (tmp_path / "metrics.jsonl").read_text()
    capsys.readouterr()
    again = run_toy(tmp_path, 2)
    assert "finished" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_lines_written_after_the_last_checkpoint_are_written_once(tmp_path):
    run_toy(tmp_path, 2)
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "loss": 1}\n{"step": 4, "lo')  # then killed
    run_toy(tmp_path, 4)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
