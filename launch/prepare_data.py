"""Footage -> a dataset that launch.train reads.

    python -m launch.prepare_data --source FOLDER --output DATASET
    python -m launch.prepare_data --verify DATASET

    FOLDER/<person>/<scene>.mp4    people seen in several scenes make cross-scene pairs
    FOLDER/x.mp4                   person and scene unknown: found out by face and look
    MANIFEST.csv | .jsonl | .json  instead of a folder: see prepare/importers.py

A run that was stopped goes on where it was. A run with nothing new does nothing; one
with another codec only encodes again. DATASET is replaced as a whole, at the end, by
one run at a time.
With --config.prepare.encode=false it stops at the clips, and training encodes them.
What was left out, and why, is in DATASET/rejects.jsonl and on DATASET/summary.html.

Where one machine is not enough, Apache Beam does the work per video elsewhere: --beam
gives it one of its pipeline options, and --source and --exchange must be seen by all.
Identities, records and latents are made here, where DATASET is.

    --source=gs://BUCKET/videos --beam=--runner=DataflowRunner --beam=--project=P
    --beam=--region=R --beam=--temp_location=gs://BUCKET/tmp
    --beam=--setup_file=./setup.py --exchange=gs://BUCKET/work
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

from absl import flags

from data_pipelines import records
from data_pipelines.prepare import checksums, dataset, remote
from data_pipelines.prepare.pipeline import Runner
from launch import cli
from tavr_jax import storage
from tavr_jax.errors import InputError

SOURCE = flags.DEFINE_string("source", None, "Folder of videos, or a manifest.")
OUTPUT = flags.DEFINE_string("output", None, "Dataset folder to make or bring up to.")
VERIFY = flags.DEFINE_string("verify", None, "Check a dataset's checksums, only that.")
CODEC = flags.DEFINE_string(
    "codec", None, "mini, random or a file: overrides config.networks.codec."
)
BEAM = flags.DEFINE_multi_string("beam", [], "An option of Apache Beam's; repeatable.")
EXCHANGE = flags.DEFINE_string(
    "exchange", "", "Folder or bucket that Beam's machines write clips to."
)
CONFIG = cli.config_flag("configs/same_scene.py:mini")


def main() -> None:
    """Read the flags, prepare, say what was kept."""
    if VERIFY.value:
        count = checksums.verify(Path(VERIFY.value))
        print(f"{VERIFY.value}: all {count} files are as they were written")
        return
    if not SOURCE.value or not OUTPUT.value:
        raise InputError("flags: --source FOLDER and --output DATASET are needed")
    if EXCHANGE.value and not BEAM.value:
        raise InputError("flags: --exchange is for --beam; give both or none")
    if storage.is_bucket(OUTPUT.value):
        raise InputError(
            f"--output {OUTPUT.value}: datasets are made on a disk; give a folder, and "
            "copy it to the bucket afterwards"
        )
    config, output = CONFIG.value, Path(OUTPUT.value)
    if CODEC.value:
        config.networks.codec = CODEC.value
    cli.enable_compilation_cache()
    networks = _networks(config)
    if remote.is_url(SOURCE.value):
        _prepare_bucket(SOURCE.value, output, config, networks)
    else:
        runner = Runner(BEAM.value, EXCHANGE.value)
        dataset.prepare(Path(SOURCE.value), output, config, networks, runner)
    _tell(output)


def _prepare_bucket(url: str, output: Path, config, networks) -> None:
    if not BEAM.value:
        raise InputError(
            f"--source {url}: buckets are read by Beam; give "
            "--beam=--runner=DirectRunner or another runner"
        )
    runner = Runner(BEAM.value, EXCHANGE.value, url)
    with tempfile.TemporaryDirectory() as folder:
        remote.listing(url, Path(folder))
        dataset.prepare(Path(folder), output, config, networks, runner)


def _networks(config) -> dataset.Networks:
    from launch import build, face_networks, readers  # not needed to verify

    face = face_networks.load(config)
    if not config.prepare.encode:
        return dataset.Networks(None, None, face)
    return dataset.Networks(build.codec(config), readers.load(config), face)


def _tell(output: Path) -> None:
    """What the dataset holds and what was left out, in a few lines."""
    rows = records.read_index(output)
    frames, people = sum(row.frames for row in rows), {row.person for row in rows}
    splits = Counter(row.split for row in rows)
    kept = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
    print(
        f"{output}: {len(rows)} clips ({kept}) of {len(people)} people, {frames} frames"
    )
    if not records.is_encoded(output):
        print("  clips only: launch.train encodes them while it runs")
    lines = (output / records.REJECTS).read_text().splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    for reason, count in reasons.most_common():
        print(f"  left out: {count} x {reason}")


if __name__ == "__main__":
    cli.run(main, __doc__)
