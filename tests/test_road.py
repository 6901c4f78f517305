"""The whole road at :tiny, through the real commands: footage to report."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import media

ROOT = Path(__file__).parents[1]


def run(*arguments: object, code: int = 0) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """People in two scenes, prepared; every later step builds on the last."""
    out = tmp_path_factory.mktemp("road")
    run("launch.render_people", "--output", out / "people", "--people", 5,
        "--seconds", 1.5, "--size", 128)  # fmt: skip
    run("launch.prepare_data", "--source", out / "people", "--output", out / "dataset",
        "--config", "configs/same_scene.py:tiny",
        "--config.prepare.held_out=0.2")  # fmt: skip
    return out


def train(road: Path, stage: str, *more: str) -> str:
    where = ["--workdir", road / stage, f"--config.data.path={road / 'dataset'}"]
    return run("launch.train", "--config", f"configs/{stage}.py:tiny", *where, *more)


def test_the_whole_road(road):
    train(road, "same_scene")
    train(road, "cross_scene", f"--config.init_from={road / 'same_scene'}")
    train(road, "policy", f"--config.init_from={road / 'cross_scene'}")
    for stage in ("same_scene", "cross_scene", "policy"):
        lines = (road / stage / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 2

    person = road / "people/person_0000"
    video = road / "generated.mp4"
    run("launch.generate", "--reference", person / "scene_0.mp4",
        "--target", person / "scene_1.mp4", "--audio", person / "scene_1.mp4",
        "--caption", "a person is talking", "--checkpoint", road / "policy",
        "--output", video)  # fmt: skip
    made = media.probe(video)
    assert made.has_audio and made.fps == 25 and (made.height, made.width) == (32, 32)
    assert abs(made.seconds - 1.5) < 0.1
    assert media.read_metadata(video)["synthetic"] == "true"

    run("launch.evaluate", "--dataset", road / "dataset",
        "--checkpoint", f"{road / 'cross_scene'},{road / 'policy'}",
        "--metrics_from", f"{road / 'cross_scene'},{road / 'policy'}",
        "--output", road / "evaluation")  # fmt: skip
    check_page(road / "evaluation")

    run("launch.ship", "--workdir", road / "policy", "--output", road / "package")
    assert (road / "package/policy.safetensors").is_file()
    card = re.sub(r" \\\n +", " ", (road / "package/policy.md").read_text())
    for stage in ("same_scene", "cross_scene", "policy"):  # no other has a card there
        assert f"--config configs/{stage}.py:tiny --workdir W/{stage} " in card
        assert re.search(rf"^\| {stage} \| 2 \| 42 \| 0\.\d\d \|", card, re.M)
        assert re.search(rf"^{stage}:\n\n\| step \| (loss|reward) \|", card, re.M)
    assert str(road) not in card


def check_page(folder: Path) -> None:
    """The videos of every row are inside the page, are whole, and of one length."""
    page = (folder / "report.html").read_text()
    assert 'src="http' not in page
    rows = json.loads((folder / "results.json").read_text())["rows"]
    board = json.loads(re.search(r'id="board">(.*?)</script>', page, re.S)[1])
    (sample,) = board["samples"]
    videos = [f"{slug}.mp4" for slug in rows]
    assert len(videos) >= 5 and {"truth.mp4", "codec.mp4", "still.mp4"} < set(videos)
    inside = {
        name: base64.b64decode(board["media"][sample["files"][name]]) for name in videos
    }
    frames = {name: media.decode_mp4(data) for name, data in inside.items()}
    assert len({shown.shape for shown in frames.values()}) == 1
    assert frames["truth.mp4"].shape[1:] == (32, 32, 3)
    moving = np.abs(np.diff(frames["truth.mp4"].astype(int), axis=0)).mean()
    assert moving > 4 * np.abs(np.diff(frames["still.mp4"].astype(int), axis=0)).mean()


def test_a_finished_run_says_so_and_does_nothing(road):
    before = (road / "same_scene/metrics.jsonl").read_text()
    assert "2" in train(road, "same_scene")
    assert (road / "same_scene/metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "configs/same_scene.py:tiny", "--config.model.dimm=3"], "dimm"),
        (["--config", "configs/same_scene.py:huge"], "huge"),
        (["--config", "configs/nowhere.py"], "nowhere"),
        (["--config", "configs/same_scene.py:tiny"], "data.path"),
    ],
)
def test_bad_training_input_is_one_line_and_exit_code_2(tmp_path, arguments, named):
    said = run("launch.train", *arguments, "--workdir", tmp_path / "w", code=2)
    assert named in said and "Traceback" not in said
    assert not (tmp_path / "w").exists()


def test_a_checkpoint_of_another_shape_is_refused(road):
    said = run(
        "launch.train", "--config", "configs/cross_scene.py:tiny",
        "--config.model.dim=48", "--workdir", road / "other",
        f"--config.data.path={road / 'dataset'}",
        f"--config.init_from={road / 'same_scene'}", code=2,
    )  # fmt: skip
    assert "shape" in said and "Traceback" not in said
