"""Checkpoints against held-out clips: scores, videos, one page to look at.

    python -m launch.evaluate --dataset DATASET --checkpoint W1,W2 --output DIR

Takes people of the dataset's test split, each with a reference from another scene where
there is one. Beside the checkpoints three rows tell how to read the numbers: the real
video, the autoencoder's copy of it (ceiling), and frame 0 repeated (floor). Writes
DIR/results.json, results.md, report.html (self-contained) and DIR/videos. A run that
was stopped goes on where it was; a row made with anything else is made again.

    python -m launch.evaluate --compare A/results.json,B/results.json

prints how the rows of two evaluations of the same samples differ, and with what
p-values.
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
from tavr_jax.evaluation import benchmark, generate, page, results, tables

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
COMPARE = flags.DEFINE_list(
    "compare", [], "Two results.json, or their folders: A,B or A B; nothing is made."
)
cli.config_flag("configs/cross_scene.py:mini")

SPLIT = "test"


def main() -> None:
    """Read the flags, make what is missing, write tables and page."""
    if COMPARE.value:
        return compare([*COMPARE.value, *cli.others()])
    if cli.others():
        raise InputError(f"flags: unexpected argument {cli.others()[0]!r}; see --help")
    if not DATASET.value or not CHECKPOINT.value or not OUTPUT.value:
        raise InputError(
            "flags: --dataset DATASET, --checkpoint WORKDIR and --output DIR are needed"
        )
    plots = publish.read_curves([Path(path) for path in METRICS_FROM.value])
    commands = publish.read_lines(Path(COMMANDS.value)) if COMMANDS.value else []
    first = [BASELINE.value] if BASELINE.value else []
    loaded = load_all(list(dict.fromkeys([*first, *CHECKPOINT.value])))
    config, output = loaded[0].config, Path(OUTPUT.value)
    check_level(config.evaluation.level)
    config.data.path = DATASET.value
    source, codec = Source(config, SPLIT), build.codec(config)
    check_codec(source, codec)
    pairs = choose_pairs(source.rows, config.evaluation.pairs)
    judges, networks = make_judges(config)
    made = generate.OutputConfig(**config.output)
    rows = ours(loaded, codec, made)
    ways = [*marks(codec, made), *rows]

    summary = read_summary(source.root)
    truth = Path(TRUTH.value) if TRUTH.value else None
    tasks = dataset_samples.tasks(source, pairs, networks, config, output, truth)
    records = score_rows.run(ways, tasks, judges, config)
    samples = [dataset_samples.describe(source, pair, config) for pair in pairs]
    compared = publish.compared(ways, rows[0].slug if BASELINE.value else "")
    level, seed = config.evaluation.level, config.seed
    everything = {
        "version": benchmark.VERSION,
        "command": shlex.join(["python", "-m", "launch.evaluate", *sys.argv[1:]]),
        "level": level,
        "seed": seed,
        "benchmark": {
            "name": f"held out of {Path(DATASET.value).resolve().name}",
            "sha256": summary["encoded"],
            "samples": len(pairs),
            "complete": True,
            "missing": {},
        },
        "dataset": {"path": DATASET.value, **summary},
        "rows": publish.rows(ways),
        "methods": results.described(benchmark.methods(networks)),
        "samples": samples,
        **results.findings(records, samples, compared, level, seed),
    }
    found = publish.publish(everything, output)
    report = page.Report(
        title=f"Held-out evaluation: {', '.join(way.name for way in rows)}",
        introduction=dataset_samples.introduction(source, pairs, networks),
        tables=found,
        samples=[
            publish.page_sample(task.folder, sample, ways, config)
            for task, sample in zip(tasks, samples, strict=True)
        ],
        plots=plots,
        details=[
            tables.sample_table(everything),
            tables.method_table(everything["methods"]),
        ],
        commands=[*commands, everything["command"]],
        provenance=publish.provenance(everything),
    )
    page.write(output / "report.html", report)
    print(tables.markdown(found))
    print(f"{output / 'report.html'}: open it in a browser")


def compare(paths: Sequence[str]) -> None:
    """Print every row of one evaluation less the same row of another."""
    if len(paths) != 2:
        raise InputError(f"--compare: {len(paths)} results; give two: A,B")
    first, second = (results.read(path) for path in paths)
    found = results.compare(first, second, (paths[0], paths[1]))
    names = [{s: r["name"] for s, r in of["rows"].items()} for of in (first, second)]
    shown = []
    for pair, metrics in found.items():
        a, b = pair.split("|")
        title = f"{names[0][a]} of {paths[0]} less {names[1][b]} of {paths[1]}"
        shown.append(tables.comparison_table(title, metrics))
    print(tables.markdown(shown))


def check_level(level: float) -> None:
    """InputError before the long work: no share of an interval."""
    if not 0 < level < 1:
        raise InputError(f"evaluation.level: {level}: expected a share in (0, 1)")


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
    cli.run(main, __doc__, positional=1)
