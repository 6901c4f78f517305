"""Groups of rollouts, and what an algorithm does with them.

A group is G rollouts of one sample. The reference is prefilled once per sample, and its
cache is held once: the network reads it for all members of the group. Where samples are
too few for the devices, each device does so for the members that it has.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.diffusion.guidance import Network, guided
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.sharding import constrain
from tavr_jax.rl import sde
from tavr_jax.types import Conditions, Metrics, PyTree

# (latents "N T H W C", timestep " N") -> velocity, guidance and caches inside
GroupVelocity = Callable[[Array, Array], Array]

# The same of parameters that do not learn, for k calls: "k N T H W C", "k N"
Answers = Callable[[Array, Array], Array]

ALGORITHMS = ("grpo", "nft")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Section `policy`; meanings and values are in configs/base.py."""

    algorithm: str
    group_size: int
    steps: int
    shift: float
    audio_scale: float
    text_scale: float
    updates: int
    kl_weight: float
    advantage_clip: float
    sde: str
    eta: float
    stochastic_steps: int
    window: float
    clip_range: float
    ratio_norm: bool
    nft_beta: float
    reward_latents: int
    identity_weight: float
    lipsync_weight: float
    sharpness_weight: float
    motion_weight: float
    light_weight: float
    guard_window: int
    guard_fall: float

    def __post_init__(self):
        """InputError: a field has no meaning."""
        for name, holds, expected in self._bounds():
            if not holds:
                value = getattr(self, name)
                raise InputError(f"policy.{name}: {value!r}: expected {expected}")
        if not any(self.weights.values()):
            raise InputError(
                "policy: identity_weight, lipsync_weight, sharpness_weight, "
                "motion_weight and light_weight are all 0: nothing to learn from"
            )

    def _bounds(self) -> list[tuple[str, bool, str]]:
        positive = ("shift", "advantage_clip", "clip_range", "nft_beta")
        steps = f"1 to {self.steps - 1}: the last of policy.steps is never stochastic"
        most = 1 if self.sde == "cps" else math.inf
        return [
            ("algorithm", self.algorithm in ALGORITHMS, " | ".join(ALGORITHMS)),
            ("sde", self.sde in sde.STEPS, " | ".join(sde.STEPS)),
            ("stochastic_steps", 0 < self.stochastic_steps < self.steps, steps),
            ("group_size", self.group_size >= 2, "2 or more members to compare"),
            ("updates", self.updates >= 1, "1 or more"),
            *((name, getattr(self, name) > 0, "more than 0") for name in positive),
            ("kl_weight", self.kl_weight >= 0, "0 or more"),
            ("eta", 0 <= self.eta <= most, "0 or more, and at most 1 for sde=cps"),
            ("window", 0 < self.window <= 1, "a share of the steps, above 0, up to 1"),
            ("guard_window", self.guard_window >= 5, "5 steps or more"),
            ("guard_fall", 0 <= self.guard_fall < 1, "0 (off) or more, below 1"),
        ]

    @property
    def weights(self) -> dict[str, float]:
        """Of the rewards, by their names in rewards.py."""
        return {
            "identity": self.identity_weight,
            "lipsync": self.lipsync_weight,
            "sharpness": self.sharpness_weight,
            "motion": self.motion_weight,
            "light": self.light_weight,
        }


class Start(NamedTuple):
    """What N = B G rollouts are told, members of a group next to each other."""

    given: Float[Array, "N T H W C"]  # motion latents, zero elsewhere
    drawn: Bool[Array, "N T"]  # false: given, and stays as it is

    def filled(self, latents: Float[Array, "N T H W C"]) -> Array:
        """`latents`, with the given ones in their place."""
        return jnp.where(self.drawn[:, :, None, None, None], latents, self.given)


class Rollout(NamedTuple):
    """N finished samples, and what the algorithm noted on the way."""

    latents: Float[Array, "N T H W C"]  # at sigma 0
    trace: PyTree


class Scored(NamedTuple):
    """What an algorithm learns from."""

    rolled: Rollout
    advantage: Float[Array, " N"]
    drawn: Bool[Array, "N T"]


class Algorithm(NamedTuple):
    """How scored rollouts become a loss: rl/grpo.py and rl/nft.py.

    A question is one network call per member and what its answer is judged by: leaves
    "N ...", so that it can be cut into parts of members. An update has k of them.
    """

    # who rolls out: the average of the weights, where there is one; else the weights
    averaged: bool
    # (velocity, start, config, key) -> rollout
    roll_out: Callable[[GroupVelocity, Start, PolicyConfig, Array], Rollout]
    # (scored, answers of who rolled out, of the reference or None, config) -> a
    # function of a key, the questions of one update: leaves "k N ..."
    questions: Callable[
        [Scored, Answers, Answers | None, PolicyConfig], Callable[[Array], PyTree]
    ]
    # (velocity, question, first, config) -> loss and metrics of each member, " N";
    # `first`: nothing was updated since the rollout
    loss: Callable[[GroupVelocity, PyTree, Array, PolicyConfig], tuple[Array, Metrics]]


def repeated(tree: PyTree, group: int) -> PyTree:
    """Every sample `group` times in a row, the rows split over the batch axes."""
    return jax.tree.map(lambda x: constrain(jnp.repeat(x, group, axis=0), "B"), tree)


def begin(conditions: Conditions, drawn: Bool[Array, "B T"], group: int) -> Start:
    """For `group` members of each sample; `drawn` is false where motion is given."""
    rest = drawn.shape[1] - conditions.motion.shape[1]
    given = jnp.pad(conditions.motion, ((0, 0), (0, rest), (0, 0), (0, 0), (0, 0)))
    given = jnp.where(drawn[:, :, None, None, None], 0.0, given)
    return Start(*repeated((given, drawn), group))


def prefills(samples: int, group: int) -> int:
    """How often the reference of a group is prefilled and held: once, or more often
    where only then its rows are split like the members that read them."""
    shares = sharding.shares("B")
    return math.gcd(group, shares // math.gcd(samples, shares))


def group_velocity(
    network: Network, conditions: Conditions, group: int, config: PolicyConfig
) -> GroupVelocity:
    """Guided velocity of `group` members of each sample of `conditions`.

    The empty caption stands in for a negative one.
    """

    apart = group // prefills(len(conditions.has_audio), group)

    def prefill(members: Conditions) -> PyTree:
        first = jax.tree.map(lambda x: constrain(x[::apart], "B"), members)
        return network.prefill(first)

    members = repeated(conditions, group)
    return guided(
        Network(prefill, network.velocity),
        members,
        members.null_text,
        config.text_scale,
        config.audio_scale,
    )
