"""Replays of the text encoder and of the cleaning of captions."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.parity_oracle import EXACT, FORWARD, Check, Oracle
from tavr_jax.encoders.captions import clean, without_gestures
from tavr_jax.encoders.umt5 import Umt5, relative_buckets
from tavr_jax.encoders.weights_umt5 import load_umt5
from tavr_jax.errors import InputError

_FILES = {
    "tavr": ("umt5.safetensors",),
    "wan": ("hf.safetensors", "wan.safetensors"),
    "bfloat16": ("wan_bf16.pth",),
}
_LENGTH = 512  # of the released wrapper's padding


def replay_umt5(oracle: Oracle) -> list[Check]:
    """TAVR's files: ids of one caption each, the rows of real tokens."""
    model = _load(oracle, "tavr")
    candidates = {}
    for name in oracle.names:
        if name.startswith("ids"):
            case = name.removeprefix("ids")
            candidates[f"out{case}"] = (
                lambda n=name: _padded(model, oracle[n]),
                FORWARD,
            )
            oracle.inputs.add(name)
    return oracle.checks(candidates)


def replay_wan_umt5(oracle: Oracle) -> list[Check]:
    """Wan's files: padded ids with and without mask, one layer, bfloat16 weights."""
    model = _load(oracle, "wan")
    half = functools.cache(lambda: _load(oracle, "bfloat16"))
    candidates = {}
    for name in oracle.names:
        if name.endswith("_ids"):
            case = name.removesuffix("_ids")
            candidates |= _case(oracle, model, half, case)
    c = model.config
    if "rel_pos" in oracle:
        relative = oracle["rel_pos"]
        candidates["rel_bucket"] = (
            lambda: relative_buckets(relative, c.buckets, c.max_distance),
            EXACT,
        )
    return oracle.checks(candidates)


def replay_text(oracle: Oracle) -> list[Check]:
    """Captions as they are written, without the gesture sentence, and cleaned."""
    inputs = oracle["input"]

    def each(function: Callable[[str], str]) -> np.ndarray:
        return np.array([function(str(text)) for text in inputs])

    return oracle.checks(
        {
            "after_gesture_removal": (lambda: each(without_gestures), EXACT),
            "cleaned": (lambda: each(lambda s: clean(without_gestures(s))), EXACT),
        }
    )


def _case(oracle: Oracle, model: Umt5, half: Callable, case: str) -> dict:
    """The arrays that one batch of ids has."""
    ids = oracle[f"{case}_ids"]
    masked = f"{case}_mask" in oracle
    mask = oracle[f"{case}_mask"].astype(bool) if masked else np.ones_like(ids, bool)
    lengths = oracle[f"{case}_lens"] if masked else mask.sum(1)
    hidden = functools.cache(lambda: _encode(model, ids, mask))
    found = {f"{case}_hidden": (hidden, FORWARD)}
    for row, length in enumerate(map(int, lengths)):
        one = slice(row, row + 1)

        def rows(row=row, length=length) -> np.ndarray:
            return hidden()[row, :length]

        def layer(index: int, one=one, length=length) -> np.ndarray:
            return _layer(model, ids[one], mask[one], index)[0, :length]

        def in_half(one=one, length=length) -> np.ndarray:
            return _encode(half(), ids[one], mask[one])[0, :length]

        found |= {
            f"{case}_hidden_valid{row}": (rows, FORWARD),
            f"{case}_hidden_row{row}_all": (lambda row=row: hidden()[row], FORWARD),
            f"{case}_bf16w_valid{row}": (in_half, FORWARD),
        }
        for index in range(model.config.num_layers):
            name = f"{case}_block{index}_row{row}"
            found[name] = (functools.partial(layer, index), FORWARD)
    return found


def _load(oracle: Oracle, kind: str) -> Umt5:
    """The encoder, from every layout the folder holds; they have to agree."""
    paths = [oracle.folder / name for name in _FILES[kind]]
    paths = [path for path in paths if path.is_file()] or paths[:1]
    first, *others = [load_umt5(path, "float32") for path in paths]
    weights = jax.tree.leaves(nnx.state(first))
    for path, other in zip(paths[1:], others, strict=True):
        pairs = zip(weights, jax.tree.leaves(nnx.state(other)), strict=True)
        if first.config != other.config or not all(
            bool((a == b).all()) for a, b in pairs
        ):
            raise InputError(f"{path}: holds another network than {paths[0].name}")
    return first


def _encode(model: Umt5, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray(model(jnp.asarray(ids, jnp.int32), jnp.asarray(mask)))


def _padded(model: Umt5, ids: np.ndarray) -> np.ndarray:
    """Rows of the real tokens of one caption."""
    padded = np.pad(ids, (0, _LENGTH - len(ids)))[None]
    return _encode(model, padded, np.arange(_LENGTH)[None] < len(ids))[0, : len(ids)]


def _layer(model: Umt5, ids: np.ndarray, mask: np.ndarray, last: int) -> np.ndarray:
    """Rows after a layer, which the encoder does not hand out."""
    layers = model.layers(model.embed(jnp.asarray(ids)), jnp.asarray(mask))
    return np.asarray(next(itertools.islice(layers, last, None)))
