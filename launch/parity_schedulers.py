"""Replays of noise grids, solvers on a toy velocity, and stochastic policy steps."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from launch.parity_oracle import EXACT, FORWARD, Check, Oracle
from tavr_jax.diffusion import flow, sampler, schedule
from tavr_jax.diffusion.schedule import TRAIN_TIMESTEPS, Schedule
from tavr_jax.rl import sde
from tavr_jax.rl.advantages import group_advantages
from tavr_jax.rl.grpo import clipped_loss

SIGMAS = 1e-6
EXACTLY = 1e-6  # of float64 arithmetic on float32 inputs
TRAIN_SHIFT = 3.0  # of the training pairs
_GLOBAL_STD = (
    "our advantages are scaled by the spread of their own group, advantages (1)"
)


def replay_schedulers(oracle: Oracle) -> list[Check]:
    """Four grids, the states of the two solvers on them, and training pairs."""
    found: dict[str, tuple[Callable, float]] = {}
    pattern = re.compile(r"(.+)_s([\d.]+)_n(\d+)_(sigmas|timesteps|traj)")
    for name in oracle.names:
        if (match := pattern.fullmatch(name)) and match[1] in _GRIDS:
            kind, shift, steps, what = match.groups()
            grid = functools.partial(_GRIDS[kind], int(steps), float(shift))
            if what == "sigmas":
                found[name] = (lambda g=grid: g().sigmas, SIGMAS)
            elif what == "timesteps":
                whole = oracle.expected(name).dtype.kind == "i"
                tolerance = EXACT if whole else SIGMAS
                found[name] = (lambda g=grid: g().timesteps, tolerance)
            else:
                run = functools.partial(_trajectory, oracle, kind, grid)
                found[name] = (run, FORWARD)
    oracle.inputs |= {n for n in oracle.names if n.startswith("toy_")}
    return oracle.checks(found | _training(oracle))


def _diffusers_euler(steps: int, shift: float) -> Schedule:
    """FlowMatchEuler's own grid, which shifts its smallest sigma twice."""
    least = flow.shifted(1 / TRAIN_TIMESTEPS, shift)
    s = np.append(flow.shifted(np.linspace(1, least, steps), shift), 0.0)
    sigmas = s.astype(np.float32)
    return Schedule(sigmas, sigmas[:-1] * np.float32(TRAIN_TIMESTEPS))


def _diffusers_unipc(steps: int, shift: float) -> Schedule:
    """UniPC's grid since diffusers 0.37: from just below 1."""
    s = flow.shifted(np.linspace(1, 1 / TRAIN_TIMESTEPS, steps + 1)[:-1], shift)
    s[0] -= 1e-6
    timesteps = np.trunc(s * TRAIN_TIMESTEPS).astype(np.float32)
    return Schedule(np.append(s, 0.0).astype(np.float32), timesteps)


_GRIDS: dict[str, Callable[[int, float], Schedule]] = {
    "euler_default": _diffusers_euler,
    "euler_lin": schedule.euler,
    "unipc_diffusers": _diffusers_unipc,
    "unipc_wan": schedule.unipc_wan,
}


def _trajectory(oracle: Oracle, kind: str, grid: Callable[[], Schedule]) -> np.ndarray:
    """States after every step, caught where the solver hands them to the network."""
    a, b = jnp.asarray(oracle["toy_a"]), jnp.asarray(oracle["toy_b"])
    seen = []

    def velocity(x, t, index) -> jax.Array:
        del index
        seen.append(x)
        return jnp.tanh(a * x + b) + 0.5 * (t[0] / TRAIN_TIMESTEPS) * x

    start = jnp.asarray(oracle["toy_x"])
    with jax.disable_jit():  # a scan would show its states to nobody
        if kind.startswith("euler"):
            last = sampler.euler_sample(velocity, start, grid())
        else:
            last = sampler.unipc_sample(velocity, start, grid(), round_bf16=False)
    return np.stack([*seen[1:], last])


def _training(oracle: Oracle) -> dict:
    """Noised latents and their velocity at given timesteps."""
    if "train_index" not in oracle:
        return {}
    u = 1 - oracle["train_index"] / TRAIN_TIMESTEPS
    clean, noise = (jnp.asarray(oracle[f"train_{n}"]) for n in ("clean", "noise"))
    sigma = flow.shifted(u, TRAIN_SHIFT)
    t = jnp.asarray(sigma, jnp.float32)
    return {
        "train_t": (lambda: sigma * TRAIN_TIMESTEPS, SIGMAS),
        "train_xt": (lambda: np.asarray(flow.noised(clean, noise, t)), FORWARD),
        "train_target": (
            lambda: np.asarray(flow.velocity_target(clean, noise)),
            FORWARD,
        ),
    }


def replay_flow_grpo(oracle: Oracle) -> list[Check]:
    """Stochastic steps, their probabilities, advantages and the clipped objective."""
    found: dict[str, tuple[Callable, float]] = {}
    step = re.compile(r"(s[\d.]+)_(i\d+)_l([\d.]+)_(cps_)?(.+)")
    for name in oracle.names:
        if match := step.fullmatch(name):
            grid, index, eta, cps, what = match.groups()
            run = functools.partial(
                _step, oracle, grid, index, float(eta), "cps" if cps else "flow"
            )
            found[name] = (lambda r=run, w=what: r()[w], EXACTLY)
        elif match := re.fullmatch(r"s([\d.]+)_(sigmas|timesteps)", name):
            steps = len(oracle.expected(name)) - (match[2] == "sigmas")
            grid = functools.partial(_diffusers_euler, steps, float(match[1]))
            found[name] = (lambda g=grid, m=match[2]: getattr(g(), m), SIGMAS)
        elif re.fullmatch(r"s[\d.]+_i\d+_(x|v|v_new|noise)", name):
            oracle.inputs.add(name)
    return oracle.checks(found | _advantages(oracle) | _clipped(oracle))


def _step(
    oracle: Oracle, grid: str, index: str, eta: float, kind: str
) -> dict[str, np.ndarray]:
    """One step of one kind and everything that is said about it."""
    place = int(index[1:])
    # Sigmas of the grid are an expected array too, so this does not read them as input.
    sigmas = oracle.expected(f"{grid}_sigmas").astype(np.float64)
    arrays = {n: oracle[f"{grid}_{index}_{n}"] for n in ("x", "v", "v_new", "noise")}
    with jax.enable_x64(True):
        x, v, v_new, noise = (jnp.asarray(a, jnp.float64) for a in arrays.values())
        levels = sde.Levels(*(jnp.asarray(sigmas[i]) for i in (place, place + 1, 1)))
        old = sde.STEPS[kind](x, v, levels, eta)
        new = sde.STEPS[kind](x, v_new, levels, eta)
        following = old.mean + old.std * noise
        everything = jnp.ones(x.shape[:2], bool)
        logp = sde.log_prob(kind, following, old, everything)
        moved = sde.log_prob(kind, following, new, everything)
        ratio = clipped_loss(moved - logp, jnp.zeros_like(logp), 1.0)[1]
        root = np.sqrt(sigmas[place] - sigmas[place + 1])
        found = {
            "next": following,
            "mean": old.mean,
            # The flow kind is published with the two factors of our std apart.
            "std": old.std if kind == "cps" else old.std / root,
            "sqrt_dt": root,
            "logp": logp,
            "logp_newpolicy": moved,
            "ratio": ratio,
            "kl": sde.kl(kind, new, old.mean, everything),
        }
        return {name: np.asarray(value) for name, value in found.items()}


def _advantages(oracle: Oracle) -> dict:
    """Rewards against their group, and with all of them as one group."""
    if "rewards" not in oracle:
        return {}
    rewards, groups = oracle["rewards"], oracle["groups"]

    def within(members: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            ours = group_advantages(jnp.asarray(rewards[members])[None])
            return np.asarray(ours)[0]

    def by_group() -> np.ndarray:
        found = np.empty_like(rewards)
        for group in np.unique(groups):
            found[groups == group] = within(groups == group)
        return found

    if "adv_global_std" in oracle:
        oracle.reasons["adv_global_std"] = _GLOBAL_STD
    return {
        "adv_group_std": (by_group, EXACTLY),
        "adv_flat": (lambda: within(np.ones(len(rewards), bool)), EXACTLY),
    }


def _clipped(oracle: Oracle) -> dict:
    """The objective on recorded probabilities, for every clip range."""
    if "ppo_logp_new" not in oracle:
        return {}
    logs = oracle["ppo_logp_new"], oracle["ppo_logp_old"]
    advantage = oracle.expected("adv_group_std")

    def losses(clip: float) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            new, old, a = (jnp.asarray(value) for value in (*logs, advantage))
            loss, ratio = clipped_loss(new - old, a, clip)
            return np.asarray(loss), np.asarray(ratio)

    found = {
        "ppo_approx_kl": (lambda: 0.5 * np.mean((logs[0] - logs[1]) ** 2), EXACTLY)
    }
    for name in oracle.names:
        if match := re.fullmatch(r"ppo_clip(.+)_per_sample", name):
            clip, stem = float(match[1]), name.removesuffix("per_sample")
            found |= {
                name: (lambda c=clip: losses(c)[0], EXACTLY),
                f"{stem}loss": (lambda c=clip: losses(c)[0].mean(), EXACTLY),
                f"{stem}frac": (
                    lambda c=clip: (np.abs(losses(c)[1] - 1) > c).mean(),
                    EXACTLY,
                ),
            }
    return found
