"""Learning curves: who is averaged with whom, what is drawn, what the table says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from launch import curves_drawing, curves_runs
from tavr_jax.errors import InputError
from tavr_jax.evaluation import page

SVG = "{http://www.w3.org/2000/svg}"


def write(folder: Path, lines, seed=0, stage="same_scene", start="", rate=1e-3):
    """A workdir, as training leaves it."""
    folder.mkdir(parents=True)
    config = {"name": f"{stage}:tiny", "stage": stage, "seed": seed}
    config |= {"init_from": str(start), "optimizer": {"learning_rate": rate, "b1": 0.9}}
    (folder / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps({"stage": stage, **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def losses(*values, every=10, metric="loss"):
    return [{"step": every * (n + 1), metric: v} for n, v in enumerate(values)]


@pytest.fixture
def sweep(tmp_path):
    """Two rates of stage 1 with two seeds each, and stages 2 and 3 of each seed."""
    for seed in (1, 2):
        for rate in (1e-3, 1e-4):
            lines = losses(3.0 * seed, 1.0 * seed)
            write(tmp_path / f"z1_{rate}_{seed}", lines, seed, rate=rate)
        one = tmp_path / f"z1_0.001_{seed}"
        two = write(tmp_path / f"b2_{seed}", losses(2.0, 1.0), seed, "cross_scene", one)
        checkpoint = two / "checkpoints" / "20"
        lines = losses(0.1, 0.5 * seed, metric="reward") + losses(1e-5, 1e-6)
        write(tmp_path / f"a3_{seed}", lines, seed, "policy", checkpoint)
    return tmp_path


def test_runs_that_differ_only_in_their_seed_are_one_curve_through_all_stages(sweep):
    panels = curves_runs.panels(curves_runs.find([sweep]), [])
    assert [(p.stage, p.metric) for p in panels] == [
        ("same_scene", "loss"),
        ("cross_scene", "loss"),
        ("policy", "reward"),
    ]
    first, second, third = panels
    labels = {c.label for c in first.curves}
    assert labels == {"learning_rate=0.001", "learning_rate=0.0001"}
    for curve in (*first.curves, *second.curves, *third.curves):
        assert sorted(curve.seeds) == [1, 2]
        assert curve.steps.tolist() == [10, 20]
    order = [third.curves[0].seeds.index(seed) for seed in (1, 2)]
    assert third.curves[0].values[order].tolist() == [[0.1, 0.5], [0.1, 1.0]]
    assert second.curves[0].label == "cross_scene:tiny"


def test_where_a_stage_started_from_sets_it_apart(sweep):
    write(sweep / "b2_3", losses(2.0, 1.0), 1, "cross_scene", sweep / "z1_0.0001_1")
    write(sweep / "b2_4", losses(2.0, 1.0), 1, "cross_scene", "hub/model")
    panels = curves_runs.panels(curves_runs.find([sweep]), ["loss"])
    [panel] = [p for p in panels if p.stage == "cross_scene"]
    assert sorted(len(curve.seeds) for curve in panel.curves) == [1, 1, 2]
    last = json.loads((sweep / "a3_1/config.json").read_text())
    last["init_from"] = str(sweep / "b2_1/checkpoints/10")
    (sweep / "a3_1/config.json").write_text(json.dumps(last))
    [panel] = curves_runs.panels(curves_runs.find([sweep]), ["reward"])
    assert {c.label for c in panel.curves} == {"checkpoint=10", "checkpoint=20"}


def test_a_folder_is_its_runs_and_a_run_counts_once(sweep):
    once = curves_runs.find([sweep])
    twice = curves_runs.find([sweep, sweep / "b2_1", sweep / "b2_1/../b2_1"])
    assert len(once) == len(twice) == 8
    with pytest.raises(InputError, match="no metrics"):
        curves_runs.find([sweep / "nothing"])


def test_only_steps_that_all_seeds_have_are_averaged(tmp_path):
    a = write(tmp_path / "a", [*losses(4.0, 3.0, 2.0), {"step": 30, "loss": 1.0}], 1)
    b = write(tmp_path / "b", [*losses(2.0, None), {"step": 30, "loss": 3.0}], 2)
    with (b / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 40, "lo')  # the process was killed here
    [panel] = curves_runs.panels(curves_runs.find([a, b]), ["loss"])
    [curve] = panel.curves
    assert curve.steps.tolist() == [10, 30]
    assert curve.values.tolist() == [[4.0, 1.0], [2.0, 3.0]]
    write(tmp_path / "c", [{"step": 5, "loss": 1.0}], 3)
    with pytest.raises(InputError, match="no step"):
        curves_runs.panels(curves_runs.find([tmp_path]), ["loss"])
    with pytest.raises(InputError, match="los: no run logs it; there are loss, step"):
        curves_runs.panels(curves_runs.find([a]), ["los"])


@pytest.mark.parametrize("window", [1, 2, 5, 99])
def test_smoothing_is_the_mean_of_the_points_around(window):
    values = np.random.default_rng(0).normal(size=(3, 20)) + 1e6
    half = window // 2
    expected = [
        values[:, max(0, i - half) : i + half + 1].mean(axis=1) for i in range(20)
    ]
    smooth = curves_runs.smoothed(values, window)
    np.testing.assert_allclose(smooth, np.transpose(expected), rtol=1e-12)


def test_the_table_has_means_of_both_ends_and_their_range_over_seeds(tmp_path):
    for seed, shift in ((1, 0.0), (2, 1.0)):
        values = np.linspace(20, 1, 20) + shift
        write(tmp_path / str(seed), losses(*values.tolist()), seed)
    rows = curves_runs.table(
        curves_runs.panels(curves_runs.find([tmp_path]), [])
    ).splitlines()
    cells = [cell.strip() for cell in rows[2].split("|")[1:-1]]
    assert cells[:5] == ["same_scene", "same_scene:tiny", "1, 2", "200", "loss"]
    assert cells[5:] == ["20 (19.5 to 20.5)", "2 (1.5 to 2.5)"]
    assert len({row.count("|") for row in rows[:3]}) == 1


def points(element) -> np.ndarray:
    return np.array([p.split(",") for p in element.get("points").split()], float)


def test_the_picture_shows_mean_and_range_in_place(tmp_path):
    for seed, values in ((1, (0.0, 4.0, 1.0)), (2, (2.0, 2.0, 3.0))):
        write(tmp_path / str(seed), losses(*values, every=100), seed)
    found = curves_runs.panels(curves_runs.find([tmp_path]), [])
    root = ElementTree.fromstring(curves_drawing.svg(found, 1))
    [line], [band] = root.iter(f"{SVG}polyline"), root.iter(f"{SVG}polygon")
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "same_scene:tiny (seeds 1, 2)" in texts and "same_scene: loss" in texts
    assert any(text.startswith("As logged; lines: mean") for text in texts)

    # pixels are an affine map of steps 0..300 and values 0..4, downwards
    d = curves_drawing
    right, bottom = d.WIDTH - d.RIGHT, d.HEIGHT - d.BOTTOM

    def at(step, value):
        x = d.LEFT + step / 300 * (right - d.LEFT)
        return x, bottom - value / 4 * (bottom - d.TOP)

    mean = [at(100, 1.0), at(200, 3.0), at(300, 2.0)]
    np.testing.assert_allclose(points(line), mean, atol=0.06)
    around = [at(100, 2.0), at(200, 4.0), at(300, 3.0)]
    around += [at(300, 1.0), at(200, 2.0), at(100, 0.0)]
    np.testing.assert_allclose(points(band), around, atol=0.06)


@pytest.mark.parametrize("low,high", [(0, 1), (-3e-6, 8e-6), (2.5, 2.5), (0, 12345)])
def test_ticks_are_few_and_round_and_enclose(low, high):
    ticks = page.ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] <= low and ticks[-1] >= high
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_the_command_writes_a_picture_and_prints_a_table(tmp_path):
    folder = tmp_path / "a <b> & c"
    write(folder / "one", losses(*range(40)), stage="x<y>&z")
    write(folder / "two", losses(7.0), stage="other")
    picture = tmp_path / "curves.svg"
    base = [sys.executable, "-m", "launch.curves", str(folder / "one")]
    words = [*base, str(folder / "two"), "--output", str(picture), "--table"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| other | other:tiny | 0 | 10 | loss | 7 | 7 |" in done.stdout
    root = ElementTree.parse(picture).getroot()
    texts = " ".join(text.text for text in root.iter(f"{SVG}text"))
    assert "x<y>&z: loss" in texts and "Running means over 5 logged points" in texts
    raw, smooth = root.iter(f"{SVG}polyline")
    assert raw.get("opacity") and not smooth.get("opacity")
    for wrong, says in (
        ([*base, "--output=curves.png"], r"must end with \.svg"),
        (base, "--output FILE.svg, or --table"),
        ([*base[:-1], "--table"], "WORKDIR: missing"),
        ([*base, "--table", "--metric=reward"], "no run logs it"),
    ):
        done = subprocess.run(wrong, capture_output=True, text=True)
        assert done.returncode == 2 and re.search(says, done.stderr)
        assert done.stderr.count("\n") == 1
