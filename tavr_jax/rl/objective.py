"""Policy gradient for flow matching: stochastic steps, advantages, clipped objective.

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

At eta = 0 all three are the Euler step x + v D.

    (4) log p = avg(-(x' - mean)^2) / (2 std^2) - log std - log(2 pi) / 2
        cps: avg(-(x' - mean)^2)
    (5) KL    = avg((mean - mean_ref)^2) / (2 std^2),   cps: avg((mean - mean_ref)^2)
        avg: over the elements of one sample, so both are independent of its size
    (6) A     = sum over rewards of weight (r - group mean) / (group std + 1e-4),
                clipped to +- limit
    (7) ratio = exp(log p - log p_old)
        loss  = max(-A ratio, -A clip(ratio, 1 - c, 1 + c))

TAVR does not publish its algorithm; this is our recipe, from Flow-GRPO (2505.05470)
for (1), (4)-(7), DanceGRPO (2505.07818) for (2) and Flow-CPS (2509.05952) for (3).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion.flow import denoised, implied_noise

_STD_FLOOR = 1e-4  # of a group whose rewards are equal


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
    mask: Bool[Array, "N T"],
) -> Float[Array, " N"]:
    """(4), over the latents that `mask` keeps."""
    error = _mean(jnp.square(following - transition.mean), mask)
    if sde == "cps":
        return -error
    std = transition.std
    return -error / (2.0 * std**2) - jnp.log(std) - 0.5 * math.log(2.0 * math.pi)


def kl(
    sde: str,
    transition: Transition,
    reference: Float[Array, "N T H W C"],
    mask: Bool[Array, "N T"],
) -> Float[Array, " N"]:
    """(5): `reference` is the mean under the policy that is not trained."""
    error = _mean(jnp.square(transition.mean - reference), mask)
    return error if sde == "cps" else error / (2.0 * transition.std**2)


def group_advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """One reward's part of (6), before its weight. A group's advantages sum to 0."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, keepdims=True) + _STD_FLOOR)


def advantages(
    rewards: dict[str, Float[Array, "B G"]], weights: dict[str, float], limit: float
) -> Float[Array, "B G"]:
    """(6). Normalised per reward first, so that no reward's scale decides."""
    total = sum(weights[name] * group_advantages(r) for name, r in rewards.items())
    return jnp.clip(total, -limit, limit)


def clipped_loss(
    log_new: Float[Array, " N"],
    log_old: Float[Array, " N"],
    advantage: Float[Array, " N"],
    clip_range: float,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """(7): loss and ratio of every rollout."""
    ratio = jnp.exp(log_new - log_old)
    held = jnp.clip(ratio, 1.0 - clip_range, 1.0 + clip_range)
    return jnp.maximum(-advantage * ratio, -advantage * held), ratio


def _mean(
    values: Float[Array, "N T H W C"], mask: Bool[Array, "N T"]
) -> Float[Array, " N"]:
    kept = mask.astype(values.dtype)
    return (values.mean((2, 3, 4)) * kept).sum(1) / kept.sum(1)
