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
from jax.sharding import NamedSharding
from test_transformer import CONFIG, conditions

from tavr_jax.models import tokens
from tavr_jax.models.attention_local import Nearby
from tavr_jax.models.attention_sharded import KeysValues, attend_all
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
        return (out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)).sum(), out

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
        (4, "window", (1, 1, 4, 1)),  # Ulysses
        # ring; a latent has fewer tokens than devices
        slow(4, "global", (1, 1, 8, 1)),
        slow(4, "frame", (1, 1, 4, 1)),  # Ulysses
        slow(2, "window", (1, 2, 4, 1)),  # ring
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


@pytest.mark.parametrize("near", [None, 1])
@pytest.mark.parametrize("heads", [4, 3])
def test_attention_on_devices_is_attention(heads, near):
    """Ulysses and ring, all or nearby, a reference of one sample for two or none."""
    mesh = make_mesh(MeshConfig(1, 2, 4, 1), jax.devices()[:8])
    layout = tokens.Layout(4, 3, 8, 0)  # 3 latents of 4 runs of 2 tokens
    pattern = None if near is None else Nearby(layout, near)
    rng = np.random.default_rng(0)

    def drawn(*shape) -> np.ndarray:
        return rng.standard_normal(shape).astype("f")

    arrays = tuple(drawn(2, 24, heads, 8) for _ in range(3))
    read = tuple(drawn(1, 8, heads, 8) for _ in range(2))
    valid = rng.random((2, 24)) < 0.7
    kept = np.arange(8)[None] < 5

    def loss(arrays, read):
        reference = None if pattern else KeysValues(*read, jnp.asarray(kept))
        own = KeysValues(*arrays[1:], jnp.asarray(valid))
        out, shown = attend_all(arrays[0], own, reference, pattern, "chunked")
        return (out * jnp.cos(out)).sum(), (out, shown)

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    expected = jax.device_get(jax.jit(run)(arrays, read))
    with jax.set_mesh(mesh):
        found = jax.device_get(jax.jit(run)(arrays, read))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_the_backward_pass_of_a_ring_keeps_its_own_tokens_only():
    """Four times the devices and tokens: what a device needs stays the same."""

    def needed(devices: int) -> int:
        mesh = make_mesh(MeshConfig(1, 1, devices, 1), jax.devices()[:devices])

        def loss(*qkv):
            own = KeysValues(*qkv[1:], jnp.ones(qkv[0].shape[:2], bool))
            return attend_all(qkv[0], own, None, None, "chunked")[0].sum()

        with jax.set_mesh(mesh):
            place = NamedSharding(mesh, sharding.spec("B", "N", "K", None))
            shape = (1, 512 * devices, 1, 64)
            x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
            compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert needed(8) < 1.05 * needed(2)


@pytest.mark.parametrize("heads", [4, slow(2)])
def test_a_cache_lives_where_it_is_read(heads):
    """Made on the mesh, held where `cache_specs` says, and bit by bit the reference."""
    config = dataclasses.replace(CONFIG, num_heads=heads)
    model = Transformer(config, rngs=nnx.Rngs(0))
    told, time = conditions(grid=4), jnp.array([311.0, 872.5])
    shape = (2, config.num_video_latents, 4, 4, 16)
    latents = jax.random.normal(jax.random.key(7), shape)
    mesh = make_mesh(MeshConfig(1, 2, 4, 1), jax.devices()[:8])
    with jax.set_mesh(mesh):
        cache = jax.jit(model.prefill)(told)
        for leaf, place in zip(cache, model.cache_specs(2), strict=True):
            place = NamedSharding(mesh, place)
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim), leaf.sharding
        heads_of_one = cache.keys.addressable_shards[0].data.shape[3]
        assert heads_of_one == (1 if heads == 4 else 2)
        found = jax.jit(model.__call__)(latents, time, told, cache)
        again = jax.jit(lambda *a: model(*a, model.prefill(a[2])))
        np.testing.assert_array_equal(found, again(latents, time, told))


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
    fields = {"dim": width, "ffn_dim": 64, "num_heads": 4, "remat": "full"}
    function, arguments, mesh = on(shape, grid, **fields)
    with jax.set_mesh(mesh):
        text = function.lower(*arguments).compile().as_text()
    samples, count = 2 // shape[1], CONFIG.num_videoref_latents * (grid // 2) ** 2
    large = [line for n, line in gathered(text) if n >= samples * count * width]
    assert gathered(text) and not large, large
    kind = "collective-permute" if shape[2] == 8 else "all-to-all"
    assert kind in text
    assert "nvoluntary" not in capfd.readouterr().err
