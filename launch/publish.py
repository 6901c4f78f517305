"""What an evaluation found: results.json, results.md and the page."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from launch.held_out import Way
from launch.score_rows import Task, write_text
from launch.stages import FLOW
from tavr_jax.errors import InputError
from tavr_jax.evaluation import page, tables
from tavr_jax.evaluation.benchmark import MARKS, Network
from tavr_jax.evaluation.page_strips import strips
from tavr_jax.evaluation.results import Results
from tavr_jax.evaluation.score_video import Judges

_TOLD = ("checkpoint", "fingerprint", "codec", "steps", "seed", "folder")


def rows(ways: Sequence[Way]) -> dict[str, dict[str, Any]]:
    """The rows as results name them."""
    return {
        way.slug: {
            "name": way.name,
            "protocol": way.protocol,
            "provenance": way.tags,
            "made_with": way.made_with,
        }
        for way in ways
    }


def compared(slugs: Sequence[str], baseline: str) -> list[tuple[str, str]]:
    """Which rows are tested against each other: all against the `baseline`, or each
    against those before it."""
    if baseline:
        return [(slug, baseline) for slug in slugs if slug != baseline]
    return [(slug, other) for i, slug in enumerate(slugs) for other in slugs[:i]]


class Evaluation(NamedTuple):
    """What is scored, by what, and how it is introduced."""

    ways: list[Way]
    tasks: list[Task]
    samples: list[dict[str, Any]]  # as results name them
    benchmark: dict[str, Any]  # likewise
    introduction: list[str]
    judges: Judges
    networks: dict[str, Network]


def publish(
    results: Results,
    made: Evaluation,
    plots: list[page.Plot],
    commands: list[str],
    config: ConfigDict,
    output: Path,
) -> None:
    """results.json, results.md and report.html, from one dict; prints the tables."""
    write_text(output / "results.json", json.dumps(results, indent=1, allow_nan=False))
    found = tables.summary_tables(results)
    whole = [*found, tables.sample_table(results)]
    head = f"# Evaluation: {results['benchmark']['name']}\n\n"
    command = f"    {results['command']}\n\n"
    write_text(output / "results.md", head + command + tables.markdown(whole))
    names = [way.name for way in made.ways if way.slug not in MARKS]
    report = page.Report(
        title=f"Evaluation: {', '.join(names)}",
        introduction=made.introduction,
        tables=found,
        figures=strips(results),
        samples=[
            page_sample(made.tasks[i].folder, made.samples[i], made.ways, config)
            for i in chosen(results, config.evaluation.shown)
        ],
        plots=plots,
        details=[whole[-1], tables.method_table(results["methods"])],
        commands=[*commands, results["command"]],
        provenance=provenance(results),
    )
    page.write(output / "report.html", report)
    print(tables.markdown(found))
    print(f"{output / 'report.html'}: open it in a browser")


def chosen(results: Results, most: int) -> list[int]:
    """Which samples the page carries: all, or as many of the worst and of the best by
    the identity of the last row, what is missing first."""
    count = len(results["samples"])
    if count <= most:
        return list(range(count))
    *_, last = results["scores"].values()
    scores = last["identity"]
    order = sorted(range(count), key=lambda i: (scores[i] is not None, scores[i] or 0))
    return order[: most - most // 2] + order[count - most // 2 :]


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


def page_sample(
    folder: Path, sample: dict[str, str], ways: Sequence[Way], config: ConfigDict
) -> page.Sample:
    """The inputs and all rows of one sample, side by side."""

    def medium(label: str, name: str, facts: list[str], mine: bool, leads: bool):
        data = (folder / name).read_bytes()
        return page.Medium(label, facts, data, tuple(sample["size"]), mine, leads)

    shown = [
        medium("Reference video", "reference.mp4", [sample["reference"]], False, False),
        medium("Still, as the model sees it", "target.png", [], False, False),
    ]
    for way in ways:
        mine = way.slug not in MARKS
        if way.slug == "still":
            continue  # a picture that does not move; its scores are in the tables
        if not (folder / f"{way.slug}.mp4").is_file():
            continue  # a failure: the tables say so
        scores = json.loads((folder / f"{way.slug}.json").read_text())["scores"]
        facts = tables.facts(scores)
        shown.append(medium(way.name, f"{way.slug}.mp4", facts, mine, way is ways[-1]))
    title = f"{sample['target']}, reference {sample['kind']}"
    return page.Sample(title, sample["caption"], config.speech.fps, shown)


def provenance(results: Results) -> dict[str, str]:
    """What the page says at its end."""
    facts = {"Generated by": "tavr_jax", "Samples": json.dumps(results["benchmark"])}
    for slug, row in results["rows"].items():
        if slug not in MARKS:
            told = [f"{k} {v}" for k, v in row["provenance"].items() if k in _TOLD]
            facts[row["name"]] = ", ".join(told)
    return facts
