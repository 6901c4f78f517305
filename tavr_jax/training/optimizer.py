"""AdamW with scheduled rate, global-norm clipping and an average of the weights.

    (1) g' = g min(1, clip / |g|)
    (2) m, v = Adam moments of g';  u = m^ / (sqrt(v^) + eps) + decay w   (kernels only)
    (3) w' = w - rate(t) u
    (4) e' = d(t) e + (1 - d(t)) w',  d(t) = min(ema_decay, ema_ramp t), ema_decay alone
        where ema_ramp is 0

t counts the steps taken before; several updates of one step share it. The rate:

    (5) rate(t) = learning_rate (t + 1) / (warmup + 1)                     t <= warmup
    (6) rate(t) = learning_rate f(p),  p = (t - warmup) / (schedule_steps - warmup) <= 1
        constant   f = 1
        linear     f = 1 - (1 - final_rate) p
        cosine     f = final_rate + (1 - final_rate) (1 + cos(pi p)) / 2

The first step already moves. (4) with a ramp is how DiffusionNFT keeps its old policy
(arXiv 2509.16117). Weights, moments and average are float32. An update whose loss or
gradient is not finite is skipped: weights, moments and average stay, and the step still
counts, so that data and keys move on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from tavr_jax.errors import InputError
from tavr_jax.training.state import TrainState
from tavr_jax.types import Metrics, PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Section `optimizer`; meanings and values are in configs/base.py."""

    trainable: str
    learning_rate: float
    warmup_steps: int
    schedule: str
    schedule_steps: int
    final_rate: float
    weight_decay: float
    b1: float
    b2: float
    clip_norm: float
    accumulate: int
    ema_decay: float
    ema_ramp: float

    def __post_init__(self):
        for name, holds, expected in self._bounds():
            if not holds:
                value = getattr(self, name)
                raise InputError(f"optimizer.{name}: {value!r}: expected {expected}")

    def _bounds(self) -> list[tuple[str, bool, str]]:
        schedules = "constant | linear | cosine"
        falls = self.schedule != "constant"
        return [
            ("learning_rate", self.learning_rate >= 0, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("schedule", self.schedule in schedules.split(" | "), schedules),
            (
                "schedule_steps",
                not falls or self.schedule_steps > self.warmup_steps,
                f"more than optimizer.warmup_steps = {self.warmup_steps}, after which "
                f"a {self.schedule} schedule falls; train longer or warm up less",
            ),
            ("final_rate", 0 <= self.final_rate <= 1, "0 to 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "0 or more, below 1"),
            ("b2", 0 <= self.b2 < 1, "0 or more, below 1"),
            ("clip_norm", self.clip_norm > 0, "more than 0 (inf: no clipping)"),
            ("accumulate", self.accumulate >= 1, "1 or more parts of a batch"),
            ("ema_decay", 0 <= self.ema_decay < 1, "0 (no average) or more, below 1"),
            ("ema_ramp", self.ema_ramp >= 0, "0 (no ramp) or more"),
        ]


def create_state(params: PyTree, config: OptimizerConfig) -> TrainState:
    """State at step 0. Pure: call it under jit with the shardings of the result."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_transformation(config).init(params),
        ema=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
    )


def apply_update(
    state: TrainState,
    loss: Float[Array, ""],
    grads: PyTree,
    config: OptimizerConfig,
) -> tuple[TrainState, Metrics]:
    """(1)-(6). Does not count the step: one step may make several updates."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    rate = learning_rate(config, state.step)
    updates, opt_state = _transformation(config).update(
        grads, state.opt_state, state.params
    )
    params = jax.tree.map(
        lambda w, u: w - (rate * u).astype(w.dtype), state.params, updates
    )
    ema = state.ema
    if ema is not None:
        share = 1.0 - average_decay(config, state.step)
        ema = jax.tree.map(lambda e, w: e + share * (w - e), ema, params)
    new = TrainState(state.step, params, opt_state, ema)
    kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
    skipped = 1.0 - finite.astype(jnp.float32)
    return kept, {"grad_norm": norm, "learning_rate": rate, "skipped": skipped}


def learning_rate(config: OptimizerConfig, step: Array) -> Array:
    """rate(step) of (5) and (6)."""
    top, steps = config.learning_rate, config.schedule_steps - config.warmup_steps
    warm = optax.schedules.linear_schedule(
        top / (config.warmup_steps + 1), top, config.warmup_steps
    )
    match config.schedule:
        case "linear":
            after = optax.schedules.linear_schedule(top, config.final_rate * top, steps)
        case "cosine":
            after = optax.schedules.cosine_decay_schedule(top, steps, config.final_rate)
        case _:
            after = optax.schedules.constant_schedule(top)
    return jnp.float32(
        optax.schedules.join_schedules([warm, after], [config.warmup_steps])(step)
    )


def average_decay(config: OptimizerConfig, step: Array) -> Array:
    """d(step) of (4)."""
    if not config.ema_ramp:
        return jnp.float32(config.ema_decay)
    return jnp.minimum(config.ema_decay, config.ema_ramp * step)


def decayed(params: PyTree) -> PyTree:
    """True where weight decay acts: kernels.

    Chosen by name, because the vectors of stacked layers have two axes.
    """

    def is_kernel(path: tuple, _: Array) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return "kernel" in names[-2:]  # a variable's own leaf is called "value"

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _transformation(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    )
