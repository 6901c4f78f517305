"""Checkpoints as rows of an evaluation: sampled, decoded, and what that cost."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax

from launch import checkpoints
from launch.held_out import (
    OF_CHECKPOINTS,
    OF_SAMPLES,
    Material,
    Video,
    Way,
    field,
    stated,
)
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate, sampling_cost
from tavr_jax.models.transformer import TransformerConfig
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

SECTIONS = ("codec", "speech", "text", "face", "lipsync", "networks", "wav2vec")
# What the samples of an evaluation are read and scored by, once for all its rows.
_SHARED = (
    *SECTIONS,
    *("model.num_video_latents", "model.num_videoref_latents"),
    *("chunks.motion_latents", "chunks.canvas_tail"),
    *("prepare.landscape", "prepare.portrait", *OF_SAMPLES),
)


def check_alike(loaded: Sequence[checkpoints.Checkpoint]) -> None:
    """InputError: checkpoints whose samples would not be the same ones."""
    for other in loaded[1:]:
        for name in _SHARED:
            one, another = (field(of.config, name) for of in (loaded[0], other))
            if one == another:
                continue
            remedy = "compare them in runs of their own"
            if "." in name:
                remedy += f", or set it for all of them: --config.{name}={one}"
            raise InputError(
                f"--checkpoint {other.path}: its config.{name} differs from that of "
                f"{loaded[0].path}; {remedy}"
            )


def ours(
    loaded: Sequence[checkpoints.Checkpoint],
    codec: Codec,
    output: generate.OutputConfig,
    seeds: int = 1,
) -> list[Way]:
    """A row for every checkpoint; one compiled sampler for all of one size.

    A row is `seeds` draws: of its config's seed, and of those that follow it.
    """
    samplers: dict[Any, generate.Sampler] = {}
    ran: dict[Any, set] = defaultdict(set)
    ways: list[Way] = []
    names = [checkpoint.config.name for checkpoint in loaded]
    for checkpoint in loaded:
        config = checkpoint.config
        settings = generate.SamplerConfig(**config.sampler)
        mesh = make_mesh(MeshConfig(**config.parallel))
        kind = (checkpoint.graph, settings, mesh)
        if kind not in samplers:
            samplers[kind] = generate.sampler(*kind)
        name = config.name
        if names.count(name) > 1:
            name = f"{name} ({checkpoint.path})"
        model = config.model  # fields that change what the same weights make
        reads = {
            "attention": [model.reference_attention, model.reference_window],
            **stated(config, OF_CHECKPOINTS),
        }
        row = re.sub(r"\W+", "_", f"{name}_{checkpoint.fingerprint[:6]}")
        for draw in range(seeds):
            seed = config.seed + draw
            tags = checkpoints.provenance(
                checkpoint, fingerprint(codec), settings, seed
            )
            way = Way(
                name=name,
                slug=f"{row}_seed{seed}" if draw else row,
                make=_maker(checkpoint, samplers[kind], ran[kind], seed, codec, output),
                made_with=tags | {"sampler": config.sampler.to_dict()} | reads,
                tags=tags,
                family=name,
                stage=config.stage,
                attention=model.reference_attention,
                draw=draw,
                first=row,
            )
            ways.append(way)
    return ways


def _maker(
    checkpoint: checkpoints.Checkpoint,
    sampler: generate.Sampler,
    ran: set,
    seed: int,
    codec: Codec,
    output: generate.OutputConfig,
) -> Callable[[Material], Video]:
    """`Way.make` of a checkpoint. `ran`: which programs of the sampler have run."""
    model = TransformerConfig(**checkpoint.config.model)
    settings = generate.SamplerConfig(**checkpoint.config.sampler)

    def make(sample: Material) -> Video:
        key = jax.random.fold_in(jax.random.key(seed), sample.index)
        request, plan = sample.request(checkpoint), sample.plan
        program = sampling_cost.places(request, plan), request.audio.shape
        begin = time.perf_counter()
        latents = generate.latents(sampler, checkpoint.weights, request, plan, key)
        jax.block_until_ready(latents)
        seconds = time.perf_counter() - begin
        cost = {
            "gflops": sampling_cost.flops(model, settings, request, plan) / 1e9,
            # the first time it may have been compiled
            "seconds": seconds if program in ran else None,
        }
        ran.add(program)
        count = sample.frames or len(sample.truth.frames)
        return Video(generate.decode(codec, latents, count, output), joins(plan), cost)

    return make


def joins(plan: chunks.Plan) -> list[int]:
    """The first frames of a plan's chunks but the first: latent n begins at 4n - 3."""
    return [chunks.FRAMES_PER_LATENT * (span.start - 1) + 1 for span in plan.spans[1:]]
