"""What an evaluation found: results.json, results.md and the page."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from numpy import ndarray

from launch.held_out import Way
from launch.score_rows import Task, write_text
from launch.stages import FLOW
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, page, page_data, page_report, results, tables
from tavr_jax.evaluation.benchmark import MARKS, Metric, Network
from tavr_jax.evaluation.failures import MISSING, FailureConfig
from tavr_jax.evaluation.results import REAL, Record, Results
from tavr_jax.evaluation.score_video import Judges

_TOLD = ("checkpoint", "fingerprint", "codec", "steps", "seed", "folder")


def rows(ways: Sequence[Way]) -> dict[str, dict[str, Any]]:
    """The rows as results name them; draws of a row are one."""
    seeds: dict[str, list[str]] = defaultdict(list)
    for way in ways:
        seeds[way.row] += [way.tags["seed"]] if "seed" in way.tags else []
    return {
        way.slug: {
            "name": way.name,
            "protocol": way.protocol,
            "family": way.family,
            "frames": way.frames,
            "chunks": way.chunks,
            "hears": way.hears,
            "stage": way.stage,
            "attention": way.attention,
            "seeds": seeds[way.row],
            "provenance": way.tags,
            "made_with": way.made_with,
        }
        for way in first_draws(ways)
    }


def first_draws(ways: Sequence[Way]) -> list[Way]:
    """The rows: of each its first draw."""
    return [way for way in ways if not way.draw]


def gathered(
    ways: Sequence[Way],
    records: Mapping[str, Sequence[Record]],
    metrics: Sequence[Metric],
) -> dict[str, list[Record]]:
    """The records of rows, from those of their draws."""
    slugs: dict[str, list[str]] = defaultdict(list)
    for way in ways:
        slugs[way.row].append(way.slug)
    return {
        row: [
            results.merged(draws, metrics)
            for draws in zip(*(records[slug] for slug in of), strict=True)
        ]
        for row, of in slugs.items()
    }


def compared(ways: Sequence[Way], baseline: bool) -> list[tuple[str, str]]:
    """Which rows are tested against each other: all against the first one, which is
    the `baseline`, or each against those before it that are shown the same, and
    against the first of its own family. Marks are not, nor what hears something else.
    """
    rows = [w for w in first_draws(ways) if w.slug not in MARKS and w.hears == "own"]
    if baseline:
        return [(way.slug, rows[0].slug) for way in rows[1:]]
    heads = {way.family: way for way in reversed(rows)}
    return [
        (way.slug, other.slug)
        for i, way in enumerate(rows)
        for other in rows[:i]
        if _shown(way) == _shown(other) or other is heads[way.family]
    ]


def _shown(way: Way) -> str:
    return "video" if way.protocol == "theirs" else way.protocol


class Evaluation(NamedTuple):
    """What is scored, by what, and how it is introduced."""

    ways: list[Way]
    tasks: list[Task]
    samples: list[dict[str, Any]]  # as results name them
    benchmark: dict[str, Any]  # likewise
    introduction: list[str]
    judges: Judges
    networks: dict[str, Network]
    openings: Mapping[str, ndarray] | None = None  # true mouths, by a sample's key


def usable(
    made: Evaluation, records: dict[str, list[Record]]
) -> tuple[Evaluation, dict[str, list[Record]]]:
    """Both without the samples that turned out to be none, which are told as missing.

    InputError: every sample is one of them.
    """
    reasons = {
        sample["key"]: record.reason
        for sample, record in zip(made.samples, records[REAL], strict=True)
        if MISSING in record.failures
    }
    if not reasons:
        return made, records
    for key, reason in reasons.items():
        print(f"missing: {key}: {reason}")
    kept = [i for i, s in enumerate(made.samples) if s["key"] not in reasons]
    if not kept:
        key, reason = next(iter(reasons.items()))
        raise InputError(f"no sample can be scored: {key}: {reason}")
    missing = {**made.benchmark["missing"], **reasons}
    return (
        made._replace(
            tasks=[made.tasks[i] for i in kept],
            samples=[made.samples[i] for i in kept],
            benchmark={**made.benchmark, "complete": False, "missing": missing},
        ),
        {slug: [row[i] for i in kept] for slug, row in records.items()},
    )


def assemble(
    made: Evaluation,
    records: dict[str, list[Record]],
    config: ConfigDict,
    command: str,
    baseline: bool,
) -> tuple[Evaluation, Results]:
    """results.json as a dict, and the evaluation without samples that are none.

    With `baseline` the rows are tested against the first that is no mark.
    InputError: as `usable`.
    """
    made, records = usable(made, records)
    level, seed = config.evaluation.level, config.seed
    silent = any(way.hears == "silence" for way in made.ways)
    sampled = any(way.stage for way in made.ways)
    metrics = benchmark.metrics_of(made.networks, silent, sampled)
    named = rows(made.ways)
    found = results.findings(
        gathered(made.ways, records, metrics),
        made.samples,
        compared(made.ways, baseline),
        FailureConfig(**config.evaluation.failures),
        level,
        seed,
        metrics,
    )
    sweep = results.sweep(named, found["summary"])
    sets = benchmark.set_methods(made.networks)
    methods = benchmark.methods(made.networks, metrics)
    return made, {
        "version": benchmark.VERSION,
        "command": command,
        "level": level,
        "seed": seed,
        "benchmark": made.benchmark,
        "rows": named,
        "methods": results.described(methods, metrics),
        "set_methods": {key: method._asdict() for key, method in sets.items()},
        "samples": made.samples,
        **found,
        **results.unspoken(made.openings, made.samples, level, seed),
        **({"sweep": sweep} if sweep else {}),
    }


def publish(
    found: Results,
    made: Evaluation,
    plots: list[page.Plot],
    commands: list[str],
    config: ConfigDict,
    output: Path,
) -> None:
    """results.json, results.md and report.html, from one dict; prints the scores."""
    if missing := found["benchmark"]["missing"]:
        write_text(output / "missing.json", json.dumps(missing, indent=1))
    write_text(output / "results.json", json.dumps(found, indent=1, allow_nan=False))
    shown = tables.summary_tables(found)
    whole = [*shown, tables.sample_table(found)]
    head = f"# Evaluation: {found['benchmark']['name']}\n\n"
    command = f"    {found['command']}\n\n"
    write_text(output / "results.md", head + command + tables.markdown(whole))
    names = [way.name for way in first_draws(made.ways) if way.slug not in MARKS]
    report = page_report.Report(
        title=f"Evaluation: {', '.join(names)}",
        warnings=page_data.warnings(found),
        introduction=[*made.introduction, *tables.unspoken(found)],
        board=page_data.board(
            found,
            [task.folder for task in made.tasks],
            config.speech.fps,
            output,
            config.evaluation.shown,
        ),
        sweep=page_data.sweep(found),
        tables=[t for t in shown if t.title == tables.ALONE[1]],
        plots=plots,
        details=[
            tables.method_table(found["methods"]),
            *page_data.set_methods(found),
        ],
        commands=[*commands, found["command"]],
        provenance=provenance(found),
    )
    page_report.write(output / "report.html", report)
    many = len(found["comparisons"])
    print(tables.markdown([t for t in shown if t.title in tables.ALONE]))
    print(f"{output / 'results.md'}: these tables, {many} comparison(s), every sample")
    print(f"{output / 'report.html'}: open it in a browser")


def read_curves(workdirs: Sequence[Path]) -> list[page.Plot]:
    """Plots of losses and rewards of training runs. InputError: no metrics there."""
    plots: dict[str, list[page.Series]] = defaultdict(list)
    for workdir in workdirs:
        lines = [json.loads(line) for line in read_lines(workdir / "metrics.jsonl")]
        for key in dict.fromkeys(key for line in lines for key in line):
            points = [(n["step"], n[key]) for n in lines if n.get(key) is not None]
            stage = lines[0]["stage"]
            if key.startswith("reward"):
                label = key.removeprefix("reward_")
                title = f"Rewards, {stage} ({workdir.name})"
            elif key in ("loss", "held_out/loss") and stage != "policy":
                label = workdir.name + ", held out" * (key != "loss")
                title = "Flow-matching loss" if stage in FLOW else f"Loss, {stage}"
            else:
                continue
            steps, values = zip(*points, strict=True) if points else ((), ())
            plots[title].append(page.Series(label, list(steps), list(values)))
    return [page.Plot(title, series) for title, series in plots.items()]


def read_lines(path: Path) -> list[str]:
    """Lines of a text file. InputError: not there, not text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path") from error


def provenance(found: Results) -> dict[str, str]:
    """What the page says at its end."""
    facts = {"Generated by": "tavr_jax", "Samples": json.dumps(found["benchmark"])}
    for slug, row in found["rows"].items():
        if slug not in MARKS:
            told = [f"{k} {v}" for k, v in row["provenance"].items() if k in _TOLD]
            facts[row["name"]] = ", ".join(told)
    return facts
