"""What generation costs against the release's way, and against a shorter reference.

    python -m launch.bench generate

FLOPs are analytic (tavr_jax/models/flops.py), of tavr_14b at the release's defaults:
480 x 896, chunks of 81 frames, 24 steps of three guidance branches, 20 reference
frames. The release computes the reference again in every call and gives every slot of
still and reference its tokens, valid or not; ours prefills the reference once, with and
without its sound, and reads the places of generate.room. A video's only chunk pays for
the prefills and has the background of its still alone; a later chunk of a longer video
pays for none and reads a whole picture, as the release's does. Shares of valid tokens
are those of three of the twelve talking heads that generate was tried on at this size:
the closer the picture, the more of a reference and the less background.

Seconds are of one guided step of the mini transformer with random weights, on this
machine: 12 and 48 reference frames, cached and shortened; in turn, median of rounds.
"""

import dataclasses
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from configs import cross_scene
from launch import bench_rounds, build
from tavr_jax.diffusion import guidance
from tavr_jax.evaluation import generate
from tavr_jax.models import flops
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions

SHARES = ((0.35, 0.43), (0.52, 0.14), (0.62, 0.0))  # valid: of reference, of still
SHORT, LONG = 12, 48  # reference frames, four a latent
PIXELS = 8  # of a latent, each way
ROUNDS = 15
GOALS = {"release": 0.80, "longer": 1.15}


def main() -> None:
    """Print both ratios."""
    official = cross_scene.get_config("tavr_14b")
    print(f"{official.name}, FLOPs of one denoising step, analytic")
    for reference, still in SHARES:
        only = against_release(official, reference, still)
        later = against_release(official, reference)
        more = longer(official, reference)
        print(
            f"  {reference:.0%} of the reference and {still:.0%} of the still valid: "
            f"{only:.3f} of the release's in an only chunk, {later:.3f} in a later one "
            f"(goal {GOALS['release']}), {LONG} frames {more:.3f} of {SHORT} "
            f"(goal {GOALS['longer']})"
        )
    mini = cross_scene.get_config("mini")
    share = SHARES[0][0]
    steps = {frames: guided_step(mini, frames, share) for frames in (SHORT, LONG)}
    times = bench_rounds.in_turn({str(n): run for n, run in steps.items()}, ROUNDS)
    short, long = (statistics.median(times[str(n)]) for n in (SHORT, LONG))
    print(
        f"{mini.name}, {share:.0%} valid, seconds of one guided step, measured: "
        f"{short * 1e3:.1f} ms with {SHORT} reference frames, {long * 1e3:.1f} ms with "
        f"{LONG}: {long / short:.3f} (goal {GOALS['longer']}; FLOPs "
        f"{longer(mini, share):.3f})"
    )


def against_release(
    config: ConfigDict, reference: float, still: float | None = None
) -> float:
    """FLOPs of a step, of those of the release.

    `reference`, `still`: shares of tokens that are valid, in a video's only chunk;
    without `still` in a later one.
    """
    model, sizes = _sizes(config, config.model.num_videoref_latents)
    s, calls = config.sampler, 1
    calls += (s.audio_scale != 1) + (s.text_scale != 1)
    prefills = 0 if still is None else 1 + (s.audio_scale != 1)
    prefill = flops.prefill(model, sizes).total
    theirs = calls * (flops.main(model, sizes).total + prefill)
    ours = calls * flops.main(model, _shortened(sizes, reference, still)).total
    return (ours + prefills * prefill / s.steps) / theirs


def longer(config: ConfigDict, share: float) -> float:
    """FLOPs of a step with LONG reference frames, of those with SHORT."""
    found = []
    for frames in (SHORT, LONG):
        model, sizes = _sizes(config, frames // 4)
        found.append(flops.main(model, _shortened(sizes, share)).total)
    return found[1] / found[0]


def guided_step(config: ConfigDict, frames: int, share: float) -> Callable[[], Array]:
    """One compiled guided velocity, its reference cached and shortened."""
    config = config.copy_and_resolve_references()
    config.model.num_videoref_latents = frames // 4
    model, sizes = _sizes(config, frames // 4)
    graph, weights = _drawn(config)
    told = _conditions(model, sizes, share)
    scales = guidance.Scales(config.sampler.text_scale, config.sampler.audio_scale)

    def network(weights) -> guidance.Network:
        merged: Transformer = nnx.merge(graph, weights)
        return guidance.Network(merged.prefill, merged)

    @jax.jit
    def prefill(weights, told):
        return guidance.prefill_one_by_one(network(weights), told, scales)

    @jax.jit
    def step(weights, x, t, told, caches):
        asked = network(weights), told, told.null_text, scales, caches
        return guidance.one_by_one(*asked)(x, t)

    valid = int(told.reference_tokens.sum())
    caches = generate.shortened(prefill(weights, told), valid)
    x = jnp.ones((1, sizes.latents, *told.still.shape[2:]))
    rest = x, jnp.array([500.0]), told, caches
    return lambda: jax.block_until_ready(step(weights, *rest))


def _sizes(config: ConfigDict, latents: int) -> tuple[TransformerConfig, flops.Sizes]:
    model = TransformerConfig(**config.model)
    model = dataclasses.replace(model, num_videoref_latents=latents)
    rows, columns = (n // PIXELS for n in config.prepare[config.data.orientation])
    return model, flops.sizes(model, rows, columns)


def _shortened(
    sizes: flops.Sizes, reference: float, still: float | None = None
) -> flops.Sizes:
    def places(whole: int, share: float, unit: int) -> int:
        return generate.room(round(share * whole), whole, unit)

    return sizes._replace(
        reference=places(sizes.reference, reference, generate.PLACES),
        still=places(sizes.still, 1 if still is None else still, generate.STILL_PLACES),
    )


def _drawn(config: ConfigDict):
    graph, shapes = nnx.split(build.abstract_transformer(config), nnx.Param)
    rng = np.random.default_rng(config.seed)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype)

    return graph, jax.tree.map(draw, shapes)


def _conditions(
    model: TransformerConfig, sizes: flops.Sizes, share: float
) -> Conditions:
    """A first chunk whose first reference tokens are the valid ones."""
    h, w = sizes.grid
    grid, rng = (2 * h, 2 * w, model.out_dim), np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=(1, *shape)), jnp.float32)

    places = np.arange(sizes.reference_latents * h * w)
    valid = (places < share * len(places)).reshape(1, sizes.reference_latents, h, w)
    return Conditions(
        still=draw(1, *grid),
        still_tokens=jnp.ones((1, h, w), bool),
        motion=draw(2, *grid),
        has_motion=jnp.zeros(1, bool),
        reference=draw(sizes.reference_latents, *grid),
        reference_tokens=jnp.asarray(valid),
        text=draw(model.text_len, model.text_dim),
        null_text=draw(model.text_len, model.text_dim),
        audio=draw(4 * (sizes.latents - 1) + 1, model.audio_dim),
        has_audio=jnp.ones(1, bool),
        reference_audio=draw(4 * sizes.reference_latents, model.videoref_audio_dim),
        has_reference_audio=jnp.ones(1, bool),
    )
