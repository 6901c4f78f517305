"""The moving part of a procedural person: eyes, mouth, glasses, turn of the head.

A frame is the still layer with eyes and mouth painted on it, then moved as a relief:

    x_src = x - yaw z(x, y),  y_src = y - pitch z(x, y) - jaw(y) + brow(x, y)    (1)

with z the height of the face, so that the nose swings further than the ears (parallax),
jaw(y) a stretch that carries the chin down as the mouth opens, and brow(x, y) a lift of
the brows. The roll turns the head about the neck and fades out above the shoulders.
"""

from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.synthetic_head import (
    Canvas,
    Head,
    Layer,
    Plane,
    bump,
    cover,
    over,
    ramp,
)
from data_pipelines.synthetic_people import Person
from data_pipelines.synthetic_speech import Track

OPENING = 0.17  # head units between the lips at opening 1
JAW = 0.55  # share of the opening that the chin follows
SWING = 1.1  # (1): head units moved per radian and unit of height
NECK = 1.35  # y about which the head rolls


class Relief(NamedTuple):
    """What of (1) and of the roll is the same in every frame of a clip."""

    depth: Plane  # head units
    above: Plane  # 1 on the head, 0 on the shoulders
    jaw: Plane  # 1 at the chin, 0 at the upper lip
    brow: Plane  # 1 on the brows
    light: np.ndarray  # on the face, at most 1.1


def relief(person: Person, head: Head, c: Canvas) -> Relief:
    """Prepare a clip."""
    jaw = ramp(c.y, person.mouth_y + 0.02, person.chin)
    jaw = jaw * (1 - ramp(c.y, person.chin, person.chin + 0.35))
    jaw = jaw * np.exp(-0.5 * (c.x / 0.75) ** 4)
    above = 1 - ramp(c.y, person.chin - 0.05, NECK + 0.25)
    brow = bump(
        np.abs(c.x) - person.eye_spacing, c.y + person.brow_height + 0.05, 0.22, 0.09
    )
    return Relief(head.depth, above, jaw, brow, np.minimum(head.light, 1.1))


def frame_layer(
    person: Person, head: Head, fixed: Relief, c: Canvas, track: Track, i: int
) -> Layer:
    """The person at frame i: RGB times coverage, and coverage."""
    layer = head.layer.copy()
    _side_mark(layer, person, fixed, c, track, i)
    for side in (-1.0, 1.0):
        _eye(layer, person, fixed, c, track, i, side)
    _mouth(layer, person, fixed, c, track, i)
    _glasses(layer, person, c)
    return _turned(layer, fixed, c, track, i)


def face_box(person: Person, c: Canvas, track: Track, i: int) -> np.ndarray:
    """Left, top, right, bottom of the face (hairline to chin) in 0..1 of the frame."""
    size = len(c.x)
    opening = float(track.opening[i]) * OPENING * JAW
    corners = np.array([-person.width, -0.75, person.width, person.chin + opening])
    origin = np.array([c.x[0, 0], c.y[0, 0]] * 2)
    shift = SWING * 0.5 * np.array([track.yaw[i], track.pitch[i]] * 2)
    return np.clip((corners + shift - origin) * c.unit / size, 0, 1).astype(np.float32)


def _window(c: Canvas, left, top, right, bottom):
    """Rows and columns of the frame that hold a box of head units."""
    edges = np.array([left - c.x[0, 0], right - c.x[0, 0]]) * c.unit
    x0, x1 = np.clip(edges.astype(int) + np.array((0, 2)), 0, len(c.x))
    edges = np.array([top - c.y[0, 0], bottom - c.y[0, 0]]) * c.unit
    y0, y1 = np.clip(edges.astype(int) + np.array((0, 2)), 0, len(c.x))
    return slice(y0, y1), slice(x0, x1)


def _side_mark(
    layer, person: Person, fixed: Relief, c: Canvas, track: Track, i
) -> None:
    """A birthmark on the side of a cheek, in sight when that cheek comes forward."""
    side, middle, radius = person.side_mark
    seen = float(ramp(-side * track.yaw[i], 0.0, 0.08))
    x, r = side * 0.66 * person.width, 1.5 * radius
    at = _window(c, x - r, middle - r, x + r, middle + r)
    spot = ramp(
        -np.hypot(1.2 * (c.x[at] - x), c.y[at] - middle), -radius, -0.6 * radius
    )
    color = np.float32(person.skin) * np.float32((0.66, 0.4, 0.42)) * fixed.light[at]
    over(layer[at], color, 0.85 * seen * spot)


def _eye(
    layer, person: Person, fixed: Relief, c: Canvas, track: Track, i, side
) -> None:
    size, middle = person.eye_size, side * person.eye_spacing
    at = _window(c, middle - 1.5 * size, -1.3 * size, middle + 1.5 * size, 1.3 * size)
    view, light = layer[at], fixed.light[at]
    u = (c.x[at] - middle) / size
    v = c.y[at] + side * person.eye_tilt * 0.35 * (c.x[at] - middle)
    arch = np.clip(1 - u**2, 0, 1)
    tall = person.eye_height * size
    upper = -tall * arch**0.8 * (1.7 * track.lid[i] - 0.7)
    lower = 0.75 * tall * arch
    outline = np.minimum(v - upper, lower - v)
    open_ = cover(outline, 1.5) * (np.abs(u) < 1)
    shade = np.clip(0.62 + 0.5 * (v - upper) / tall, 0.5, 1)[..., None]
    over(view, np.float32((0.93, 0.92, 0.9)) * shade * light, open_)
    gaze_x, gaze_y = 0.35 * size * track.gaze_x[i], 0.3 * tall * track.gaze_y[i]
    distance = np.hypot(u * size - gaze_x, v - gaze_y - 0.02 * size)
    iris = 0.46 * size
    rings = 0.65 + 0.35 * ramp(-distance, -iris, -0.4 * iris)
    over(
        view,
        rings[..., None] * np.float32(person.iris) * shade,
        open_ * cover(iris - distance, 1.5),
    )
    over(
        view, np.float32((0.03, 0.03, 0.03)), open_ * cover(0.4 * iris - distance, 1.5)
    )
    glint = np.hypot(u * size - gaze_x + 0.3 * iris, v - gaze_y + 0.4 * iris)
    over(view, np.ones(3), 0.9 * open_ * cover(0.2 * iris - glint, 1.5))
    lash = np.exp(-0.5 * ((v - upper) / (0.055 * size)) ** 2) * (np.abs(u) < 1.05)
    over(view, 0.22 * np.float32(person.skin), 0.9 * lash * ramp(arch, -0.1, 0.15))
    under = np.exp(-0.5 * ((v - lower) / (0.05 * size)) ** 2) * (np.abs(u) < 1)
    over(view, 0.5 * np.float32(person.skin) * light, 0.35 * under)
    crease = upper - 0.16 * size - 0.06 * size * track.lid[i]
    fold = np.exp(-0.5 * ((v - crease) / (0.03 * size)) ** 2) * ramp(arch, 0.05, 0.5)
    over(view, 0.55 * np.float32(person.skin) * light, 0.45 * fold)


def _mouth(layer, person: Person, fixed: Relief, c: Canvas, track: Track, i) -> None:
    gap = OPENING * max(0.0, float(track.opening[i]))
    half = person.mouth_width * (1 + 0.22 * track.width[i] - 0.3 * track.rounding[i])
    y0 = person.mouth_y
    at = _window(c, -1.4 * half, y0 - 0.2, 1.4 * half, y0 + 0.5)
    view, light = layer[at], fixed.light[at]
    u, y = c.x[at] / half, c.y[at] - y0
    arch = np.sqrt(np.clip(1 - u**2, 0, 1))
    # One corner opens more; the corners lift with a smile.
    lift = -(person.smile + 0.02 * track.width[i]) * u**2 * 1.6
    skew = 1 + person.mouth_skew * u
    plump = 1 + 0.35 * track.rounding[i]
    upper = lift - 0.22 * gap * arch * skew
    lower = lift + 0.78 * gap * arch * skew
    bow = 1 - 0.35 * np.exp(-0.5 * (u / 0.12) ** 2)
    top = upper - person.lip_upper * plump * arch**0.7 * bow * 1.25
    bottom = lower + person.lip_lower * plump * arch**0.8 * 1.2
    inside = np.abs(u) < 1
    lips = cover(np.minimum(y - top, bottom - y), 1.5) * inside
    round_ = np.where(
        y < 0.5 * (upper + lower),
        0.8 + 0.3 * (upper - y) / person.lip_upper * 0.3,
        1.0 + 0.22 * np.exp(-0.5 * ((y - lower - 0.02) / 0.02) ** 2),
    )
    over(view, round_[..., None] * np.float32(person.lip) * light, lips)
    hole = cover(np.minimum(y - upper, lower - y), 1.2) * inside
    over(view, np.float32((0.13, 0.03, 0.03)), hole)
    _teeth(view, person, u * half, y, upper, hole, gap)
    tongue = lower - 0.42 * gap * arch
    over(view, np.float32((0.55, 0.2, 0.2)), 0.8 * hole * ramp(y - tongue, 0, 0.03))
    seam = np.exp(-0.5 * ((y - 0.5 * (upper + lower)) / 0.011) ** 2) * inside
    closed = 1 - ramp(gap, 0.005, 0.03)
    over(view, 0.32 * np.float32(person.lip), 0.85 * closed * seam)
    below = np.exp(-0.5 * ((y - bottom - 0.035) / 0.022) ** 2) * ramp(arch, 0.3, 0.9)
    over(view, 0.6 * np.float32(person.skin) * light, 0.35 * below)


def _teeth(view, person: Person, x, y, upper, hole, gap) -> None:
    """Upper teeth, seen when the mouth is open; the gap between the front two."""
    edge = upper + np.minimum(0.45 * gap, 0.055)
    row = hole * cover(edge - y, 1.2)
    nicks = 0.12 * np.exp(-0.5 * ((np.abs(x) % 0.07) / 0.006) ** 2)
    over(view, (0.95 - nicks)[..., None] * np.float32(person.tooth), row)
    if person.tooth_gap > 0:
        slit = row * cover(0.5 * person.tooth_gap - np.abs(x), 1.0)
        over(view, np.float32((0.15, 0.05, 0.05)), slit)


def _glasses(layer, person: Person, c: Canvas) -> None:
    if person.glasses == "none":
        return
    at = _window(c, -1.0, -0.4, 1.0, 0.4)
    view, x, y = layer[at], c.x[at], c.y[at]
    u = (np.abs(x) - person.eye_spacing) / 0.26
    v = (y - 0.02) / (0.2 if person.glasses == "square" else 0.23)
    power = 5 if person.glasses == "square" else 2.2
    lens = 1 - np.abs(u) ** power - np.abs(v) ** power
    frame = cover(0.16 - np.abs(lens), 1.5)
    bridge = cover(0.022 - np.abs(y + 0.05), 1.5) * (np.abs(x) < 0.1)
    arm = cover(0.02 - np.abs(y + 0.05), 1.5) * (np.abs(x) > person.eye_spacing + 0.25)
    arm = arm * (np.abs(x) < person.width)
    over(view, np.ones(3), 0.06 * cover(lens, 1.5))
    over(
        view,
        np.float32(person.glasses_color),
        0.95 * np.maximum(frame, np.maximum(bridge, arm)),
    )


def _turned(layer: Layer, fixed: Relief, c: Canvas, track: Track, i: int) -> Layer:
    """(1), then the roll."""
    drop = JAW * OPENING * max(0.0, float(track.opening[i]))
    x = c.x - SWING * track.yaw[i] * fixed.depth
    y = c.y - SWING * track.pitch[i] * fixed.depth - drop * fixed.jaw - NECK
    y = y + track.brow[i] * fixed.brow
    angle = track.roll[i] * fixed.above
    cos, sin = np.cos(angle), np.sin(angle)
    columns = (x * cos + y * sin - c.x[0, 0]) * c.unit
    rows = (NECK + y * cos - x * sin - c.y[0, 0]) * c.unit
    return cv2.remap(
        layer, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
