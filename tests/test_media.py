"""Files to arrays and back: nothing lost, nothing shifted, damage is one clear line."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import soundfile

from data_pipelines import media, video_files
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]
RATE = 16000
STEP = 3  # grey levels between frames: more than the codec is off


def clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A colour wash that moves: easy on the codec, different in every frame."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    waves = [np.sin(0.06 * x + 0.3 * t), np.cos(0.07 * y - 0.2 * t), np.sin(0.1 * t)]
    return np.stack([127 + 100 * w for w in waves], axis=-1).astype(np.uint8)


def counted(frames: int) -> np.ndarray:
    """Grey frames whose level says which one they are."""
    levels = np.arange(frames, dtype=np.uint8) * STEP
    return np.broadcast_to(levels[:, None, None, None], (frames, 32, 32, 3)).copy()


def psnr(a, b) -> float:
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2) + 1e-12)


def click(seconds: float, at: float, rate: int = RATE) -> np.ndarray:
    wave = np.zeros(round(seconds * rate), np.float32)
    wave[round(at * rate)] = 0.9
    return wave


def write_apart(path, pts, *sound, rate=RATE, layout="mono"):
    """Frames at `pts` milliseconds; sounds: (seconds, wave of the first channel)."""
    coded = ("ffv1", "pcm_s16le") if path.suffix == ".mkv" else ("libx264", "aac")
    with av.open(str(path), "w") as container:
        video = container.add_stream(coded[0], rate=25)
        video.height, video.width, video.pix_fmt = 32, 32, "yuv420p"
        video.time_base = Fraction(1, 1000)
        video.codec_context.time_base = Fraction(1, 1000)
        track = container.add_stream(coded[1], rate=rate, layout=layout)
        for pixels, at in zip(counted(len(pts)), pts, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start, wave in sound:
            channels = np.zeros((len(wave), track.channels), np.int16)
            channels[:, 0] = wave * 32767
            frame = av.AudioFrame.from_ndarray(channels.reshape(1, -1), "s16", layout)
            frame.pts, frame.sample_rate = round(start * rate), rate
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


# Laws


def test_what_is_written_is_read_back(tmp_path):
    path, frames = tmp_path / "deep" / "a.mp4", clip(30)
    tags = {"tavr_jax.checkpoint": "ünïcode: 1f", "comment": "made up", "any key": "1"}
    video_files.write_video(path, frames, 25, click(1.2, 0.5), RATE, 12, tags)
    back = media.read_frames(path, 25)
    assert back.shape == frames.shape and back.dtype == np.uint8
    assert min(psnr(a, b) for a, b in zip(back, frames, strict=True)) > 36
    assert tags.items() <= media.read_metadata(path).items()
    assert media.read_audio(path, RATE).shape == (19200,)
    found = media.probe(path)
    assert found == (str(path), 25.0, 30, pytest.approx(1.2), 64, 96, True, 1)
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_bytes_in_memory_round_trip_and_repeat():
    frames = clip(9)
    data = video_files.encode_mp4(frames, 25, 8)
    assert data == video_files.encode_mp4(frames, 25, 8)
    back = media.decode_mp4(data)
    assert back.shape == frames.shape and psnr(back, frames) > 38
    assert len(video_files.encode_mp4(frames, 25, 40)) < len(data)


def test_an_odd_size_gains_an_edge_and_loses_nothing(tmp_path):
    frames = clip(4, 33, 47)
    video_files.write_video(tmp_path / "a.mp4", frames, 25, crf=8)
    back = media.read_frames(tmp_path / "a.mp4", 25)
    assert back.shape == (4, 34, 48, 3)
    assert psnr(back[:, :33, :47], frames) > 34
    assert psnr(back[:, 33], back[:, 32]) > 30


@pytest.mark.parametrize("fps", [15, 23.976, 24, 25, 29.97, 30, 50, 60, 120])
def test_each_output_frame_is_the_one_on_screen(tmp_path, fps):
    frames = counted(80)
    video_files.write_video(tmp_path / "a.mp4", frames, fps, crf=0)
    back = media.read_frames(tmp_path / "a.mp4", 25)
    assert len(back) == round(80 / fps * 25)
    shown = np.rint(back.mean(axis=(1, 2, 3)) / STEP)
    expected = np.minimum((np.arange(len(back)) / 25 + 0.004) * fps, 79).astype(int)
    assert np.array_equal(shown, expected)
    assert len(media.read_frames(tmp_path / "a.mp4", 25, limit=7)) == 7
    assert media.probe(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-4)


def test_uneven_frames_are_held_as_long_as_they_last(tmp_path):
    write_apart(tmp_path / "a.mkv", [0, 41, 79, 120, 320, 360])
    back = media.read_frames(tmp_path / "a.mkv", 25)
    shown = np.rint(back.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()
    assert shown == [0, 1, 2, 3, 3, 3, 3, 3, 4, 5]


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_click_is_heard_when_it_was_made(tmp_path, rate):
    for at in (0.2, 0.777, 1.9):
        video_files.write_video(
            tmp_path / "a.mp4", clip(50), 25, click(2, at, rate), rate
        )
        wave = media.read_audio(tmp_path / "a.mp4", RATE)
        assert wave.size == 32000
        assert abs(np.abs(wave).argmax() / RATE - at) < 0.005


@pytest.mark.parametrize("picture, sound", [(0, 0.5), (1.0, 1.25), (0.48, 0.0)])
def test_sound_is_laid_on_the_clock_of_the_picture(tmp_path, picture, sound):
    """A click 0.6 s into a sound track that starts before or after the picture."""
    pts = [round(1000 * picture) + 40 * i for i in range(40)]
    write_apart(tmp_path / "a.mkv", pts, (sound, click(1.5, 0.6)))
    wave = media.read_audio(tmp_path / "a.mkv", RATE)
    assert np.abs(wave).argmax() / RATE == pytest.approx(
        sound + 0.6 - picture, abs=0.002
    )
    assert wave.size / RATE == pytest.approx(sound + 1.5 - picture, abs=0.002)
    assert len(media.read_frames(tmp_path / "a.mkv", 25)) == 40


@pytest.mark.parametrize(
    "name, picture, starts, rate, layout",
    [
        ("late.mkv", 0, (0.6,), 44100, "stereo"),
        ("late.mp4", 0, (0.6,), 44100, "stereo"),
        ("late.ts", 0, (0.6,), 44100, "mono"),
        ("early.mkv", 0.48, (0.0,), 22050, "stereo"),
        ("holed.mkv", 0.2, (0.0, 1.7), 48000, "5.1"),
        ("unknown_to_aac.mkv", 0, (0.25, 2.0), 10000, "stereo"),
    ],
)
def test_a_file_sounds_in_a_video_when_it_drives_the_lips(
    tmp_path, name, picture, starts, rate, layout
):
    """What is muxed against what is read, for tracks apart from their pictures."""
    path, made = tmp_path / name, tmp_path / "made.mp4"
    pts = [round(1000 * picture) + 40 * i for i in range(50)]
    sound = [(start, click(1.2, 0.9, rate)) for start in starts]
    write_apart(path, pts, *sound, rate=rate, layout=layout)
    drives = media.read_audio(path, RATE)
    video_files.write_video(made, counted(80), 25, path)
    heard = media.read_audio(made, RATE)
    assert heard.size == pytest.approx(drives.size, abs=0.003 * RATE)
    for start in starts:
        at = round((start + 0.9 - picture) * RATE)
        near = slice(at - 3200, at + 3200)
        loudest = [np.abs(wave[near]).argmax() - 3200 for wave in (drives, heard)]
        assert np.abs(loudest).max() < 0.004 * RATE
        assert np.abs(heard[near]).max() > 0.3 * np.abs(drives[near]).max() > 0.01
    with av.open(str(made)) as container:
        stream = container.streams.audio[0]
        known = rate if rate != 10000 else video_files.FALLBACK_RATE
        assert (stream.rate, stream.layout.name) == (known, layout)


def test_mono_is_the_mean_of_the_channels_and_pitch_survives_resampling(tmp_path):
    t = np.arange(44100) / 44100
    left, right = np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 1000 * t)
    for suffix, subtype in (("wav", "FLOAT"), ("wav", "PCM_24"), ("flac", "PCM_16")):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, 0.5 * np.stack([left, right], 1), 44100, subtype)
        wave = media.read_audio(path, RATE)
        t16 = np.arange(wave.size) / RATE
        mean = np.sin(2 * np.pi * 440 * t16) + np.sin(2 * np.pi * 1000 * t16)
        inner = slice(400, -400)  # the filter rings at the ends
        assert wave.dtype == np.float32 and abs(wave.size - RATE) <= 1
        assert np.abs(wave - 0.25 * mean)[inner].max() < 2e-3


def test_camera_rotation_and_wide_pixels_are_undone(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 32, 64, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(3, 2)
        video.set_display_rotation(90)
        pixels = np.zeros((32, 64, 3), np.uint8)
        pixels[:16, :32] = 255
        container.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(video.encode(None))
    back = media.read_frames(path, 25)[0]
    assert back.shape == (96, 32, 3) and media.probe(path)[4:6] == (96, 32)
    assert back[60:, :12].min() > 230 and back[:36].max() < 25  # counter-clockwise


def test_cover_resize_fills_and_keeps_the_middle():
    frames = clip(2, 40, 100)
    assert np.array_equal(media.cover_resize(frames, (40, 100)), frames)
    assert np.array_equal(media.cover_resize(frames, (40, 40)), frames[:, :, 30:70])
    small = media.cover_resize(frames.astype(np.float32), (20, 20))
    middle = frames[:, :, 30:70].reshape(2, 20, 2, 20, 2, 3).mean(axis=(2, 4))
    assert small.dtype == np.float32
    assert np.allclose(small, middle, atol=1e-3)
    assert media.cover_resize(frames, (80, 50)).shape == (2, 80, 50, 3)


# Bad input


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """One file of every kind of wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n" * 99)
    (folder / "text.txt").write_text("not a video\n" * 99)
    video_files.write_video(folder / "mute.mp4", clip(50), 25)
    video_files.write_video(folder / "whole.mp4", clip(75), 25, click(3, 1), RATE)
    whole = (folder / "whole.mp4").read_bytes()
    for percent in (5, 50, 80):
        (folder / f"cut{percent}.mp4").write_bytes(whole[: len(whole) * percent // 100])
    soundfile.write(folder / "sound.wav", click(1, 0.5), RATE)
    soundfile.write(folder / "none.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(99, np.nan), RATE, "FLOAT")
    cv2.imwrite(str(folder / "still.png"), clip(1)[0])
    png = (folder / "still.png").read_bytes()
    (folder / "cut.png").write_bytes(png[: len(png) // 3])
    write_apart(folder / "leap.mkv", [0, 40, 80, 90_000_000, 90_000_040])
    return folder


@pytest.mark.parametrize(
    "name, reason, readers",
    [
        ("missing.mp4", "no such file", "probe frames audio image tags"),
        (".", "is not a file", "probe frames audio image tags"),
        ("empty.mp4", "damaged|not a readable image", "probe frames audio image tags"),
        ("text.mp4", "damaged|not a readable image", "probe frames audio image tags"),
        ("text.txt", "no video stream|not a readable image", "probe frames image"),
        ("cut5.mp4", "damaged|truncated", "frames audio"),
        ("cut50.mp4", "damaged|truncated", "frames audio"),
        ("cut80.mp4", "damaged|truncated", "frames"),
        ("mute.mp4", "no sound track", "audio"),
        ("mute.mp4", "not a readable image", "image"),
        ("sound.wav", "no video stream", "probe frames"),
        ("still.png", "no video stream", "probe frames"),
        ("still.png", "no sound track", "audio"),
        ("none.wav", "empty", "audio"),
        ("nan.wav", "NaN", "audio"),
        ("cut.png", "not a readable image", "image"),
        ("leap.mkv", "timestamps leap", "frames"),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(bad, name, reason, readers):
    readings = {
        "probe": media.probe,
        "frames": lambda p: media.read_frames(p, 25),
        "audio": lambda p: media.read_audio(p, RATE),
        "image": media.read_image,
        "tags": media.read_metadata,
    }
    for reader in readers.split():
        with pytest.raises(InputError, match=reason) as error:
            readings[reader](bad / name)
        assert str(bad / name) in str(error.value) and "\n" not in str(error.value)


def test_random_damage_ends_in_a_result_or_an_input_error(bad, tmp_path):
    rng = np.random.default_rng(0)
    whole = np.fromfile(bad / "whole.mp4", np.uint8)
    failures = 0
    for trial in range(40):
        data, hits = whole.copy(), 3 ** rng.integers(1, 6)
        data[rng.integers(0, len(data), hits)] = rng.integers(0, 256, hits)
        path = tmp_path / f"{trial}.mp4"
        data.tofile(path)
        for read in (
            lambda p: media.read_frames(p, 25),
            lambda p: media.read_audio(p, RATE),
        ):
            try:
                assert read(path).size
            except InputError as error:
                failures += 1
                assert "\n" not in str(error)
    assert failures > 5


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_damaged_sound_ends_in_a_result_or_an_input_error(tmp_path, suffix):
    generator, path = np.random.default_rng(1), tmp_path / f"a.{suffix}"
    soundfile.write(path, click(1, 0.5), RATE)
    whole = np.fromfile(path, np.uint8)
    for trial in range(12):
        data = whole[: generator.integers(1, len(whole))] if trial % 2 else whole
        data, hits = data.copy(), 3 ** generator.integers(0, 5)
        data[generator.integers(0, min(len(data), 4000), hits)] ^= 1 << trial % 8
        data.tofile(path)
        try:
            assert np.isfinite(media.read_audio(path, RATE)).all()
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.mp4"
    video_files.write_video(path, clip(3), 25)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        video_files.write_video(path, clip(3).astype(np.float32), 25)
    with pytest.raises(InputError, match="12345"):
        video_files.write_video(path, clip(3), 25, click(1, 0.5), 12345)
    with pytest.raises(InputError, match="cannot be written"):
        video_files.write_video(path / "b.mp4", clip(3), 25)
    with pytest.raises(InputError, match=r"\.mp4"):
        video_files.write_video(tmp_path / "a.avi", clip(3), 25)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_two_writers_of_one_video_leave_a_whole_one(tmp_path):
    """The other one writes all of it, and is gone, while the first is in the midst."""
    path, pids = tmp_path / "a.mp4", []
    code = (
        "import sys, numpy; from data_pipelines import video_files as v;"
        "v.write_video(sys.argv[1], numpy.zeros((9, 32, 32, 3), numpy.uint8), 25)"
    )

    def blocks():
        yield counted(4)
        other = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
        pids.append(other.pid)
        assert other.wait() == 0 and len(media.read_frames(path, 25)) == 9
        yield counted(8)[4:]

    video_files.write_video(path, blocks(), 25, crf=4)
    shown = np.rint(media.read_frames(path, 25).mean(axis=(1, 2, 3)) / STEP)
    assert shown.tolist() == list(range(8))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    dead, living, elsewhere = (
        tmp_path / f".{host}-{pid}.a.mp4"
        for host, pid in (
            (os.uname().nodename, pids[0]),
            (os.uname().nodename, os.getppid()),
            ("some.other.machine", pids[0]),
        )
    )
    for left in (dead, living, elsewhere):
        left.touch()
    video_files.write_video(path, clip(3), 25)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("a.mp4", living.name, elsewhere.name)
    }


def test_a_bare_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "2024-05-01T12:30:00.mp4"
    video_files.write_video(name, clip(5), 25, click(0.2, 0.1))
    assert media.probe(name).frames == 5
    video_files.write_video("b.mp4", clip(5), 25, name)
    assert np.abs(media.read_audio("b.mp4", RATE)).argmax() == pytest.approx(
        1600, abs=50
    )


# Real media


def test_all_shared_media_open(shared):
    videos = sorted((shared / "media").rglob("videos/*"))
    assert len(videos) >= 12
    for path in videos:
        found = media.probe(path)
        frames = media.read_frames(path, 25, limit=20)
        assert frames.shape == (20, found.height, found.width, 3)
        assert frames.std() > 10
        wave = media.read_audio(path, RATE)
        assert wave.size / RATE == pytest.approx(found.seconds, abs=0.25)
        assert 1e-3 < np.sqrt(np.mean(wave**2)) < 0.5
    for path in sorted((shared / "media/speech").iterdir()):
        assert media.read_audio(path, RATE).size > RATE
    assert media.read_image(shared / "media/faces/astronaut.png").shape == (512, 512, 3)


@pytest.mark.parametrize("name", ["RD-Radio10_0.mp4", "grid-A_bbaf2n.mpg"])
def test_real_rates_become_25_a_second(shared, name):
    path = shared / "media/videos" / name
    seconds = media.probe(path).seconds
    assert len(media.read_frames(path, 25)) == round(seconds * 25)
