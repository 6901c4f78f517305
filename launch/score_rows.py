"""Every row on every sample: made, scored and written, or kept from an earlier run.

A sample and a row are the unit of resumption. Beside each video lies what it was made
with; a run that was stopped goes on where it was, and whatever was made with anything
else is made again.
"""

import json
import os
import time
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict
from numpy import ndarray
from tqdm import tqdm

from data_pipelines import video_files
from launch.held_out import Heard, Material, Video, Way
from tavr_jax.errors import InputError
from tavr_jax.evaluation.benchmark import METRICS
from tavr_jax.evaluation.failures import MISSING, SHORT
from tavr_jax.evaluation.results import Record
from tavr_jax.evaluation.score_video import Judges, Scored, Scorer

CRF = 12  # of the videos written: their blur should be the model's
PRESET = "superfast"  # x264's: a third of its usual time, a third more bytes
PATIENCE, PAUSE = 3600.0, 1.0  # seconds: without a video, between two looks
SLACK = 2  # frames that a video may lack before it is called short


class Task(NamedTuple):
    """A sample that is read only if some row of it has to be made."""

    folder: Path  # of its videos and scores
    key: str  # of the sample
    made_with: dict[str, Any]  # what every row of it depends on
    # Also writes to `folder` what the page shows of it. InputError: nothing is right of
    # the sample: every row of it is missing.
    read: Callable[[], Material]


class _Opened(NamedTuple):
    """A sample and what measures its videos, or why it cannot be."""

    sample: Material | None
    scorer: Future[Scorer] | None
    reason: str


def run(
    ways: Sequence[Way],
    tasks: Sequence[Task],
    judges: Judges,
    config: ConfigDict,
    share: tuple[int, int] = (0, 1),
) -> dict[str, list[Record]]:
    """Every row's records, one a sample; what is on disk and still true is kept.

    `share` = (i, n): this process makes samples i, i + n, ... of a folder that n
    processes write. The first one waits for the others and returns all records, the
    others return theirs. InputError: the others do not come.
    """
    index, count = share
    records = _made(ways, tasks[index::count], judges, config)
    return gather(ways, tasks, PATIENCE) if count > 1 and index == 0 else records


def gather(
    ways: Sequence[Way], tasks: Sequence[Task], patience: float
) -> dict[str, list[Record]]:
    """All records from the disk, where other processes are still writing some.

    InputError: none has come for `patience` seconds.
    """
    records: dict[str, list[Record]] = defaultdict(list)
    wanted = [(task, way) for task in tasks for way in ways]
    with tqdm(total=len(wanted), desc="waiting", unit="video", delay=2) as bar:
        for task, way in wanted:
            until, made_with = time.monotonic() + patience, made_of(task, way)
            while (found := stored(task.folder, way.slug, made_with)) is None:
                if time.monotonic() > until:
                    raise InputError(
                        f"--share: {way.name} of sample {task.key} has not come for "
                        f"{patience:.0f} s; start every share again, what is made "
                        "is kept"
                    )
                time.sleep(PAUSE)
            records[way.slug].append(found)
            bar.update()
    return records


def made_of(task: Task, way: Way) -> dict[str, Any]:
    """All that the video of a row on a sample depends on."""
    own = {} if way.of is None else way.of(task.key)
    return task.made_with | way.made_with | own


def _made(
    ways: Sequence[Way], tasks: Sequence[Task], judges: Judges, config: ConfigDict
) -> dict[str, list[Record]]:
    """A video is scored and written by a second thread, while the next one is made.

    At most a sample's videos wait for that one.
    """
    records: dict[str, list[Record]] = defaultdict(list)
    waiting: deque[tuple[str, Future[Record]]] = deque()
    total = len(tasks) * len(ways)
    cv2.setNumThreads(1)  # small pictures: more are slower, and the other cores' are
    with (
        tqdm(total=total, desc="evaluating", unit="video", mininterval=2) as bar,
        ThreadPoolExecutor(1) as second,
    ):

        def collect(most: int) -> None:
            while len(waiting) > most:
                slug, found = waiting.popleft()
                records[slug].append(found.result())
                bar.update()

        for task in tasks:
            task.folder.mkdir(parents=True, exist_ok=True)
            opened = None
            for way in ways:
                made_with = made_of(task, way)
                kept = stored(task.folder, way.slug, made_with)
                if kept is None:
                    opened = opened or _open(task, judges, second)
                    found = _make(task, way, opened, made_with, config, second)
                else:
                    found = _done(kept)
                waiting.append((way.slug, found))
                collect(most=len(ways))
        collect(most=0)
    return records


def stored(folder: Path, slug: str, made_with: dict) -> Record | None:
    """The record of a row that was made with exactly this, if there is one."""
    path = folder / f"{slug}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["made_with"] != _json(made_with):
            return None
        if MISSING in found["failures"]:
            return _missing(found["reason"])
        if not path.with_suffix(".mp4").is_file():
            return None
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as features:
            kinds = dict(features)
        return Record(found["scores"], tuple(found["failures"]), kinds)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # not there or damaged: made again


def write_video(
    path: Path, frames: ndarray, wave: ndarray, config: ConfigDict, tags: dict
) -> None:
    """A video of an evaluation, with its speech."""
    rate, fps = config.speech.sample_rate, config.speech.fps
    video_files.write_video(path, frames, fps, wave, rate, CRF, tags, PRESET)


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _open(task: Task, judges: Judges, second: Executor) -> _Opened:
    try:
        sample = task.read()
    except InputError as error:  # of this sample alone: the others are scored
        tqdm.write(f"sample {task.key} cannot be scored: {error}")
        return _Opened(None, None, str(error))
    return _Opened(sample, second.submit(Scorer, sample.truth, judges), "")


def _make(
    task: Task,
    way: Way,
    opened: _Opened,
    made_with: dict,
    config: ConfigDict,
    second: Executor,
) -> Future[Record]:
    path, (sample, scorer, reason) = task.folder / f"{way.slug}.json", opened
    path.unlink(missing_ok=True)  # it speaks of the video that is replaced now
    if sample is not None:
        try:
            video = way.make(sample)
        except InputError as error:  # of this row alone: the others are scored
            reason = str(error)
            tqdm.write(f"{way.name}: sample {sample.key}: {reason}")
    if reason:
        path.with_suffix(".mp4").unlink(missing_ok=True)
        about = {"failures": [MISSING], "reason": reason, "made_with": made_with}
        write_text(path, json.dumps(about, indent=1))
        return _done(_missing(reason))
    heard = Heard(sample.wave, None) if way.heard is None else way.heard(sample)
    told = path, way, sample, video, heard, made_with, config
    return second.submit(_finish, scorer, *told)


def _finish(
    scorer: Future[Scorer],
    path: Path,
    way: Way,
    sample: Material,
    video: Video,
    heard: Heard,
    made_with: dict,
    config: ConfigDict,
) -> Record:
    """Score a video, and write it and all that is kept of it."""
    lacking = len(sample.truth.frames) - len(video.frames)
    failures = [SHORT] * (way.chunks is None and lacking > SLACK)
    frames, joins = video.frames, video.joins
    found = scorer.result().score(frames, joins, heard.mel, heard.silent)
    scores = found.scores | video.cost
    write_video(path.with_suffix(".mp4"), frames, heard.wave, config, way.tags)
    _write_features(path.with_suffix(".npz"), found)
    about = {
        "scores": scores,
        "failures": failures,
        "sync_curve": found.sync_curve,
        "made_with": made_with,
    }
    write_text(path, json.dumps(about, indent=1))  # last: it says that all is there
    return Record(scores, tuple(failures), found.features)


def _done(record: Record) -> Future[Record]:
    found: Future[Record] = Future()
    found.set_result(record)
    return found


def _missing(reason: str) -> Record:
    scores = dict.fromkeys([*(metric.key for metric in METRICS), "leak_p"])
    return Record(scores, (MISSING,), {}, reason)


def _write_features(path: Path, found: Scored) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, **found.features)
    os.replace(partial, path)


def _json(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))
