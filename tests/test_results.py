"""results.json: what it says follows from the scores; two of them compare, or not."""

import copy
import json

import numpy as np
import pytest

from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, failures, results, tables
from tavr_jax.evaluation.benchmark import METRICS, Network

PEOPLE, PAIRS = 6, 3
LIMITS = failures.FailureConfig(0.5, 0.2, 5.0, 0.3, 1e3, 1e3, 1e3, 5.0, 0.05)
NETWORKS = dict.fromkeys(("face", "lipsync"), Network("net 1", "Apache-2.0", True))


def records(rng, better):
    """People differ by much, rows by `better`; one value is not defined."""
    found = []
    for person in range(PEOPLE):
        for pair in range(PAIRS):
            level = 10 * person + pair + rng.normal() * 0.01
            scores = {m.key: level + better for m in METRICS}
            scores["offset"] = float((-1) ** pair * 3)
            features = {
                "frames": rng.normal(size=(4, 39)),
                "clips": rng.normal(size=(2, 51)),
            }
            found.append(results.Record(scores, (), features))
    found[0].scores["psnr"] = None
    return found


def made(better=0.5, seed=0):
    rng = np.random.default_rng(seed)
    rows = {
        "truth": records(rng, 1.0),
        "one": records(rng, 0.0),
        "two": records(rng, better),
    }
    rows["two"][1] = rows["two"][1]._replace(failures=("short",))
    for slug, row in rows.items():  # of the first people, whose level is near 0
        for record in row:
            record.scores.update(identity=5 + record.scores["identity"])
            record.scores.update(motion=1.0, sharpness=1.0, leak_p=0.05)
            record.scores.update(leak=9.0 * (slug != "truth"))
    rows["two"][2].scores.update(motion=0.1, offset=9.0, leak_p=0.04)
    samples = [
        {"key": f"{p}{i}", "person": str(p), "reference": "r", "target": "t",
         "caption": "", "seconds": 1.0, "size": [8, 8]}
        for p in range(PEOPLE) for i in range(PAIRS)
    ]  # fmt: skip
    about = {"name": "b", "sha256": "0", "samples": 18, "complete": True, "missing": {}}
    return {
        "version": benchmark.VERSION, "command": "c", "level": 0.95, "seed": 0,
        "benchmark": about,
        "rows": {slug: {"name": slug.title()} for slug in rows},
        "methods": results.described(benchmark.methods(NETWORKS)),
        "samples": samples,
        **results.findings(rows, samples, [("two", "one")], LIMITS, 0.95, 0),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(made(), allow_nan=False))


def test_what_samples_share_cancels_in_comparisons(found):
    apart = found["comparisons"]["two|one"]["identity"]
    assert apart["difference"]["mean"] == pytest.approx(0.5, abs=0.02)
    width = apart["difference"]["high"] - apart["difference"]["low"]
    alone = found["summary"]["one"]["identity"]
    assert width < 0.05 < 5 < alone["high"] - alone["low"]
    assert apart["p"] == 2 / 2**PEOPLE  # all six people agree
    assert apart["wins"] == 1
    psnr = found["summary"]["one"]["psnr"]
    assert (psnr["pairs"], psnr["undefined"]) == (17, 1)
    assert found["summary"]["one"]["offset"]["mean"] == 3  # -3 and 3 do not cancel
    assert found["scores"]["one"]["offset"][:2] == [3, -3]
    assert found["failures"] == {
        "truth": {},
        "one": {},
        "two": {"01": ["short"], "02": ["frozen", "out_of_sync", "copied"]},
    }
    assert found["sets"].keys() == {"one", "two"}
    assert found["sets"]["one"]["fid_mini"]["samples"] == [72, 72]
    assert abs(found["sets"]["one"]["kid_mini"]) < 1


def test_seeds_of_a_sample_are_one_with_all_their_failures():
    scores = {m.key: 1.0 for m in METRICS} | {"leak_p": 1.0}
    draws = [
        results.Record(scores | changed, failed, {"frames": np.full((1, 39), mark)})
        for changed, failed, mark in (
            ({"motion": 0.1, "offset": -3.0, "psnr": None}, (), 0.0),
            ({"motion": 1.9, "offset": 3.0, "psnr": 7.0}, ("short",), 1.0),
        )
    ]
    assert results.merged(draws[:1]) is draws[0]
    one = results.merged(draws)
    told = {key: one.scores[key] for key in ("motion", "offset", "psnr", "ssim")}
    assert told == {"motion": 1.0, "offset": 3.0, "psnr": 7.0, "ssim": 1.0}
    assert one.features is draws[0].features
    samples = [{"key": "a", "person": "p"}]
    rows = {"truth": [results.Record(scores, (), {})], "row": [one]}
    found = results.findings(rows, samples, [], LIMITS, 0.95, 0)
    assert found["failures"]["row"] == {"a": ["short", "frozen"]}  # the first moves not
    assert found["draws"].keys() == {"row"}
    assert found["draws"]["row"]["offset"] == [[-3.0, 3.0]]
    assert found["summary"]["row"]["psnr"]["pairs"] == 1


def test_a_mouth_that_agrees_by_accident_as_the_real_one_does_copies_nothing():
    scores = dict.fromkeys([m.key for m in METRICS], None) | {"leak_p": 0.01}
    known = [scores | {"leak": leak} for leak in (0.0, 6.0, 12.0)]
    copied = [
        ["copied" in failures.tags(one, real, LIMITS) for one in known]
        for real in known[:2]
    ]
    assert copied == [[False, True, True], [False, False, True]]
    unlike = scores | {"leak": -6.0}  # less than chance is no excuse
    assert "copied" not in failures.tags(known[0], unlike, LIMITS)
    assert "copied" in failures.tags(known[1], unlike, LIMITS)


def test_what_the_autoencoder_loses_is_no_failure_of_a_video():
    none = dict.fromkeys([m.key for m in METRICS], None) | {"leak_p": None}
    real = none | {"sharpness": 1.0, "motion": 1.0, "identity": 0.8}
    copy = none | {"sharpness": 0.2, "motion": 0.7, "identity": 0.6}
    soft = none | {"sharpness": 0.1, "motion": 0.17, "identity": 0.35}
    worse = none | {"sharpness": 0.05, "motion": 0.13, "identity": 0.25}
    said = ["wrong_person", "frozen", "blurred"]
    assert failures.tags(soft, real, LIMITS) == said
    assert failures.tags(soft, real, LIMITS, copy) == []
    assert failures.tags(worse, real, LIMITS, copy) == said
    assert failures.tags(soft, real, LIMITS, none) == said  # the copy has no scores
    rows = {"truth": real, "codec": copy, "row": soft}
    samples = [{"key": "a", "person": "p"}]

    def found(*slugs):
        records = {slug: [results.Record(rows[slug], (), {})] for slug in slugs}
        return results.findings(records, samples, [], LIMITS, 0.95, 0)["failures"]

    assert not any(found("truth", "codec", "row").values())
    assert found("truth", "row") == {"truth": {}, "row": {"a": said}}


def test_tables_say_what_the_numbers_say(found):
    text = tables.markdown([*tables.summary_tables(found), tables.sample_table(found)])
    shown = found["summary"]["two"]["identity"]
    assert f"{shown['mean']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}]" in text
    assert "18 sample(s) of 6 person(s)" in text
    assert "Two less One" in text and "| 01 | Two |" in text and "frozen" in text
    part = found["benchmark"] | {"samples": 158, "complete": False}
    assert (
        "18 of 158 sample(s)"
        in tables.summary_tables(found | {"benchmark": part})[0].note
    )


def test_two_files_compare_row_by_row(found):
    better = json.loads(json.dumps(made(better=2.5)))
    apart = results.compare(better, found, ("a", "b"))
    assert apart.keys() == {"one|one", "two|two"}  # no marks
    assert apart["two|two"]["identity"]["difference"]["mean"] == pytest.approx(2.0)
    for comparison in apart["one|one"].values():
        assert comparison["p"] is None
        assert comparison["wins"] == 0.5
    renamed = copy.deepcopy(found)
    for what in ("scores", "rows", "failures", "summary"):
        renamed[what]["three"] = renamed[what].pop("two")
        del renamed[what]["one"]
    crossed = results.compare(better, renamed, ("a", "b"))
    assert crossed.keys() == {"one|three", "two|three"}


def test_a_mouth_held_against_another_truth_is_not_compared(found):
    known = copy.deepcopy(found)
    known["benchmark"]["truth"] = True
    for one, other in ((known, found), (found, known)):
        apart = results.compare(one, other, ("a", "b"))["two|two"]
        assert found["methods"].keys() - apart.keys() == {"mouth"}
    assert "mouth" in results.compare(known, known, ("a", "b"))["two|two"]


def test_columns_that_one_file_lacks_are_left_out(found):
    more = copy.deepcopy(found)
    more["methods"]["lpips"] = more["methods"]["psnr"] | {"network": "net 2"}
    for row in more["scores"].values():
        row["lpips"] = row["psnr"]
    for one, other in ((more, found), (found, more)):
        apart = results.compare(one, other, ("a", "b"))
        assert apart["two|two"].keys() == found["methods"].keys()
    assert "lpips" in results.compare(more, more, ("a", "b"))["two|two"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["benchmark"].update(sha256="1"), "not the same benchmark"),
        (lambda r: r["samples"].reverse(), "not the same samples"),
        (lambda r: r["methods"]["identity"].update(network="x"), "judging networks"),
    ],
)
def test_what_does_not_compare_is_refused(found, change, said):
    other = copy.deepcopy(found)
    change(other)
    with pytest.raises(InputError, match=said):
        results.compare(found, other, ("a", "b"))


def test_a_file_is_read_or_refused_by_name(found, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(found))
    assert results.read(tmp_path) == results.read(path) == found
    for text, said in (
        ("[]", "not the results.json"),
        (json.dumps(found | {"version": "1"}), "scores of version 1"),
        (json.dumps({k: v for k, v in found.items() if k != "scores"}), "KeyError"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            results.read(path)


def test_a_sweep_is_what_rows_of_a_family_say_over_k(found):
    def row(family, frames):
        return {"family": family, "frames": frames}

    rows = {"truth": row("", None), "one": row("net", 12), "two": row("net", 4)}
    summary = copy.deepcopy(found["summary"])
    swept = results.sweep(rows, summary)
    points = swept["identity"]["net"]
    assert points["k"] == [4, 12]  # in order, whichever row came first
    for name in ("mean", "low", "high"):
        assert points[name] == [summary[s]["identity"][name] for s in ("two", "one")]
    summary["two"]["psnr"] = None
    assert results.sweep(rows, summary)["psnr"]["net"]["k"] == [12]
    assert results.sweep(rows | {"two": row("other net", 4)}, summary) == {}
    assert "sweep" not in found
