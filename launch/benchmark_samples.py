"""A benchmark's pairs as tasks of an evaluation: what is true of them, what is told.

What is true is `benchmark_truth`'s. A checkpoint reads the sample folder
(`benchmark_inputs`) as launch.generate does, so that its video is the one that command
makes of it, but for the seed's noise.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import (
    benchmark_media,
    conditions,
    detectors,
    features,
)
from data_pipelines.benchmark_file import Benchmark
from data_pipelines.detectors import Detectors
from data_pipelines.features import SpeechReader
from launch import (
    benchmark_inputs,
    benchmark_truth,
    checkpoints,
    inputs,
    readers,
    samples,
)
from launch.benchmark_inputs import RATE, Pair
from launch.held_out import OF_SAMPLES, Material, stated
from launch.score_rows import Task, write_text
from tavr_jax.diffusion.chunks import Plan
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.vae_stream import encode_stream
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.evaluation.benchmark import VERSION, Network

_READ = ("networks", "speech", "text", "chunks")  # sections that samples are read by

# What a protocol makes of all that a checkpoint is told; None: nothing
Change = Callable[[generate.Request], generate.Request] | None


class Studio(NamedTuple):
    """What reads samples for checkpoints."""

    codec: Codec
    speech: SpeechReader
    finders: Detectors
    captions: dict[str, inputs.Captions]


class Told:
    """What a checkpoint is told of one sample: all of it, or a protocol's part."""

    def __init__(self, folder: Path, studio: Studio, change: Change = None):
        self.folder, self.studio, self.change = folder, studio, change
        self.known: dict[str, inputs.Material] = {}  # by what it was read by
        self.encoded: dict[tuple[str, bytes], generate.Request] = {}

    def under(self, folder: Path | None, change: Change) -> "Told":
        """The same of another sample folder, or changed, or both."""
        told = Told(folder or self.folder, self.studio, change)
        if folder is None:
            told.known, told.encoded = self.known, self.encoded
        return told

    def material(self, config: ConfigDict) -> inputs.Material:
        """The sample, read once. InputError: a checkpoint cannot read it."""
        by = _read_by(config)
        if by not in self.known:
            self.known[by] = self._material(config)
        return self.known[by]

    def length(self, config: ConfigDict) -> tuple[Plan, int]:
        """The chunks of its video, and the frames. InputError: as `material`."""
        found = self.material(config)
        return found.plan, found.driving.written

    def _material(self, config: ConfigDict) -> inputs.Material:
        sample = samples.from_folders([str(self.folder)], "")[0]
        with contextlib.redirect_stdout(io.StringIO()):  # meant for a single video
            return inputs.read(
                sample, self.studio.speech, self.studio.finders, None, config
            )

    def __call__(self, checkpoint: checkpoints.Checkpoint) -> generate.Request:
        """The request, encoded once. InputError: as `material`."""
        config, null = checkpoint.config, checkpoints.null_reference_audio(checkpoint)
        by = _read_by(config), null.tobytes()
        if by not in self.encoded:
            sample = samples.from_folders([str(self.folder)], "")[0]
            captions = self.studio.captions[sample.caption]
            material, codec = self.material(config), self.studio.codec
            self.encoded[by] = inputs.request(codec, material, captions, null, config)
        made = self.encoded[by]
        return made if self.change is None else self.change(made)


class Refused:
    """What nothing can be made from, whatever is shown of it, and why."""

    def __init__(self, reason: str):
        self.reason = reason

    def under(self, folder: Path | None, change: Change) -> "Refused":
        """The same."""
        return self

    def length(self, config: ConfigDict) -> tuple[Plan, int]:
        """InputError, with the reason."""
        raise InputError(self.reason)

    def __call__(self, checkpoint: checkpoints.Checkpoint) -> generate.Request:
        """InputError, with the reason."""
        raise InputError(self.reason)


def tasks(
    pairs: Sequence[Pair],
    networks: dict[str, Network],
    sha256: str,
    studio: Studio | None,
    config: ConfigDict,
    output: Path,
    openings: Mapping[str, Float[ndarray, " F"]] | None = None,
) -> list[Task]:
    """One task a pair. Without a `studio` nothing can be generated, only scored.

    `openings`: of `benchmark_truth`, where the truth is known.
    """
    common = {
        "version": VERSION,
        "benchmark": sha256,
        "networks": {name: network.what for name, network in networks.items()},
        "buckets": [list(config.prepare.landscape), list(config.prepare.portrait)],
        "latents": [config.model.num_video_latents, config.model.num_videoref_latents],
        **{name: config[name].to_dict() for name in _READ},
        **stated(config, OF_SAMPLES),
    }

    def task(pair: Pair) -> Task:
        folder = output / "samples" / pair.sample.key
        opening = None if openings is None else openings[pair.sample.key]

        def read() -> Material:
            inside = benchmark_inputs.write(pair, output / "inputs")
            return _read(pair, inside, folder, studio, config, opening)

        about = {"sample": benchmark_inputs.made_from(pair)}
        if opening is not None:
            about["truth"] = hashlib.sha256(opening.tobytes()).hexdigest()[:16]
        return Task(folder, pair.sample.key, common | about, read)

    return [task(pair) for pair in pairs]


def available(
    benchmark: Benchmark,
    media_folder: Path,
    output: Path,
    allow_missing: bool,
    tell: bool,
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs whose footage is there, and why each other one is left out.

    `tell`: both are printed, and what is missing is written to `output`. InputError:
    something is missing and that is not allowed, or everything is.
    """
    places, missing = benchmark_media.find(benchmark, media_folder)
    pairs, left_out = benchmark_inputs.locate(benchmark, places)
    listed = len(benchmark.samples)
    if tell:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "missing.json", json.dumps(left_out, indent=1))
        for span in missing:
            print(f"missing: {span.video_id}  {span.url}")
        for pair in pairs:
            for remark in (*pair.reference.remarks, *pair.target.remarks):
                print(f"differs: {pair.sample.key}: {remark}")
        print(f"{len(pairs)} of {listed} pairs of {benchmark.name} can be scored")
    if left_out and not (allow_missing and pairs):
        key, reason = next(iter(left_out.items()))
        raise InputError(
            f"--media {media_folder}: {len(left_out)} of {listed} pairs cannot be "
            f"scored ({key}: {reason}; all are in {output / 'missing.json'}); add what "
            "is missing, or score the others with --allow_missing"
        )
    return pairs, left_out


def describe_all(
    benchmark: Benchmark, pairs: Sequence[Pair], missing: dict[str, str], truth: bool
) -> dict[str, Any]:
    """The benchmark, as results name it. `truth`: mouths are held against it."""
    return {
        "name": benchmark.name,
        "sha256": benchmark.sha256,
        "samples": len(benchmark.samples),
        "complete": len(pairs) == len(benchmark.samples),
        "missing": missing,
        "truth": truth,
    }


def studio(codec: Codec, pairs: Sequence[Pair], config: ConfigDict) -> Studio:
    """What reads the samples of these pairs. The text network is gone afterwards."""
    speech, text = readers.load_speech(config), readers.load_text(config)
    features.check(features.Readers(speech, text), config)
    nothing, negative = text.read(""), text.read(config.text.negative)
    captions = {
        caption: inputs.Captions(text.read(caption), nothing, negative)
        for caption in {pair.sample.caption for pair in pairs}
    }
    networks = config.networks
    finders = detectors.load(networks.face_detector, networks.person_detector)
    return Studio(codec, speech, finders, captions)


def describe(pair: Pair, config: ConfigDict) -> dict[str, Any]:
    """A pair, as results name it."""
    sample = pair.sample
    return {
        "key": sample.key,
        "target": sample.target.video_id,
        "reference": sample.reference.video_id,
        "person": sample.person,
        "kind": "as the benchmark pairs them",
        "caption": sample.caption,
        "seconds": pair.target.frames / benchmark_media.FPS,
        "size": conditions.bucket_of(*pair.target.size, config.prepare),
        "remarks": [*pair.reference.remarks, *pair.target.remarks],
    }


def introduction(networks: dict[str, Network]) -> list[str]:
    """What the page says at its head."""
    return [
        "Every framed video was generated by a model from a reference of the person, a "
        "still of the target scene and speech. It is synthetic.",
        "Two clips are taken for one person's where pairs of the benchmark connect "
        "them, unless it names the person itself.",
        '"Still, repeated" never speaks; "Reference, copied" is the right person in '
        "the wrong place, saying something else.",
        f"Faces are judged by {networks['face'].what}; lips by "
        f"{networks['lipsync'].what}. Scores of these networks compare rows of this "
        "page, not papers.",
    ]


def _read_by(config: ConfigDict) -> str:
    """All of a config that `inputs.read` looks at."""
    latents = config.model.num_video_latents, config.model.num_videoref_latents
    names = (*_READ, "prepare", "wav2vec", "output")
    return json.dumps([latents, *(config[name].to_json() for name in names)])


def _read(
    pair: Pair,
    inside: Path,
    folder: Path,
    studio: Studio | None,
    config: ConfigDict,
    opening: Float[ndarray, " F"] | None,
) -> Material:
    wave = benchmark_media.sound(pair.target, RATE)
    told: Told | Refused = Refused("no checkpoint was given")
    plan, count, first = None, pair.target.frames, 0
    if studio is not None:
        told = Told(inside, studio)
        try:
            material = told.material(config)
            plan, count = material.plan, min(count, material.driving.written)
            first = conditions.SPAN * material.clips[0].window[0]
        except InputError as error:
            told = Refused(str(error))
    truth = benchmark_truth.read(pair, wave, count, first, config, opening)
    benchmark_truth.write_shown(folder, pair, truth, wave, config)

    def latents() -> ndarray:
        pixels = truth.frames[None].astype(np.float32) / 127.5 - 1
        whole = generate.num_frames(count) - count
        pixels = np.pad(pixels, [(0, 0), (0, whole), *[(0, 0)] * 3], mode="edge")
        step = generate.even_step(pixels.shape[1] // 4 + 1, config.output)
        found = encode_stream(studio.codec, [pixels], step=step)
        return np.concatenate([np.asarray(part[0]) for part in found])

    spoken = wave[: count * RATE // benchmark_media.FPS]
    sample = pair.sample
    return Material(told, plan, truth, latents, spoken, sample.index, sample.key)
