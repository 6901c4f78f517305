"""One HTML file that shows an evaluation: opens from disk, reaches no network.

Styles, scripts, numbers and the videos of the worst and best samples are inside it; the
other videos play from the folder beside it. Every text is escaped, and the page's own
policy forbids it to load anything but files.
"""

import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from tavr_jax.evaluation.page import Plot, Table, facts, plot_svg, section, table

_FOLDER = Path(__file__).parent
_TEMPLATE, _STYLE = _FOLDER / "page_template.html", _FOLDER / "page_style.css"
_SCRIPTS = [_FOLDER / f"page_{name}.js" for name in ("script", "charts", "players")]
# What would end the element that holds the data, or a line of it for old parsers.
_UNSAFE = re.compile("[<>&\u2028\u2029]")


class Report(NamedTuple):
    """Everything on the page, in its order."""

    title: str
    warnings: list[str]  # what is missing, before anything else
    introduction: list[str]  # paragraphs
    board: dict[str, Any]  # of page_data: leaderboard, distributions, samples
    sweep: list[Plot]  # over reference frames
    tables: list[Table]
    plots: list[Plot]  # over training steps
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
        "warnings": "\n".join(
            f'<p class="warning" role="note">{escape(p)}</p>' for p in report.warnings
        ),
        "introduction": "\n".join(f"<p>{escape(p)}</p>" for p in report.introduction),
        "sweep": _figures("Frame-count curves", report.sweep, "sweep"),
        "tables": "\n".join(map(table, report.tables)),
        "curves": _figures("Training", report.plots, "training"),
        "details": "\n".join(map(table, report.details)),
        "commands": section(
            "Commands",
            [f"<pre>{escape(chr(10).join(report.commands))}</pre>"]
            if report.commands
            else [],
        ),
        "provenance": section("Provenance", facts(report.provenance)),
        "style": _STYLE.read_text(encoding="utf-8"),
        "script": "\n".join(path.read_text(encoding="utf-8") for path in _SCRIPTS),
        "board": inert_json(report.board),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    # One pass: a caption that contains {{title}} stays a caption.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def inert_json(value: Any) -> str:
    """JSON that no HTML parser takes for anything but text."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _figures(title: str, plots: list[Plot], name: str) -> str:
    found = [figure for figure in map(plot_svg, plots) if figure]
    if not found:
        return ""
    return section(title, [f'<div class="curves" id="{name}">', *found, "</div>"])
