"""One page about a dataset: what was kept, what was left out and why, in pictures.

A file of its own, DATASET/summary.html: no script, nothing loaded from elsewhere.
"""

import base64
import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import records
from data_pipelines.prepare import quality
from data_pipelines.prepare.clips import Reject
from data_pipelines.prepare.writing import QUALITY

PAGE = "summary.html"
SHOWN = 24  # clips with a picture
_OF_A_REASON = 6  # rejects of one reason with a picture
_BINS = 24
_WIDTH, _HEIGHT, _FLOOR = 264, 84, 14  # pixels of a histogram; of its axis
_STYLE = """
:root{--ink:#1c1f23;--soft:#6a7178;--line:#e3e6e9;--kept:#2f7d6b;--left:#d9895b}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);margin:2rem auto;
max-width:1000px;padding:0 1rem;background:#fff}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p.soft,figcaption,.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);
vertical-align:top}th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(270px,1fr))}
.shots{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
figure{margin:0;min-width:0}figure img{width:100%;aspect-ratio:4/3;object-fit:contain;
background:#eef0f2;border-radius:4px;display:block}
figcaption{font-size:.78rem;overflow-wrap:anywhere;line-height:1.35;margin-top:.25rem;
max-height:6.75em;overflow:hidden}
figcaption b{color:var(--ink)}.dl{display:flex;flex-wrap:wrap;gap:.4rem 2.2rem}
.dl div b{display:block;font-size:1.25rem}.key i{display:inline-block;width:.8em;
height:.8em;border-radius:2px;margin:0 .3em 0 1em}
.key i.kept{background:var(--kept);margin-left:0}.key i.left{background:var(--left)}
svg{display:block;width:100%;height:auto}
"""


def write(
    root: Path,
    source: str,
    rejects: Sequence[Reject],
    shown: Sequence[tuple[str, bytes]],
    config: ConfigDict,
) -> None:
    """Write the page of the clips in `root`, whose index is there already.

    `shown` are ids and JPEGs of some clips; rejects bring their own.
    """
    rows = records.read_index(root)
    lines = (root / QUALITY).read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    body = [
        f"<h1>{escape(source)}</h1><p class=soft>prepared with {escape(config.name)}, "
        f"records {records.VERSION}</p>",
        _facts(rows, rejects, config),
        "<h2>What was left out</h2>",
        _reasons(rejects),
        "<h2>Measures</h2><p class='soft key'><i class=kept></i>kept<i class=left></i>"
        "left out; the dashed line is the limit. quality.jsonl and rejects.jsonl hold "
        "the numbers.</p>",
        _histograms(kept, rejects, config.prepare),
        "<h2>Some clips</h2>",
        _pictures((name.replace(":", " @ "), "", data) for name, data in shown),
        "<h2>Some of what was left out</h2>",
        _pictures(_examples(rejects)),
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(source)}: "
        "dataset</title><meta name=viewport content='width=device-width'>"
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    (root / PAGE).write_text(page, encoding="utf-8")


def _facts(rows: list[records.Row], rejects, config: ConfigDict) -> str:
    frames = sum(row.frames for row in rows)
    people = Counter(row.person for row in rows)
    crossing = {p: {r.scene for r in rows if r.person == p} for p in people}
    splits = Counter(row.split for row in rows)
    licences = Counter(row.licence or "not stated" for row in rows)
    facts = {
        "clips": f"{len(rows):,}",
        "minutes": f"{frames / config.speech.fps / 60:.1f}",
        "people": f"{len(people):,}",
        "in several scenes": f"{sum(len(s) > 1 for s in crossing.values()):,}",
        "videos": f"{len({row.video_id for row in rows}):,}",
        "pieces left out": f"{len(rejects):,}",
    }
    boxes = "".join(f"<div><b>{v}</b>{k}</div>" for k, v in facts.items())
    sizes = Counter(f"{r.size[1]}x{r.size[0]} {r.orientation}" for r in rows)
    more = {"splits": splits, "sizes": sizes, "licences": licences}
    told = "; ".join(
        f"{name}: " + ", ".join(f"{n} {escape(k)}" for k, n in sorted(of.items()))
        for name, of in more.items()
    )
    return (
        f"<h2>What it holds</h2><div class=dl>{boxes}</div><p>{told}.</p><p class=soft>"
        "The footage keeps its own licence and the rights of the people in it.</p>"
    )


def _reasons(rejects: Sequence[Reject]) -> str:
    if not rejects:
        return "<p>Nothing.</p>"
    counts = Counter(reject.reason for reject in rejects)
    rows = "".join(
        f"<tr><td>{escape(reason)}<td class=n>{count}<td class=soft>"
        f"{escape(quality.REMEDIES[reason])}"
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item))
    )
    return f"<table><tr><th>reason<th class=n>pieces<th>what to change{rows}</table>"


def _histograms(kept: list[dict], rejects: Sequence[Reject], prepare) -> str:
    names = dict.fromkeys(f.measure for f in quality.FILTERS)
    names |= dict.fromkeys(("modulation", "lag"))
    figures = []
    for name in names:
        good = [line[name] for line in kept if name in line]
        bad = [r.numbers[name] for r in rejects if name in r.numbers]
        if good or bad:
            limits = [prepare[f.field] for f in quality.FILTERS if f.measure == name]
            picture = _histogram(good, bad, limits)
            figures.append(f"<figure>{picture}<figcaption>{name}</figcaption></figure>")
    return f"<div class=grid>{''.join(figures)}</div>"


def _histogram(good: list[float], bad: list[float], limits: list[float]) -> str:
    """Stacked bars of both, on one axis that shows the limits as well."""
    values = np.array([*good, *bad, *limits], np.float64)
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1
    edges = np.linspace(low, high, _BINS + 1)
    stacks = np.stack([np.histogram(v, edges)[0] for v in (good, bad)])
    scale = (_HEIGHT - _FLOOR - 4) / max(1, stacks.sum(axis=0).max())
    wide, bars = _WIDTH / _BINS, []
    for number, (kept, left) in enumerate(stacks.T.tolist()):
        floor = _HEIGHT - _FLOOR
        for count, color in ((kept, "kept"), (left, "left")):
            tall = count * scale
            floor -= tall
            if count:
                x, width = number * wide + 0.5, wide - 1
                bars.append(
                    f"<rect x='{x:.1f}' y='{floor:.1f}' width='{width:.1f}' "
                    f"height='{tall:.1f}' fill='var(--{color})'/>"
                )
    base = _HEIGHT - _FLOOR
    for limit in limits:
        x = (limit - low) / (high - low) * (_WIDTH - 2) + 1
        bars.append(
            f"<path d='M{x:.1f} 0V{base}' stroke='#1c1f23' stroke-dasharray='3 3'/>"
        )
    text = "font-size='10' fill='#6a7178' font-family='system-ui,sans-serif'"
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img>{''.join(bars)}"
        f"<path d='M0 {base}.5H{_WIDTH}' stroke='#c9ced3'/>"
        f"<text x='0' y='{_HEIGHT - 3}' {text}>{low:.3g}</text>"
        f"<text x='{_WIDTH}' y='{_HEIGHT - 3}' text-anchor='end' {text}>{high:.3g}"
        "</text></svg>"
    )


def _examples(rejects: Sequence[Reject]):
    """(name, reason, picture), a few of each reason, the commonest first."""
    counts = Counter(reject.reason for reject in rejects)
    counts["leftover"] = 0  # nothing is wrong with these: last
    for reason, _ in sorted(counts.items(), key=lambda item: (-item[1], item)):
        pictured = [r for r in rejects if r.reason == reason and r.thumbnail]
        for reject in pictured[:_OF_A_REASON]:
            name = f"{reject.video_id} @ {reject.first}"
            yield name, f"{reason}: {reject.detail}", reject.thumbnail


def _pictures(items) -> str:
    figures = []
    for name, note, data in items:
        code = base64.b64encode(data).decode()
        told = f"<b>{escape(note)}</b><br>" if note else ""
        figures.append(
            f"<figure><img alt='' src='data:image/jpeg;base64,{code}'>"
            f"<figcaption>{told}{escape(name)}</figcaption></figure>"
        )
    if not figures:
        return "<p>None with a picture.</p>"
    return f"<div class=shots>{''.join(figures)}</div>"
