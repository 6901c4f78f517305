"""Scores of rows of videos as tables: for the page, and as Markdown."""

from collections.abc import Sequence

from tavr_jax.evaluation.benchmark import METRICS, Mean, Scores, differences, summarise
from tavr_jax.evaluation.page import Cell, Table


def summary_table(
    rows: dict[str, Sequence[Scores]], ours: Sequence[str], baseline: str
) -> list[Table]:
    """Means of all rows and, with a baseline, how `ours` differ from it."""
    count = len(next(iter(rows.values())))
    note = "" if count > 1 else " One sample: no error can be given."
    tables = [
        Table(
            "Scores",
            f"Mean ± standard error over {count} held-out sample(s). Arrows: which way "
            f"is better.{note}",
            [("Row", "how the video was made"), *_columns()],
            [
                (name in ours, [Cell(name, name), *_means(summarise(scores), "")])
                for name, scores in rows.items()
            ],
        )
    ]
    if baseline:
        tables.append(
            Table(
                f"Difference to {baseline}",
                "Row minus baseline on the same sample, mean ± standard error. Less "
                "than about two errors from 0 is no evidence of a difference.",
                [("Row", "how the video was made"), *_columns()],
                [
                    (True, [Cell(name, name), *_means(found, "+")])
                    for name in ours
                    if name != baseline
                    for found in [differences(rows[name], rows[baseline])]
                ],
            )
        )
    return tables


def sample_table(names: Sequence[str], rows: dict[str, Sequence[Scores]]) -> Table:
    """Every number."""
    return Table(
        "Every sample",
        "Click a header to sort.",
        [("Sample", "target clip"), ("Row", "how the video was made"), *_columns()],
        [
            (False, [Cell(sample, sample), Cell(row, row), *_values(scores[index])])
            for index, sample in enumerate(names)
            for row, scores in rows.items()
        ],
    )


def method_table(found: dict[str, dict[str, str]]) -> Table:
    """`methods`, readable."""
    heads = ("meaning", "network", "version", "preprocessing")
    return Table(
        "How each number is computed",
        "The code is tavr_jax/evaluation/metrics.py, equations (1) to (8).",
        [("Metric", ""), *((head.capitalize(), "") for head in heads)],
        [
            (
                False,
                [Cell(text, text) for text in (m.label, *map(found[m.key].get, heads))],
            )
            for m in METRICS
        ],
    )


def facts(scores: Scores) -> list[str]:
    """The numbers worth reading under a video."""
    shown = [m for m in METRICS if m.key in ("identity", "sync_c", "mouth", "psnr")]
    return [
        f"{m.label[:-2]} {scores[m.key]:.{m.digits}f}"
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


def _columns() -> list[tuple[str, str]]:
    return [(m.label, m.meaning) for m in METRICS]


def _means(found: dict[str, Mean | None], sign: str) -> list[Cell]:
    cells = []
    for metric in METRICS:
        mean = found[metric.key]
        if mean is None:
            cells.append(Cell("n/a", None))
            continue
        text = f"{mean.mean:{sign}.{metric.digits}f}"
        if mean.error is not None:
            text += f" ± {mean.error:.{metric.digits}f}"
        cells.append(Cell(text, mean.mean))
    return cells


def _values(scores: Scores) -> list[Cell]:
    return [
        Cell("n/a", None)
        if scores[m.key] is None
        else Cell(f"{scores[m.key]:.{m.digits}f}", scores[m.key])
        for m in METRICS
    ]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
