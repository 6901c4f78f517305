"""Footage in a bucket, through Apache Beam's file systems (gs://, s3://, hdfs:// ...).

A bucket is first listed into a folder here: captions and manifests whole, videos as
empty files of the same size and age that take no room. So everything that reads names,
manifests and captions works as on a folder. A video itself is fetched by the process
that prepares it, and removed when it is done.
"""

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from data_pipelines.prepare import store
from data_pipelines.prepare.clips import ClipSettings
from data_pipelines.prepare.importers import MANIFESTS, SUFFIXES, Video
from tavr_jax.errors import InputError

_BESIDE = (".json", ".txt")  # captions
_WHOLE = {*_BESIDE, *MANIFESTS}


def is_url(source: str) -> bool:
    """Whether a source is in a bucket."""
    return "://" in source


def listing(url: str, folder: Path) -> None:
    """List a bucket's folder into one here. InputError: it cannot be listed."""
    systems, url = _systems(), url.rstrip("/")
    try:
        found = systems.match([f"{url}/**"])[0].metadata_list
        for file in found:
            name = PurePosixPath(file.path[len(url) :].lstrip("/"))
            place = folder / name
            if ".." in name.parts or place.suffix.lower() not in {*SUFFIXES, *_WHOLE}:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.suffix.lower() in SUFFIXES:
                place.touch()
                os.truncate(place, file.size_in_bytes)
            else:
                _fetch(systems, file.path, place)
            when = file.last_updated_in_seconds or 0
            os.utime(place, (when, when))
    except Exception as error:  # each file system has errors of its own
        line = " ".join(str(error).split())[:300]
        raise InputError(
            f"--source {url}: cannot be listed ({type(error).__name__}: {line}); check "
            "the address and that this machine may read it"
        ) from error


def prepare_video(
    video: Video, settings: ClipSettings, folder: Path, url: str, listed: Path
) -> None:
    """`store.prepare_video` of a video that is fetched first."""
    systems, name = _systems(), video.path.relative_to(listed)
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch, name.name)
        try:
            _fetch(systems, f"{url.rstrip('/')}/{name.as_posix()}", here)
            for suffix in _BESIDE:
                beside = f"{url.rstrip('/')}/{name.with_suffix(suffix).as_posix()}"
                if systems.exists(beside):
                    _fetch(systems, beside, here.with_suffix(suffix))
        except Exception as error:
            line = " ".join(str(error).split())[:300]
            store.give_up(video, "unreadable", f"cannot be fetched: {line}", folder)
            return
        store.prepare_video(video._replace(path=here), settings, folder)


def copy_results(source: str, target: str) -> None:
    """All results of a folder to another; what says that a video is done, last."""
    systems = _systems()
    if not systems.exists(target):
        systems.mkdirs(target)
    found = systems.match([systems.join(source, "*")])[0].metadata_list
    names = sorted(file.path.replace("\\", "/").rsplit("/", 1)[-1] for file in found)
    for name in sorted(names, key=store.is_marker):
        _fetch(systems, systems.join(source, name), systems.join(target, name))


def _fetch(systems, source: str, target: str | Path) -> None:
    with systems.open(source) as reader:
        if isinstance(target, Path):
            with target.open("wb") as writer:
                shutil.copyfileobj(reader, writer)
        else:
            with systems.create(target) as writer:
                shutil.copyfileobj(reader, writer)


def _systems():
    try:
        from apache_beam.io.filesystems import FileSystems
    except ImportError as error:
        raise InputError(
            f"--beam: Apache Beam is not installed ({error}); pip install apache-beam"
        ) from error
    return FileSystems
