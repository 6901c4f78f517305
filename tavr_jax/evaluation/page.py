"""Tables and plots of an evaluation, as HTML. Every text is escaped."""

import math
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

Number = int | float

_PLOT = (400, 220, 48, 10, 12, 34)  # width, height, margins: left, right, top, bottom
_COLOURS = 6  # --s0 .. of the template
_SMOOTH = 20  # more points than this get a running mean on top


class Cell(NamedTuple):
    """What a table shows, and what it sorts by; None sorts last."""

    text: str
    value: Number | str | None


class Table(NamedTuple):
    """Sortable by every column. A row is (is it ours, its cells)."""

    title: str
    note: str
    columns: list[tuple[str, str]]  # label, explanation shown on hovering
    rows: list[tuple[bool, list[Cell]]]


class Series(NamedTuple):
    """One line of a plot, with a band around it if it has one."""

    label: str
    steps: list[Number]
    values: list[Number]
    band: list[tuple[Number, Number]] | None = None  # low and high, one a step


class Plot(NamedTuple):
    """Series that share their axes."""

    title: str
    series: list[Series]
    axis: str = "step"  # what the steps are


def plot_svg(plot: Plot) -> str:
    """A plot as a figure: points, a running mean where there are many, a legend."""
    finite = [found for s in plot.series if (found := _drawable(s)).steps]
    if not finite:
        return ""
    steps = [step for s in finite for step in s.steps]
    values = [value for s in finite for value in s.values]
    values += [end for s in finite for ends in s.band or [] for end in ends]
    xs, ys = (ticks(min(axis), max(axis)) for axis in (steps, values))
    width, height, left, right, top, bottom = _PLOT

    def place(step: Number, value: Number) -> tuple[float, float]:
        x = left + (step - xs[0]) / (xs[-1] - xs[0]) * (width - left - right)
        y = top + (ys[-1] - value) / (ys[-1] - ys[0]) * (height - top - bottom)
        return x, y

    shapes = []
    for tick in ys:
        _, y = place(xs[0], tick)
        shapes.append(
            f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in xs:
        x, _ = place(tick, ys[0])
        anchor = "end" if tick == xs[-1] else "middle"
        shapes.append(
            f'<text x="{x:.1f}" y="{height - 16}" text-anchor="{anchor}">{tick:g}'
            f'</text><path class="grid" d="M{x:.1f} {height - bottom}v4"/>'
        )
    shapes.append(
        f'<text x="{width - right}" y="{height - 2}" text-anchor="end">'
        f"{escape(plot.axis)}</text>"
    )
    shapes += [_band(s, i, place) for i, s in enumerate(finite) if s.band]
    shapes += [_line(s, i, place) for i, s in enumerate(finite)]
    legend = "".join(
        f'<span><i style="background:var(--s{i % _COLOURS})"></i>{escape(s.label)}'
        f" ({s.values[-1]:.4g} at {s.steps[-1]:g})</span>"
        for i, s in enumerate(finite)
    )
    return (
        f'<figure><h3>{escape(plot.title)}</h3><svg viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(plot.title)}">{"".join(shapes)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def section(title: str, parts: Iterable[str]) -> str:
    """Parts under a heading; nothing if there are none."""
    parts = list(parts)
    return "\n".join([f"<h2>{title}</h2>", *parts]) if parts else ""


def facts(told: dict[str, str]) -> list[str]:
    """A list of names and what they are."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in told.items()
    )
    return [f"<dl>{rows}</dl>"] if told else []


def table(shown: Table) -> str:
    """A table whose headers are buttons that sort it."""
    words = [
        all(isinstance(cells[i].value, str) for _, cells in shown.rows)
        for i in range(len(shown.columns))
    ]
    heads = "".join(
        f'<th{_class("words", is_words)} scope="col"><button type="button" '
        f'title="{escape(note)}">{escape(label)}</button></th>'
        for (label, note), is_words in zip(shown.columns, words, strict=True)
    )
    rows = "".join(
        f"<tr{_class('ours', ours)}>"
        + "".join(
            f'<td{_class("words", is_words)} data-value="'
            f'{"" if cell.value is None else escape(str(cell.value))}">'
            f"{escape(cell.text)}</td>"
            for cell, is_words in zip(cells, words, strict=True)
        )
        + "</tr>"
        for ours, cells in shown.rows
    )
    return (
        f'<h2>{escape(shown.title)}</h2><p class="dim">{escape(shown.note)}</p>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _class(name: str, applies: bool) -> str:
    return f' class="{name}"' if applies else ""


def _drawable(series: Series) -> Series:
    """Without the points that are not finite; an end of a band that is not is the
    point itself."""
    bands = series.band or [(value, value) for value in series.values]
    found = [
        (step, value, tuple(e if math.isfinite(e) else value for e in ends))
        for step, value, ends in zip(series.steps, series.values, bands, strict=True)
        if math.isfinite(step) and math.isfinite(value)
    ]
    steps, values, ends = map(list, zip(*found, strict=True)) if found else ([],) * 3
    return Series(series.label, steps, values, ends if series.band else None)


def ticks(low: Number, high: Number) -> list[float]:
    """Three to seven round numbers that enclose both."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _band(series: Series, index: int, place) -> str:
    lows, highs = zip(*series.band, strict=True)
    edge = [place(*p) for p in zip(series.steps, lows, strict=True)]
    edge += [place(*p) for p in zip(series.steps, highs, strict=True)][::-1]
    style = f'style="fill:var(--s{index % _COLOURS})"'
    return f'<polygon class="band" {style} points="{_path(edge)}"/>'


def _line(series: Series, index: int, place) -> str:
    colour = f"var(--s{index % _COLOURS})"
    points = [place(*p) for p in zip(series.steps, series.values, strict=True)]
    if len(points) == 1:
        x, y = points[0]
        return f'<circle style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    style = f'style="stroke:{colour}"'
    if len(points) <= _SMOOTH:
        return f'<polyline class="line" {style} points="{_path(points)}"/>'
    window = max(3, len(points) // _SMOOTH)
    means = [
        (
            series.steps[i],
            sum(series.values[max(0, i - window) : i + window + 1])
            / len(series.values[max(0, i - window) : i + window + 1]),
        )
        for i in range(len(points))
    ]
    smooth = [place(*p) for p in means]
    return (
        f'<polyline class="raw" {style} points="{_path(points)}"/>'
        f'<polyline class="line" {style} points="{_path(smooth)}"/>'
    )


def _path(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
