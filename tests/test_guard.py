"""The stop rule: it stops what is hacked, and nothing else."""

import json

import numpy as np
import pytest
from test_rl import policy

from tavr_jax.rl.guard import Guard

RULE = policy(guard_window=20, guard_fall=0.3)
NAMES = ("reward_identity", "reward_lipsync", "reward_motion")


def history(steps, *, seed=0, rise=0.0, fall=0.0, level=0.5, noise=0.05):
    """Metrics of every step: identity rises by `rise` from 0.4, motion falls by the
    share `fall` from `level`, both linearly; lip-sync is noise about 0."""
    rng = np.random.default_rng(seed)
    done = np.arange(steps) / steps
    means = 0.4 + rise * done, 0.0 * done, level * (1 - fall * done)
    table = np.stack(means, 1) + noise * rng.standard_normal((steps, 3))
    return [dict(zip(NAMES, map(float, row), strict=True)) for row in table]


def stopped_at(guard, metrics, first=1):
    """(step, reason), or None if the run goes through."""
    for step, seen in enumerate(metrics, first):
        if reason := guard.see(step, seen):
            return step, reason
    return None


def test_a_hacked_run_is_stopped_and_told_why():
    step, reason = stopped_at(Guard(RULE), history(300, rise=0.3, fall=0.8))
    assert 100 < step < 250
    assert "reward_identity rose" in reason and "reward_motion fell" in reason
    assert "policy.guard_fall=0" in reason and "\n" not in reason


@pytest.mark.parametrize(
    "healthy",
    [
        {"rise": 0.3},  # better, and moving as before
        {"rise": 0.3, "fall": -0.5},  # better, and moving more
        {"rise": 0.3, "fall": 0.15},  # better, and moving a little less
        {"rise": -0.2, "fall": 0.8},  # worse altogether: no hack, another problem
        {"fall": 0.8},  # moving less for nothing
    ],
)
def test_a_run_that_is_not_hacked_goes_on(healthy):
    assert stopped_at(Guard(RULE), history(300, **healthy)) is None


@pytest.mark.parametrize("name", ["reward_lipsync", "judged_identity"])
def test_lipsync_and_the_held_out_network_are_watched_too(name):
    metrics = [
        {**seen, name: seen["reward_motion"], "reward_motion": 0.5}
        for seen in history(300, rise=0.3, fall=0.8)
    ]
    assert f"{name} fell" in stopped_at(Guard(RULE), metrics)[1]


def test_a_quantity_that_sinks_below_zero_is_seen_to_fall():
    # a share of a mean near zero is nothing; five errors of it are something
    metrics = history(300, rise=0.3)
    for i, seen in enumerate(metrics):
        seen["reward_lipsync"] -= 0.3 * i / 300
    assert "reward_lipsync fell" in stopped_at(Guard(RULE), metrics)[1]


def test_noise_alone_does_not_stop():
    # identity really rises, two quantities are noise about 0 and far from 0; measured
    # on 1000 runs of 1000 steps: 0.5 % are stopped
    stopped = [
        stopped_at(Guard(RULE), history(300, seed=seed, rise=0.2, level=level))
        for seed in range(20)
        for level in (0.0, 0.5)
    ]
    assert stopped == [None] * 40


def test_a_resumed_guard_decides_as_one_that_saw_everything():
    metrics = history(300, rise=0.3, fall=0.8)
    straight = stopped_at(Guard(RULE), metrics)
    for cut in (7, 30, 90):
        before, after = Guard(RULE), Guard(RULE)
        assert stopped_at(before, metrics[:cut]) is None
        after.set_state(json.loads(json.dumps(before.get_state())))
        assert stopped_at(after, metrics[cut:], cut + 1) == straight
        assert after.get_state() != before.get_state()


def test_steps_that_tell_nothing_do_not_count():
    metrics = history(300, rise=0.3, fall=0.8)
    broken = [{}, {"reward_identity": float("nan")}, {"loss": 1.0}]
    guard = Guard(RULE)
    assert [guard.see(1, seen) for seen in broken] == [None] * 3
    fresh = Guard(RULE)
    assert guard.get_state() == fresh.get_state()
    assert stopped_at(guard, metrics) == stopped_at(fresh, metrics)


def test_nothing_is_judged_before_two_windows_and_nothing_when_off():
    sudden = history(40, noise=0.001) + history(40, noise=0.001, level=0.1)
    for seen in sudden[20:]:
        seen["reward_identity"] += 0.2
    assert stopped_at(Guard(RULE), sudden)[0] > 40
    off = Guard(policy(guard_window=20, guard_fall=0.0))
    assert stopped_at(off, history(300, rise=0.3, fall=0.8)) is None
