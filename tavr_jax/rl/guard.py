"""The stop rule against reward hacking.

A policy that finds a rigid, copied face gains identity and loses what the face was for.
With b the first `guard_window` steps (the baseline), r the last ones, m and s^2 their
means and variances and e = sqrt((s_b^2 + s_r^2) / guard_window) the error of m_r - m_b:

    (1) rose(identity):  m_r - m_b > 2 e
    (2) fell(quantity):  m_b - m_r > max(guard_fall |m_b|, 5 e)
    (3) stop when identity rose while lip-sync, motion, light or the identity that a
        held-out network sees fell; judged once b and r do not overlap

The error in (2) is for quantities near zero, of which a share means nothing: sync
confidence begins there. It is five of them because the rule is asked at every step.
Simulated, two quantities of pure noise around 0 and an identity that really rises:
windows of 20 stop 0.5 % of runs of 1000 steps, windows of 10 stop 0.4 % of runs of 300,
windows of 5 stop 3 % of runs of 100 (their variances are too uncertain). A quantity
whose mean is five times its noise falls by 30 % in none. Ours.
"""

import math

import numpy as np

from tavr_jax.rl.rollout import PolicyConfig

ROSE = "reward_identity"
FELL = ("reward_lipsync", "reward_motion", "reward_light", "judged_identity")
_ROSE_BY = 2.0  # errors, (1)
_FELL_BY = 5.0  # errors, (2)


class Guard:
    """Sees every step of a run; off where policy.guard_fall is 0."""

    def __init__(self, config: PolicyConfig):
        self._window, self._fall = config.guard_window, config.guard_fall
        self._seen = 0  # steps
        self._baseline: list[dict[str, float]] = []
        self._recent: list[dict[str, float]] = []

    def see(self, step: int, metrics: dict[str, float]) -> str | None:
        """Metrics of one step -> why the run has to stop, or None.

        A step without a finite identity tells nothing and does not count.
        """
        del step  # steps are counted as they are seen
        seen = {
            name: float(metrics[name])
            for name in (ROSE, *FELL)
            if name in metrics and math.isfinite(metrics[name])
        }
        if not self._fall or ROSE not in seen:
            return None
        self._seen += 1
        if len(self._baseline) < self._window:
            self._baseline.append(seen)
        self._recent = [*self._recent, seen][-self._window :]
        if self._seen < 2 * self._window:
            return None
        return self._verdict()

    def get_state(self) -> dict:
        """What a resumed run needs to decide the same; exact in JSON."""
        return {
            "seen": self._seen,
            "baseline": self._baseline,
            "recent": self._recent,
        }

    def set_state(self, state: dict) -> None:
        """The inverse of `get_state`."""
        self._seen = state["seen"]
        self._baseline = list(state["baseline"])
        self._recent = list(state["recent"])

    def _verdict(self) -> str | None:
        """(1)-(3)."""
        before, now, error = self._compared(ROSE)
        if now - before <= _ROSE_BY * error:
            return None
        rise = f"{ROSE} rose from {before:.3g} to {now:.3g}"
        for name in FELL:
            if not all(name in seen for seen in self._baseline + self._recent):
                continue
            before, now, error = self._compared(name)
            if before - now > max(self._fall * abs(before), _FELL_BY * error):
                return (
                    f"{rise} while {name} fell from {before:.3g} to {now:.3g} (means "
                    f"of policy.guard_window {self._window} steps); with "
                    "policy.guard_fall=0 it goes on unguarded"
                )
        return None

    def _compared(self, name: str) -> tuple[float, float, float]:
        """Mean of the baseline, mean of the last steps, error of their difference."""
        windows = (self._baseline, self._recent)
        before, now = ([seen[name] for seen in window] for window in windows)
        variance = np.var(before, ddof=1) + np.var(now, ddof=1)
        error = math.sqrt(variance / self._window)
        return float(np.mean(before)), float(np.mean(now)), error
