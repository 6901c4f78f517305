"""Where footage is and what its owner knows of it: folders and manifests -> `Video`.

A folder:

    SOURCE/<person>/<scene>.mp4      person and scene by name; deeper folders are part
                                     of the scene
    SOURCE/x.mp4                     person x in scene x, or to be clustered

Links are followed; a folder that several lead to counts once.

A caption may lie beside a video: <stem>.txt, or <stem>.json with the key "caption".

A manifest is a .csv with a header, a .jsonl of objects, or a .json list of objects. Its
columns, of which only `video` is needed; an empty one is unknown:

    video     path of the file, from the manifest's folder
    person    who speaks; equal names are one person
    scene     where; equal names are one scene of that person
    caption   what is seen
    start     seconds into the file where the footage starts      end   where it stops
    licence   of the footage, in its own words
    split     train | test

Given names win over anything that is measured. Two published layouts are known by
their columns:

    TalkVid   id, start-time, end-time, info {"Person ID", "Video Link"}, description;
              the file is `video`, else <id>.mp4 or <YouTube id>.mp4, in the manifest's
              folder or in `videos/` there; times count in the file of the whole video
              only, since <id>.mp4 is cut already
    pairs     target, reference (one path or several): the same person in two scenes, as
              in HuMoSet (whose own columns could not be checked here: rename yours);
              person, caption, licence, split as above. References that are stills
              are passed over: who is in the target is then what `person` says
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tavr_jax.errors import InputError

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".flv", ".wmv", ".3gp", ".ogv"),
)
MANIFESTS = (".csv", ".jsonl", ".json")
STILLS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
COLUMNS = ("video", "person", "scene", "caption", "start", "end", "licence", "split")
SPLITS = ("train", "test")
_PART = re.compile(r"#[\d.e+]+-[\d.e+]*$")
_YOUTUBE = re.compile(r"(?:v=|youtu\.be/|embed/|shorts/)([\w-]{11})")


class Video(NamedTuple):
    """Footage of one file, or of a part of it."""

    path: Path
    video_id: str  # path below the source folder, with "/", and the part: "a.mp4#2-5"
    person: str | None  # None: unknown
    scene: str | None
    caption: str = ""  # "": the one beside the file, or the neutral one
    start: float | None = None  # seconds; None: from the beginning
    end: float | None = None  # None: to the end
    licence: str = ""
    split: str = ""  # "": by prepare.held_out
    link: str = ""  # where the manifest says it is from


class _Line(NamedTuple):
    """One entry of a manifest, and what messages call it."""

    name: str
    folder: Path
    values: dict[str, Any]

    def text(self, field: str) -> str:
        value = self.values.get(field)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(field, f"{value!r} is not text", "give a name or nothing")
        return " ".join(str(value).split())

    def seconds(self, field: str) -> float | None:
        value = self.values.get(field)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if isinstance(value, bool) or not 0 <= number < float("inf"):
            raise self.error(field, f"{value!r} is no time", "give seconds, 0 or more")
        return number

    def file(self, field: str, given: str) -> Path:
        path = self.folder / given
        if not path.is_file():
            raise self.error(field, f"{path} is not there", "correct the path")
        if path.suffix.lower() not in SUFFIXES:
            kinds = " ".join(SUFFIXES)
            raise self.error(field, f"{given} is no video", f"files end in {kinds}")
        return path

    def error(self, field: str, what: str, remedy: str) -> InputError:
        return InputError(f"{self.name}: {field}: {what}; {remedy}")


def file_of(video_id: str) -> str:
    """The file's part of a video id, without the seconds taken of it."""
    return _PART.sub("", video_id)


def find_videos(source: Path, cluster: bool = False) -> list[Video]:
    """All footage of a folder or of a manifest, in the order of the ids.

    `cluster`: files outside a person's folder have no person and no scene.
    InputError: no such source, nothing in it, a bad line (file, line and field named).
    """
    source = Path(source)
    if source.is_dir():
        videos = _folder(source, cluster)
    elif source.is_file() and source.suffix.lower() in MANIFESTS:
        videos = read_manifest(source)
    else:
        kinds = ", ".join(MANIFESTS)
        raise InputError(
            f"--source {source}: no such folder; give a folder of videos or a manifest "
            f"({kinds})"
        )
    return sorted(videos, key=lambda video: video.video_id)


def read_caption(path: Path, neutral: str) -> str:
    """The caption beside a video, or the neutral one.

    InputError: a caption file that cannot be read.
    """
    beside = path.with_suffix(".json"), path.with_suffix(".txt")
    try:
        if beside[0].is_file():
            caption = json.loads(beside[0].read_text(encoding="utf-8"))["caption"]
        elif beside[1].is_file():
            caption = beside[1].read_text(encoding="utf-8")
        else:
            return neutral
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{beside[0]}: no caption in it ({type(error).__name__}); write "
            '{"caption": "..."} or a .txt file'
        ) from error
    if not isinstance(caption, str):
        raise InputError(f'{beside[0]}: "caption" is not text; write a sentence')
    return " ".join(caption.split())


def _folder(source: Path, cluster: bool) -> list[Video]:
    videos = []
    for folder, names in _folders(source):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                inside = path.relative_to(source)
                parts = (*inside.parts[:-1], path.stem)
                person, scene = parts[0], "/".join(parts[1:]) or parts[0]
                if cluster and len(parts) == 1:
                    person = scene = None
                videos.append(Video(path, inside.as_posix(), person, scene))
    if not videos:
        kinds = " ".join(SUFFIXES)
        raise InputError(f"--source {source}: no video in it; files end in {kinds}")
    return videos


def _folders(source: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder and its files, once: by its own name before any link to it."""
    seen: set[str] = set()
    tops = [os.fspath(source)]
    while tops:
        links = []
        for top in tops:
            for folder, inner, names in os.walk(top):
                real = os.path.realpath(folder)
                if real in seen:
                    inner.clear()
                    continue
                seen.add(real)
                below = (os.path.join(folder, name) for name in inner)
                links += filter(os.path.islink, below)
                yield folder, names
        tops = sorted(links)


# Manifests


def read_manifest(path: Path) -> list[Video]:
    """The footage that a manifest lists, in its order; an entry twice counts once."""
    found = [(line, _reader(line)(line)) for line in _lines(path)]
    together = _together(videos for _, videos in found)
    videos: dict[str, Video] = {}
    for line, listed in found:
        for video in listed:
            video = video._replace(person=video.person or together.get(video.video_id))
            known = videos.setdefault(video.video_id, video)
            caption = known.caption or video.caption
            if known._replace(caption=caption) != video._replace(
                caption=video.caption or caption
            ):
                raise line.error(
                    "video",
                    f"{video.video_id} is listed before with other values",
                    "keep one of the lines",
                )
            videos[video.video_id] = known._replace(caption=caption)
    if not videos:
        raise InputError(f"{path}: lists no video; add a line with the column video")
    return list(videos.values())


def _together(lines: Iterable[list[Video]]) -> dict[str, str]:
    """A name for everybody whom pairs connect and nobody names: the first video's."""
    head: dict[str, str] = {}

    def first(name: str) -> str:
        while head.setdefault(name, name) != name:
            name = head[name]
        return name

    for videos in lines:
        if len(videos) > 1 and videos[0].person is None:
            low, *others = sorted({first(video.video_id) for video in videos})
            head.update(dict.fromkeys(others, low))
    return {name: first(name) for name in head}


def _lines(path: Path) -> Iterator[_Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); use UTF-8") from error
    read = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}[path.suffix.lower()]
    for number, values in read(path, text):
        where = f"{path}: {number}"
        if not isinstance(values, dict):
            raise InputError(f"{where}: entry: not an object; give columns by name")
        yield _Line(where, path.parent, values)


def _csv(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    if "video" not in header and "target" not in header:
        raise InputError(
            f"{path}: line 1: video: no such column in the header; it names columns of "
            f"{', '.join(COLUMNS)}"
        )
    rows = iter(reader)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}: line {reader.reader.line_num}: row: {error}; repair the "
                "quotes"
            ) from error
        if None in row or None in row.values():
            raise InputError(
                f"{path}: line {reader.line_num}: row: not as many values as "
                "columns; quote values that hold commas"
            )
        yield f"line {reader.line_num}", row


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(path, line, number)


def _json(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    entries = _parsed(path, text, 0)
    if not isinstance(entries, list):
        raise InputError(f"{path}: is no list of entries; write [{{...}}, ...]")
    for number, values in enumerate(entries, 1):
        yield f"entry {number}", values


def _parsed(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        number = line or getattr(error, "lineno", 1)
        raise InputError(
            f"{path}: line {number}: entry: not JSON ({error}); repair the line"
        ) from error


def _reader(line: _Line) -> Callable[[_Line], list[Video]]:
    if "target" in line.values or "reference" in line.values:
        return _pair
    if "info" in line.values and "id" in line.values:
        return _talkvid
    return _plain


def _plain(line: _Line) -> list[Video]:
    unknown = sorted(set(line.values) - {*COLUMNS, "link"})
    if unknown:
        raise line.error(
            unknown[0], "no such column", f"columns are {', '.join(COLUMNS)}"
        )
    given = line.text("video")
    if not given:
        raise line.error("video", "is empty", "give the path of a file")
    start, end = line.seconds("start"), line.seconds("end")
    return [_video(line, "video", given, _known(line), start, end)]


def _talkvid(line: _Line) -> list[Video]:
    info, name = line.values["info"], line.text("id")
    if not isinstance(info, dict):
        raise line.error("info", "is no object", 'give {"Person ID": ...}')
    link = str(info.get("Video Link") or "")
    found = _YOUTUBE.search(link)
    whole = [f"{found[1]}.mp4"] if found else []
    wanted = [line.text("video")] if "video" in line.values else [f"{name}.mp4", *whole]
    places = [place + file for file in wanted for place in ("", "videos/")]
    given = next((p for p in places if (line.folder / p).is_file()), wanted[0])
    person = info.get("Person ID")
    known = _known(line) | {
        "person": f"talkvid-{person}" if person not in (None, "") else None,
        "caption": line.text("description"),
        "link": link,
    }
    cut = Path(given).stem == name
    span = [None if cut else line.seconds(f"{edge}-time") for edge in ("start", "end")]
    return [_video(line, "video", given, known, *span)]


def _pair(line: _Line) -> list[Video]:
    target, references = line.text("target"), line.values.get("reference")
    if not target:
        raise line.error("target", "is empty", "give the path of a video")
    if isinstance(references, str):
        references = [references]
    if not isinstance(references, list) or not references:
        raise line.error("reference", "is empty", "give one path or a list of paths")
    known, wrong = _known(line), [r for r in references if not isinstance(r, str)]
    if wrong:
        raise line.error("reference", f"{wrong[0]!r} is no path", "give paths")
    footage = [r for r in references if Path(r).suffix.lower() not in STILLS]
    if not footage:
        return [_video(line, "target", target, known, None, None)]
    videos = [_video(line, "target", target, known | {"scene": target}, None, None)]
    for reference in footage:
        about = known | {"scene": reference, "caption": ""}
        videos.append(_video(line, "reference", reference, about, None, None))
    return videos


def _known(line: _Line) -> dict[str, Any]:
    split = line.text("split")
    if split and split not in SPLITS:
        raise line.error("split", f"{split!r} is none", f"use {' or '.join(SPLITS)}")
    return {
        "person": line.text("person") or None,
        "scene": line.text("scene") or None,
        "caption": line.text("caption"),
        "licence": line.text("licence"),
        "split": split,
    }


def _video(
    line: _Line,
    field: str,
    given: str,
    known: dict[str, Any],
    start: float | None,
    end: float | None,
) -> Video:
    path = line.file(field, given)
    if end is not None and end <= (start or 0):
        raise line.error("end", f"{end:g} s is not after the start", "give a later one")
    name = Path(given).as_posix()
    if start is not None or end is not None:
        stop = "" if end is None else f"{end:g}"
        name += f"#{start or 0:g}-{stop}"
    return Video(path, name, start=start, end=end, **known)
