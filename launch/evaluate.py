"""Checkpoints against held-out clips: scores, videos, one page to look at.

    python -m launch.evaluate --dataset DATASET --checkpoint W1,W2 --output DIR

Takes people of the dataset's test split, each with a reference from another scene where
there is one. Beside the checkpoints three rows tell how to read the numbers: the real
video, the autoencoder's copy of it (ceiling), and frame 0 repeated (floor). Writes
DIR/results.json, results.md, report.html (self-contained) and DIR/videos. A run that
was stopped goes on where it was; a row made with anything else is made again.
"""

import json
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from numpy import ndarray
from tqdm import tqdm

from data_pipelines import conditions, media, video_files
from data_pipelines.records import read_summary
from data_pipelines.sources import Source
from launch import build, checkpoints, cli, readers
from launch.held_out import (
    MARKS,
    Material,
    Pair,
    Way,
    check_codec,
    choose_pairs,
    make_judges,
    marks,
    ours,
    read_sample,
)
from launch.stages import FLOW
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, generate, page

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
CRF = 12  # of the videos written: their blur should be the model's


def main() -> None:
    """Read the flags, make what is missing, write tables and page."""
    if not DATASET.value or not CHECKPOINT.value or not OUTPUT.value:
        raise InputError(
            "flags: --dataset DATASET, --checkpoint WORKDIR and --output DIR are needed"
        )
    plots = read_curves([Path(path) for path in METRICS_FROM.value])
    commands = read_lines(Path(COMMANDS.value)) if COMMANDS.value else []
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
        "samples": [_describe(source, pair) for pair in pairs],
    }
    scores = run(ways, pairs, source, judges, networks, config, output)
    tables = publish(results, scores, output)
    report = page.Report(
        title=f"Held-out evaluation: {', '.join(way.name for way in rows)}",
        introduction=_introduction(source, pairs, networks),
        tables=tables[:-1],
        samples=[
            _page_sample(folder, results["samples"][index], ways, config)
            for index, folder in enumerate(_folders(output, pairs))
        ],
        plots=plots,
        details=[tables[-1], benchmark.method_table(results["methods"])],
        commands=[*commands, results["command"]],
        provenance=_provenance(results),
    )
    page.write(output / "report.html", report)
    print(benchmark.markdown(tables[:-1]))
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


# Making and scoring


def run(
    ways: Sequence[Way],
    pairs: Sequence[Pair],
    source: Source,
    judges: benchmark.Judges,
    networks: dict[str, str],
    config: ConfigDict,
    output: Path,
) -> dict[str, list[benchmark.Scores]]:
    """Scores of every row on every sample; what is on disk and still true is kept."""
    truth = Path(TRUTH.value) if TRUTH.value else None
    negative = readers.load_text(config).read(config.text.negative)
    common = {
        "version": benchmark.VERSION,
        "data": read_summary(source.root)["encoded"],
        "frames": config.evaluation.frames,
        "networks": networks,
        "truth": str(truth or ""),
    }
    scores: dict[str, list[benchmark.Scores]] = defaultdict(list)
    total = len(pairs) * len(ways)
    with tqdm(total=total, desc="evaluating", unit="video", mininterval=2) as bar:
        for index, (pair, folder) in enumerate(
            zip(pairs, _folders(output, pairs), strict=True)
        ):
            folder.mkdir(parents=True, exist_ok=True)
            clips = [source.rows[i].clip_id for i in pair]
            sample = None
            for way in ways:
                made_with = common | {"clips": clips, "index": index} | way.made_with
                found = _stored(folder, way, made_with)
                if found is None:
                    if sample is None:
                        sample = read_sample(
                            source, pair, index, config, negative, truth
                        )
                        _write_inputs(folder, source, pair, sample, config)
                    found = _make(folder, way, sample, judges, made_with, config)
                scores[way.name].append(found)
                bar.update()
    return scores


def _stored(folder: Path, way: Way, made_with: dict) -> benchmark.Scores | None:
    """Scores of a row that was made with exactly this, if there are any."""
    path = folder / f"{way.slug}.json"
    if not path.is_file() or not path.with_suffix(".mp4").is_file():
        return None
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        return None  # damaged: made again
    return stored["scores"] if stored["made_with"] == _json(made_with) else None


def _make(
    folder: Path,
    way: Way,
    sample: Material,
    judges: benchmark.Judges,
    made_with: dict,
    config: ConfigDict,
) -> benchmark.Scores:
    path = folder / f"{way.slug}.json"
    path.unlink(missing_ok=True)  # it speaks of the video that is replaced now
    video = way.make(sample)
    scores, curve = benchmark.score(video, sample.truth, judges)
    _write(path.with_suffix(".mp4"), video, sample.wave, config, way.tags)
    record = {"scores": scores, "sync_curve": curve, "made_with": made_with}
    _write_text(path, json.dumps(record, indent=1))
    return scores


def _write_inputs(
    folder: Path, source: Source, pair: Pair, sample: Material, config: ConfigDict
) -> None:
    clip, frame = source.clip(pair.reference), sample.truth.frames[0]
    wave = clip["wave"].astype(np.float32) / 32767
    frames = media.decode_mp4(clip["video"])
    _write(folder / "reference.mp4", frames, wave, config, {"role": "Reference"})
    box = source.clip(pair.target)["person_box"]
    masked = conditions.grey_person(frame, conditions.still_mask(box, frame.shape[:2]))
    pixels = np.rint((masked + 1) * 127.5).astype(np.uint8)
    (folder / "target.png").write_bytes(
        cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    )


def _write(
    path: Path, frames: ndarray, wave: ndarray, config: ConfigDict, tags: dict
) -> None:
    rate, fps = config.speech.sample_rate, config.speech.fps
    video_files.write_video(path, frames, fps, wave, rate, CRF, tags)


# Showing


def publish(
    results: dict[str, Any], scores: dict[str, list[benchmark.Scores]], output: Path
) -> list[page.Table]:
    """results.json and results.md; returns the tables, every sample's last."""
    names = [sample["target"] for sample in results["samples"]]
    ours = list(results["checkpoints"])
    tables = [
        *benchmark.summary_table(scores, ours, results["baseline"]),
        benchmark.sample_table(names, scores),
    ]
    summary = {
        name: {
            key: mean and mean._asdict()
            for key, mean in benchmark.summarise(rows).items()
        }
        for name, rows in scores.items()
    }
    everything = results | {"summary": summary, "scores": scores}
    _write_text(output / "results.json", json.dumps(everything, indent=1))
    head = f"# Held-out evaluation\n\n    {results['command']}\n\n"
    _write_text(output / "results.md", head + benchmark.markdown(tables))
    return tables


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


def _page_sample(
    folder: Path, sample: dict[str, str], ways: Sequence[Way], config: ConfigDict
) -> page.Sample:
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
        scores = json.loads((folder / f"{way.slug}.json").read_text())["scores"]
        facts = benchmark.facts(scores)
        shown.append(medium(way.name, f"{way.slug}.mp4", facts, mine, way is ways[-1]))
    title = f"{sample['target']}, reference {sample['kind']}"
    return page.Sample(title, sample["caption"], config.speech.fps, shown)


def _describe(source: Source, pair: Pair) -> dict[str, Any]:
    target, reference = (source.rows[i] for i in pair)
    caption = source.clip(pair.target)["caption"]
    crosses = target.scene != reference.scene
    return {
        "target": target.clip_id,
        "reference": reference.clip_id,
        "person": target.person,
        "kind": "from another scene" if crosses else "is the same clip",
        "caption": caption.decode() if isinstance(caption, bytes) else caption,
        "size": target.size,
    }


def _introduction(
    source: Source, pairs: Sequence[Pair], networks: dict[str, str]
) -> list[str]:
    rows, columns = source.rows[0].size
    crossing = sum(source.rows[a].scene != source.rows[b].scene for a, b in pairs)
    everybody = len({source.rows[a].person for a, _ in pairs})
    return [
        "Every framed video was generated by a model from three things: a reference "
        "video of the person, a still of the target scene in which the person is "
        "masked out, and speech. It is synthetic.",
        f"{len(pairs)} sample(s) of {everybody} person(s) whom training has not seen; "
        f"{crossing} with a reference from another scene. Video is {columns} x {rows} "
        "pixels, shown enlarged without smoothing.",
        '"Codec reconstruction" is the real video through the autoencoder alone: '
        "the model works in the autoencoder's space and cannot be sharper than it. "
        '"Still, repeated" shows the real first frame all the time: it has the right '
        "face by construction and never speaks.",
        f"Faces are judged by {networks['face']}; lips by {networks['lipsync']}. "
        "Scores of these networks compare rows of this page, not papers.",
    ]


def _provenance(results: dict[str, Any]) -> dict[str, str]:
    facts = {"Generated by": "tavr_jax", "Dataset": json.dumps(results["dataset"])}
    for name, tags in results["checkpoints"].items():
        facts[name] = ", ".join(
            f"{key} {tags[key]}"
            for key in ("checkpoint", "fingerprint", "codec", "steps", "seed")
        )
    return facts


def _folders(output: Path, pairs: Sequence[Pair]) -> list[Path]:
    return [output / "videos" / f"{index:04d}" for index in range(len(pairs))]


def _json(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    cli.run(main, __doc__)
