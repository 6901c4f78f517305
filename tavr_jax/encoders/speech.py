"""Speech to log-mel rows, one row a video frame: the mini world's wav2vec (ours).

(1) step (i, j) = log10(mel power of 25 ms around 40 i + 10 j + 5 ms + 1e-6), j = 0..3
(2) row i = the four steps of frame i side by side, each (value - CENTER) / SCALE

Row i depends on the sound of frame i and 10 ms around it, so speech delayed by a frame
gives rows delayed by one. The constants are fixed, not taken from the clip: how loud a
sound is stays visible, and a row does not depend on the rest of the clip.
"""

import dataclasses

import librosa
import numpy as np
from jaxtyping import Float, Float32

from tavr_jax.errors import InputError

STEPS = 4  # mel steps of 10 ms in a row of 40 ms
FLOOR = 1e-6  # mel power of silence
# mean and spread over twenty clips of read speech of -17 to -38 dBFS, pauses included
CENTER, SCALE = -4.0, 1.6


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """The section `speech` of a config; meanings and values are there."""

    sample_rate: int
    fps: int
    mel_bins: int
    mel_fmax: int


def log_mel(
    wave: Float[np.ndarray, " n"], num_rows: int, config: SpeechConfig
) -> Float32[np.ndarray, "F U"]:
    """Rows of a mono wave at `sample_rate`; U = 4 * mel_bins, of roughly unit scale.

    Sound beyond `num_rows` frames is cut off; missing sound is silence. InputError if
    the wave is empty or not finite.
    """
    if wave.size == 0:
        raise InputError("speech: no samples; give a sound track with speech in it")
    if not np.isfinite(wave).all():
        raise InputError("speech: samples that are not finite; export the sound again")
    hop = config.sample_rate // (config.fps * STEPS)
    window = hop * 5 // 2
    size = 1 << (window - 1).bit_length()
    steps = num_rows * STEPS
    # step k is centred on the middle of its 10 ms
    before = size // 2 - hop // 2
    padded = np.zeros(size + hop * (steps - 1), np.float32)
    kept = min(wave.size, padded.size - before)
    padded[before : before + kept] = wave[:kept]
    power = librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate,
        n_fft=size,
        hop_length=hop,
        win_length=window,
        center=False,
        n_mels=config.mel_bins,
        fmax=config.mel_fmax,
    )
    rows = (np.log10(power.T + FLOOR) - CENTER) / SCALE
    return rows.reshape(num_rows, STEPS * config.mel_bins).astype(np.float32)
