"""Verdicts follow from scores alone, and nothing that was not run has one."""

import copy
import json

import numpy as np
import pytest
from test_results import LIMITS, NETWORKS

from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, claims, metrics_statistics, results, tables
from tavr_jax.evaluation.claims import FAILS, HOLDS, NOT_RUN, Claim, Row

PEOPLE, PAIRS = 12, 2
METRICS = benchmark.metrics_of(NETWORKS, False, True)
ONE, OTHER = Row(), Row("image")
MARK = {"name": "Truth", "protocol": "video", "stage": "", "attention": ""}


@pytest.fixture(scope="module", autouse=True)
def rough():
    """Intervals of few draws: they are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_statistics, "RESAMPLES", 199)
        yield


def run(means, spread=0.02, apart=0.001, seed=0, truth=False, **about):
    """Results whose rows have the `means`, {(protocol, stage): {metric: mean}}: people
    differ by `spread`, in all rows alike, and pairs by `apart`."""
    rng = np.random.default_rng(seed)
    person = rng.normal(0, spread, PEOPLE).repeat(PAIRS)
    real = [results.Record({m.key: 1.0 for m in METRICS}, (), {})] * len(person)
    records, rows = {"truth": real}, {"truth": MARK}
    records["truth"] = [
        r._replace(scores=r.scores | {"leak_p": 1.0}) for r in records["truth"]
    ]
    for (protocol, stage), metrics in means.items():
        slug = f"{stage}_{protocol}"
        noise = rng.normal(0, apart, len(person))
        noise -= noise.mean()  # the means differ by what they are asked to
        records[slug] = [
            results.Record(
                {m.key: float(metrics[m.key] + p + n) if m.key in metrics else None
                 for m in METRICS} | {"leak_p": None},
                (), {},
            )
            for p, n in zip(person, noise, strict=True)
        ]  # fmt: skip
        rows[slug] = {
            "name": slug, "protocol": protocol, "stage": stage, "attention": "global",
            "seeds": ["0"], "provenance": {"fingerprint": stage}, **about,
        }  # fmt: skip
    samples = [{"key": str(i), "person": str(i // PAIRS)} for i in range(len(person))]
    bench = {"name": "b", "sha256": "0", "samples": len(person), "complete": True}
    made = {
        "version": benchmark.VERSION, "level": 0.95, "seed": 0,
        "benchmark": bench | {"missing": {}, "truth": truth}, "samples": samples,
        "rows": rows, "methods": results.described(
            benchmark.methods(NETWORKS, METRICS), METRICS
        ),
        **results.findings(records, samples, [], LIMITS, 0.95, 0, METRICS),
    }  # fmt: skip
    return json.loads(json.dumps(made))


def two(one, other, metric="identity", stage="policy", **how):
    return run({("video", stage): {metric: one}, ("image", stage): {metric: other}},
               **how)  # fmt: skip


def verdict(claim, *runs):
    return claims.outcome(claim, runs).verdict


@pytest.mark.parametrize(
    ("one", "other", "spread", "says"),
    [
        (0.8, 0.5, 0.02, HOLDS),
        (0.5, 0.8, 0.02, FAILS),
        # pair by pair they differ without a doubt, but intervals of rows overlap
        (0.81, 0.8, 0.2, "undecided (intervals overlap)"),
        (0.79, 0.8, 0.2, FAILS),  # the other way round that is enough
        (0.8, 0.8, 0.02, "undecided (intervals overlap)"),
    ],
)
def test_a_row_beats_another_if_their_intervals_are_apart(one, other, spread, says):
    made = two(one, other, spread=spread)
    assert verdict(Claim("", "identity", "beats", ONE, OTHER), made) == says
    # what is better when low turns round
    flops = two(other, one, "gflops", spread=spread)
    assert verdict(Claim("", "gflops", "beats", ONE, OTHER), flops) == says


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (0.9, HOLDS),
        (0.79, HOLDS),  # certainly less, by less than 5 %
        (0.70, FAILS),
        (0.76, "undecided (interval reaches a loss of 5%)"),
    ],
)
def test_a_row_keeps_what_it_loses_little_of(one, says):
    made = two(one, 0.8, apart=0.004)
    assert verdict(Claim("", "identity", "keeps", ONE, OTHER), made) == says


@pytest.mark.parametrize(
    ("metric", "mean", "says"),
    [
        ("mouth", 0.9, HOLDS),
        ("mouth", 0.7, FAILS),
        ("mouth", 0.8, "undecided (interval reaches the limit)"),
        ("colour_scene", 0.7, HOLDS),
        ("colour_scene", 0.9, FAILS),
    ],
)
def test_a_row_reaches_a_limit_with_all_of_its_interval(metric, mean, says):
    made = two(mean, 0.0, metric)
    assert verdict(Claim("", metric, "reaches", ONE, limit=0.8), made) == says


def test_what_was_not_run_has_no_verdict_and_no_number():
    made = run({("video", "policy"): {"identity": 0.5}})
    lacking = [
        Claim("", "identity", "beats", ONE, OTHER),  # no such row
        Claim("", "sync_c", "beats", ONE, ONE),  # no such value
        Claim("", "identity", "reaches", Row(stage="cross_scene"), limit=0.0),
        Claim("", "lpips", "reaches", ONE, limit=0.0),  # no such metric
        Claim("", "identity", "reaches", ONE, limit=0.0, needs_truth=True),
        Claim("", "identity", "reaches", Row(attention="frame"), limit=0.0),
    ]
    for claim in lacking:
        found = claims.outcome(claim, [made])
        assert found.verdict == NOT_RUN, claim
        assert (found.one, found.other, found.apart) == (None, None, None)
    (table,) = claims.claim_tables([made], ["a"], lacking)
    for _, cells in table.rows:
        assert [c.text for c in cells][5:] == [""] * 6
    told = Claim("", "identity", "reaches", ONE, limit=0.0, needs_truth=True)
    known = run({("video", "policy"): {"identity": 0.5}}, truth=True)
    assert verdict(told, made, known) == HOLDS


def test_the_stage_is_the_last_that_has_both_rows():
    later = run({("video", "policy"): {"identity": 0.9}})
    both = two(0.5, 0.2, stage="cross_scene")
    found = claims.outcome(Claim("", "identity", "beats", ONE, OTHER), [later, both])
    assert found.names == ("cross_scene_video", "cross_scene_image")
    assert found.one["mean"] == pytest.approx(0.5, abs=0.05)
    staged = Claim(
        "", "identity", "beats", Row(stage="policy"), Row(stage=claims.STAGES[1])
    )
    found = claims.outcome(staged, [later, both])
    assert found.names == ("policy_video", "cross_scene_video")
    assert found.verdict == HOLDS
    assert found.apart.difference.mean == pytest.approx(0.4, abs=0.01)
    assert found.apart.p < 0.01


def test_mouths_of_two_truths_do_not_meet_in_a_claim():
    claim = Claim("", "mouth", "beats", ONE, OTHER)
    pixels = run({("video", "policy"): {"mouth": 0.9}})
    known = run({("image", "policy"): {"mouth": 0.5}}, truth=True)
    assert verdict(claim, pixels, known) == NOT_RUN
    both = two(0.4, 0.6, "mouth")
    assert verdict(claim, both, known) == FAILS
    assert verdict(claim, pixels, both, two(0.6, 0.4, "mouth", truth=True)) == HOLDS


def test_one_row_made_twice_counts_with_more_seeds_and_two_models_are_refused():
    once = two(0.5, 0.2)
    more = two(0.6, 0.2, seeds=["0", "1", "2"])
    claim = Claim("", "identity", "beats", ONE, OTHER)
    for runs in ([once, more], [more, once]):
        found = claims.outcome(claim, runs)
        assert found.one["mean"] == pytest.approx(0.6, abs=0.05)
        assert found.seeds == (3, 3)
    other = two(0.6, 0.2, provenance={"fingerprint": "another"})
    with pytest.raises(InputError, match="different checkpoints of stage policy"):
        claims.outcome(claim, [once, other])


def test_the_table_has_a_line_for_each_claim_with_the_numbers_of_its_rows():
    made = two(0.8, 0.5)
    (table,) = claims.claim_tables([made], ["a"])
    assert len(table.rows) == len(claims.CLAIMS)
    lines = [[cell.text for cell in cells] for _, cells in table.rows]
    first, *others = lines
    shown = made["summary"]["policy_video"]["identity"]
    assert first[0] == "A video reference beats one image" and first[1] == HOLDS
    assert first[5] == f"{shown['mean']:.4f} [{shown['low']:.4f}, {shown['high']:.4f}]"
    assert first[7].startswith("+0.3") and first[8] == first[9] and first[10] == "1"
    assert {line[1] for line in others} == {NOT_RUN}
    text = tables.markdown([table])
    assert "24 pair(s) of 12 person(s)" in text and text.count("\n| ") == len(lines) + 2
    foreign = copy.deepcopy(made)
    foreign["benchmark"]["sha256"] = "1"
    with pytest.raises(InputError, match="--claims a b: not the same benchmark"):
        claims.claim_tables([made, foreign], ["a", "b"])


def test_every_claim_names_a_metric_and_a_rule_that_exist():
    keys = {metric.key for metric in METRICS}
    for claim in claims.CLAIMS:
        assert claim.metric in keys
        assert (claim.other is None) == (claim.rule == "reaches")
        assert bool(claim.limit) == (claim.rule == "reaches")
    assert len({claim for claim in claims.CLAIMS}) == len(claims.CLAIMS)
