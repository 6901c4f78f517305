"""The card of a shipped file: Markdown that says what it is and how it was made.

Everything is read from the workdirs: run.json (commands, commit, data, devices),
config.json (seed), metrics.jsonl (time, curve), and those of the runs that it started
from, back to one that is shipped with a card of its own.
"""

import itertools
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch import checkpoints, origin, ship_weights, shipped
from launch.provenance import nobodys
from launch.ship_weights import Weights
from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.storage import Place
from tavr_jax.training import checkpoint

POINTS = 10  # of a curve
# stage -> what of metrics.jsonl its curve shows, as far as it was logged
_FLOW = ("loss", "held_out/loss")
_SHOWN = {
    "same_scene": _FLOW,
    "cross_scene": _FLOW,
    "policy": ("reward", "reward_identity", "judged_identity", "reward_motion"),
    "codec": ("psnr", "loss"),
    "face": ("loss", "accuracy"),
    "lipsync": ("loss", "accuracy"),
}
# name -> what it is, and what it is for
_ABOUT = {
    "codec": (
        "The video autoencoder of the mini world: pixels to latents and back.",
        "Every config of size mini, whose latents it makes.",
    ),
    "face": (
        "The face network of the mini world: crops of a face to a unit vector.",
        "The identity reward of stage 3. What it rewards must not be scored by it.",
    ),
    "face_judge": (
        "A second face network, trained on other people than the first.",
        "Scoring: launch.evaluate, and what stage 3 is watched by.",
    ),
    "lipsync": (
        "The lip-sync network of the mini world: which speech goes with these lips.",
        "Sync-C and Sync-D of launch.evaluate. The lip-sync reward of stage 3, which "
        "mini only measures: policy.lipsync_weight is 0 there.",
    ),
    "same_scene": (
        "Stage 1 of the mini transformer: it learned from windows of one clip.",
        "A start for stage 2, and a row to compare with.",
    ),
    "cross_scene": (
        "Stage 2 of the mini transformer: the reference shows another scene.",
        "A start for stage 3, and a row to compare with.",
    ),
    "policy": (
        "Stage 3 of the mini transformer: policy gradient on rewards.",
        "Generating talking people of the drawn kind: `--checkpoint mini`.",
    ),
}
_LIMITS = (
    "Trained on synthetic people only, drawn by data_pipelines/synthetic.py: it has "
    "seen no real face and heard no real voice, and makes none. Research and teaching; "
    "not for anything about a real person."
)
# command -> flag -> what the card calls the place that it names
_PLACES = {
    "launch.render_people": {"--output": "PEOPLE"},
    "launch.prepare_data": {"--source": "PEOPLE", "--output": "DATASET"},
    "launch.train": {"--config.data.path": "DATASET"},
}
_START = "--config.init_from"  # a folder of ours: W/NAME


class Run(NamedTuple):
    """One training run."""

    name: str
    commands: tuple[str, ...]
    steps: int
    seed: int
    seconds: float
    hardware: str
    commit: str
    data: str  # fingerprint of its data
    curve: list[dict[str, float]]  # a row a point: step, and what is shown


class Card(NamedTuple):
    """What a card says."""

    name: str
    megabytes: float
    numbers: int
    upon: str  # of additions: the stage that they belong to
    starts_from: str  # of the first run: a shipped stage, weights; "" = seeded ones
    fingerprint: str
    data_commands: tuple[str, ...]
    runs: tuple[Run, ...]  # the last one made the file
    measured: str


def gather(
    weights: Weights,
    name: str,
    workdir: Path,
    folder: Path,
    data_commands: Iterable[str] = (),
    hardware: str = "",
    measured: str = "",
) -> Card:
    """The card of a file of `ship_weights.gather`.

    `data_commands` made the data; `hardware` says more than run.json does. InputError:
    a file of the workdir is missing or damaged.
    """
    runs, starts_from = _history(workdir, folder, name, hardware)
    return Card(
        name=name,
        megabytes=2 * weights.numbers / 1e6,
        numbers=weights.numbers,
        upon=weights.facts.get("upon", ""),
        starts_from=starts_from,
        fingerprint=weights.facts["fingerprint"],
        data_commands=tuple(_tidy(shlex.split(c), folder, "") for c in data_commands),
        runs=tuple(runs),
        measured=measured,
    )


def text(card: Card) -> str:
    """The card as Markdown."""
    what, purpose = _ABOUT[card.name]
    kind = f"low-rank additions to {card.upon}.safetensors" if card.upon else "weights"
    start = card.starts_from
    if start in shipped.STAGES:
        start = f"[{start}]({start}.md)"
    facts = {
        "file": f"{card.name}.safetensors, {card.megabytes:.2f} MB",
        "holds": f"{card.numbers:,} numbers in float16, {kind}",
        "fingerprint": card.fingerprint,
        "starts from": start or "seeded weights",
        "for": purpose,
        "limits": _LIMITS,
        "licence": "Apache-2.0",
    }
    parts = [f"# {card.name}", what, _table(("", ""), facts.items())]
    commands = map(_wrapped, _commands(card))
    parts += ["## Commands", "\n".join(["```", *commands, "```"])]
    parts += ["## Runs", _runs(card.runs), "## Curve"]
    parts.append("Means over tenths of a run; `step` is the last one of a tenth.")
    parts += [_curve(run) for run in card.runs]
    if card.measured:
        parts += ["## Measured", card.measured]
    return "\n\n".join(parts) + "\n"


def metadata(card: Card) -> dict[str, str]:
    """What the file itself says of its runs, should the card be lost."""
    return {
        "command": "; ".join(_commands(card)),
        "steps": " and ".join(str(run.steps) for run in card.runs),
        "seed": " and ".join(dict.fromkeys(str(run.seed) for run in card.runs)),
        "data_fingerprint": card.runs[-1].data,
    }


def read_run(workdir: Place, folder: Path, name: str, hardware: str) -> Run:
    """What a workdir says of its run, which the card calls `name`.

    InputError: a file is missing or damaged.
    """
    config = checkpoint.read_config(workdir)
    try:
        entries = json.loads((workdir / "run.json").read_text("utf-8"))
        lines = (workdir / "metrics.jsonl").read_text("utf-8").splitlines()
        lines = [json.loads(line) for line in lines]
        last = entries[-1]
        commands = dict.fromkeys(_tidy(e["command"], folder, name) for e in entries)
        return Run(
            name=name,
            commands=tuple(commands),
            steps=max(checkpoint.complete_steps(workdir / "checkpoints"), default=0),
            seed=config.seed,
            seconds=seconds(lines),
            hardware=hardware or _hardware(last),
            commit=_commit(last["git"]),
            data=last["data"],
            curve=curve(lines, _SHOWN.get(config.stage, ("loss",))),
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{workdir}: run.json and metrics.jsonl cannot be read ({line}); give the "
            "whole workdir of a run"
        ) from error


def seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Of all starts of a run together: `seconds` of metrics.jsonl begins anew with
    each. What a killed run did after its last line is not known."""
    told = [line["seconds"] for line in lines]
    ends = [one for one, next_ in itertools.pairwise(told) if next_ < one]
    return sum([*ends, *told[-1:]])


def curve(
    lines: Sequence[dict[str, Any]], shown: Sequence[str]
) -> list[dict[str, float]]:
    """POINTS rows or fewer: means over equal parts of a run, by their last step."""
    last = max((line["step"] for line in lines), default=0)
    rows = []
    for point in range(1, POINTS + 1):
        low, high = (last * p / POINTS for p in (point - 1, point))
        part = [line for line in lines if low < line["step"] <= high]
        told = {k: [v for x in part if (v := x.get(k)) is not None] for k in shown}
        means = {key: float(np.mean(values)) for key, values in told.items() if values}
        if means:
            rows.append({"step": max(line["step"] for line in part)} | means)
    return rows


def _history(
    workdir: Place, folder: Path, name: str, hardware: str
) -> tuple[list[Run], str]:
    """The runs that led to a workdir, the first one first, and what that started from:
    a stage of the folder, published weights, or "" for seeded ones."""
    runs, at = [], workdir
    while True:
        runs.insert(0, read_run(at, folder, name, hardware))
        base = origin.read(at)
        if base is None or not base.path:
            return runs, ""
        if stage := _shipped(base, at, folder):
            return runs, stage
        at = origin.workdir_of(storage.place(base.path))
        name = at.name
        if shipped.is_shipped(at) or origin.is_published(at):
            return runs, nobodys(base.init_from)


def _shipped(base: origin.Base, workdir: Place, folder: Path) -> str | None:
    """The stage of a folder that a run started from, if it is one."""
    config = checkpoints.stored_config(workdir)
    if config.stage in origin.ALONE:
        return None
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, context=1, tensor=1))
    return ship_weights.same_as(origin.load_base(base, config, mesh).params, folder)


def _tidy(words: Sequence[str], folder: Path, name: str) -> str:
    """A command with PEOPLE, DATASET and W/NAME instead of places of a machine; its own
    workdir is W/`name`."""
    places = _PLACES.get(words[2] if len(words) > 2 else "", {})
    places = places | {"--workdir": f"W/{name}"}
    tidy, flag = [], ""
    for word in words:
        begins, equals, value = word.partition("=")
        if not word.startswith("--"):
            begins, equals, value = flag, "", word
        flag = word if word.startswith("--") and not equals else ""
        if value and begins in places:
            value = places[begins]
        elif value and begins == _START and not shipped.is_named(value):
            value = f"W/{origin.workdir_of(Path(value)).name}"
        elif value and Path(value).resolve().parent == folder.resolve():
            value = shipped.MINI
        tidy.append(f"{begins}={value}" if equals else value or word)
    return nobodys(shlex.join(tidy))


def _hardware(entry: dict[str, Any]) -> str:
    found = entry["devices"]
    return f"{found['count']} x {found['kind']}, hosts: {entry['hosts']}"


def _commands(card: Card) -> list[str]:
    return [*card.data_commands, *(c for run in card.runs for c in run.commands)]


def _commit(found: dict[str, Any] | None) -> str:
    if not found:
        return "not known"
    return found["commit"][:12] + " and changes" * found["dirty"]


def _runs(runs: Sequence[Run]) -> str:
    head = ("run", "steps", "seed", "hours", "hardware", "commit", "data")
    rows = []
    for run in runs:
        hours = f"{run.seconds / 3600:.2f}"
        facts = (run.name, run.steps, run.seed, hours)
        rows.append((*facts, run.hardware, run.commit, run.data))
    return _table(head, rows)


def _curve(run: Run) -> str:
    """A run's curve, under its name."""
    head = list(dict.fromkeys(key for row in run.curve for key in row))
    rows = [[_number(row[k]) if k in row else "" for k in head] for row in run.curve]
    return f"{run.name}:\n\n" + _table(head, rows)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    body = [head, ["---"] * len(head), *(map(str, row) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)


def _wrapped(command: str) -> str:
    """A command in lines of at most 80 letters, where words allow it."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(word) > 77:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)
