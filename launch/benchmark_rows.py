"""Folders of anybody's videos as rows of a benchmark.

    --results NAME=DIR       DIR/<key>.mp4, DIR/<key>/generated_target.mp4 (what the
                             release and launch.generate write of the sample folders),
                             or DIR/<video id of the target>.mp4 if it is listed once

A video that is missing or cannot be read is a failure of its row, never left out. Other
rates are taken by the clock, other sizes brought to the real video's.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import benchmark_media, media
from data_pipelines.benchmark_file import Sample
from launch import samples
from launch.held_out import Material, Video, Way
from launch.provenance import nobodys
from tavr_jax.errors import InputError

FPS = benchmark_media.FPS


def named(text: str) -> tuple[str, Path]:
    """NAME=DIR. InputError: something else."""
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise InputError(f"--results {text}: expected NAME=DIR")
    return name.strip(), Path(folder)


def theirs(name: str, folder: Path, listed: Sequence[Sample]) -> Way:
    """The row of somebody's videos. InputError: no such folder, or nothing in it."""
    if not folder.is_dir():
        raise InputError(f"--results {name}={folder}: no such folder")
    times = Counter(sample.target.video_id for sample in listed)
    names = {
        sample.key: [
            f"{sample.key}.mp4",
            f"{sample.key}/{samples.OUTPUT}",
            *[
                f"{video}.mp4"
                for video in [sample.target.video_id]
                if times[video] == 1
            ],
        ]
        for sample in listed
    }

    def find(key: str) -> Path | None:
        paths = (folder / each for each in names[key])
        return next((path for path in paths if path.is_file()), None)

    if not any(map(find, names)):
        raise InputError(
            f"--results {name}={folder}: none of {len(listed)} videos is in it; they "
            f"are called {listed[0].key}.mp4 or {listed[0].key}/{samples.OUTPUT}"
        )

    def make(sample: Material) -> Video:
        path, real = find(sample.key), sample.truth.frames
        if path is None:
            raise InputError(f"{folder}: no video of {sample.key}")
        frames = itertools.islice(media.iterate_frames(path, FPS), len(real))
        sized = [media.cover_resize(f[None], real.shape[1:3])[0] for f in frames]
        return Video(np.stack(sized))

    def of(key: str) -> dict[str, Any]:
        path = find(key)
        return {"file": path and file_hash(path)}

    slug = re.sub(r"\W+", "_", f"results_{name}")
    made_with = {"folder": nobodys(str(folder))}
    tags = made_with | {"row": name}
    return Way(name, slug, make, made_with, tags, "theirs", of, family=name)


def seeds(count: int) -> list[str]:
    """What the page says of rows that were made `count` times."""
    if count == 1:
        return []
    return [
        f"A checkpoint made every video {count} times, with a seed of its own: a score "
        "of a pair is their mean, its failures are those of any; the first plays, and "
        "is in the distances of sets."
    ]


def file_hash(path: Path) -> str | None:
    """Of a file's bytes; None: it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
