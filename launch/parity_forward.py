"""Replays of single forward passes: the network's inputs, outputs and activations."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from launch.parity_oracle import (
    EXACT,
    FORWARD,
    Check,
    Oracle,
    first_chunk,
    load_model,
    network_of,
    ref_row,
    text_rows,
    to_ours,
    to_theirs,
    valid_tokens,
)
from tavr_jax.diffusion import guidance
from tavr_jax.models import rope
from tavr_jax.models.layers import timestep_features
from tavr_jax.models.tokens import patchify
from tavr_jax.models.transformer import Transformer, main_input, reference_input
from tavr_jax.types import Conditions


def replay_forward(oracle: Oracle) -> list[Check]:
    """Inputs, six conditioning cases, activations of two of them, tables."""
    model = load_model(oracle, "transformer.safetensors")
    cases = _cases(oracle, model)
    first, following = cases["a"].conditions, cases["b"].conditions
    hidden = guidance.without_reference(first)
    masks = _masks(oracle, model)
    candidates = {
        "masks_first": (lambda: masks[0], EXACT),
        "masks_next": (lambda: masks[1], EXACT),
        "x_first": (
            lambda: to_theirs(main_input(to_ours(oracle["chunk"]), first)),
            EXACT,
        ),
        "x_next": (
            lambda: to_theirs(main_input(to_ours(oracle["chunk_next"]), following)),
            EXACT,
        ),
        "vref_in": (lambda: to_theirs(reference_input(first)), EXACT),
        "vref_in_hidden": (lambda: to_theirs(reference_input(hidden)), EXACT),
        **_tables(oracle, model),
    }
    for name, case in cases.items():
        candidates |= _activations(name, model, case)
        candidates |= _bfloat16(name, oracle, case, f"{name}_out_bf16")
    return oracle.checks(candidates)


def replay_bfloat16(oracle: Oracle) -> list[Check]:
    """Velocities with bfloat16 products against both records of each case."""
    model = load_model(oracle, "transformer.safetensors")
    candidates: dict = {}
    for name, case in _cases(oracle, model).items():
        for record in (f"{name}_out", f"{name}_out_bf16"):
            candidates |= _bfloat16(name, oracle, case, record)
    return oracle.checks(candidates)


def replay_forward_small(oracle: Oracle) -> list[Check]:
    """The one-block model whose small activations tell one epsilon from another."""
    model = load_model(oracle, "transformer_small.safetensors")
    masks = oracle["masks"]
    conditions = first_chunk(oracle, prompt="prompt", null="null")._replace(
        still_tokens=jnp.asarray(masks[ref_row(model)])[None],
        reference_tokens=jnp.asarray(masks[ref_row(model) + 1 :])[None],
    )
    t = jnp.asarray(oracle["timestep"], jnp.float32)[None]
    case = _Case(to_ours(oracle["chunk"]), t, conditions)
    found = _activations("x", model, case)
    return oracle.checks({name.removeprefix("x_"): c for name, c in found.items()})


class _Case(NamedTuple):
    """The arguments of one velocity."""

    latents: jnp.ndarray
    timestep: jnp.ndarray
    conditions: Conditions


def _masks(oracle: Oracle, model: Transformer) -> tuple[np.ndarray, np.ndarray]:
    slots = model.config.num_video_latents
    return valid_tokens(oracle["face_tokens"], oracle["foreground"], slots)


def _cases(oracle: Oracle, model: Transformer) -> dict[str, _Case]:
    """What each letter of the oracle's README means."""
    background = jnp.asarray(_masks(oracle, model)[0][ref_row(model)])[None]
    first = first_chunk(oracle)._replace(still_tokens=background)
    following = first._replace(
        has_motion=jnp.array([True]),
        still=to_ours(oracle["prev_chunk"][:, :1]),
        still_tokens=jnp.ones_like(background),
    )
    told = {
        "a": (first, "chunk"),
        "b": (following, "chunk_next"),
        "c": (guidance.without_audio(first), "chunk"),
        "d": (first._replace(text=text_rows(oracle, "text_negative")), "chunk"),
        "e": (guidance.without_reference(first), "chunk"),
        "f": (
            following._replace(has_reference_audio=jnp.array([False])),
            "chunk_next",
        ),
    }
    found = {}
    for name, (conditions, chunk) in told.items():
        if f"{name}_timestep" in oracle:
            t = jnp.asarray(oracle[f"{name}_timestep"], jnp.float32)[None]
            found[name] = _Case(to_ours(oracle[chunk]), t, conditions)
    return found


def _tables(oracle: Oracle, model: Transformer) -> dict[str, tuple[Callable, float]]:
    """RoPE tables in float64, timestep features."""
    c = model.config

    # Row r: temporal slot r (video, ref row, reference), row position r, column r.
    reference = c.videoref_rope_offset + np.arange(c.num_videoref_latents)
    slots = np.arange(c.num_video_latents), np.zeros(c.num_ref), reference
    times, places = np.concatenate(slots), np.arange(sum(map(len, slots)))

    def table(function) -> np.ndarray:
        t, y, x = rope.split_head(c.dim // c.num_heads)
        space = places * c.rope_spatial_stride
        turns = rope.angles(times, t), rope.angles(space, y), rope.angles(space, x)
        return np.concatenate([function(angle) for angle in turns], axis=1)

    def features() -> np.ndarray:
        t = jnp.asarray(oracle["sinus_t"], jnp.float32)
        return np.asarray(timestep_features(t, c.freq_dim))

    found = {"sinus_out": (features, FORWARD)}
    for name in oracle.names:
        kind = name.split("_")[:2]
        if kind[0] == "rope" and name.endswith("_raw"):
            function = {"cos": np.cos, "sin": np.sin}[kind[1]]
            found[name] = (functools.partial(table, function), FORWARD)
    oracle.inputs.add("sinus_t")
    return found


def _activations(
    name: str, model: Transformer, case: _Case
) -> dict[str, tuple[Callable, float]]:
    """A case's velocity by the scanned network, and by layer its activations."""
    unrolled = functools.cache(lambda: _unrolled(model, *case))
    names = ["patch_video", "patch_ref", "time_emb", "time_emb0", "time_proj"]
    names += ["time_proj_ref", "aud_tokens", "ref_aud_tokens", "head"]
    names += [f"block{i}" for i in range(model.config.num_layers)]
    for i in range(model.config.num_layers):
        parts = ("self_attn", "cross_attn", "audio_attn", "ref_audio_attn", "ffn")
        names += [f"b{i}_{part}" for part in parts]
    found = {f"{name}_{n}": (lambda n=n: unrolled()[n], FORWARD) for n in names}
    return {f"{name}_out": (lambda: _velocity(model, case), FORWARD), **found}


def _velocity(model: Transformer, case: _Case) -> np.ndarray:
    network = network_of(model)
    cache = network.prefill(case.conditions)
    return to_theirs(
        network.velocity(case.latents, case.timestep, case.conditions, cache)
    )


def _bfloat16(name: str, oracle: Oracle, case: _Case, record: str) -> dict:
    """The velocity with bfloat16 products, within three times what those cost."""
    cost = oracle.config["forward"].get("bf16_vs_f32_rel_l2", {}).get(name)
    if cost is None:
        return {}

    def velocity() -> np.ndarray:
        model = load_model(oracle, "transformer.safetensors", "bfloat16")
        return _velocity(model, case)

    return {record: (velocity, 3 * cost)}


def _unrolled(model, latents, t, conditions) -> dict[str, np.ndarray]:
    """The same layers one by one; valid tokens only, main before reference."""
    x, context = model.embed_main(latents, t, conditions)
    r, reference = model.embed_reference(conditions)
    x_valid, r_valid = np.asarray(context.valid[0]), np.asarray(reference.valid[0])
    size = model.config.patch_size
    grids = (main_input(latents, conditions), reference_input(conditions))
    video, ref = (to_theirs(model.patch(patchify(grid, size))) for grid in grids)
    found = {
        "patch_video": video,
        "patch_ref": ref,
        "time_emb": model.time(t)[0],
        "time_emb0": model.time(jnp.zeros(1))[0],
        "time_proj": context.modulation[0],
        "time_proj_ref": reference.modulation[0],
        "aud_tokens": context.audio[0],
        "ref_aud_tokens": reference.audio[0],
    }

    def both(main, ref) -> np.ndarray:
        return np.concatenate([main[0][x_valid], ref[0][r_valid]])

    graph, layers = nnx.split(model.blocks)
    for i in range(model.config.num_layers):
        block = nnx.merge(graph, jax.tree.map(lambda w, i=i: w[i], layers))
        b = block.reference(r, reference)
        a = block.main(x, context, b.keys, b.values, reference.valid)
        x, r = a.x, b.x
        found |= {
            f"b{i}_self_attn": both(a.self_attn, b.self_attn),
            f"b{i}_cross_attn": both(a.cross_attn, b.cross_attn),
            f"b{i}_audio_attn": a.audio_attn[0],
            f"b{i}_ref_audio_attn": b.audio_attn[0][r_valid],
            f"b{i}_ffn": both(a.ffn, b.ffn),
            f"block{i}": both(a.x, b.x),
        }
    found["head"] = model.head_patches(x[:, : context.layout.video], t)[0]
    return found
