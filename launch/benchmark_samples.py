"""A benchmark's pairs as tasks of an evaluation: what is true of them, what is told.

What is true is `benchmark_truth`'s. A checkpoint reads the sample folder
(`benchmark_inputs`) as launch.generate does, so that its video is the one that command
makes of it, but for the seed's noise.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from launch.held_out import Material
from launch.score_rows import Task, write_text
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.vae_stream import encode_stream
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.evaluation.benchmark import VERSION, Network

_READ = ("networks", "speech", "text", "chunks")  # sections that samples are read by


class Studio(NamedTuple):
    """What reads samples for checkpoints."""

    codec: Codec
    speech: SpeechReader
    finders: Detectors
    captions: dict[str, inputs.Captions]


class Told:
    """What a checkpoint is told of one sample: all of it, or a protocol's part."""

    def __init__(self, folder: Path, studio: Studio, hidden: bool = False):
        self.folder, self.studio, self.hidden = folder, studio, hidden
        self.known: dict[str, inputs.Material] = {}  # by what it was read by

    def under(self, folder: Path | None, hidden: bool) -> "Told":
        """The same with the reference of another sample folder, or with none."""
        told = Told(folder or self.folder, self.studio, hidden)
        if folder is None:
            told.known = self.known
        return told

    def material(self, config: ConfigDict) -> inputs.Material:
        """The sample, read once. InputError: a checkpoint cannot read it."""
        by = _read_by(config)
        if by not in self.known:
            self.known[by] = self._material(config)
        return self.known[by]

    def _material(self, config: ConfigDict) -> inputs.Material:
        sample = samples.from_folders([str(self.folder)], "")[0]
        with contextlib.redirect_stdout(io.StringIO()):  # meant for a single video
            return inputs.read(
                sample, self.studio.speech, self.studio.finders, None, config
            )

    def __call__(self, checkpoint: checkpoints.Checkpoint) -> generate.Request:
        """The request. InputError: as `material`."""
        material = self.material(checkpoint.config)
        sample = samples.from_folders([str(self.folder)], "")[0]
        null = checkpoints.null_reference_audio(checkpoint)
        made = inputs.request(
            self.studio.codec,
            material,
            self.studio.captions[sample.caption],
            null,
            checkpoint.config,
        )
        if not self.hidden:
            return made
        return made._replace(
            reference=np.zeros_like(made.reference),
            reference_tokens=np.zeros_like(made.reference_tokens),
            reference_audio=None,
        )


class Refused:
    """What nothing can be made from, whatever is shown of it, and why."""

    def __init__(self, reason: str):
        self.reason = reason

    def under(self, folder: Path | None, hidden: bool) -> "Refused":
        """The same."""
        return self

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
) -> list[Task]:
    """One task a pair. Without a `studio` nothing can be generated, only scored."""
    common = {
        "version": VERSION,
        "benchmark": sha256,
        "networks": {name: network.what for name, network in networks.items()},
        "buckets": [list(config.prepare.landscape), list(config.prepare.portrait)],
        "latents": [config.model.num_video_latents, config.model.num_videoref_latents],
        **{name: config[name].to_dict() for name in _READ},
    }

    def task(pair: Pair) -> Task:
        folder = output / "samples" / pair.sample.key

        def read() -> Material:
            inside = benchmark_inputs.write(pair, output / "inputs")
            return _read(pair, inside, folder, studio, config)

        about = {"sample": benchmark_inputs.made_from(pair)}
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
    benchmark: Benchmark, pairs: Sequence[Pair], missing: dict[str, str]
) -> dict[str, Any]:
    """The benchmark, as results name it."""
    return {
        "name": benchmark.name,
        "sha256": benchmark.sha256,
        "samples": len(benchmark.samples),
        "complete": len(pairs) == len(benchmark.samples),
        "missing": missing,
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
    pair: Pair, inside: Path, folder: Path, studio: Studio | None, config: ConfigDict
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
    truth = benchmark_truth.read(pair, wave, count, first, config)
    benchmark_truth.write_shown(folder, pair, truth, wave, config)

    def latents() -> ndarray:
        pixels = truth.frames[None].astype(np.float32) / 127.5 - 1
        step = config.output.decode_latents
        whole = generate.num_frames(count) - count
        pixels = np.pad(pixels, [(0, 0), (0, whole), *[(0, 0)] * 3], mode="edge")
        found = encode_stream(studio.codec, [pixels], step=step)
        return np.concatenate([np.asarray(part[0]) for part in found])

    spoken = wave[: count * RATE // benchmark_media.FPS]
    sample = pair.sample
    return Material(told, plan, truth, latents, spoken, sample.index, sample.key)
