"""Replays of schedules, the solver, long-video bookkeeping and complete runs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.parity_oracle import (
    EXACT,
    FORWARD,
    MOTION,
    TAIL,
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
from tavr_jax.diffusion import chunks, guidance, sampler, schedule
from tavr_jax.models.transformer import Transformer
from tavr_jax.types import Conditions

SIGMAS = 1e-6
SAMPLING = 5e-4  # a complete run
ROUNDED = 1e-3  # the same with bfloat16 rounding, whose flips amplify differences

# The solver-only traces were made on the default shift.
SOLVER_SHIFT = 5.0


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
    model = load_model(oracle, "transformer.safetensors")
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
        candidates |= _bfloat16(oracle, run, settings, f"{run}_final_bf16")
        trace = functools.cache(functools.partial(_trace, oracle, model, run, settings))
        for index, kind in enumerate(("pred", "in", "out")):
            candidates[f"{run}_trace_{kind}"] = (
                lambda t=trace, i=index: t()[i],
                SAMPLING,
            )
    return oracle.checks(candidates)


def replay_bfloat16(oracle: Oracle) -> list[Check]:
    """Complete runs with bfloat16 products against both records of each."""
    candidates: dict = {}
    for run, settings in oracle.config["runs"].items():
        for record in (f"{run}_final_cast", f"{run}_final_bf16"):
            candidates |= _bfloat16(oracle, run, settings, record)
    return oracle.checks(candidates)


def replay_chunking(oracle: Oracle) -> list[Check]:
    """Integer bookkeeping of long videos."""
    size = oracle.config["transformer"]["num_video_latents"]
    make = functools.partial(chunks.plan, size=size, motion=MOTION, tail=TAIL)
    masks = valid_tokens(oracle["vm_face"], oracle["vm_fg"], size)

    def plans() -> np.ndarray:
        found = [make(int(frames)) for frames in oracle.expected("plan")[:, 0]]
        return np.array([(p.frames, p.latents, len(p.spans), p.canvas) for p in found])

    def spans() -> np.ndarray:
        rows = oracle.expected("spans")[:, :2]
        return np.array([(f, i, *make(int(f)).spans[i]) for f, i in rows])

    def windows() -> np.ndarray:
        track = oracle["slice_track"][None, :, None]
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


def _bfloat16(oracle: Oracle, run: str, settings: dict, record: str) -> dict:
    """A run with bfloat16 products, within three times what those cost."""
    if "bf16_vs_f32_rel_l2" not in settings:
        return {}

    def sample() -> np.ndarray:
        model = load_model(oracle, "transformer.safetensors", "bfloat16")
        return _run(oracle, model, run, settings, rounded=True)

    return {record: (sample, 3 * settings["bf16_vs_f32_rel_l2"])}


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
    everything: jnp.ndarray  # the noise, and what completes the last chunk


def _prepare(oracle: Oracle, model: Transformer, run: str, settings: dict) -> _Run:
    plan = chunks.plan(
        settings["num_frames"], model.config.num_video_latents, MOTION, TAIL
    )
    noise = to_ours(oracle[f"{run}_canvas_noise"])
    everything = noise
    if f"{run}_extra_noise" in oracle:
        extra = to_ours(oracle[f"{run}_extra_noise"])
        everything = jnp.concatenate([noise, extra], axis=1)
    masks, _ = valid_tokens(
        oracle["face_tokens"], oracle["foreground"], model.config.num_video_latents
    )
    conditions = first_chunk(oracle)._replace(
        still_tokens=jnp.asarray(masks[ref_row(model)])[None],
        has_reference_audio=jnp.array([bool(settings["ref_audio"])]),
    )
    grid = schedule.unipc(settings["steps"], settings["shift"])
    return _Run(plan, grid, conditions, noise, everything)


def _velocity(oracle, model, settings, conditions) -> sampler.StepVelocity:
    network = network_of(model)
    rest = (
        text_rows(oracle, "text_negative"),
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

    track, plan = np.asarray(prepared.conditions.audio), prepared.plan

    def noise(start: int) -> jnp.ndarray:
        return prepared.everything[:, start : start + plan.size]

    finished = chunks.generate(denoise, prepared.conditions, track, noise, plan)
    # The release keeps the whole canvas: what no chunk reaches remains noise.
    canvas = prepared.noise
    for span, chunk in finished:
        piece = chunk[:, span.skip : span.skip + span.stop - span.start]
        canvas = canvas.at[:, span.start : span.stop].set(piece)
    return to_theirs(canvas)


def _trace(oracle, model, run, settings) -> tuple[np.ndarray, ...]:
    """Guided prediction, chunk before and chunk after each step of chunk 0."""
    prepared = _prepare(oracle, model, run, settings)
    plan, grid = prepared.plan, prepared.grid
    track = np.asarray(prepared.conditions.audio)
    told = chunks.chunk_conditions(prepared.conditions, track, plan, 0, None, None)
    velocity = _velocity(oracle, model, settings, told)
    state = sampler.unipc_start(prepared.everything[:, : plan.size])
    found: tuple[list, list, list] = ([], [], [])
    rows = jnp.asarray(sampler.unipc_coefficients(grid.sigmas))
    for i, (t, sigma, row) in enumerate(
        zip(grid.timesteps, jnp.asarray(grid.sigmas), rows, strict=False)
    ):
        v = velocity(state.x, jnp.asarray([t]), jnp.asarray(i))
        after, _ = sampler.unipc_step(state, v, sigma, row, round_bf16=False)
        for rows_, array in zip(found, (v, state.x, after.x), strict=True):
            rows_.append(to_theirs(array))
        state = after
    return tuple(np.stack(rows_) for rows_ in found)
