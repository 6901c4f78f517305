"""What may go wrong while footage is prepared, and must not do harm.

The long versions: python -m pytest -m slow tests/test_faults.py
"""

import errno
import operator
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import damaged
import drawn
import interrupted
import pytest

from data_pipelines import records
from data_pipelines.prepare import (
    checksums,
    clips,
    importers,
    pipeline,
    quality,
    remote,
    store,
    workers,
)
from tavr_jax.errors import InputError

SCRIPT = Path(interrupted.__file__)
LIMITS = workers.Limits(60.0, 2.0)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "person.mp4"
    drawn.save(path, drawn.footage(24))
    return path


def prepare_all(folder: Path, work: Path, **fields):
    """Every video of a folder through the per-video stage; kept and left out."""
    config = interrupted.get_config()
    config.prepare.update(fields)
    settings = clips.ClipSettings(config.prepare, 16, 16000, 25, None)
    videos, kept, left = importers.find_videos(folder), [], {}
    work.mkdir()
    assert sorted(pipeline.each_video(videos, settings, work)) == sorted(videos)
    for video in videos:
        rejects = store.rejects(video, work)
        kept += [video.video_id] * bool(store.clip_paths(video, work))
        left |= {video.video_id: rejects[0]} if rejects else {}
        assert store.clip_paths(video, work) or rejects, video
        assert all(each.reason in quality.REMEDIES for each in rejects)
    return len(videos), kept, left


def test_damaged_and_odd_files_are_accepted_or_listed(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    maker = damaged.Maker(good, tmp_path / "source")
    for kind in damaged.KINDS:
        kind(maker)
    maker.as_damage(range(4))
    os.mkfifo(maker.path("pipe.mp4"))
    count, kept, left = prepare_all(maker.folder, tmp_path / "work")
    assert count >= 50
    names = {f"{name}.mp4" for name in damaged.NAMES}
    odd = {"5_1.mkv", "8khz.mp4", "44khz.mov", "vfr.mkv", "120fps.mp4", "444.mp4"}
    odd |= {"turned_90.mp4", "turned_180.mp4", "right_bytes_wrong_name.avi", "gray.mp4"}
    assert names | odd <= set(kept)
    expected = {
        "mute.mp4": "no sound",
        "mpeg1.mpg": "no sound",
        "hdr.mkv": "HDR",
        "silent.mp4": "too quiet",
        "one_frame.mp4": "too short",
        "black.mp4": "no face",
        "still.mp4": "does not move",
        **dict.fromkeys(
            (
                "zero.mp4",
                "text.mp4",
                "picture.mp4",
                "truncated_25.mp4",
                "sound_only.mp4",
            ),
            "unreadable",
        ),
        **dict.fromkeys(("nowhere.mp4", "pipe.mp4", "page.webm"), "unreadable"),
    }
    assert {name: left[name].reason for name in expected} == expected
    assert not {"failed", "crashed"} & {each.reason for each in left.values()}
    assert not list(tmp_path.rglob("pwned"))  # no name was ever run


def test_a_job_that_dies_costs_itself_alone():
    jobs = {
        (os._exit, 7): "exit code 7",
        (os.abort,): f"signal {signal.SIGABRT.value}",
        (operator.truediv, 1, 0): "ZeroDivisionError",
        (bytearray, 3 << 30): "out of memory",
        (operator.add, 1, 2): 3,
    }
    results = {}
    for function, *job in jobs:
        for _, result in workers.each(function, [tuple(job)], 1, LIMITS):
            results[(function, *job)] = result
    for job, expected in jobs.items():
        result = results[job]
        if isinstance(expected, str):
            assert isinstance(result, workers.Failure) and expected in result.detail
        else:
            assert result == expected


def test_a_child_that_died_between_jobs_costs_none(monkeypatch):
    handed, take = [], workers._Child.take

    def late(child, task):
        handed.append(task)
        if len(handed) == 2:  # the second job, which the first one's child would get
            child._process.kill()
            child._process.wait()
        return take(child, task)

    monkeypatch.setattr(workers._Child, "take", late)
    jobs = [(number, 10) for number in range(3)]
    found = dict(workers.each(operator.add, jobs, 1, LIMITS))
    assert found == {job: sum(job) for job in jobs} and len(handed) == 4


def test_cores_are_ours_where_the_system_says(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
        assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert workers.cores() == os.cpu_count()


def test_slow_jobs_are_ended_and_the_others_go_on():
    quick = workers.Limits(2.0, 2.0)
    jobs = [(0.0,), (600.0,), (0.01,), (0.02,)]
    begun = time.monotonic()
    found = dict(workers.each(time.sleep, jobs, 2, quick))
    assert time.monotonic() - begun < 30
    assert found[(600.0,)].reason == "took too long"
    assert [found[job] for job in jobs if job != (600.0,)] == [None] * 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for person in range(4):
        frames = drawn.footage(40, background=(60 + 30 * person, 140, 120))
        drawn.save(root / f"person_{person}/scene.mp4", frames)
    drawn.save(root / "mute.mp4", drawn.footage(20), loudness=None)
    return root


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The dataset that nothing interrupted, and how long it took."""
    output, begun = tmp_path_factory.mktemp("whole") / "dataset", time.monotonic()
    assert interrupted.prepare(source, output)
    return output, time.monotonic() - begun


def same(one: Path, other: Path) -> bool:
    """Byte for byte, whole folders."""
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (one, other)
    ]
    assert files[0].keys() == files[1].keys()
    return all(files[0][name] == files[1][name] for name in files[0])


def kill_often(source: Path, output: Path, seconds: float, times: int, seed: int):
    """Kill the process at random moments of its work, each run going on."""
    moments, killed = random.Random(seed), 0
    command = [sys.executable, str(SCRIPT), str(source), str(output)]
    paths = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    while killed < times:
        process = subprocess.Popen(
            command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        process.stdout.readline()
        time.sleep(moments.uniform(0, seconds))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        process.stdout.close()
        if output.exists():  # it was quicker than the moment: once more from nothing
            shutil.rmtree(output)


def test_killed_anywhere_the_rerun_makes_the_same_bytes(source, whole, tmp_path):
    output = tmp_path / "dataset"
    kill_often(source, output, 0.5 * whole[1], 3, seed=0)
    interrupted.prepare(source, output)
    assert same(output, whole[0])
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_a_second_run_at_one_dataset_is_refused_and_touches_nothing(
    source, whole, tmp_path
):
    output, link = tmp_path / "dataset", tmp_path / "link"
    link.symlink_to(output)
    kept = tmp_path / "dataset.partial/work/of the first run"
    kept.mkdir(parents=True)
    with store.alone(output):
        for name in (output, link):
            with pytest.raises(InputError, match=rf"{output}: another .*prepare_data"):
                interrupted.prepare(source, name)
        assert kept.is_dir()
    assert interrupted.prepare(source, output)
    assert same(output, whole[0])


def test_a_link_is_followed_and_stays(source, whole, tmp_path):
    disk, link = tmp_path / "disk/dataset", tmp_path / "dataset"
    shutil.copytree(whole[0], disk)
    link.symlink_to(Path("disk/dataset"))
    assert not interrupted.prepare(source, link)
    assert interrupted.prepare(source, link, crf=30)
    assert not interrupted.prepare(source, disk, crf=30)
    assert link.is_symlink()
    names = {path.name for path in (*tmp_path.iterdir(), *disk.parent.iterdir())}
    assert names == {"disk", "dataset"}


def test_a_network_with_other_content_encodes_again(
    source, whole, tmp_path, monkeypatch
):
    output, file, config = tmp_path / "d", tmp_path / "n/w.bin", interrupted.get_config
    shutil.copytree(whole[0], output)
    file.parent.mkdir()
    for field, name in (("speech", file.parent), ("tokenizer", file)):

        def changed(field=field, name=name):
            made = config()
            made.networks[field] = str(name)
            return made

        monkeypatch.setattr(interrupted, "get_config", changed)
        for content in (b"one", b"two", b"one"):
            file.write_bytes(content)
            os.utime(file, (1, 1))
            assert interrupted.prepare(source, output)
            assert not interrupted.prepare(source, output)


def test_a_full_disk_stops_clearly_and_goes_on_after(
    source, whole, tmp_path, monkeypatch
):
    output, calls = tmp_path / "dataset", []
    add = records.RecordWriter.add

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(*arguments)

    monkeypatch.setattr(records.RecordWriter, "add", failing)
    with pytest.raises(InputError, match=r"disk is full; make room and run the same"):
        interrupted.prepare(source, output)
    assert not output.exists()
    interrupted.prepare(source, output)
    assert same(output, whole[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_really_is_full(source, whole, tmp_path):
    """First where workers write clips, then where ArrayRecord does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        for size in ("700k", "64m"):
            with pytest.raises(InputError, match="disk is full"):
                interrupted.prepare(source, disk / "dataset")
            assert not (disk / "dataset").exists()
            more = ["mount", "-o", f"remount,size={size}", str(disk)]
            subprocess.run(more, check=True)
        interrupted.prepare(source, disk / "dataset")
        assert same(disk / "dataset", whole[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_checksums_find_what_changed(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    assert (
        checksums.verify(copy) == len([p for p in copy.rglob("*") if p.is_file()]) - 1
    )
    shard = next(copy.glob("clips/*/*array_record*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=f"{shard.name}: damaged"):
        checksums.verify(copy)
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name}: is missing"):
        checksums.verify(copy)


def test_the_number_of_processes_and_beam_make_the_same_bytes(source, whole, tmp_path):
    interrupted.prepare(source, tmp_path / "one", workers=1)
    assert same(tmp_path / "one", whole[0])
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    direct, exchange = ("--runner=DirectRunner",), tmp_path / "exchange"
    runner = pipeline.Runner(direct, str(exchange))
    interrupted.prepare(source, tmp_path / "beam", runner)
    assert same(tmp_path / "beam", whole[0])
    shutil.rmtree(tmp_path / "beam")
    broken = pipeline.Runner(("--runner=NoSuchRunner",), str(exchange))
    interrupted.prepare(source, tmp_path / "beam", broken)  # all is in the exchange
    assert same(tmp_path / "beam", whole[0])


def test_a_bucket_is_listed_and_fetched_as_a_folder_is_read(source, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    (source / "person_0/scene.txt").write_text("a caption")
    listed = tmp_path / "listed"
    remote.listing(str(source), listed)
    assert [v[1:] for v in importers.find_videos(listed)] == [
        v[1:] for v in importers.find_videos(source)
    ]
    runner = pipeline.Runner(("--runner=DirectRunner",), "", str(source))
    interrupted.prepare(listed, tmp_path / "beam", runner)
    interrupted.prepare(source, tmp_path / "here")
    (source / "person_0/scene.txt").unlink()
    for name in (records.INDEX, records.REJECTS, "quality.jsonl"):
        lines = [(tmp_path / d / name).read_text() for d in ("beam", "here")]
        assert lines[0] == lines[1] and lines[0]
    found = records.open_records(tmp_path / "beam", "clips", "train")
    assert found[0]["caption"] == b"a caption"


@pytest.mark.slow
def test_two_hundred_damaged_variants(shared, tmp_path, capsys):
    videos = shared / "media/videos"
    bases = sorted(videos.glob("*.mp4"))[:2] + sorted(videos.glob("grid-[AB]*"))
    drawn.save(tmp_path / "drawn.mp4", drawn.footage(40))
    for number, base in enumerate([*bases, tmp_path / "drawn.mp4"]):
        maker = damaged.Maker(base, tmp_path / "source", f"{number}_")
        for kind in damaged.KINDS[:3]:
            kind(maker)
        maker.as_names(damaged.NAMES[number::5])
        maker.as_damage(range(number * 100, number * 100 + 4))
    maker.as_4k(60)
    begun = time.monotonic()
    result = prepare_all(maker.folder, tmp_path / "work")
    count, kept, left = result
    reasons = Counter(each.reason for each in left.values())
    with capsys.disabled():
        print(f"\n{count} files, {len(kept)} kept, {time.monotonic() - begun:.0f} s")
        print(f"first reasons: {dict(reasons)}")
    assert count >= 200
    assert not {"failed", "crashed", "took too long"} & set(reasons)


@pytest.mark.slow
def test_killed_at_twenty_points(source, whole, tmp_path):
    for round_ in range(4):
        output = tmp_path / f"{round_}/dataset"
        output.parent.mkdir()
        kill_often(source, output, 0.6 * whole[1], 5, seed=100 + round_)
        interrupted.prepare(source, output)
        assert same(output, whole[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_length(good, tmp_path, capsys):
    """4K footage of 10 s and of 80 s, in a process of its own each."""
    peaks = []
    for seconds in (10, 80):
        folder = tmp_path / f"{seconds}"
        damaged.Maker(good, folder).as_4k(seconds)
        code = (
            "import sys, resource, pathlib, test_faults as t;"
            "t.prepare_all(*map(pathlib.Path, sys.argv[1:]));"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        paths = os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parent)))
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(tmp_path / f"w{seconds}")],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    with capsys.disabled():
        print(f"\npeak of a worker: 10 s {peaks[0]:.0f} MiB, 80 s {peaks[1]:.0f} MiB")
    assert peaks[1] < peaks[0] + 100
