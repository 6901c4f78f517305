"""Checkpoints against held-out clips: scores, videos, one page to look at.

    python -m launch.evaluate --dataset DATASET --checkpoint W1,W2 --output DIR

Takes people of the dataset's test split, each with a reference from another scene where
there is one. Beside the checkpoints three rows tell how to read the numbers: the real
video, the autoencoder's copy of it (ceiling), and frame 0 repeated (floor). Writes
DIR/results.json, results.md, report.html (self-contained) and DIR/videos. A run that
was stopped goes on where it was; a row made with anything else is made again.

    python -m launch.evaluate --benchmark benchmark_data.json --media VIDEOS \\
        --checkpoint W1 --results NAME=DIR --output OUT

takes the pairs of a published list instead, cut out of videos that you have, and scores
checkpoints (under protocols, `launch/benchmark_protocols.py`) and folders of anybody's
videos (`launch/benchmark_rows.py`). OUT/inputs are the release's sample folders.
Networks of yours score beside ours (`launch/feature_networks.py`). With --seeds N each
video of a checkpoint is made N times; a pair counts once, by its mean.

    python -m launch.evaluate --compare A/results.json,B/results.json

prints how the rows of two evaluations of the same samples differ, and with what
p-values.

    python -m launch.evaluate --claims A,B > claims.md

prints what the rows of such evaluations together say of the method's claims
(`tavr_jax/evaluation/claims.py`).
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from data_pipelines import benchmark_file
from data_pipelines.records import read_summary
from data_pipelines.sources import Source
from launch import (
    benchmark_protocols,
    benchmark_rows,
    benchmark_samples,
    benchmark_truth,
    build,
    checkpoint_rows,
    checkpoints,
    cli,
    dataset_samples,
    feature_networks,
    publish,
    score_rows,
)
from launch.benchmark_inputs import Pair
from launch.benchmark_protocols import Protocol
from launch.held_out import Way, check_codec, choose_pairs, make_judges, marks
from tavr_jax.encoders.vae import Codec
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, claims, generate, results, tables
from tavr_jax.evaluation.failures import FailureConfig
from tavr_jax.evaluation.score_video import Judges

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
    "truth", None, "Folder truth/ of launch.render_people: true mouth openings."
)
BENCHMARK = flags.DEFINE_string(
    "benchmark", None, "Instead of --dataset: a benchmark's JSON."
)
MEDIA = flags.DEFINE_string(
    "media", None, "Folder with its videos: ID.mp4 or ID_<start frame>_<end frame>.mp4."
)
ALLOW_MISSING = flags.DEFINE_bool(
    "allow_missing", False, "Score the pairs whose videos are there."
)
RESULTS = flags.DEFINE_multi_string(
    "results", [], "NAME=DIR: a row of videos that somebody made; may be repeated."
)
PROTOCOL = flags.DEFINE_list(
    "protocol",
    ["video"],
    "What checkpoints are shown: video, image, adapted=DIR, "
    "none, k=4,12,48 (frames), deaf (no sound), unselected (all tokens); how long they "
    "speak: chunks=1,6; several: A,B.",
)
SEEDS = flags.DEFINE_integer(
    "seeds", 1, "Times that a checkpoint makes each video: its config's seed and more."
)
SILENT = flags.DEFINE_bool(
    "silent",
    False,
    "Also drive checkpoints by silence and by the speech of other pairs: two rows "
    "more of each, and what they leak.",
)
FACE_NETWORK = flags.DEFINE_multi_string(
    "face_network", [], "NAME=FILE.onnx: identity by it as well; may be repeated."
)
FID_NETWORK = flags.DEFINE_string("fid_network", None, "FILE.onnx: FID by it.")
FVD_NETWORK = flags.DEFINE_string("fvd_network", None, "FILE.onnx: FVD by it.")
LPIPS_NETWORK = flags.DEFINE_string("lpips_network", None, "FILE.onnx: LPIPS by it.")
SHARE = flags.DEFINE_string(
    "share",
    "0/1",
    "I/N: make samples I, I + N, ...; N processes share one --output, "
    "and 0/N waits for the others and writes the results.",
)
COMPARE = flags.DEFINE_list(
    "compare", [], "Two results.json, or their folders: A,B or A B; nothing is made."
)
CLAIMS = flags.DEFINE_list(
    "claims", [], "Several results.json, or their folders: A,B or A B; nothing is made."
)
cli.config_flag("configs/cross_scene.py:mini")

SPLIT = "test"


def main() -> None:
    """Read the flags, make what is missing, write tables and page."""
    if COMPARE.value:
        return compare([*COMPARE.value, *cli.others()])
    if CLAIMS.value:
        return claim([*CLAIMS.value, *cli.others()])
    if cli.others():
        raise InputError(f"flags: unexpected argument {cli.others()[0]!r}; see --help")
    check_flags()
    index, count = share()
    plots = publish.read_curves([Path(path) for path in METRICS_FROM.value])
    commands = publish.read_lines(Path(COMMANDS.value)) if COMMANDS.value else []
    first = [BASELINE.value] if BASELINE.value else []
    loaded = load_all(list(dict.fromkeys([*first, *CHECKPOINT.value])))
    config = loaded[0].config if loaded else flags.FLAGS["config"].value
    check_level(config.evaluation.level)
    FailureConfig(**config.evaluation.failures)  # refuses before the long work
    made = (of_benchmark if BENCHMARK.value else of_dataset)(loaded, config)
    records = score_rows.run(made.ways, made.tasks, made.judges, config, (index, count))
    if index:
        print(f"share {index}/{count} is done; share 0/{count} writes the results")
        return
    command = shlex.join(["python", "-m", "launch.evaluate", *sys.argv[1:]])
    made, found = publish.assemble(
        made, records, config, command, baseline=bool(BASELINE.value)
    )
    publish.publish(found, made, plots, commands, config, Path(OUTPUT.value))


def of_dataset(
    loaded: Sequence[checkpoints.Checkpoint], config: ConfigDict
) -> publish.Evaluation:
    """The held-out people of a dataset."""
    config.data.path = DATASET.value
    source, codec = Source(config, SPLIT), build.codec(config)
    check_codec(source, codec)
    pairs = choose_pairs(source.rows, config.evaluation.pairs)
    judges, networks = all_judges(config)
    made = generate.OutputConfig(**config.output)
    truth = Path(TRUTH.value) if TRUTH.value else None
    output, summary = Path(OUTPUT.value), read_summary(source.root)
    return publish.Evaluation(
        ways=[
            *marks(codec, made),
            *checkpoint_rows.ours(loaded, codec, made, SEEDS.value),
        ],
        tasks=dataset_samples.tasks(source, pairs, networks, config, output, truth),
        samples=[dataset_samples.describe(source, pair, config) for pair in pairs],
        benchmark={
            "name": f"held out of {Path(DATASET.value).resolve().name}",
            "sha256": summary["encoded"],
            "samples": len(pairs),
            "complete": True,
            "missing": {},
            "truth": truth is not None,
            "dataset": {"path": DATASET.value, **summary},
        },
        introduction=dataset_samples.introduction(source, pairs, networks),
        judges=judges,
        networks=networks,
        openings=dataset_samples.openings(source, pairs, config, truth),
    )


def of_benchmark(
    loaded: Sequence[checkpoints.Checkpoint], config: ConfigDict
) -> publish.Evaluation:
    """A published list of pairs, by media that the user has."""
    wanted = benchmark_protocols.protocols(PROTOCOL.value)
    found = benchmark_file.read(BENCHMARK.value)
    benchmark_protocols.check_pictures(wanted, [s.key for s in found.samples])
    output = Path(OUTPUT.value)
    results_of = [benchmark_rows.named(text) for text in RESULTS.value]
    theirs = [benchmark_rows.theirs(*r, found.samples) for r in results_of]
    slugs = [way.slug for way in theirs]
    if twice := [slug for slug in slugs if slugs.count(slug) > 1]:
        raise InputError(f"--results: two rows are {twice[0]}; name them apart")
    pairs, missing = benchmark_samples.available(
        found, Path(MEDIA.value), output, ALLOW_MISSING.value, share()[0] == 0
    )
    openings = None
    if TRUTH.value:
        openings = benchmark_truth.openings(Path(TRUTH.value), pairs)
    judges, networks = all_judges(config)
    codec, studio, rows, told = None, None, [], []
    if loaded:
        codec = build.codec(config)
        studio = benchmark_samples.studio(codec, pairs, config)
        wanted += benchmark_protocols.SILENT if SILENT.value else ()
        rows = rows_of(loaded, wanted, pairs, codec, config)
        told = [
            *benchmark_protocols.explained(wanted),
            *benchmark_rows.seeds(SEEDS.value),
        ]
    return publish.Evaluation(
        ways=[*marks(codec, generate.OutputConfig(**config.output)), *rows, *theirs],
        tasks=benchmark_samples.tasks(
            pairs, networks, found.sha256, studio, config, output, openings
        ),
        samples=[benchmark_samples.describe(pair, config) for pair in pairs],
        benchmark=benchmark_samples.describe_all(
            found, pairs, missing, openings is not None
        ),
        introduction=[*benchmark_samples.introduction(networks), *told],
        judges=judges,
        networks=networks,
        openings=openings,
    )


def rows_of(
    loaded: Sequence[checkpoints.Checkpoint],
    wanted: Sequence[Protocol],
    pairs: Sequence[Pair],
    codec: Codec,
    config: ConfigDict,
) -> list[Way]:
    """Every checkpoint under every protocol."""
    made, inputs = generate.OutputConfig(**config.output), Path(OUTPUT.value) / "inputs"
    swaps = any(protocol.hears == "swapped" for protocol in wanted)
    others = benchmark_protocols.others(pairs) if swaps else {}
    rows = []
    for latents in dict.fromkeys(protocol.latents for protocol in wanted):
        shown = benchmark_protocols.with_latents(loaded, latents)
        base = checkpoint_rows.ours(shown, codec, made, SEEDS.value)
        for protocol in wanted:
            if protocol.latents == latents:
                rows += benchmark_protocols.under(
                    base, protocol, inputs, others, config
                )
    return rows


def all_judges(config: ConfigDict) -> tuple[Judges, dict[str, benchmark.Network]]:
    """Our scoring networks, and those of the user's."""
    judges, networks = make_judges(config)
    given, theirs = feature_networks.given(
        FACE_NETWORK.value, FID_NETWORK.value, FVD_NETWORK.value, LPIPS_NETWORK.value
    )
    return judges._replace(given=given), networks | theirs


def check_flags() -> None:
    """InputError: flags that are missing, or do not go together."""
    if SEEDS.value < 1:
        raise InputError(f"--seeds={SEEDS.value}: give 1 or more")
    if DATASET.value and BENCHMARK.value:
        raise InputError("flags: --dataset and --benchmark: give one of them")
    if BENCHMARK.value:
        if not MEDIA.value or not OUTPUT.value:
            raise InputError("flags: --benchmark needs --media DIR and --output DIR")
        if not CHECKPOINT.value and not RESULTS.value:
            raise InputError(
                "flags: --checkpoint WORKDIR or --results NAME=DIR: give one or both"
            )
    elif not DATASET.value or not CHECKPOINT.value or not OUTPUT.value:
        raise InputError(
            "flags: --dataset DATASET, --checkpoint WORKDIR and --output DIR are needed"
        )
    elif RESULTS.value or PROTOCOL.value != ["video"]:
        raise InputError("flags: --results and --protocol: they need --benchmark")
    if SILENT.value and not (BENCHMARK.value and CHECKPOINT.value):
        raise InputError("flags: --silent: it needs --benchmark and --checkpoint")


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
        columns = benchmark.listed(first["methods"])
        shown.append(tables.comparison_table(title, metrics, columns))
    print(tables.markdown(shown))
    if results.knows_mouths(first) != results.knows_mouths(second):
        print("Mouth r is left out: one of them was made with --truth, one without.")


def claim(paths: Sequence[str]) -> None:
    """Print what the rows of these evaluations say of the claims."""
    found = [results.read(path, "--claims") for path in paths]
    print(tables.markdown(claims.claim_tables(found, paths)))


def share() -> tuple[int, int]:
    """`--share`. InputError: no such share."""
    index, _, count = SHARE.value.partition("/")
    sound = index.isdigit() and count.isdigit() and int(index) < int(count)
    if not sound:
        raise InputError(f"--share {SHARE.value}: expected I/N, I from 0 to N - 1")
    return int(index), int(count)


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
    checkpoint_rows.check_alike(loaded)
    return loaded


if __name__ == "__main__":
    cli.run(main, __doc__, positional=1)
