"""Tokens of one sample over devices: the same numbers, and little is sent.

More layouts: pytest -m slow tests/test_context.py
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_transformer import CONFIG, conditions

from tavr_jax.models.transformer import Transformer
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@functools.cache
def made(grid: int, **fields):
    """Loss of both streams, as a function of parameters and latents, and both."""
    config = dataclasses.replace(CONFIG, **fields)
    model = Transformer(config, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    # The output layers start at zero: then no gradient would reach the blocks.
    leaves = [x + 0.1 * rng.standard_normal(x.shape).astype("f") for x in leaves]
    told = conditions(grid=grid)
    latents = rng.standard_normal((2, config.num_video_latents, grid, grid, 16))

    def loss(params, latents, told):
        model = nnx.merge(graph, params)
        cache = model.prefill(told)
        out = model(latents, jnp.array([311.0, 872.5]), told, cache)
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).mean(), out

    params = jax.tree.unflatten(tree, leaves)
    return jax.value_and_grad(loss, (0, 1), has_aux=True), (
        params,
        latents.astype("f"),
        told,
    )


def on(shape: tuple[int, ...], grid: int, **fields):
    """(the jitted function, its arguments placed, the mesh): data, fsdp, ..."""
    function, (params, latents, told) = made(grid, **fields)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
    params = jax.device_put(params, sharding.parameters(mesh, params))
    rest = jax.device_put((latents, told), sharding.batch(mesh, 2))
    return jax.jit(function), (params, *rest), mesh


@functools.cache
def alone(**fields):
    function, arguments = made(4, **fields)
    return jax.device_get(jax.jit(function)(*arguments))


@pytest.mark.parametrize(
    ("heads", "read", "shape"),
    [
        (4, "frame", (1, 1, 4, 1)),  # Ulysses
        (4, "global", (1, 1, 8, 1)),  # ring; a latent has fewer tokens than devices
        slow(4, "global", (1, 2, 2, 2)),  # Ulysses of the heads that tensor leaves
        slow(2, "global", (1, 1, 2, 1)),  # Ulysses
        slow(2, "global", (1, 2, 4, 1)),  # ring
        slow(2, "frame", (1, 1, 8, 1)),  # ring
    ],
)
def test_devices_of_one_sample_are_one_device(heads, read, shape):
    fields = {"num_heads": heads, "reference_attention": read}
    function, arguments, mesh = on(shape, 4, **fields)
    with jax.set_mesh(mesh):
        (_, out), gradients = jax.device_get(function(*arguments))
    (_, expected), slopes = alone(**fields)
    np.testing.assert_allclose(
        out, expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 0.1))


def gathered(text: str) -> list[tuple[int, str]]:
    """Numbers in the result of each all-gather of a compiled program, and its line."""
    found = []
    for line in text.splitlines():
        made = re.search(r"= (.*?) all-gather(-start)?\(", line)
        for dims in re.findall(r"\w+\[([\d,]*)\]", made[1]) if made else ():
            found.append((math.prod(int(n) for n in dims.split(",") if n), line))
    return found


@pytest.mark.parametrize("shape", [slow((1, 1, 8, 1)), (1, 2, 4, 1)])
def test_no_activation_is_gathered(shape, capfd):
    """Weights are, and the latents; a stream of tokens would be the largest."""
    grid, width = 32, 64
    fields = {"dim": width, "ffn_dim": 64, "num_heads": 4, "remat": True}
    function, arguments, mesh = on(shape, grid, **fields)
    with jax.set_mesh(mesh):
        text = function.lower(*arguments).compile().as_text()
    samples, tokens = 2 // shape[1], CONFIG.num_videoref_latents * (grid // 2) ** 2
    large = [line for n, line in gathered(text) if n >= samples * tokens * width]
    assert not large, large
    kind = "collective-permute" if shape[2] == 8 else "all-to-all"
    assert kind in text
    assert "nvoluntary" not in capfd.readouterr().err
