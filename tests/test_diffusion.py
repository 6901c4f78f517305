"""Laws of flow, schedules, samplers, guidance and chunks, on analytic fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tavr_jax.diffusion import chunks, flow, guidance, sampler, schedule
from tavr_jax.errors import InputError
from tavr_jax.types import Conditions

SHAPE = (2, 3, 2, 2, 4)
KEY = jax.random.key(0)
DATA, NOISE = jax.random.normal(KEY, SHAPE), jax.random.normal(jax.random.key(1), SHAPE)


def straight(x, t, step):
    """The field of one data point: every path is the straight line to it."""
    del step
    sigma = (t / 1000)[:, None, None, None, None]
    return (x - DATA) / sigma


def gaussian(x, sigma, variance=0.25):
    """The exact field of data N(1, variance)."""
    a = 1 - sigma
    spread = a**2 * variance + sigma**2
    mean = (x - a) / spread
    return sigma * mean - (1 + a * variance * mean)


def test_noise_velocity_and_data_are_one_cycle():
    sigma = jnp.array([0.2, 0.9])
    x, v = flow.noised(DATA, NOISE, sigma), flow.velocity_target(DATA, NOISE)
    level = sigma[:, None, None, None, None]
    np.testing.assert_allclose(flow.denoised(x, v, level), DATA, atol=1e-6)
    np.testing.assert_allclose(flow.implied_noise(x, v, level), NOISE, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_shift_keeps_the_ends_and_is_undone_by_its_inverse(shift):
    u = np.linspace(0, 1, 11)
    s = flow.shifted(u, shift)
    assert s[0] == 0 and s[-1] == 1 and (np.diff(s) > 0).all()
    np.testing.assert_allclose(flow.shifted(s, 1 / shift), u, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 24])
def test_schedules_fall_from_noise_to_zero(steps):
    for make in (schedule.unipc, schedule.euler):
        made = make(steps, 5.0)
        assert len(made.timesteps) == steps and len(made.sigmas) == steps + 1
        assert (np.diff(made.sigmas) < 0).all() and made.sigmas[-1] == 0
        assert (np.diff(made.timesteps) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_a_straight_field_is_solved_exactly(steps):
    """UniPC is told truncated integer timesteps, so the field reads sigma itself."""
    grid = schedule.unipc(steps, 5.0)

    def exact(x, t, step):
        return straight(x, 1000 * jnp.asarray(grid.sigmas)[step] + 0 * t, step)

    out = sampler.unipc_sample(exact, NOISE, grid, round_bf16=False)
    np.testing.assert_allclose(out, DATA, atol=1e-4)
    out = sampler.euler_sample(straight, NOISE, schedule.euler(steps, 5.0))
    np.testing.assert_allclose(out, DATA, atol=1e-4)


def test_unipc_converges_at_second_order():
    """Halving the step quarters the error on a curved field."""

    def error(steps):
        grid = schedule.unipc(steps, 1.0)
        fields = jnp.asarray(grid.sigmas)

        def field(x, t, step):
            del t
            return gaussian(x, fields[step])

        start = grid.sigmas[0]
        # The exact flow keeps the quantile: x = mean + spread * z.
        z = (NOISE - (1 - start)) / np.sqrt((1 - start) ** 2 * 0.25 + start**2)
        out = sampler.unipc_sample(field, NOISE, grid, round_bf16=False)
        return float(jnp.abs(out - (1 + 0.5 * z)).mean())

    coarse, fine = error(16), error(32)
    assert fine < coarse / 3.2, (coarse, fine)


def test_rounding_touches_what_the_network_sees_only():
    grid = schedule.unipc(4, 5.0)
    row = jnp.asarray(sampler.unipc_coefficients(grid.sigmas)[0])
    sigma, start = jnp.asarray(grid.sigmas[0]), sampler.unipc_start(NOISE)
    rounded, x = sampler.unipc_step(start, DATA, sigma, row, True)
    plain, y = sampler.unipc_step(start, DATA, sigma, row, False)
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(rounded.x, x.astype(jnp.bfloat16).astype(x.dtype))
    np.testing.assert_array_equal(rounded.s, plain.s)
    np.testing.assert_array_equal(rounded.m1, plain.m1)
    assert (rounded.x != plain.x).any()


def conditions(batch: int = 1) -> Conditions:
    yes = jnp.ones(batch, bool)
    grid = jnp.ones((batch, 1, 2, 2, 4))
    return Conditions(
        still=grid,
        still_tokens=jnp.zeros((batch, 1, 1), bool),
        motion=jnp.zeros((batch, 2, 2, 2, 4)),
        has_motion=~yes,
        reference=grid,
        reference_tokens=jnp.ones((batch, 1, 1, 1), bool),
        text=jnp.ones((batch, 1, 1)),
        null_text=jnp.zeros((batch, 1, 1)),
        audio=jnp.ones((batch, 5, 1)),
        has_audio=yes,
        reference_audio=jnp.ones((batch, 4, 1)),
        has_reference_audio=yes,
    )


def linear_network(prefills: list) -> guidance.Network:
    """Velocity = caption + 10 audio + 100 reference audio (from the cache)."""

    def prefill(told):
        prefills.append(told)
        return told.has_reference_audio.astype(jnp.float32)

    def velocity(x, t, told, cache):
        del t
        total = told.text.sum() + 10 * told.has_audio.sum() + 100 * cache.sum()
        return jnp.full_like(x, total)

    return guidance.Network(prefill, velocity)


@pytest.mark.parametrize(("text", "audio"), [(5.0, 1.8), (1.0, 1.8), (1.0, 1.0)])
def test_guidance_is_the_weighted_sum_of_its_branches(text, audio):
    prefills: list = []
    negative = -jnp.ones((1, 1, 1))
    v = guidance.guided(linear_network(prefills), conditions(), negative, text, audio)
    full, mute, unwanted = 111.0, 1.0, 109.0
    expected = full + (audio - 1) * (full - mute) + (text - 1) * (full - unwanted)
    np.testing.assert_allclose(v(jnp.zeros(SHAPE), jnp.ones(2)), expected, rtol=1e-6)
    v(jnp.zeros(SHAPE), jnp.ones(2))
    assert len(prefills) == (2 if audio != 1 else 1), "prefilled once, not per step"


@pytest.mark.parametrize(("text", "audio"), [(5.0, 1.8), (1.0, 1.8), (1.0, 1.0)])
@pytest.mark.parametrize("shares", [1, 4])
def test_branches_in_one_batch_are_branches_one_by_one(shares, text, audio):
    """Two samples: six rows, four or two, and as many more as shares leave over."""
    sizes = []

    def prefill(told):
        return told.has_reference_audio + told.reference.mean((1, 2, 3, 4))

    def velocity(x, t, told, cache):
        sizes.append(len(x))
        total = told.text.sum((1, 2)) + 10 * told.has_audio + 100 * cache + t
        return x * total[:, None, None, None, None]

    told = conditions(batch=2)
    told = told._replace(text=jnp.array([3.0, 7.0])[:, None, None])
    told = told._replace(
        reference=told.reference * jnp.arange(2.0).reshape(2, *[1] * 4)
    )
    negative, scales = -told.text, guidance.Scales(text, audio)
    plain = guidance.Network(prefill, velocity)
    net = guidance.in_shares(plain, shares)
    one = guidance.guided(plain, told, negative, *scales)
    cache = guidance.prefill_batched(net, told, scales)
    many = guidance.batched(net, told, negative, scales, cache)
    t = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(many(NOISE, t), one(NOISE, t), rtol=1e-5, atol=1e-3)
    branches = 1 + (text != 1) + (audio != 1)
    assert sizes[0] == 2 * branches + -2 * branches % shares
    assert sizes[1:] == [2] * branches


@pytest.mark.parametrize(("start", "hidden"), [(0, 0), (3, 3), (-1, 5)])
def test_the_reference_is_hidden_before_its_step(start, hidden):
    choose = guidance.switched(lambda x, t: x * 0, lambda x, t: x * 0 + 1, start)
    shown = [float(choose(jnp.ones(()), 0.0, jnp.asarray(i))) for i in range(5)]
    assert shown == [0.0] * hidden + [1.0] * (5 - hidden)


@pytest.mark.parametrize(("size", "motion"), [(21, 2), (9, 2), (5, 2), (7, 3)])
@pytest.mark.parametrize("frames", [17, 33, 81, 85, 177, 753])
def test_chunks_cover_the_video_and_overlap_by_the_motion_latents(frames, size, motion):
    plan = chunks.plan(frames, size, motion, tail=4)
    written = [i for s in plan.spans for i in range(s.start, s.stop)]
    assert written == list(range(len(written))), "in order, none twice, none missed"
    assert plan.latents <= len(written) <= plan.canvas
    for before, after in zip(plan.spans, plan.spans[1:], strict=False):
        assert before.read + size - after.read == motion


def test_a_latent_has_the_same_noise_whatever_is_drawn_beside_it():
    alone = chunks.draw_noise(KEY, 7, 1, (1, 2, 3, 4))
    assert alone.shape == (1, 1, 2, 3, 4)
    np.testing.assert_array_equal(
        chunks.draw_noise(KEY, 5, 9, (1, 2, 3, 4))[:, 2:3], alone
    )
    many = chunks.draw_noise(KEY, 0, 4000, (1, 1, 1, 1))
    assert abs(float(many.mean())) < 0.05 and abs(float(many.std()) - 1) < 0.05


def test_too_short_a_video_is_refused():
    with pytest.raises(InputError, match="longer speech"):
        chunks.plan(5, 21, 2, 4)


def test_a_continuation_is_told_the_end_of_the_chunk_before_it():
    plan = chunks.plan(65, 9, 2, 4)
    told_to = []

    def denoise(noise, told):
        told_to.append(told)
        return noise + 1

    def noise(start):
        return chunks.draw_noise(KEY, start, plan.size, (1, 2, 2, 4))

    track = np.arange(80.0)[None, :, None]
    finished = list(chunks.generate(denoise, conditions(), track, noise, plan))
    video = jnp.concatenate(list(chunks.in_order(iter(finished), plan)), axis=1)
    assert video.shape[1] == plan.latents
    first = told_to[0]
    assert not first.has_motion.any() and not first.still_tokens.any()
    for i, told in enumerate(told_to[1:], 1):
        assert told.has_motion.all() and told.still_tokens.all()
        np.testing.assert_array_equal(told.motion, finished[i - 1][1][:, -2:])
        np.testing.assert_array_equal(told.still, finished[0][1][:, :1])
        assert float(told.audio[0, 0, 0]) == 28 * i
        # What it was given is what the video shows.
        at = plan.spans[i].read
        np.testing.assert_array_equal(video[:, at : at + 2], told.motion)
    # Chunks of an earlier run are taken over, and the rest goes on from them.
    count = len(told_to)
    known = [chunk for _, chunk in finished[:2]]
    again = chunks.generate(
        denoise,
        conditions(),
        track,
        noise,
        plan,
        lambda i: dict(enumerate(known)).get(i),
    )
    resumed = jnp.concatenate(list(chunks.in_order(again, plan)), axis=1)
    np.testing.assert_array_equal(resumed, video)
    assert len(told_to) - count == len(finished) - 2


def test_audio_beyond_the_track_repeats_its_last_row():
    track = np.arange(6.0)[None, :, None]
    window = chunks.audio_window(track, 0, 3, 1)[0, :, 0]
    np.testing.assert_array_equal(window, [0, 1, 2, 3, 4, 5, 5, 5, 5])
