"""launch.evaluate --benchmark as a command, from a list and footage to results."""

import json
import subprocess
import sys

import numpy as np
import pytest
from drawn import footage
from test_feature_networks import network

from data_pipelines import video_files

FRAMES, RATE = 40, 16000


@pytest.fixture
def media(tmp_path):
    """Two clips of a drawn person and one of nobody; a list of three pairs."""
    rng = np.random.default_rng(0)
    shades = {"a": (90, 140, 120), "b": (60, 60, 130), "nobody": (70, 120, 90)}
    for name, background in shades.items():
        people = [] if name == "nobody" else [(80, 54, 54)]
        frames = footage(FRAMES, people, background)
        wave = (0.1 * rng.normal(size=FRAMES * 640)).astype(np.float32)
        video_files.write_video(tmp_path / f"{name}.mp4", frames, 25, wave, RATE)
        video_files.write_video(tmp_path / f"theirs/{name}.mp4", frames[:30], 25)
        (tmp_path / "truth").mkdir(exist_ok=True)
        np.savez(tmp_path / f"truth/{name}.npz", opening=rng.random(FRAMES))

    def span(name):
        about = {"video_id": name, "video_url": f"https://example.org/{name}"}
        about |= {"fps": 25, "width": 160, "height": 120}
        about |= {"start_time": 0, "end_time": FRAMES / 25}
        return about | {"start_frame": 0, "end_frame": FRAMES}

    listed = [
        {"reference": span(r), "target": span(t), "target_caption": "talks"}
        for r, t in (("a", "b"), ("b", "a"), ("a", "nobody"))
    ]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    return tmp_path


def evaluate(media, *more):
    command = [
        sys.executable, "-m", "launch.evaluate",
        "--config", "configs/cross_scene.py:tiny",
        "--benchmark", media / "list.json", "--media", media,
        "--results", f"theirs={media / 'theirs'}", "--output", media / "out", *more,
    ]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_somebodys_folder_is_scored_without_a_checkpoint(media):
    network(media / "face.onnx", [1, 3, 32, 32], np.random.default_rng(0))
    mine = f"mine={media / 'face.onnx'}"
    done = evaluate(media, "--face_network", mine, "--truth", media / "truth")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((media / "out/results.json").read_text())
    assert found["rows"].keys() == {"truth", "still", "copied", "results_theirs"}
    reason = found["benchmark"]["missing"]["002_nobody"]
    assert "no face" in reason and "nobody.mp4" in reason
    assert json.loads((media / "out/missing.json").read_text()) == {
        "002_nobody": reason
    }
    assert not found["benchmark"]["complete"]
    assert [s["key"] for s in found["samples"]] == ["000_b", "001_a"]
    assert found["failures"]["results_theirs"].keys() == {"000_b", "001_a"}
    assert "short" in found["failures"]["results_theirs"]["000_b"]
    scores = found["scores"]["results_theirs"]
    assert min(scores["ssim"]) > 0.9  # they are the real videos, as far as they go
    assert None not in scores["mine/identity"]
    assert "mine face.onnx" in found["methods"]["mine/identity"]["network"]
    assert "mine face.onnx" in done.stdout and "You gave this file" in done.stdout
    assert "sweep" not in found and "silence_moves" not in found["methods"]
    assert "gflops" not in found["methods"]  # nobody knows what they cost
    # the real video's own mouth does not move as that noise does
    assert found["benchmark"]["truth"] and max(found["scores"]["truth"]["mouth"]) < 0.9
    assert "002_nobody" in done.stdout
    assert (media / "out/report.html").stat().st_size > 10_000
    sample = media / "out/inputs/000_b"  # what anybody's program is given
    names = {"ref.mp4", "target.png", "target.wav", "target_caption.json"}
    assert {path.name for path in sample.iterdir()} == names


def test_flags_that_do_not_go_together_are_one_line(media):
    for flag, said in (
        (["--silent"], "flags: --silent"),
        (["--seeds=0"], "--seeds=0: give 1 or more"),
        (["--truth", media / "no"], f"--truth {media / 'no'}"),
        (["--claims", media / "no"], f"--claims {media / 'no'}"),
    ):
        done = evaluate(media, *flag)
        assert done.returncode == 2
        assert done.stderr.strip().splitlines()[-1].startswith(f"error: {said}")
    assert not list(media.glob("out/*.html"))
