"""The data engine's speed.

    python -m launch.bench data --dataset DATASET --source FOLDER

    scan      decode, find shots, find and follow faces, one process, against plain
              decoding of the same files by ffmpeg's libraries with one thread, pictures
              left in the codec's own pixels                            goal >= 0.5
    pictures  the same against decoding into RGB arrays, as any reader needs them
    scaling   the same scan in as many processes as cores, against one  goal >= 0.9 each
    loader    training examples a second against reading the records they need as bytes
              (ArrayRecord, same order, same number of threads)         goal >= 0.5
    disk      the same against reading as many stored bytes from the files, from the
              page cache, without even unpacking them                   no goal
    first     seconds from opening the dataset to the first batch

Rounds alternate what is compared, medians are shown with the spread of the rounds.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from data_pipelines import loader, records
from data_pipelines.prepare import clips, workers
from data_pipelines.prepare.importers import find_videos
from data_pipelines.sources import Source
from launch import cli
from tavr_jax.errors import InputError

DATASET = flags.DEFINE_string("dataset", None, "Dataset of launch.prepare_data.")
SOURCE = flags.DEFINE_string("source", None, "Folder of videos, or a manifest.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that everything is measured.")
BATCHES = flags.DEFINE_integer("batches", 50, "Batches read in a round.")
SCANS = flags.DEFINE_integer("scans", 0, "At once, of scaling; 0 = one a core.")
CONFIG = cli.config_flag("configs/cross_scene.py:mini")


class Ratio(NamedTuple):
    """One line of the result."""

    name: str
    ours: list[float]  # a second
    reference: list[float]
    unit: str
    goal: float | None

    def line(self) -> str:
        """The medians, the median ratio and its spread."""
        pairs = zip(self.ours, self.reference, strict=True)
        ratios = [a / b for a, b in pairs]
        middle = statistics.median(ratios)
        verdict = ""
        if self.goal is not None:
            held = "reached" if middle >= self.goal else "MISSED"
            verdict = f"  goal {self.goal:g}: {held}"
        ours, other = statistics.median(self.ours), statistics.median(self.reference)
        return (
            f"{self.name:8} {middle:6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})  "
            f"{ours:9.1f} of {other:9.1f} {self.unit}{verdict}"
        )


def main() -> None:
    """Measure what the flags give material for."""
    if not DATASET.value and not SOURCE.value:
        raise InputError("flags: give --dataset, --source or both")
    config = CONFIG.value
    print(f"{workers.cores()} cores, load {os.getloadavg()[0]:.1f}, {config.name}")
    if SOURCE.value:
        for ratio in footage(Path(SOURCE.value), config):
            print(ratio.line(), flush=True)
    if DATASET.value:
        config.data.path = DATASET.value
        for line in dataset(config):
            print(line, flush=True)


# Footage


def settings_of(config: ConfigDict) -> clips.ClipSettings:
    """What the scan depends on; no face network, which looks at clips later."""
    speech = config.speech
    return clips.ClipSettings(
        config.prepare, config.face.size, speech.sample_rate, speech.fps, None
    )


def footage(source: Path, config: ConfigDict) -> Iterator[Ratio]:
    """The ratios `scan` and `scaling`."""
    paths = _readable([video.path for video in find_videos(source)])
    settings = settings_of(config)
    _single_threaded()
    _scan(paths[0], settings)  # loads the detector
    ours, plain, shown = [], [], []
    for _ in range(ROUNDS.value):
        frames, seconds = _timed(lambda: sum(_decode(path) for path in paths))
        plain.append(frames / seconds)
        _, seconds = _timed(lambda: sum(_decode(path, rgb=True) for path in paths))
        shown.append(frames / seconds)
        _, seconds = _timed(lambda: [_scan(path, settings) for path in paths])
        ours.append(frames / seconds)
    yield Ratio("scan", ours, plain, "source frames/s", 0.5)
    yield Ratio("pictures", ours, shown, "source frames/s", None)
    yield _scaling(paths, settings)


def _scaling(paths: list[Path], settings: clips.ClipSettings) -> Ratio:
    processes = SCANS.value or workers.cores()
    # Longest first and each twice, so that the end, when one process waits for the
    # other, is short: what is measured is the scan, not the size of the sample.
    paths = sorted(paths * 2, key=lambda path: -path.stat().st_size)
    context, many, one = get_context("spawn"), [], []
    with ProcessPoolExecutor(processes, context, _single_threaded) as pool:
        warm = [pool.submit(_scan, paths[-1], settings) for _ in range(4 * processes)]
        for job in warm:
            job.result()
        for _ in range(max(1, ROUNDS.value // 2)):
            for results, chunk in ((one, 1), (many, processes)):
                _, seconds = _timed(partial(_in_turn, pool, paths, settings, chunk))
                results.append(len(paths) / seconds)
    name = f"scaling on {processes}"
    return Ratio(name, many, one, "videos/s", 0.9 * processes)


def _in_turn(pool, paths: list[Path], settings: clips.ClipSettings, most: int) -> None:
    """Scan all files, at most so many at a time, in processes that already run."""
    waiting, running = list(reversed(paths)), set()
    while waiting or running:
        while waiting and len(running) < most:
            running.add(pool.submit(_scan, waiting.pop(), settings))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for job in done:
            job.result()


def _readable(paths: list[Path]) -> list[Path]:
    found = []
    for path in paths:
        try:
            _decode(path)
            found.append(path)
        except (av.FFmpegError, IndexError):
            print(f"{path}: cannot be decoded, left out")
    if not found:
        raise InputError("--source: no video there can be decoded")
    return found


def _decode(path: Path, rgb: bool = False) -> int:
    """Source frames of a file, decoded and thrown away."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        count = 0
        for frame in container.decode(stream):
            count += 1
            if rgb:
                frame.to_ndarray(format="rgb24")
        return count


def _scan(path: Path, settings: clips.ClipSettings) -> int:
    """Frames at 25 fps that the engine looked at."""
    return sum(1 for _ in clips.watch(path, settings))


def _single_threaded() -> None:
    cv2.setNumThreads(1)


# Datasets


def dataset(config: ConfigDict) -> Iterator[str]:
    """The ratios `loader` and `disk`, and the time to the first batch."""
    read = _records_of(config)
    opened = {}
    for path, split in {(path, split) for path, split, _ in read}:
        opened[path, split] = records.open_records(Path(path), "encoded", split)
    files = _files({(path, split) for path, split, _ in read})
    share = sum(path.stat().st_size for path in files) / sum(map(len, opened.values()))
    examples = BATCHES.value * config.data.batch_size
    ours, raw, disk, first = [], [], [], []
    for _ in range(ROUNDS.value):
        stream, seconds = _timed(lambda: _first(config))
        first.append(seconds)
        _, seconds = _timed(partial(_read_batches, stream, BATCHES.value))
        ours.append(examples / seconds)
        _, seconds = _timed(partial(_read_raw, opened, read, config.data.threads))
        raw.append(examples / seconds)
        _, seconds = _timed(lambda: _read_files(files, round(share), len(read)))
        disk.append(examples / seconds)
    yield Ratio("loader", ours, raw, "examples/s", 0.5).line()
    yield Ratio("disk", ours, disk, "examples/s", None).line()
    spread = f"({min(first):.2f} to {max(first):.2f})"
    yield f"first    {statistics.median(first):6.2f} s {spread} to the first batch"


def _first(config: ConfigDict):
    stream = loader.make_loader(config, rows=np.arange(config.data.batch_size))
    next(stream)
    return stream


def _read_raw(opened: dict, read: list[tuple[str, str, int]], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda place: opened[place[:2]].raw(place[2]), read):
            pass


def _read_batches(stream, count: int) -> None:
    for _ in range(count):
        next(stream)


def _records_of(config: ConfigDict) -> list[tuple[str, str, int]]:
    """Every record that the measured batches read, in order: (dataset, split, number).

    One batch more is drawn than is measured: the first is read before the clock starts.
    """
    found, plain = [], Source.encoded

    def noted(source: Source, index: int):
        row = source.rows[index]
        found.append((str(source.root), source.split, row.record))
        return plain(source, index)

    quiet = config.copy_and_resolve_references()
    quiet.data.workers, quiet.data.threads, quiet.data.prefetch = 0, 1, 1
    Source.encoded = noted
    try:
        stream = _first(quiet)
        found.clear()
        for _ in range(BATCHES.value):
            next(stream)
    finally:
        Source.encoded = plain
    return found


def _files(datasets: set[tuple[str, str]]) -> list[Path]:
    return sorted(
        path
        for root, split in datasets
        for path in (Path(root) / "encoded" / records.VERSION).glob(f"*{split}*record*")
    )


def _read_files(files: list[Path], size: int, count: int) -> None:
    """`count` pieces of `size` bytes, from random places of the files."""
    generator = np.random.default_rng(0)
    handles = [open(path, "rb", buffering=0) for path in files]  # noqa: SIM115
    try:
        for _ in range(count):
            number = int(generator.integers(len(files)))
            room = max(1, files[number].stat().st_size - size)
            handles[number].seek(int(generator.integers(room)))
            handles[number].read(size)
    finally:
        for handle in handles:
            handle.close()


def _timed(call: Callable):
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
