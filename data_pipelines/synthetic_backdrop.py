"""What is behind the person: walls, shelves, windows, lights, a little out of focus."""

import cv2
import numpy as np
from jaxtyping import Float

from data_pipelines.synthetic_people import Scene


def backdrop(scene: Scene, pixels: int) -> Float[np.ndarray, "Y X 3"]:
    """The still background of a scene, RGB in 0..1."""
    rng = np.random.default_rng(scene.texture + 1)
    colors = np.float32(scene.colors)
    x, y = np.meshgrid(*2 * [(np.arange(pixels, dtype=np.float32) + 0.5) / pixels])
    lean = np.clip(0.5 + (x - 0.5) * rng.uniform(-1, 1) + (y - 0.5) * 0.8, 0, 1)
    image = colors[0] + lean[..., None] * (colors[1] - colors[0])
    image = np.ascontiguousarray(image, np.float32)
    _DRAW[scene.backdrop](image, colors, rng)
    grid = rng.standard_normal((9, 9)).astype(np.float32)
    blotches = cv2.resize(grid, (pixels, pixels), interpolation=cv2.INTER_CUBIC)
    lamp = 1 + 0.18 * scene.light[0] * (x - 0.5) + 0.02 * blotches
    image = cv2.GaussianBlur(image * lamp[..., None], (0, 0), 0.008 * pixels)
    return np.clip(image * np.float32(scene.light_color), 0, 1)


def _rectangle(image, left, top, right, bottom, color) -> None:
    size = len(image)
    corners = [round(float(v) * size) for v in (left, top, right, bottom)]
    cv2.rectangle(image, corners[:2], corners[2:], [float(v) for v in color], -1)


def _gradient(image, colors, rng) -> None:
    """Nothing on the wall."""


def _wall(image, colors, rng) -> None:
    rows = rng.integers(7, 12)
    for row in range(rows):
        for column in range(-1, 6):
            left = (column + 0.5 * (row % 2)) / 5
            shade = colors[row % 2] * rng.uniform(0.85, 1.1)
            _rectangle(image, left, row / rows, left + 0.19, (row + 0.9) / rows, shade)


def _shelves(image, colors, rng) -> None:
    for row in range(4):
        left, bottom = 0.0, (row + 0.92) / 4
        while left < 1:
            width, height = rng.uniform(0.025, 0.06), rng.uniform(0.12, 0.2)
            shade = colors[rng.integers(3)] * rng.uniform(0.5, 1.3)
            _rectangle(image, left, bottom - height, left + width, bottom, shade)
            left += width + 0.004
        _rectangle(image, 0, bottom, 1, bottom + 0.02, 0.5 * colors[1])


def _window(image, colors, rng) -> None:
    left, top = rng.uniform(-0.1, 0.5), rng.uniform(-0.1, 0.15)
    for row in range(2):
        for column in range(2):
            x, y = left + 0.28 * column, top + 0.33 * row
            _rectangle(image, x, y, x + 0.26, y + 0.31, 0.55 * colors[2] + 0.42)


def _bokeh(image, colors, rng) -> None:
    size = len(image)
    image *= 0.55
    for _ in range(26):
        center = [int(v * size) for v in rng.uniform(0, 1, 2)]
        disc = np.zeros_like(image)
        shade = [float(v) for v in colors[rng.integers(3)]]
        cv2.circle(disc, center, int(rng.uniform(0.02, 0.07) * size), shade, -1)
        image += rng.uniform(0.2, 0.6) * disc


def _panels(image, colors, rng) -> None:
    count = rng.integers(4, 9)
    for index in range(0, count, 2):
        _rectangle(image, index / count, 0, (index + 0.9) / count, 1, colors[2])


_DRAW = {
    "gradient": _gradient,
    "wall": _wall,
    "shelves": _shelves,
    "window": _window,
    "bokeh": _bokeh,
    "panels": _panels,
}
