"""Whisper's published names (Hugging Face layout); only the encoder is read.

Torch kernels are (out, in, taps), ours (taps, in, out); Linear weights (out, in), ours
(in, out). Nothing is fused.
"""

from collections.abc import Iterator
from pathlib import Path

from flax import nnx

from tavr_jax.encoders.published import Entry, fill
from tavr_jax.encoders.tensors import open_tensors
from tavr_jax.encoders.whisper import WhisperEncoder

PREFIX = "model."  # of whole models
IGNORED = (
    r"decoder\..*",  # words from hidden states: we stop at the hidden states
    r"proj_out\..*",  # the same
)

_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "norm": "self_attn_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "norm_feed": "final_layer_norm",
}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def load_whisper(path: str | Path, module: WhisperEncoder) -> WhisperEncoder:
    """A copy of `module`, which may be abstract, with the weights of a published file.

    InputError names a tensor that is unknown, missing or misshapen.
    """
    tensors = open_tensors(path).without_prefix(PREFIX)
    return fill(tensors, module, entries(module), ignored=IGNORED)


def entries(module: WhisperEncoder) -> list[Entry]:
    """The table of `module`, without prefix."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return [
        entry
        for ours, variable in flat
        for entry in _entries(ours, tuple(variable.shape))
    ]


def _entries(ours: tuple, shape: tuple) -> Iterator[Entry]:
    if ours[0] == "layers":
        for layer in range(shape[0]):
            name = f"encoder.layers.{layer}.{_LAYER[ours[1]]}.{_LEAF[ours[2]]}"
            yield _entry(name, shape[1:], ours, layer)
    elif ours[0] == "positions":
        yield Entry("encoder.embed_positions.weight", shape, ours, None, None)
    else:
        module = "layer_norm" if ours[0] == "norm" else ours[0]
        yield _entry(f"encoder.{module}.{_LEAF[ours[1]]}", shape, ours, None)


def _entry(name: str, shape: tuple, ours: tuple, layer: int | None) -> Entry:
    if ours[-1] == "kernel":
        axes = tuple(range(len(shape)))[::-1]
        return Entry(name, shape[::-1], ours, layer, axes)
    return Entry(name, shape, ours, layer, None)
