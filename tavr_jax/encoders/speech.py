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
BLOCK = 1000  # rows computed at a time: a spectrum is twenty times its row
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
    size = _window_size(hop)
    # step k is centred on the middle of its 10 ms
    before = size // 2 - hop // 2
    blocks = []
    for first in range(0, num_rows, BLOCK):
        steps = min(BLOCK, num_rows - first) * STEPS
        start = first * STEPS * hop - before
        padded = np.zeros(size + hop * (steps - 1), np.float32)
        heard = wave[max(start, 0) : max(start + len(padded), 0)]
        offset = max(-start, 0)
        padded[offset : offset + len(heard)] = heard
        blocks.append(_power(padded, hop, config))
    rows = (np.log10(np.concatenate(blocks) + FLOOR) - CENTER) / SCALE
    return rows.reshape(num_rows, STEPS * config.mel_bins).astype(np.float32)


def _window_size(hop: int) -> int:
    """Samples of a Fourier transform: 25 ms, up to a power of two."""
    return 1 << (hop * 5 // 2 - 1).bit_length()


def _power(
    padded: Float[np.ndarray, " n"], hop: int, config: SpeechConfig
) -> Float[np.ndarray, "steps bins"]:
    """Mel power of every step whose samples are there."""
    return librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate,
        n_fft=_window_size(hop),
        hop_length=hop,
        win_length=hop * 5 // 2,
        center=False,
        n_mels=config.mel_bins,
        fmax=config.mel_fmax,
    ).T
