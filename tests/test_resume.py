"""A run that was interrupted is, bit for bit, the run that was not."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from test_policy import BRIGHT
from test_rl import policy
from test_training import ADAM, run_toy, toy_batches, toy_network, toy_params, toy_step

from tavr_jax.training.policy import make_step


def policy_step(state, batch, key):
    config = policy(group_size=2, steps=3, stochastic_steps=1, updates=2)
    return make_step(toy_network, BRIGHT, toy_params(), config, ADAM)(state, batch, key)


@pytest.mark.parametrize("step", [toy_step, policy_step])
def test_two_and_two_steps_are_four(tmp_path, step):
    clips, states = [], []
    for name, stops in (("straight", [4]), ("broken", [2, 4])):
        seen = []
        for steps in stops:
            batches = toy_batches(8)
            order = record(batches, seen)
            state = run_toy(tmp_path / name, steps, step, batches=order)
        clips.append(seen)
        states.append(jax.device_get(state))
    assert clips[0] == clips[1] and len(clips[0]) == 4
    assert int(states[0].step) == 4
    jax.tree.map(np.testing.assert_array_equal, *states)
    lines = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("straight", "broken")
    ]
    losses = [[json.loads(line)["loss"] for line in part] for part in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def record(batches, seen):
    """The same grain iterator, noting the clips it gives."""
    take = type(batches).__next__

    class Recorded(type(batches)):
        def __next__(self):
            batch = take(self)
            seen.append(batch.clip.tolist())
            return batch

    batches.__class__ = Recorded
    return batches


def test_a_stopped_run_saves_and_goes_on_where_it_was(tmp_path, capsys):
    def stop(params, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    train = {"sample_every": 1, "log_every": 100}
    state = run_toy(tmp_path / "stopped", 6, on_sample=stop, **train)
    assert int(state.step) == 4
    assert "saved at step 4; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = run_toy(tmp_path / "stopped", 6)
    assert "resumed at step 4" in capsys.readouterr().out
    straight = run_toy(tmp_path / "straight", 6)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)


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
