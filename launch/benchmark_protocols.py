"""What a checkpoint is shown and what it hears: its rows of a benchmark.

    --protocol video         the reference video, as it is
               image         its first frame, repeated: one raw picture of the person
               adapted=DIR   DIR/<key>.png repeated: a picture some editor has already
                             brought to the target scene. A picture has no sound: with
                             both, and with k=1, the model hears what `deaf` hears
               none          no reference at all
               k=4,12,48     so many frames of the reference video; k=1 is `image` in a
                             single latent, which covers four frames
               deaf          the reference video without its sound: the model hears the
                             row that it learned for a silent reference
               unselected    every token of the reference video, not those of the face
                             alone; the still's stay those outside the person, for what
                             is greyed out of it says nothing. Weights are the same:
                             this is selection left out of sampling, not of training
               chunks=1,6    the reference video, and a video of so many whole chunks:
                             its speech is repeated end to end, or cut

    --silent                 two rows more, of the reference video as it is: driven by
                             silence, and by the speech of another pair (another
                             person's, where there is one)

Rows of one family differ in k alone. What is changed of a sample is written as a sample
folder beside the others, so that anybody's program can be asked the same.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import benchmark_media, conditions, media, video_files
from launch import benchmark_inputs, build, checkpoints, samples
from launch.benchmark_inputs import RATE, Pair
from launch.benchmark_rows import file_hash
from launch.held_out import Heard, Material, Video, Way
from tavr_jax.diffusion.chunks import FRAMES_PER_LATENT
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.errors import InputError
from tavr_jax.evaluation.generate import Request

PLAIN = ("video", "image", "none", "deaf", "unselected")  # that take no value
COUNTED = ("k", "chunks")  # that take numbers
PROTOCOLS = (*PLAIN, "adapted=DIR", "k=FRAMES", "chunks=N")
FPS = benchmark_media.FPS
CRF = 6  # of a picture that is repeated: every frame but the first costs nothing
_HEARS = {"silence": "silence", "swapped": "another's speech"}  # how rows are called


def _hidden(request: Request) -> Request:
    return request._replace(
        reference=np.zeros_like(request.reference),
        reference_tokens=np.zeros_like(request.reference_tokens),
        reference_audio=None,
    )


def _deaf(request: Request) -> Request:
    return request._replace(reference_audio=None)


def _unselected(request: Request) -> Request:
    return request._replace(reference_tokens=np.ones_like(request.reference_tokens))


# What is made of all that a model is told, and what the page says of each protocol.
CHANGES = {"none": _hidden, "deaf": _deaf, "unselected": _unselected}
MEANINGS = {
    "image": "a reference that is its first frame, repeated, without sound",
    "adapted": "a reference that is a picture, repeated, which an editor has brought "
    "to the target's scene; it has no sound",
    "none": "no reference",
    "deaf": "the reference without its sound",
    "unselected": "every token of the reference, not those of the face alone",
    "k": "so many frames of the reference; a single one has no sound",
    "chunks": "a video of so many chunks to speech that is repeated or cut; what needs "
    "the real video is scored as far as that goes",
    "silence": "driven by silence",
    "swapped": "driven by the speech of another pair",
}


class Protocol(NamedTuple):
    """What a checkpoint is shown of the person, and how long it speaks."""

    name: str  # a key of `MEANINGS`, with the number where it has one, or "video"
    frames: int | None = None  # of the reference; None: as many as the config says
    folder: Path | None = None  # of adapted pictures
    chunks: int | None = None  # of the video; None: as its speech is long

    @property
    def label(self) -> str:
        """What follows a row's name."""
        told = _HEARS.get(self.name, self.name)
        for count, of in ((self.frames, "frame"), (self.chunks, "chunk")):
            if count:
                told = f"{count} {of}{'s' * (count > 1)}"
        return "" if self.name == "video" else f" · {told}"

    @property
    def kind(self) -> str:
        """The name without its number."""
        return self.name.rstrip("0123456789")

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

    @property
    def has_own_speech(self) -> bool:
        """Of the sample, as it is."""
        return self.hears == "own" and not self.chunks

    @property
    def change(self) -> Callable[[Request], Request] | None:
        """What is made of all that a model is told; None: nothing."""
        return CHANGES.get(self.name)


SILENT = (Protocol("silence"), Protocol("swapped"))


def protocols(given: Sequence[str]) -> list[Protocol]:
    """`--protocol` as it was split at commas. InputError: no such protocol."""
    found, counted = [], ""
    for text in given:
        name, _, value = text.partition("=")
        more = bool(counted) and text.isdigit()
        counted = counted if more else name * (name in COUNTED)
        if counted:
            found.append(_counted(counted, text if more else value))
        elif name == "adapted" and value:
            if not Path(value).is_dir():
                raise InputError(f"--protocol {text}: no such folder")
            found.append(Protocol("adapted", folder=Path(value)))
        elif text in PLAIN:
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


def explained(wanted: Sequence[Protocol]) -> list[str]:
    """What the page says of these protocols."""
    kinds = dict.fromkeys(p.kind for p in wanted if p.kind in MEANINGS)
    named = {p.kind: p.label.removeprefix(" · ") for p in reversed(wanted)}
    told = [f'"{named[kind]}": {MEANINGS[kind]}' for kind in kinds]
    return [f"Rows are named by what a model is given. {'; '.join(told)}."] * bool(told)


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

    def of(key: str) -> dict[str, Any]:
        if protocol.hears == "swapped":
            return {"speech": benchmark_inputs.made_from(others[key])["target"]}
        if protocol.folder is None:
            return {}
        return {"picture": file_hash(protocol.folder / f"{key}.png")}

    def one(way: Way) -> Way:
        def make(sample: Material) -> Video:
            inside = None
            if protocol.is_still or not protocol.has_own_speech:
                other = others.get(sample.key)
                inside = _changed(inputs / sample.key, folder, protocol, other, config)
            told = sample.request.under(inside, protocol.change)
            sample = sample._replace(request=told)
            if protocol.chunks:
                plan, frames = told.length(config)
                sample = sample._replace(plan=plan, frames=frames)
            return way.make(sample)

        return way._replace(
            name=way.name + protocol.label,
            slug=f"{way.slug}_{protocol.name}",
            make=make,
            made_with=way.made_with | {"protocol": protocol.name},
            tags=way.tags | {"protocol": protocol.name},
            protocol=protocol.name,
            of=of,
            heard=(
                None
                if protocol.has_own_speech
                else partial(_heard, folder, protocol, config)
            ),
            hears=protocol.hears,
            family=way.family or way.name,
            frames=protocol.frames,
            chunks=protocol.chunks,
            first=f"{way.row}_{protocol.name}",
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


def _counted(kind: str, text: str) -> Protocol:
    count = int(text) if text.isdigit() else 0
    if kind == "chunks":
        if count < 1:
            raise InputError(f"--protocol chunks={text}: give 1 or more")
        return Protocol(f"chunks{count}", chunks=count)
    if count != 1 and (count < 1 or count % conditions.SPAN):
        raise InputError(
            f"--protocol k={text}: give 1 or multiples of {conditions.SPAN}: a "
            "reference latent covers so many frames"
        )
    return Protocol(f"k{count}", count)


def _heard(
    folder: Path, protocol: Protocol, config: ConfigDict, sample: Material
) -> Heard:
    """What drove a sample's video, from its folder of the protocol."""
    spoken = media.read_audio(folder / sample.key / samples.SPEECH[-1], RATE)
    if protocol.hears == "silence":
        return Heard(spoken[: len(sample.wave)], None, silent=True)
    frames, speech = len(sample.truth.frames), SpeechConfig(**config.speech)
    if protocol.chunks:
        frames = len(spoken) * FPS // RATE
    else:
        spoken = spoken[: len(sample.wave)]
    return Heard(spoken, log_mel(spoken, frames, speech).astype(np.float32))


def _changed(
    sample: Path,
    folder: Path,
    protocol: Protocol,
    other: Pair | None,
    config: ConfigDict,
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
        if protocol.chunks:
            count = speech_frames(protocol.chunks, config) * RATE // FPS
            spoken = np.resize(spoken, count)  # repeats it
        else:
            spoken = _speech(len(spoken), other, protocol)
        benchmark_inputs.write_wave(inside / own, spoken)
        return inside
    if protocol.folder is None:
        picture = next(media.iterate_frames(sample / own, FPS))
    else:
        picture = media.read_image(protocol.folder / f"{sample.name}.png")
    count = media.probe(sample / own).frames
    blocks = (picture[None] for _ in range(count))
    video_files.write_video(inside / own, blocks, FPS, crf=CRF)
    return inside


def speech_frames(chunks: int, config: ConfigDict) -> int:
    """Of speech to which a video has so many whole chunks.

    A frame less than they have: a speech network gives some rows more than frames, and
    the video is as long all the same.
    """
    size, motion = config.model.num_video_latents, config.chunks.motion_latents
    latents = size + (chunks - 1) * (size - motion)
    return FRAMES_PER_LATENT * (latents - 1)


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
