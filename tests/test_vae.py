import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from configs.base import get_config
from configs.models import apply
from launch import parity_vae
from launch.parity import compare
from launch.parity_oracle import Oracle
from launch.parity_vae import replay_vae, replay_wan_vae
from tavr_jax.encoders.vae import Codec, CodecConfig, encode_reference
from tavr_jax.encoders.vae_blocks import ChannelNorm
from tavr_jax.encoders.vae_stream import (
    decode_stream,
    encode_reference_stream,
    encode_stream,
)
from tavr_jax.encoders.weights_vae import entries, load_vae, save_vae
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden/vae"

encode = nnx.jit(lambda codec, frames: codec.encode(frames))
decode = nnx.jit(lambda codec, latents: codec.decode(latents))
encode_clip = nnx.jit(encode_reference)


def abstract(folder: Path) -> Codec:
    """Of the sizes in a folder's config.json, without weights."""
    sizes = json.loads((folder / "config.json").read_text())
    settings = get_config().codec.to_dict()
    for name, value in sizes.items():
        name = name.replace("temperal", "temporal")
        if name in settings:
            settings[name] = tuple(value) if isinstance(value, list) else value
    config = CodecConfig(**settings)
    return nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def fresh() -> Codec:
    config = apply(get_config(), "tiny").codec
    config.num_res_blocks = 1
    return Codec(CodecConfig(**config), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def codec(fresh) -> Codec:
    """No weight of it is zero, as after training."""
    rng = np.random.default_rng(1)

    def moved(w: jax.Array) -> jax.Array:
        noise = 0.2 * rng.standard_normal(w.shape, np.float32)
        return jnp.asarray(np.asarray(w) + noise)

    graphdef, params = nnx.split(fresh)
    return nnx.merge(graphdef, jax.tree.map(moved, params))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two samples, an odd grid; one size, because compiling is what takes time."""
    shape = (2, 13, 24, 40, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def joined(blocks) -> np.ndarray:
    return np.concatenate([np.asarray(block) for block in blocks], axis=1)


def check(replay, path: Path, pattern: str = "") -> None:
    """Every array is compared or an input, and those that match are reproduced."""
    oracle = Oracle.open(path)
    checks = replay(oracle)
    assert {c.name for c in checks} | oracle.inputs == set(oracle.names)
    for name, compute, tolerance in checks:
        if re.match(pattern, name):
            assert compare(compute(), oracle.expected(name)) <= tolerance, name


def test_an_independent_implementation_is_reproduced():
    """Diffusers, step by step; golden/make_vae.py."""
    check(replay_wan_vae, GOLDEN / "cases.npz")


def test_the_release_is_reproduced(shared):
    check(replay_vae, shared / "oracles/tavr_seed0/vae.npz")


CASES = ["c", *(pytest.param(x, marks=pytest.mark.slow) for x in "abde")]


@pytest.mark.parametrize("case", CASES)
def test_wan_is_reproduced(shared, case):
    check(replay_wan_vae, shared / "oracles/wan_seed0/vae/cases.npz", f"{case}_")


@pytest.mark.parametrize("step", [1, 2])
def test_a_stream_is_the_whole_clip(codec, frames, step):
    """Any number of frames in any blocks, to float32 rounding."""
    latents, reference = encode(codec, frames), encode_clip(codec, frames[:, :8])
    decoded = decode(codec, latents)
    for count in (1, 4, 5, 7, 8, 13):
        blocks = np.split(frames[:, :count], [2, 3, 11], axis=1)
        kept = 1 + (count - 1) // 4
        found = joined(encode_stream(codec, blocks, step=step))
        np.testing.assert_allclose(found, latents[:, :kept], atol=3e-5)
        pieces = np.split(np.asarray(latents[:, :kept]), [1, 3], axis=1)
        found = joined(decode_stream(codec, pieces, step=step, dtype=jnp.float32))
        np.testing.assert_allclose(found, decoded[:, : 4 * kept - 3], atol=3e-5)
        if 4 <= count <= 8:
            found = joined(encode_reference_stream(codec, blocks, step=step))
            np.testing.assert_allclose(found, reference[:, : count // 4], atol=3e-5)


def test_all_later_steps_are_one_program(codec, frames):
    """What is remembered has one shape, so length compiles and costs nothing."""
    first = jax.eval_shape(codec.posterior_step, frames[:, :1])[-1]
    later = jax.eval_shape(codec.posterior_step, frames[:, 1:5], first)[-1]
    assert later == first and len(jax.tree.leaves(first)) > 10
    latents = jnp.zeros((1, 3, 2, 3, 16))
    first = jax.eval_shape(codec.decode_step, latents[:, :1])[-1]
    later = jax.eval_shape(codec.decode_step, latents[:, 1:], first)[-1]
    assert later == first and len(jax.tree.leaves(first)) > 10


def test_an_empty_stream_yields_nothing(codec):
    assert not list(encode_stream(codec, [], step=1))
    assert not list(encode_reference_stream(codec, [], step=1))


def test_pieces_are_handed_on_when_they_are_long_enough():
    blocks = [np.zeros((1, n, 1, 1, 3)) for n in (1, 4, 4, 4, 4, 4)]
    assert [p.shape[1] for p in parity_vae.joined(blocks, 8)] == [9, 8, 4]


@pytest.mark.slow
def test_memory_does_not_grow_with_length():
    """Peak memory in MB of a process that decodes so many latents of 96 x 96 pixels."""
    program = """
import resource, sys, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from configs.base import get_config
from configs.models import apply
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.vae_stream import decode_stream
codec = Codec(CodecConfig(**apply(get_config(), "mini").codec), rngs=nnx.Rngs(0))
latents = np.zeros((1, int(sys.argv[1]), 12, 12, 16), np.float32)
for frames in decode_stream(codec, [latents], step=1, dtype=jnp.float32):
    np.asarray(frames)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

    def peak(latents: int) -> float:
        command = [sys.executable, "-c", program, str(latents)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return float(done.stdout)

    assert peak(161) < peak(21) + 50  # the whole clip: 1400 MB more


def test_the_official_file_has_194_tensors_and_126892531_parameters():
    config = CodecConfig(**get_config().codec)
    official = nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
    for layout in ("wan", "diffusers"):
        shapes = {e.official: e.shape for e in entries(official, layout)}
        assert len(shapes) == 194
        assert sum(map(math.prod, shapes.values())) == 126_892_531


def test_the_layouts_hold_the_same_numbers(tmp_path):
    """diffusers -> ours -> wan -> ours -> diffusers; half widens, nothing is lost."""
    source = load_file(GOLDEN / "diffusers.safetensors")
    loaded = load_vae(GOLDEN / "diffusers.safetensors", abstract(GOLDEN))
    back = load_vae(
        save_vae(tmp_path / "wan.safetensors", loaded, "wan", {}), abstract(GOLDEN)
    )
    found = load_file(save_vae(tmp_path / "d.safetensors", back, "diffusers", {}))
    assert found.keys() == source.keys()
    for name, array in source.items():
        assert array.dtype == np.float16 and found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_all_published_files_are_read(shared):
    """The same weights under both names, and in half precision as a torch file."""
    folder = shared / "oracles/wan_seed0/vae"
    names = ("wan.safetensors", "diffusers.safetensors", "wan_fp16.pth")
    empty = abstract(folder)
    found = [
        jax.tree.leaves(nnx.state(load_vae(folder / name, empty))) for name in names
    ]
    for one, same, half in zip(*found, strict=True):
        np.testing.assert_array_equal(same, one)
        np.testing.assert_array_equal(half, one.astype(np.float16).astype(np.float32))


def test_another_network_s_file_is_named(shared):
    path = shared / "oracles/tavr_seed0/umt5.safetensors"
    with pytest.raises(InputError, match=r"umt5\.safetensors: neither .*Wan2\.1_VAE"):
        load_vae(path, abstract(GOLDEN))


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_a_tensor_too_many_or_too_few_is_named(tmp_path, layout):
    whole = load_vae(GOLDEN / "diffusers.safetensors", abstract(GOLDEN))
    path = save_vae(tmp_path / "x.safetensors", whole, layout, {})
    tensors = load_file(path)
    last = sorted(tensors)[-1]
    for wrong in (
        {k: v for k, v in tensors.items() if k != last},
        {**tensors, last: tensors[last][None]},
        {**tensors, f"{last}.more": tensors[last]},
    ):
        save_file(wrong, path)
        with pytest.raises(InputError, match=re.escape(last)):
            load_vae(path, abstract(GOLDEN))


@pytest.mark.parametrize(
    "change", [{"temporal_downsample": (True, True, True)}, {"reference_prefix": 24}]
)
def test_a_config_that_breaks_the_spans_is_refused(fresh, change):
    with pytest.raises(InputError, match=next(iter(change))):
        dataclasses.replace(fresh.config, **change)


def test_a_changed_frame_leaves_earlier_latents_alone(codec, frames):
    changed = frames.copy()
    changed[:, 6] *= -1  # frames 5..8 are latent 2
    before, after = encode(codec, frames), encode(codec, changed)
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4))[2:] > 1e-4).all()


def test_a_changed_latent_leaves_earlier_frames_alone(codec, frames):
    latents = np.array(encode(codec, frames))
    before = decode(codec, latents)
    latents[:, 2] += 1
    after = decode(codec, latents)
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4))[5:] > 1e-4).all()


def test_frames_beyond_a_multiple_of_four_are_ignored(codec, frames):
    """Their values: the stream above; that they make no latent, here."""
    longer = np.concatenate([frames, frames[:, :2]], axis=1)
    assert jax.eval_shape(codec.encode, longer).shape == (2, 4, 3, 5, 16)


def test_a_reference_latent_covers_its_own_four_frames(codec, frames):
    before = encode_clip(codec, frames[:, :8])
    for frame, latent in ((3, 0), (4, 1)):
        changed = frames[:, :8].copy()
        changed[:, frame] *= -1
        moved = np.abs(encode_clip(codec, changed) - before).max(axis=(0, 2, 3, 4))
        assert moved.shape == (2,)
        assert (moved[latent:] > 1e-4).all() and (moved[:latent] == 0).all()


def test_a_fresh_codec_is_one_of_stills(fresh, frames):
    latents = encode(fresh, frames)
    for latent in range(4):
        still = encode(fresh, frames[:, 4 * latent, None])
        np.testing.assert_allclose(latents[:, latent, None], still, atol=1e-5)
    pixels = np.asarray(decode(fresh, latents))
    np.testing.assert_allclose(pixels[:, 1:4], pixels[:, 2:5], atol=1e-5)


def test_the_gradient_at_a_greyed_pixel_is_finite():
    """It is exactly zero, where a norm has no slope."""
    norm = ChannelNorm(4)
    gradient = jax.grad(lambda x: norm(x).sum())(jnp.zeros((2, 4)))
    assert np.isfinite(gradient).all()
