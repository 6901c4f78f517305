"""Rows are made once, kept while what they are made with holds, and fail alone."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from configs import cross_scene
from data_pipelines import benchmark_file, people, video_files
from launch import (
    benchmark_rows,
    benchmark_samples,
    checkpoint_rows,
    dataset_samples,
    score_rows,
)
from launch.checkpoints import Checkpoint
from launch.held_out import Material, Pair, Video, Way, persons
from launch.score_rows import Task
from tavr_jax.diffusion import chunks
from tavr_jax.errors import InputError
from tavr_jax.evaluation.score_video import Judges, Truth

FRAMES, SIZE = 40, 64


def judges():
    """Networks that need none: colours of crops, loudness of speech."""

    def crop(frames, boxes):
        return people.crop_faces(frames, boxes, 16, len(frames))

    def colours(crops):
        return crops.reshape(len(crops), -1, 3)[:, ::16].reshape(len(crops), -1) / 255.0

    def sync(crops, mel):
        lips = crops.reshape(len(crops), -1)[:, :8] / 255.0
        return lips, mel[:, :8].astype(np.float64)

    return Judges(crop, crop, colours, sync, max_shift=3)


def material(index):
    rng = np.random.default_rng(index)
    coarse = rng.integers(20, 230, (8, 8, 3)).astype(np.uint8)
    scene = coarse.repeat(8, axis=0).repeat(8, axis=1)
    frames = np.repeat(scene[None], FRAMES, axis=0)
    for frame, wide in zip(frames, rng.integers(0, 6, FRAMES), strict=True):
        frame[30 : 31 + wide, 26:38] = 0
    boxes = np.tile(np.float32([0.35, 0.2, 0.65, 0.6]), (FRAMES, 1))
    truth = Truth(
        frames=frames,
        boxes=boxes,
        persons=persons(boxes),
        reference=frames[::-1].copy(),
        reference_boxes=boxes,
        reference_faces=frames[:3, 10:26, 10:26],
        mel=rng.normal(size=(FRAMES, 8)).astype(np.float32),
        opening=None,
        fps=25.0,
    )
    plan = chunks.plan(37, 5, 1, 0)
    wave = np.zeros(FRAMES * 640, np.float32)
    return Material(None, plan, truth, None, wave, index, f"{index:03d}_v{index}")


class Counted:
    """A row that counts how often it is made, and what reads its samples."""

    def __init__(self, tmp_path, count=2):
        self.reads, self.makes = [], []
        self.mark = "first"
        self.tasks = [self.task(tmp_path, index) for index in range(count)]

    def task(self, folder, index):
        def read():
            self.reads.append(index)
            return material(index)

        inside = folder / "samples" / str(index)
        return Task(inside, f"{index:03d}_v{index}", {"version": 1}, read)

    def ways(self):
        def real(sample):
            return Video(sample.truth.frames)

        def make(sample):
            self.makes.append(sample.index)
            if sample.index == 1 and self.mark == "first":
                raise InputError("no face in it")
            return Video(sample.truth.frames[:30])

        truth = Way("Ground truth", "truth", real, {}, {})
        return [truth, Way("row", "row", make, {"mark": self.mark}, {})]

    def run(self, share=(0, 1)):
        self.reads.clear()
        self.makes.clear()
        config = cross_scene.get_config("tiny")
        return score_rows.run(self.ways(), self.tasks, judges(), config, share)


def test_a_second_run_makes_nothing_and_says_the_same(tmp_path):
    counted = Counted(tmp_path)
    first = counted.run()
    assert counted.reads == counted.makes == [0, 1]
    assert first["truth"][0].scores["ssim"] == pytest.approx(1)
    assert first["row"][0].failures == ("short",)
    assert first["row"][1].failures == ("missing",)
    assert set(first["row"][1].scores.values()) == {None}
    assert first["row"][1].scores.keys() == first["row"][0].scores.keys()
    assert not list(tmp_path.rglob("1/row.mp4"))
    again = counted.run()
    assert counted.reads == counted.makes == []
    for slug, records in first.items():
        for one, other in zip(records, again[slug], strict=True):
            assert one.scores == other.scores
            assert one.failures == other.failures
            assert one.features.keys() == other.features.keys()
            for kind, features in one.features.items():
                np.testing.assert_array_equal(features, other.features[kind])


@pytest.mark.parametrize("name", ["row.json", "row.npz", "row.mp4"])
def test_what_a_killed_run_left_is_made_again(tmp_path, name):
    counted = Counted(tmp_path, count=1)
    first = counted.run()
    damaged = tmp_path / "samples/0" / name
    if name == "row.mp4":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:20])
    assert counted.run()["row"][0].scores == first["row"][0].scores
    assert counted.makes == [0]


def test_a_row_made_with_anything_else_is_made_again(tmp_path):
    counted = Counted(tmp_path)
    counted.run()
    counted.mark = "second"
    found = counted.run()
    assert counted.makes == [0, 1]
    assert found["row"][1].failures == ("short",)
    stored = json.loads((tmp_path / "samples/1/row.json").read_text())
    assert stored["made_with"] == {"version": 1, "mark": "second"}


# What a row is made with: (field, another value)
CHANGES = {
    "face.size": 32,
    "lipsync.size": 32,
    "lipsync.max_shift": 7,
    "output.decode_dtype": "bfloat16",
    "output.exact_release": True,
    "prepare.detect_every": 4,
    "prepare.identity_faces": 7,
    "prepare.released_colours": True,
    "wav2vec.states": (8, 16),
    "model.num_video_latents": 8,
    "model.num_videoref_latents": 7,
    "chunks.motion_latents": 1,
    "chunks.canvas_tail": 3,
    "text.negative": "ugly",
    "prepare.landscape": (64, 96),
}


def changed(name, size="mini"):
    config = cross_scene.get_config(size)
    section, field = name.split(".")
    with config.unlocked():
        config[section][field] = CHANGES[name]
    return config


@pytest.fixture
def made_with(tmp_path, monkeypatch):
    """Of a sample of a dataset, and of one of a benchmark, by their config."""
    summary = {"encoded": "0"}
    monkeypatch.setattr(dataset_samples, "read_summary", lambda _: summary)
    monkeypatch.setattr(
        dataset_samples.readers, "load_text", lambda _: SimpleNamespace(read=str)
    )
    monkeypatch.setattr(
        benchmark_samples.benchmark_inputs, "made_from", lambda _: "footage"
    )
    source = SimpleNamespace(root=tmp_path, rows=[SimpleNamespace(clip_id="a")])
    pair = SimpleNamespace(sample=SimpleNamespace(key="a"))

    def dataset(config):
        pairs = [Pair(0, 0)]
        return dataset_samples.tasks(source, pairs, {}, config, tmp_path, None)

    def benchmark(config):
        return benchmark_samples.tasks([pair], {}, "0", None, config, tmp_path)

    return lambda of, config: (
        {"dataset": dataset, "benchmark": benchmark}[of](config)[0].made_with
    )


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_a_sample_is_read_or_scored_by_is_in_what_it_is_made_with(
    made_with, name
):
    for of in ("dataset", "benchmark"):
        if (of, name) == ("dataset", "prepare.landscape"):
            continue  # its size is that of the dataset
        usual = made_with(of, cross_scene.get_config("mini"))
        assert made_with(of, changed(name)) != usual, of


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoints_that_would_read_samples_otherwise_are_refused(name):
    one, same, other = (
        Checkpoint(path, config, None, None, path)
        for path, config in [
            ("W/a", cross_scene.get_config("mini")),
            ("W/b", cross_scene.get_config("mini")),
            ("W/c", changed(name)),
        ]
    )
    checkpoint_rows.check_alike([one, same])
    told = name if name.split(".")[0] not in checkpoint_rows.SECTIONS else "[a-z2]+"
    with pytest.raises(InputError, match=f"W/c: its config.{told} .* that of W/a;"):
        checkpoint_rows.check_alike([one, same, other])
    checkpoint_rows.check_alike([other, other])


def test_shares_are_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(score_rows, "PATIENCE", 0.0)
    alone = Counted(tmp_path / "alone", count=3)
    whole = alone.run()
    shared = Counted(tmp_path / "shared", count=3)
    with pytest.raises(InputError, match=r"--share: .*sample 001_v1"):
        shared.run((0, 2))
    assert shared.makes == [0, 2]
    shared.run((1, 2))
    assert shared.makes == [1]
    found = shared.run((0, 2))
    assert shared.makes == []
    for slug, records in whole.items():
        assert [r.scores for r in records] == [r.scores for r in found[slug]]
        assert [r.failures for r in records] == [r.failures for r in found[slug]]


def test_what_cannot_be_written_ends_the_run_a_sample_later(tmp_path, monkeypatch):
    counted = Counted(tmp_path, count=4)

    def full(*_):
        raise InputError("row.mp4: cannot be written (no space left)")

    with monkeypatch.context() as patch:
        patch.setattr(score_rows, "write_video", full)
        with pytest.raises(InputError, match="no space left"):
            counted.run()
    assert counted.reads == [0, 1]  # made while the first one was scored
    assert not list(tmp_path.rglob("*.json"))
    found = counted.run()
    assert counted.reads == [0, 1, 2, 3]
    assert [len(records) for records in found.values()] == [4, 4]


def test_joins_are_where_chunks_begin():
    plan = chunks.plan(37, 5, 1, 0)  # latents 0-4, 5-8, 9-
    assert checkpoint_rows.joins(plan) == [17, 33]


# Rows of a benchmark


@pytest.fixture
def listed():
    span = benchmark_file.Span("v", "", 0.0, 1.0, 0, 25, 25.0, SIZE, SIZE)
    return [
        benchmark_file.Sample(
            i, f"{i:03d}_v{i}", span, span._replace(video_id=v), "", ""
        )
        for i, v in enumerate(["v0", "a/v1", "twice", "twice"])
    ]


def test_somebodys_videos_are_found_sized_and_cut(tmp_path, listed):
    frames = material(0).truth.frames
    large = frames.repeat(2, axis=1).repeat(2, axis=2)
    for place in ("000_v0.mp4", "001_v1/generated_target.mp4", "twice.mp4"):
        video_files.write_video(tmp_path / place, large, 25, crf=4)
    way = benchmark_rows.theirs("a b", tmp_path, listed)
    assert way.slug == "results_a_b"
    found = way.make(material(0)).frames
    assert found.shape == frames.shape
    assert np.abs(found.astype(float) - frames).mean() < 3
    assert way.make(material(1)).frames.shape == frames.shape
    for index in (2, 3):  # a video of that name is which of the two?
        with pytest.raises(
            InputError, match="no video of 002" if index == 2 else "003"
        ):
            way.make(material(index))
        assert way.of(f"{index:03d}_v{index}") == {"file": None}
    before = way.of("000_v0")
    shutil.copy(tmp_path / "twice.mp4", tmp_path / "v0.mp4")
    assert way.of("000_v0") == before
    video_files.write_video(tmp_path / "000_v0.mp4", large[:20], 25)
    assert way.of("000_v0") != before
    assert len(way.make(material(0)).frames) == 20


@pytest.mark.parametrize("given", ["=x", "x", "name="])
def test_results_have_a_name_and_a_folder(given):
    with pytest.raises(InputError, match=f"--results {given}"):
        benchmark_rows.named(given)


def test_an_empty_folder_of_results_is_refused(tmp_path, listed):
    with pytest.raises(InputError, match="none of 4 videos"):
        benchmark_rows.theirs("x", tmp_path, listed)
