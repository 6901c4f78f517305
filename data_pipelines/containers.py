"""Open media files: streams, timestamps and pixels as ffmpeg's libraries give them.

`media` lays them on a steady clock; here a file is opened safely, its streams are
chosen and its frames come with the time they are due. Damage is an `InputError`.

Two ways from a decoded frame to RGB:

    (1) as tagged    by the matrix and range that the file states
    (2) as released  as BT.601 limited range whatever it states     [TAVR_SPEC 9-3]:
        4:2:2 by swscale's bicubic, then, with U' = U - 128, V' = V - 128,
        Y' = max(Y - 16, 0) 1220542
        R = (Y' + 1673527 V' + 2^19) >> 20
        G = (Y' - 852492 V' - 409993 U' + 2^19) >> 20
        B = (Y' + 2116026 U' + 2^19) >> 20, clipped to 0..255;
        U, V are shared by pairs of pixels. OpenCV's UYVY conversion is this formula.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from tavr_jax.errors import InputError

# A single frame or silence longer than this is a broken timestamp, not footage.
LONGEST_GAP = 60.0  # seconds
# Sound further than this from where its timestamp says has a hole (or an overlap)
# before it; anything less is jitter.
JITTER = 0.05  # seconds
# A file may end this much before its stated end; more is missing data.
MISSING_END = 0.5  # seconds
GUESSED_LENGTH = ("mp3", "aac")  # no header says it: ffmpeg guesses from the bit rate
# ffmpeg would show these as a picture: text as a terminal, stills as one-frame video.
NOT_VIDEO = ("tty", "_pipe", "image2")
ONE = 1  # thread to convert a frame: starting more is thrice the work of converting

Colours = Callable[[av.VideoFrame], UInt8[np.ndarray, "Y X 3"]]


def as_tagged(frame: av.VideoFrame) -> UInt8[np.ndarray, "Y X 3"]:
    """RGB by what the file says of its colours. (1)."""
    return frame.reformat(format="rgb24", threads=ONE).to_ndarray()


def as_released(frame: av.VideoFrame) -> UInt8[np.ndarray, "Y X 3"]:
    """RGB as the release reads every file. (2)."""
    packed = frame.reformat(
        format="uyvy422",
        interpolation="BICUBIC",
        dst_color_range="MPEG",
        threads=ONE,
    )
    plane, even = packed.planes[0], frame.width + frame.width % 2
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
    return uyvy_to_rgb(rows[:, : 2 * even].reshape(frame.height, even, 2))[
        :, : frame.width
    ]


def uyvy_to_rgb(packed: UInt8[np.ndarray, "Y X 2"]) -> UInt8[np.ndarray, "Y X 3"]:
    """The integer formula of (2); byte 0 is U in even columns and V in odd ones."""
    return cv2.cvtColor(np.ascontiguousarray(packed), cv2.COLOR_YUV2RGB_UYVY)


# prepare.released_colours -> how pixels are read
COLOURS: dict[bool, Colours] = {True: as_released, False: as_tagged}


def require_file(path) -> None:
    """InputError: no such file."""
    if not Path(path).is_file():
        why = "is not a file" if Path(path).exists() else "no such file"
        raise InputError(f"{path}: {why}; check the path")


@contextmanager
def _named(path):
    """ffmpeg's errors become an InputError that names `path`."""
    try:
        yield
    except av.FFmpegError as error:
        why = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: damaged, or not video or sound ({why}); re-encode or replace it"
        ) from error


@contextmanager
def opened(path, data: bytes | None = None):
    """An open container; ffmpeg's errors become an InputError that names `path`."""
    if data is None:
        require_file(path)
    # Whole: what precedes a colon in a bare name is a protocol to ffmpeg.
    source = os.path.abspath(path) if data is None else io.BytesIO(data)
    # Playlists could otherwise make ffmpeg open files and hosts of their choice.
    options = {} if data else {"protocol_whitelist": "file"}
    with (
        _named(path),
        av.open(source, metadata_errors="replace", options=options) as container,
    ):
        yield container


def require_codec(path, stream) -> None:
    """InputError: ffmpeg does not know how the stream is coded."""
    if stream.codec_context is None:
        raise InputError(
            f"{path}: its {stream.type} is coded in an unknown way; re-encode the file"
        )


def is_cover(stream) -> bool:
    """Whether a video stream is the picture of an album, not footage."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def video_stream(path, container):
    """The first stream of footage. InputError: there is none."""
    streams = [s for s in container.streams.video if not is_cover(s)]
    name = container.format.name
    if not streams or any(word in name for word in NOT_VIDEO):
        raise InputError(f"{path}: has no video stream; give a video file")
    require_codec(path, streams[0])
    return streams[0]


def sound_stream(path, container):
    """The first sound track. InputError: there is none."""
    if not container.streams.audio:
        raise InputError(f"{path}: has no sound track; give a file with sound")
    stream = container.streams.audio[0]
    require_codec(path, stream)
    return stream


def require_whole(path, container, stream, seconds: float) -> None:
    """InputError: the stream held clearly less than its header states."""
    stated = float((stream.duration or 0) * stream.time_base)
    if seconds < stated - MISSING_END and container.format.name not in GUESSED_LENGTH:
        raise InputError(
            f"{path}: truncated: {seconds:.1f} s of the {stated:.1f} s it states; "
            "copy it again"
        )


def start(stream) -> float:
    """Seconds at which a stream begins, on the container's clock."""
    return float((stream.start_time or 0) * stream.time_base)


def scan(container, stream) -> tuple[int, float]:
    """Frames and seconds of a stream, from its packets: headers state them wrongly."""
    count, end = 0, 0.0
    frame = 1 / float(stream.average_rate or 25)
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            count += 1
            length = float((packet.duration or 0) * packet.time_base) or frame
            end = max(end, float(packet.pts * packet.time_base) + length)
    # No timestamp at all: the frame rate is the only clock there is.
    return count, (end - start(stream)) if count else frame


class Picture:
    """A decoded frame, made RGB only when somebody looks at it."""

    def __init__(self, path, frame, aspect, colours: Colours, sampler):
        self._path, self._frame, self._aspect = path, frame, aspect or 1
        self._colours, self._sampler = colours, sampler
        self._turns = round(frame.rotation / 90) % 4
        self._rgb: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of `rgb()`."""
        rows, columns = self._frame.height, self._columns()
        return (columns, rows) if self._turns % 2 else (rows, columns)

    def rgb(self) -> UInt8[np.ndarray, "Y X 3"]:
        """As a viewer shows it: square pixels, turned as the camera noted.

        InputError: pixels that cannot be converted.
        """
        if self._rgb is None:
            with _named(self._path):
                image = self._colours(self._frame)
            if self._aspect != 1:
                size = (self._columns(), self._frame.height)
                image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            if self._turns:
                image = np.ascontiguousarray(np.rot90(image, self._turns))
            self._rgb = image
        return self._rgb

    def sampled(self, side: int) -> UInt8[np.ndarray, "y x 3"]:
        """At most side x side of its pixels, as tagged, in no proportion.

        A tenth of the work of all of them. InputError: as `rgb`.
        """
        width, height = (min(side, n) for n in (self._frame.width, self._frame.height))
        with _named(self._path):
            small = self._sampler.reformat(
                self._frame, width, height, "rgb24", interpolation="POINT", threads=ONE
            )
            return small.to_ndarray()

    def _columns(self) -> int:
        if self._aspect == 1:
            return self._frame.width
        return max(1, round(self._frame.width * self._aspect))


def timed_pictures(path, data: bytes | None = None, colours: Colours = as_tagged):
    """(seconds since the first instant, Picture, its length in seconds)."""
    with opened(path, data) as container:
        stream = video_stream(path, container)
        stream.codec_context.thread_type = "AUTO"
        origin, usual = start(stream), 1 / float(stream.average_rate or 25)
        sampler = VideoReformatter()  # kept: its tables cost more than its pixels
        time, seconds, first = 0.0, 0.0, True
        for frame in container.decode(stream):
            due = time + seconds
            if frame.pts is not None:
                due = float(frame.pts * frame.time_base) - origin
            if due - time > LONGEST_GAP:
                raise InputError(
                    f"{path}: timestamps leap from {time:.1f} to {due:.1f} s; "
                    "re-encode the file"
                )
            time = max(due, time)
            seconds = float((frame.duration or 0) * frame.time_base) or usual
            first = False
            aspect = stream.sample_aspect_ratio
            yield time, Picture(path, frame, aspect, colours, sampler), seconds
        if not first:
            require_whole(path, container, stream, time + seconds)


class Sound(NamedTuple):
    """A decoded frame of sound, laid on the clock right behind the one before."""

    silence: int  # samples without sound before it
    frame: av.AudioFrame
    kept: slice  # samples of the frame that are on the clock


def timed_sound(path, data: bytes | None = None) -> Iterator[Sound]:
    """The first sound track, end to end from the first instant of the picture.

    Without a picture, of the sound. What starts late begins with silence, what was
    before is cut, holes are silent, and an mp4 ends where it says.
    InputError: as `opened`; no sound track, one that leaps, changes its rate or is
    truncated.
    """
    with opened(path, data) as container:
        stream = sound_stream(path, container)
        footage = [s for s in container.streams.video if not is_cover(s)]
        origin, begin = start((footage or [stream])[0]), start(stream)
        end, rate, position = math.inf, 0, 0
        for frame in container.decode(stream):
            if not rate:
                rate = frame.sample_rate
                if "mp4" in container.format.name and stream.duration:
                    # aac comes in blocks of 1024: mp4 alone says where the last ends.
                    stated = float(stream.duration * stream.time_base)
                    end = round((begin + stated - origin) * rate)
            if frame.sample_rate != rate:
                raise InputError(f"{path}: the sample rate changes; re-encode the file")
            gap = 0
            if frame.pts is not None:
                due = float(frame.pts * frame.time_base) - origin
                gap = round(due * rate) - position
            if gap > LONGEST_GAP * rate:
                raise InputError(
                    f"{path}: sound leaps to {due:.1f} s; re-encode the file"
                )
            if position and abs(gap) <= JITTER * rate:
                gap = 0
            silence, cut = max(gap, 0), max(-gap, 0)
            size = max(frame.samples - cut, 0)
            room = max(end - position, 0)
            silent = min(silence, room)
            yield Sound(silent, frame, slice(cut, cut + min(size, room - silent)))
            position += silence + size
        if rate:
            require_whole(path, container, stream, origin + position / rate - begin)
