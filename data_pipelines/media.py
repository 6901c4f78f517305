"""Video, sound and stills: files to arrays (`video_files.py`: the way back).

Decoding goes through PyAV, ffmpeg's own libraries inside a wheel, so that
no ffmpeg has to be installed. One clock rules a file: time 0 is the first instant of
its picture (of its sound, where it has no picture). Frames are taken from that clock
at a steady rate and sound is laid on it sample by sample, so that frame `i` of
`read_frames(path, fps)` goes with the samples around `i / fps` seconds of `read_audio`,
whatever the start times, rates and gaps inside the file.

Damaged files end in an `InputError` that names the file, never in half a result.
"""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import soxr
from jaxtyping import Float, Shaped, UInt8

from data_pipelines import containers
from data_pipelines.containers import Colours, Picture, as_tagged
from tavr_jax.errors import InputError

Frames = UInt8[np.ndarray, "F Y X 3"]

# Containers round timestamps (to 1 ms in some): a frame due within this share of an
# output frame counts as already on screen.
EARLY = 0.1
MEMORY_LIMIT = 8 << 30  # bytes of frames that `read_frames` will hold


class Probe(NamedTuple):
    """What a video file holds. `frames` counts source frames, `seconds` is picture."""

    path: str
    fps: float
    frames: int
    seconds: float
    height: int
    width: int
    has_audio: bool
    sound_tracks: int


def probe(path) -> Probe:
    """Size, rate and length of a video; its first frame is decoded as a proof.

    InputError: missing or unreadable file, no video stream.
    """
    with containers.opened(path) as container:
        stream = containers.video_stream(path, container)
        frames, seconds = containers.scan(container, stream)
        fps = float(stream.average_rate or Fraction(frames) / Fraction(seconds))
        sounds = len(container.streams.audio)
    height, width = next(iterate_frames(path, fps)).shape[:2]
    return Probe(str(path), fps, frames, seconds, height, width, sounds > 0, sounds)


def read_frames(
    path, fps: float, limit: int | None = None, colours: Colours = as_tagged
) -> Frames:
    """Frames at a steady `fps`: frame i is what is on screen at i / fps seconds.

    A file of s seconds gives round(s * fps) frames, or the first `limit` of them.
    Rotation marks and non-square pixels are resolved. `colours` says how they become
    RGB: `containers.as_tagged` or `containers.as_released`.
    InputError: as `iterate_frames`, and more frames than memory should hold.
    """
    frames, size = [], 0
    for frame in islice(iterate_frames(path, fps, colours), limit):
        frames.append(frame)
        size += frame.nbytes
        if size > MEMORY_LIMIT:
            raise InputError(
                f"{path}: over {len(frames)} frames of {frame.shape[1]}x"
                f"{frame.shape[0]} do not fit in memory; cut it into shorter files"
            )
    return np.stack(frames)


def iterate_frames(
    path, fps: float, colours: Colours = as_tagged
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """`read_frames` one frame at a time, for footage of any length.

    InputError: as `iterate_pictures`.
    """
    for picture in iterate_pictures(path, fps, colours):
        yield picture.rgb()


def iterate_pictures(
    path, fps: float, colours: Colours = as_tagged
) -> Iterator[Picture]:
    """`iterate_frames` before their pixels are asked for, which is most of the work.

    InputError: missing, unreadable, damaged or truncated file, no video stream, a
    frame size that changes on the way.
    """
    slots: deque = deque()  # decided, but perhaps beyond the end of the picture
    decided = released = 0
    shown, end = None, 0.0
    for time, frame, seconds in containers.timed_pictures(path, colours=colours):
        if shown is not None and frame.size != shown.size:
            raise InputError(
                f"{path}: the frame size changes at {time:.2f} s; re-encode the file"
            )
        # Before the first frame there is nothing to show but the first frame.
        shown = frame if shown is None else shown
        while decided / fps + EARLY / fps < time:
            slots.append(shown)
            decided += 1
        shown, end = frame, time + seconds
        while slots and released < round(time * fps):
            yield slots.popleft()
            released += 1
    if shown is None:
        raise InputError(f"{path}: not a single frame can be decoded; replace the file")
    for _ in range(max(1, round(end * fps)) - released):
        yield slots.popleft() if slots else shown


def read_audio(
    path, sample_rate: int, data: bytes | None = None
) -> Float[np.ndarray, " n"]:
    """Mono float32 sound of a video or audio file: mean of channels, soxr HQ.

    Sample i is heard i / sample_rate seconds after the first frame: sound that starts
    late begins with zeros, sound from before the picture is cut. The length is the
    sound track's own, which may differ from the picture's. With `data` the file is in
    memory and `path` only names it in messages.
    InputError: missing, unreadable or damaged file, no sound track, an empty one.
    """
    rate, pieces = 0, [np.zeros(0, np.float32)]
    for silence, frame, kept in containers.timed_sound(path, data):
        rate = frame.sample_rate
        pieces += [np.zeros(silence, np.float32), _mono(frame)[kept]]
    wave = np.concatenate(pieces)
    if not wave.size:
        raise InputError(f"{path}: the sound track is empty; give a file with sound")
    if not np.isfinite(wave).all():
        raise InputError(f"{path}: the sound holds NaN or infinity; re-encode the file")
    if rate == sample_rate:
        return wave
    return soxr.resample(wave, rate, sample_rate, quality="HQ").astype(np.float32)


def read_image(path) -> UInt8[np.ndarray, "Y X 3"]:
    """An RGB still (png, jpeg, webp ...), turned upright. InputError: not an image."""
    containers.require_file(path)
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (cv2.error, OSError) as error:
        raise InputError(f"{path}: not a readable image; give a png or jpeg") from error
    if image is None:
        raise InputError(f"{path}: not a readable image; give a png or jpeg")
    return np.ascontiguousarray(image[..., ::-1])


def read_metadata(path) -> dict[str, str]:
    """The container's tags: ours (see `video_files`) and those of the format."""
    with containers.opened(path) as container:
        return dict(container.metadata)


def cover_resize(
    frames: Shaped[np.ndarray, "F Y X 3"], size: tuple[int, int]
) -> Shaped[np.ndarray, "F Y X 3"]:
    """Fill `size` = (rows, columns) and cut off what sticks out, evenly on both sides.

    Keeps the dtype (uint8 or float32) and the proportions up to a source pixel.
    """
    height, width = frames.shape[1:3]
    scale = max(size[0] / height, size[1] / width)
    rows = min(height, round(size[0] / scale))
    columns = min(width, round(size[1] / scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    window = frames[:, top : top + rows, left : left + columns]
    if (rows, columns) == tuple(size):
        return np.ascontiguousarray(window)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = [
        cv2.resize(frame, tuple(size)[::-1], interpolation=kind) for frame in window
    ]
    return np.stack(resized)


def decode_mp4(data: bytes) -> Frames:
    """All frames of an mp4 in memory, each once. InputError: damaged bytes."""
    pictures = containers.timed_pictures("mp4 in memory", data)
    frames = [picture.rgb() for _, picture, _ in pictures]
    if not frames:
        raise InputError("mp4 in memory: not a single frame; prepare the data again")
    return np.stack(frames)


# Sound


def _mono(frame) -> Float[np.ndarray, " n"]:
    """Mean of a decoded frame's channels in [-1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    return samples.mean(axis=0, dtype=np.float64).astype(np.float32)
