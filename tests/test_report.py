"""What a run writes: lines, pictures, video, sound, and how fast it was."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import CHANNELS, TOY, compiled_toy, run_toy

from tavr_jax.training import loop, report
from tavr_jax.training.report import Report, Work


def test_run_reports_lines_pictures_video_and_sound(tmp_path, capsys):
    def on_sample(params, step):
        assert params["bias"].shape == (CHANNELS,)
        frames = np.zeros((6, 16, 24, 3), np.uint8)
        frames[:, :, :12] = np.arange(0, 240, 40, dtype=np.uint8)[:, None, None, None]
        wave = np.sin(np.arange(1600) / 10).astype(np.float32)
        return {
            "still": report.Image(frames[0]),
            "clip": report.Video(frames, 25.0),
            "clip/sound": report.Sound(wave, 16000),
        }

    run_toy(tmp_path, 4, given={"on_sample": on_sample}, log_every=2, sample_every=2)
    lines = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [x["step"] for x in lines] == [2, 4]
    assert {"stage", "loss", "grad_norm", "learning_rate", "seconds"} <= lines[0].keys()
    assert lines[0]["stage"] == "same_scene" and lines[0]["loss"] > 0
    out = capsys.readouterr().out
    assert "step 4/4  loss" in out and "steps/s" in out and "left" in out
    assert "bias" in (tmp_path / "parameters.txt").read_text()

    board = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "audio": 0})
    board.Reload()
    logged = [e.value for e in board.Scalars("loss")]
    np.testing.assert_allclose(logged, [x["loss"] for x in lines], rtol=1e-6)
    moving = board.Images("clip")[0]
    assert moving.encoded_image_string[:6] == b"GIF89a"
    assert (moving.width, moving.height) == (24, 16)
    assert [e.step for e in board.Images("still")] == [2, 4]
    sound = board.Audio("clip/sound")[0]
    assert sound.sample_rate == 16000 and sound.encoded_audio_string[:4] == b"RIFF"


class Clock:
    """Stands still unless told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


def rates(tmp_path, monkeypatch, work):
    """The last line of a run of 2 + 3 steps of 5 s each, one evaluation between."""
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    lines = Report(tmp_path, "stage", 100, work)
    lines.start(0, {"w": np.zeros(3)})
    clock.now += 60  # compilation
    lines.first_step(1)
    clock.now += 5
    lines.scalars(2, {"loss": 1.0})
    since = clock.now
    clock.now += 1000
    lines.held_out(2, {"loss": 2.0})
    lines.pause(since)
    clock.now += 15
    lines.scalars(5, {"loss": 1.0})
    lines.close()
    found = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    return found[-1]


def test_speed_is_of_steps_alone_and_mfu_is_its_share_of_the_peak(
    tmp_path, monkeypatch, capsys
):
    work = Work(samples=8, tokens=2000, flops=3e12, peak=4e12)
    last = rates(tmp_path, monkeypatch, work)
    assert last["steps_per_second"] == pytest.approx(0.2)
    assert last["samples_per_second"] == pytest.approx(1.6)
    assert last["tokens_per_second"] == pytest.approx(400)
    assert last["tflops_per_second"] == pytest.approx(0.6)
    assert last["mfu"] == pytest.approx(0.15)
    said = capsys.readouterr().out.splitlines()[-1]
    assert "400 tokens/s  0.6 TFLOP/s  MFU 15.0%  7:55 left" in said


class Late:
    """An outcome of a step that is known 5 s after somebody first waits for it."""

    ndim = 1  # no scalar

    def __init__(self, clock):
        self.clock, self.left = clock, 5

    def block_until_ready(self):
        self.clock.now += self.left
        self.left = 0

    def __bool__(self):
        self.block_until_ready()
        return False


def test_a_step_in_flight_when_its_state_is_saved_counts_as_a_step(
    tmp_path, monkeypatch
):
    clock, toy = Clock(), compiled_toy(*TOY)[-1]
    monkeypatch.setattr(report, "time", clock)
    monkeypatch.setattr(loop, "time", clock)

    def update(state, batch):
        state, metrics = toy(state, batch)
        return state, {"loss": metrics["loss"], "skipped": Late(clock)}

    def on_evaluate(params, step):
        clock.now += 1000
        return {}

    given = {"update": update, "on_evaluate": on_evaluate}
    kept = {"checkpoint_every": 1, "evaluate_every": 1, "log_every": 2}
    run_toy(tmp_path, 5, given=given, **kept)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").open())
    speeds = [x["steps_per_second"] for x in lines if "loss" in x]
    # each line but the last is written while its last step is in flight
    assert speeds[1] == pytest.approx(0.2)


def test_what_is_not_known_is_not_reported(tmp_path, monkeypatch, capsys):
    last = rates(tmp_path / "a", monkeypatch, Work(8, None, 1e12, None))
    assert "samples_per_second" in last and "tflops_per_second" in last
    assert not {"tokens_per_second", "mfu"} & last.keys()
    last = rates(tmp_path / "b", monkeypatch, None)
    assert "steps_per_second" in last and "samples_per_second" not in last
    assert "MFU" not in capsys.readouterr().out


def test_a_line_before_any_timed_step_claims_no_speed(tmp_path):
    lines = Report(tmp_path, "stage", 1, Work(8, 10, 1.0, 1.0))
    lines.start(0, {"w": np.zeros(3)})
    lines.first_step(1)
    lines.scalars(1, {"loss": float("nan")})
    lines.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["loss"] is None and "mfu" not in line and "steps_per_second" not in line
