"""Where a run's files lie: a folder of this machine, or gs://BUCKET/FOLDER.

A bucket has no folders, cannot append to a file and cannot rename one. But what is
written appears whole or not at all, and to everybody at once. So:

    small files     are written whole (`write_text`)
    growing files   lie on this machine, and are copied when it matters (report.py)
    checkpoints     are complete when Orbax has written its last file (checkpoint.py)

Local paths are pathlib's. Those in a bucket are etils.epath's, which have the same
methods and reach it through gcsfs, the extra `gcs`, with the credentials of this
machine.
"""

import os
from pathlib import Path

import fsspec
from etils import epath

from tavr_jax.errors import InputError

Place = Path | epath.Path
_BUCKET = "gs://"


def is_bucket(name: str | os.PathLike) -> bool:
    """Is it gs://...?"""
    return os.fspath(name).startswith(_BUCKET)


def place(name: str | os.PathLike, flag: str = "path") -> Place:
    """The absolute path that `name` means. Nothing is asked of a disk or a bucket.

    InputError, which begins with `flag`: no such kind of place, or no gcsfs here.
    """
    text = os.fspath(name)
    if not is_bucket(text):
        if "://" in text:
            raise InputError(
                f"{flag}: {text}: expected a path of this machine, or "
                "gs://BUCKET/FOLDER"
            )
        return Path(name).absolute()
    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise InputError(
            f"{flag}: {text}: buckets need the package gcsfs; "
            "pip install 'tavr_jax[gcs]'"
        ) from error
    # It remembers what it listed, but TensorStore and other hosts write there too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def reached(name: str | os.PathLike, flag: str) -> Place:
    """`place`, asked for once, so that what is wrong with a bucket is one line now.

    InputError: no such bucket, or no right to read it. What may pass (`may_pass`) is
    raised as it is: after an InputError, launch.pod would start nothing again.
    """
    found = place(name, flag)
    if not is_bucket(found):
        return found
    try:
        found.exists()
    except Exception as error:  # of gcsfs, aiohttp, google.auth: no class in common
        if may_pass(error):
            raise
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{flag}: {found}: the bucket cannot be reached ({line}); is its name "
            "right, and may this machine's account read and write it?"
        ) from error
    return found


def may_pass(error: Exception) -> bool:
    """Whether it is the network or the server's that a bucket did not answer, so that
    the same may work later. gcsfs has then tried for about a minute."""
    code = str(getattr(error, "code", ""))
    return (
        isinstance(error, (TimeoutError, ConnectionError))
        or type(error).__module__.partition(".")[0] == "aiohttp"
        or bool(getattr(error, "retryable", False))  # of google.auth
        or code in ("408", "429")
        or code.startswith("5")
    )


def write_text(path: Place, text: str) -> None:
    """Put `text` in place of what is there, all or nothing. OSError: it cannot be."""
    if is_bucket(path):
        path.write_text(text)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
