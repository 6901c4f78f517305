"""Speech to -16 LUFS, second by second, as the release does before it listens.

At 16 kHz, in float64 [TAVR_SPEC 3.1]:

    (1) pieces start at s = 0, 14400, 28800, ... < len and have 16000 samples or what
        is left; a piece below 1600 is appended raw to the one before it and ends the
        loop
    (2) gain = 10^((-16 - l) / 20) for a piece of loudness l > -70 LUFS, else 1
    (3) neighbours overlap by 1600 samples, one fading out as the other fades in, both
        linear and with both end points; what exceeds the input is cut off, what is
        missing is zero. One piece alone is returned as it is: 14400 < len < 16000
        gives 2 len - 14400 samples, since (1) appends what is in it already

The meter is BS.1770 with cookbook filters, the package pyloudnorm's default. It needs
0.4 s: on a last piece of 1600..6399 samples the release raises ValueError, see
`release_raises`. There (ours) the piece keeps the gain of the piece before it, or 1.
"""

from functools import cache

import numpy as np
import pyloudnorm
from jaxtyping import Float, Float64
from numpy import ndarray

RATE = 16000
PIECE, HOP, FADE = 16000, 14400, 1600  # samples
SHORTEST = 1600  # a shorter piece is appended raw
METERED = 6400  # a shorter piece has no loudness
TARGET, QUIET = -16.0, -70.0  # LUFS


def normalise(wave: Float[ndarray, " n"]) -> Float64[ndarray, " m"]:
    """Equations (1) to (3) of a mono wave at 16 kHz; m = n but for short waves."""
    wave = np.asarray(wave, np.float64)
    pieces: list[ndarray] = []
    gain = 1.0
    for start in range(0, len(wave), HOP):
        piece = wave[start : start + PIECE]
        if len(piece) < SHORTEST:
            if pieces:
                pieces[-1] = np.concatenate([pieces[-1], piece])
            break
        gain = _gain(piece) if len(piece) >= METERED else gain
        pieces.append(piece * gain)
    if not pieces:
        return wave
    return pieces[0] if len(pieces) == 1 else _joined(pieces, len(wave))


def release_raises(length: int) -> bool:
    """Whether the release refuses a wave of this many samples, silence included."""
    # only a wave's last piece is short, and from HOP on another one follows
    return SHORTEST <= length % HOP < METERED


def loudness(piece: Float[ndarray, " n"]) -> float:
    """Integrated loudness in LUFS of at least 0.4 s; -inf without a loud block."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(_meter().integrated_loudness(np.asarray(piece, np.float64)))


def weighting() -> Float64[ndarray, "2 6"]:
    """The meter's high shelf and high pass, rows of b0 b1 b2 a0 a1 a2."""
    filters = _meter()._filters
    stages = (filters["high_shelf"], filters["high_pass"])
    return np.stack([np.concatenate([stage.b, stage.a]) for stage in stages])


@cache
def _meter() -> pyloudnorm.Meter:
    return pyloudnorm.Meter(RATE)


def _gain(piece: ndarray) -> float:
    found = loudness(piece)
    # a piece of infinite loudness would be silenced, one of none blown up
    if not np.isfinite(found) or found <= QUIET:
        return 1.0
    return 10 ** ((TARGET - found) / 20)


def _joined(pieces: list[ndarray], length: int) -> ndarray:
    """(3) of two pieces or more."""
    size = sum(map(len, pieces)) - FADE * (len(pieces) - 1)
    out = np.zeros(max(size, length))
    rise = np.linspace(0, 1, FADE)
    end = len(pieces[0])
    out[:end] = pieces[0]
    for piece in pieces[1:]:
        out[end - FADE : end] *= rise[::-1]
        out[end - FADE : end] += piece[:FADE] * rise
        out[end : end + len(piece) - FADE] = piece[FADE:]
        end += len(piece) - FADE
    return out[:length]
