"""wav2vec 2.0's published names (Hugging Face layout), TAVR_SPEC 3.2.

Torch kernels are (out, in, taps), ours (taps, in, out); Linear weights (out, in), ours
(in, out). The positional kernel is weight-normalised: v and one gain g a tap, kept
apart here too. Older files call them weight_v and weight_g, newer ones
parametrizations.weight.original1 and original0. CTC models put "wav2vec2." in front.
"""

from collections.abc import Iterator
from pathlib import Path

from flax import nnx

from tavr_jax.encoders.published import Entry, fill
from tavr_jax.encoders.tensors import open_tensors
from tavr_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config

PREFIX = "wav2vec2."
# (gain, direction) of the positional kernel
OLD = ("weight_g", "weight_v")
NEW = ("parametrizations.weight.original0", "parametrizations.weight.original1")
IGNORED = (
    r"lm_head\..*",  # characters from hidden states: we stop at the hidden states
    r"masked_spec_embed",  # stands in for masked steps, in training only
    r"(quantizer|project_hid|project_q)\..*",  # targets of the pre-training loss
)

_LINEAR, _CONV = (1, 0), (2, 1, 0)
# our module -> the published one, inside a layer
_LAYER = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.out_proj",
    "norm": "layer_norm",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "norm_out": "final_layer_norm",
}
_TOP = {
    "features_norm": "feature_projection.layer_norm",
    "projection": "feature_projection.projection",
    "norm": "encoder.layer_norm",
}
_POSITIONS = "encoder.pos_conv_embed.conv"


def published_wav2vec2(folder: str | Path) -> Wav2Vec2:
    """The network of a published folder: config.json, and the weights beside it.

    InputError: one of them is missing or not sound.
    """
    config = Wav2Vec2Config.from_json(Path(folder) / "config.json")
    empty = nnx.eval_shape(lambda: Wav2Vec2(config, rngs=nnx.Rngs(0)))
    return load_wav2vec2(folder, empty)


def load_wav2vec2(path: str | Path, module: Wav2Vec2) -> Wav2Vec2:
    """A copy of `module`, which may be abstract, with the weights of a published file.

    `path`: safetensors, an index, pytorch_model.bin, or a folder of one of them.
    InputError names a tensor that is unknown, missing or misshapen.
    """
    tensors = open_tensors(path).without_prefix(PREFIX)
    layout = OLD if f"{_POSITIONS}.{OLD[0]}" in tensors else NEW
    return fill(tensors, module, entries(module, layout), ignored=IGNORED)


def entries(module: Wav2Vec2, layout: tuple[str, str] = NEW) -> list[Entry]:
    """The table of `module`, without prefix; `layout` is OLD or NEW."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return [
        entry
        for ours, variable in flat
        for entry in _entries(ours, tuple(variable.shape), layout)
    ]


def _entries(ours: tuple, shape: tuple, layout: tuple[str, str]) -> Iterator[Entry]:
    part, leaf = ours[0], ours[-1]
    if part == "front":
        inner = "layer_norm" if ours[2] == "norm" else "conv"
        name = f"feature_extractor.conv_layers.{ours[1]}.{inner}"
        yield _entry(name, leaf, shape, ours, None)
    elif part == "positions":
        yield _positions(ours, shape, layout)
    elif part == "layers":
        for layer in range(shape[0]):
            name = f"encoder.layers.{layer}.{_LAYER[ours[1]]}"
            yield _entry(name, leaf, shape[1:], ours, layer)
    else:
        yield _entry(_TOP[part], leaf, shape, ours, None)


def _positions(ours: tuple, shape: tuple, layout: tuple[str, str]) -> Entry:
    if ours[1] == "gain":
        name, published, axes = layout[0], (1, 1, *shape), None
    elif ours[1] == "direction":
        name, published, axes = layout[1], shape[::-1], _CONV
    else:
        name, published, axes = "bias", shape, None
    return Entry(f"{_POSITIONS}.{name}", published, ours, None, axes)


def _entry(name: str, leaf: str, shape: tuple, ours: tuple, layer) -> Entry:
    if leaf == "kernel":
        axes = _LINEAR if len(shape) == 2 else _CONV
        return Entry(f"{name}.weight", shape[::-1], ours, layer, axes)
    leaf = "weight" if leaf == "scale" else leaf
    return Entry(f"{name}.{leaf}", shape, ours, layer, None)
