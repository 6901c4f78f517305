"""Results as tables: for the page, and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tavr_jax.evaluation.benchmark import MARKS, METRICS, Metric, listed
from tavr_jax.evaluation.page import Cell, Table
from tavr_jax.evaluation.results import Results

ALONE = ("Scores", "As sets")  # titles of the tables of rows by themselves
_ROW = ("Row", "how the video was made")
_SETS = {
    "fid_mini": ("FID-mini ↓", "Frechet distance of features of frames"),
    "kid_mini": ("KID-mini ↓", "kernel distance of the same features, unbiased"),
    "fvd_mini": ("FVD-mini ↓", "Frechet distance of features of 16-frame clips"),
    "kvd_mini": ("KVD-mini ↓", "kernel distance of the same features, unbiased"),
    "fid": ("FID ↓", "Frechet distance of frames, by the network given"),
    "fvd": ("FVD ↓", "Frechet distance of 16-frame clips, by the network given"),
}


def summary_tables(results: Results) -> list[Table]:
    """Means of all rows, their comparisons, and their distances as sets."""
    metrics = listed(results["methods"])
    return [
        _scores(results, metrics),
        *(
            comparison_table(_titled(results, names), found, metrics)
            for names, found in results["comparisons"].items()
        ),
        *([_sets(results)] if results["sets"] else []),
    ]


def comparison_table(
    title: str, found: Mapping[str, Any], metrics: Sequence[Metric] = METRICS
) -> Table:
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
    for metric in metrics:
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
    metrics = listed(results["methods"])
    rows = [
        (
            False,
            [
                Cell(sample["key"], sample["key"]),
                Cell(row["name"], row["name"]),
                *_values(results["scores"][slug], i, metrics),
                Cell(tags, tags),
            ],
        )
        for i, sample in enumerate(results["samples"])
        for slug, row in results["rows"].items()
        for tags in [", ".join(results["failures"][slug].get(sample["key"], []))]
    ]
    columns = [("Sample", "target clip"), _ROW, *_columns(metrics), ("Failures", "")]
    return Table("Every sample", "Click a header to sort.", columns, rows)


def unspoken(results: Results) -> list[str]:
    """How far a mouth comes without speech, if that is known: how to read its r."""
    if not (found := results.get("unspoken")):
        return []
    told = f"{found['mean']:.3f}"
    if found["low"] is not None:
        told += f" [{found['low']:.3f}, {found['high']:.3f}]"
    return [
        f"Mouth r without speech: {told}, of the mean of other people's true mouths. "
        "Clips that begin and end alike agree so far whatever is said."
    ]


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
            for m in listed(methods)
        ],
    )


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


def _scores(results: Results, metrics: Sequence[Metric]) -> Table:
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
    if seeds := {len(draws["psnr"][0]) for draws in results.get("draws", {}).values()}:
        note = f"{note} Of a checkpoint's pair the mean over {max(seeds)} seeds."
    note = " ".join([note, *unspoken(results)])
    rows = []
    for slug, row in results["rows"].items():
        cells = [_estimate(m, results["summary"][slug][m.key], "") for m in metrics]
        failed = len(results["failures"][slug])
        cells = [Cell(row["name"], row["name"]), *cells, Cell(str(failed), failed)]
        rows.append((slug not in MARKS, cells))
    columns = [_ROW, *_columns(metrics), ("Failures", "samples with a failure tag")]
    return Table(ALONE[0], note, columns, rows)


def _sets(results: Results) -> Table:
    rows, kinds = [], list(next(iter(results["sets"].values())))
    for slug, found in results["sets"].items():
        values = [found[key] for key in kinds]
        values = [v["value"] if isinstance(v, dict) else v for v in values]
        name = results["rows"][slug]["name"]
        cells = [Cell("n/a" if v is None else f"{v:.3f}", v) for v in values]
        rows.append((slug not in MARKS, [Cell(name, name), *cells]))
    note = (
        "All videos of a row against all real ones, by features that ship with this "
        "project: the -mini ones are not FID or FVD and compare rows of this page "
        "only. Those of Frechet fall with the number of samples."
    )
    return Table(ALONE[1], note, [_ROW, *map(_SETS.get, kinds)], rows)


def _titled(results: Results, names: str) -> str:
    first, second = (results["rows"][slug]["name"] for slug in names.split("|"))
    return f"{first} less {second}"


def _columns(metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    return [(m.label, m.meaning) for m in metrics]


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


def _values(
    scores: Mapping[str, Sequence[float | None]], i: int, metrics: Sequence[Metric]
) -> list[Cell]:
    """Of sample i of a row."""
    return [
        Cell("n/a", None) if value is None else Cell(f"{value:.{m.digits}f}", value)
        for m in metrics
        for value in [scores[m.key][i]]
    ]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
