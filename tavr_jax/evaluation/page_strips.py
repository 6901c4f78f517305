"""Every value of a metric as a dot, a line a row: the distribution behind a mean."""

import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from tavr_jax.evaluation.benchmark import METRICS, Metric
from tavr_jax.evaluation.page import ticks
from tavr_jax.evaluation.results import Results

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 400, 110, 12, 8, 22, 24  # pixels
_NAME = 15  # letters of a row's name that fit


def strips(results: Results) -> list[str]:
    """A figure for each metric that some row has, as HTML."""
    return [
        figure
        for metric in METRICS
        if (figure := strip_svg(metric, results["rows"], results))
    ]


def strip_svg(
    metric: Metric, rows: Mapping[str, Mapping[str, Any]], results: Results
) -> str:
    """One metric: a dot a sample, a bar for the mean and a line for its interval."""
    size = abs if metric.better == "zero" else float  # as it is averaged
    values = {
        slug: [size(v) for v in results["scores"][slug][metric.key] if v is not None]
        for slug in rows
    }
    every = [v for row in values.values() for v in row if math.isfinite(v)]
    if not every:
        return ""
    axis = ticks(min(every), max(every))
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        share = (value - axis[0]) / (axis[-1] - axis[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    shapes = [
        f'<path class="grid" d="M{x(tick):.1f} {_TOP}V{height - _BOTTOM}"/>'
        f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>'
        for tick in axis
    ]
    for index, (slug, row) in enumerate(rows.items()):
        y = _TOP + _ROW * (index + 0.5)
        name = row["name"]
        short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        shapes.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"<title>{escape(name)}</title>{escape(short)}</text>"
        )
        shapes += [
            f'<circle class="dot" cx="{x(v):.1f}" cy="{y:.1f}" r="3"/>'
            for v in values[slug]
        ]
        shapes.append(_mean(results["summary"][slug][metric.key], x, y))
    title = escape(metric.label)
    return (
        f'<figure><h3>{title}</h3><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{title}">{"".join(shapes)}</svg>'
        f'<div class="legend">{escape(metric.meaning)}</div></figure>'
    )


def _mean(
    found: Mapping[str, Any] | None, x: Callable[[float], float], y: float
) -> str:
    if found is None:
        return ""
    bar = f'<path class="mean" d="M{x(found["mean"]):.1f} {y - 8:.1f}v16"/>'
    if found["low"] is None:
        return bar
    low, high = x(found["low"]), x(found["high"])
    return f'{bar}<path class="mean" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
