"""Advantages: by how much a rollout is better than the others of its group.

    (1) A = sum over rewards of weight (r - group mean) / (group std + 1e-4),
            clipped to +- limit

Normalised per reward first, so that no reward's scale decides (GenRL, LongCat). Source:
Flow-GRPO (2505.05470), with the deviation of the group, not of the batch.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

_STD_FLOOR = 1e-4  # of a group whose rewards are equal


def group_advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """One reward's part of (1), before its weight. A group's advantages sum to 0."""
    centred = rewards - rewards.mean(1, keepdims=True)
    return centred / (rewards.std(1, keepdims=True) + _STD_FLOOR)


def advantages(
    rewards: dict[str, Float[Array, "B G"]], weights: dict[str, float], limit: float
) -> Float[Array, "B G"]:
    """(1) over the rewards that `weights` names; at least one."""
    total = sum(weights[name] * group_advantages(rewards[name]) for name in weights)
    return jnp.clip(total, -limit, limit)
