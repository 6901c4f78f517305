"""Made-up speech: phonemes, the sound they make and what the face does meanwhile.

The voice is a source and a filter: glottal pulses (1) and noise, through a cascade of
second-order resonators (2) at the formants of the phoneme.

    g(p) = p^2 (1 - p), p in [0, 1) the phase of the pitch; source dg/dp    (1)
    y[n] = a x[n] + 2 r cos(2 pi f / fs) y[n-1] - r^2 y[n-2],
    r = exp(-pi b / fs),  a = 1 - 2 r cos(2 pi f / fs) + r^2                (2)

Formants of the vowels: Peterson and Barney, J. Acoust. Soc. Am. 24 (1952), men.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

from data_pipelines.synthetic_people import VOWELS, Person, Seed

SAMPLE_RATE = 16000
FPS = 25
CONTROL_RATE = 200  # Hz, of everything that changes slowly
BLOCK = SAMPLE_RATE // CONTROL_RATE
LIP_SMOOTHING = 0.035  # seconds: lips reach a target no faster
LOUDNESS = 0.12  # RMS of a full vowel
ROOM = 0.004  # RMS of the room, of a vowel: digital silence is not natural
NASAL = (280.0, 1100.0, 2300.0)


class Phoneme(NamedTuple):
    """How a phoneme sounds and what it does to the lips."""

    seconds: float
    formants: tuple[float, float, float]  # Hz
    voice: float  # amplitude of the pulses
    noise: float  # amplitude of the noise
    noise_hz: float  # centre of the noise
    opening: float  # of the mouth, 0..1
    width: float  # of the mouth, -1..1
    rounding: float  # of the lips, 0..1


PHONEMES = {
    "aa": Phoneme(0.18, (730, 1090, 2440), 1.00, 0, 0, 1.00, 0.0, 0.0),
    "ae": Phoneme(0.16, (660, 1720, 2410), 0.95, 0, 0, 0.85, 0.5, 0.0),
    "ah": Phoneme(0.13, (640, 1190, 2390), 0.85, 0, 0, 0.65, 0.0, 0.0),
    "ao": Phoneme(0.17, (570, 840, 2410), 0.90, 0, 0, 0.75, -0.4, 0.7),
    "eh": Phoneme(0.14, (530, 1840, 2480), 0.80, 0, 0, 0.60, 0.4, 0.0),
    "er": Phoneme(0.15, (490, 1350, 1690), 0.70, 0, 0, 0.42, -0.2, 0.4),
    "iy": Phoneme(0.15, (270, 2290, 3010), 0.60, 0, 0, 0.30, 0.9, 0.0),
    "uw": Phoneme(0.16, (300, 870, 2240), 0.60, 0, 0, 0.26, -0.8, 1.0),
    "m": Phoneme(0.09, NASAL, 0.30, 0, 0, 0.0, 0.0, 0.0),
    "b": Phoneme(0.08, NASAL, 0.10, 0.06, 900, 0.0, 0.0, 0.1),
    "f": Phoneme(0.10, (400, 1400, 2500), 0.0, 0.12, 4500, 0.08, 0.2, 0.0),
    "s": Phoneme(0.10, (400, 1700, 2600), 0.0, 0.22, 6000, 0.12, 0.5, 0.0),
    "sh": Phoneme(0.11, (400, 1700, 2600), 0.0, 0.28, 3200, 0.14, -0.4, 0.6),
    "t": Phoneme(0.07, (400, 1700, 2600), 0.0, 0.20, 4000, 0.15, 0.2, 0.0),
    "l": Phoneme(0.08, (360, 1300, 2700), 0.35, 0, 0, 0.28, 0.1, 0.0),
    "w": Phoneme(0.09, (290, 650, 2200), 0.35, 0, 0, 0.12, -0.7, 0.9),
    "sil": Phoneme(0.30, (500, 1500, 2500), 0.0, 0, 0, 0.0, 0.0, 0.0),
}
CONSONANTS = tuple(p for p in PHONEMES if p not in VOWELS and p != "sil")


class Track(NamedTuple):
    """What is said and done, one row a frame at 25 fps (F of them)."""

    phonemes: tuple[str, ...]
    starts: Float[np.ndarray, " n"]  # seconds, of each phoneme
    opening: Float[np.ndarray, " F"]  # of the mouth, about 0..1.6: gains included
    width: Float[np.ndarray, " F"]
    rounding: Float[np.ndarray, " F"]
    yaw: Float[np.ndarray, " F"]  # radians, positive to the viewer's right
    pitch: Float[np.ndarray, " F"]  # radians, positive down
    roll: Float[np.ndarray, " F"]
    brow: Float[np.ndarray, " F"]  # rise, head units
    lid: Float[np.ndarray, " F"]  # 1 open .. 0 closed
    gaze_x: Float[np.ndarray, " F"]  # -1..1
    gaze_y: Float[np.ndarray, " F"]


def speech(
    person: Person, seed: Seed, seconds: float
) -> tuple[Float[np.ndarray, " n"], Track]:
    """`seconds` of a person's talk: 16 kHz sound in [-1, 1], and what the face does.

    Frame i of the track shows the middle of its 40 ms of sound. Starts and ends silent.
    """
    rng = np.random.default_rng([303, *np.atleast_1d(seed)])
    frames = round(seconds * FPS)
    names, starts = _utterance(rng, person, frames / FPS)
    index = _phoneme_at(starts, frames * CONTROL_RATE // FPS)
    wave = _voice(rng, person, names, index)
    return wave, _face_track(rng, person, names, starts, index, frames)


def _utterance(rng, person: Person, seconds: float):
    """Syllables of consonant and vowel in phrases, until the time is up."""
    names, starts, time = ["sil"], [0.0], rng.uniform(0.12, 0.3)
    left = rng.integers(4, 9)  # syllables of the phrase
    while time < seconds - 0.45:
        syllable = [str(rng.choice(CONSONANTS)), str(rng.choice(VOWELS))]
        if left == 0:
            syllable, left = ["sil"], rng.integers(4, 9)
        left -= 1
        for name in syllable:
            names.append(name)
            starts.append(time)
            length = PHONEMES[name].seconds * person.tempo
            time += length * rng.uniform(0.8, 1.25)
    names.append("sil")
    starts.append(min(time, seconds))
    return tuple(names), np.array(starts)


def _phoneme_at(starts, ticks: int):
    """Index of the phoneme spoken at each control tick (at its middle)."""
    times = (np.arange(ticks) + 0.5) / CONTROL_RATE
    return np.searchsorted(starts, times, side="right") - 1


def _table(names, index, field: str, gains=None):
    """A phoneme's field at every control tick, times the person's gains."""
    gains = gains or {}
    values = [np.multiply(getattr(PHONEMES[n], field), gains.get(n, 1)) for n in names]
    return np.asarray(values, np.float64)[index]


def _smooth(values, seconds: float):
    return gaussian_filter1d(values, seconds * CONTROL_RATE, axis=0, mode="nearest")


def _voice(rng, person: Person, names, index):
    """The sound of a phoneme sequence, by (1) and (2)."""
    samples = len(index) * BLOCK
    when = np.arange(samples) / BLOCK - 0.5
    ticks = np.arange(len(index))

    def stretched(values):
        return np.interp(when, ticks, values)

    melody = 1 + person.pitch_range * _smooth(rng.standard_normal(len(index)) * 6, 0.12)
    pitch = stretched(person.pitch * np.clip(melody, 0.6, 1.6))
    p = np.cumsum(pitch / SAMPLE_RATE) % 1.0
    pulses = 2 * p - 3 * p**2  # (1)
    pulses = pulses + person.breath * rng.standard_normal(samples)
    formants = _smooth(_table(names, index, "formants"), 0.02) * person.formant_scale
    voiced = _resonate(pulses, np.clip(formants, 150, 3800), (70.0, 100.0, 140.0))
    centre = np.maximum(_table(names, index, "noise_hz"), 500.0)[:, None]
    hiss = _resonate(rng.standard_normal(samples), centre, (1200.0,))
    wave = _levelled(voiced) * stretched(_smooth(_table(names, index, "voice"), 0.015))
    wave += _levelled(hiss) * stretched(_smooth(_table(names, index, "noise"), 0.01))
    wave += ROOM * rng.standard_normal(samples)
    return np.tanh(LOUDNESS * wave).astype(np.float32)


def _levelled(wave):
    """RMS 1 everywhere: resonance alone makes some vowels ten times louder."""
    return wave / (np.sqrt(gaussian_filter1d(wave**2, 0.02 * SAMPLE_RATE)) + 1e-6)


def _resonate(wave, hertz, bandwidths):
    """Resonators (2) one after another; `hertz` has one row a control tick."""
    for column, bandwidth in enumerate(bandwidths):
        r = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
        c = 2 * r * np.cos(2 * np.pi * hertz[:, column] / SAMPLE_RATE)
        state, out = np.zeros(2), np.empty_like(wave)
        for block, coefficient in enumerate(c):
            span = slice(block * BLOCK, (block + 1) * BLOCK)
            denominator = (1.0, -coefficient, r * r)
            gain = 1 - coefficient + r * r
            out[span], state = lfilter((gain,), denominator, wave[span], zi=state)
        wave = out
    return wave


def _face_track(rng, person: Person, names, starts, index, frames: int) -> Track:
    """Lips follow the phonemes; head, brows and lids follow the person's habits."""
    middle = (np.arange(frames) + 0.5) / FPS * CONTROL_RATE - 0.5

    def sampled(values):
        return np.interp(middle, np.arange(len(index)), values).astype(np.float32)

    gains = dict(zip(VOWELS, person.vowel_gains, strict=True))
    opening = _smooth(_table(names, index, "opening", gains), LIP_SMOOTHING)
    width = _smooth(_table(names, index, "width"), LIP_SMOOTHING) * person.mouth_spread
    rounding = _smooth(_table(names, index, "rounding"), LIP_SMOOTHING)
    stress = _smooth(_table(names, index, "voice"), 0.12)
    stress = stress - stress.mean()
    time = np.arange(len(index)) / CONTROL_RATE

    def wander(rate):
        phases = rng.uniform(0, 2 * np.pi, 3)
        speeds = rate * np.array([1.0, 1.9, 3.1])
        waves = np.sin(2 * np.pi * np.outer(time, speeds) + phases)
        return waves @ np.array([0.7, 0.3, 0.12])

    steps = np.repeat(rng.uniform(-1, 1, (2, len(index) // 160 + 1)), 160, axis=1)
    gaze = _smooth(person.gaze * steps[:, : len(index)].T, 0.03)
    return Track(
        phonemes=names,
        starts=starts.astype(np.float32),
        opening=sampled(opening * person.mouth_gain),
        width=sampled(width),
        rounding=sampled(rounding * min(person.mouth_spread, 1.2)),
        yaw=sampled(person.sway * wander(person.sway_rate)),
        pitch=sampled(
            0.35 * person.sway * wander(person.sway_rate) + person.nod * stress
        ),
        roll=sampled(person.tilt + 0.3 * person.sway * wander(person.sway_rate)),
        brow=sampled(person.brow_habit * np.clip(stress * 2, 0, 1)),
        lid=sampled(_lids(rng, person, time)),
        gaze_x=sampled(gaze[:, 0]),
        gaze_y=sampled(gaze[:, 1] * 0.5),
    )


def _lids(rng, person: Person, time):
    """1 with dips to 0: blinks at random, never two at once."""
    lid, at = np.ones_like(time), rng.exponential(1 / person.blink_rate)
    while at < time[-1]:
        phase = (time - at) / person.blink_seconds
        dip = np.where(np.abs(phase) < 0.5, np.cos(np.pi * phase) ** 2, 0)
        lid = np.minimum(lid, 1 - np.minimum(1.3 * dip, 1))
        at += person.blink_seconds + rng.exponential(1 / person.blink_rate)
    return lid
