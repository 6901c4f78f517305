"""What a model is given for a benchmark's pair: the release's own sample folder.

    FOLDER/<key>/ref.mp4              the reference's span at 25 fps, with its sound
                 target.png           the target's first frame, as large as it is
                 target.wav           the target's speech, 16 kHz, mono, 16 bit
                 target_caption.json  {"caption": ...}, and what all was made from

So anybody's program that reads the release's samples can be scored: the release's own
infer.py, or `python -m launch.generate --sample-dir FOLDER --output-dir RESULTS`. The
caption's file is written last: where it says the same, the folder is kept.
"""

import itertools
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import benchmark_media, video_files
from data_pipelines.benchmark_file import Benchmark, Sample, Span
from data_pipelines.benchmark_media import Cut, Place
from launch import samples
from launch.score_rows import PRESET, write_text
from tavr_jax.errors import InputError

RATE = 16000  # Hz
CRF = 8  # of the reference: cut, not changed to the eye; at PRESET as good as 10 is
BLOCK = 25  # frames encoded at a time


class Pair(NamedTuple):
    """A sample of a benchmark with the footage of both its spans."""

    sample: Sample
    reference: Cut
    target: Cut


def locate(
    benchmark: Benchmark, places: dict[Span, Place]
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs that can be made, and why each other one cannot, by its key."""
    pairs, left_out = [], {}
    for sample in benchmark.samples:
        try:
            cuts = [
                _located(name, span, places)
                for name, span in (
                    ("reference", sample.reference),
                    ("target", sample.target),
                )
            ]
        except InputError as error:
            left_out[sample.key] = str(error)
            continue
        if not cuts[1].has_sound:
            left_out[sample.key] = f"{cuts[1].path}: has no sound to speak to"
            continue
        pairs.append(Pair(sample, *cuts))
    return pairs, left_out


def write(pair: Pair, folder: Path) -> Path:
    """The sample folder of a pair below `folder`; kept where it is that already.

    InputError: footage that cannot be read to the end, a folder that cannot be written.
    """
    inside = folder / pair.sample.key
    caption = inside / samples.CAPTION
    about = {"caption": pair.sample.caption, "made_from": made_from(pair)}
    text = json.dumps(about, indent=1)
    if caption.is_file() and caption.read_text(encoding="utf-8") == text:
        return inside
    try:
        inside.mkdir(parents=True, exist_ok=True)
        caption.unlink(missing_ok=True)
        speech = benchmark_media.sound(pair.target, RATE)
        write_wave(inside / samples.SPEECH[-1], speech)
        still = next(benchmark_media.frames(pair.target))
        data = cv2.imencode(".png", still[..., ::-1])[1]
        (inside / samples.TARGET).write_bytes(data.tobytes())
        video_files.write_video(
            inside / samples.REFERENCE,
            _blocks(benchmark_media.frames(pair.reference)),
            benchmark_media.FPS,
            benchmark_media.sound(pair.reference, RATE),
            RATE,
            CRF,
            preset=PRESET,
        )
        write_text(caption, text)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{inside}: cannot be written ({reason})") from error
    return inside


def made_from(pair: Pair) -> dict[str, object]:
    """What the videos of a pair depend on: its spans, and the files they are cut of."""
    found: dict[str, object] = {}
    cuts = (pair.reference, pair.target)
    for name, cut in zip(("reference", "target"), cuts, strict=True):
        span = getattr(pair.sample, name)
        found[name] = {
            "video_id": span.video_id,
            "file": cut.path.name,
            "bytes": cut.path.stat().st_size,
            "start": cut.start,
            "frames": cut.frames,
        }
    return found


def write_wave(path: Path, samples: Float[ndarray, " n"]) -> None:
    """Speech as the sample folders hold it. OSError: as of any file."""
    whole = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(whole.tobytes())


def _located(name: str, span: Span, places: dict[Span, Place]) -> Cut:
    if span not in places:
        raise InputError(f"{name} {span.video_id} is not there; it is from {span.url}")
    return benchmark_media.locate(span, places[span])


def _blocks(
    frames: Iterator[UInt8[ndarray, "Y X 3"]],
) -> Iterator[UInt8[ndarray, "n Y X 3"]]:
    while block := list(itertools.islice(frames, BLOCK)):
        yield np.stack(block)
