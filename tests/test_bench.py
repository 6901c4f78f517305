"""The benches run, and say what they measured."""

import subprocess
import sys

import numpy as np
import pytest

from configs import cross_scene
from data_pipelines import video_files
from launch import bench_data


def run(*arguments):
    command = [sys.executable, "-m", "launch.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_bench_is_listed_and_has_a_function():
    listed = run()
    names = listed.stdout.splitlines()[-1].removeprefix("benches: ").split(", ")
    assert listed.returncode == 2 and {"data", "load", "memory"} < set(names)
    unknown = run("step,nothing")
    assert unknown.returncode == 2 and not unknown.stdout
    assert unknown.stderr.startswith("error: no bench 'step,nothing'; there are ")
    for only_prints in ("load", "generate"):
        refused = run(only_prints, "--json=/tmp/never.json")
        assert refused.returncode == 2 and not refused.stdout
        assert "only prints" in refused.stderr
    framed = run("step", "--config.model.reference_attention=frame", "--notorch")
    assert framed.returncode == 2 and "reference_attention: frame" in framed.stderr
    empty = run("data")
    assert empty.returncode == 2 and "--dataset, --source" in empty.stderr
    program = (
        "from launch import bench, bench_model; "
        "print(*bench.PARTS); print(*bench_model.OF_MODEL, 'speech', 'matmul')"
    )
    told = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE)
    parts, functions = told.stdout.decode().splitlines()
    assert parts == functions and set(parts.split()) < set(names)


def test_a_ratio_is_the_median_of_the_rounds_and_says_whether_the_goal_is_met():
    line = bench_data.Ratio("x", [2, 9, 4], [4, 3, 4], "videos/s", 0.5).line()
    assert " 1.00  (0.50 to 3.00) " in line and line.endswith("goal 0.5: reached")
    line = bench_data.Ratio("x", [1], [4], "videos/s", 0.5).line()
    assert line.endswith("goal 0.5: MISSED")
    assert "goal" not in bench_data.Ratio("x", [1], [4], "videos/s", None).line()


def test_plain_decoding_and_the_scan_see_the_same_frames(tmp_path):
    frames = np.zeros((20, 64, 64, 3), np.uint8)
    video_files.write_video(tmp_path / "a.mp4", frames, 25)
    config = cross_scene.get_config("tiny")
    settings = bench_data.settings_of(config)
    assert bench_data._decode(tmp_path / "a.mp4") == 20
    assert bench_data._decode(tmp_path / "a.mp4", rgb=True) == 20
    assert bench_data._scan(tmp_path / "a.mp4", settings) == 20
    (tmp_path / "b.mp4").write_bytes(b"no video")
    paths = [tmp_path / "b.mp4", tmp_path / "a.mp4"]
    assert bench_data._readable(paths) == paths[1:]
    with pytest.raises(Exception, match="no video there"):
        bench_data._readable(paths[:1])
