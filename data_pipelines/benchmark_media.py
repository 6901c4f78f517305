"""A benchmark's videos in a user's folder: which are there, and their spans cut out.

Nothing is ever downloaded. A downloader of yours makes, for a video called ID, one of

    MEDIA/ID_<start_frame>_<end_frame>.mp4   the span alone, cut already
    MEDIA/ID.mp4                             the whole video, as it was published
    MEDIA/ID/<any name>.mp4                  the same, the only video in that folder

with any suffix of `prepare.importers.SUFFIXES`; the first of these that is there is
taken. With p the rate of the file and a, b what the list says of the span:

    (1) span    by frames, [a / p, b / p), where the list's rate is p; else by seconds
    (2) frames  round(25 (end - start)) of them: i is on screen at start + i / 25
    (3) sound   of the same seconds, on the same clock (`media`)

A file of another rate was encoded again: its frames have other numbers, its clock is
the same. What tells the file from the one that was listed is remarked, never corrected.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from data_pipelines import media
from data_pipelines.benchmark_file import Benchmark, Span
from data_pipelines.prepare.importers import SUFFIXES
from tavr_jax.errors import InputError

FPS = 25
SAME_RATE = 0.01  # frames a second, (1)
SLACK = 2  # frames that a span may be off the list before it is remarked


class Place(NamedTuple):
    """A file that shows a span: `alone`, or somewhere in it."""

    path: Path
    alone: bool


class Cut(NamedTuple):
    """A span found in a file."""

    path: Path
    fps: float  # of the file
    start: float  # seconds, (1)
    begins: float  # the same in the video as it was published: not 0 where it is cut
    frames: int  # (2)
    size: tuple[int, int]  # rows, columns of the file
    has_sound: bool
    remarks: tuple[str, ...]  # how the file differs from what is listed


def find(
    benchmark: Benchmark, folder: str | Path
) -> tuple[dict[Span, Place], list[Span]]:
    """Where each span is, and those whose video is not there, in the list's order.

    InputError: no such folder; a folder of a video that holds several.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"--media {folder}: no such folder; give the one with the videos"
        )
    places: dict[Span, Place] = {}
    missing: dict[Span, None] = {}
    for sample in benchmark.samples:
        for span in (sample.reference, sample.target):
            place = _place(folder, span)
            if place is None:
                missing[span] = None
            else:
                places[span] = place
    return places, list(missing)


def locate(span: Span, place: Place) -> Cut:
    """Where in the file a span is; only headers and the first frame are read.

    InputError: no video, a truncated one, or one that ends before the span does.
    """
    found = media.probe(place.path)
    by_frames = abs(found.fps - span.fps) < SAME_RATE
    start, end = span.start, span.end
    if by_frames:
        start, end = span.start_frame / found.fps, span.end_frame / found.fps
    begins = start
    if place.alone:
        start, end = 0.0, end - start
    count = max(1, round(FPS * (end - start)))
    if round(FPS * (end - found.seconds)) > SLACK:
        for _ in media.iterate_pictures(place.path, found.fps):
            pass  # a damaged or truncated file is named as such
        raise InputError(
            f"{place.path}: ends at {found.seconds:.2f} s, before the span that ends "
            f"at {end:.2f} s; it is another video, or cut: name cut spans "
            f"{Path(span.video_id).name}_{span.start_frame}_{span.end_frame}.mp4"
        )
    remarks = []
    if (found.width, found.height) != (span.width, span.height):
        remarks.append(
            f"is {found.width}x{found.height}, listed as {span.width}x{span.height}"
        )
    if not by_frames:
        remarks.append(f"has {found.fps:g} frames a second, listed as {span.fps:g}")
    listed = FPS * (span.end - span.start)
    if abs(count - listed) > SLACK:
        remarks.append(
            f"{count} frames at {FPS} fps by its frames, {listed:.0f} by its seconds"
        )
    size = (found.height, found.width)
    sound = found.has_audio
    return Cut(place.path, found.fps, start, begins, count, size, sound, tuple(remarks))


def frames(cut: Cut) -> Iterator[UInt8[ndarray, "Y X 3"]]:
    """(2), one at a time; the last one is held where the file ends a little early.

    InputError: as `media.iterate_pictures`.
    """
    start = cut.start * cut.fps
    # What is due within a share of a frame counts as shown, as in `media`.
    due = np.floor(
        start + (np.arange(cut.frames) + media.EARLY) * cut.fps / FPS
    ).astype(int)
    given, pixels = 0, None
    pictures = media.iterate_pictures(cut.path, cut.fps)
    for index, picture in enumerate(islice(pictures, int(due[-1]) + 1)):
        wanted = int(np.searchsorted(due, index, side="right"))
        if wanted > given:
            pixels = picture.rgb()
        for _ in range(wanted - given):
            yield pixels
        given = wanted
    if pixels is None:
        raise InputError(f"{cut.path}: no frame from {cut.start:.2f} s on; replace it")
    for _ in range(cut.frames - given):
        yield pixels


def sound(cut: Cut, sample_rate: int) -> Float[ndarray, " n"] | None:
    """(3), mono, as long as the frames: silence where the track ends early.

    None: the file has no sound. InputError: as `media.read_audio`.
    """
    if not cut.has_sound:
        return None
    first = round(cut.start * sample_rate)
    count = cut.frames * sample_rate // FPS
    wave = media.read_audio(cut.path, sample_rate)[first : first + count]
    return np.pad(wave, (0, count - len(wave)))


def _place(folder: Path, span: Span) -> Place | None:
    alone = f"{span.video_id}_{span.start_frame}_{span.end_frame}"
    for name, is_alone in ((alone, True), (span.video_id, False)):
        for suffix in SUFFIXES:
            # A video id may hold dots: with_suffix would cut them off.
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return Place(path, is_alone)
    inside = folder / span.video_id
    if not inside.is_dir():
        return None
    videos = sorted(p for p in inside.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(videos) > 1:
        raise InputError(
            f"--media {inside}: {len(videos)} videos; leave the one of {span.video_id}"
        )
    return Place(videos[0], False) if videos else None
