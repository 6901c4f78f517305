"""A reference video, a still of the target scene and speech -> a talking video.

    python -m launch.generate --reference ref.mp4 --target scene.png \\
        --audio speech.wav --caption "..." --checkpoint CKPT --output out.mp4
    python -m launch.generate --sample-dir DIR[,DIR...] --checkpoint CKPT \\
        --output-dir OUT

CKPT is a workdir of launch.train (its config and averaged weights are used; override
fields as --config.sampler.steps=16), or mini, the last stage that the package carries
(launch/shipped.py), or published weights: a .safetensors file, the index of several, or
a name on the Hugging Face hub such as HeyGenAI/TAVR; those are of the official size
unless --config says otherwise. A sample folder holds ref.mp4,
target.png, target_caption.json and target.mp3 or target.wav; a folder of such folders
is all of them. Every flag of the release's infer.py is understood.

The video is as long as the speech, whatever its length, and says in its metadata that
it is synthetic. A run that was killed goes on at the chunk it was in.
"""

import json
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines import detectors, features, video_files
from data_pipelines.features import SpeechReader
from launch import (
    build,
    checkpoints,
    cli,
    distributed,
    generate_flags,
    inputs,
    readers,
    samples,
)
from launch.generate_progress import Progress
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.evaluation.unfinished import Unfinished, digest
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

cli.config_flag("configs/cross_scene.py:mini")


def main() -> None:
    """Read everything of a sample, then load, sample, decode and write."""
    distributed.alone("launch.generate")
    cli.enable_compilation_cache()
    wanted, box = generate_flags.wanted(), generate_flags.person_box()
    path = checkpoints.find(generate_flags.checkpoint())
    config = checkpoints.config_of(path, *checkpoints.flag_config())
    generate_flags.apply(config)
    finders = detectors.load(
        config.networks.face_detector, config.networks.person_detector
    )
    speech = readers.load_speech(config)
    first = inputs.read(wanted[0], speech, finders, box, config)
    captions = _read_captions(wanted, speech, config)
    studio = _Studio(path, config, generate_flags.seed(config))
    failed = []
    for number, sample in enumerate(wanted):
        try:
            material = first
            if number:
                material = inputs.read(sample, speech, finders, box, config)
            studio.make(sample, material, captions[sample.caption])
        except InputError as error:
            if len(wanted) == 1:
                raise
            print(f"error: {error}", file=sys.stderr)
            failed.append(sample)
        first = material = None
    if failed:
        raise InputError(
            f"--sample-dir: {len(failed)} of {len(wanted)} samples could not be made, "
            "see above; the others are there"
        )


class _Studio:
    """Everything that is loaded once and makes one video after another."""

    def __init__(self, path: Path, config: ConfigDict, seed: int):
        self.config, self.seed = config, seed
        self.settings = generate.SamplerConfig(**config.sampler)
        self.output = generate.OutputConfig(**config.output)
        self.checkpoint = checkpoints.load(path, config)
        self.codec = build.codec(config)
        self.took: float | None = None  # seconds of the last chunk
        self.mesh = make_mesh(MeshConfig(**config.parallel))
        self.sampler = generate.sampler(self.checkpoint.graph, self.settings, self.mesh)
        codec = fingerprint(self.codec)
        self.tags = checkpoints.provenance(
            self.checkpoint, codec, self.settings, self.seed
        )
        # all that a chunk depends on, besides what is asked for
        self.facts = self.tags | {
            name: json.dumps(config[name].to_dict())
            for name in ("model", "chunks", "sampler")
        }

    def make(
        self,
        sample: samples.Sample,
        material: inputs.Material,
        captions: inputs.Captions,
    ) -> None:
        """One video, from what was read to the file."""
        config, plan = self.config, material.plan
        null = checkpoints.null_reference_audio(self.checkpoint)
        request = inputs.request(
            self.codec, material, captions, null, config, self.mesh
        )
        kept = Unfinished(
            sample.output.with_name(f".{sample.output.name}.unfinished"),
            self.facts | {"request": digest(request), "frames": str(plan.frames)},
        )
        written, fps = material.driving.written, config.speech.fps
        print(_plan_line(config.name, material, self.settings, self.seed, len(kept)))
        progress = Progress(len(plan.spans), len(kept), self.took)
        pieces = generate.pieces(
            self.sampler,
            self.checkpoint.weights,
            request,
            plan,
            jax.random.key(self.seed),
            kept,
        )
        with progress:
            frames = generate.frames(
                self.codec,
                progress.watched(pieces),
                written,
                self.output,
                self.mesh,
            )
            video_files.write_video(
                sample.output,
                frames,
                fps,
                sound=sample.audio,
                crf=self.output.crf,
                metadata=self.tags,
            )
        self.took = progress.took
        kept.remove()
        rows, columns = material.target.still.shape[:2]
        print(
            f"{sample.output}: {written} frames of {columns}x{rows}, "
            f"{written / fps:.2f} s"
        )


def _read_captions(
    wanted: list[samples.Sample], speech: SpeechReader, config: ConfigDict
) -> dict[str, inputs.Captions]:
    """Rows of every caption. The text network is gone when this returns: it and the
    transformer need not fit into memory together."""
    reader = readers.load_text(config)
    features.check(features.Readers(speech, reader), config)
    nothing, negative = reader.read(""), reader.read(config.text.negative)
    return {
        caption: inputs.Captions(reader.read(caption), nothing, negative)
        for caption in {sample.caption for sample in wanted}
    }


def _plan_line(
    name: str,
    material: inputs.Material,
    settings: generate.SamplerConfig,
    seed: int,
    kept: int,
) -> str:
    plan = material.plan
    ends = (min(span.stop, plan.latents) - 1 for span in plan.spans[:4])
    spans = ", ".join(f"{s.start}-{e}" for s, e in zip(plan.spans, ends, strict=False))
    more = f" ... {plan.latents - 1}" if len(plan.spans) > 4 else ""
    again = f", {kept} of them kept from a run that was stopped" if kept else ""
    return (
        f"{name}: {material.driving.written} frames in {plan.latents} latents, "
        f"{len(plan.spans)} chunk(s) of {plan.size} (latents {spans}{more}), "
        f"{settings.steps} steps each, seed {seed}{again}"
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
