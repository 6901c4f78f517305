"""How each file of a TAVR oracle folder is replayed.

A replay returns checks: the name of an expected array, a function that computes ours,
and the relative L2 error allowed. Every size comes from config.json or the arrays.
Oracles are channel-first and have no batch axis; `_in` and `_out` convert.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.conditions import still_tokens
from tavr_jax.diffusion import chunks, guidance, sampler, schedule
from tavr_jax.encoders.tensors import read_tensors
from tavr_jax.encoders.weights_tavr import load_transformer
from tavr_jax.errors import InputError
from tavr_jax.models import rope
from tavr_jax.models.layers import timestep_features
from tavr_jax.models.transformer import (
    Transformer,
    TransformerConfig,
    main_input,
    reference_input,
)
from tavr_jax.types import Conditions

FORWARD = 2e-5  # one forward pass, and every activation inside it
SIGMAS = 1e-6
EXACT = 0.0
SAMPLING = 5e-4  # a complete run
ROUNDED = 1e-3  # the same with bfloat16 rounding, whose flips amplify differences

# The solver-only traces were made on the default shift.
SOLVER_SHIFT = 5.0

# Long-video rules of the release (TAVR_SPEC 12.5); no oracle varies them.
MOTION, TAIL = 2, 4


class Check(NamedTuple):
    """One expected array and how to compute ours."""

    name: str
    compute: Callable[[], np.ndarray]
    tolerance: float


class Oracle:
    """One .npz of a folder; remembers which arrays were read as inputs."""

    def __init__(self, folder: Path, config: dict, arrays: dict[str, np.ndarray]):
        self.folder, self.config, self._arrays = folder, config, arrays
        self.inputs: set[str] = set()

    @classmethod
    def open(cls, folder: Path, path: Path) -> "Oracle":
        """InputError when a file cannot be read; nothing pickled is loaded."""
        try:
            config = json.loads((folder / "config.json").read_text())
            with np.load(path, allow_pickle=False) as file:
                return cls(folder, config, dict(file))
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not a readable .npz ({error})") from error

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


def replay_forward(oracle: Oracle) -> list[Check]:
    """Inputs, six conditioning cases, activations of two of them, tables."""
    model = _model(oracle, "transformer.safetensors")
    told = _conditions(oracle)
    first_masks, next_masks = _valid_tokens(
        oracle["face_tokens"], oracle["foreground"], model.config.num_video_latents
    )
    first = told._replace(still_tokens=jnp.asarray(first_masks[_ref_row(model)])[None])
    following = first._replace(
        has_motion=jnp.array([True]),
        still=_in(oracle["prev_chunk"][:, :1]),
        still_tokens=jnp.ones_like(first.still_tokens),
    )
    cases = {
        "a": (first, "chunk"),
        "b": (following, "chunk_next"),
        "c": (guidance.without_audio(first), "chunk"),
        "d": (first._replace(text=_text(oracle, "text_negative")), "chunk"),
        "e": (guidance.without_reference(first), "chunk"),
        "f": (
            following._replace(has_reference_audio=jnp.array([False])),
            "chunk_next",
        ),
    }
    hidden = guidance.without_reference(first)
    candidates = {
        "masks_first": (lambda: first_masks, EXACT),
        "masks_next": (lambda: next_masks, EXACT),
        "x_first": (lambda: _out(main_input(_in(oracle["chunk"]), first)), EXACT),
        "x_next": (
            lambda: _out(main_input(_in(oracle["chunk_next"]), following)),
            EXACT,
        ),
        "vref_in": (lambda: _out(reference_input(first)), EXACT),
        "vref_in_hidden": (lambda: _out(reference_input(hidden)), EXACT),
        **_tables(oracle, model),
    }
    for case, (conditions, chunk) in cases.items():
        if f"{case}_timestep" not in oracle:
            continue
        latents = _in(oracle[chunk])
        t = jnp.asarray(oracle[f"{case}_timestep"], jnp.float32)[None]
        candidates |= _activations(case, model, latents, t, conditions)
        candidates |= _bfloat16(case, oracle, latents, t, conditions)
    return oracle.checks(candidates)


def replay_forward_small(oracle: Oracle) -> list[Check]:
    """The one-block model whose small activations tell one epsilon from another."""
    model = _model(oracle, "transformer_small.safetensors")
    masks = oracle["masks"]
    conditions = _conditions(oracle, prompt="prompt", null="null")._replace(
        still_tokens=jnp.asarray(masks[_ref_row(model)])[None],
        reference_tokens=jnp.asarray(masks[_ref_row(model) + 1 :])[None],
    )
    t = jnp.asarray(oracle["timestep"], jnp.float32)[None]
    found = _activations("x", model, _in(oracle["chunk"]), t, conditions)
    return oracle.checks({name.removeprefix("x_"): c for name, c in found.items()})


def replay_schedule(oracle: Oracle) -> list[Check]:
    """Grids, and the solver's states on given velocities."""
    candidates = {}
    for name in oracle.names:
        kind, *rest = name.split("_")
        if kind == "timesteps":
            candidates[name] = (lambda r=rest: _timesteps(*r), EXACT)
        elif kind == "sigmas":
            candidates[name] = (
                lambda r=rest: schedule.unipc(int(r[0]), float(r[1])).sigmas,
                SIGMAS,
            )
        elif name.startswith("solver_state_"):
            oracle.inputs |= {name.replace("state", "pred"), "solver_x"}
            candidates[name] = (functools.partial(_solver, oracle, *rest[1:]), FORWARD)
    return oracle.checks(candidates)


def replay_sampler(oracle: Oracle) -> list[Check]:
    """Complete runs of config.json's `runs`."""
    model = _model(oracle, "transformer.safetensors")
    candidates = {}
    for run, settings in oracle.config["runs"].items():
        if f"{run}_canvas_noise" not in oracle:
            continue
        oracle.inputs |= {f"{run}_canvas_noise", f"{run}_extra_noise"}
        for ending, rounded, tolerance in (
            ("nocast", False, SAMPLING),
            ("cast", True, ROUNDED),
        ):
            sample = functools.partial(_run, oracle, model, run, settings, rounded)
            candidates[f"{run}_final_{ending}"] = (sample, tolerance)
        if "bf16_vs_f32_rel_l2" in settings:
            half = functools.partial(_model, oracle, "transformer.safetensors")
            candidates[f"{run}_final_bf16"] = (
                lambda r=run, s=settings, m=half: _run(
                    oracle, m("bfloat16"), r, s, rounded=True
                ),
                3 * settings["bf16_vs_f32_rel_l2"],
            )
        trace = functools.cache(functools.partial(_trace, oracle, model, run, settings))
        for index, kind in enumerate(("pred", "in", "out")):
            candidates[f"{run}_trace_{kind}"] = (
                lambda t=trace, i=index: t()[i],
                SAMPLING,
            )
    return oracle.checks(candidates)


def replay_chunking(oracle: Oracle) -> list[Check]:
    """Integer bookkeeping of long videos."""
    size = oracle.config["transformer"]["num_video_latents"]
    make = functools.partial(chunks.plan, size=size, motion=MOTION, tail=TAIL)
    masks = _valid_tokens(oracle["vm_face"], oracle["vm_fg"], size)

    def plans() -> np.ndarray:
        found = [make(int(frames)) for frames in oracle.expected("plan")[:, 0]]
        return np.array([(p.frames, p.latents, len(p.spans), p.canvas) for p in found])

    def spans() -> np.ndarray:
        rows = oracle.expected("spans")[:, :2]
        return np.array([(f, i, *make(int(f)).spans[i]) for f, i in rows])

    def windows() -> np.ndarray:
        track = jnp.asarray(oracle["slice_track"])[None, :, None]
        found = [chunks.audio_window(track, i, size, MOTION) for i in (0, 0, 1)]
        return np.stack([np.asarray(w)[0, :, 0] for w in found])

    oracle.inputs.add("slice_track")
    return oracle.checks(
        {
            "plan": (plans, EXACT),
            "spans": (spans, EXACT),
            "slice_out": (windows, EXACT),
            "vm_first": (lambda: masks[0], EXACT),
            "vm_next": (lambda: masks[1], EXACT),
        }
    )


def _model(oracle: Oracle, file: str, dtype: str = "float32") -> Transformer:
    path = oracle.folder / file
    sizes = dict(oracle.config["transformer"])
    layers = [re.match(r"blocks\.(\d+)\.", name) for name in read_tensors(path)]
    sizes["num_layers"] = 1 + max(int(m[1]) for m in layers if m)
    sizes["patch_size"] = tuple(sizes["patch_size"])
    ours = {
        "still_bucket": 0,
        "reference_bucket": 0,
        "dtype": dtype,
        "remat": False,
    }
    fields = {f.name for f in dataclasses.fields(TransformerConfig)} - set(ours)
    missing = sorted(fields - set(sizes))
    if missing:
        raise InputError(
            f"{oracle.folder}/config.json: transformer.{missing[0]} is missing"
        )
    config = TransformerConfig(**{name: sizes[name] for name in fields}, **ours)
    model = Transformer(config, rngs=nnx.Rngs(0))
    load_transformer(path, model, config.patch_size)
    return model


def _in(array: np.ndarray) -> jnp.ndarray:
    """(C, T, H, W) to (1, T, H, W, C)."""
    return jnp.moveaxis(jnp.asarray(array), 0, -1)[None]


def _out(array: jnp.ndarray) -> np.ndarray:
    """(1, T, H, W, C) to (C, T, H, W)."""
    return np.moveaxis(np.asarray(array[0]), -1, 0)


def _ref_row(model: Transformer) -> int:
    return model.config.num_video_latents


def _text(oracle: Oracle, name: str) -> jnp.ndarray:
    rows = oracle[name]
    room = oracle.config["transformer"]["text_len"] - len(rows)
    return jnp.asarray(np.pad(rows, ((0, room), (0, 0))))[None]


def _conditions(
    oracle: Oracle, prompt: str = "text_prompt", null: str = "text_null"
) -> Conditions:
    """Chunk 0 with every condition present; the ref row all valid."""
    still = _in(oracle["target"])
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
    motion = _in(previous[:, -MOTION:])
    return Conditions(
        still=still,
        still_tokens=jnp.ones((1, rows, columns), bool),
        motion=jnp.resize(motion, (1, MOTION, *motion.shape[2:])),
        has_motion=~yes,
        reference=_in(oracle["videoref"]),
        reference_tokens=jnp.asarray(faces)[None],
        text=_text(oracle, prompt),
        null_text=_text(oracle, null),
        audio=jnp.asarray(audio),
        has_audio=yes,
        reference_audio=jnp.asarray(oracle["ref_audio"]),
        has_reference_audio=yes,
    )


def _valid_tokens(
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
    case: str,
    model: Transformer,
    latents: jnp.ndarray,
    t: jnp.ndarray,
    conditions: Conditions,
) -> dict[str, tuple[Callable, float]]:
    """A case's velocity by the scanned network, and by layer its activations."""

    def velocity() -> np.ndarray:
        network = _network(model)
        cache = network.prefill(conditions)
        return _out(network.velocity(latents, t, conditions, cache))

    unrolled = functools.cache(lambda: _unrolled(model, latents, t, conditions))
    names = ["patch_video", "patch_ref", "time_emb", "time_emb0", "time_proj"]
    names += ["time_proj_ref", "aud_tokens", "ref_aud_tokens", "head"]
    names += [f"block{i}" for i in range(model.config.num_layers)]
    for i in range(model.config.num_layers):
        parts = ("self_attn", "cross_attn", "audio_attn", "ref_audio_attn", "ffn")
        names += [f"b{i}_{part}" for part in parts]
    found = {
        f"{case}_{name}": (lambda n=name: unrolled()[n], FORWARD) for name in names
    }
    return {f"{case}_out": (velocity, FORWARD), **found}


def _bfloat16(case, oracle, latents, t, conditions) -> dict:
    """The velocity with bfloat16 products, within three times what those cost."""
    cost = oracle.config["forward"].get("bf16_vs_f32_rel_l2", {}).get(case)
    if cost is None:
        return {}

    def velocity() -> np.ndarray:
        model = _model(oracle, "transformer.safetensors", "bfloat16")
        network = _network(model)
        cache = network.prefill(conditions)
        return _out(network.velocity(latents, t, conditions, cache))

    return {f"{case}_out_bf16": (velocity, 3 * cost)}


def _unrolled(model, latents, t, conditions) -> dict[str, np.ndarray]:
    """The same layers one by one; valid tokens only, main before reference."""
    x, context = model.embed_main(latents, t, conditions)
    r, reference = model.embed_reference(conditions)
    x_valid, r_valid = np.asarray(context.valid[0]), np.asarray(reference.valid[0])
    found = {
        "patch_video": _out(model.patch(main_input(latents, conditions))),
        "patch_ref": _out(model.patch(reference_input(conditions))),
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
    found["head"] = model.head_patches(x[:, : context.video], t)[0]
    return found


def _network(model: Transformer) -> guidance.Network:
    graph, params = nnx.split(model)
    prefill = jax.jit(lambda p, c: nnx.merge(graph, p).prefill(c))
    velocity = jax.jit(lambda p, *a: nnx.merge(graph, p)(*a))
    return guidance.Network(
        functools.partial(prefill, params), functools.partial(velocity, params)
    )


def _timesteps(steps: str, shift: str) -> np.ndarray:
    return schedule.unipc(int(steps), float(shift)).timesteps.astype(np.int64)


def _solver(oracle: Oracle, steps: str, ending: str) -> np.ndarray:
    """States after each step, before rounding, on the velocities of the trace."""
    sigmas = schedule.unipc(int(steps), SOLVER_SHIFT).sigmas
    state = sampler.unipc_start(jnp.asarray(oracle["solver_x"]))
    states = []
    rows = jnp.asarray(sampler.unipc_coefficients(sigmas))
    for v, sigma, row in zip(
        oracle[f"solver_pred_{steps}_{ending}"], jnp.asarray(sigmas), rows, strict=False
    ):
        state, x = sampler.unipc_step(
            state, jnp.asarray(v), sigma, row, ending == "cast"
        )
        states.append(np.asarray(x))
    return np.stack(states)


class _Run(NamedTuple):
    """What a complete sampling run needs."""

    plan: chunks.Plan
    grid: schedule.Schedule
    conditions: Conditions
    noise: jnp.ndarray
    extra: jnp.ndarray


def _prepare(oracle: Oracle, model: Transformer, run: str, settings: dict) -> _Run:
    plan = chunks.plan(
        settings["num_frames"], model.config.num_video_latents, MOTION, TAIL
    )
    noise = _in(oracle[f"{run}_canvas_noise"])
    extra = noise[:, :0]
    if f"{run}_extra_noise" in oracle:
        extra = _in(oracle[f"{run}_extra_noise"])
    masks, _ = _valid_tokens(
        oracle["face_tokens"], oracle["foreground"], model.config.num_video_latents
    )
    conditions = _conditions(oracle)._replace(
        still_tokens=jnp.asarray(masks[_ref_row(model)])[None],
        has_reference_audio=jnp.array([bool(settings["ref_audio"])]),
    )
    grid = schedule.unipc(settings["steps"], settings["shift"])
    return _Run(plan, grid, conditions, noise, extra)


def _velocity(oracle, model, settings, conditions) -> sampler.StepVelocity:
    network = _network(model)
    rest = (
        _text(oracle, "text_negative"),
        settings["txt_scale"],
        settings["aud_scale"],
    )
    hidden = guidance.without_reference(conditions)
    return guidance.switched(
        guidance.guided(network, hidden, *rest),
        guidance.guided(network, conditions, *rest),
        settings["start_use_videoref_step"],
    )


def _run(oracle, model, run, settings, rounded) -> np.ndarray:
    """The stitched canvas of a complete run."""
    prepared = _prepare(oracle, model, run, settings)

    @jax.jit
    def denoise(noise, conditions):
        velocity = _velocity(oracle, model, settings, conditions)
        return sampler.unipc_sample(velocity, noise, prepared.grid, rounded)

    track = prepared.conditions.audio
    finished = chunks.generate(
        denoise, prepared.conditions, track, prepared.noise, prepared.extra,
        prepared.plan,
    )  # fmt: skip
    return _out(chunks.stitch(prepared.noise, finished))


def _trace(oracle, model, run, settings) -> tuple[np.ndarray, ...]:
    """Guided prediction, chunk before and chunk after each step of chunk 0."""
    prepared = _prepare(oracle, model, run, settings)
    plan, grid = prepared.plan, prepared.grid
    track = prepared.conditions.audio
    told = chunks.chunk_conditions(prepared.conditions, track, plan, 0, None, None)
    velocity = _velocity(oracle, model, settings, told)
    everything = jnp.concatenate([prepared.noise, prepared.extra], axis=1)
    state = sampler.unipc_start(everything[:, : plan.size])
    found: tuple[list, list, list] = ([], [], [])
    rows = jnp.asarray(sampler.unipc_coefficients(grid.sigmas))
    for i, (t, sigma, row) in enumerate(
        zip(grid.timesteps, jnp.asarray(grid.sigmas), rows, strict=False)
    ):
        v = velocity(state.x, jnp.asarray([t]), jnp.asarray(i))
        after, _ = sampler.unipc_step(state, v, sigma, row, round_bf16=False)
        for rows_, array in zip(found, (v, state.x, after.x), strict=True):
            rows_.append(_out(array))
        state = after
    return tuple(np.stack(rows_) for rows_ in found)
