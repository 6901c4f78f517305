"""The still part of a procedural person: head, hair, neck and clothes, lit by a scene.

The face is a height field z(x, y): a blunt ellipsoid (1) plus Gaussian bumps for brow
ridge, sockets, cheeks, nose, lips and chin. Its normals meet one lamp (2), wrapped
around the edge as skin does, and hollows are darker (3).

    z = 0.62 sqrt(g),  g = 1 - (x / w(y))^2 - |y / h|^p                   (1)
    light = ambient + (1 - ambient) max(0, (n . l + k) / (1 + k))          (2)
    occlusion = 1 - c max(0, blur(z) - z)                                  (3)
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float

from data_pipelines.synthetic_people import Person, Scene

Plane = Float[np.ndarray, "Y X"]
Layer = Float[np.ndarray, "Y X 4"]  # RGB times coverage, coverage; 0..1


class Canvas(NamedTuple):
    """Head coordinates of every pixel, and pixels in a head unit."""

    x: Plane
    y: Plane
    unit: float


class Head(NamedTuple):
    """The still layer, and what the moving parts need to know about it."""

    layer: Layer
    depth: Plane  # height of the face towards the viewer, head units
    light: Float[np.ndarray, "Y X 3"]


def canvas(scene: Scene, pixels: int) -> Canvas:
    """Coordinates of a square frame of `pixels`."""
    unit = scene.scale * pixels / 4
    steps = np.arange(pixels, dtype=np.float32) + 0.5
    x = (steps - scene.center[0] * pixels) / unit
    y = (steps - scene.center[1] * pixels) / unit
    return Canvas(*np.meshgrid(x, y), unit)


def head(person: Person, scene: Scene, c: Canvas) -> Head:
    """Paint everything of a person that does not change from frame to frame."""
    rng = np.random.default_rng(person.texture)
    inside = _inside(person, c)
    depth = 0.62 * np.sqrt(np.maximum(inside, 0) + 1e-3) + _features(person, c)
    light, shine = _lighting(scene, depth, c.unit)
    skin = _skin(person, c, rng)
    layer = np.zeros((*c.x.shape, 4), np.float32)
    hair = _hair_color(person, scene, c, rng)
    back, front = _hair_cover(person, c, inside, rng)
    over(layer, 0.72 * hair, back)
    _neck(layer, person, scene, c)
    _clothes(layer, scene, c)
    _ears(layer, person, scene, c)
    over(layer, skin * light + shine[..., None], cover(inside, 1.0))
    _nostrils(layer, person, c)
    _brows(layer, person, c, light, rng)
    _beard(layer, person, c, light, inside, rng)
    over(layer, hair, front)
    return Head(layer, cv2.GaussianBlur(depth, (0, 0), 0.05 * c.unit), light)


# Small drawing vocabulary


def ramp(x, low: float, high: float):
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x, y, sx: float, sy: float):
    """A Gaussian of height 1 around (0, 0)."""
    return np.exp(-0.5 * ((x / sx) ** 2 + (y / sy) ** 2))


def cover(implicit, pixels: float):
    """Coverage of {implicit > 0} with an edge `pixels` wide."""
    dy, dx = np.gradient(implicit)
    distance = implicit / np.maximum(np.hypot(dx, dy), 1e-6)
    return np.clip(distance / pixels + 0.5, 0, 1)


def over(layer: Layer, color, alpha) -> None:
    """Lay a colour over a layer, in place."""
    alpha = np.asarray(alpha, np.float32)[..., None]
    layer *= 1 - alpha
    layer[..., :3] += alpha * np.asarray(color, np.float32)
    layer[..., 3:] += alpha


def noise(rng, shape, cells: float):
    """Smooth noise in about -1..1 with `cells` bumps across the frame."""
    n = max(2, round(cells))
    grid = rng.standard_normal((n, n)).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


# Parts


def _inside(person: Person, c: Canvas):
    """g of (1): positive inside the outline of the head."""
    down = np.clip(c.y / person.chin, 0, 1.4)
    half = person.width * (1 - person.taper * down**1.3)
    vertical = np.where(c.y < 0, (c.y / person.skull) ** 2, down**person.jaw)
    return 1 - (c.x / half) ** 2 - vertical


def _features(person: Person, c: Canvas):
    """Bumps on the ellipsoid."""
    x, y, ax = c.x, c.y, np.abs(c.x)
    tip, wide = person.nose_length, person.nose_width
    along = ramp(y, -0.15, tip) * (1 - ramp(y, tip + 0.01, tip + 0.12))
    ridge = 0.03 * person.nose_bridge * bump(0 * y, y - 0.05, 1, 0.16)
    nose = (ridge + 0.19 * along) * np.exp(
        -0.5 * (x / ((0.05 + 0.03 * along) * wide)) ** 2
    )
    z = nose + 0.05 * bump(x, y - tip, 0.08 * wide, 0.07)
    z += 0.07 * bump(ax - 0.115 * wide, y - tip - 0.03, 0.045, 0.05)
    z += 0.035 * bump(ax - 0.3, y + 0.2, 0.2, 0.07)
    z -= 0.085 * bump(ax - person.eye_spacing, y, 0.15, 0.1)
    z += 0.045 * bump(ax - person.eye_spacing, y - 0.01, 0.09, 0.06)
    z += 0.05 * person.cheek * bump(ax - 0.43, y - 0.34, 0.16, 0.14)
    fold = ax - 0.17 - 0.5 * (y - tip)
    z -= (
        0.014
        * np.exp(-0.5 * (fold / 0.035) ** 2)
        * ramp(y, tip, tip + 0.1)
        * (1 - ramp(y, person.mouth_y - 0.05, person.mouth_y + 0.1))
    )
    mouth = y - person.mouth_y
    z += 0.035 * bump(x, mouth, 0.75 * person.mouth_width, 0.09)
    z -= 0.012 * bump(x, mouth + 0.12, 0.03, 0.05)
    z -= 0.03 * bump(x, mouth - 0.15, 0.16, 0.04)
    return z + 0.05 * bump(x, y - person.chin + 0.14, 0.17, 0.09)


def _lighting(scene: Scene, depth, unit: float):
    """Colour of the light (2) times (3) at every pixel, and the shine on top."""
    soft = cv2.GaussianBlur(depth, (0, 0), 0.012 * unit)
    dy, dx = np.gradient(soft * unit)
    norm = 1 / np.sqrt(dx**2 + dy**2 + 1)
    lx, ly, lz = scene.light
    facing = (-dx * lx - dy * ly + lz) * norm
    wrapped = np.maximum(0, (facing + 0.35) / 1.35)
    hollow = np.maximum(0, cv2.GaussianBlur(depth, (0, 0), 0.09 * unit) - depth)
    lit = (scene.ambient + (1 - scene.ambient) * wrapped) * (1 - 2.6 * hollow)
    half = np.array([lx, ly, lz + 1]) / np.linalg.norm([lx, ly, lz + 1])
    shine = 0.1 * np.maximum(0, (-dx * half[0] - dy * half[1] + half[2]) * norm) ** 30
    lit = np.clip(1.12 * lit, 0, 1.3)[..., None] * np.float32(scene.light_color)
    return lit.astype(np.float32), shine.astype(np.float32)


def _skin(person: Person, c: Canvas, rng):
    """Albedo: blotches, blush, darker lids, freckles and moles."""
    x, y, ax = c.x, c.y, np.abs(c.x)
    color = np.ones((*x.shape, 3), np.float32) * np.float32(person.skin)
    color *= (1 + 0.02 * noise(rng, x.shape, 14) + 0.015 * noise(rng, x.shape, 70))[
        ..., None
    ]
    blush = bump(ax - 0.42, y - 0.38, 0.17, 0.14) + 0.6 * bump(x, y - 0.42, 0.1, 0.08)
    color *= 1 - (person.blush * blush)[..., None] * np.float32((0.0, 0.14, 0.12))
    lids = bump(ax - person.eye_spacing, y - 0.02, 0.15, 0.1)
    color *= 1 - lids[..., None] * np.float32((0.16, 0.2, 0.18))
    spots = np.clip(noise(rng, x.shape, 130) - 1.1, 0, 0.6)
    spots = person.freckles * spots * bump(x, y - 0.3, 0.42, 0.17)
    color *= 1 - spots[..., None] * np.float32((0.5, 0.7, 0.8))
    for mole_x, mole_y, radius in person.moles:
        spot = ramp(-np.hypot(x - mole_x, y - mole_y), -1.3 * radius, -0.6 * radius)
        color *= 1 - 0.75 * spot[..., None] * np.float32((0.7, 0.9, 1.0))
    return color


def _nostrils(layer, person: Person, c: Canvas) -> None:
    ax, y = np.abs(c.x), c.y - person.nose_length
    wide = person.nose_width
    shadow = 0.35 * bump(c.x, y - 0.105, 0.12 * wide, 0.025)
    over(layer, 0.35 * np.float32(person.skin), shadow)
    hole = bump(ax - 0.058 * wide, y - 0.075, 0.026 * wide, 0.014)
    over(layer, 0.16 * np.float32(person.skin), 0.85 * ramp(hole, 0.25, 0.75))


def _brows(layer, person: Person, c: Canvas, light, rng) -> None:
    u = (np.abs(c.x) - person.eye_spacing - 0.01) / 0.19
    middle = -person.brow_height - 0.05 + 0.05 * u**2 - person.brow_tilt * 0.1 * u
    thickness = person.brow_thickness * (1 - 0.55 * ramp(u, 0, 1.1))
    alpha = ramp(1 - np.abs(c.y - middle) / thickness, -0.15, 0.5) * ramp(
        -np.abs(u), -1.05, -0.85
    )
    alpha *= np.clip(0.85 + 0.2 * noise(rng, c.x.shape, 160), 0, 1)
    color = 0.75 * np.float32(person.hair) * (0.5 + 0.5 * light)
    over(layer, np.minimum(color, 0.8 * np.float32(person.skin)), 0.9 * alpha)


def _beard(layer, person: Person, c: Canvas, light, inside, rng) -> None:
    if person.beard == "none":
        return
    x, y, ax = c.x, c.y, np.abs(c.x)
    lip = person.mouth_y - 0.07
    above = ramp(y, person.nose_length + 0.1, person.nose_length + 0.15)
    moustache = (
        above
        * ramp(-(y + 0.25 * ax), -lip - 0.11, -lip - 0.05)
        * ramp(-ax, -0.36, -0.28)
    )
    chin = ramp(y, person.mouth_y + 0.1, person.mouth_y + 0.17) * ramp(-ax, -0.3, -0.2)
    jaw = ramp(y - 0.5 * (1 - ramp(ax, 0.3, 0.62)) * 0.6, 0.3, 0.62)
    jaw = jaw * np.maximum(
        ramp(ax, 0.3, 0.44), ramp(y, person.mouth_y + 0.12, person.mouth_y + 0.2)
    )
    area = {
        "stubble": 0.42 * np.maximum(jaw, moustache),
        "moustache": 0.95 * moustache,
        "goatee": 0.95 * np.maximum(moustache, chin),
        "full": 0.97 * np.maximum(jaw, moustache),
    }[person.beard]
    strands = np.clip(0.8 + 0.25 * noise(rng, x.shape, 150), 0, 1)
    grain = 1 + 0.18 * noise(rng, x.shape, 110)[..., None]
    color = 0.85 * np.float32(person.hair) * (0.35 + 0.65 * light) * grain
    over(layer, color, area * strands * cover(inside, 2.0))


def _ears(layer, person: Person, scene: Scene, c: Canvas) -> None:
    x = np.abs(c.x) - person.width - 0.01
    y = c.y - 0.12
    size_x, size_y = 0.095 * person.ear, 0.2 * person.ear
    outer = 1 - ((x - 0.15 * y * (y < 0)) / size_x) ** 2 - (y / size_y) ** 2
    lamp = scene.ambient + (1 - scene.ambient) * (
        0.55 + 0.45 * np.sign(c.x) * scene.light[0]
    )
    rim = 0.72 + 0.28 * ramp(np.maximum(outer, 0), 0.75, 0.25)
    color = (
        np.float32(person.skin)
        * np.float32((1.0, 0.93, 0.92))
        * np.float32(scene.light_color)
    )
    over(layer, (rim * lamp)[..., None] * color, cover(outer, 1.5))


def _neck(layer, person: Person, scene: Scene, c: Canvas) -> None:
    half = 0.62 * person.width + 0.9 * np.clip(c.y - 1.35, 0, 1) ** 1.5
    inside = np.minimum(1 - np.abs(c.x) / half, (c.y - 0.5))
    round_ = c.x / half
    lamp = scene.ambient + (1 - scene.ambient) * np.clip(
        scene.light[2] * np.sqrt(np.clip(1 - round_**2, 0, 1))
        + scene.light[0] * round_,
        0,
        1,
    )
    shadow = 1 - 0.5 * bump(0.6 * c.x, c.y - person.chin - 0.02, 0.5, 0.16)
    color = (
        np.float32(person.skin)
        * np.float32((0.98, 0.93, 0.9))
        * np.float32(scene.light_color)
    )
    over(
        layer, (lamp * shadow)[..., None] * color, cover(inside, 1.5) * (inside > -0.5)
    )


def _clothes(layer, scene: Scene, c: Canvas) -> None:
    ax = np.abs(c.x)
    neckline = {
        "crew": 1.56 + 0.12 * np.sqrt(np.clip(1 - (ax / 0.55) ** 2, 0, 1)),
        "stripes": 1.54 + 0.14 * np.sqrt(np.clip(1 - (ax / 0.6) ** 2, 0, 1)),
        "vneck": 1.46 + np.clip(0.46 - ax, 0, 1),
        "shirt": 1.42 + 0.9 * np.clip(0.4 - ax, 0, 1),
        "jacket": 1.42 + 0.9 * np.clip(0.4 - ax, 0, 1),
    }[scene.clothes]
    shoulder = 1.36 + 0.45 * ramp(ax, 0.35, 1.9) + 0.6 * np.clip(ax - 1.45, 0, 2) ** 2
    alpha = cover(np.minimum(c.y - shoulder, c.y - neckline), 1.5)
    rng = np.random.default_rng(scene.texture)
    folds = 1 + 0.07 * noise(rng, ax.shape, 7) + 0.02 * noise(rng, ax.shape, 90)
    lamp = (
        0.78 + 0.22 * scene.light[0] * np.clip(c.x, -1, 1) - 0.16 * ramp(ax, 0.5, 1.8)
    )
    lamp = lamp * folds * (1 - 0.3 * bump(ax - 0.45, c.y - neckline, 0.2, 0.05))
    color = np.ones((*ax.shape, 3), np.float32) * np.float32(scene.cloth)
    accent = np.float32(scene.cloth_accent)
    if scene.clothes == "stripes":
        over3(color, accent, cover(np.sin(c.y * 2 * np.pi / 0.28 + 0.4 * ax), 2.0))
    if scene.clothes == "shirt":
        collar = np.minimum(0.16 - np.abs(c.y - neckline - 0.05), 0.62 - ax)
        over3(color, np.clip(1.25 * np.float32(scene.cloth), 0, 1), cover(collar, 2.0))
        over3(
            color,
            0.5 * np.float32(scene.cloth),
            0.6 * bump(ax - 0.02, 0 * ax, 0.012, 1),
        )
    if scene.clothes == "jacket":
        lapel = 0.62 - ax - 0.55 * np.clip(c.y - 1.45, 0, 2)
        over3(color, accent, cover(lapel, 2.0))
        edge = bump(lapel, 0 * ax, 0.02, 1)
        over3(color, 0.5 * np.float32(scene.cloth), 0.7 * edge)
    over(layer, color * lamp[..., None] * np.float32(scene.light_color), alpha)


def over3(color, paint, alpha) -> None:
    """Lay paint over an opaque colour plane, in place."""
    color += np.asarray(alpha, np.float32)[..., None] * (paint - color)


def _hair_color(person: Person, scene: Scene, c: Canvas, rng):
    """Strands that fall from the crown, with a band of shine."""
    x, y = c.x, c.y + 0.5
    if person.hair_style == "curly":
        strands = 0.5 * noise(rng, x.shape, 60) + 0.5 * noise(rng, x.shape, 28)
    else:
        angle = np.arctan2(
            x, np.maximum(person.skull - 0.4 - y, 0.05) + 0.6 * np.abs(y)
        )
        line = np.convolve(rng.standard_normal(1024), np.ones(3) / 3, "same")
        at = (angle / np.pi + 1) * 420 + 12 * noise(rng, x.shape, 5)
        strands = np.interp(at, np.arange(1024), line) * 0.9
    ball = np.sqrt(np.clip(1 - (x / 1.1) ** 2 - ((y + 0.1) / 1.1) ** 2, 0, 1))
    facing = scene.light[0] * x + scene.light[1] * (y + 0.1) + scene.light[2] * ball
    lamp = scene.ambient + (1 - scene.ambient) * np.clip(facing, 0, 1)
    shine = 0.16 * bump(y + 0.22 - 0.1 * x**2, x - scene.light[0], 0.12, 0.6)
    shade = lamp * (1 + 0.28 * strands) + shine * (0.6 + 0.4 * strands)
    tint = np.float32(person.hair) * np.float32(scene.light_color)
    return np.clip(shade[..., None] * tint + 0.05 * shine[..., None], 0, 1)


def _hair_cover(person: Person, c: Canvas, inside, rng):
    """Coverage of the hair behind the head and of that before it."""
    x, y, ax = c.x, c.y, np.abs(c.x)
    style = person.hair_style
    if style == "bald":
        return np.zeros_like(x), np.zeros_like(x)
    volume = person.hair_volume * (2.4 if style == "curly" else 1.0)
    volume = 0.35 * volume if style in ("crop", "receding") else volume
    wobble = noise(rng, x.shape, 26) * (0.1 if style == "curly" else 0.02)
    wide, high = person.width + volume, person.skull + volume
    drop = {"bob": 0.95, "long": 1.9, "curly": 0.45, "swept": 0.3}.get(style, 0.12)
    # Above the eyes an ellipse; below them the sides hang down to `drop`.
    side = wide * (1 + 0.06 * ramp(y, 0.3, 1.5)) if style in ("bob", "long") else wide
    outer = np.where(
        y < 0,
        1 - (x / wide) ** 2 - (y / high) ** 2,
        np.minimum(1 - (x / side) ** 2, (drop - y) * 2),
    )
    outer = cover(outer + wobble, 2.5)
    part = 0.3 if style in ("parted", "swept", "bob") else 0.0
    hairline = -person.hairline + (0.16 if style == "receding" else 0) * -1
    temple = np.abs(x - part * 0.5) / person.width
    line = hairline + 0.5 * temple**3.2 + 0.02 * noise(rng, x.shape, 40)
    if style == "swept":
        line = (
            line
            - 0.22 * ramp(-(x - part) / person.width, 0.0, 0.5) * 0
            + 0.18 * ramp(x, -0.1, 0.7)
        )
    top = cover(line - y, 3.0) * ramp(-y, -0.35, -0.05)
    curtain = np.zeros_like(x)
    if style in ("bob", "long"):
        edge = person.width * (0.93 - 0.1 * bump(y - 0.1, 0, 0.5, 1))
        curtain = cover(ax - edge + 0.02 * wobble, 3.0) * ramp(y, -0.7, -0.4)
    front = np.maximum(top, curtain) * outer
    return outer * (1 if drop > 0.2 else ramp(-y, -0.2, 0.05)), front
