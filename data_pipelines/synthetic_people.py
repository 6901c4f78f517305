"""Who the procedural people are and where they sit: plain numbers from a seed.

Lengths are in head units: the eyes lie at y = 0, the chin near y = 1.15, x grows to
the right and y downwards. Colours are RGB in 0..1. Nothing is drawn here.
"""

import colorsys
from typing import NamedTuple

import numpy as np

Color = tuple[float, float, float]
Seed = int | tuple[int, ...]

HAIR_STYLES = ("crop", "parted", "swept", "bob", "long", "curly", "receding", "bald")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square")
BACKDROPS = ("gradient", "wall", "shelves", "window", "bokeh", "panels")
_HUES = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_LIGHTNESS = ("deep", "dark", "medium", "light", "pale")
CLOTHES = ("crew", "vneck", "shirt", "stripes", "jacket")
VOWELS = ("aa", "ae", "ah", "ao", "eh", "er", "iy", "uw")

_SKINS = (
    (0.96, 0.81, 0.71), (0.91, 0.74, 0.62), (0.86, 0.68, 0.54), (0.79, 0.60, 0.45),
    (0.69, 0.50, 0.36), (0.57, 0.40, 0.29), (0.46, 0.31, 0.22), (0.37, 0.25, 0.18),
)  # fmt: skip
_HAIR = (
    (0.07, 0.06, 0.06), (0.16, 0.10, 0.07), (0.30, 0.18, 0.10), (0.46, 0.29, 0.15),
    (0.78, 0.61, 0.33), (0.62, 0.26, 0.10), (0.55, 0.53, 0.51), (0.84, 0.82, 0.79),
)  # fmt: skip
_IRIS = (
    (0.23, 0.13, 0.07), (0.38, 0.24, 0.11), (0.30, 0.44, 0.62), (0.34, 0.46, 0.28),
    (0.45, 0.50, 0.53),
)  # fmt: skip


class Person(NamedTuple):
    """Static identity (what one looks like), then dynamic identity (how one talks)."""

    width: float  # half-width of the head
    chin: float  # y of the chin
    skull: float  # -y of the crown
    jaw: float  # exponent of the jaw line: 2 round, 3.4 square
    taper: float  # how much narrower the face gets towards the chin
    cheek: float  # bulge of the cheeks
    skin: Color
    blush: float
    freckles: float
    eye_spacing: float  # x of an eye
    eye_size: float  # half-width of an eye
    eye_height: float  # openness at rest, of the half-width
    eye_tilt: float
    iris: Color
    brow_height: float  # above the eye
    brow_thickness: float
    brow_tilt: float
    nose_length: float  # y of the tip
    nose_width: float
    nose_bridge: float
    mouth_y: float
    mouth_width: float  # half-width at rest
    lip_upper: float
    lip_lower: float
    lip: Color
    tooth: Color
    tooth_gap: float  # between the front teeth; seen only in an open mouth
    hair_style: str
    hair: Color
    hair_volume: float
    hairline: float  # -y of the hairline
    beard: str
    glasses: str
    glasses_color: Color
    ear: float
    moles: tuple[tuple[float, float, float], ...]  # x, y, radius
    side_mark: tuple[float, float, float]  # side, y, radius: seen with the head turned
    texture: int  # seed of skin and hair detail

    mouth_gain: float  # how far the mouth opens
    vowel_gains: tuple[float, ...]  # and how far for each of VOWELS
    mouth_skew: float  # one corner opens more
    mouth_spread: float  # gain of widening and rounding
    smile: float
    blink_rate: float  # a second
    blink_seconds: float
    sway: float  # radians of the slow turning of the head
    sway_rate: float  # Hz
    nod: float  # radians of nodding with loud syllables
    tilt: float  # roll of the head at rest
    brow_habit: float  # how much the brows rise with loud syllables
    gaze: float  # how far the eyes wander

    pitch: float  # Hz
    pitch_range: float  # of the pitch
    formant_scale: float  # short vocal tract > 1
    breath: float
    tempo: float  # length of phonemes, 1 = usual


class Scene(NamedTuple):
    """Everything that is not the person."""

    backdrop: str
    colors: tuple[Color, Color, Color]  # of the backdrop
    clothes: str
    cloth: Color
    cloth_accent: Color
    light: tuple[float, float, float]  # unit vector towards the lamp, z to the viewer
    light_color: Color
    ambient: float
    scale: float  # head units per quarter of the frame height
    center: tuple[float, float]  # of the eyes, of the frame: x, y
    grain: float
    texture: int


def person(seed: Seed) -> Person:
    """The person of a seed; `(seed, index)` names person `index` of a cast."""
    rng = np.random.default_rng([101, *np.atleast_1d(seed)])
    long_haired = rng.random() < 0.5
    return Person(**_face(rng), **_looks(rng, long_haired), **_manner(rng, long_haired))


def _face(rng) -> dict:
    skin = _mix(rng, _SKINS)
    redness = np.array([rng.uniform(0.8, 1.0), rng.uniform(0.5, 0.72), 0.64])
    return {
        "width": rng.uniform(0.70, 0.84),
        "chin": rng.uniform(1.07, 1.22),
        "skull": rng.uniform(1.10, 1.24),
        "jaw": rng.uniform(2.1, 3.4),
        "taper": rng.uniform(0.04, 0.26),
        "cheek": rng.uniform(0.2, 1.0),
        "skin": skin,
        "blush": rng.uniform(0.0, 1.0),
        "freckles": max(0.0, rng.uniform(-1.5, 1.0)),
        "eye_spacing": rng.uniform(0.305, 0.365),
        "eye_size": rng.uniform(0.135, 0.175),
        "eye_height": rng.uniform(0.36, 0.58),
        "eye_tilt": rng.uniform(-0.10, 0.16),
        "iris": _mix(rng, _IRIS),
        "brow_height": rng.uniform(0.19, 0.27),
        "brow_thickness": rng.uniform(0.022, 0.055),
        "brow_tilt": rng.uniform(-0.16, 0.22),
        "nose_length": rng.uniform(0.38, 0.49),
        "nose_width": rng.uniform(0.8, 1.3),
        "nose_bridge": rng.uniform(0.6, 1.3),
        "mouth_y": rng.uniform(0.70, 0.75),
        "mouth_width": rng.uniform(0.24, 0.33),
        "lip_upper": rng.uniform(0.030, 0.060),
        "lip_lower": rng.uniform(0.045, 0.085),
        "lip": tuple(np.clip(np.array(skin) * redness, 0, 1).tolist()),
        "tooth": tuple((np.array([0.95, 0.93, 0.87]) * rng.uniform(0.85, 1)).tolist()),
        "tooth_gap": max(0.0, rng.uniform(-0.02, 0.018)),
    }


def _looks(rng, long_haired: bool) -> dict:
    styles = HAIR_STYLES[2:6] if long_haired else HAIR_STYLES[:2] + HAIR_STYLES[5:]
    moles = [
        (rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.95), rng.uniform(0.014, 0.028))
        for _ in range(rng.integers(0, 4))
    ]
    bearded = not long_haired and rng.random() < 0.6
    return {
        "hair_style": str(rng.choice(styles)),
        "hair": _mix(rng, _HAIR),
        "hair_volume": rng.uniform(0.06, 0.16),
        "hairline": rng.uniform(0.66, 0.84),
        "beard": str(rng.choice(BEARDS[1:])) if bearded else "none",
        "glasses": str(rng.choice(GLASSES, p=(0.72, 0.14, 0.14))),
        "glasses_color": tuple(rng.uniform(0.05, 0.35, 3).tolist()),
        "ear": rng.uniform(0.8, 1.25),
        "moles": tuple(moles),
        "side_mark": (
            float(rng.choice((-1.0, 1.0))),
            rng.uniform(0.1, 0.7),
            rng.uniform(0.03, 0.08),
        ),
        "texture": int(rng.integers(1 << 31)),
    }


def _manner(rng, long_haired: bool) -> dict:
    pitch = rng.uniform(165, 250) if long_haired else rng.uniform(85, 150)
    tract = rng.uniform(1.08, 1.2) if long_haired else rng.uniform(0.92, 1.04)
    return {
        "mouth_gain": rng.uniform(0.7, 1.3),
        "vowel_gains": tuple(rng.uniform(0.75, 1.25, len(VOWELS)).tolist()),
        "mouth_skew": rng.uniform(-0.35, 0.35),
        "mouth_spread": rng.uniform(0.6, 1.4),
        "smile": rng.uniform(-0.02, 0.05),
        "blink_rate": rng.uniform(0.2, 0.6),
        "blink_seconds": rng.uniform(0.16, 0.32),
        "sway": rng.uniform(0.04, 0.16),
        "sway_rate": rng.uniform(0.15, 0.45),
        "nod": rng.uniform(0.0, 0.09),
        "tilt": rng.uniform(-0.06, 0.06),
        "brow_habit": rng.uniform(0.0, 0.06),
        "gaze": rng.uniform(0.05, 0.3),
        "pitch": pitch,
        "pitch_range": rng.uniform(0.05, 0.2),
        "formant_scale": tract,
        "breath": rng.uniform(0.01, 0.05),
        "tempo": rng.uniform(0.85, 1.2),
    }


def scene(seed: Seed) -> Scene:
    """The scene of a seed: backdrop, light, framing and clothes."""
    rng = np.random.default_rng([202, *np.atleast_1d(seed)])
    side, height = rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.1)
    light = np.array([side, height, rng.uniform(0.8, 1.1)])
    warmth = rng.uniform(-1, 1)
    return Scene(
        backdrop=str(rng.choice(BACKDROPS)),
        colors=tuple(_muted(rng, 0.15, 0.85) for _ in range(3)),
        clothes=str(rng.choice(CLOTHES)),
        cloth=_muted(rng, 0.08, 0.8),
        cloth_accent=_muted(rng, 0.2, 0.95),
        light=tuple((light / np.linalg.norm(light)).tolist()),
        light_color=(1 + 0.08 * warmth, 1.0, 1 - 0.1 * warmth),
        ambient=rng.uniform(0.38, 0.6),
        scale=rng.uniform(1.02, 1.05),  # framed alike, as footage cropped by faces is
        center=(rng.uniform(0.49, 0.51), rng.uniform(0.43, 0.44)),
        grain=rng.uniform(0.004, 0.012),
        texture=int(rng.integers(1 << 31)),
    )


def caption(scene: Scene) -> str:
    """What is seen and neither a still without the person nor another scene tells."""
    wear = {"crew": "sweater", "vneck": "v-neck", "stripes": "striped shirt"}
    worn = wear.get(scene.clothes, scene.clothes)
    return f"a person in a {_named(scene.cloth)} {worn} is talking"


def _named(color: Color) -> str:
    hue, lightness, _ = colorsys.rgb_to_hls(*color)
    spread = max(color) - min(color)
    name = _HUES[round(hue * len(_HUES)) % len(_HUES)] if spread > 0.08 else "grey"
    return f"{_LIGHTNESS[int(lightness * len(_LIGHTNESS))]} {name}"


def _mix(rng, palette) -> Color:
    """A colour between two neighbours of a palette, slightly off."""
    at = rng.uniform(0, len(palette) - 1)
    low, part = int(at), at - int(at)
    high = min(low + 1, len(palette) - 1)
    color = (1 - part) * np.array(palette[low]) + part * np.array(palette[high])
    return tuple(np.clip(color * rng.uniform(0.95, 1.05, 3), 0, 1).tolist())


def _muted(rng, low: float, high: float) -> Color:
    """A colour of any hue that a wall or a shirt may have."""
    grey = rng.uniform(low, high)
    hue = rng.uniform(-1, 1, 3) * rng.uniform(0.05, 0.3)
    return tuple(np.clip(grey + hue - hue.mean(), 0.03, 0.97).tolist())
