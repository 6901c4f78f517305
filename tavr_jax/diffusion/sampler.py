"""UniPC (order 2, B(h) = expm1, data prediction, corrector on) and Euler.

With a = 1 - sigma, l = ln a - ln sigma, m_i = x_i - sigma_i v_i, and s_i the solver's
own state beside x_i, the state that the network saw:

    (1) H = l_j - l_i, f = expm1(-H), g = f / (-H) - 1
    (2) corrector to i from j = i-1, of the order p the predictor had there:
        s_i = (sigma_i / sigma_j) s_j - a_i f m_j - a_i f c
        p = 1: c = (m_i - m_j) / 2
        p = 2: r = (l_{j-1} - l_j) / H, rho1 + rho2 = g / f,
               r rho1 + rho2 = 2 (g / (-H) - 1/2) / f,
               c = rho1 (m_{j-1} - m_j) / r + rho2 (m_i - m_j);  s_0 = x_0
    (3) predictor to i+1, of order min(2, S - i, i + 1):
        x' = (sigma_{i+1} / sigma_i) s_i - a_{i+1} f m_i
             [ - a_{i+1} f (m_{i-1} - m_i) / (2 r), r = (l_{i-1} - l_i) / H ]
        the last step gives x' = m exactly
    (4) x_{i+1} = bfloat16(x') where released weights are reproduced; s and m stay
        float32 and unrounded

Both are linear in s, m_i, m_{i-1}, m_{i-2}, so a step is a row of seven coefficients.
Source: TAVR_SPEC 12.2; Zhao et al. 2023 (arXiv 2302.04867).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tavr_jax.diffusion.flow import denoised
from tavr_jax.diffusion.schedule import Schedule

# (x, timestep, step index) -> velocity
StepVelocity = Callable[[Array, Array, Array], Array]


class SolverState(NamedTuple):
    """Between two steps of UniPC."""

    x: Float[Array, "B T H W C"]  # what the network sees next
    s: Float[Array, "B T H W C"]  # corrected state of the step before
    m1: Float[Array, "B T H W C"]  # its data prediction
    m2: Float[Array, "B T H W C"]  # and the one before that


def unipc_coefficients(sigmas: Float[np.ndarray, " levels"]) -> np.ndarray:
    """Rows, one a step, of the linear form of (2) and (3), float32.

    Columns 0..3 give s_i from (s_{i-1}, m_i, m_{i-1}, m_{i-2}); columns 4..6 give x'
    from (s_i, m_i, m_{i-1}).
    """
    steps = len(sigmas) - 1
    # Computed from the float32-rounded sigmas: at the first step 1 - sigma is 2e-4.
    sigma = sigmas.astype(np.float64)
    a = 1 - sigma
    with np.errstate(divide="ignore"):
        l = np.log(a) - np.log(sigma)
    rows = np.zeros((steps, 7))
    for i in range(steps):
        rows[i, :4] = _corrector(i, steps, sigma, a, l)
        rows[i, 4:] = _predictor(i, steps, sigma, a, l)
    return rows.astype(np.float32)


def unipc_start(noise: Float[Array, "B T H W C"]) -> SolverState:
    """State before the first step; the first x is unrounded noise."""
    # Coefficients of what does not exist yet are zero; s_0 = x_0 is column 0.
    return SolverState(noise, noise, jnp.zeros_like(noise), jnp.zeros_like(noise))


def unipc_step(
    state: SolverState,
    velocity: Float[Array, "B T H W C"],
    sigma: Float[Array, ""],
    row: Float[Array, " seven"],
    round_bf16: bool,
) -> tuple[SolverState, Float[Array, "B T H W C"]]:
    """One step: (2), (3), (4). Also returns x' before it is rounded."""
    m = denoised(state.x, velocity, sigma)
    s = row[0] * state.s + row[1] * m + row[2] * state.m1 + row[3] * state.m2
    x = row[4] * s + row[5] * m + row[6] * state.m1
    seen = x.astype(jnp.bfloat16).astype(x.dtype) if round_bf16 else x
    return SolverState(seen, s, m, state.m1), x


def unipc_sample(
    velocity: StepVelocity,
    noise: Float[Array, "B T H W C"],
    schedule: Schedule,
    round_bf16: bool,
) -> Float[Array, "B T H W C"]:
    """From noise to latents in one scan."""

    def step(state: SolverState, inputs) -> tuple[SolverState, None]:
        index, timestep, sigma, row = inputs
        t = jnp.broadcast_to(timestep, state.x.shape[:1])
        v = velocity(state.x, t, index)
        return unipc_step(state, v, sigma, row, round_bf16)[0], None

    inputs = (
        jnp.arange(len(schedule.timesteps)),
        jnp.asarray(schedule.timesteps),
        jnp.asarray(schedule.sigmas[:-1]),
        jnp.asarray(unipc_coefficients(schedule.sigmas)),
    )
    return jax.lax.scan(step, unipc_start(noise), inputs)[0].x


def euler_sample(
    velocity: StepVelocity, noise: Float[Array, "B T H W C"], schedule: Schedule
) -> Float[Array, "B T H W C"]:
    """From noise to latents by x += (sigma' - sigma) v."""

    def step(x, inputs):
        index, timestep, sigma, following = inputs
        t = jnp.broadcast_to(timestep, x.shape[:1])
        return x + (following - sigma) * velocity(x, t, index), None

    sigmas = jnp.asarray(schedule.sigmas)
    steps = jnp.arange(len(schedule.timesteps))
    inputs = (steps, jnp.asarray(schedule.timesteps), sigmas[:-1], sigmas[1:])
    return jax.lax.scan(step, noise, inputs)[0]


def _order(i: int, steps: int) -> int:
    return min(2, steps - i, i + 1)


def _corrector(i: int, steps: int, sigma, a, l) -> tuple[float, ...]:
    if i == 0:
        return 1.0, 0.0, 0.0, 0.0
    h = l[i] - l[i - 1]
    f = np.expm1(-h)
    weight = -a[i] * f
    scale = sigma[i] / sigma[i - 1]
    if _order(i - 1, steps) == 1:
        return scale, weight / 2, weight / 2, 0.0
    g = f / -h - 1
    b1, b2 = g / f, 2 * (g / -h - 0.5) / f
    r = (l[i - 2] - l[i - 1]) / h
    rho1, rho2 = np.linalg.solve([[1, 1], [r, 1]], [b1, b2])
    return scale, weight * rho2, weight * (1 - rho1 / r - rho2), weight * rho1 / r


def _predictor(i: int, steps: int, sigma, a, l) -> tuple[float, ...]:
    if sigma[i + 1] == 0:
        return 0.0, 1.0, 0.0
    h = l[i + 1] - l[i]
    weight = -a[i + 1] * np.expm1(-h)
    scale = sigma[i + 1] / sigma[i]
    if _order(i, steps) == 1:
        return scale, weight, 0.0
    r = (l[i - 1] - l[i]) / h
    return scale, weight * (1 - 0.5 / r), weight * 0.5 / r
