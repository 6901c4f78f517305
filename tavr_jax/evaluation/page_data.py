"""What the page of an evaluation knows: numbers, names, and the videos it carries.

Every video has an address relative to the page, at which it lies on disk. Those of the
worst and best samples are also inside the page, as far as there is room; the others
play from the folder that the page was written to.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tavr_jax.evaluation.benchmark import ARROWS, MARKS
from tavr_jax.evaluation.page import Cell, Number, Plot, Series, Table
from tavr_jax.evaluation.results import Results

REFERENCE, STILL = "reference.mp4", "target.png"  # in a sample's folder
ROOM = 13 << 20  # letters that videos may take in a page
MAIN = (  # what a page shows first; the others are a click away
    "identity", "identity_target", "sync_c", "mouth", "follows", "leak", "psnr",
    "bg_psnr", "sharpness", "motion", "blinks", "style",
)  # fmt: skip
_TOLD = ("key", "person", "reference", "target", "caption", "seconds", "kind", "size")
_EACH = 6  # worst samples shown, and as many best
_ROLES = {"truth": "ceiling", "codec": "ceiling", "still": "floor", "copied": "floor"}


def board(
    results: Results, folders: Sequence[Path], fps: Number, output: Path, shown: int
) -> dict[str, Any]:
    """All that the page's script reads, as JSON can hold it.

    `folders[i]` holds the videos of sample i; the page is written to the folder
    `output`. At most `shown` samples are carried inside.
    """
    names = [REFERENCE, STILL, *(f"{slug}.mp4" for slug in results["rows"])]
    files = [
        {n: _address(folder / n, output) for n in names if (folder / n).is_file()}
        for folder in folders
    ]
    return {
        "fps": fps,
        "level": results["level"],
        "rows": [
            {
                "slug": slug,
                "name": row["name"],
                "protocol": row["protocol"],
                "hears": row.get("hears", "own"),
                "role": _ROLES.get(slug, ""),
            }
            for slug, row in results["rows"].items()
        ],
        "leader": leader(results),
        "metrics": metrics(results),
        "summary": results["summary"],
        "comparisons": results["comparisons"],
        "failures": results["failures"],
        "scores": results["scores"],
        "samples": [
            {key: sample[key] for key in _TOLD if key in sample}
            | {"files": addresses}  # {name in its folder: where the page finds it}
            for sample, addresses in zip(results["samples"], files, strict=True)
        ],
        "media": _carried(_first(results)[:shown], folders, files),
    }


def metrics(results: Results) -> list[dict[str, Any]]:
    """Each metric that some row has a value of: its name, meaning and direction."""
    return [
        {
            "key": key,
            "name": about["name"],
            "label": f"{about['name']} {ARROWS[about['better']]}",
            "better": about["better"],
            "digits": about["digits"],
            "meaning": about["meaning"],
            "main": key.rpartition("/")[2] in MAIN,  # NETWORK/identity too
        }
        for key, about in results["methods"].items()
        if any(found.get(key) for found in results["summary"].values())
    ]


def warnings(results: Results) -> list[str]:
    """What a reader has to know before any number: what is not there."""
    about = results["benchmark"]
    if about["complete"]:
        return []
    missing = about["missing"]
    reasons = "; ".join(f"{key}: {reason}" for key, reason in missing.items())
    return [
        f"Incomplete: {len(results['samples'])} of {about['samples']} samples were "
        "scored. These numbers do not compare with those of the whole benchmark. "
        f"Left out: {reasons or 'not told'}."
    ]


def set_methods(results: Results) -> list[Table]:
    """How distances of sets were computed, if that is told."""
    heads = ("network", "licence", "version", "preprocessing")
    told = results.get("set_methods", {})
    rows = [
        (False, [Cell(t, t) for t in (key, *(str(about[head]) for head in heads))])
        for key, about in told.items()
    ]
    columns = [("Distance", ""), *((head.capitalize(), "") for head in heads)]
    note = "All videos of a row at once, against all real ones."
    title = "How each distance of sets is computed"
    return [Table(title, note, columns, rows)] if rows else []


def sweep(results: Results) -> list[Plot]:
    """A plot a metric over the number of reference frames, if that was swept."""
    about = results["methods"]
    plots = []
    for key, families in results.get("sweep", {}).items():
        name = key
        if key in about:
            name = f"{about[key]['name']} {ARROWS[about[key]['better']]}"
        series = [
            Series(_family(results, family), *_curve(found))
            for family, found in families.items()
        ]
        plots.append(Plot(name, series, "reference frames"))
    return plots


def leader(results: Results) -> str:
    """The row whose worst and best samples are shown first: the last that is no mark
    and hears its own speech."""
    mine = [
        slug
        for slug, row in results["rows"].items()
        if slug not in MARKS and row.get("hears", "own") == "own"
    ]
    return [*results["rows"], *mine][-1]


def ranked(results: Results, slug: str, metric: str) -> list[int]:
    """Samples of a row from the worst to the best, without those that lack a value;
    as the page's script does it."""
    better, scores = results["methods"][metric]["better"], results["scores"]
    losses = {
        index: loss(better, value)
        for index, value in enumerate(scores[slug][metric])
        if value is not None
    }
    return sorted(losses, key=lambda index: -losses[index])


def loss(better: str, value: Number) -> Number:
    """How bad a value is: less is better."""
    return {
        "high": -value,
        "low": value,
        "zero": abs(value),
        "one": abs(value - 1),
    }[better]


def _first(results: Results) -> list[int]:
    """All samples, those first that the page shows first: the worst and the best of
    the last row by the first metric, then by the next one, and so on."""
    slug = leader(results)
    order: dict[int, None] = {}
    for metric in metrics(results):
        found = ranked(results, slug, metric["key"])
        worst, best = found[:_EACH], found[::-1][:_EACH]
        for pair in zip(worst, best, strict=True):
            order |= dict.fromkeys(pair)
    return list(order | dict.fromkeys(range(len(results["samples"]))))


def _carried(
    order: Sequence[int],
    folders: Sequence[Path],
    files: Sequence[Mapping[str, str]],
) -> dict[str, str]:
    """{address: base64}, whole samples in their order while there is room."""
    found: dict[str, str] = {}
    room = ROOM
    for index in order:
        inside = {
            address: base64.b64encode((folders[index] / name).read_bytes()).decode()
            for name, address in files[index].items()
        }
        room -= sum(map(len, inside.values()))
        if room < 0:
            break
        found |= inside
    return found


def _address(path: Path, output: Path) -> str:
    """Of a file, from a page in `output`; the dot keeps a colon from being a scheme."""
    return "./" + quote(Path(os.path.relpath(path, output)).as_posix())


def _family(results: Results, family: str) -> str:
    row = results["rows"].get(family)
    return row["name"] if row else family


def _curve(
    found: Mapping[str, Sequence[Any]],
) -> tuple[list[Number], list[Number], list[tuple[Number, Number]] | None]:
    """Steps, values and band; where an end is not known the band is the value."""
    points = [
        (k, mean, mean if low is None else low, mean if high is None else high)
        for k, mean, low, high in zip(
            found["k"], found["mean"], found["low"], found["high"], strict=True
        )
        if mean is not None
    ]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    banded = any(low < high for *_, low, high in points)
    return steps, values, [p[2:] for p in points] if banded else None
