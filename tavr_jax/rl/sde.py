"""Stochastic steps of flow matching and the probability of their outcome.

One step goes from level s to s' < s with D = s' - s < 0. With x0^ = x - s v,
e^ = x + (1 - s) v (flow.py), every stochastic step is x' = mean + std * noise:

    (1) flow   a = eta sqrt(s / (1 - s)),  s = 1 in the denominator -> second level
               mean = x (1 + a^2 D / (2 s)) + v (1 + a^2 (1 - s) / (2 s)) D
               std  = a sqrt(-D)
    (2) dance  mean = x + v D - (eta^2 / 2) score D,  score = -(x - (1 - s) x0^) / s^2
               std  = eta sqrt(-D)
    (3) cps    std  = s' sin(eta pi / 2)
               mean = (1 - s') x0^ + sqrt(s'^2 - std^2) e^
               the noise level of x' is exactly s', so rollouts end clean

At eta = 0 all three are the Euler step x + v D. With avg over the elements of one
sample, so that nothing depends on their number:

    (4) log p = avg(-(x' - mean)^2) / (2 std^2) - log std - log(2 pi) / 2
        cps: avg(-(x' - mean)^2), without the constants and without 1 / (2 std^2)
    (5) KL    = avg((mean - mean_ref)^2) / (2 std^2),   cps: avg((mean - mean_ref)^2)
    (6) plain       log ratio = log p - log p_old
        normalised  log ratio = avg(e d)
                    e = (x' - mean_old) / std,  d = mean - mean_old

Why (6) has the second form. For a Gaussian of a common std,

    log p - log p_old = avg((x' - mean_old)^2 - (x' - mean_old - d)^2) / (2 std^2)
                      = avg(e d) / std - avg(d^2) / (2 std^2)

Under the policy that rolled out e is standard normal, so the mean of this is
-avg(d^2) / (2 std^2): plain ratios lie below 1, and scale with 1 / std, which the time
shift of video makes very different from step to step; one clip range cannot fit all.
GRPO-Guard multiplies by std and adds avg(d^2) / (2 std). What remains is avg(e d): of
mean 0, and no longer a function of std. That form is also the one without cancellation,
and it needs no density, so it is the same for cps, where GRPO-Guard's own expression
would not be: there (4) leaves 2 std^2 (log p - log p_old) of the true difference.

Sources: Flow-GRPO (2505.05470) for (1), (4), (5); DanceGRPO (2505.07818) for (2);
Flow-CPS (2509.05952) for (3); GRPO-Guard (2510.22319) for (6).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion.flow import denoised, implied_noise
from tavr_jax.rl.average import average


class Levels(NamedTuple):
    """Where a step starts and ends."""

    sigma: Float[Array, ""]
    following: Float[Array, ""]  # sigma after the step
    second: Float[Array, ""]  # second level of the schedule, for (1) at sigma = 1


class Transition(NamedTuple):
    """The Gaussian of x' given x."""

    mean: Float[Array, "N T H W C"]
    std: Float[Array, ""]


def flow_step(x: Array, velocity: Array, levels: Levels, eta) -> Transition:
    """(1)."""
    s, following, second = levels
    delta = following - s
    a = eta * jnp.sqrt(s / (1.0 - jnp.where(s < 1.0, s, second)))
    drift = a**2 * delta / (2.0 * s)
    mean = x * (1.0 + drift) + velocity * (delta + drift * (1.0 - s))
    return Transition(mean, a * jnp.sqrt(-delta))


def dance_step(x: Array, velocity: Array, levels: Levels, eta) -> Transition:
    """(2)."""
    s, following, _ = levels
    delta = following - s
    score = -(x - (1.0 - s) * denoised(x, velocity, s)) / s**2
    mean = x + velocity * delta - 0.5 * eta**2 * score * delta
    return Transition(mean, eta * jnp.sqrt(-delta))


def cps_step(x: Array, velocity: Array, levels: Levels, eta) -> Transition:
    """(3)."""
    s, following, _ = levels
    std = following * jnp.sin(eta * math.pi / 2.0)
    kept = following * jnp.cos(eta * math.pi / 2.0)  # sqrt(s'^2 - std^2)
    mean = (1.0 - following) * denoised(x, velocity, s)
    return Transition(mean + kept * implied_noise(x, velocity, s), std)


STEPS: dict[str, Callable[..., Transition]] = {
    "flow": flow_step,
    "dance": dance_step,
    "cps": cps_step,
}


def log_prob(
    sde: str,
    following: Float[Array, "N T H W C"],
    transition: Transition,
    drawn: Bool[Array, "N T"],
) -> Float[Array, " N"]:
    """(4), over the latents that were drawn."""
    error = average(jnp.square(following - transition.mean), drawn)
    if sde == "cps":
        return -error
    std = transition.std
    return -error / (2.0 * std**2) - jnp.log(std) - 0.5 * math.log(2.0 * math.pi)


def kl(
    sde: str,
    transition: Transition,
    reference: Float[Array, "N T H W C"],
    drawn: Bool[Array, "N T"],
) -> Float[Array, " N"]:
    """(5): `reference` is the mean under the policy that is not trained."""
    error = average(jnp.square(transition.mean - reference), drawn)
    return error if sde == "cps" else error / (2.0 * transition.std**2)


def log_ratio(
    sde: str,
    following: Float[Array, "N T H W C"],
    new: Transition,
    old: Transition,
    drawn: Bool[Array, "N T"],
    normalised: bool,
) -> Float[Array, " N"]:
    """(6): how much likelier `new` makes `following`, which was drawn from `old`."""
    if normalised:
        noise = (following - old.mean) / old.std
        return average(noise * (new.mean - old.mean), drawn)
    return log_prob(sde, following, new, drawn) - log_prob(sde, following, old, drawn)
