"""Runs to curves: those that differ only in their seed are one, with a band."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.storage import Place
from tavr_jax.training.checkpoint import flat

LINES, CONFIG = "metrics.jsonl", "config.json"
START = "init_from."  # before fields of the run that a run started from
DEEPEST = 9  # stages in a row, against a circle of workdirs
TOLD = 3  # runs that differ in more fields go by their folder
ENDS = 0.1  # share of a run that its first and its last mean are taken over


ORDER = ("text_to_video", "audio_to_video", "same_scene", "cross_scene", "policy")


class Run(NamedTuple):
    """A workdir."""

    path: Place
    fields: dict[str, Any]  # field -> value, without the seed; see `_resolved`
    seed: int
    lines: list[dict[str, Any]]


class Curve(NamedTuple):
    """One metric of runs that differ only in their seed, at the steps they share."""

    label: str  # fields in which it differs from the other curves of its panel
    seeds: list[int]
    steps: Int[ndarray, " n"]
    values: Float[ndarray, "runs n"]


class Panel(NamedTuple):
    """One metric of one stage."""

    stage: str
    metric: str
    curves: list[Curve]


def find(paths: Sequence[Place]) -> list[Run]:
    """The runs of workdirs, and of folders of workdirs. InputError: none there."""
    runs = []
    for path in paths:
        inside = [path] if (path / LINES).is_file() else []
        inside = inside or sorted(p.parent for p in path.glob(f"*/{LINES}"))
        if not inside:
            raise InputError(f"{path}: no {LINES} in it or one folder below")
        runs += [_read(folder) for folder in inside]
    return list({run.path.resolve(): run for run in runs}.values())


def panels(runs: Sequence[Run], metrics: Sequence[str]) -> list[Panel]:
    """Stages in the order of training, each with those of `metrics` that it logs.

    No metrics: the reward of runs that log one, the loss of others.
    InputError: a metric that no run logs; a group of runs with no step in common.
    """
    stages: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        stages[run.fields["stage"]].append(run)
    found = []
    for stage, members in sorted(stages.items(), key=_place):
        logged = {name for run in members for line in run.lines for name in line}
        wanted = metrics or (["reward"] if "reward" in logged else ["loss"])
        found += [
            Panel(stage, metric, _curves(members, metric))
            for metric in wanted
            if metric in logged
        ]
    for metric in metrics:
        if metric not in {panel.metric for panel in found}:
            names = {n for r in runs for line in r.lines for n in line} - {"stage"}
            raise InputError(
                f"--metric: {metric}: no run logs it; there are "
                f"{', '.join(sorted(names))}"
            )
    return found


def smoothed(values: Float[ndarray, "runs n"], window: int) -> Float[ndarray, "runs n"]:
    """Running mean of the `window` points around each; fewer at both ends."""
    half, n = window // 2, values.shape[1]
    total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    low = np.maximum(np.arange(n) - half, 0)
    high = np.minimum(np.arange(n) + half + 1, n)
    return (total[:, high] - total[:, low]) / (high - low)


def table(found: Sequence[Panel]) -> str:
    """First and last means as Markdown, with their range over seeds."""
    rows = [
        f"| stage | run | seeds | last step | metric | first {ENDS:.0%} | "
        f"last {ENDS:.0%} |",
        "|---|---|---|---|---|---|---|",
    ]
    for panel in found:
        for curve in panel.curves:
            count = max(1, round(ENDS * len(curve.steps)))
            first, last = curve.values[:, :count], curve.values[:, -count:]
            seeds = ", ".join(map(str, curve.seeds))
            rows.append(
                f"| {panel.stage} | {curve.label} | {seeds} | {curve.steps[-1]} | "
                f"{panel.metric} | {_ranged(first)} | {_ranged(last)} |"
            )
    note = "Means over that share of logged points and over seeds (lowest to highest)."
    return "\n".join([*rows, "", note]) + "\n"


def _ranged(values: Float[ndarray, "runs n"]) -> str:
    means = values.mean(axis=1)
    spread = f" ({means.min():.3g} to {means.max():.3g})" if len(means) > 1 else ""
    return f"{means.mean():.3g}{spread}"


def _curves(runs: Sequence[Run], metric: str) -> list[Curve]:
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if any(metric in line for line in run.lines):
            groups[json.dumps(run.fields, sort_keys=True)].append(run)
    apart = _apart([members[0].fields for members in groups.values()])
    return [_curve(_label(g, apart), g, metric) for g in groups.values()]


def _place(item: tuple[str, list[Run]]) -> int:
    """Of a stage in the order of training; frozen networks come first."""
    return ORDER.index(item[0]) if item[0] in ORDER else -1


def _apart(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The fields in which configs differ; what follows from others is left out."""
    names = sorted({name for config in configs for name in config})
    apart = [n for n in names if len({repr(c.get(n)) for c in configs}) > 1]
    own = {name for name in apart if not name.startswith(START)}
    return [n for n in apart if n in own or n.rpartition(START)[2] not in own]


def _label(runs: Sequence[Run], apart: Sequence[str]) -> str:
    fields = runs[0].fields
    if len(apart) > TOLD:
        return str(runs[0].path) + f" and {len(runs) - 1} more" * (len(runs) > 1)
    ends = [name.rpartition(".")[2] for name in apart]
    shown = [
        f"{end if ends.count(end) == 1 else name}={fields.get(name)}"
        for name, end in zip(apart, ends, strict=True)
    ]
    return ", ".join(shown) or fields["name"]


def _curve(label: str, runs: Sequence[Run], metric: str) -> Curve:
    # A line of a step that was written twice counts once, the later one.
    series = [
        {line["step"]: line[metric] for line in run.lines if _is_number(line, metric)}
        for run in runs
    ]
    shared = sorted(set.intersection(*(set(s) for s in series)))
    if not shared:
        paths = ", ".join(str(run.path) for run in runs)
        raise InputError(f"{paths}: no step at which all of them log {metric}")
    values = np.array([[s[step] for step in shared] for s in series], np.float64)
    return Curve(label, [run.seed for run in runs], np.array(shared), values)


def _is_number(line: dict[str, Any], metric: str) -> bool:
    return isinstance(line.get(metric), int | float)


def _read(path: Place) -> Run:
    lines = []
    for text in (path / LINES).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # the line that a killed process was writing
    fields, seed = _resolved(path)
    return Run(path, fields, seed, lines)


def _resolved(path: Place, depth: int = 0) -> tuple[dict[str, Any], int]:
    """The fields of a workdir's config, and its seed.

    init_from becomes the fields of the run that it names: the second seed of a stage
    that starts from the second seed of the stage before differs only in its seed.
    """
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        seed, origin = config.pop("seed"), config["init_from"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path / CONFIG}: not the config of a run") from error
    if origin and depth < DEEPEST:
        start = storage.place(origin)
        step = start.name if start.parent.name == "checkpoints" else ""
        before = start.parent.parent if step else start
        if (before / CONFIG).is_file():
            fields, _ = _resolved(before, depth + 1)
            config["init_from"] = fields | {"checkpoint": step}
    fields = flat(config)
    if fields.get("optimizer.schedule_steps") == fields.get("train.steps"):
        fields.pop("optimizer.schedule_steps", None)  # it says no more
    return fields, seed
