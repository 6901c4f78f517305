"""A benchmark's footage is read and searched once, whoever asks for it again."""

import json

import numpy as np
import pytest

from configs import cross_scene
from data_pipelines import benchmark_media, people, video_files
from data_pipelines.benchmark_file import Sample, Span
from launch import benchmark_truth, inputs
from launch.benchmark_inputs import Pair
from launch.benchmark_samples import Studio, Told

FRAMES = 20


@pytest.fixture
def config():
    return cross_scene.get_config("tiny")


def test_a_sample_is_read_once_for_all_that_read_it_alike(
    tmp_path, monkeypatch, config
):
    reads = []
    monkeypatch.setattr(inputs, "read", lambda sample, *_: reads.append(sample) or 7)
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        for name in ("ref.mp4", "target.png", "target.wav"):
            (folder / name).write_bytes(b"not looked into")
        (folder / "target_caption.json").write_text(json.dumps({"caption": "she"}))
    told = Told(tmp_path / "one", Studio(None, None, None, {}))
    same = config.copy_and_resolve_references()
    same.optimizer.learning_rate = 7.0  # nothing that a sample is read by
    for alike in (config, config, same):
        assert told.material(alike) == told.under(None, min).material(alike) == 7
    assert len(reads) == 1
    longer = config.copy_and_resolve_references()
    longer.model.num_videoref_latents += 1
    told.material(longer)
    told.under(tmp_path / "other", None).material(config)
    folders = [sample.references[0] for sample in reads]
    assert folders == [str(tmp_path / f / "ref.mp4") for f in ("one", "one", "other")]


def test_the_other_way_round_a_pair_is_not_searched_again(
    tmp_path, monkeypatch, config
):
    rng, cuts, searched = np.random.default_rng(0), [], []

    def find_faces(frame):
        searched.append(frame)
        return np.float32([[0.3, 0.2, 0.6, 0.7]]) + frame.mean() / 2550

    monkeypatch.setattr(people, "find_faces", find_faces)
    for name in "ab":
        path = tmp_path / f"{name}.mp4"
        frames = rng.integers(0, 256, (FRAMES, 48, 48, 3)).astype(np.uint8)
        video_files.write_video(path, frames, 25, np.zeros(FRAMES * 640, np.float32))
        span = Span(name, "", 0.0, FRAMES / 25, 0, FRAMES, 25.0, 48, 48)
        cuts.append(benchmark_media.locate(span, benchmark_media.Place(path, False)))
    sample = Sample(0, "000_a", span, span, "", "")
    wave = rng.normal(0, 0.1, FRAMES * 640).astype(np.float32)

    def read(reference, target):
        pair = Pair(sample, cuts[reference], cuts[target])
        return benchmark_truth.read(pair, wave, FRAMES, 0, config)

    first, count = read(0, 1), len(searched)
    assert count == 2 * -(-FRAMES // config.prepare.detect_every)
    second = read(1, 0)
    assert len(searched) == count
    for mine, theirs in ((first, second), (second, first)):
        np.testing.assert_array_equal(mine.frames, theirs.reference)
        np.testing.assert_array_equal(mine.boxes, theirs.reference_boxes)
    assert not np.array_equal(first.frames, second.frames)
    assert len(read(1, 0).frames) == FRAMES and len(searched) == count
