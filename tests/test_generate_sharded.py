"""Generation on a mesh: the numbers of one device, a reference read once a video.

More layouts: pytest -m slow tests/test_generate_sharded.py
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from test_context import gathered
from test_generate import _request

from configs import cross_scene
from launch import bench_generate
from tavr_jax.diffusion import chunks, guidance, schedule
from tavr_jax.diffusion.sampler import unipc_sample
from tavr_jax.evaluation import generate, unfinished
from tavr_jax.models.transformer import ReferenceCache, Transformer, TransformerConfig
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = cross_scene.get_config("tiny")
SETTINGS = generate.SamplerConfig(
    steps=3,
    shift=5.0,
    text_scale=2.0,
    audio_scale=1.5,
    start_use_videoref_step=1,
    round_bf16=False,
    branches="auto",
)
PLAN = chunks.plan(29, CONFIG.model.num_video_latents, 2, 4)  # two chunks
KEY = jax.random.key(0)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@functools.cache
def network(**fields):
    """A graph and weights of any size but zero: a fresh head answers 0 to all."""
    config = TransformerConfig(**(CONFIG.model.to_dict() | {"num_heads": 4} | fields))
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(0)
    draw = lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32)  # noqa: E731
    return graph, jax.tree.map(draw, shapes)


def mesh_of(shape):
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def made(shape, **fields):
    """(sampler, weights where they belong)."""
    mesh, (graph, weights) = mesh_of(shape), network()
    settings = dataclasses.replace(SETTINGS, **fields)
    weights = jax.device_put(weights, sharding.parameters(mesh, weights))
    return generate.sampler(graph, settings, mesh), weights


def video(shape, **fields) -> np.ndarray:
    """Latents of both chunks."""
    sample, weights = made(shape, **fields)
    return np.asarray(generate.latents(sample, weights, _request(CONFIG), PLAN, KEY))


@functools.cache
def alone() -> np.ndarray:
    return video((1, 1, 1, 1))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("shape", "branches"),
    [
        ((1, 1, 1, 1), "batched"),
        ((1, 2, 4, 1), "auto"),  # three branches on two halves: one is a copy
        slow((4, 1, 2, 1), "auto"),
        slow((2, 1, 4, 1), "auto"),
        slow((1, 2, 4, 1), "one_by_one"),  # the one sample is on both halves
        slow((1, 1, 8, 1), "auto"),  # ring
        slow((8, 1, 1, 1), "auto"),
        slow((1, 2, 2, 2), "auto"),
    ],
)
def test_devices_make_the_video_of_one_device(shape, branches):
    close(video(shape, branches=branches), alone())


def told():
    """Conditions of the first chunk, its noise and the negative text."""
    request = _request(CONFIG)
    first = generate.first_conditions(request, PLAN.motion)
    first = first._replace(audio=first.audio[:, :17])
    noise = chunks.draw_noise(KEY, 0, PLAN.size, (1, 4, 4, 16))
    return noise, first, jnp.asarray(request.negative_text)[None]


def test_a_reference_read_in_a_program_of_its_own_changes_no_bit():
    """One by one, against prefills inside the program, as the formula has them."""
    (sample, weights), (graph, _) = made((1, 1, 1, 1)), network()
    noise, conditions, negative = told()
    grid = schedule.unipc(SETTINGS.steps, SETTINGS.shift)

    @jax.jit
    def whole(weights, noise, conditions, negative):
        model = nnx.merge(graph, weights)
        net = guidance.Network(model.prefill, model)
        scales = SETTINGS.text_scale, SETTINGS.audio_scale
        hidden, shown = (
            guidance.guided(net, c, negative, *scales)
            for c in (guidance.without_reference(conditions), conditions)
        )
        velocity = guidance.switched(hidden, shown, 1)
        return unipc_sample(velocity, noise, grid, round_bf16=False)

    expected = np.asarray(whole(weights, noise, conditions, negative))
    found = sample(weights, noise, conditions, negative)
    np.testing.assert_array_equal(found, expected)
    assert noise.is_deleted()  # its memory is the latents'


def test_a_video_reads_its_reference_once_and_a_finished_one_never(tmp_path):
    sample, weights = made((1, 1, 1, 1))
    calls = []

    def prefill(weights, told):
        calls.append(jax.tree.map(jnp.shape, told))
        return sample.prefill(weights, told)

    counting, request = sample._replace(prefill=prefill), _request(CONFIG)
    kept = unfinished.Unfinished(tmp_path / "kept", {})
    asked = counting, weights, request, PLAN, KEY, kept
    first = [np.asarray(piece) for piece in generate.pieces(*asked)]
    assert len(PLAN.spans) == 2 and len(calls) == 1
    again = [np.asarray(piece) for piece in generate.pieces(*asked)]
    assert len(calls) == 1
    jax.tree.map(np.testing.assert_array_equal, again, first)
    for _ in generate.pieces(*asked[:2], _request(CONFIG, frames=25), *asked[3:5]):
        pass
    assert calls[0] == calls[1]  # no program of its own for speech of another length


@pytest.mark.parametrize("shape", [(1, 2, 4, 1), slow((4, 1, 2, 1))])
def test_no_tokens_are_gathered_and_the_cache_is_held_by_heads(shape, capfd):
    """Weights are, and the latents: the streams of tokens are larger than both."""
    grid, width, slots = 32, 128, 6
    graph, weights = network(dim=width, ffn_dim=64, num_videoref_latents=slots)
    mesh, (noise, first, negative) = mesh_of(shape), wide_request(grid, slots)
    weights = sharding.abstract(mesh, weights)
    compiled = generate.programs(graph, SETTINGS, mesh, 1)
    with jax.set_mesh(mesh):
        prefill = compiled.prefill.lower(weights, first).compile()
        cache = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            jax.eval_shape(compiled.prefill, weights, first),
            prefill.output_shardings,
        )
        arguments = weights, noise, first, negative, cache
        denoise = compiled.denoise.lower(*arguments).compile()
    _, rows, tokens, heads, _ = cache.keys.shape
    rows //= shape[0] * shape[1]
    held = cache.keys.sharding.shard_shape(cache.keys.shape)
    assert held[1:4] == (rows, tokens, heads // shape[2])
    assert denoise.input_shardings[0][4].keys == cache.keys.sharding
    for program in (prefill, denoise):
        text = program.as_text()
        sent = gathered(text)
        large = [line for n, line in sent if n >= rows * tokens * width]
        assert sent and not large, large
        assert "all-to-all" in text
    assert "nvoluntary" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("read", "shape"), [("frame", (1, 1, 1, 1)), slow("global", (1, 2, 4, 1))]
)
def test_a_cache_holds_the_valid_tokens_and_little_more(read, shape, monkeypatch):
    monkeypatch.setattr(generate, "PLACES", 4)  # and not 8
    graph, weights = network(reference_attention=read)
    mesh, (noise, first, negative) = mesh_of(shape), told()
    first = first._replace(
        reference_tokens=jnp.arange(8).reshape(1, 2, 2, 2) % 3 == 1  # three of eight
    )
    weights = jax.device_put(weights, sharding.parameters(mesh, weights))
    sample = generate.sampler(graph, SETTINGS, mesh)
    cache = sample.prefill(weights, first)
    short = generate.shortened(cache, 3)
    for before, after in zip(*map(jax.tree.leaves, (cache, short)), strict=True):
        axis = 2 if before.ndim == 5 else 1
        assert (before.shape[axis], after.shape[axis]) == (8, 4)
        assert after.sharding == before.sharding
    assert generate.shortened(cache, 5) is cache
    other = sample.prefill(weights, first._replace(reference=2 * first.reference))
    rest = weights, np.asarray(noise), first, negative
    found, expected, not_so = (
        np.asarray(sample.denoise(*rest, c))
        for c in (short, cache, generate.shortened(other, 3))
    )
    close(found, expected)
    assert np.abs(found - not_so).max() > 1e-3


@pytest.mark.parametrize(
    ("whole", "devices"),
    [(8, 1), (432, 1), (8400, 1), (8400, 3), (8448, 32), (20160, 1)],
)
def test_rooms_are_few_and_large_enough(whole, devices):
    unit = math.lcm(generate.PLACES, devices)
    rooms = [generate.room(valid, whole, unit) for valid in range(whole + 1)]
    assert all(valid <= places <= whole for valid, places in enumerate(rooms))
    assert len(set(rooms)) <= generate.ROOMS
    assert all(n == whole or n % generate.PLACES == 0 for n in rooms)
    assert all(n % devices == 0 for n in rooms)
    assert rooms[whole // 3] <= max(whole // 2, generate.PLACES)


@pytest.mark.parametrize("devices", [3, 4])
def test_devices_of_a_ring_keep_equal_parts_of_the_valid_tokens(devices):
    """Three divide neither PLACES nor its multiples."""
    mesh, rng = mesh_of((1, 1, devices, 1)), np.random.default_rng(0)
    whole, valid = 33 * devices, np.arange(33 * devices)[None] % 5 == 1
    keys, values = (rng.normal(size=(2, 1, whole, 4, 8)) for _ in range(2))
    place = NamedSharding(mesh, sharding.spec(None, "B", "N"))
    flags = NamedSharding(mesh, sharding.spec("B", "N"))
    places = ReferenceCache(place, place, flags)
    cache = jax.device_put(ReferenceCache(keys, values, valid), places)
    short = generate.shortened(cache, int(valid.sum()))
    assert valid.sum() <= short.valid.shape[1] < whole
    assert short.keys.sharding == place and short.valid.sharding == flags
    kept = np.asarray(short.valid)[0]
    for after, before in zip(short[:2], cache[:2], strict=True):
        after, before = np.asarray(after), np.asarray(before)
        np.testing.assert_array_equal(after[:, 0, kept], before[:, 0, valid[0]])


def test_buckets_of_a_training_run_drop_nothing():
    graph, weights = network(still_bucket=1, reference_bucket=1)
    sample = generate.sampler(graph, SETTINGS, mesh_of((1, 1, 1, 1)))
    found = generate.latents(sample, weights, _request(CONFIG), PLAN, KEY)
    np.testing.assert_array_equal(found, alone())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), slow((1, 2, 4, 1))])
def test_a_still_of_one_chunk_has_places_for_its_background(shape, monkeypatch):
    """One of four tokens; a longer video's later chunks read them all."""
    monkeypatch.setattr(generate, "STILL_PLACES", 2)
    sample, weights = made(shape)
    request = _request(CONFIG)
    request = request._replace(still_tokens=np.array([[False, False], [True, False]]))
    assert generate.still_places(request, PLAN) == 0
    short = chunks.plan(17, CONFIG.model.num_video_latents, 2, 4)
    asked = []

    def denoise(weights, noise, conditions, negative, cache, still):
        asked.append((still, np.asarray(noise), conditions))
        return sample.denoise(weights, noise, conditions, negative, cache, still)

    packed = generate.latents(
        sample._replace(denoise=denoise), weights, request, short, KEY
    )
    ((places, noise, told),) = asked
    assert places == 2
    cache = sample.prefill(weights, told)
    negative = jnp.asarray(request.negative_text)[None]
    whole = sample.denoise(weights, noise, told, negative, cache)
    close(np.asarray(packed), np.asarray(whole))
    seen = told._replace(still_tokens=jnp.ones_like(told.still_tokens))
    other = sample.denoise(weights, noise, seen, negative, cache)
    assert np.abs(np.asarray(whole) - np.asarray(other)).max() > 1e-3


def test_a_step_costs_less_than_the_release_s_the_fewer_tokens_are_valid():
    official = cross_scene.get_config("tavr_14b")
    later = [bench_generate.against_release(official, n) for n in (0.35, 1.0)]
    only = [bench_generate.against_release(official, 0.35, n) for n in (0.3, 1.0)]
    assert only[0] < bench_generate.GOALS["release"] < later[0] < only[1] < later[1] < 1
    few, most = (bench_generate.longer(official, n) for n in (0.35, 1.0))
    assert 1 < few < bench_generate.GOALS["longer"] < most


def wide_request(grid: int, slots: int):
    """`told` with as many reference tokens as there are in the main stream."""
    _, first, negative = told()

    def wide(count: int):
        return jnp.zeros((1, count, grid, grid, 16))

    half = grid // 2
    rows = jnp.zeros((1, 4 * slots, first.reference_audio.shape[-1]))
    first = first._replace(
        still=wide(1),
        motion=wide(PLAN.motion),
        reference=wide(slots),
        still_tokens=jnp.ones((1, half, half), bool),
        reference_tokens=jnp.ones((1, slots, half, half), bool),
        reference_audio=rows,
    )
    return wide(PLAN.size), first, negative
