"""The codec's columns over eight devices: the same numbers, and only edges are sent.

More layouts: pytest -m slow tests/test_vae_sharded.py
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.vae_stream import decode_stream, encode_stream
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@functools.cache
def codec(base_dim: int = 4):
    """No weight of it is zero, as after training."""
    config = apply(get_config(), "tiny").codec
    config.base_dim, config.num_res_blocks = base_dim, 1
    graph, params = nnx.split(Codec(CodecConfig(**config), rngs=nnx.Rngs(0)))
    rng, scale = np.random.default_rng(1), 0.4 / base_dim**0.5
    return graph, jax.tree.map(
        lambda w: w + scale * rng.standard_normal(w.shape, np.float32), params
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(graph, params, frames):
    return nnx.merge(graph, params).encode(frames)


@functools.partial(jax.jit, static_argnums=0)
def decode(graph, params, latents):
    return nnx.merge(graph, params).decode(latents)


def mesh_of(*shape: int):
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def video(batch: int, rows: int, columns: int) -> np.ndarray:
    shape = (batch, 5, rows, columns, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "batch", "columns", "base_dim"),
    [
        ((1, 1, 8, 1), 1, 40, 4),  # 5 columns of latents: three devices hold none
        ((2, 1, 2, 2), 2, 48, 4),  # the batch takes data; 6 over 4: 2 2 2 0
        slow((1, 2, 2, 2), 1, 64, 4),  # no axis is the batch's; even
        slow((1, 1, 3, 1), 1, 88, 4),  # 11 over 3: 4 4 3
        slow((1, 1, 2, 1), 1, 256, 32),  # in Winograd's form
        slow((1, 8, 1, 1), 8, 40, 4),  # the batch takes all
        slow((1, 1, 2, 1), 1, 44, 4),  # no whole number of latents: not split
    ],
)
def test_devices_of_one_video_are_one_device(shape, batch, columns, base_dim):
    graph, params = codec(base_dim)
    frames = video(batch, 24, columns)
    latents = encode(graph, params, frames)
    decoded = decode(graph, params, latents)
    with jax.set_mesh(mesh_of(*shape)):
        np.testing.assert_allclose(encode(graph, params, frames), latents, atol=5e-5)
        found = decode(graph, params, latents)
    np.testing.assert_allclose(found, decoded, atol=5e-5)


@pytest.mark.parametrize("columns", [40, slow(64)])
def test_a_stream_over_devices_is_the_stream_of_one(columns):
    graph, params = codec()
    made, frames = nnx.merge(graph, params), video(1, 16, columns)
    latents = encode(graph, params, frames)
    decoded = decode(graph, params, latents)
    way = {"step": 1, "mesh": mesh_of(1, 1, 8, 1)}
    found = list(encode_stream(made, [frames], **way))
    blocks = list(decode_stream(made, [latents], **way, dtype=jnp.float32))
    assert jax.sharding.get_abstract_mesh().empty
    assert all(x.sharding.is_fully_replicated for x in (*found, *blocks))
    np.testing.assert_allclose(np.concatenate(found, axis=1), latents, atol=5e-5)
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), decoded, atol=5e-5)


def test_edges_are_sent_and_memory_is_shared():
    """Compiled: what travels is a column or two, attention's keys and values, and of
    the rest of the program an eighth is on each device."""
    graph, params = codec()
    latents = jnp.zeros((1, 2, 8, 64, 16))
    one = decode.lower(graph, params, latents).compile()
    with jax.set_mesh(mesh_of(1, 1, 8, 1)):
        eight = decode.lower(graph, params, latents).compile()
    sent = {}
    form = (
        r"= \w+\[([\d,]*)\]\S* (all-\w+|reduce-scatter|collective-permute)(?:-start)?\("
    )
    for sizes, kind in re.findall(form, eight.as_text()):
        sent.setdefault(kind, []).append(math.prod(map(int, sizes.split(","))))
    assert set(sent) == {"collective-permute", "all-gather"}
    assert sent["all-gather"] == [2 * 8 * 64 * 32]  # keys and values of both latents
    assert len(sent["collective-permute"]) > 30
    # of 64 rows, 8 frames with the past, 8 channels at most
    assert max(sent["collective-permute"]) <= 64 * 8 * 8
    temporary = [x.memory_analysis().temp_size_in_bytes for x in (one, eight)]
    assert temporary[1] < temporary[0] / 6
