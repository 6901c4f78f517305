import ml_dtypes
import numpy as np
import pytest

from data_pipelines import loudness, speech_rows
from data_pipelines.speech_rows import (
    RATE,
    SILENCE,
    SpeechRowsConfig,
    driving_rows,
    frame_limit,
    num_frames,
    paired,
    reference_rows,
    reference_track,
    reference_window,
    require_released,
)
from launch.parity_speech import stretched
from tavr_jax.errors import InputError

CONFIG = SpeechRowsConfig(states=(0, 2, 5))
WIDTH = 4


def listen(wave: np.ndarray, states) -> np.ndarray:
    """A network that knows how loud each 25 ms are; state s adds 100 s."""
    steps = max(0, (len(wave) - 400) // 320 + 1)
    starts = 320 * np.arange(steps)[:, None]
    heard = np.abs(wave[starts + np.arange(400)]).mean(1) if steps else np.zeros(0)
    return np.stack(
        [heard[:, None] + 100 * s + np.arange(WIDTH) for s in states]
    ).astype(np.float32)


def babble(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.05 * noise).astype(np.float32)


def rows_of(wave, exact_release=False) -> np.ndarray:
    return driving_rows(wave, listen, CONFIG, exact_release=exact_release)


def test_rows_are_speech_then_the_same_length_of_silence():
    wave = babble(3 * RATE)
    rows = rows_of(wave)
    said = ((len(wave) + SILENCE - 400) // 320 + 1) // 2
    quiet = ((len(wave) - 400) // 320 + 1) // 2
    assert rows.shape == (said + quiet, 2 * len(CONFIG.states) * WIDTH)
    # columns: step 2k, then step 2k + 1, each with its states side by side
    silent = [100 * s + c for s in CONFIG.states for c in range(WIDTH)] * 2
    expected = np.array(silent).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rows[said:], np.tile(expected, (quiet, 1)))
    loud = paired(listen(speech_rows.spoken(wave), (0,))[0])
    np.testing.assert_allclose(rows[:said, :WIDTH], loud[:, :WIDTH], rtol=2**-8)
    np.testing.assert_array_equal(rows, rows.astype(ml_dtypes.bfloat16))
    # as loud as every other speech, the added silence silent
    assert abs(loudness.loudness(speech_rows.spoken(wave)) + 16) < 0.5
    assert not speech_rows.spoken(wave)[-1000:].any()


def test_every_duration_to_three_seconds_gives_finite_rows_and_whole_latents():
    for samples in range(320, 3 * RATE, 160):
        rows = rows_of(babble(samples))
        assert np.isfinite(rows).all() and len(rows)
        frames = num_frames(len(rows))
        assert frames % 4 == 1
        # (2) holds the wave twice and 0.2 s more: never too few frames to write
        limit = frame_limit(samples / RATE, exact_release=False)
        assert limit <= frames <= limit + 8
    with pytest.raises(InputError, match=r"^speech: no samples; "):
        rows_of(np.zeros(0, np.float32))
    with pytest.raises(InputError, match=r"^speech: .*not finite; "):
        rows_of(np.full(5000, np.inf, np.float32))


@pytest.mark.parametrize(
    ("seconds", "frames"), [(3.24, 85), (5, 129), (10, 253), (19, 477), (30, 753)]
)
def test_num_frames_of_the_specification(seconds, frames):
    samples = round(seconds * RATE)
    steps = [(n - 400) // 320 + 1 for n in (samples + SILENCE, samples)]
    assert num_frames(sum(n // 2 for n in steps)) == frames


def test_the_released_numbers_are_reproduced(shared):
    folder = shared / "oracles/tavr_seed0"
    data, written = np.load(folder / "audio.npz"), np.load(folder / "reference.npz")
    ours = [num_frames(int(n)) for n in data["numframes_in"]]
    np.testing.assert_array_equal(ours, data["numframes_out"])
    np.testing.assert_array_equal(paired(data["pair_in"]), data["pair_out"])
    wave = data["driving_pcm"] / 32768
    np.testing.assert_allclose(
        speech_rows.spoken(wave), data["driving_speech"], rtol=0, atol=1e-6
    )
    for seconds, limit in zip(
        written["ceiling_in"], written["ceiling_out"], strict=True
    ):
        assert frame_limit(float(seconds), exact_release=True) == limit


def test_frames_to_write_are_as_long_as_the_speech():
    for samples in [*range(1, 4000), *range(10**6, 10**6 + 4000)]:
        exact = -(-samples * 25 // RATE)
        assert frame_limit(samples / RATE, exact_release=False) == exact
    strange = [n for n in range(1, 751) if frame_limit(n / 25, exact_release=True) != n]
    assert {7, 14, 29, 56, 58} <= set(strange)


def test_the_release_refuses_what_we_take():
    long, tail = 31 * RATE, 10 * RATE
    assert len(rows_of(babble(long))) == 2 * 31 * 25 + 3
    with pytest.raises(InputError, match=r"31.00 s: .* takes 30 s at most; "):
        rows_of(babble(long), exact_release=True)
    with pytest.raises(InputError, match=r"10.000 s: .* loudness .*; "):
        rows_of(babble(tail), exact_release=True)
    np.testing.assert_array_equal(
        rows_of(babble(148800)), rows_of(babble(148800), exact_release=True)
    )
    for samples in range(100, 60000, 100):
        raises = loudness.release_raises(samples + SILENCE)
        try:
            require_released(samples)
            assert not raises
        except InputError as error:
            assert raises and "\n" not in str(error)


def test_a_reference_is_prefixed_and_filled_with_the_null():
    null = np.full((1, 2 * WIDTH), 7.5, np.float32)
    rows = reference_rows(babble(RATE), 40, listen, exact_release=False)
    assert rows.shape == (24, 2 * WIDTH) and rows.dtype == np.float32
    track = reference_track(rows, 40, null)
    assert len(track) == 43
    np.testing.assert_array_equal(track[:3], np.tile(rows[:1], (3, 1)))
    np.testing.assert_array_equal(track[3:27], rows)
    np.testing.assert_array_equal(track[27:], np.tile(null, (16, 1)))
    np.testing.assert_array_equal(reference_window(track, 1, 6), track[4:24])
    # not loudness-normalised: half as loud is half as loud
    half = reference_rows(babble(RATE) / 2, 40, listen, exact_release=False)
    np.testing.assert_allclose(2 * (half[:, 0] + 100), rows[:, 0] + 100, atol=2e-5)
    nothing = reference_rows(np.zeros(100), 4, listen, exact_release=False)
    np.testing.assert_array_equal(
        reference_track(nothing, 4, null), np.tile(null, (7, 1))
    )


def test_a_long_reference_is_read_as_far_as_it_is_needed():
    wave = babble(40 * RATE)
    rows = reference_rows(wave, 950, listen, exact_release=False)
    assert len(rows) == 950
    read = speech_rows.reference_samples(100)
    assert read == 7 * RATE
    np.testing.assert_array_equal(
        reference_rows(wave, 100, listen, exact_release=True),
        reference_rows(wave[:read], 100, listen, exact_release=False),
    )
    with pytest.raises(InputError, match=r"^reference speech: 40.00 s"):
        reference_rows(wave, 950, listen, exact_release=True)


@pytest.mark.parametrize("corners", [True, False])
def test_stretching_keeps_straight_lines_and_the_identity(corners):
    steps = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    np.testing.assert_allclose(stretched(steps, 9, corners=corners), steps, atol=1e-6)
    line = np.arange(49, dtype=np.float32)[:, None]
    out = stretched(line, 25, corners=corners)[1:-1, 0]
    np.testing.assert_allclose(np.diff(out), np.diff(out)[0], rtol=1e-4)
    ends = stretched(line, 25, corners=True)[[0, -1], 0]
    np.testing.assert_array_equal(ends, [0, 48])
