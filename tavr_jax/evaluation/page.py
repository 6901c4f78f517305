"""One HTML file that shows an evaluation: opens from disk, needs nothing else.

Videos and pictures are inside it; scripts, styles and curves too. Every text is
escaped, and the page's own policy forbids it to load anything.
"""

import base64
import math
import os
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

Number = int | float

_TEMPLATE = Path(__file__).with_name("page_template.html")
_PLOT = (400, 220, 48, 10, 12, 34)  # width, height, margins: left, right, top, bottom
_ROW = 1220  # pixels that the cards of a sample share on a laptop screen
_COLOURS = 6  # --s0 .. of the template
_SMOOTH = 20  # more points than this get a running mean on top


class Medium(NamedTuple):
    """A video (mp4) or picture (png) of one sample.

    `ours` frames it; the `leader` is the one the others follow, and is heard.
    """

    label: str
    facts: list[str]  # short lines under it
    data: bytes
    size: tuple[int, int]  # rows, columns
    ours: bool
    leader: bool


class Sample(NamedTuple):
    """One line of media that play together."""

    name: str
    caption: str
    fps: Number
    media: list[Medium]


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
    """One line of a plot."""

    label: str
    steps: list[Number]
    values: list[Number]


class Plot(NamedTuple):
    """Series over training steps that share their axes."""

    title: str
    series: list[Series]


class Report(NamedTuple):
    """Everything on the page, in its order."""

    title: str
    introduction: list[str]  # paragraphs
    tables: list[Table]
    figures: list[str]  # HTML of ours, already escaped: distributions
    samples: list[Sample]
    plots: list[Plot]
    details: list[Table]
    commands: list[str]
    provenance: dict[str, str]


def write(path: Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(render(report), encoding="utf-8")
    os.replace(temporary, path)


def render(report: Report) -> str:
    """The page as text."""
    parts = {
        "title": escape(report.title),
        "introduction": "\n".join(f"<p>{escape(p)}</p>" for p in report.introduction),
        "tables": "\n".join(map(_table, report.tables)),
        "figures": _section(
            "Every sample's score",
            ['<div class="curves">', *report.figures, "</div>"]
            if report.figures
            else [],
        ),
        "samples": _section("Videos", map(_sample, report.samples)),
        "curves": _section(
            "Training",
            ['<div class="curves">', *map(plot_svg, report.plots), "</div>"]
            if report.plots
            else [],
        ),
        "details": "\n".join(map(_table, report.details)),
        "commands": _section(
            "Commands",
            [f"<pre>{escape(chr(10).join(report.commands))}</pre>"]
            if report.commands
            else [],
        ),
        "provenance": _section("Provenance", _facts(report.provenance)),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    # One pass: a caption that contains {{title}} stays a caption.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def plot_svg(plot: Plot) -> str:
    """A plot as a figure: points, a running mean where there are many, a legend."""
    finite = [
        Series(s.label, *map(list, zip(*points, strict=True)))
        for s in plot.series
        if (points := [p for p in zip(s.steps, s.values, strict=True) if _finite(p)])
    ]
    if not finite:
        return ""
    steps = [step for s in finite for step in s.steps]
    values = [value for s in finite for value in s.values]
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
        f'<text x="{width - right}" y="{height - 2}" text-anchor="end">step</text>'
    )
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


def _section(title: str, parts) -> str:
    parts = list(parts)
    return "\n".join([f"<h2>{title}</h2>", *parts]) if parts else ""


def _facts(facts: dict[str, str]) -> list[str]:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in facts.items()
    )
    return [f"<dl>{rows}</dl>"] if facts else []


def _table(table: Table) -> str:
    words = [
        all(isinstance(cells[i].value, str) for _, cells in table.rows)
        for i in range(len(table.columns))
    ]
    heads = "".join(
        f'<th{_class("words", is_words)} scope="col"><button type="button" '
        f'title="{escape(note)}">{escape(label)}</button></th>'
        for (label, note), is_words in zip(table.columns, words, strict=True)
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
        for ours, cells in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2><p class="dim">{escape(table.note)}</p>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _sample(sample: Sample) -> str:
    scale = _scale(sample.media)
    cards = "".join(_card(medium, scale) for medium in sample.media)
    return (
        f'<section class="sample" data-fps="{sample.fps:g}">'
        f"<h3>{escape(sample.name)}</h3>"
        f'<p class="dim">{escape(sample.caption)}</p>'
        f'<div class="cards">{cards}</div><div class="controls">'
        '<button type="button" class="play">Play</button>'
        '<button type="button" class="back" aria-label="One frame back">&#8722;1'
        '</button><button type="button" class="forward" aria-label="One frame on">+1'
        '</button><input type="range" min="0" max="1" step="any" value="0" '
        'aria-label="Position"><output></output>'
        '<button type="button" class="speed" aria-label="Speed">1&#215;</button>'
        "</div></section>"
    )


def _scale(media: list[Medium]) -> Number:
    """Whole screen pixels a pixel, as large as all fit side by side; or 300 wide."""
    widest = max(medium.size[1] for medium in media)
    if widest > 150:
        return 300 / widest
    return max(2, min(300, _ROW // len(media) - 10) // widest)


def _card(medium: Medium, scale: Number) -> str:
    rows, columns = medium.size
    text = base64.b64encode(medium.data).decode("ascii")
    if medium.data[:8] == b"\x89PNG\r\n\x1a\n":
        alt = escape(medium.label)
        inside = f'<img src="data:image/png;base64,{text}" alt="{alt}">'
    else:
        inside = (
            f'<video data-video="data:video/mp4;base64,{text}" playsinline muted '
            f'preload="auto" aria-label="{escape(medium.label)}"></video>'
            '<button type="button" class="sound">muted</button>'
        )
    names = " ".join(
        name
        for name, applies in {
            "card": True,
            "ours": medium.ours,
            "leader": medium.leader,
            "large": scale < 2,
        }.items()
        if applies
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in medium.facts)
    return (
        f'<figure class="{names}" style="width:{columns * scale:.0f}px">'
        f'<div class="frame" style="aspect-ratio:{columns}/{rows}">{inside}</div>'
        f"<figcaption><b>{escape(medium.label)}</b><ul>{facts}</ul></figcaption>"
        "</figure>"
    )


def _class(name: str, applies: bool) -> str:
    return f' class="{name}"' if applies else ""


def _finite(point: tuple[Number, Number]) -> bool:
    return all(map(math.isfinite, point))


def ticks(low: Number, high: Number) -> list[float]:
    """Three to seven round numbers that enclose both."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


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
