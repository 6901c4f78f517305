"""Results as tables: for the page, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tavr_jax.evaluation.benchmark import MARKS, METRICS, Metric
from tavr_jax.evaluation.page import Cell, Table
from tavr_jax.evaluation.results import SETS, Results
from tavr_jax.evaluation.score_video import Scores

_ROW = ("Row", "how the video was made")
_SETS = {
    "fid_mini": ("FID-mini ↓", "Frechet distance of features of frames"),
    "kid_mini": ("KID-mini ↓", "kernel distance of the same features, unbiased"),
    "fvd_mini": ("FVD-mini ↓", "Frechet distance of features of 16-frame clips"),
    "kvd_mini": ("KVD-mini ↓", "kernel distance of the same features, unbiased"),
}


def summary_tables(results: Results) -> list[Table]:
    """Means of all rows, their comparisons, and their distances as sets."""
    return [
        _scores(results),
        *(
            comparison_table(_titled(results, names), found)
            for names, found in results["comparisons"].items()
        ),
        *([_sets(results)] if results["sets"] else []),
    ]


def comparison_table(title: str, found: Mapping[str, Any]) -> Table:
    """One row less another, metric by metric."""
    columns = [
        ("Metric", ""),
        ("Difference", "mean over samples, with its interval"),
        ("Wins", "share of samples where the first is larger, ties half"),
        ("p", "sign-flip test over people"),
        ("p, Holm", "the same, for all metrics of this table together"),
        ("Pairs", "samples where both have a value"),
    ]
    rows = []
    for metric in METRICS:
        comparison = found.get(metric.key)
        if comparison is None:
            continue
        values = [comparison["wins"], comparison["p"], comparison["holm"]]
        pairs = comparison["difference"]["pairs"]
        cells = [
            Cell(metric.label, metric.name),
            _estimate(metric, comparison["difference"], "+"),
            *(Cell("n/a" if v is None else f"{v:.3f}", v) for v in values),
            Cell(str(pairs), pairs),
        ]
        rows.append((False, cells))
    note = (
        "Sample by sample, so that what two rows share cancels. A small p says that "
        "they differ, the interval by how much."
    )
    return Table(title, note, columns, rows)


def sample_table(results: Results) -> Table:
    """Every number."""
    rows = [
        (
            False,
            [
                Cell(sample["key"], sample["key"]),
                Cell(row["name"], row["name"]),
                *_values({m.key: results["scores"][slug][m.key][i] for m in METRICS}),
                Cell(tags, tags),
            ],
        )
        for i, sample in enumerate(results["samples"])
        for slug, row in results["rows"].items()
        for tags in [", ".join(results["failures"][slug].get(sample["key"], []))]
    ]
    columns = [("Sample", "target clip"), _ROW, *_columns(), ("Failures", "")]
    return Table("Every sample", "Click a header to sort.", columns, rows)


def method_table(methods: Mapping[str, Mapping[str, Any]]) -> Table:
    """How each metric was computed, readable."""
    heads = ("meaning", "network", "licence", "version", "preprocessing")
    return Table(
        "How each number is computed",
        "The code is tavr_jax/evaluation/score_video.py, its equations those of "
        "metrics.py and metrics_*.py beside it. Licences are those of the weights.",
        [("Metric", ""), *((head.capitalize(), "") for head in heads)],
        [
            (
                False,
                [Cell(t, t) for t in (m.label, *map(methods[m.key].get, heads))],
            )
            for m in METRICS
        ],
    )


def facts(scores: Scores) -> list[str]:
    """The numbers worth reading under a video."""
    shown = [m for m in METRICS if m.key in ("identity", "sync_c", "mouth", "psnr")]
    return [
        f"{m.name} {scores[m.key]:.{m.digits}f}"
        for m in shown
        if scores[m.key] is not None
    ]


def markdown(tables: Sequence[Table]) -> str:
    """The tables as text."""
    parts = []
    for table in tables:
        heads = [label for label, _ in table.columns]
        lines = [heads, ["---"] * len(heads)]
        lines += [[cell.text for cell in cells] for _, cells in table.rows]
        body = "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)
        parts.append(f"## {_plain(table.title)}\n\n{table.note}\n\n{body}\n")
    return "\n".join(parts)


def _scores(results: Results) -> Table:
    about = results["benchmark"]
    count, listed = len(results["samples"]), about["samples"]
    people = len({sample["person"] for sample in results["samples"]})
    part = "" if about["complete"] else f" of {listed}"
    note = (
        f"{count}{part} sample(s) of {people} person(s). Mean and its "
        f"{results['level']:.0%} interval, people drawn with replacement; none for a "
        "single person. Arrows: which way is better; what is best at 0 is averaged by "
        "its size."
    )
    rows = []
    for slug, row in results["rows"].items():
        cells = [_estimate(m, results["summary"][slug][m.key], "") for m in METRICS]
        failed = len(results["failures"][slug])
        cells = [Cell(row["name"], row["name"]), *cells, Cell(str(failed), failed)]
        rows.append((slug not in MARKS, cells))
    columns = [_ROW, *_columns(), ("Failures", "samples with a failure tag")]
    return Table("Scores", note, columns, rows)


def _sets(results: Results) -> Table:
    rows = []
    for slug, found in results["sets"].items():
        values = [found[key] for key in SETS]
        values = [v["value"] if isinstance(v, dict) else v for v in values]
        name = results["rows"][slug]["name"]
        cells = [Cell("n/a" if v is None else f"{v:.3f}", v) for v in values]
        rows.append((slug not in MARKS, [Cell(name, name), *cells]))
    note = (
        "All videos of a row against all real ones, by features that ship with this "
        "project: they are not FID or FVD and compare rows of this page only. Those "
        "of Frechet fall with the number of samples."
    )
    return Table("As sets", note, [_ROW, *map(_SETS.get, SETS)], rows)


def _titled(results: Results, names: str) -> str:
    first, second = (results["rows"][slug]["name"] for slug in names.split("|"))
    return f"{first} less {second}"


def _columns() -> list[tuple[str, str]]:
    return [(m.label, m.meaning) for m in METRICS]


def _estimate(metric: Metric, found: Mapping[str, Any] | None, sign: str) -> Cell:
    if found is None:
        return Cell("n/a", None)
    digits = metric.digits
    text = f"{found['mean']:{sign}.{digits}f}"
    if found["low"] is not None:
        text += f" [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
    if found["undefined"]:
        text += f" ({found['pairs']})"
    return Cell(text, found["mean"])


def _values(scores: Scores) -> list[Cell]:
    return [
        Cell("n/a", None)
        if scores[m.key] is None
        else Cell(f"{scores[m.key]:.{m.digits}f}", scores[m.key])
        for m in METRICS
    ]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
