"""The leak guard: nothing that a benchmark scores may be trained on.

A benchmark file is JSON or JSONL of any shape. Every text in it that stands under a key
which speaks of a video (video, clip, path, file, url, link, id, target, reference,
source ...) counts, whether it is an id, a path or a link:

    "https://www.youtube.com/watch?v=Tr6MMsoWAog&t=3"    -> tr6mmsowaog
    "data/videovideoTr6MMsoWAog-scene1.mp4"              -> videovideotr6mmsowaog-scene1
                                                            and tr6mmsowaog

Ids are compared without case, folder and suffix. Footage leaks if its name or its link
holds an id of LONG characters or more, or is a shorter one, whole or up to a mark that
cuts clips ("abc" leaks as "abc_0003.mp4", not as "abcd.mp4"). Too much is left out
rather than too little.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.prepare.importers import SUFFIXES, Video, file_of
from tavr_jax.errors import InputError

LONG = 11  # characters of a YouTube id: that many are in no other name by chance
_FILES = {*SUFFIXES, ".wav", ".m4a", ".mp3", ".png", ".jpg", ".jpeg", ".json", ".txt"}
_SPEAKS_OF_VIDEO = re.compile(
    r"video|clip|path|file|url|link|uri|(^|_|-|\b)ids?$|youtube|ytid"
    r"|target|reference|source|driving|drive",
    re.IGNORECASE,
)
_LINK = re.compile(r"(?:[?&]v=|youtu\.be/|embed/|shorts/|/live/)([\w-]{11})")
_SCENE = re.compile(r"[-_.](?:scene|clip|part|seg|segment|shot|chunk)[-_.]?\d.*$")
_MARKS = "_-.#:~ ("
# Where an id stands in a longer name: in front (after "video"), or at the end.
_FRONT = re.compile(r"^(?:video)*([\w-]{11})(?=[-_.]|$)")
_END = re.compile(r"(?:^|[-_.])([\w-]{11})$")
# Texts under such keys that name no video: small numbers, sentences.
_PLAIN = re.compile(r"^\d{0,3}$|\s.*\s.*\s")


class Guard(NamedTuple):
    """The video ids of benchmarks."""

    ids: frozenset[str]
    pattern: re.Pattern | None  # of the long ones

    def reason(self, video: Video) -> str:
        """The benchmark's id that footage holds; "" if there is none."""
        for text in (video.video_id, video.path.name, video.link):
            names = _names(text)
            cut = {name[:i] for name in names for i in _marks(name)}
            if found := self.ids & (names | cut):
                return min(found)
            if self.pattern and (match := self.pattern.search(text.lower())):
                return match[0]
        return ""


def leaks(files: Sequence[str | Path]) -> Guard:
    """The guard of benchmark files (config.prepare.exclude).

    InputError: a file that cannot be read, or one without any video id.
    """
    ids: set[str] = set()
    for file in files:
        found = set(_ids(_read(Path(file))))
        if not found:
            raise InputError(
                f"prepare.exclude: {file}: no video id in it; ids stand under keys as "
                '"video_id", "path" or "url"'
            )
        ids |= found
    long = sorted((i for i in ids if len(i) >= LONG), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, long))) if long else None
    return Guard(frozenset(ids), pattern)


def without_leaks(
    videos: Iterable[Video], guard: Guard
) -> tuple[list[Video], list[tuple[Video, str]]]:
    """The footage that may be used, and the rest with the id that each holds."""
    kept, left_out = [], []
    for video in videos:
        reason = guard.reason(video)
        if reason:
            left_out.append((video, reason))
        else:
            kept.append(video)
    return kept, left_out


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"prepare.exclude: {path}: cannot be read ({error}); give a JSON file"
        ) from error
    try:
        return json.loads(text)
    except ValueError:
        pass
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise InputError(
                f"prepare.exclude: {path}: line {number}: entry: not JSON ({error}); "
                "give JSON or JSONL"
            ) from error
    return entries


def _ids(value: Any, key: str = "video") -> Iterator[str]:
    """Ids of all texts under keys that speak of video; a bare list counts as one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict) and _like_an_id(name):
                yield from _names(name)  # {"<video id>": {...}, ...}
            yield from _ids(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _ids(inner, key)
    elif isinstance(value, str | int) and not isinstance(value, bool):
        text = str(value).strip()
        if _SPEAKS_OF_VIDEO.search(key) and not _PLAIN.search(text):
            yield from _names(text)


def _names(text: str) -> set[str]:
    """The ids that one text stands for, without case, folder and suffix."""
    if found := _LINK.findall(text):
        return {name.lower() for name in found}
    *folders, name = file_of(text.replace("\\", "/")).split("/")
    stem, dot, suffix = name.rpartition(".")
    if dot and f".{suffix.lower()}" in _FILES:
        name = stem
    names = {name.lower(), _SCENE.sub("", name.lower())} - {""}
    found = [each for part in (*folders, name) for each in _FRONT.findall(part)]
    found += [each for part in (*folders, name) for each in _END.findall(part)]
    if ids := {each.lower() for each in found if _like_an_id(each)}:
        # "Tr6MMsoWAog/clip_0.mp4" is not every other video's clip_0.
        return ids | {each for each in names if len(each) >= LONG}
    return names


def _like_an_id(name: str) -> bool:
    """Whether eleven characters are a YouTube id rather than a word."""
    kinds = [any(map(kind, name)) for kind in (str.isdigit, str.isupper, str.islower)]
    return len(name) == 11 and sum(kinds) > 1 and not name.istitle()


def _marks(name: str) -> list[int]:
    """Where a clip's number may be cut off a name."""
    return [i for i, letter in enumerate(name) if letter in _MARKS]
