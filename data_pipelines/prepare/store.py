"""What is done of each video, on disk: so that a stopped run goes on where it was.

    FOLDER/<name>.000007.clip.npz    a clip's record, before people are known
    FOLDER/<name>.video.json         the video is done; what was left out of it

    .OUTPUT.lock                     beside a dataset that a run makes: no other may

<name> is a hash of the video's id, so no file name can do harm. Files appear whole.
"""

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.prepare import clips
from data_pipelines.prepare.clips import ClipSettings, Reject
from data_pipelines.prepare.importers import Video
from tavr_jax.errors import InputError

_MARKER = ".video.json"


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """No other run makes `output` meanwhile; the lock ends with the process.

    Where no lock can be had, nothing can be written either, or the disk is one of many
    machines that knows no locks: there nobody watches.
    InputError: another run is at it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    path, lock = output.with_name(f".{output.name}.lock"), None
    try:
        lock = _locked(path)
    except BlockingIOError as error:
        raise InputError(
            f"--output {output}: another launch.prepare_data is writing it; wait for "
            "it, or choose another folder"
        ) from error
    except OSError:
        pass
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)
            os.close(lock)


def prepare_video(video: Video, settings: ClipSettings, folder: Path) -> None:
    """Write the clips of a video into `folder` and that it is done.

    A video that cannot be read to its end is left out whole. OSError: `folder` cannot
    be written.
    """
    if is_done(video, folder):
        return
    for path in clip_paths(video, folder):  # of a run that was stopped
        path.unlink()
    rejects, results, number = [], clips.scan(video, settings), 0
    while True:
        try:
            result = next(results, None)
        except (InputError, OSError) as error:
            give_up(video, "unreadable", str(error), folder)
            return
        if result is None:
            break
        if isinstance(result, Reject):
            rejects.append(result)
        else:
            save_record(folder / f"{_name(video)}.{number:06d}.clip.npz", result)
        number += 1
    _finish(video, rejects, folder)


def give_up(video: Video, reason: str, detail: str, folder: Path) -> None:
    """Leave a video out whole, for one reason."""
    for path in clip_paths(video, folder):
        path.unlink()
    _finish(video, [Reject(video.video_id, reason, detail, 0, 0, {})], folder)


def is_marker(name: str) -> bool:
    """Whether a file of a work folder says that a video is done."""
    return name.endswith(_MARKER)


def is_done(video: Video, folder: Path) -> bool:
    """Whether nothing is left to do of a video."""
    return _marker(video, folder).exists()


def clip_paths(video: Video, folder: Path) -> list[Path]:
    """The clips of a video, in order."""
    return sorted(folder.glob(f"{_name(video)}.*.clip.npz"))


def rejects(video: Video, folder: Path) -> list[Reject]:
    """What was left out of a video that is done, in order."""
    lines = json.loads(_marker(video, folder).read_text())
    return [
        Reject(**line | {"thumbnail": base64.b64decode(line["thumbnail"])})
        for line in lines
    ]


def save_record(path: Path, record: Mapping[str, Any]) -> None:
    """A record as a whole .npz, or nothing. OSError: it cannot be written."""
    with _whole_file(path) as file:
        np.savez(file, **record)


def load_record(path: Path, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """A record of `save_record`, or some fields; texts and numbers as Python's."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in names or stored.files}
    return {
        name: value if value.ndim else value.item() for name, value in values.items()
    }


class _whole_file:
    """A file that appears under its name when everything was written."""

    def __init__(self, path: Path):
        self._path = path
        self._temporary = path.with_name(f".{os.getpid()}.{path.name}")

    def __enter__(self):
        self._file = self._temporary.open("wb")
        return self._file

    def __exit__(self, kind, error, trace):
        try:
            self._file.close()
            if error is None:
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    """The open lock file of that name. BlockingIOError: somebody else has it."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass  # whoever had it has just removed it: no file of that name is this one
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _finish(video: Video, left_out: list[Reject], folder: Path) -> None:
    lines = [
        each._asdict() | {"thumbnail": base64.b64encode(each.thumbnail).decode()}
        for each in left_out
    ]
    with _whole_file(_marker(video, folder)) as file:
        file.write(json.dumps(lines).encode())


def _marker(video: Video, folder: Path) -> Path:
    return folder / f"{_name(video)}{_MARKER}"


def _name(video: Video) -> str:
    return hashlib.sha256(video.video_id.encode()).hexdigest()[:20]
