"""A benchmark's pairs: the JSON that TAVR's authors published, and files like it.

    [{"reference": V, "target": V, "target_caption": "..."}, ...]
    V   video_id, video_url        which video; the link is only told to the user
        start_time, end_time       seconds
        start_frame, end_frame     the same span in frames, the last one not included
        fps, width, height         of the video as the list's authors had it

Further keys are passed over, and an object that holds one such list counts as the list.
The published file was never on the machines this was written on: whether its last frame
is included is our reading, and `benchmark_media` tells where frames and seconds differ.

Ours: a sample may say its "person". Without it people are told by the videos alone: a
pair shows one person, so that videos which pairs connect are of one person.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tavr_jax.errors import InputError

LONGEST = 200  # characters of a video id: a file is named by it


class Span(NamedTuple):
    """A part of a video."""

    video_id: str
    url: str
    start: float  # seconds
    end: float
    start_frame: int
    end_frame: int  # not included
    fps: float
    width: int
    height: int


class Sample(NamedTuple):
    """One pair. `key` names its files; equal `person` is the same person."""

    index: int
    key: str
    reference: Span
    target: Span
    caption: str
    person: str


class Benchmark(NamedTuple):
    """A benchmark file; `sha256` of its bytes says which."""

    name: str
    sha256: str
    samples: tuple[Sample, ...]


def read(path: str | Path) -> Benchmark:
    """All samples of a benchmark file.

    InputError names the file, and where it can the sample (from 0) and its field.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        found = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--benchmark {path}: cannot be read ({reason}); give a benchmark's JSON"
        ) from error
    entries = _entries(path, found)
    samples = [_sample(path, i, entry) for i, entry in enumerate(entries)]
    named = _people(samples)
    return Benchmark(
        path.stem,
        hashlib.sha256(data).hexdigest(),
        tuple(s._replace(person=p) for s, p in zip(samples, named, strict=True)),
    )


def _entries(path: Path, found: Any) -> list[Any]:
    lists = [found]
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
    if len(lists) != 1 or not isinstance(lists[0], list) or not lists[0]:
        raise InputError(
            f'--benchmark {path}: no list of samples in it; write [{{"reference": '
            '{...}, "target": {...}, "target_caption": "..."}, ...]'
        )
    return lists[0]


def _sample(path: Path, index: int, entry: Any) -> Sample:
    where = f"--benchmark {path}: sample {index}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {entry!r:.60}: expected an object")
    reference = _span(where, "reference", entry.get("reference"))
    target = _span(where, "target", entry.get("target"))
    caption = entry.get("target_caption")
    if not isinstance(caption, str):
        raise _wrong(where, "target_caption", caption, "a sentence")
    person = entry.get("person", "")
    if not isinstance(person, str):
        raise _wrong(where, "person", person, "a name, or no such key")
    name = re.sub(r"[^\w.-]+", "_", target.video_id)
    caption = " ".join(caption.split())
    return Sample(index, f"{index:03d}_{name}", reference, target, caption, person)


def _span(where: str, field: str, value: Any) -> Span:
    if not isinstance(value, dict):
        raise _wrong(where, field, value, "an object that names a video")

    def number(name: str, least: float, kind: type) -> Any:
        given = value.get(name)
        sound = isinstance(given, int | float) and not isinstance(given, bool)
        if not sound or not math.isfinite(given) or given < least:
            wanted = f"a number, {least:g} or more"
            raise _wrong(where, f"{field}.{name}", given, wanted)
        if kind(given) != given:
            raise _wrong(where, f"{field}.{name}", given, "a whole number")
        return kind(given)

    span = Span(
        video_id=_video_id(where, f"{field}.video_id", value.get("video_id")),
        url=str(value.get("video_url") or ""),
        start=number("start_time", 0, float),
        end=number("end_time", 0, float),
        start_frame=number("start_frame", 0, int),
        end_frame=number("end_frame", 0, int),
        fps=number("fps", 1, float),
        width=number("width", 1, int),
        height=number("height", 1, int),
    )
    for last, first in (("end", "start"), ("end_frame", "start_frame")):
        if getattr(span, last) <= getattr(span, first):
            name = {"end": "end_time"}.get(last, last)
            wanted = f"more than its start, {getattr(span, first):g}"
            raise _wrong(where, f"{field}.{name}", getattr(span, last), wanted)
    return span


def _video_id(where: str, field: str, value: Any) -> str:
    """It becomes a path below the user's folder, and stays below it."""
    text = value if isinstance(value, str) else ""
    parts = PurePosixPath(text).parts
    inside = parts and not text.startswith("/") and not {"..", "."} & set(parts)
    if not inside or len(text) > LONGEST or not text.isprintable() or "\\" in text:
        raise _wrong(where, field, value, "the name of a video")
    return text


def _wrong(where: str, field: str, value: Any, wanted: str) -> InputError:
    found = "is missing" if value is None else f"{value!r:.60}"
    return InputError(f"{where}: {field}: {found}: expected {wanted}")


def _people(samples: Sequence[Sample]) -> list[str]:
    """Whom each sample shows: as it says, or the first video that pairs connect."""
    head: dict[str, str] = {}

    def first(name: str) -> str:
        while head.setdefault(name, name) != name:
            name = head[name]
        return name

    for sample in samples:
        one, other = first(sample.target.video_id), first(sample.reference.video_id)
        head[max(one, other)] = min(one, other)
    return [sample.person or first(sample.target.video_id) for sample in samples]
