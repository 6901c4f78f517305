"""Every row on every sample: made, scored and written, or kept from an earlier run.

A sample and a row are the unit of resumption. Beside each video lies what it was made
with; a run that was stopped goes on where it was, and whatever was made with anything
else is made again.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from numpy import ndarray
from tqdm import tqdm

from data_pipelines import video_files
from launch.held_out import Material, Way
from tavr_jax.evaluation import benchmark

CRF = 12  # of the videos written: their blur should be the model's


class Task(NamedTuple):
    """A sample that is read only if some row of it has to be made."""

    folder: Path  # of its videos and scores
    made_with: dict[str, Any]  # what every row of it depends on
    read: Callable[[], Material]  # also writes to `folder` what the page shows of it


def run(
    ways: Sequence[Way],
    tasks: Sequence[Task],
    judges: benchmark.Judges,
    config: ConfigDict,
) -> dict[str, list[benchmark.Scores]]:
    """Scores of every row on every sample; what is on disk and still true is kept."""
    scores: dict[str, list[benchmark.Scores]] = defaultdict(list)
    total = len(tasks) * len(ways)
    with tqdm(total=total, desc="evaluating", unit="video", mininterval=2) as bar:
        for task in tasks:
            task.folder.mkdir(parents=True, exist_ok=True)
            sample = None
            for way in ways:
                made_with = task.made_with | way.made_with
                found = stored(task.folder, way.slug, made_with)
                if found is None:
                    sample = task.read() if sample is None else sample
                    found = _make(task.folder, way, sample, judges, made_with, config)
                scores[way.name].append(found)
                bar.update()
    return scores


def stored(folder: Path, slug: str, made_with: dict) -> benchmark.Scores | None:
    """Scores of a row that was made with exactly this, if there are any."""
    path = folder / f"{slug}.json"
    if not path.is_file() or not path.with_suffix(".mp4").is_file():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return None  # damaged: made again
    return found["scores"] if found["made_with"] == _json(made_with) else None


def write_video(
    path: Path, frames: ndarray, wave: ndarray, config: ConfigDict, tags: dict
) -> None:
    """A video of an evaluation, with its speech."""
    rate, fps = config.speech.sample_rate, config.speech.fps
    video_files.write_video(path, frames, fps, wave, rate, CRF, tags)


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _make(
    folder: Path,
    way: Way,
    sample: Material,
    judges: benchmark.Judges,
    made_with: dict,
    config: ConfigDict,
) -> benchmark.Scores:
    path = folder / f"{way.slug}.json"
    path.unlink(missing_ok=True)  # it speaks of the video that is replaced now
    video = way.make(sample)
    scores, curve = benchmark.score(video, sample.truth, judges)
    write_video(path.with_suffix(".mp4"), video, sample.wave, config, way.tags)
    record = {"scores": scores, "sync_curve": curve, "made_with": made_with}
    write_text(path, json.dumps(record, indent=1))
    return scores


def _json(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value))
