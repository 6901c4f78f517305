"""Checkpoints against held-out clips: scores, videos, one page to look at.

    python -m launch.evaluate --dataset DATASET --checkpoint W1,W2 --output DIR

Takes people of the dataset's test split, each with a reference from another scene where
there is one. Beside the checkpoints three rows tell how to read the numbers: the real
video, the autoencoder's copy of it (ceiling), and frame 0 repeated (floor). Writes
DIR/results.json, results.md, report.html (self-contained) and DIR/videos. A run that
was stopped goes on where it was; a row made with anything else is made again.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from data_pipelines.records import read_summary
from data_pipelines.sources import Source
from launch import build, checkpoints, cli, dataset_samples, publish, score_rows
from launch.held_out import check_codec, choose_pairs, make_judges, marks, ours
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, generate, page, tables

DATASET = flags.DEFINE_string("dataset", None, "Dataset of launch.prepare_data.")
CHECKPOINT = flags.DEFINE_list("checkpoint", [], "Workdirs, in the order of the rows.")
BASELINE = flags.DEFINE_string(
    "baseline", None, "A workdir the others are compared to."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
METRICS_FROM = flags.DEFINE_list(
    "metrics_from", [], "Workdirs whose training curves the page shows."
)
COMMANDS = flags.DEFINE_string(
    "commands", None, "Text file of the commands that led here; the page shows them."
)
TRUTH = flags.DEFINE_string(
    "truth", None, "Folder of launch.render_people's truth: true mouth openings."
)
cli.config_flag("configs/cross_scene.py:mini")

SPLIT = "test"


def main() -> None:
    """Read the flags, make what is missing, write tables and page."""
    if not DATASET.value or not CHECKPOINT.value or not OUTPUT.value:
        raise InputError(
            "flags: --dataset DATASET, --checkpoint WORKDIR and --output DIR are needed"
        )
    plots = publish.read_curves([Path(path) for path in METRICS_FROM.value])
    commands = publish.read_lines(Path(COMMANDS.value)) if COMMANDS.value else []
    first = [BASELINE.value] if BASELINE.value else []
    loaded = load_all(list(dict.fromkeys([*first, *CHECKPOINT.value])))
    config, output = loaded[0].config, Path(OUTPUT.value)
    config.data.path = DATASET.value
    source, codec = Source(config, SPLIT), build.codec(config)
    check_codec(source, codec)
    pairs = choose_pairs(source.rows, config.evaluation.pairs)
    judges, networks = make_judges(config)
    made = generate.OutputConfig(**config.output)
    rows = ours(loaded, codec, made)
    ways = [*marks(codec, made), *rows]

    results = {
        "command": shlex.join(["python", "-m", "launch.evaluate", *sys.argv[1:]]),
        "config": config.name,
        "dataset": {"path": DATASET.value, **read_summary(source.root)},
        "checkpoints": {way.name: way.tags for way in rows},
        "methods": benchmark.methods(networks),
        "baseline": rows[0].name if BASELINE.value else "",
        "samples": [dataset_samples.describe(source, pair) for pair in pairs],
    }
    truth = Path(TRUTH.value) if TRUTH.value else None
    tasks = dataset_samples.tasks(source, pairs, networks, config, output, truth)
    scores = score_rows.run(ways, tasks, judges, config)
    found = publish.publish(results, scores, output)
    report = page.Report(
        title=f"Held-out evaluation: {', '.join(way.name for way in rows)}",
        introduction=dataset_samples.introduction(source, pairs, networks),
        tables=found[:-1],
        samples=[
            publish.page_sample(task.folder, sample, ways, config)
            for task, sample in zip(tasks, results["samples"], strict=True)
        ],
        plots=plots,
        details=[found[-1], tables.method_table(results["methods"])],
        commands=[*commands, results["command"]],
        provenance=publish.provenance(results),
    )
    page.write(output / "report.html", report)
    print(tables.markdown(found[:-1]))
    print(f"{output / 'report.html'}: open it in a browser")


def load_all(paths: Sequence[str]) -> list[checkpoints.Checkpoint]:
    """The checkpoints. InputError: unusable, or not comparable."""
    given, fields = checkpoints.flag_config()
    loaded = []
    for path in map(checkpoints.find, paths):
        config = checkpoints.config_of(path, given, fields)
        loaded.append(checkpoints.load(path, config))
    first = loaded[0].config
    for other in loaded[1:]:
        for name in ("codec", "speech", "text", "face", "lipsync", "networks"):
            if other.config[name].to_dict() != first[name].to_dict():
                raise InputError(
                    f"--checkpoint {other.path}: its config.{name} differs from that "
                    f"of {loaded[0].path}; compare them in runs of their own"
                )
    return loaded


if __name__ == "__main__":
    cli.run(main, __doc__)
