import numpy as np
import pytest

from configs.base import get_config
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError

CONFIG = SpeechConfig(**get_config().speech)
FRAME = CONFIG.sample_rate // CONFIG.fps


def babble(frames: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(frames * FRAME)
    return (0.1 * noise).astype(np.float32)


def test_speech_delayed_by_a_frame_gives_rows_delayed_by_one():
    wave = babble(12)
    late = np.concatenate([np.zeros(FRAME, np.float32), wave])
    rows, late_rows = log_mel(wave, 12, CONFIG), log_mel(late, 13, CONFIG)
    # row 0 of the wave hears the silence before it in both
    np.testing.assert_allclose(late_rows[1:], rows, atol=1e-6)


def test_a_row_hears_its_own_frame_and_little_else():
    quiet, loud = babble(12), babble(12)
    loud[5 * FRAME : 6 * FRAME] *= 30
    change = np.abs(log_mel(loud, 12, CONFIG) - log_mel(quiet, 12, CONFIG))
    assert (np.flatnonzero(change.max(axis=1) > 1e-6) == [4, 5, 6]).all()
    assert change[5].mean() > 3 * change[[4, 6]].mean()
    # of its neighbours, only the steps that touch it
    steps = change.reshape(-1, CONFIG.mel_bins).max(axis=1) > 1e-6
    assert set(np.flatnonzero(steps)) == set(range(19, 25))


def test_rows_are_cut_off_or_filled_with_silence():
    wave = babble(10)
    long, short = log_mel(wave, 16, CONFIG), log_mel(wave, 7, CONFIG)
    np.testing.assert_allclose(short, long[:7], atol=1e-6)
    np.testing.assert_array_equal(long[11:], np.full((5, 128), long[-1, -1]))
    assert long.shape == (16, 4 * CONFIG.mel_bins) and long.dtype == np.float32


def test_real_speech_has_roughly_unit_scale(shared):
    import librosa

    wave, _ = librosa.load(shared / "media/speech/jfk_16k.wav", sr=16000)
    rows = log_mel(wave, len(wave) // FRAME, CONFIG)
    assert abs(rows.mean()) < 0.7 and 0.7 < rows.std() < 1.4


@pytest.mark.parametrize("wave", [np.zeros(0), np.array([0.0, np.nan, 0.0])])
def test_sound_that_cannot_be_speech_is_refused(wave):
    with pytest.raises(InputError, match=r"^speech: .*; "):
        log_mel(wave.astype(np.float32), 5, CONFIG)
