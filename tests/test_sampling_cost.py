"""What a video is said to cost is what the sampler's programs multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_flops import count
from test_generate import MESH, _request

from configs import cross_scene
from launch import build
from tavr_jax.diffusion import chunks
from tavr_jax.evaluation import generate, sampling_cost
from tavr_jax.models.transformer import TransformerConfig


class Counting:
    """A sampler that runs nothing, and counts the products of what it would run."""

    def __init__(self, config, settings):
        graph, self.params = nnx.split(build.abstract_transformer(config), nnx.Param)
        self.programs = {}
        self.told, self.total = (graph, settings, MESH, 1), 0

    def prefill(self, weights, conditions):
        return self.run(generate.programs(*self.told).prefill, conditions)

    def denoise(self, weights, noise, conditions, negative, cache, still):
        run = generate.programs(*self.told, still).denoise
        return self.run(run, noise, conditions, negative, cache)

    def run(self, program, *given):
        with jax.set_mesh(MESH):
            self.total += count(program, self.params, *given)
            shapes = jax.eval_shape(program, self.params, *given)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.fixture(scope="module")
def config():
    config = cross_scene.get_config("tiny")
    config.model.num_videoref_latents = 16  # 64 tokens: room for a part of them
    return config


def cost(config, valid, spans, scales=(1.0, 1.5)):
    """What is said, what is counted, and places of the reference."""
    config = config.copy_and_resolve_references()
    config.sampler.text_scale, config.sampler.audio_scale = scales
    settings = generate.SamplerConfig(**config.sampler)
    plan = chunks.plan(1 + 4 * (4 + 3 * (spans - 1)), 5, 2, 4)
    assert len(plan.spans) == spans
    request = _request(config, frames=plan.frames)
    tokens = np.arange(64).reshape(16, 2, 2) < valid
    request = request._replace(reference_tokens=tokens)
    model = TransformerConfig(**config.model)
    counting = Counting(config, settings)
    sampler = generate.Sampler(counting.prefill, counting.denoise)
    generate.latents(sampler, None, request, plan, jax.random.key(0))
    said = sampling_cost.flops(model, settings, request, plan)
    places = sampling_cost.places(request, plan)
    return said, counting.total, places.reference


@pytest.mark.parametrize(
    ("valid", "spans", "scales", "places"),
    [
        (10, 1, (1.0, 1.5), 16),
        (17, 2, (5.0, 1.8), 32),
        (64, 1, (1.0, 1.0), 64),
    ],
)
def test_a_video_costs_every_product_of_its_programs(
    config, valid, spans, scales, places
):
    said, counted, kept = cost(config, valid, spans, scales)
    assert kept == places
    assert said == counted > 0
