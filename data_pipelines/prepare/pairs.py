"""Who is who, who is held out, who may refer to whom.

    SOURCE/<person>/<scene>.mp4      person and scene by name; deeper folders are part
                                     of the scene
    SOURCE/x.mp4                     person x in scene x

A caption may lie beside a video: <stem>.txt, or <stem>.json with the key "caption".
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipelines.records import Row
from tavr_jax.errors import InputError

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".flv", ".wmv", ".3gp", ".ogv"),
)


class Video(NamedTuple):
    """One file of footage."""

    path: Path
    video_id: str  # path below the source folder, with "/" everywhere
    person: str
    scene: str


def find_videos(source: Path) -> list[Video]:
    """All videos below a folder, in the order of their ids.

    InputError: no such folder, no video in it.
    """
    if not source.is_dir():
        raise InputError(f"--source {source}: no such folder; give a folder of videos")
    videos = []
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                inside = path.relative_to(source)
                parts = (*inside.parts[:-1], path.stem)
                scene = "/".join(parts[1:]) or parts[0]
                videos.append(Video(path, inside.as_posix(), parts[0], scene))
    if not videos:
        kinds = " ".join(SUFFIXES)
        raise InputError(f"--source {source}: no video in it; files end in {kinds}")
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


def is_held_out(person: str, share: float) -> bool:
    """Whether a person is kept for the test split.

    A function of the name alone: nobody changes sides when footage is added.
    """
    digest = hashlib.sha256(person.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def partners(rows: Sequence[Row]) -> list[list[int]]:
    """For every row the rows of the same person in another scene."""
    by_person = defaultdict(list)
    for index, row in enumerate(rows):
        by_person[row.person].append(index)
    return [
        [index for index in by_person[row.person] if rows[index].scene != row.scene]
        for row in rows
    ]
