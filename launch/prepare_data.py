"""A folder of videos -> a dataset that launch.train reads.

    python -m launch.prepare_data --source FOLDER --output DATASET

    FOLDER/<person>/<scene>.mp4    people seen in several scenes make cross-scene pairs
    FOLDER/x.mp4                   person x in scene x

A run that was stopped goes on where it was. A run with nothing new does nothing; one
with another codec only encodes again. DATASET is replaced as a whole, at the end.
What was left out, and why, is in DATASET/rejects.jsonl.
"""

import json
from collections import Counter
from pathlib import Path

from absl import flags

from data_pipelines import records
from data_pipelines.prepare import dataset
from launch import cli
from tavr_jax.errors import InputError

SOURCE = flags.DEFINE_string("source", None, "Folder of videos.")
OUTPUT = flags.DEFINE_string("output", None, "Dataset folder to make or bring up to.")
CODEC = flags.DEFINE_string(
    "codec", None, "mini, random or a file: overrides config.networks.codec."
)
CONFIG = cli.config_flag("configs/same_scene.py:mini")


def main() -> None:
    """Read the flags, prepare, say what was kept."""
    # Not at the top: worker processes import this module, and need no networks.
    from launch import build

    if not SOURCE.value or not OUTPUT.value:
        raise InputError("flags: --source FOLDER and --output DATASET are needed")
    config, output = CONFIG.value, Path(OUTPUT.value)
    if CODEC.value:
        config.networks.codec = CODEC.value
    cli.enable_compilation_cache()
    dataset.prepare(Path(SOURCE.value), output, config, build.codec(config))
    _tell(output)


def _tell(output: Path) -> None:
    """What the dataset holds and what was left out, in a few lines."""
    rows = records.read_index(output)
    frames, people = sum(row.frames for row in rows), {row.person for row in rows}
    splits = Counter(row.split for row in rows)
    kept = ", ".join(f"{count} {split}" for split, count in sorted(splits.items()))
    print(
        f"{output}: {len(rows)} clips ({kept}) of {len(people)} people, {frames} frames"
    )
    lines = (output / records.REJECTS).read_text().splitlines()
    reasons = Counter(json.loads(line)["reason"] for line in lines)
    for reason, count in reasons.most_common():
        print(f"  left out: {count} x {reason}")


if __name__ == "__main__":
    cli.run(main, __doc__)
