"""Training can start from Wan 2.1: its weights in our network are Wan's own network."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import same_scene
from launch.parity import compare
from launch.parity_oracle import Oracle
from launch.parity_schedulers import replay_schedulers
from launch.parity_wan import replay_dit
from tavr_jax.encoders.tensors import read_tensors, write_tensors
from tavr_jax.encoders.weights_tavr import save_transformer
from tavr_jax.encoders.weights_wan import entries, load_wan
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

GOLDEN = Path(__file__).parent / "golden" / "wan"
CONFIG = TransformerConfig(**same_scene.get_config("tiny").model)
GRID = 4
ZERO = ("blocks", "audio_attn", "o")


def drawn(seed: int) -> Transformer:
    """No weight of it is zero."""
    shapes = nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(shapes)
    rng = np.random.default_rng(seed)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda s: jnp.asarray(0.2 * rng.standard_normal(s.shape, np.float32)), state
        ),
    )


def flat(model: Transformer) -> dict[tuple, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {key: np.asarray(variable[...]) for key, variable in state}


@pytest.fixture(scope="module")
def source() -> Transformer:
    """Its Wan part is what the files hold."""
    return drawn(1)


@pytest.fixture(scope="module")
def tensors(source, tmp_path_factory) -> dict[bool, dict[str, np.ndarray]]:
    """Wan's tensors by its own names, and by diffusers'."""
    path = tmp_path_factory.mktemp("tavr") / "tavr.safetensors"
    everything = read_tensors(save_transformer(path, source, {}))
    patch = "patch_embedding.weight"
    everything[patch] = everything[patch][:, : CONFIG.in_channels - 2]
    own = entries(source)
    return {
        diffusers: {
            theirs.official: everything[e.official]
            for e, theirs in zip(own, entries(source, diffusers=diffusers), strict=True)
        }
        for diffusers in (False, True)
    }


@pytest.fixture(scope="module")
def loaded(tensors, tmp_path_factory) -> Transformer:
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    write_tensors(path, tensors[False], {})
    return load_wan(path, drawn(2))


def conditions(seed: int) -> Conditions:
    """Everything there, but no valid token of ref row or reference."""
    c, rng, batch = CONFIG, np.random.default_rng(seed), 2
    slots = c.num_videoref_latents

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape)), jnp.float32)

    return Conditions(
        still=normal(1, GRID, GRID, 16),
        still_tokens=jnp.zeros((batch, GRID // 2, GRID // 2), bool),
        motion=normal(2, GRID, GRID, 16),
        has_motion=jnp.zeros(batch, bool),
        reference=normal(slots, GRID, GRID, 16),
        reference_tokens=jnp.zeros((batch, slots, GRID // 2, GRID // 2), bool),
        text=jnp.ones((batch, c.text_len, c.text_dim)),
        null_text=normal(c.text_len, c.text_dim),
        audio=normal(4 * (c.num_video_latents - 1) + 1, c.audio_dim),
        has_audio=jnp.ones(batch, bool),
        reference_audio=normal(4 * slots, c.videoref_audio_dim),
        has_reference_audio=jnp.ones(batch, bool),
    )


LATENTS = jax.random.normal(
    jax.random.key(7), (2, CONFIG.num_video_latents, GRID, GRID, 16)
)
TIME = jnp.array([311.0, 872.5])


@nnx.jit
def velocity(model: Transformer, told: Conditions) -> jax.Array:
    return model(LATENTS, TIME, told, model.prefill(told))


def assert_reproduced(oracle: Oracle, checks: list) -> None:
    covered = {c.name for c in checks} | oracle.inputs | set(oracle.reasons)
    assert covered == set(oracle.names)
    for check in checks:
        error = compare(np.asarray(check.compute()), oracle.expected(check.name))
        assert error <= check.tolerance, check.name


def test_recorded_velocity_and_gradients_are_reproduced():
    oracle = Oracle.open(GOLDEN / "cases.npz")
    assert_reproduced(oracle, replay_dit(oracle))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit_t2v_hd32", "dit_t2v_hd40", "dit_i2v_hd26"])
def test_wan_is_reproduced(shared, name):
    oracle = Oracle.open(shared / "oracles/wan_seed0" / name / "cases.npz")
    assert_reproduced(oracle, replay_dit(oracle))


def test_wans_own_grids_and_solver_are_reproduced(shared):
    oracle = Oracle.open(shared / "oracles/wan_seed0/schedulers/cases.npz")
    checks = replay_schedulers(oracle)
    kept = [c for c in checks if c.name.startswith(("unipc_wan", "train"))]
    assert len(kept) > 30
    for check in kept:
        error = compare(np.asarray(check.compute()), oracle.expected(check.name))
        assert error <= check.tolerance, check.name


def test_wans_part_is_read_and_the_rest_keeps_its_values(source, loaded):
    fresh, wan, found = flat(drawn(2)), flat(source), flat(loaded)
    names = {e.ours for e in entries(source)}
    for key, value in found.items():
        if key[:3] == ZERO:
            assert not value.any()
        elif key == ("patch_embedding", "kernel"):
            pixels = value.reshape(-1, CONFIG.in_channels, CONFIG.dim)
            theirs = wan[key].reshape(pixels.shape)
            np.testing.assert_array_equal(pixels[:, :-2], theirs[:, :-2])
            assert not pixels[:, -2:].any()
        else:
            expected = wan if key in names else fresh
            np.testing.assert_array_equal(value, expected[key], str(key))


def test_the_given_network_is_left_alone(tensors, tmp_path):
    path, given = tmp_path / "wan.safetensors", drawn(2)
    write_tensors(path, tensors[False], {})
    copy = load_wan(path, given)
    for _, variable in nnx.to_flat_state(nnx.state(copy, nnx.Param)):
        variable[...] = jnp.zeros_like(variable[...])
    for key, value in flat(drawn(2)).items():
        np.testing.assert_array_equal(flat(given)[key], value, str(key))


def test_a_sharded_network_stays_where_it_is(loaded, tensors, tmp_path):
    path = tmp_path / "wan.safetensors"
    write_tensors(path, tensors[False], {})
    mesh = jax.make_mesh((8,), ("fsdp",))

    def spread(value: jax.Array) -> jax.Array:
        axes = [None if size % 8 else "fsdp" for size in value.shape[-1:]]
        spec = jax.sharding.PartitionSpec(*[None] * (value.ndim - 1), *axes)
        return jax.device_put(value, jax.sharding.NamedSharding(mesh, spec))

    graph, state = nnx.split(drawn(2))
    placed = nnx.merge(graph, jax.tree.map(spread, state))
    made = load_wan(path, placed)
    before, after = (dict(nnx.to_flat_state(nnx.state(m))) for m in (placed, made))
    for key, value in flat(loaded).items():
        np.testing.assert_array_equal(np.asarray(after[key][...]), value, str(key))
        assert after[key][...].sharding == before[key][...].sharding, key


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "shards"])
def test_every_layout_is_the_same_network(loaded, tensors, tmp_path, layout):
    path = tmp_path / "model.safetensors"
    if layout == "diffusers":
        write_tensors(path, tensors[True], {})
    elif layout == "comfyui":
        prefix = "model.diffusion_model."
        write_tensors(path, {prefix + n: a for n, a in tensors[False].items()}, {})
    else:
        path = tmp_path / "model.safetensors.index.json"
        parts = [dict(list(tensors[True].items())[i::2]) for i in range(2)]
        places = {n: f"part{i}.safetensors" for i, p in enumerate(parts) for n in p}
        for i, part in enumerate(parts):
            write_tensors(tmp_path / f"part{i}.safetensors", part, {})
        path.write_text(f'{{"weight_map": {places}}}'.replace("'", '"'))
    other = flat(load_wan(path, drawn(2)))
    for key, value in flat(loaded).items():
        np.testing.assert_array_equal(other[key], value, str(key))


def test_what_tavr_adds_does_not_matter_at_first(loaded):
    one, two = conditions(0), conditions(1)
    mute = two._replace(has_audio=jnp.zeros(2, bool))
    first = velocity(loaded, one)
    assert np.abs(first).max() > 0.1
    for other in (two, mute):
        np.testing.assert_allclose(velocity(loaded, other), first, rtol=0, atol=1e-5)
    graph, state = nnx.split(loaded)
    hearing = nnx.merge(graph, jax.tree.map(jnp.copy, state))
    hearing.blocks.audio_attn.o.kernel[...] = drawn(2).blocks.audio_attn.o.kernel[...]
    assert np.abs(velocity(hearing, two) - velocity(hearing, one)).max() > 1e-2


def test_what_is_zero_learns_from_the_first_step(loaded):
    told = conditions(0)._replace(has_motion=jnp.ones(2, bool))
    told = told._replace(still_tokens=jnp.ones_like(told.still_tokens))

    @nnx.jit
    def slopes(model):
        return nnx.grad(lambda m: jnp.square(velocity(m, told)).mean())(model)

    found = flat(slopes(loaded))
    for name in ("kernel", "bias"):
        assert (np.abs(found[(*ZERO, name)]).max(axis=-1) > 0).all()
    masks = found["patch_embedding", "kernel"].reshape(
        -1, CONFIG.in_channels, CONFIG.dim
    )
    assert (np.abs(masks[:, -2:]).max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.0.cross_attn.k_img.weight", (4, 4)),
        ("blocks.1.norm3.bias", None),
        ("patch_embedding.weight", (CONFIG.dim, 36, 1, 2, 2)),
        ("head.modulation", (1, 2, CONFIG.dim + 2)),
    ],
)
def test_a_file_that_does_not_fit_is_named(source, tensors, tmp_path, name, shape):
    broken = dict(tensors[False])
    broken.pop(name, None)
    if shape:
        broken[name] = np.zeros(shape, np.float32)
    path = tmp_path / "bad.safetensors"
    write_tensors(path, broken, {})
    with pytest.raises(InputError, match=rf"bad\.safetensors: .*{name}"):
        load_wan(path, source)


@pytest.mark.parametrize("diffusers", [False, True])
def test_names_are_wans_and_there_is_one_of_each(shared, diffusers):
    folder = shared / "oracles/wan_seed0/dit_t2v_hd32"
    file = "diffusers.safetensors" if diffusers else "wan.safetensors"
    table = entries(drawn(0), diffusers=diffusers)
    names = [e.official for e in table]
    assert len(set(names)) == len(names)
    blocks = {n for n in read_tensors(folder / file) if not n.startswith("blocks.1")}
    assert blocks <= set(names)
