"""Arithmetic of every job of launch.plan, all devices together (models/flops.py,
encoders/vae_flops.py).

Of stage 3 that of its rewards is left out, both from `flops` and `executed`: decoding
and judging the samples. The bound of compute is then lower than it could be."""

import dataclasses
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import transforms
from launch import build, plan_program, work
from tavr_jax.encoders import vae_flops
from tavr_jax.models import flops
from tavr_jax.models.transformer import TransformerConfig
from tavr_jax.parallel import sharding
from tavr_jax.rl.rollout import PolicyConfig


class Effort(NamedTuple):
    """Of one call of a program."""

    tokens: int | None  # of video, that it works on; None: it has no transformer
    flops: float  # of the model
    executed: float  # with what is computed again or twice


def of(config: ConfigDict, job: str, program: str, mesh: Mesh) -> Effort:
    """Of the program `program` of `job`."""
    if program == "decoder":
        return _decoder(config)
    model = TransformerConfig(**config.model)
    if job == "train":
        return _train(config, model, mesh)
    if job == "generate":
        return _generate(config, program == "prefill", mesh)
    rows, columns = (n // plan_program.PIXELS for n in plan_program.size(config))
    model = _longest(config, model)
    policy, samples = PolicyConfig(**config.policy), config.data.batch_size
    sizes, members = flops.sizes(model, rows, columns), policy.group_size
    calls = _forward(policy.steps, policy)
    calls = calls._replace(mains=members * calls.mains)
    done = flops.step(model, sizes, samples, calls)
    return Effort(samples * members * flops.target_tokens(sizes), done, done)


def _generate(config: ConfigDict, prefills: bool, mesh: Mesh) -> Effort:
    """One sample; devices that its branches do not fill compute copies, and a batch of
    branches prefills each of them (evaluation/generate.py)."""
    model, s = TransformerConfig(**config.model), config.sampler
    rows, columns = (n // plan_program.PIXELS for n in plan_program.size(config))
    sizes, calls = flops.sizes(model, rows, columns), _forward(s.steps, s)
    needed = calls.prefills if prefills else calls.mains // s.steps
    is_batch = s.branches == "batched" or (s.branches == "auto" and mesh.size > 1)
    asked = calls.mains // s.steps if is_batch else needed
    shares = sharding.batch_shares(mesh)
    computed = asked + -asked % shares if is_batch else asked * shares
    calls = calls._replace(**{"mains" if prefills else "prefills": 0})
    done = flops.step(model, sizes, 1, calls)
    return Effort(flops.target_tokens(sizes), done, done * computed / needed)


def _decoder(config: ConfigDict) -> Effort:
    """output.decode_latents latents in the middle of a video."""
    codec, size = build.abstract_judges(config).codec, plan_program.size(config)
    before = 9  # frames; from there on each latent costs the same
    after = before + 4 * config.output.decode_latents
    done = vae_flops.decode(codec, after, *size) - vae_flops.decode(
        codec, before, *size
    )
    return Effort(None, done, done)


def _train(config: ConfigDict, model: TransformerConfig, mesh: Mesh) -> Effort:
    effort = work.of(config, plan_program.start(config, mesh))
    if model.remat == "none":
        return Effort(effort.tokens, effort.flops, effort.flops)
    model = _longest(config, model)
    rows, columns = (n // plan_program.PIXELS for n in plan_program.size(config))
    sizes, calls = flops.sizes(model, rows, columns), flops.FLOW
    if config.stage == "policy":
        calls = flops.policy_calls(PolicyConfig(**config.policy))
    streams = (
        (flops.prefill(model, sizes), calls.learned_prefills),
        (flops.main(model, sizes), calls.learned_mains),
    )
    # of a block, all but what is kept: the output of self-attention
    kept = model.remat != "full"
    again = sum(n * (s.total - kept * s.scores) for s, n in streams)
    twice = config.data.batch_size * again
    return Effort(effort.tokens, effort.flops, effort.flops + twice)


def _longest(config: ConfigDict, model: TransformerConfig) -> TransformerConfig:
    longest = transforms.lengths(config).reference
    return dataclasses.replace(model, num_videoref_latents=longest)


def _forward(steps: int, scales) -> flops.Calls:
    """Calls of one sample under guidance, none of them learned from."""
    branches = 1 + (scales.audio_scale != 1) + (scales.text_scale != 1)
    return flops.Calls(1 + (scales.audio_scale != 1), branches * steps, 0, 0)
