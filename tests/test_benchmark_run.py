"""A whole evaluation, its videos made by stubs: what it says does not depend on how
often it was stopped, by how many it was made, or in which order."""

import json

import numpy as np
import pytest
from test_score_rows import FRAMES, judges, material

from configs import cross_scene
from data_pipelines import benchmark_file, video_files
from launch import benchmark_rows, publish, score_rows
from launch.held_out import Video, Way
from launch.score_rows import Task
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, metrics_statistics, tables
from tavr_jax.evaluation.benchmark import Network

COUNT = 3
NETWORKS = dict.fromkeys(("face", "lipsync"), Network("net 1", "Apache-2.0", True))
CONFIG = cross_scene.get_config("tiny")


def noisy(sample):
    rng = np.random.default_rng(sample.index)
    frames = sample.truth.frames
    moved = np.clip(frames + rng.normal(0, 12, frames.shape), 0, 255)
    return Video(moved.astype(np.uint8))


def key(index):
    return f"{index:03d}_v{index}"


class Run:
    """An evaluation in a folder; `kill` = the make that ends it."""

    def __init__(self, folder, order=tuple(range(COUNT)), more=(), unreadable=()):
        self.folder, self.order, self.more = folder, order, more
        self.unreadable, self.left, self.openings = unreadable, None, None

    def task(self, index):
        def read():
            if index in self.unreadable:
                raise InputError(f"{index}.mp4: no face in it")
            return material(index)

        return Task(self.folder / str(index), key(index), {"version": 1}, read)

    def counted(self, make):
        def found(sample):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            return make(sample)

        return found

    def evaluation(self):
        makes = {"truth": lambda sample: Video(sample.truth.frames), "row": noisy}
        ways = [Way(s, s, self.counted(make), {}, {}) for s, make in makes.items()]
        samples = [{"key": key(i), "person": str(i % 2)} for i in self.order]
        about = {"samples": COUNT, "complete": True, "missing": {}}
        return publish.Evaluation(
            ways=[*ways, *self.more],
            tasks=[self.task(index) for index in self.order],
            samples=samples,
            benchmark=about,
            introduction=[],
            judges=judges(),
            networks=NETWORKS,
            openings=self.openings,
        )

    def __call__(self, share=(0, 1), kill=None):
        self.left, made = kill, self.evaluation()
        records = score_rows.run(made.ways, made.tasks, made.judges, CONFIG, share)
        found = publish.assemble(made, records, CONFIG, "c", False)[1]
        return json.loads(json.dumps(found, allow_nan=False))


@pytest.fixture(scope="module", autouse=True)
def rough():
    """Intervals of few draws: they are not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics_statistics, "RESAMPLES", 199)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("whole"))()


def test_stopped_anywhere_it_goes_on_to_the_same_results(whole, tmp_path):
    run = Run(tmp_path)
    for kill in (0, 1, 2, 1, 0):  # each goes on from the last: 0, 0, 1, 3, 4 are made
        with pytest.raises(KeyboardInterrupt):
            run(kill=kill)
    assert len(list(tmp_path.rglob("*.json"))) == 4
    assert run() == whole


def test_a_finished_run_tells_what_a_mouth_is_without_speech(whole, tmp_path):
    run = Run(tmp_path)
    assert run() == whole and "unspoken" not in whole
    said = np.random.default_rng(0).normal(size=FRAMES)
    run.openings = {key(index): said for index in range(COUNT)}
    found = run(kill=0)  # no video is made
    assert found["unspoken"]["mean"] == pytest.approx(1)
    note = tables.summary_tables(found)[0].note
    assert "Mouth r without speech: 1.000" in note
    assert "without speech" not in tables.summary_tables(whole)[0].note


@pytest.mark.parametrize("when", [0, 3, 5])
def test_stopped_while_it_writes_it_goes_on_too(whole, tmp_path, monkeypatch, when):
    run, writes = Run(tmp_path), []

    def killed(path, text):
        writes.append(path)
        if len(writes) > when:
            raise KeyboardInterrupt
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr(score_rows, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(list(tmp_path.rglob("*.json"))) == when
    assert run() == whole


def test_two_shares_are_one_run(whole, tmp_path):
    run = Run(tmp_path)
    made = run.evaluation()
    score_rows.run(made.ways, made.tasks, made.judges, CONFIG, (1, 2))
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert run((0, 2)) == whole


def close(one, other):
    """Equal but for the order of sums."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-6, abs=1e-9)
    return one == other


def test_the_order_of_samples_changes_nothing(whole, tmp_path):
    shuffled = Run(tmp_path, order=(2, 0, 1))()
    assert [s["key"] for s in shuffled["samples"]] == [key(2), key(0), key(1)]
    for what in ("summary", "failures", "sets"):
        assert close(shuffled[what], whole[what]), what
    scores = whole["scores"]["row"]["identity"]
    assert shuffled["scores"]["row"]["identity"] == [scores[2], scores[0], scores[1]]


def test_the_real_video_is_the_ceiling(whole):
    real, row = (
        {k: e and e["mean"] for k, e in whole["summary"][slug].items()}
        for slug in ("truth", "row")
    )
    assert real["psnr"] is None and row["psnr"] > 15  # equal pictures: infinite
    for metric in ("identity_target", "ssim", "bg_ssim", "follows"):
        assert real[metric] > row[metric], metric
    assert real["mouth"] == pytest.approx(1)
    for metric in ("identity_lost", "flicker", "blinks"):
        assert real[metric] == 0, metric
    for metric in ("sharpness", "motion"):
        assert real[metric] == pytest.approx(1) != pytest.approx(row[metric]), metric


def test_a_sample_that_cannot_be_read_is_missing_with_its_reason(whole, tmp_path):
    run = Run(tmp_path, unreadable=(1,))
    found = run()
    assert found["benchmark"]["missing"] == {key(1): "1.mp4: no face in it"}
    assert not found["benchmark"]["complete"]
    assert [s["key"] for s in found["samples"]] == [key(0), key(2)]
    scores = whole["scores"]["row"]["ssim"]
    assert found["scores"]["row"]["ssim"] == [scores[0], scores[2]]
    run.unreadable = ()  # what was found is kept: reading it again costs nothing
    assert run() == found
    with pytest.raises(InputError, match="no sample can be scored: 000"):
        Run(tmp_path / "none", unreadable=range(COUNT))()


def sown(seed, draw=0, **more):
    """A draw of a row whose videos differ by its seed."""

    def make(sample):
        rng = np.random.default_rng((seed, sample.index))
        frames = sample.truth.frames
        moved = np.clip(frames + rng.normal(0, 4 + 8 * seed, frames.shape), 0, 255)
        return Video(moved.astype(np.uint8), (), {"gflops": 2.0 + seed})

    slug = f"net_seed{seed}" if draw else "net"
    told = {"seed": str(seed)}
    return Way("Net", slug, make, told, told, stage="policy", draw=draw, first="net",
               **more)  # fmt: skip


def test_seeds_of_a_row_are_averaged_before_people_are_drawn(whole, tmp_path):
    alone = [Run(tmp_path / str(s), more=[sown(s)])() for s in range(3)]
    together = Run(tmp_path / "0", more=[sown(s, s) for s in range(3)])
    together.left = 0  # rows of the first seed are kept, those of others are made
    found = together()
    assert found["rows"].keys() == {"truth", "row", "net"}
    assert found["rows"]["net"]["seeds"] == ["0", "1", "2"]
    assert found["rows"]["row"]["seeds"] == []
    metrics = benchmark.listed(found["methods"])
    each = [one["scores"]["net"] for one in alone]
    for metric in metrics:
        told = found["draws"]["net"][metric.key]
        assert told == [
            list(v) for v in zip(*(e[metric.key] for e in each), strict=True)
        ]
        sizes = [
            [abs(v) if metric.better == "zero" else v for v in row if v is not None]
            for row in told
        ]
        wanted = [np.mean(row) if row else None for row in sizes]
        assert found["scores"]["net"][metric.key] == pytest.approx(wanted), metric.key
    assert found["scores"]["net"]["gflops"] == [3.0] * COUNT
    summary = found["summary"]["net"]["ssim"]
    assert (summary["pairs"], summary["people"]) == (COUNT, 2)  # not 3 x COUNT
    assert summary["mean"] == pytest.approx(
        np.mean([one["summary"]["net"]["ssim"]["mean"] for one in alone])
    )
    assert found["sets"]["net"] == alone[0]["sets"]["net"]
    assert found["draws"].keys() == {"net"} and not whole["draws"]
    assert whole["scores"]["row"] == {
        key: found["scores"]["row"][key] for key in whole["scores"]["row"]
    }
    for index in range(COUNT):
        tags = {t for one in alone for t in one["failures"]["net"].get(key(index), [])}
        assert set(found["failures"]["net"].get(key(index), [])) == tags
    text = tables.markdown(tables.summary_tables(found))
    assert "mean over 3 seeds" in text


def test_a_seed_that_is_missing_leaves_the_others(tmp_path):
    def broken(sample):
        raise InputError("no")

    ways = [sown(0), sown(1, 1)._replace(make=broken)]
    found = Run(tmp_path, more=ways)()
    assert found["failures"]["net"][key(0)][0] == "missing"
    one = Run(tmp_path, more=ways[:1])()
    assert found["scores"]["net"]["ssim"] == one["scores"]["net"]["ssim"]


def test_rows_are_tested_against_those_that_are_shown_the_same():
    def way(slug, protocol, family, **more):
        return Way(slug, slug, None, {}, {}, protocol, family=family, **more)

    ways = [
        way("truth", "video", ""),
        way("a", "video", "a"),
        way("a_seed1", "video", "a", draw=1, first="a"),
        way("b", "video", "b"),
        way("a_none", "none", "a"),
        way("b_none", "none", "b"),
        way("a_k4", "k4", "a"),
        way("a_silence", "silence", "a", hears="silence"),
        way("x", "theirs", "x"),
    ]
    assert publish.compared(ways, False) == [
        ("b", "a"), ("a_none", "a"), ("b_none", "b"), ("b_none", "a_none"),
        ("a_k4", "a"), ("x", "a"), ("x", "b"),
    ]  # fmt: skip
    against = publish.compared(ways, True)
    assert against == [(s, "a") for s in ("b", "a_none", "b_none", "a_k4", "x")]


@pytest.fixture
def folders(tmp_path):
    """Two folders of the same videos."""
    for name in ("a", "b"):
        for index in range(COUNT):
            video = noisy(material(index)).frames
            path = tmp_path / name / f"{key(index)}.mp4"
            video_files.write_video(path, video, 25, crf=8)
    return tmp_path


def theirs(folders):
    span = benchmark_file.Span("v", "", 0.0, 1.0, 0, FRAMES, 25.0, 64, 64)
    listed = [
        benchmark_file.Sample(i, key(i), span, span, "", "") for i in range(COUNT)
    ]
    return [benchmark_rows.theirs(n, folders / n, listed) for n in ("a", "b")]


def test_folders_of_the_same_videos_do_not_differ(folders):
    found = Run(folders / "out", more=theirs(folders))()
    compared = found["comparisons"]["results_b|results_a"]
    assert compared["ssim"]["difference"]["pairs"] == COUNT
    for metric, comparison in compared.items():
        if comparison is None:
            assert found["summary"]["results_a"][metric] is None
            continue
        assert comparison["p"] is None and comparison["wins"] == 0.5
        difference = comparison["difference"]
        assert difference["low"] == difference["mean"] == difference["high"] == 0
    apart = found["comparisons"]["results_a|row"]["ssim"]  # mp4 is not for nothing
    assert abs(apart["difference"]["mean"]) > 1e-3


def test_one_broken_video_is_a_failure_of_its_row_alone(folders):
    broken = folders / "b" / f"{key(1)}.mp4"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    found = Run(folders / "out", more=theirs(folders))()
    assert found["failures"]["results_b"][key(1)] == ["missing"]
    assert "missing" not in str(found["failures"]["results_a"])
    assert found["scores"]["results_b"]["ssim"][1] is None
    summary = found["summary"]["results_b"]["ssim"]
    assert (summary["pairs"], summary["undefined"]) == (COUNT - 1, 1)
    compared = found["comparisons"]["results_b|results_a"]["ssim"]
    assert compared["difference"]["pairs"] == COUNT - 1
    assert found["benchmark"]["complete"]
    about = json.loads((folders / "out/1/results_b.json").read_text())
    assert str(broken) in about["reason"]
    # replaced, it is scored
    broken.write_bytes(data)
    assert Run(folders / "out", more=theirs(folders))()["failures"]["results_b"] == {
        k: v for k, v in found["failures"]["results_a"].items()
    }
