"""What one training step works through, for throughput and utilisation."""

import dataclasses

import jax
from ml_collections import ConfigDict

from data_pipelines import transforms
from launch.stages import PAIRED
from launch.start import Start
from tavr_jax.models import flops
from tavr_jax.models.transformer import TransformerConfig
from tavr_jax.parallel.chips import peak_flops
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training.report import Work

PIXELS = 8  # along each axis of one latent


def of(config: ConfigDict, start: Start) -> Work:
    """Of the transformer's stages; the frozen networks' own stages count samples.

    Decoding and judging rollouts are not counted: utilisation is of the transformer.
    """
    samples = config.data.batch_size
    if config.stage not in PAIRED:
        return Work(samples, None, None, None)
    model = TransformerConfig(**config.model)
    longest = transforms.lengths(config).reference  # shorter ones are padded to it
    model = dataclasses.replace(model, num_videoref_latents=longest)
    rows, columns = config.prepare[config.data.orientation]
    sizes = flops.sizes(model, rows // PIXELS, columns // PIXELS)
    calls, members = flops.FLOW, 1
    if config.stage == "policy":
        policy = PolicyConfig(**config.policy)
        calls, members = flops.policy_calls(policy), policy.group_size
    peaks = [peak_flops(device) for device in jax.devices()]
    return Work(
        samples=samples * members,
        tokens=samples * members * flops.target_tokens(sizes),
        flops=flops.step(model, sizes, samples, calls, _trained(config, start)),
        peak=None if None in peaks else sum(peaks),
    )


def _trained(config: ConfigDict, start: Start) -> float:
    """Share of the transformer's weights that have a gradient."""
    if config.optimizer.trainable == "lora":
        return 0.0
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(part))
        for part in (start.abstract, start.frozen)
    )
    return trained / (trained + frozen)
