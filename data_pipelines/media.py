"""Video, sound and stills: files to arrays and back.

Decoding and encoding go through PyAV, ffmpeg's own libraries inside a wheel, so that
no ffmpeg has to be installed. One clock rules a file: time 0 is the first instant of
its picture (of its sound, where it has no picture). Frames are taken from that clock
at a steady rate and sound is laid on it sample by sample, so that frame `i` of
`read_frames(path, fps)` goes with the samples around `i / fps` seconds of `read_audio`,
whatever the start times, rates and gaps inside the file.

Damaged files end in an `InputError` that names the file, never in half a result.
"""

import io
import math
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import av
import cv2
import numpy as np
import soxr
from jaxtyping import Float, Shaped, UInt8

from tavr_jax.errors import InputError

Frames = UInt8[np.ndarray, "F Y X 3"]

# Containers round timestamps (to 1 ms in some): a frame due within this share of an
# output frame counts as already on screen.
EARLY = 0.1
# Sound further than this from where its timestamp says has a hole (or an overlap)
# before it; anything less is jitter.
JITTER = 0.05  # seconds
# A single frame or silence longer than this is a broken timestamp, not footage.
LONGEST_GAP = 60.0  # seconds
# A file may end this much before its stated end; more is missing data.
MISSING_END = 0.5  # seconds
GUESSED_LENGTH = ("mp3", "aac")  # no header says it: ffmpeg guesses from the bit rate
MEMORY_LIMIT = 8 << 30  # bytes of frames that `read_frames` will hold
# ffmpeg would show these as a picture: text as a terminal, stills as one-frame video.
NOT_VIDEO = ("tty", "_pipe", "image2")


class Probe(NamedTuple):
    """What a video file holds. `frames` counts source frames, `seconds` is picture."""

    path: str
    fps: float
    frames: int
    seconds: float
    height: int
    width: int
    has_audio: bool


def probe(path) -> Probe:
    """Size, rate and length of a video; its first frame is decoded as a proof.

    InputError: missing or unreadable file, no video stream.
    """
    with _opened(path) as container:
        stream = _video_stream(path, container)
        frames, seconds = _scan(container, stream)
        fps = float(stream.average_rate or Fraction(frames) / Fraction(seconds))
        has_audio = bool(container.streams.audio)
    height, width = next(iterate_frames(path, fps)).shape[:2]
    return Probe(str(path), fps, frames, seconds, height, width, has_audio)


def read_frames(path, fps: float, limit: int | None = None) -> Frames:
    """Frames at a steady `fps`: frame i is what is on screen at i / fps seconds.

    A file of s seconds gives round(s * fps) frames, or the first `limit` of them.
    Rotation marks and non-square pixels are resolved.
    InputError: as `iterate_frames`, and more frames than memory should hold.
    """
    frames, size = [], 0
    for frame in islice(iterate_frames(path, fps), limit):
        frames.append(frame)
        size += frame.nbytes
        if size > MEMORY_LIMIT:
            raise InputError(
                f"{path}: over {len(frames)} frames of {frame.shape[1]}x"
                f"{frame.shape[0]} do not fit in memory; cut it into shorter files"
            )
    return np.stack(frames)


def iterate_frames(path, fps: float) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
    """`read_frames` one frame at a time, for footage of any length.

    InputError: missing, unreadable, damaged or truncated file, no video stream, a
    frame size that changes on the way.
    """
    slots: deque = deque()  # decided, but perhaps beyond the end of the picture
    decided = released = 0
    shown, end = None, 0.0
    for time, frame, seconds in _timed_frames(path):
        if shown is not None and frame.shape != shown.shape:
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


def read_audio(path, sample_rate: int) -> Float[np.ndarray, " n"]:
    """Mono float32 sound of a video or audio file: mean of channels, soxr HQ.

    Sample i is heard i / sample_rate seconds after the first frame: sound that starts
    late begins with zeros, sound from before the picture is cut. The length is the
    sound track's own, which may differ from the picture's.
    InputError: missing, unreadable or damaged file, no sound track, an empty one.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            raise InputError(f"{path}: has no sound track; give a file with sound")
        stream = container.streams.audio[0]
        _require_codec(path, stream)
        video = [s for s in container.streams.video if not _is_cover(s)]
        origin = _start(video[0] if video else stream)
        rate, pieces = _sound_pieces(path, container, stream, origin)
        if pieces:
            seconds = sum(piece.size for piece in pieces) / rate
            _require_whole(path, container, stream, origin + seconds - _start(stream))
        end = None
        if "mp4" in container.format.name and stream.duration:
            # aac comes in blocks of 1024: mp4 alone says where the last one ends.
            stated = float(stream.duration * stream.time_base)
            end = round((_start(stream) + stated - origin) * rate)
    wave = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    wave = wave[:end]
    if not wave.size:
        raise InputError(f"{path}: the sound track is empty; give a file with sound")
    if not np.isfinite(wave).all():
        raise InputError(f"{path}: the sound holds NaN or infinity; re-encode the file")
    if rate == sample_rate:
        return wave
    return soxr.resample(wave, rate, sample_rate, quality="HQ").astype(np.float32)


def read_image(path) -> UInt8[np.ndarray, "Y X 3"]:
    """An RGB still (png, jpeg, webp ...), turned upright. InputError: not an image."""
    _require_file(path)
    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (cv2.error, OSError) as error:
        raise InputError(f"{path}: not a readable image; give a png or jpeg") from error
    if image is None:
        raise InputError(f"{path}: not a readable image; give a png or jpeg")
    return np.ascontiguousarray(image[..., ::-1])


def read_metadata(path) -> dict[str, str]:
    """The container's tags: ours (see `write_video`) and those of the format."""
    with _opened(path) as container:
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


def encode_mp4(frames: Frames, fps: float, crf: float) -> bytes:
    """A silent h264 mp4 in memory. crf 0 loses only colour resolution, 51 is worst."""
    target = io.BytesIO()
    _encode(target, frames, fps, crf, None, 0, {}, {})
    return target.getvalue()


def decode_mp4(data: bytes) -> Frames:
    """All frames of an mp4 in memory, each once. InputError: damaged bytes."""
    frames = [frame for _, frame, _ in _timed_frames("mp4 in memory", data)]
    if not frames:
        raise InputError("mp4 in memory: not a single frame; prepare the data again")
    return np.stack(frames)


def write_video(
    path,
    frames: Frames,
    fps: float,
    wave: Float[np.ndarray, " n"] | None = None,
    sample_rate: int = 16000,
    crf: float = 18,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write an .mp4 (h264 yuv420p + mono aac) whole or not at all.

    Odd sizes gain one row or column by repeating the edge, since yuv420p halves both.
    `metadata` becomes container tags under the very keys given.
    InputError: a name that is not .mp4, a folder that cannot be written, a sample rate
    that aac does not know.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: video is written as .mp4; choose such a name")
    if wave is not None and sample_rate not in av.Codec("aac", "w").audio_rates:
        raise InputError(f"{path}: aac has no sample rate {sample_rate}; use 16000")
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    flags = {
        "movflags": "use_metadata_tags+faststart",
        "movie_timescale": str(sample_rate),  # the sound's end, to the sample
    }
    tags = metadata or {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _encode(str(temporary), frames, fps, crf, wave, sample_rate, tags, flags)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason})") from error


# Reading


def _require_file(path) -> None:
    if not Path(path).is_file():
        why = "is not a file" if Path(path).exists() else "no such file"
        raise InputError(f"{path}: {why}; check the path")


@contextmanager
def _opened(path, data: bytes | None = None):
    """An open container; ffmpeg's errors become an InputError that names `path`."""
    if data is None:
        _require_file(path)
    source = str(path) if data is None else io.BytesIO(data)
    try:
        # Playlists could otherwise make ffmpeg open files and hosts of their choice.
        options = {} if data else {"protocol_whitelist": "file"}
        with av.open(source, metadata_errors="replace", options=options) as container:
            yield container
    except av.FFmpegError as error:
        why = error.strerror or type(error).__name__
        raise InputError(
            f"{path}: damaged, or not video or sound ({why}); re-encode or replace it"
        ) from error


def _require_codec(path, stream) -> None:
    if stream.codec_context is None:
        raise InputError(
            f"{path}: its {stream.type} is coded in an unknown way; re-encode the file"
        )


def _is_cover(stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video_stream(path, container):
    streams = [s for s in container.streams.video if not _is_cover(s)]
    name = container.format.name
    if not streams or any(word in name for word in NOT_VIDEO):
        raise InputError(f"{path}: has no video stream; give a video file")
    _require_codec(path, streams[0])
    return streams[0]


def _require_whole(path, container, stream, seconds: float) -> None:
    stated = float((stream.duration or 0) * stream.time_base)
    if seconds < stated - MISSING_END and container.format.name not in GUESSED_LENGTH:
        raise InputError(
            f"{path}: truncated: {seconds:.1f} s of the {stated:.1f} s it states; "
            "copy it again"
        )


def _start(stream) -> float:
    """Seconds at which a stream begins, on the container's clock."""
    return float((stream.start_time or 0) * stream.time_base)


def _scan(container, stream) -> tuple[int, float]:
    """Frames and seconds of a stream, from its packets: headers state them wrongly."""
    count, end = 0, 0.0
    frame = 1 / float(stream.average_rate or 25)
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            count += 1
            length = float((packet.duration or 0) * packet.time_base) or frame
            end = max(end, float(packet.pts * packet.time_base) + length)
    # No timestamp at all: the frame rate is the only clock there is.
    return count, (end - _start(stream)) if count else frame


def _timed_frames(path, data: bytes | None = None):
    """(seconds since the first instant, upright RGB frame, its length in seconds)."""
    with _opened(path, data) as container:
        stream = _video_stream(path, container)
        stream.codec_context.thread_type = "AUTO"
        origin, usual = _start(stream), 1 / float(stream.average_rate or 25)
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
            yield time, _upright(frame, stream.sample_aspect_ratio), seconds
        if not first:
            _require_whole(path, container, stream, time + seconds)


def _upright(frame, aspect: Fraction | None) -> UInt8[np.ndarray, "Y X 3"]:
    """RGB pixels as a viewer shows them: square, and turned as the camera noted."""
    image = frame.to_ndarray(format="rgb24")
    if aspect and aspect != 1:
        size = (max(1, round(frame.width * aspect)), frame.height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _sound_pieces(path, container, stream, origin: float):
    """(sample rate, mono pieces laid end to end on the clock that starts at origin)."""
    rate, pieces, position = 0, [], 0
    for frame in container.decode(stream):
        rate = rate or frame.sample_rate
        if frame.sample_rate != rate:
            raise InputError(f"{path}: the sample rate changes; re-encode the file")
        piece, gap = _mono(frame), 0
        if frame.pts is not None:
            due = float(frame.pts * frame.time_base) - origin
            gap = round(due * rate) - position
        if gap > LONGEST_GAP * rate:
            raise InputError(f"{path}: sound leaps to {due:.1f} s; re-encode the file")
        if position == 0 or abs(gap) > JITTER * rate:
            if gap > 0:
                pieces.append(np.zeros(gap, np.float32))
                position += gap
            else:
                piece = piece[-gap:]
        pieces.append(piece)
        position += piece.size
    return rate, pieces


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


# Writing


def _encode(target, frames, fps, crf, wave, sample_rate, metadata, options) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (F, Y, X, 3), not {frames.shape}")
    if not len(frames):
        raise ValueError("no frames to encode")
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        frames = np.pad(frames, odd, mode="edge")
    rate = Fraction(fps).limit_denominator(1001)
    # One thread and no macroblock tree: the same frames give the same bytes.
    settings = {"crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
    with av.open(target, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata)
        # One thread: more would make the bytes depend on the machine.
        video = container.add_stream("libx264", rate=rate, options=settings)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        sound = None
        if wave is not None:
            sound = container.add_stream("aac", rate=sample_rate, layout="mono")
            sound.bit_rate = 4 * sample_rate
            wave = np.clip(np.asarray(wave, np.float32), -1, 1)
        for index, pixels in enumerate(frames):
            container.mux(video.encode(_yuv(pixels)))
            if sound is not None:
                # Side by side with the picture, so that players need no seeking.
                start, stop = (
                    math.ceil(i * sample_rate / rate) for i in (index, index + 1)
                )
                stop = stop if index + 1 < len(frames) else len(wave)
                _mux_sound(container, sound, wave[start:stop], start, sample_rate)
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))


def _yuv(pixels):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709")


def _mux_sound(container, sound, samples, start: int, sample_rate: int) -> None:
    if samples.size:
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = sample_rate, start
        frame.time_base = Fraction(1, sample_rate)
        container.mux(sound.encode(frame))
