"""Replays of Wan 2.1's transformer through ours, filled as training fills it.

Wan's network is TAVR's without a valid ref-row token, without a valid reference token,
without audio and with unscaled row and column positions.
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.parity_oracle import FORWARD, Check, Oracle
from tavr_jax.diffusion import guidance
from tavr_jax.encoders.published import Entry
from tavr_jax.encoders.weights_wan import entries, load_wan, open_wan
from tavr_jax.errors import InputError
from tavr_jax.models import rope
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

GRADIENT = 1e-4

# Text rows of the original code, zero rows included; config.json does not say it.
_TEXT_LEN = 512
# What Wan has not and what therefore must not matter; as small as can be.
_OURS = {
    "audio_dim": 8,
    "videoref_audio_dim": 8,
    "adapter_dim": 4,
    "videoref_rope_offset": 256,
    "adapter_norm_eps": 1e-5,
    "audio_window": 12,
    "audio_per_latent": 4,
    "num_ref": 1,
    "num_videoref_latents": 1,
    "still_bucket": 0,
    "reference_bucket": 0,
    "reference_attention": "global",
    "reference_window": 0,
    "latents_deviation": (),
    "attention": "auto",
    "dtype": "float32",
    "remat": "none",
}
_FILES = (
    "wan.safetensors",
    "diffusers.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
_IMAGE = "image-to-video: TAVR is grown from text-to-video and reads no image tokens"
_PER_TOKEN = "one timestep a token: TAVR has one a chunk (TAVR_SPEC 10.2, 12.5)"


class Identity(nnx.Module):
    """In the place of a norm that a Wan without `cross_attn_norm` has not."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Nothing is done."""
        return x


def replay_dit(oracle: Oracle) -> list[Check]:
    """All cases: velocities, activations, tables, gradients, guidance."""
    sizes = oracle.config
    if sizes.get("image_dim"):
        oracle.reasons |= dict.fromkeys(oracle.names, _IMAGE)
        return []
    model, paths = _load(oracle, bool(sizes.get("cross_attn_norm", True)))
    candidates = {}
    for case in sorted({name.split("_")[0] for name in oracle.names}):
        mine = [name for name in oracle.names if name.startswith(f"{case}_")]
        if f"{case}_t_tokens" in oracle:
            oracle.reasons |= dict.fromkeys(mine, _PER_TOKEN)
        elif f"{case}_x" in oracle:
            candidates |= _velocities(oracle, model, case)
            candidates |= _activations(oracle, model, case)
            if f"{case}_target" in oracle:
                candidates |= _gradients(oracle, model, case, paths)
        else:
            candidates |= _guided(oracle, model, case)
    return oracle.checks(candidates)


def _config(oracle: Oracle) -> TransformerConfig:
    wan = oracle.config
    try:
        return TransformerConfig(
            dim=wan["num_attention_heads"] * wan["attention_head_dim"],
            ffn_dim=wan["ffn_dim"],
            num_heads=wan["num_attention_heads"],
            num_layers=wan["num_layers"],
            freq_dim=wan["freq_dim"],
            text_dim=wan["text_dim"],
            text_len=_TEXT_LEN,
            in_channels=wan["in_channels"] + 2,
            out_dim=wan["out_channels"],
            patch_size=tuple(wan["patch_size"]),
            rope_spatial_stride=1.0,
            eps=wan["eps"],
            num_video_latents=1,  # grids come from the inputs
            **_OURS,
        )
    except KeyError as error:
        raise InputError(f"{oracle.folder}/config.json: {error} is missing") from error


def _load(oracle: Oracle, cross_norm: bool) -> tuple[Transformer, list[Path]]:
    """The network, from every layout the folder holds; they have to agree."""
    paths = [oracle.folder / name for name in _FILES]
    paths = [path for path in paths if path.is_file()] or paths[:1]
    empty = _drawn(_config(oracle))
    if not cross_norm:
        empty.blocks.norm3 = Identity()
    first, *others = [load_wan(path, empty) for path in paths]
    weights = jax.tree.leaves(nnx.state(first))
    for path, other in zip(paths[1:], others, strict=True):
        pairs = zip(weights, jax.tree.leaves(nnx.state(other)), strict=True)
        if not all(bool((a == b).all()) for a, b in pairs):
            raise InputError(f"{path}: holds another network than {paths[0].name}")
    return first, paths


def _drawn(config: TransformerConfig) -> Transformer:
    """Random numbers everywhere: what Wan has not may not matter, whatever it is."""
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), shapes
        ),
    )


def _conditions(
    config: TransformerConfig, latents: jax.Array, text: jax.Array
) -> Conditions:
    """Nothing but text. `latents` (B, T, H, W, C) gives the grid."""
    batch, slots, rows, columns, channels = latents.shape
    still = jnp.zeros((batch, 1, rows, columns, channels))
    h, w = rows // config.patch_size[1], columns // config.patch_size[2]
    no = jnp.zeros(batch, bool)
    audio = jnp.zeros((batch, config.audio_per_latent * (slots - 1) + 1, 8))
    return Conditions(
        still=still,
        still_tokens=jnp.zeros((batch, h, w), bool),
        motion=still,
        has_motion=no,
        reference=still,
        reference_tokens=jnp.zeros((batch, 1, h, w), bool),
        text=text,
        null_text=jnp.zeros_like(text),
        audio=audio,
        has_audio=no,
        reference_audio=jnp.zeros((batch, config.audio_per_latent, 8)),
        has_reference_audio=no,
    )


def _inputs(
    oracle: Oracle, model: Transformer, case: str, pad: int
) -> tuple[jax.Array, jax.Array, Conditions]:
    """Latents, timesteps and conditions; text with zero rows up to `pad`."""
    latents = jnp.moveaxis(jnp.asarray(oracle[f"{case}_x"]), 1, -1)
    text = _text(oracle, case, pad)
    told = _conditions(model.config, latents, text)
    return latents, jnp.asarray(oracle[f"{case}_t"], jnp.float32), told


def _text(oracle: Oracle, case: str, pad: int) -> jax.Array:
    rows = oracle[f"{case}_text"]
    if f"{case}_text_lens" in oracle:
        lengths, pad = oracle[f"{case}_text_lens"], _TEXT_LEN
        rows = rows * (np.arange(rows.shape[1])[None] < lengths[:, None])[..., None]
    return jnp.asarray(np.pad(rows, ((0, 0), (0, max(0, pad - rows.shape[1])), (0, 0))))


@nnx.jit
def _velocity(model: Transformer, latents, t, conditions) -> jax.Array:
    return model(latents, t, conditions, model.prefill(conditions))


def _velocities(oracle: Oracle, model: Transformer, case: str) -> dict:
    """`_v`, and `_v_padN` with the text padded to N rows."""

    def velocity(pad: int) -> np.ndarray:
        out = _velocity(model, *_inputs(oracle, model, case, pad))
        return np.moveaxis(np.asarray(out), -1, 1)

    stem = f"{case}_v_pad"
    pads = {n: int(n.removeprefix(stem)) for n in oracle.names if n.startswith(stem)}
    _mark(oracle, case)
    return {
        name: (functools.partial(velocity, pad), FORWARD)
        for name, pad in {f"{case}_v": 0, **pads}.items()
    }


def _mark(oracle: Oracle, case: str) -> None:
    kinds = ("x", "t", "text", "text_lens", "target")
    oracle.inputs |= {n for n in (f"{case}_{kind}" for kind in kinds) if n in oracle}


def _activations(oracle: Oracle, model: Transformer, case: str) -> dict:
    """Terms of every block, of the tokens of the chunk; tables of positions."""
    traced = functools.cache(lambda: _trace(model, *_inputs(oracle, model, case, 0)))
    names = ["patch", "temb", "time_proj"]
    for i in range(model.config.num_layers):
        parts = ("_self_attn", "_cross_attn", "_ffn", "")
        names += [f"block{i}{part}" for part in parts]
    found = {f"{case}_trace_{n}": (lambda n=n: traced()[n], FORWARD) for n in names}

    def text() -> np.ndarray:
        kept = oracle.expected(f"{case}_trace_text_emb").shape[1]
        return traced()["text_emb"][:, :kept]

    found[f"{case}_trace_text_emb"] = (text, FORWARD)
    for name in ("cos", "sin"):
        table = functools.partial(_table, oracle, model.config, case, name)
        found[f"{case}_rope_{name}"] = (table, FORWARD)
    return found


@nnx.jit
def _trace(model: Transformer, latents, t, conditions) -> dict[str, jax.Array]:
    """The layers one by one; the tokens of the chunk only."""
    x, context = model.embed_main(latents, t, conditions)
    r, reference = model.embed_reference(conditions)
    batch, video = len(latents), context.layout.video
    found = {
        "patch": x[:, :video],
        "temb": model.time(t),
        "time_proj": context.modulation.reshape(batch, -1),
        "text_emb": context.text,
    }
    graph, layers = nnx.split(model.blocks)
    for i in range(model.config.num_layers):
        block = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], layers))
        b = block.reference(r, reference)
        a = block.main(x, context, b.keys, b.values, reference.valid)
        x, r = a.x, b.x
        found |= {
            f"block{i}_self_attn": a.self_attn[:, :video],
            f"block{i}_cross_attn": a.cross_attn[:, :video],
            f"block{i}_ffn": a.ffn[:, :video],
            f"block{i}": x[:, :video],
        }
    return found


def _table(
    oracle: Oracle, config: TransformerConfig, case: str, name: str
) -> np.ndarray:
    """Cosines or sines of every token, each written for both channels of its pair."""
    slots, rows, columns = oracle[f"{case}_x"].shape[2:]
    grid = rows // config.patch_size[1], columns // config.patch_size[2]
    places = np.indices((slots, *grid)).reshape(3, -1)
    head = config.dim // config.num_heads
    tables = rope.table(*map(jnp.asarray, places), head, np.arange(slots), grid, 1.0)
    return np.repeat(np.asarray(tables[name == "sin"]), 2, axis=-1)


def _gradients(
    oracle: Oracle, model: Transformer, case: str, paths: list[Path]
) -> dict:
    """mean((v - target)^2), its slopes by Wan's names, and their norms."""
    target = jnp.moveaxis(jnp.asarray(oracle[f"{case}_target"]), 1, -1)

    @nnx.jit
    def slopes(model, latents, t, conditions):
        def loss(model, latents):
            v = model(latents, t, conditions, model.prefill(conditions))
            return jnp.square(v - target).mean()

        return nnx.value_and_grad(loss, argnums=(0, 1))(model, latents)

    run = functools.cache(lambda: slopes(model, *_inputs(oracle, model, case, 0)))

    @functools.cache
    def named() -> dict[str, np.ndarray]:
        state = dict(nnx.to_flat_state(run()[1][0]))
        layouts = {open_wan(path)[1] for path in paths}
        return {
            e.official: _published(e, np.asarray(state[e.ours].get_value()))
            for diffusers in layouts
            for e in entries(model, diffusers=diffusers)
        }

    def norms() -> np.ndarray:
        names = oracle[f"{case}_grad_norms_names"]
        return np.array([np.linalg.norm(named()[str(name)]) for name in names])

    def norm() -> np.ndarray:
        one = entries(model, diffusers=open_wan(paths[0])[1])
        return np.sqrt(sum(np.sum(named()[e.official] ** 2.0) for e in one))

    stem = f"{case}_grad."
    tensors = {
        name: (lambda n=name: named()[n.removeprefix(stem)], GRADIENT)
        for name in oracle.names
        if name.startswith(stem)
    }
    oracle.inputs |= {f"{case}_grad_norms_names"} & set(oracle.names)
    return {
        f"{case}_loss": (lambda: np.asarray(run()[0]), FORWARD),
        f"{case}_grad_x": (lambda: _first(run()[1][1]), GRADIENT),
        f"{case}_grad_norm": (norm, GRADIENT),
        f"{case}_grad_norms": (norms, GRADIENT),
        **tensors,
    }


def _first(latents: jax.Array) -> np.ndarray:
    """Channel-first."""
    return np.moveaxis(np.asarray(latents), -1, 1)


def _published(e: Entry, array: np.ndarray) -> np.ndarray:
    """A slope in the layout of its weight; the patch embedding without its masks."""
    array = array if e.layer is None else array[e.layer]
    if math.prod(e.shape) != array.size:
        pixels, channels = math.prod(e.shape[2:]), e.shape[1]
        array = array.reshape(pixels, -1, e.shape[0])[:, :channels]
    if e.axes is None:
        return array.reshape(e.shape)
    turned = array.reshape([e.shape[axis] for axis in e.axes])
    return turned.transpose(np.argsort(e.axes))


def _guided(oracle: Oracle, model: Transformer, case: str) -> dict:
    """Another text of an earlier case's latents, and guidance away from it."""
    found: dict[str, tuple[Callable, float]] = {}
    pattern = re.compile(rf"{re.escape(case)}_v_(?:uncond|cfg([\d.]+))")
    kinds = {n: m[1] for n in oracle.names if (m := pattern.fullmatch(n))}
    base = _like(oracle, [oracle.expected(name).shape for name in kinds])
    if base is None or f"{case}_text" not in oracle:
        return found
    _mark(oracle, case)

    def velocity(scale: float | None) -> np.ndarray:
        latents, t, told = _inputs(oracle, model, base, 0)
        negative = _text(oracle, case, told.text.shape[1])
        if scale is None:
            return _first(_velocity(model, latents, t, told._replace(text=negative)))
        return _first(_guide(model, latents, t, told, negative, scale))

    for name, kind in kinds.items():
        scale = None if kind is None else float(kind)
        found[name] = (functools.partial(velocity, scale), FORWARD)
    return found


def _like(oracle: Oracle, shapes: list[tuple[int, ...]]) -> str | None:
    """The first case whose latents have this shape."""
    for name in oracle.names:
        case = name.removesuffix("_x")
        if case != name and oracle.expected(name).shape in shapes:
            return case
    return None


@functools.partial(nnx.jit, static_argnames="scale")
def _guide(model: Transformer, latents, t, told, negative, scale: float) -> jax.Array:
    network = guidance.Network(
        lambda conditions: model.prefill(conditions), lambda *a: model(*a)
    )
    return guidance.guided(network, told, negative, scale, 1.0)(latents, t)
