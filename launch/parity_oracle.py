"""One file of recorded activations, and what TAVR's arrays mean to us.

TAVR's oracles are channel-first and have no batch axis; `to_ours` and `to_theirs`
convert. Every size comes from config.json or the arrays.
"""

import dataclasses
import functools
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.conditions import still_tokens
from tavr_jax.diffusion import guidance
from tavr_jax.encoders.tensors import open_tensors
from tavr_jax.encoders.weights_tavr import load_transformer
from tavr_jax.errors import InputError
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

LARGEST = 1 << 32  # bytes of arrays in one file: more is a bomb, not an oracle
FORWARD = 2e-5  # one forward pass, and every activation inside it
EXACT = 0.0

# Long-video rules of the release (TAVR_SPEC 12.5); no oracle varies them.
MOTION, TAIL = 2, 4


class Check(NamedTuple):
    """One expected array and how to compute ours."""

    name: str
    compute: Callable[[], np.ndarray]
    tolerance: float


class Oracle:
    """One .npz or .json of recorded arrays.

    `folder` holds it and the weights that made it, `config` is the folder's config.json
    ({} where there is none). It remembers which arrays were read as `inputs`; `reasons`
    says why others are not replayed.
    """

    def __init__(self, folder: Path, config: dict, arrays: dict[str, np.ndarray]):
        self.folder, self.config, self._arrays = folder, config, arrays
        self.inputs: set[str] = set()
        self.reasons: dict[str, str] = {}

    @classmethod
    def open(cls, path: Path) -> "Oracle":
        """InputError when a file cannot be read; nothing pickled is loaded."""
        settings = path.parent / "config.json"
        config = read_json(settings) if settings.is_file() else {}
        if path.suffix == ".json":
            return cls(path.parent, config, _columns(path, read_json(path)))
        return cls(path.parent, config, _arrays(path))

    @property
    def names(self) -> list[str]:
        """All arrays of the file."""
        return list(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise InputError(f"{self.folder}: array {name!r} is missing")
        self.inputs.add(name)
        return self._arrays[name]

    def expected(self, name: str) -> np.ndarray:
        """What ours is compared with."""
        return self._arrays[name]

    def checks(self, candidates: dict[str, tuple[Callable, float]]) -> list[Check]:
        """Those candidates that the file holds."""
        return [Check(n, *c) for n, c in candidates.items() if n in self._arrays]


def read_json(path: Path) -> dict:
    """An object. InputError: not there, not JSON, something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST:
            raise ValueError(f"{size:.1e} bytes unpacked")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zipfile and numpy raise whatever the damage broke
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable .npz ({why})") from error


def _columns(path: Path, table: dict) -> dict[str, np.ndarray]:
    """The rows under "cases" as one array of strings a field."""
    try:
        rows = table["cases"]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{path}: expected rows under 'cases' ({error!r})") from error


def load_model(oracle: Oracle, file: str, dtype: str = "float32") -> Transformer:
    """The network of config.json's sizes with a file's weights, strict both ways."""
    path = oracle.folder / file
    sizes = dict(oracle.config["transformer"])
    layers = [re.match(r"blocks\.(\d+)\.", name) for name in open_tensors(path)]
    sizes["num_layers"] = 1 + max(int(m[1]) for m in layers if m)
    sizes["patch_size"] = tuple(sizes["patch_size"])
    ours = {
        "still_bucket": 0,
        "reference_bucket": 0,
        "reference_attention": "global",
        "reference_window": 0,
        "latents_deviation": (),
        "attention": "auto",
        "dtype": dtype,
        "remat": "none",
    }
    fields = {f.name for f in dataclasses.fields(TransformerConfig)} - set(ours)
    missing = sorted(fields - set(sizes))
    if missing:
        raise InputError(
            f"{oracle.folder}/config.json: transformer.{missing[0]} is missing"
        )
    config = TransformerConfig(**{name: sizes[name] for name in fields}, **ours)
    empty = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return load_transformer(path, empty, dtype="file")


def to_ours(array: np.ndarray) -> jnp.ndarray:
    """(C, T, H, W) to (1, T, H, W, C)."""
    return jnp.moveaxis(jnp.asarray(array), 0, -1)[None]


def to_theirs(array: jnp.ndarray) -> np.ndarray:
    """(1, T, H, W, C) to (C, T, H, W)."""
    return np.moveaxis(np.asarray(array[0]), -1, 0)


def ref_row(model: Transformer) -> int:
    """Slot of the ref row: after the video latents."""
    return model.config.num_video_latents


def text_rows(oracle: Oracle, name: str) -> jnp.ndarray:
    """A caption's rows, zero-padded, with a batch axis."""
    rows = oracle[name]
    room = oracle.config["transformer"]["text_len"] - len(rows)
    return jnp.asarray(np.pad(rows, ((0, room), (0, 0))))[None]


def first_chunk(
    oracle: Oracle, prompt: str = "text_prompt", null: str = "text_null"
) -> Conditions:
    """Chunk 0 with every condition present; the ref row all valid."""
    still = to_ours(oracle["target"])
    previous = oracle["prev_chunk"] if "prev_chunk" in oracle else oracle["target"]
    audio = oracle["features" if "features" in oracle else "audio"]
    rows, columns = still.shape[2] // 2, still.shape[3] // 2
    slots = oracle.config["transformer"]["num_videoref_latents"]
    faces = (
        oracle["face_tokens"]
        if "face_tokens" in oracle
        else np.ones((slots, rows, columns), bool)
    )
    yes = jnp.array([True])
    motion = to_ours(previous[:, -MOTION:])
    return Conditions(
        still=still,
        still_tokens=jnp.ones((1, rows, columns), bool),
        motion=jnp.resize(motion, (1, MOTION, *motion.shape[2:])),
        has_motion=~yes,
        reference=to_ours(oracle["videoref"]),
        reference_tokens=jnp.asarray(faces)[None],
        text=text_rows(oracle, prompt),
        null_text=text_rows(oracle, null),
        audio=jnp.asarray(audio),
        has_audio=yes,
        reference_audio=jnp.asarray(oracle["ref_audio"]),
        has_reference_audio=yes,
    )


def valid_tokens(
    faces: np.ndarray, foreground: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Valid tokens of chunk 0 and of later chunks: video, ref row, reference."""
    h, w = faces.shape[1:]
    video = np.ones((slots, h, w), bool)
    full = np.ones((1, h, w), bool)
    background = still_tokens(foreground[0] > 0)[None]
    return (
        np.concatenate([video, background, faces]),
        np.concatenate([video, full, faces]),
    )


def network_of(model: Transformer) -> guidance.Network:
    """Jitted prefill and velocity."""
    graph, params = nnx.split(model)
    prefill = jax.jit(lambda p, c: nnx.merge(graph, p).prefill(c))
    velocity = jax.jit(lambda p, *a: nnx.merge(graph, p)(*a))
    return guidance.Network(
        functools.partial(prefill, params), functools.partial(velocity, params)
    )
