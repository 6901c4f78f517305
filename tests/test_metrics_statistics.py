"""Intervals that cover, p-values that are uniform, and the numbers of scipy."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tavr_jax.evaluation import metrics_statistics as statistics

GOLDEN = Path(__file__).parent / "golden/metrics/cases.npz"
LEVEL = 0.95


def clustered(rng, people, per_person, within, between, mean=0.0):
    """Scores of pairs: a person's own level plus noise; people differ in pairs."""
    counts = rng.integers(1, 2 * per_person, people)
    names = np.repeat([f"p{i}" for i in range(people)], counts)
    levels = np.repeat(rng.normal(0, between, people), counts)
    return list(mean + levels + rng.normal(0, within, len(names))), list(names)


def test_the_interval_covers_the_mean_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng, hits, naive, trials = np.random.default_rng(0), 0, 0, 200
    for trial in range(trials):
        values, people = clustered(rng, 50, 3, 0.5, 1.0, mean=3.0)
        found = statistics.estimate(values, people, LEVEL, trial)
        hits += found.low <= 3 <= found.high
        alone = statistics.estimate(values, range_names(values), LEVEL, trial)
        naive += alone.low <= 3 <= alone.high
    assert 0.90 <= hits / trials <= 0.98  # 3.3 standard errors below 0.95
    assert naive / trials < 0.87  # what forgetting the people would claim


def range_names(values):
    return [str(i) for i in range(len(values))]


def test_the_interval_equals_scipys_when_every_pair_is_a_person():
    values = np.random.default_rng(1).exponential(size=40)
    found = statistics.estimate(list(values), range_names(values), LEVEL, 7)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, rng=np.random.default_rng(8)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.03)


@pytest.mark.parametrize("people", [9, 25])
def test_p_values_are_uniform_under_the_null(people):
    rng = np.random.default_rng(2)
    found = [
        statistics.sign_flip(rng.standard_t(3, people), seed)[0] for seed in range(300)
    ]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) < 0.09


def test_exact_p_equals_scipys_permutation_test():
    sums = np.random.default_rng(3).normal(0.4, 1, 11)
    expected = stats.permutation_test(
        (sums,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    p, exact = statistics.sign_flip(sums, 0)
    assert exact
    assert p == pytest.approx(expected)
    drawn, exact = statistics.sign_flip(np.concatenate([sums, [1e-9] * 4]), 0)
    assert not exact
    assert drawn == pytest.approx(expected, abs=0.02)


def test_a_real_difference_is_found_and_its_sign_is_kept():
    rng = np.random.default_rng(4)
    easy, people = clustered(rng, 30, 2, 0.1, 2.0)  # an easy face is easy for both
    better = list(np.array(easy) + rng.normal(0.2, 0.2, len(easy)))
    first, second = {"x": better, "y": easy}, {"x": easy, "y": easy}
    found = statistics.compare(first, second, people, LEVEL, 0)
    assert found["x"].difference.low > 0.1
    assert found["x"].p < 0.001 > found["x"].wilcoxon
    assert found["x"].wins > 0.75
    assert found["y"].p is None  # equal everywhere: nothing to test
    assert found["y"].wins == 0.5
    assert found["y"].difference[:3] == (0, 0, 0)
    back = statistics.compare(second, first, people, LEVEL, 0)["x"]
    assert back.p == found["x"].p
    assert back.difference.mean == pytest.approx(-found["x"].difference.mean)
    single = statistics.estimate(better, people, LEVEL, 0)
    width = found["x"].difference.high - found["x"].difference.low
    assert single.high - single.low > 5 * width  # why rows are compared by pairs


def test_what_is_not_defined_is_left_out_and_counted():
    values = [1.0, None, 3.0, float("nan"), float("inf")]
    people = ["a", "a", "b", "c", "d"]
    found = statistics.estimate(values, people, LEVEL, 0)
    assert (found.mean, found.pairs, found.people, found.undefined) == (2.0, 2, 2, 3)
    assert statistics.estimate([None, None], ["a", "b"], LEVEL, 0) is None
    every_pair_counts = statistics.estimate([0.0, 0.0, 0.0, 4.0], list("aaab"), 0.9, 0)
    assert every_pair_counts.mean == 1
    one = statistics.estimate([4.0, 6.0], ["a", "a"], LEVEL, 0)
    assert (one.mean, one.low, one.high, one.people) == (5.0, None, None, 1)
    both = statistics.compare(
        {"x": [1.0, None, 2.0], "z": [1.0]}, {"x": [None, 1.0, 1.0]}, "abc", LEVEL, 0
    )
    assert both["z"] is None
    assert both["x"].difference[:1] + both["x"].difference[4:] == (1.0, 1, 1, 2)


def test_holm_is_the_published_procedure():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": None}
    adjusted = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02, "none": None}
    assert statistics.holm(p) == pytest.approx(adjusted)  # Holm's own rule by hand
    golden = np.load(GOLDEN, allow_pickle=False)  # statsmodels
    names = [str(i) for i in range(len(golden["p"]))]
    found = statistics.holm(dict(zip(names, golden["p"].tolist(), strict=True)))
    np.testing.assert_allclose([found[name] for name in names], golden["holm"])
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(1000):  # ten metrics, nothing to find
        found = statistics.holm({str(i): p for i, p in enumerate(rng.uniform(size=10))})
        wrong += min(found.values()) <= 0.05
    assert wrong / 1000 < 0.07
