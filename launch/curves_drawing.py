"""Panels of curves as one SVG picture, drawn here: it needs no plotting library."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from launch.curves_runs import Curve, Panel, smoothed
from tavr_jax.evaluation.page import ticks

WIDTH, HEIGHT = 380, 250  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 28, 34  # its margins
LEGEND = 16  # rows of pixels of a line of the legend
PER_ROW = 3  # panels side by side
COLOURS = ("#1f5fd0", "#c2620a", "#0b8060", "#b3261e", "#7a3cc2", "#0c7d95")
INK, FAINT = "#222222", "#dddddd"


def svg(panels: Sequence[Panel], window: int) -> str:
    """The picture. Curves are running means over `window` logged points, and it says
    so; the values themselves are a pale line, where there is one run."""
    rows = math.ceil(len(panels) / PER_ROW)
    columns = min(len(panels), PER_ROW)
    tall = HEIGHT + LEGEND * max(len(panel.curves) for panel in panels)
    size = columns * WIDTH, rows * tall + 2 * LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}" font-family="sans-serif" '
        f'font-size="11" fill="{INK}">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % PER_ROW * WIDTH, number // PER_ROW * tall
        body = "".join(_panel(panel, window, f"inside{number}"))
        parts.append(f'<g transform="translate({x} {y})">{body}</g>')
    parts += _text(8, size[1] - 20, _notes(panels, window)[0])
    parts += _text(8, size[1] - 6, _notes(panels, window)[1])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _notes(panels: Sequence[Panel], window: int) -> tuple[str, str]:
    means = f"Running means over {window} logged points" if window > 1 else "As logged"
    bands = any(len(curve.seeds) > 1 for panel in panels for curve in panel.curves)
    seeds = "; lines: mean over seeds, bands: lowest to highest seed." if bands else "."
    return f"{means}{seeds}", "Horizontal: training step."


def _panel(panel: Panel, window: int, clip: str) -> list[str]:
    drawn = [smoothed(curve.values, window) for curve in panel.curves]
    # Outliers of single steps may leave the panel; what is averaged may not.
    values = np.concatenate([line.ravel() for line in drawn])
    ys = ticks(float(values.min()), float(values.max()))
    xs = ticks(0, float(max(curve.steps[-1] for curve in panel.curves)))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(steps: ndarray, line: Float[ndarray, " n"]) -> str:
        x = LEFT + (steps - xs[0]) / (xs[-1] - xs[0]) * wide
        y = TOP + (ys[-1] - line) / (ys[-1] - ys[0]) * high
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    parts = [
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">'
        f"{escape(panel.stage)}: {escape(panel.metric)}</text>",
        f'<clipPath id="{clip}"><rect x="{LEFT}" y="{TOP}" width="{wide}" '
        f'height="{high}"/></clipPath>',
        *_axes(xs, ys),
        f'<g clip-path="url(#{clip})">',
    ]
    for number, (curve, line) in enumerate(zip(panel.curves, drawn, strict=True)):
        raw = curve.values if len(curve.seeds) == 1 and window > 1 else None
        parts += _curve(curve, line, raw, COLOURS[number % len(COLOURS)], place)
    return [*parts, "</g>", *_legend(panel)]


def _legend(panel: Panel) -> list[str]:
    parts = []
    for number, curve in enumerate(panel.curves):
        y, colour = HEIGHT + LEGEND * number, COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{LEFT}" y="{y - 7}" width="14" height="4" fill="{colour}"/>'
        )
        seeds = ", ".join(map(str, curve.seeds))
        several = "s" * (len(curve.seeds) > 1)
        parts += _text(LEFT + 20, y, f"{curve.label} (seed{several} {seeds})")
    return parts


def _curve(curve: Curve, line: ndarray, raw, colour: str, place) -> list[str]:
    parts = []
    if len(curve.seeds) > 1:
        around = place(
            np.concatenate([curve.steps, curve.steps[::-1]]),
            np.concatenate([line.max(axis=0), line.min(axis=0)[::-1]]),
        )
        parts.append(f'<polygon points="{around}" fill="{colour}" opacity="0.2"/>')
    paint = f'fill="none" stroke="{colour}"'
    if len(curve.steps) == 1:
        x, y = place(curve.steps, line.mean(axis=0)).split(",")
        return [*parts, f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>']
    if raw is not None:
        points = place(curve.steps, raw[0])
        parts.append(f'<polyline points="{points}" {paint} opacity="0.3"/>')
    points = place(curve.steps, line.mean(axis=0))
    return [*parts, f'<polyline points="{points}" {paint} stroke-width="2"/>']


def _axes(xs: Sequence[float], ys: Sequence[float]) -> list[str]:
    parts, bottom, right = [], HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in ys:
        y = TOP + (ys[-1] - tick) / (ys[-1] - ys[0]) * (bottom - TOP)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{FAINT}"/>')
        parts += _text(LEFT - 6, y + 4, f"{tick:g}", "end")
    for tick in xs:
        x = LEFT + (tick - xs[0]) / (xs[-1] - xs[0]) * (right - LEFT)
        anchor = "end" if tick == xs[-1] else "middle"
        parts += _text(x, bottom + 16, f"{tick:g}", anchor)
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> list[str]:
    return [
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    ]
