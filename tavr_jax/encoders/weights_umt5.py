"""umT5's published names: Wan's own file and Hugging Face's, and the sizes they tell.

Wan: `models_t5_umt5-xxl-enc-bf16.pth`, TAVR_SPEC 5. Hugging Face: `google/umt5-xxl`
and the folder `text_encoder` of Wan's diffusers release. Both hold the same arrays.
The weights keep the dtype of the file: 5.7 billion of them in bfloat16 are 11.4 GB, and
there is never a float32 copy.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from flax import nnx

from tavr_jax.encoders.published import Entry, fill
from tavr_jax.encoders.tensors import Tensors, open_tensors
from tavr_jax.encoders.umt5 import Umt5, Umt5Config
from tavr_jax.errors import InputError

# What config.json says where there is one; no published umT5 says anything else.
_EPS, _MAX_DISTANCE = 1e-6, 128

WAN = {
    "embedding": "token_embedding.weight",
    "norm.scale": "norm.weight",
    "block": "blocks.{}.",
    "norm1.scale": "norm1.weight",
    "attention.q.kernel": "attn.q.weight",
    "attention.k.kernel": "attn.k.weight",
    "attention.v.kernel": "attn.v.weight",
    "attention.o.kernel": "attn.o.weight",
    "attention.table": "pos_embedding.embedding.weight",
    "norm2.scale": "norm2.weight",
    "ffn.gate.kernel": "ffn.gate.0.weight",
    "ffn.up.kernel": "ffn.fc1.weight",
    "ffn.down.kernel": "ffn.fc2.weight",
}
HUGGING_FACE = {
    "embedding": "shared.weight",
    "norm.scale": "encoder.final_layer_norm.weight",
    "block": "encoder.block.{}.",
    "norm1.scale": "layer.0.layer_norm.weight",
    "attention.q.kernel": "layer.0.SelfAttention.q.weight",
    "attention.k.kernel": "layer.0.SelfAttention.k.weight",
    "attention.v.kernel": "layer.0.SelfAttention.v.weight",
    "attention.o.kernel": "layer.0.SelfAttention.o.weight",
    "attention.table": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.scale": "layer.1.layer_norm.weight",
    "ffn.gate.kernel": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.up.kernel": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.down.kernel": "layer.1.DenseReluDense.wo.weight",
}
_IGNORED = (
    r"encoder\.embed_tokens\.weight",  # the same array as shared.weight
    r"decoder\..*",  # captions are only encoded
    r"lm_head\.weight",  # the decoder's
    r"spiece_model",  # ComfyUI keeps the tokenizer's file among the weights
)


def load_umt5(path: str | Path, dtype: str) -> Umt5:
    """The encoder of a published file, its products in `dtype`.

    `path` is whatever `open_tensors` reads, in either layout. InputError names a
    tensor that is unknown, missing or misshapen.
    """
    tensors = open_tensors(path)
    names = _layout(tensors)
    config = _config(tensors, names, dtype)
    empty = nnx.eval_shape(lambda: Umt5(config, rngs=nnx.Rngs(0)))
    return fill(tensors, empty, entries(empty, names), ignored=_IGNORED, dtype="file")


def entries(module: Umt5, names: Mapping[str, str] = WAN) -> list[Entry]:
    """Every parameter's published name and shape; `names` is one of the layouts."""
    found = []
    for ours, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        turned = (1, 0) if ours[-1] == "kernel" else None
        if ours[0] != "blocks":
            official = names[".".join(ours)]
            found.append(Entry(official, variable.shape, ours, None, turned))
            continue
        shape = variable.shape[1:]
        shape = shape[::-1] if turned else shape
        for layer in range(module.config.num_layers):
            official = names["block"].format(layer) + names[".".join(ours[1:])]
            found.append(Entry(official, shape, ours, layer, turned))
    return found


def _layout(tensors: Tensors) -> dict[str, str]:
    if WAN["embedding"] in tensors:
        return WAN
    for embedding in (HUGGING_FACE["embedding"], "encoder.embed_tokens.weight"):
        if embedding in tensors:
            # Tied tensors are stored once, under either name.
            return {**HUGGING_FACE, "embedding": embedding}
    raise InputError(
        f"{tensors.path}: neither {WAN['embedding']!r} nor "
        f"{HUGGING_FACE['embedding']!r} is in it; give the umT5 encoder, for example "
        "models_t5_umt5-xxl-enc-bf16.pth"
    )


def _config(tensors: Tensors, names: Mapping[str, str], dtype: str) -> Umt5Config:
    """Sizes from the shapes, the rest from config.json where there is one."""
    layer = re.compile(re.escape(names["block"]).replace(r"\{\}", r"(\d+)"))
    layers = {int(m[1]) for m in map(layer.match, tensors) if m}
    first = names["block"].format(0)
    needed = {
        part: names["embedding"] if part == "embedding" else first + names[part]
        for part in ("embedding", "attention.table", "attention.q.kernel")
    }
    needed["ffn"] = first + names["ffn.up.kernel"]
    for name in needed.values():
        if name not in tensors or len(tensors.shape(name)) != 2:
            raise InputError(
                f"{tensors.path}: tensor {name!r}, a matrix, is missing; is the file a "
                "complete umT5 encoder?"
            )
    vocabulary, dim = tensors.shape(needed["embedding"])
    buckets, heads = tensors.shape(needed["attention.table"])
    settings = _settings(Path(tensors.path))
    return Umt5Config(
        vocabulary=vocabulary,
        dim=dim,
        ffn_dim=tensors.shape(needed["ffn"])[0],
        head_dim=tensors.shape(needed["attention.q.kernel"])[0] // heads,
        num_heads=heads,
        num_layers=1 + max(layers),
        buckets=buckets,
        max_distance=settings.get("relative_attention_max_distance", _MAX_DISTANCE),
        eps=settings.get("layer_norm_epsilon", _EPS),
        dtype=dtype,
    )


def _settings(path: Path) -> dict:
    """Hugging Face's config.json beside the weights, if it is a umT5's."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # Wan's file brings none
    is_umt5 = isinstance(found, dict) and found.get("model_type") == "umt5"
    return found if is_umt5 else {}
