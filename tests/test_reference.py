"""The reference video: its crop, its frames, its window, its sound."""

import math
from pathlib import Path

import cv2
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import (
    bilinear,
    conditions,
    containers,
    detectors,
    media,
    reference,
    reference_sound,
    still,
    video_files,
)
from launch import parity, parity_media
from launch.parity_oracle import Oracle
from tavr_jax.errors import InputError

GOLDEN = Path(__file__).parent / "golden/media"
BUCKETS = [(480, 896), (896, 480), (96, 160), (64, 64)]
SHORT = {"num_frames": 81, "chunks": 1, "latents": 5}


def seen_at(left, top, right, bottom):
    """A face detector that always answers this box."""
    box = np.float32([[left, top, right, bottom]])
    return detectors.Detectors(lambda frame: box, None, None)


def moving(frames: int, height: int = 96, width: int = 160) -> np.ndarray:
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    waves = [np.sin(0.06 * x + 0.3 * t), np.cos(0.07 * y - 0.2 * t), np.sin(0.1 * t)]
    return np.stack([127 + 100 * w for w in waves], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """160 frames of 96x160 with sound, and the same cut short."""
    folder = tmp_path_factory.mktemp("videos")
    wave = np.sin(np.arange(16000 * 7) / 20).astype(np.float32)
    video_files.write_video(
        folder / "a.mp4", moving(160), 25, wave[: 16000 * 160 // 25]
    )
    video_files.write_video(folder / "short.mp4", moving(19), 25)
    return folder


@pytest.mark.parametrize("name", ["masks", "reference"])
def test_recorded_rules_are_reproduced(name):
    oracle = Oracle.open(GOLDEN / f"{name}.npz")
    checks = getattr(parity_media, f"replay_{name}")(oracle)
    assert len(checks) >= 10
    for check in checks:
        error = parity.compare(np.asarray(check.compute()), oracle.expected(check.name))
        assert error <= check.tolerance, (check.name, error)
    assert set(oracle.names) == {check.name for check in checks} | oracle.inputs


def test_the_recorded_clip_is_reproduced_up_to_its_latents(shared):
    oracle = Oracle.open(shared / "oracles/tavr_seed0/media.npz")
    checks = parity_media.replay_media(oracle)
    assert set(oracle.names) == {check.name for check in checks} | oracle.inputs
    for check in checks:
        if check.name not in ("ref_latents", "ref_audio"):  # they need the networks
            error = parity.compare(check.compute(), oracle.expected(check.name))
            assert error <= check.tolerance, check.name


# The crop


@pytest.mark.parametrize("bucket", BUCKETS)
def test_crops_stay_in_the_frame_with_the_buckets_aspect_and_the_face(bucket):
    generator, made = np.random.default_rng(0), 0
    for _ in range(400):
        rows, columns = (int(n) for n in generator.integers(100, 1100, 2))
        low = generator.uniform(0, [columns, rows])
        high = low + generator.uniform(0, 0.3, 2) * ([columns, rows] - low)
        face = np.concatenate([low, high])
        crop = reference.smart_crop((rows, columns), bucket, face)
        if crop is None:
            continue
        made += 1
        left, top, width, height = crop
        assert not any(edge % 2 for edge in crop)
        assert left >= 0 and top >= 0
        assert left + width <= columns and top + height <= rows
        assert abs(width - height * bucket[1] / bucket[0]) <= 2
        size, corner = np.array([width, height]), np.array([left, top])
        inside = (low >= corner - 2) & (high <= corner + size + 2)  # even numbers
        assert (inside | (high - low > size - 4)).all()
    assert made > 200


def test_a_crop_of_the_crop_is_the_whole():
    crop = reference.smart_crop((720, 1280), (480, 896), np.array([0, 0, 900.0, 700]))
    left, top, width, height = crop
    again = np.array([0, 0, 900.0, 700]) - [left, top, left, top]
    assert reference.smart_crop((height, width), (480, 896), again) is None


def test_half_of_the_samples_must_be_usable():
    box, nothing = [1.0, 2, 3, 4], [np.nan] * 4
    assert reference.union(np.array([nothing, nothing, box])) is None
    assert reference.union(np.zeros((0, 4))) is None
    far = [2.0, 0, 9, 3]
    around = reference.union(np.array([box, nothing, far, nothing]))
    np.testing.assert_array_equal(around, [1, 0, 9, 4])


# Frames


def test_bilinear_keeps_ramps_and_halves_by_means():
    generator = np.random.default_rng(0)
    for _ in range(50):
        have, want = generator.integers(2, 400, (2, 2))
        y, x = np.mgrid[: have[0], : have[1]]
        ramp = np.stack([y, x], axis=-1).astype(np.float32)
        resized = bilinear.resize(ramp, tuple(want.tolist()))
        for axis in (0, 1):
            place = (np.arange(want[axis]) + 0.5) * have[axis] / want[axis] - 0.5
            line = resized.take(0, 1 - axis)[:, axis]
            expected = np.clip(place, 0, have[axis] - 1)
            np.testing.assert_allclose(line, expected, atol=1e-4)
    picture = generator.uniform(0, 1, (40, 60, 3)).astype(np.float32)
    means = picture.reshape(20, 2, 30, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(bilinear.resize(picture, (20, 30)), means, atol=1e-6)
    np.testing.assert_array_equal(bilinear.resize(picture, (40, 60)), picture)


def test_the_chain_is_that_of_bfloat16_in_range_and_idempotent():
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    seen = reference.unsigned(reference.fit(levels, (1, 256)))
    shown = reference.for_codec(seen)
    assert shown.dtype == ml_dtypes.bfloat16
    values = shown.astype(np.float32)
    assert values.min() == -1 and values.max() == 1
    assert (np.diff(values[0, :, 0]) >= 0).all()
    assert np.abs(values - (levels / 127.5 - 1)).max() < 0.01
    again = reference.for_codec(reference.unsigned(shown))
    np.testing.assert_array_equal(again, shown)


@pytest.mark.parametrize("size", [(96, 160), (50, 300), (300, 50), (33, 47)])
def test_frames_fill_their_bucket_and_a_view_shows_the_same(size):
    flat = np.full((*size, 3), 200, np.uint8)
    fitted = reference.fit(flat, (96, 160)).astype(np.float32)
    assert fitted.shape == (96, 160, 3) and np.ptp(fitted) == 0
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    ramp = np.stack([y * 255 / size[0], x * 255 / size[1], 0 * x], -1).astype(np.uint8)
    fitted = reference.fit(ramp, (96, 160)).astype(np.float32)
    part = still.view(ramp, (96, 160)).astype(np.float32) / 127.5 - 1
    resized = cv2.resize(part, (160, 96), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resized - fitted).max() < 0.08


def test_other_colours_are_read_as_the_release_does(video):
    """Our files say BT.709; the release takes them for BT.601: grey stays grey."""
    tagged, released = (
        media.read_frames(video / "a.mp4", 25, 8, colours).astype(int)
        for colours in (containers.as_tagged, containers.as_released)
    )
    assert 5 < np.abs(tagged - released).max() < 60
    assert np.abs(tagged.mean(axis=-1) - released.mean(axis=-1)).mean() < 8


@pytest.mark.parametrize("width", [31, 32, 33])
def test_odd_widths_are_read_whole(tmp_path, width):
    import av

    pixels = np.full((24, width, 3), 180, np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels).reformat(format="yuv420p")
    seen = containers.as_released(frame)
    assert seen.shape == pixels.shape and np.abs(seen.astype(int) - 180).max() <= 2


# The whole of it


def test_only_frames_up_to_the_window_are_kept_and_they_are_the_first_ones(video):
    path, bucket = str(video / "a.mp4"), (96, 160)
    whole = seen_at(0.1, 0.1, 0.9, 0.9)
    clip = reference.read(path, bucket, whole, num_frames=157, chunks=3, latents=3)
    assert clip.count == 160 and clip.latents == 40 and clip.crop is None
    assert clip.window == conditions.reference_window(40, 3, 3)
    start, end = clip.window
    assert clip.frames.shape == (4 * end, 96, 160, 3) and start > 0
    decoded = media.read_frames(path, 25, 4 * end, containers.as_released)
    close = np.abs(clip.frames.astype(np.float32) - (decoded / 127.5 - 1))
    assert close.max() < 0.01
    assert clip.tokens.shape == (3, 6, 10) and clip.faces.shape == (12, 4)
    np.testing.assert_array_equal(
        clip.tokens, conditions.region_tokens(clip.faces, bucket)
    )
    assert clip.coverage == 1.0 and clip.sound_tracks == 1


def test_a_small_face_is_cropped_to_and_its_tokens_follow(video):
    path, small = str(video / "a.mp4"), seen_at(0.45, 0.45, 0.55, 0.55)
    cut = reference.read(path, (96, 160), small, **SHORT)
    left, top, width, height = cut.crop
    assert width < 100 and left <= 72 and left + width >= 88
    decoded = media.read_frames(path, 25, 1, containers.as_released)[0]
    expected = reference.fit(
        decoded[top : top + height, left : left + width], (96, 160)
    )
    np.testing.assert_array_equal(
        cut.frames[0], reference.for_codec(reference.unsigned(expected))
    )
    whole = reference.read(path, (96, 160), small, crop=False, **SHORT)
    assert whole.crop is None and whole.tokens.sum() < 5 * 60


def test_short_faceless_and_missing_references_are_one_line(video):
    nobody = detectors.Detectors(lambda f: np.zeros((0, 4), np.float32), None, None)
    cases = [
        (video / "short.mp4", seen_at(0.1, 0.1, 0.9, 0.9), "20 are needed"),
        (video / "a.mp4", nobody, "a face in 0 of 32"),
        (video / "none.mp4", nobody, "no such file"),
    ]
    for path, found, reason in cases:
        with pytest.raises(InputError, match=reason) as error:
            reference.read(str(path), (96, 160), found, **SHORT)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="no face found from"):
        reference.read(str(video / "a.mp4"), (96, 160), nobody, crop=False, **SHORT)


def test_every_length_is_counted_as_the_release_counts(tmp_path):
    for frames in (25, 29, 57, 58):
        path = tmp_path / "a.mp4"
        video_files.write_video(path, moving(frames, 32, 32), 25)
        seconds = round(media.probe(path).seconds, 6)
        assert seconds == frames / 25
        count = reference.frame_count(9, seconds)
        assert count == math.floor(frames / 25 * 25) and frames - count <= 1
        assert reference.readable(count, seconds) == count


def test_the_released_sound_is_the_sound_with_an_mp3s_losses(video):
    path = video / "a.mp4"
    clean = media.read_audio(path, 16000)
    heard = reference_sound.read_as_released(path, 2.0, 16000)
    assert heard.shape == (32000,)
    assert np.corrcoef(heard, clean[:32000])[0, 1] > 0.99
    assert np.abs(heard - clean[:32000]).max() > 1e-4
    assert reference_sound.read_as_released(path, 99, 16000).shape == clean.shape
    with pytest.raises(InputError, match="no sound track"):
        reference_sound.read_as_released(video / "short.mp4", 2.0, 16000)


def test_damaged_videos_are_a_result_or_an_input_error(video, tmp_path):
    generator, path = np.random.default_rng(0), tmp_path / "a.mp4"
    whole = np.fromfile(video / "a.mp4", np.uint8)
    found, failures = seen_at(0.1, 0.1, 0.9, 0.9), 0
    for trial in range(16):
        data = whole[: generator.integers(1, len(whole))] if trial % 2 else whole
        data, hits = data.copy(), 3 ** generator.integers(0, 6)
        data[generator.integers(0, len(data), hits)] = generator.integers(0, 256, hits)
        data.tofile(path)
        for read in (
            lambda: reference.read(str(path), (32, 64), found, **SHORT).frames,
            lambda: reference_sound.read_as_released(path, 2.0, 16000),
        ):
            try:
                assert read().size
            except InputError as error:
                failures += 1
                assert "\n" not in str(error)
    assert failures > 4


@pytest.mark.parametrize("name", ["grid-A_bbaf2n.mpg", "RD-Radio10_0.mp4"])
def test_real_references_show_their_face_in_the_crop(shared, name):
    path = str(shared / "media/videos" / name)
    clip = reference.read(path, (480, 896), detectors.DEFAULT, **SHORT)
    assert clip.crop is not None and clip.coverage == 1.0
    left, top, right, bottom = clip.faces.mean(axis=0) / [896, 480, 896, 480]
    assert left < 0.5 < right and 0.2 < right - left < 0.8 and bottom - top > 0.5
    assert 0.1 < clip.tokens.mean() < 0.8
