"""The rows of a benchmark: somebody's folder of videos, checkpoints under protocols.

    --protocol video         the reference video, as it is
               image         its first frame, repeated: one raw picture of the person
               adapted=DIR   DIR/<key>.png repeated: a picture some editor has already
                             brought to the target scene
               none          no reference at all
               k=4,12,48     so many frames of the reference video; k=1 is `image` in a
                             single latent, which covers four frames

    --results NAME=DIR       DIR/<key>.mp4, DIR/<key>/generated_target.mp4 (what the
                             release and launch.generate write of the sample folders),
                             or DIR/<video id of the target>.mp4 if it is listed once

A video that is missing or cannot be read is a failure of its row, never left out. Other
rates are taken by the clock, other sizes brought to the real video's.
"""

import hashlib
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import UInt8
from numpy import ndarray

from data_pipelines import benchmark_media, conditions, media, video_files
from data_pipelines.benchmark_file import Sample
from launch import build, checkpoints, samples
from launch.held_out import Material, Way
from tavr_jax.errors import InputError

PROTOCOLS = ("video", "image", "adapted=DIR", "none", "k=FRAMES")
FPS = benchmark_media.FPS
CRF = 6  # of a picture that is repeated: every frame but the first costs nothing


class Protocol(NamedTuple):
    """What a checkpoint is shown of the person."""

    name: str  # "video", "image", "adapted", "none" or "k4"
    frames: int | None = None  # of the reference; None: as many as the config says
    folder: Path | None = None  # of adapted pictures

    @property
    def label(self) -> str:
        """What follows a row's name."""
        told = f"{self.frames} frame(s)" if self.frames else self.name
        return "" if self.name == "video" else f" · {told}"

    @property
    def latents(self) -> int | None:
        """Of the reference; None: as many as the config says."""
        return self.frames and max(1, self.frames // conditions.SPAN)

    @property
    def is_still(self) -> bool:
        """One picture, repeated."""
        return self.name in ("image", "adapted", "k1")


def protocols(given: Sequence[str]) -> list[Protocol]:
    """`--protocol` as it was split at commas. InputError: no such protocol."""
    found, sweep = [], False
    for text in given:
        name, _, value = text.partition("=")
        sweep = name == "k" or (sweep and text.isdigit())
        if sweep:
            found.append(_sweep(value if name == "k" else text))
        elif name == "adapted" and value:
            if not Path(value).is_dir():
                raise InputError(f"--protocol {text}: no such folder")
            found.append(Protocol("adapted", folder=Path(value)))
        elif text in ("video", "image", "none"):
            found.append(Protocol(text))
        else:
            raise InputError(
                f"--protocol {text}: expected one of {', '.join(PROTOCOLS)}"
            )
    return list(dict.fromkeys(found))


def under(ways: Sequence[Way], protocol: Protocol, inputs: Path) -> list[Way]:
    """Checkpoints' rows as they are under a protocol. `inputs`: the sample folders.

    `ways` are made from checkpoints that read `protocol.latents` already.
    """
    folder = inputs.with_name(f"{inputs.name}_{protocol.name}")

    def one(way: Way) -> Way:
        def make(sample: Material) -> UInt8[ndarray, "F Y X 3"]:
            inside = None
            if protocol.is_still:
                inside = _still_folder(inputs / sample.key, folder, protocol)
            told = sample.request.under(inside, protocol.name == "none")
            return way.make(sample._replace(request=told))

        def of(key: str) -> dict[str, Any]:
            if protocol.folder is None:
                return {}
            return {"picture": _hash(protocol.folder / f"{key}.png")}

        return way._replace(
            name=way.name + protocol.label,
            slug=f"{way.slug}_{protocol.name}",
            make=make,
            made_with=way.made_with | {"protocol": protocol.name},
            tags=way.tags | {"protocol": protocol.name},
            protocol=protocol.name,
            of=of,
        )

    return [one(way) for way in ways] if protocol.name != "video" else list(ways)


def with_latents(
    loaded: Sequence[checkpoints.Checkpoint], latents: int | None
) -> list[checkpoints.Checkpoint]:
    """Checkpoints that read so many reference latents: weights do not depend on it."""
    if latents is None:
        return list(loaded)
    found = []
    for checkpoint in loaded:
        config = checkpoint.config.copy_and_resolve_references()
        config.model.num_videoref_latents = latents
        graph, _ = nnx.split(build.abstract_transformer(config), nnx.Param)
        found.append(checkpoint._replace(config=config, graph=graph))
    return found


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

    def make(sample: Material) -> UInt8[ndarray, "F Y X 3"]:
        path, real = find(sample.key), sample.truth.frames
        if path is None:
            raise InputError(f"{folder}: no video of {sample.key}")
        frames = itertools.islice(media.iterate_frames(path, FPS), len(real))
        sized = [media.cover_resize(f[None], real.shape[1:3])[0] for f in frames]
        return np.stack(sized)

    def of(key: str) -> dict[str, Any]:
        path = find(key)
        return {"file": path and _hash(path)}

    slug = re.sub(r"\W+", "_", f"results_{name}")
    tags = {"folder": str(folder), "row": name}
    return Way(name, slug, make, {"folder": str(folder)}, tags, False, "theirs", of)


def _sweep(text: str) -> Protocol:
    frames = int(text) if text.isdigit() else 0
    if frames != 1 and (frames < 1 or frames % conditions.SPAN):
        raise InputError(
            f"--protocol k={text}: give 1 or multiples of {conditions.SPAN}: a "
            "reference latent covers so many frames"
        )
    return Protocol(f"k{frames}", frames)


def _still_folder(sample: Path, folder: Path, protocol: Protocol) -> Path:
    """The sample folder again, its reference a picture that is repeated, silent."""
    inside = folder / sample.name
    inside.mkdir(parents=True, exist_ok=True)
    for name in (samples.TARGET, samples.CAPTION, samples.SPEECH[-1]):
        (inside / name).unlink(missing_ok=True)
        try:
            os.link(sample / name, inside / name)
        except OSError:  # a file system without links
            shutil.copy(sample / name, inside / name)
    if protocol.folder is None:
        picture = next(media.iterate_frames(sample / samples.REFERENCE, FPS))
    else:
        picture = media.read_image(protocol.folder / f"{sample.name}.png")
    count = media.probe(sample / samples.REFERENCE).frames
    blocks = (picture[None] for _ in range(count))
    video_files.write_video(inside / samples.REFERENCE, blocks, FPS, crf=CRF)
    return inside


def _hash(path: Path) -> str | None:
    """Of a file's bytes; None: it is not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
