"""The Wan 2.1 autoencoder's published names: Wan's own file and the diffusers folder.

Wan: `Wan2.1_VAE.pth`, TAVR_SPEC 6: blocks and their parts are numbered through.
Diffusers: folder `vae` of Wan's diffusers releases (AutoencoderKLWan): parts have
names, and the decoder's blocks are grouped by level. Both hold the same 194 arrays.
Torch kernels are (out, in, taps), ours (taps, in, out); a gain of C channels is
published as (C, 1, 1, 1), as (C, 1, 1) where it is applied to single frames.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from flax import nnx

from tavr_jax.encoders import published
from tavr_jax.encoders.published import Entry
from tavr_jax.encoders.tensors import Tensors, open_tensors
from tavr_jax.encoders.vae import Codec
from tavr_jax.errors import InputError

LayoutName = Literal["wan", "diffusers"]


class _Layout(NamedTuple):
    marker: str  # a tensor that only this layout has
    block: Callable[[str, int, int], str]  # (side, index, blocks a decoder level)
    parts: Mapping[str, str]  # our module -> the published one; others keep their name


def _wan_block(side: str, index: int, _: int) -> str:
    return f"{'downsamples' if side == 'encoder' else 'upsamples'}.{index}"


def _diffusers_block(side: str, index: int, level: int) -> str:
    if side == "encoder":
        return f"down_blocks.{index}"
    within = index % level
    part = "upsamplers.0" if within == level - 1 else f"resnets.{within}"
    return f"up_blocks.{index // level}.{part}"


_LAYOUTS = {
    "wan": _Layout(
        "encoder.conv1.weight",
        _wan_block,
        {
            "quant": "conv1",
            "post_quant": "conv2",
            "conv_in": "conv1",
            "first": "middle.0",
            "attention": "middle.1",
            "second": "middle.2",
            "norm_out": "head.0",
            "conv_out": "head.2",
            "norm1": "residual.0",
            "conv1": "residual.2",
            "norm2": "residual.3",
            "conv2": "residual.6",
            "qkv": "to_qkv",
            "conv": "resample.1",
        },
    ),
    "diffusers": _Layout(
        "encoder.conv_in.weight",
        _diffusers_block,
        {
            "quant": "quant_conv",
            "post_quant": "post_quant_conv",
            "first": "mid_block.resnets.0",
            "attention": "mid_block.attentions.0",
            "second": "mid_block.resnets.1",
            "shortcut": "conv_shortcut",
            "qkv": "to_qkv",
            "conv": "resample.1",
        },
    ),
}


def load_vae(path: str | Path, codec: Codec) -> Codec:
    """A copy of `codec`, which may be abstract, with the weights of a published file.

    `path` is whatever `open_tensors` reads, in either layout. A half-precision file
    widens to the codec's float32, number for number. InputError names a tensor that is
    unknown, missing or misshapen.
    """
    tensors = open_tensors(path)
    return published.fill(tensors, codec, entries(codec, _layout(tensors)))


def save_vae(
    path: str | Path, codec: Codec, layout: LayoutName, metadata: Mapping[str, str]
) -> Path:
    """Write a codec under published names: a safetensors file."""
    return published.save(path, codec, entries(codec, layout), metadata)


def entries(codec: Codec, layout: LayoutName = "wan") -> list[Entry]:
    """Every parameter's published name and shape; `codec` may be abstract."""
    flat = nnx.to_flat_state(nnx.state(codec, nnx.Param))
    # of each level: its residual blocks and the upsampler
    level = codec.config.num_res_blocks + 2
    return [_entry(ours, tuple(v.shape), _LAYOUTS[layout], level) for ours, v in flat]


def _layout(tensors: Tensors) -> LayoutName:
    for name, layout in _LAYOUTS.items():
        if layout.marker in tensors:
            return name
    expected = " nor ".join(repr(layout.marker) for layout in _LAYOUTS.values())
    raise InputError(
        f"{tensors.path}: neither {expected} is in it; give Wan 2.1's autoencoder, for "
        "example Wan2.1_VAE.pth"
    )


def _entry(ours: tuple, shape: tuple[int, ...], layout: _Layout, level: int) -> Entry:
    *modules, leaf = ours
    if "blocks" in modules:
        side, _, index, *inner = modules
        modules = [side, layout.block(side, index, level), *inner]
    parts = [layout.parts.get(m, m) for m in modules if m != "middle"]
    if leaf == "kernel":
        name, taps = ".".join([*parts, "weight"]), len(shape) - 2
        axes = (*range(2, 2 + taps), 1, 0)
        return Entry(name, (shape[-1], shape[-2], *shape[:-2]), ours, None, axes)
    if leaf == "gamma":
        shape = (*shape, 1, 1) if "attention" in modules else (*shape, 1, 1, 1)
    return Entry(".".join([*parts, leaf]), shape, ours, None, None)
