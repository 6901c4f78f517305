"""From a wave to the rows of speech that the transformer hears, 25 a second.

The network that listens is an argument: `listen(wave, states)` gives the chosen hidden
states of a mono wave at 16 kHz, one step every 20 ms (encoders/wav2vec2_wave.Listener).
It normalises the wave itself.

Driving speech [TAVR_SPEC 3]:

    (1) row k = steps 2k and 2k+1 side by side; an odd last step is dropped
    (2) speech = loudness(wave + 0.2 s of silence);  rows = those of speech, then those
        of as much digital silence as the wave is long;  each step is the hidden
        `states` side by side; rounded to bfloat16
    (3) frames to generate = 4 ((rows // 2 + 3) // 4) + 1: rows // 2 is about the
        wave's length in frames, since (2) holds it twice
    (4) frames to write: as many as the wave lasts, the last one may be begun

Reference speech [TAVR_SPEC 4], not loudness-normalised, float32:

    (5) the wave up to count / 25 + 3 s; rows of last_hidden_state by (1), `count` of
        them; the learned null row where there are fewer
    (6) track = three times row 0, then (5); the window of reference latents
        [l, l + n) is track rows [4 l, 4 l + 4 n)

Where the release refuses a wave (30 s, a loudness tail, see data_pipelines/loudness.py)
or writes a frame more or less than (4), we do not, unless `exact_release` asks for it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from data_pipelines import loudness
from tavr_jax.errors import InputError

RATE = 16000  # samples a second
FPS = 25
SILENCE = 3200  # samples after the speech, (2)
RELEASED_LIMIT = 30  # seconds
EXTRA_REFERENCE = 3  # seconds of sound read beyond the reference's frames, (5)
PREFIX = 3  # copies of row 0, (6)
ROWS_PER_LATENT = 4

Listen = Callable[[ndarray, Sequence[int]], Float32[ndarray, "states steps D"]]


@dataclasses.dataclass(frozen=True)
class SpeechRowsConfig:
    """Which hidden states drive the mouth: 0 enters the first layer, N is the last."""

    states: tuple[int, ...]


def driving_rows(
    wave: Float[ndarray, " n"],
    listen: Listen,
    config: SpeechRowsConfig,
    *,
    exact_release: bool,
) -> Float32[ndarray, "rows U"]:
    """Equation (2) of a mono wave at 16 kHz; bfloat16 values kept in float32.

    U = 2 x states x D. InputError: no samples; with `exact_release`, a wave that the
    release refuses.
    """
    if exact_release:
        require_released(len(wave))
    silence = np.zeros(len(wave), np.float32)
    return np.concatenate(
        [spoken_rows(wave, listen, config), _rows(silence, listen, config)]
    )


def spoken_rows(
    wave: Float[ndarray, " n"], listen: Listen, config: SpeechRowsConfig
) -> Float32[ndarray, "rows U"]:
    """The speech part of (2), a row a frame: what a clip to train on is heard as."""
    return _rows(spoken(wave), listen, config)


def spoken(wave: Float[ndarray, " n"]) -> Float32[ndarray, " m"]:
    """The speech part of (2), before the network. InputError: no samples."""
    if not wave.size:
        raise InputError("speech: no samples; give a sound track with speech in it")
    if not np.isfinite(wave).all():
        raise InputError("speech: samples that are not finite; export the sound again")
    followed = np.concatenate([wave.astype(np.float64), np.zeros(SILENCE)])
    return loudness.normalise(followed).astype(np.float32)


def _rows(wave: ndarray, listen: Listen, config: SpeechRowsConfig) -> ndarray:
    heard = listen(wave, config.states)
    rows = paired(np.concatenate(list(heard), axis=-1))
    return rows.astype(ml_dtypes.bfloat16).astype(np.float32)


def require_released(samples: int) -> None:
    """InputError where the release raises on driving speech of so many samples."""
    seconds = samples / RATE
    if seconds > RELEASED_LIMIT:
        raise InputError(
            f"speech: {seconds:.2f} s: the release takes {RELEASED_LIMIT} s at most; "
            "give shorter speech or leave out --exact-release"
        )
    if loudness.release_raises(samples + SILENCE):
        raise InputError(
            f"speech: {seconds:.3f} s: the release cannot measure the loudness of its "
            "last piece; cut 0.3 s or leave out --exact-release"
        )


def num_frames(rows: int) -> int:
    """Equation (3): frames to generate for so many driving rows."""
    return (rows // 2 + 3) // 4 * 4 + 1


def frame_limit(seconds: float, *, exact_release: bool) -> int:
    """Equation (4): frames to write at most, for sound of so many seconds.

    `exact_release` repeats the release's product in double arithmetic, which is a
    frame off for some whole numbers of frames: 29 give 28, 7 give 8.
    """
    if exact_release:
        return int(math.ceil(seconds / (1 / FPS)) * (1 / FPS) * FPS)
    # whole frames stay whole: a thousandth of a frame is less than a sample
    return math.ceil(seconds * FPS - 1e-3)


def reference_rows(
    wave: Float[ndarray, " n"], count: int, listen: Listen, *, exact_release: bool
) -> Float32[ndarray, "rows V"]:
    """Rows of a reference of `count` frames, at most `count`; V = 2 D.

    Fewer where the sound is shorter. InputError: samples that are not finite; with
    `exact_release`, more than 30 s.
    """
    wave = wave[: reference_samples(count)]
    if exact_release and len(wave) > RELEASED_LIMIT * RATE:
        raise InputError(
            f"reference speech: {len(wave) / RATE:.2f} s: the release takes "
            f"{RELEASED_LIMIT} s at most; cut the reference or leave out "
            "--exact-release"
        )
    return paired(listen(wave.astype(np.float32), (-1,))[0])[:count]


def reference_samples(count: int) -> int:
    """Equation (5): how much of a reference's sound is read for `count` frames."""
    return count * RATE // FPS + EXTRA_REFERENCE * RATE


def reference_track(
    rows: Float[ndarray, "rows V"], count: int, null: Float[ndarray, "1 V"]
) -> Float32[ndarray, "track V"]:
    """Equations (5) and (6): count + 3 rows; `null` is learned by the transformer."""
    rows = rows[:count]
    missing = np.repeat(null, count - len(rows), axis=0)
    full = np.concatenate([rows, missing]).astype(np.float32)
    return np.concatenate([np.repeat(full[:1], PREFIX, axis=0), full])


def reference_window(
    track: Float[ndarray, "track V"], start: int, end: int
) -> Float[ndarray, "Q V"]:
    """Equation (6): the rows of reference latents [start, end)."""
    return track[ROWS_PER_LATENT * start : ROWS_PER_LATENT * end]


def paired(steps: Float[ndarray, "steps D"]) -> Float[ndarray, "rows U"]:
    """Equation (1): 50 steps a second become 25 rows, twice as wide."""
    rows = len(steps) // 2
    return steps[: 2 * rows].reshape(rows, 2 * steps.shape[1])
