"""Spans of a benchmark come out of a user's files frame by frame, or not at all."""

import json
import shutil

import numpy as np
import pytest

from data_pipelines import benchmark_file, benchmark_media, media, video_files
from data_pipelines.benchmark_media import Place
from tavr_jax.errors import InputError

ROWS, COLUMNS, RATE = 48, 64, 16000


def draw(path, count, fps, sound=True):
    """Frames that are told apart by their grey level; sound that is told apart too."""
    levels = (37 * np.arange(count) % 230 + 10).astype(np.uint8)
    frames = np.repeat(levels, ROWS * COLUMNS * 3).reshape(count, ROWS, COLUMNS, 3)
    seconds = np.arange(round(count / fps * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds)
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = wave.astype(np.float32) if sound else None
    video_files.write_video(path, frames, fps, wave, RATE)
    return path


def span(start=10, end=40, fps=25.0, video_id="a.b-c", **changed):
    made = benchmark_file.Span(
        video_id, "url", start / fps, end / fps, start, end, fps, COLUMNS, ROWS
    )
    return made._replace(**changed)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("media") / "whole.mp4", 60, 25)


def test_frames_and_sound_of_a_span_are_those_of_the_file(file):
    cut = benchmark_media.locate(span(), Place(file, alone=False))
    assert cut.remarks == ()
    taken = np.stack(list(benchmark_media.frames(cut)))
    whole = media.read_frames(file, 25)
    np.testing.assert_array_equal(taken, whole[10:40])
    assert not np.array_equal(taken, whole[11:41])
    wave = media.read_audio(file, RATE)
    np.testing.assert_array_equal(
        benchmark_media.sound(cut, RATE), wave[10 * 640 : 40 * 640]
    )


def test_a_span_cut_already_begins_at_its_file(file):
    cut = benchmark_media.locate(span(500, 560), Place(file, alone=True))
    assert cut.start == 0
    taken = np.stack(list(benchmark_media.frames(cut)))
    np.testing.assert_array_equal(taken, media.read_frames(file, 25))


@pytest.mark.parametrize("fps", [20, 30, 50])
def test_other_rates_give_25_frames_a_second_of_the_same_seconds(tmp_path, fps):
    file = draw(tmp_path / "v.mp4", 2 * fps, fps)
    first = media.read_frames(file, 25)
    by_frames = benchmark_media.locate(
        span(0, 2 * fps, float(fps)), Place(file, alone=False)
    )
    assert by_frames.remarks == ()
    np.testing.assert_array_equal(
        np.stack(list(benchmark_media.frames(by_frames))), first
    )
    # listed at another rate: its frame numbers mean nothing here, its seconds do
    listed = span(24, 36, 24.0)
    by_clock = benchmark_media.locate(listed, Place(file, alone=False))
    assert by_clock.start == 1.0
    assert by_clock.frames == 12  # 0.5 s
    assert any("listed as 24" in remark for remark in by_clock.remarks)
    taken = np.stack(list(benchmark_media.frames(by_clock)))
    np.testing.assert_array_equal(taken, first[25:37])


def test_what_differs_from_the_list_is_remarked(file):
    other = span(width=1280, height=720)._replace(end=3.0)
    cut = benchmark_media.locate(other, Place(file, alone=False))
    assert len(cut.remarks) == 2
    assert "64x48, listed as 1280x720" in cut.remarks[0]
    assert "30 frames at 25 fps by its frames, 65 by its seconds" in cut.remarks[1]


def test_a_file_that_ends_before_the_span_is_another_one(file, tmp_path):
    with pytest.raises(InputError, match=r"whole.mp4: ends at 2.40 s.*a.b-c_50_90.mp4"):
        benchmark_media.locate(span(50, 90), Place(file, alone=False))
    held = benchmark_media.locate(span(50, 62), Place(file, alone=False))
    taken = np.stack(list(benchmark_media.frames(held)))
    assert len(taken) == 12
    assert (taken[9:] == taken[9]).all()
    assert len(benchmark_media.sound(held, RATE)) == 12 * 640
    silent = draw(tmp_path / "silent.mp4", 30, 25, sound=False)
    cut = benchmark_media.locate(span(0, 25), Place(silent, alone=False))
    assert benchmark_media.sound(cut, RATE) is None


def test_damaged_media_are_one_line_that_names_the_file(file, tmp_path):
    data = file.read_bytes()
    for name, damaged in (("half", data[: len(data) // 2]), ("text", b"no video")):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=str(path)) as found:
            cut = benchmark_media.locate(span(), Place(path, alone=False))
            list(benchmark_media.frames(cut))
        assert "\n" not in str(found.value)
        assert name == "text" or "truncated" in str(found.value)


def test_every_documented_place_is_found_and_the_rest_is_missing(file, tmp_path):
    folder = tmp_path / "media"
    for place in ("one.x.webm", "two/any name.mkv", "three_5_30.mp4", "three.mp4"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / place)
    (folder / "two/notes.txt").write_text("no video")

    def video(name, start=5, end=30):
        made = span(start, end, video_id=name)._asdict()
        made |= {"start_time": made.pop("start"), "end_time": made.pop("end")}
        return made

    pairs = [
        {"reference": video(a), "target": video(b), "target_caption": ""}
        for a, b in (("one.x", "two"), ("three", "four"), ("four", "one.x"))
    ]
    pairs[2]["target"] = video("three", 6, 30)
    (tmp_path / "b.json").write_text(json.dumps(pairs))
    benchmark = benchmark_file.read(tmp_path / "b.json")
    places, missing = benchmark_media.find(benchmark, folder)
    names = {(s.video_id, s.start_frame): p for s, p in places.items()}
    assert names == {
        ("one.x", 5): Place(folder / "one.x.webm", alone=False),
        ("two", 5): Place(folder / "two/any name.mkv", alone=False),
        ("three", 5): Place(folder / "three_5_30.mp4", alone=True),
        ("three", 6): Place(folder / "three.mp4", alone=False),
    }
    assert [s.video_id for s in missing] == ["four"]
    shutil.copy(file, folder / "two/second.mp4")
    with pytest.raises(InputError, match="2 videos"):
        benchmark_media.find(benchmark, folder)
    with pytest.raises(InputError, match="no such folder"):
        benchmark_media.find(benchmark, tmp_path / "nowhere")
