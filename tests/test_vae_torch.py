"""The codec against diffusers' AutoencoderKLWan, where PyTorch is installed."""

import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from safetensors.numpy import load_file

from configs.base import get_config
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.vae_stream import decode_stream, posterior_stream
from tavr_jax.encoders.weights_vae import load_vae, save_vae

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")

OFFICIAL = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
SIZES = {
    "official levels": {**OFFICIAL, "base_dim": 4, "num_res_blocks": 2, "z_dim": 16},
    "time first": {
        "dim_mult": [1, 2, 2, 3],
        "temperal_downsample": [True, True, False],
        "base_dim": 6,
        "num_res_blocks": 1,
        "z_dim": 8,
    },
    "time apart": {
        "dim_mult": [1, 1, 3, 2],
        "temperal_downsample": [True, False, True],
        "base_dim": 4,
        "num_res_blocks": 3,
        "z_dim": 4,
    },
    "two levels": {
        "dim_mult": [2, 1, 4],
        "temperal_downsample": [True, True],
        "base_dim": 8,
        "num_res_blocks": 1,
        "z_dim": 3,
    },
}


def build(sizes: dict):
    """Theirs with random weights, and ours of the same sizes, abstract."""
    torch.manual_seed(0)
    channels = sizes["z_dim"]
    model = diffusers.AutoencoderKLWan(
        **sizes, latents_mean=[0.0] * channels, latents_std=[1.0] * channels
    ).eval()
    for weight in model.state_dict().values():
        weight.add_(0.05 * torch.randn_like(weight))
    settings = get_config().codec.to_dict() | {
        "latents_mean": (0.0,) * channels,
        "latents_std": (1.0,) * channels,
    }
    for name, value in sizes.items():
        name = name.replace("temperal", "temporal")
        settings[name] = tuple(value) if isinstance(value, list) else value
    config = CodecConfig(**settings)
    return model, nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))


def relative(ours, theirs) -> float:
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_both_directions_agree(tmp_path, sizes):
    model, empty = build(sizes)
    file = tmp_path / "diffusers.safetensors"
    safetensors_torch.save_file(model.state_dict(), file)
    codec = load_vae(file, empty)
    side = 3 * 2 ** (len(sizes["dim_mult"]) - 1)
    video = torch.rand(2, 3, 14, side, 2 * side) * 2 - 1
    with torch.no_grad():
        found = model.encode(video).latent_dist
        decoded = model.decode(found.mean).sample
    frames = np.moveaxis(video.numpy(), 1, -1)
    for step in (1, 2):
        pieces = zip(*posterior_stream(codec, [frames], step=step), strict=True)
        mean, logvar = (np.concatenate(parts, axis=1) for parts in pieces)
        assert relative(mean, found.mean) < 1e-5
        # theirs is clamped to -30..20
        assert relative(np.clip(logvar, -30, 20), found.logvar) < 1e-5
        blocks = decode_stream(codec, [mean], step=step, dtype=jnp.float32)
        assert relative(np.concatenate(list(blocks), axis=1), decoded) < 1e-5


def test_their_converter_reads_our_wan_file(tmp_path):
    """Our way to Wan's names, then theirs to diffusers' names."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    model, empty = build(SIZES["official levels"])
    file = tmp_path / "diffusers.safetensors"
    safetensors_torch.save_file(model.state_dict(), file)
    wan = save_vae(tmp_path / "wan.safetensors", load_vae(file, empty), "wan", {})
    tensors = {name: torch.from_numpy(a) for name, a in load_file(wan).items()}
    converted = utils.convert_wan_vae_to_diffusers(tensors)
    assert converted.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(converted[name], weight), name


def test_a_torch_file_is_read(tmp_path):
    """As `Wan2.1_VAE.pth` is: torch.save of a state dict, here in half precision."""
    model, empty = build(SIZES["two levels"])
    half = {name: weight.half() for name, weight in model.state_dict().items()}
    torch.save(half, tmp_path / "vae.pth")
    written = save_vae(
        tmp_path / "d.safetensors",
        load_vae(tmp_path / "vae.pth", empty),
        "diffusers",
        {},
    )
    for name, array in load_file(written).items():
        np.testing.assert_array_equal(array, half[name].float().numpy(), err_msg=name)
