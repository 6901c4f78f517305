"""Which videos launch.generate makes: from its flags, or from sample folders.

A sample folder is the release's: ref.mp4, target.png, target_caption.json (its key
`caption`), target.mp3 or, failing that, target.wav; the video goes to
<output dir>/<folder's name>/generated_target.mp4 [TAVR_SPEC 2]. A folder that holds
such folders stands for all of them.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from tavr_jax.errors import InputError

REFERENCE, TARGET, CAPTION = "ref.mp4", "target.png", "target_caption.json"
SPEECH = ("target.mp3", "target.wav")
OUTPUT = "generated_target.mp4"


class Sample(NamedTuple):
    """One video to make, by the files it is made from."""

    references: tuple[str, ...]  # of one person, any scenes
    target: str
    audio: str
    caption: str
    output: Path
    empty_scene: bool = False  # nobody is in the target: the reference places them


def from_folders(folders: list[str], output: str) -> list[Sample]:
    """The samples of these folders. InputError: a file is missing, two share a name."""
    found: list[Path] = []
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            raise InputError(f"--sample-dir {name}: no such folder")
        inside = sorted(path.parent for path in folder.glob(f"*/{REFERENCE}"))
        whole = (folder / REFERENCE).is_file() or not inside
        found += [folder] if whole else inside
    names = [folder.resolve().name for folder in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"--sample-dir: two folders are called {twice[0]}; their videos would have "
            "one place, rename one"
        )
    return [_read(folder, Path(output)) for folder in found]


def check_output(path: Path) -> None:
    """InputError before the long work, not after it."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"--output {path}: video is written as .mp4; give such a name")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"--output {path}: {folder} cannot be written to; give another"
        )


def _read(folder: Path, output: Path) -> Sample:
    speech = next((n for n in SPEECH if (folder / n).is_file()), SPEECH[-1])
    for name in (REFERENCE, TARGET, speech):
        if not (folder / name).is_file():
            raise InputError(
                f"--sample-dir {folder}: {name} is missing; a sample has {REFERENCE}, "
                f"{TARGET}, {CAPTION} and {' or '.join(SPEECH)}"
            )
    return Sample(
        (str(folder / REFERENCE),),
        str(folder / TARGET),
        str(folder / speech),
        _caption(folder / CAPTION),
        output / folder.resolve().name / OUTPUT,
    )


def _caption(path: Path) -> str:
    try:
        caption = json.loads(path.read_text(encoding="utf-8"))["caption"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'{path}: no caption in it ({type(error).__name__}); write {{"caption": '
            '"what the video shows"}'
        ) from error
    if not isinstance(caption, str):
        raise InputError(f"{path}: caption: expected text, found {caption!r}")
    return caption
