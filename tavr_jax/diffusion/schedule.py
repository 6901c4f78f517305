"""Noise levels and timesteps of a sampling run.

    (1) UniPC, as released: K = steps + 1, u = 1 - linspace(1, 0.001, K + 1),
        s = shifted(u), descending, without the final 0; t = int(1000 s).
        The last timestep and the last non-zero sigma are dropped, sigma 0 appended.
    (2) UniPC of Wan's own repository: the same with K = steps, nothing dropped.
    (3) Euler: sigma = shifted(linspace(1, 0, steps + 1)), t = 1000 sigma.

Source: TAVR_SPEC 12.1 (diffusers 0.33.1; later versions have another grid).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tavr_jax.diffusion.flow import shifted

TRAIN_TIMESTEPS = 1000


class Schedule(NamedTuple):
    """S network calls take x from sigmas[0] to sigmas[S] = 0."""

    sigmas: Float[np.ndarray, " levels"]  # S + 1 values, float32
    timesteps: Float[np.ndarray, " S"]  # what the network is told, in 0..1000


def unipc(steps: int, shift: float) -> Schedule:
    """(1). Integer timesteps, truncated."""
    return _ending_in_zero(_levels(steps + 1, shift)[:-1])


def unipc_wan(steps: int, shift: float) -> Schedule:
    """(2). Integer timesteps, truncated."""
    return _ending_in_zero(_levels(steps, shift))


def euler(steps: int, shift: float) -> Schedule:
    """(3)."""
    sigmas = shifted(np.linspace(1, 0, steps + 1), shift).astype(np.float32)
    return Schedule(sigmas, sigmas[:-1] * np.float32(TRAIN_TIMESTEPS))


def _levels(count: int, shift: float) -> np.ndarray:
    u = 1 - np.linspace(1, 1 / TRAIN_TIMESTEPS, count + 1)
    return shifted(u, shift)[::-1][:-1]


def _ending_in_zero(s: np.ndarray) -> Schedule:
    timesteps = (s * TRAIN_TIMESTEPS).astype(np.int64)
    return Schedule(np.append(s, 0.0).astype(np.float32), timesteps.astype(np.float32))
