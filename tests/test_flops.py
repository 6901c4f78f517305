"""Counted FLOPs are those of the program: every matrix product of its jaxpr."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_rl import policy
from test_training import ADAM, NO_DROPS

from configs import same_scene
from launch import build
from tavr_jax.diffusion.guidance import Network
from tavr_jax.models import flops
from tavr_jax.models.transformer import TransformerConfig
from tavr_jax.parallel import chips
from tavr_jax.training import optimizer
from tavr_jax.training.policy import make_step
from tavr_jax.types import Batch, Conditions


def dots(jaxpr) -> int:
    """2 m n k of every product, bodies of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        assert name not in ("while", "conv_general_dilated", "pallas_call"), name
        if name == "dot_general":
            (left, _), _ = params["dimension_numbers"]
            shared = np.prod([equation.invars[0].aval.shape[i] for i in left])
            total += 2 * int(shared) * int(np.prod(equation.outvars[0].aval.shape))
        times = params["length"] if name == "scan" else 1
        for value in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                total += times * dots(getattr(value, "jaxpr", value))
    return total


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def count(function, *arguments) -> int:
    return dots(jax.make_jaxpr(function)(*arguments).jaxpr)


def abstract_batch(c: TransformerConfig, rows: int, columns: int, samples: int):
    """Shapes of a `Batch`."""

    def of(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((samples, *shape), dtype)

    grid = rows, columns
    tokens = rows // 2, columns // 2
    frames, reference = 4 * c.num_video_latents - 3, c.num_videoref_latents
    conditions = Conditions(
        still=of(1, *grid, c.out_dim),
        still_tokens=of(*tokens, dtype=bool),
        motion=of(2, *grid, c.out_dim),
        has_motion=of(dtype=bool),
        reference=of(reference, *grid, c.out_dim),
        reference_tokens=of(reference, *tokens, dtype=bool),
        text=of(c.text_len, c.text_dim),
        null_text=of(c.text_len, c.text_dim),
        audio=of(frames, c.audio_dim),
        has_audio=of(dtype=bool),
        reference_audio=of(4 * reference, c.videoref_audio_dim),
        has_reference_audio=of(dtype=bool),
    )
    return Batch(
        latents=of(c.num_video_latents, *grid, c.out_dim),
        conditions=conditions,
        faces=of(2, 8, 8, 3, dtype=jnp.uint8),
        face_box=of(frames, 4),
        mel=of(frames, 4),
        clip=of(dtype=jnp.int32),
    )


@functools.cache
def made(size: str, **fields):
    """(config, graph, abstract parameters) of a transformer."""
    config = same_scene.get_config(size)
    config.model.update(fields)
    graph, params = nnx.split(build.abstract_transformer(config), nnx.Param)
    return TransformerConfig(**config.model), graph, params


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ("tiny", {}),
        ("tiny", {"still_bucket": 3, "reference_bucket": 5, "remat": "full"}),
        ("tiny", {"reference_bucket": 5, "reference_attention": "frame"}),
        ("mini", {"reference_attention": "window", "reference_window": 1}),
        # 64 x 10 tokens: attention in two tiles
        ("mini", {}),
        # 70 and 2 whole tiles: filled ones would count
        ("tavr_14b", {"still_bucket": 560, "reference_bucket": 1024}),
    ],
)
def test_forward_is_every_product_of_the_program(size, fields):
    c, graph, params = made(size, **fields)
    rows, columns = {"tiny": (4, 4), "mini": (16, 16)}.get(size, (60, 112))
    batch = abstract_batch(c, rows, columns, 2)
    sizes = flops.sizes(c, rows, columns)

    def prefill(params, conditions):
        return nnx.merge(graph, params).prefill(conditions)

    def main(params, latents, time, conditions, cache):
        return nnx.merge(graph, params)(latents, time, conditions, cache)

    conditions = batch.conditions
    cache = jax.eval_shape(prefill, params, conditions)
    assert cache.keys.shape[2] == sizes.reference
    time = jax.ShapeDtypeStruct((2,), jnp.float32)
    found = count(prefill, params, conditions)
    assert 2 * flops.prefill(c, sizes).total == found
    found = count(main, params, batch.latents, time, conditions, cache)
    assert 2 * flops.main(c, sizes).total == found


def test_a_learned_pass_is_three_forwards():
    """But for gradients that nobody asks for: of raw features, time and pixels."""
    c, graph, params = made("mini")
    batch = abstract_batch(c, 12, 12, 1)

    def loss(params, frozen, batch):
        model = nnx.merge(graph, params, frozen)
        cache = model.prefill(batch.conditions)
        time = jnp.ones(batch.latents.shape[0])
        return model(batch.latents, time, batch.conditions, cache).sum()

    sizes = flops.sizes(c, 12, 12)
    everything = count(jax.grad(loss), params, nnx.State({}), batch)
    # the backward pass of attention makes its scores again: not of the model
    streams = flops.prefill(c, sizes), flops.main(c, sizes)
    again = sum(parts.unweighted for parts in streams) / 2
    np.testing.assert_allclose(flops.step(c, sizes, 1) + again, everything, rtol=0.01)

    def is_norm(path, _):
        return any("norm" in str(name) for name in path)

    norms, frozen = nnx.split_state(params, is_norm, ...)
    nearly_nothing = count(jax.grad(loss), norms, frozen, batch)
    few = flops.step(c, sizes, 1, trained=0.0)
    assert few < 0.8 * flops.step(c, sizes, 1)
    np.testing.assert_allclose(few + again, nearly_nothing, rtol=0.02)


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_policy_calls_are_those_of_the_step(algorithm, guided, kl):
    """Counted on a network whose two products can be told apart by their size."""
    config = dataclasses.replace(
        policy(),
        algorithm=algorithm,
        group_size=4,
        steps=5,
        stochastic_steps=2,
        updates=3,
        kl_weight=kl,
        audio_scale=1.5 if guided else 1.0,
        text_scale=2.0 if guided else 1.0,
    )
    width, samples = 1000, 2
    c = dataclasses.replace(made("tiny")[0], out_dim=1)
    batch = abstract_batch(c, 4, 4, samples)

    def network(params):
        def prefill(conditions):
            return jnp.ones((conditions.has_audio.shape[0], width)) @ params["prefill"]

        def velocity(latents, timestep, conditions, cache):
            members = len(latents) // len(cache)
            read = jnp.repeat(cache, members, axis=0) * latents.mean((1, 2, 3))
            return latents + (read @ params["main"])[:, :, None, None, None]

        return Network(prefill, velocity)

    def reward(latents, batch, key):
        mean = latents.mean((1, 2, 3, 4))
        return {name: mean for name in config.weights}

    params = {
        "prefill": jax.ShapeDtypeStruct((width, 1), jnp.float32),
        "main": jax.ShapeDtypeStruct((1, 1), jnp.float32),
    }
    state = jax.eval_shape(
        functools.partial(optimizer.create_state, config=ADAM), params
    )

    def step(reference, state, batch):
        made = make_step(network, reward, reference, config, NO_DROPS, ADAM)
        return made(state, batch, jax.random.key(0))

    calls = flops.policy_calls(config)
    # prefill: 2 x 1000, no gradient of its input; main: 2, gradients of both sides
    once = 2 * width * (calls.prefills + 2 * calls.learned_prefills)
    once += 2 * (calls.mains + 3 * calls.learned_mains)
    assert count(step, params, state, batch) == samples * once


def test_wan_14b_is_what_others_count():
    """MaxDiffusion logs 4893.27 TFLOP for 3/4 of a 720 x 1280, 81-frame forward."""
    c = made("tavr_14b")[0]
    grid = (90, 160)
    sizes = flops.sizes(c, *grid)._replace(still=0, reference=0)
    parts = flops.main(c, sizes)
    video = parts.total - parts.audio - parts.audio_scores
    np.testing.assert_allclose(video / 1e12, 4893.27 * 4 / 3, rtol=2e-3)
    assert flops.target_tokens(sizes) == 75_600


def test_an_unknown_device_has_no_peak():
    assert chips.peak_flops(jax.devices("cpu")[0]) is None
    device = mock.Mock(spec=jax.Device)
    device.device_kind = "NVIDIA H100 80GB HBM3"
    assert 900e12 < chips.peak_flops(device) < 1000e12  # without sparsity
    device.device_kind = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert chips.peak_flops(device) is None
