"""What a checkpoint is shown and what it hears: its rows of a benchmark.

    --protocol video         the reference video, as it is
               image         its first frame, repeated: one raw picture of the person
               adapted=DIR   DIR/<key>.png repeated: a picture some editor has already
                             brought to the target scene
               none          no reference at all
               k=4,12,48     so many frames of the reference video; k=1 is `image` in a
                             single latent, which covers four frames

    --silent                 two rows more, of the reference video as it is: driven by
                             silence, and by the speech of another pair (another
                             person's, where there is one)

Rows of one family differ in k alone. What is changed of a sample is written as a sample
folder beside the others, so that anybody's program can be asked the same.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import benchmark_media, conditions, media, video_files
from launch import benchmark_inputs, build, checkpoints, samples
from launch.benchmark_inputs import RATE, Pair
from launch.benchmark_rows import file_hash
from launch.held_out import Heard, Material, Way
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError

PROTOCOLS = ("video", "image", "adapted=DIR", "none", "k=FRAMES")
FPS = benchmark_media.FPS
CRF = 6  # of a picture that is repeated: every frame but the first costs nothing
_HEARS = {"silence": "silence", "swapped": "another's speech"}  # how rows are called


class Protocol(NamedTuple):
    """What a checkpoint is shown of the person."""

    name: str  # "video", "image", "adapted", "none", "k4", "silence" or "swapped"
    frames: int | None = None  # of the reference; None: as many as the config says
    folder: Path | None = None  # of adapted pictures

    @property
    def label(self) -> str:
        """What follows a row's name."""
        told = _HEARS.get(self.name, self.name)
        if self.frames:
            told = f"{self.frames} frame{'s' * (self.frames > 1)}"
        return "" if self.name == "video" else f" · {told}"

    @property
    def latents(self) -> int | None:
        """Of the reference; None: as many as the config says."""
        return self.frames and max(1, self.frames // conditions.SPAN)

    @property
    def hears(self) -> str:
        """ "own", "silence" or "swapped"."""
        return self.name if self.name in _HEARS else "own"

    @property
    def is_still(self) -> bool:
        """One picture, repeated."""
        return self.name in ("image", "adapted", "k1")


SILENT = (Protocol("silence"), Protocol("swapped"))


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
    found = list(dict.fromkeys(found))
    names = [protocol.name for protocol in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--protocol {twice[0]}: give it once; make runs of their own")
    return found


def check_pictures(wanted: Sequence[Protocol], keys: Sequence[str]) -> None:
    """InputError before the long work: a folder of adapted pictures that has none."""
    for protocol in wanted:
        folder = protocol.folder
        if folder and not any((folder / f"{key}.png").is_file() for key in keys):
            raise InputError(
                f"--protocol adapted={folder}: none of {len(keys)} pictures is in it; "
                f"they are called {keys[0]}.png"
            )


def under(
    ways: Sequence[Way],
    protocol: Protocol,
    inputs: Path,
    others: Mapping[str, Pair],
    config: ConfigDict,
) -> list[Way]:
    """Checkpoints' rows as they are under a protocol. `inputs`: the sample folders.

    `ways` are made from checkpoints that read `protocol.latents` already; `others` says
    whose speech each sample gets where it is swapped.
    """
    if protocol.name == "video":
        return list(ways)
    folder = inputs.with_name(f"{inputs.name}_{protocol.name}")

    def heard(sample: Material) -> Heard:
        spoken = media.read_audio(folder / sample.key / samples.SPEECH[-1], RATE)
        mine = spoken[: len(sample.wave)]
        if protocol.hears == "silence":
            return Heard(mine, None, silent=True)
        frames, speech = len(sample.truth.frames), SpeechConfig(**config.speech)
        return Heard(mine, log_mel(spoken, frames, speech).astype(np.float32))

    def of(key: str) -> dict[str, Any]:
        if protocol.hears == "swapped":
            return {"speech": benchmark_inputs.made_from(others[key])["target"]}
        if protocol.folder is None:
            return {}
        return {"picture": file_hash(protocol.folder / f"{key}.png")}

    def one(way: Way) -> Way:
        def make(sample: Material) -> UInt8[ndarray, "F Y X 3"]:
            inside = None
            if protocol.is_still or protocol.hears != "own":
                other = others.get(sample.key)
                inside = _changed(inputs / sample.key, folder, protocol, other)
            told = sample.request.under(inside, protocol.name == "none")
            return way.make(sample._replace(request=told))

        return way._replace(
            name=way.name + protocol.label,
            slug=f"{way.slug}_{protocol.name}",
            make=make,
            made_with=way.made_with | {"protocol": protocol.name},
            tags=way.tags | {"protocol": protocol.name},
            protocol=protocol.name,
            of=of,
            heard=None if protocol.hears == "own" else heard,
            hears=protocol.hears,
            family=way.name,
            frames=protocol.frames,
        )

    return [one(way) for way in ways]


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


def others(pairs: Sequence[Pair]) -> dict[str, Pair]:
    """Whose speech each sample gets where it is swapped: the next person's pair, or the
    next one where all are one person. InputError: a single pair."""
    if len(pairs) < 2:
        raise InputError("--silent: it swaps the speech of pairs, and there is one")
    found = {}
    for index, pair in enumerate(pairs):
        following = [*pairs[index + 1 :], *pairs[:index]]
        strangers = (p for p in following if p.sample.person != pair.sample.person)
        found[pair.sample.key] = next(strangers, following[0])
    return found


def _sweep(text: str) -> Protocol:
    frames = int(text) if text.isdigit() else 0
    if frames != 1 and (frames < 1 or frames % conditions.SPAN):
        raise InputError(
            f"--protocol k={text}: give 1 or multiples of {conditions.SPAN}: a "
            "reference latent covers so many frames"
        )
    return Protocol(f"k{frames}", frames)


def _changed(
    sample: Path, folder: Path, protocol: Protocol, other: Pair | None
) -> Path:
    """The sample folder again, with the reference or the speech of the protocol."""
    inside = folder / sample.name
    inside.mkdir(parents=True, exist_ok=True)
    whole = (samples.REFERENCE, samples.TARGET, samples.CAPTION, samples.SPEECH[-1])
    own = samples.REFERENCE if protocol.is_still else samples.SPEECH[-1]
    for name in whole:
        (inside / name).unlink(missing_ok=True)
        if name != own:
            _link(sample / name, inside / name)
    if not protocol.is_still:
        spoken = media.read_audio(sample / own, RATE)
        benchmark_inputs.write_wave(inside / own, _speech(len(spoken), other, protocol))
        return inside
    if protocol.folder is None:
        picture = next(media.iterate_frames(sample / own, FPS))
    else:
        picture = media.read_image(protocol.folder / f"{sample.name}.png")
    count = media.probe(sample / own).frames
    blocks = (picture[None] for _ in range(count))
    video_files.write_video(inside / own, blocks, FPS, crf=CRF)
    return inside


def _speech(count: int, other: Pair | None, protocol: Protocol) -> Float[ndarray, " n"]:
    """Silence, or as much of the other pair's speech, silence after its end."""
    if protocol.hears == "silence":
        return np.zeros(count, np.float32)
    spoken = benchmark_media.sound(other.target, RATE)[:count]
    return np.pad(spoken, (0, count - len(spoken)))


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without links
        shutil.copy(source, place)
