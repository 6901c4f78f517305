"""A benchmark's pair becomes a sample folder that the release and we both read."""

import json

import numpy as np
import pytest

from data_pipelines import benchmark_file, benchmark_media, media, video_files
from launch import benchmark_inputs, samples

RATE = 16000


def span(video_id, start, end):
    return {
        "video_id": video_id,
        "video_url": f"https://example.org/{video_id}",
        "start_time": start / 25,
        "end_time": end / 25,
        "start_frame": start,
        "end_frame": end,
        "fps": 25,
        "width": 64,
        "height": 48,
    }


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, sound in (("a", True), ("b", True), ("mute", False)):
        coarse = rng.integers(30, 220, (60, 6, 8, 3)).astype(np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        wave = 0.2 * rng.normal(size=60 * 640).astype(np.float32) if sound else None
        video_files.write_video(folder / f"{name}.mp4", frames, 25, wave, RATE)
    pairs = [
        ("a", "b", (0, 40), (7, 31)),
        ("mute", "a", (0, 40), (7, 31)),
        ("a", "mute", (0, 40), (7, 31)),
        ("a", "gone", (0, 40), (7, 31)),
        ("a", "b", (0, 40), (7, 310)),
    ]
    listed = [
        {
            "reference": span(reference, *shown),
            "target": span(target, *made),
            "target_caption": f"sample {index}",
        }
        for index, (reference, target, shown, made) in enumerate(pairs)
    ]
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(listed))
    return benchmark_file.read(path)


def test_what_cannot_be_made_is_named_with_its_reason(benchmark, tmp_path):
    places, missing = benchmark_media.find(benchmark, tmp_path / "media")
    assert [s.video_id for s in missing] == ["gone"]
    pairs, left_out = benchmark_inputs.locate(benchmark, places)
    assert [pair.sample.index for pair in pairs] == [0, 1]
    assert "no sound" in left_out["002_mute"]
    assert "target gone is not there" in left_out["003_gone"]
    assert "example.org/gone" in left_out["003_gone"]
    assert "ends at 2.40 s" in left_out["004_b"]


def test_the_folder_is_a_sample_of_the_release(benchmark, tmp_path):
    places, _ = benchmark_media.find(benchmark, tmp_path / "media")
    pairs, _ = benchmark_inputs.locate(benchmark, places)
    inputs = tmp_path / "inputs"
    folders = [benchmark_inputs.write(pair, inputs) for pair in pairs]
    # one reader of sample folders, the one that launch.generate uses
    first, second = samples.from_folders([str(inputs)], str(tmp_path / "made"))
    assert first.caption == "sample 0"
    assert first.output == tmp_path / "made/000_b/generated_target.mp4"
    whole = media.read_frames(tmp_path / "media/b.mp4", 25)
    np.testing.assert_array_equal(media.read_image(first.target), whole[7])
    wave = media.read_audio(first.audio, RATE)
    true = media.read_audio(tmp_path / "media/b.mp4", RATE)[7 * 640 : 31 * 640]
    np.testing.assert_allclose(wave, true, atol=2 / 32767)
    reference = media.read_frames(first.references[0], 25).astype(float)
    shown = media.read_frames(tmp_path / "media/a.mp4", 25)[:40]
    assert reference.shape == shown.shape
    assert np.abs(reference - shown).mean() < 3
    assert np.abs(reference - shown[::-1]).mean() > 30
    assert media.probe(first.references[0]).has_audio
    assert not media.probe(second.references[0]).has_audio
    assert folders[0].name == "000_b"


def test_a_folder_is_kept_until_what_it_is_made_from_changes(benchmark, tmp_path):
    places, _ = benchmark_media.find(benchmark, tmp_path / "media")
    pair = benchmark_inputs.locate(benchmark, places)[0][0]
    inputs = tmp_path / "inputs"
    folder = benchmark_inputs.write(pair, inputs)
    (folder / "ref.mp4").write_bytes(b"mark")
    benchmark_inputs.write(pair, inputs)
    assert (folder / "ref.mp4").read_bytes() == b"mark"
    (folder / "target_caption.json").unlink()  # a run that was killed before its end
    benchmark_inputs.write(pair, inputs)
    assert media.probe(folder / "ref.mp4").frames == 40
    shorter = pair._replace(reference=pair.reference._replace(frames=30))
    benchmark_inputs.write(shorter, inputs)
    assert media.probe(folder / "ref.mp4").frames == 30
