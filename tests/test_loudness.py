import numpy as np
import pytest

from data_pipelines import loudness
from data_pipelines.loudness import FADE, HOP, METERED, PIECE, SHORTEST


def babble(length: int, seed: int = 0) -> np.ndarray:
    """Noise that grows and fades like syllables."""
    noise = np.random.default_rng(seed).standard_normal(length)
    return 0.1 * noise * (1.1 + np.sin(np.arange(length) / 1700))


def test_the_released_normalisation_is_reproduced(shared):
    data = np.load(shared / "oracles/tavr_seed0/audio.npz")
    cases = [n[:-3] for n in data.files if n.startswith("loud_") and n.endswith("_in")]
    for case in cases:
        if case != "loud_len":
            out = loudness.normalise(data[f"{case}_in"])
            np.testing.assert_allclose(out, data[f"{case}_out"], rtol=0, atol=1e-6)
    ends = np.cumsum(data["meter_len"])[:-1]
    found = [loudness.loudness(w) for w in np.split(data["meter_in"], ends)]
    np.testing.assert_allclose(found, data["meter_lufs"], rtol=1e-9)
    np.testing.assert_allclose(loudness.weighting(), data["meter_sos"], rtol=1e-12)
    lengths, outcomes = data["loud_len_in"], data["loud_len_out"]
    for length, outcome in zip(lengths, outcomes, strict=True):
        assert loudness.release_raises(length) == (outcome < 0)
        if outcome >= 0:
            assert len(loudness.normalise(np.zeros(length))) == outcome


def test_a_steady_wave_comes_out_at_the_target_and_stays_there():
    wave = 0.01 * np.sin(np.arange(4 * HOP + 9000) * 0.2)
    once = loudness.normalise(wave)
    for start in range(0, len(once) - PIECE, HOP):
        piece = once[start : start + PIECE]
        assert abs(loudness.loudness(piece) - loudness.TARGET) < 0.05
    np.testing.assert_allclose(loudness.normalise(once), once, atol=2e-3)


def test_how_loud_it_was_is_forgotten():
    wave = babble(3 * HOP + 8000)
    np.testing.assert_allclose(
        loudness.normalise(7 * wave), loudness.normalise(wave), atol=1e-9
    )
    np.testing.assert_array_equal(loudness.normalise(-wave), -loudness.normalise(wave))


def test_quiet_and_silent_pieces_are_left_alone():
    wave = babble(6 * HOP)
    wave[HOP : 5 * HOP] *= 1e-5
    out = loudness.normalise(wave)
    inside = slice(HOP + PIECE, 4 * HOP)
    np.testing.assert_allclose(out[inside], wave[inside], rtol=1e-12)
    np.testing.assert_array_equal(loudness.normalise(np.zeros(40000)), np.zeros(40000))


@pytest.mark.parametrize("tail", range(SHORTEST, METERED, 1599))
@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_tail_too_short_to_measure_keeps_the_gain_before_it(whole, tail):
    wave = babble(whole * HOP + tail)
    assert loudness.release_raises(len(wave))
    out = loudness.normalise(wave)
    assert len(out) == len(wave)
    if not whole:
        np.testing.assert_array_equal(out, wave)
        return
    # behind the fade there is one gain, that of the last measured piece
    start = (whole - 1) * HOP
    gain = 10 ** ((-16 - loudness.loudness(wave[start : start + PIECE])) / 20)
    after = slice(start + FADE, None) if whole > 1 else slice(None)
    np.testing.assert_allclose(out[after], gain * wave[after], rtol=1e-9, atol=1e-12)


def test_every_length_up_to_three_seconds_keeps_its_length():
    wave = babble(48000)
    for length in [*range(0, 48000, 317), HOP, HOP + 1, PIECE - 1, PIECE]:
        out = loudness.normalise(wave[:length])
        # the release's own oddity: one piece that already holds its tail
        doubled = length - HOP if HOP < length < HOP + SHORTEST else 0
        assert len(out) == length + doubled and np.isfinite(out).all()


def test_no_piece_starts_with_a_jump():
    wave = np.sin(np.arange(5 * HOP) * 0.05)
    wave *= np.repeat([1, 0.05, 1, 0.05, 1], HOP)
    out = loudness.normalise(wave)
    gain = out[1:] / np.where(abs(wave[1:]) > 1e-3, wave[1:], np.nan)
    steps = np.abs(np.diff(gain)) / np.nanmax(gain)
    assert np.nanmax(steps) < 3 / FADE
