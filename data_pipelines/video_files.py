"""Video files written: frames as they come, with sound from a wave or another file.

h264 yuv420p and aac in an .mp4, whole or not at all: the file appears under its name
when its last byte is written. The same frames and sound give the same bytes.
"""

import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from glob import escape
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, UInt8

from data_pipelines import containers
from tavr_jax.errors import InputError

Frames = UInt8[np.ndarray, "F Y X 3"]
Sound = Float[np.ndarray, " n"] | str | os.PathLike

FALLBACK_RATE = 48000  # of a file whose rate aac does not know
# channels -> their usual places; a file may leave them unnamed
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
PRESET = "medium"  # x264's own choice between time and size
PIECE = 1024  # samples encoded at a time


def write_video(
    path: str | os.PathLike,
    frames: Frames | Iterable[Frames],
    fps: float,
    sound: Sound | None = None,
    sample_rate: int = 16000,
    crf: float = 18,
    metadata: dict[str, str] | None = None,
    preset: str = PRESET,
) -> None:
    """Write an .mp4. `frames` may come in blocks, of which one is held at a time.

    `sound` is a mono wave at `sample_rate`, or a file, whose first sound track is taken
    at its own rate and channels, on the clock of `media.read_audio`: what starts apart
    from the file's own picture is waited for or cut. Odd sizes gain one row or column
    by repeating the edge, since yuv420p halves both. `metadata` becomes container tags
    under the very keys given. `preset` is x264's: a faster one takes more bytes for the
    same picture.
    InputError: a name that is not .mp4, a folder that cannot be written, sound that
    cannot be read, a sample rate that aac does not know.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{path}: video is written as .mp4; choose such a name")
    if isinstance(sound, np.ndarray) and sample_rate not in _rates():
        raise InputError(f"{path}: aac has no sample rate {sample_rate}; use 16000")
    flags = {
        "movflags": "use_metadata_tags+faststart",
        "movie_timescale": str(sample_rate),  # the sound's end, to the sample
    }
    track = _track(sound, sample_rate)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as temporary:
            # Whole: what precedes a colon in a bare name is a protocol to ffmpeg.
            target = os.path.abspath(temporary)
            _encode(target, frames, fps, crf, track, metadata, flags, preset)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason})") from error


def encode_mp4(frames: Frames, fps: float, crf: float) -> bytes:
    """A silent h264 mp4 in memory. crf 0 loses only colour resolution, 51 is worst."""
    target = io.BytesIO()
    _encode(target, frames, fps, crf, None, None, {}, PRESET)
    return target.getvalue()


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what was written whole then appears as `path`.

    Every process has a name of its own, so that of two writers the later one wins. What
    killed processes of this machine left of the same file is removed.
    """
    ours, theirs = f".{os.uname().nodename}-", f".{path.name}"
    for left in path.parent.glob(f"{escape(ours)}*{escape(theirs)}"):
        number = left.name[len(ours) : -len(theirs)]
        if number.isdecimal() and not _lives(int(number)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f"{ours}{os.getpid()}{theirs}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's
    return True


# Picture


def _encode(target, frames, fps, crf, track, metadata, options, preset) -> None:
    blocks = iter((frames,) if isinstance(frames, np.ndarray) else frames)
    first = next(blocks, None)
    if first is None or not len(first):
        raise ValueError("no frames to encode")
    rate = Fraction(fps).limit_denominator(1001)
    # One thread and no macroblock tree: more would make the bytes depend on the machine
    settings = {"crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
    settings["preset"] = preset
    with av.open(target, "w", format="mp4", options=options) as container:
        container.metadata.update(metadata or {})
        video = container.add_stream("libx264", rate=rate, options=settings)
        video.height, video.width = (side + side % 2 for side in first.shape[1:3])
        video.pix_fmt = "yuv420p"
        video.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        sound = None if track is None else _Interleaved(container, track)
        pictures = chain.from_iterable(map(_even, chain([first], blocks)))
        reformatter = VideoReformatter()  # one: making it costs more than its work
        for count, pixels in enumerate(pictures, 1):
            container.mux(video.encode(_yuv(pixels, reformatter)))
            if sound is not None:
                # Side by side with the picture, so that players need no seeking.
                sound.until(float(count / rate))
        container.mux(video.encode(None))
        if sound is not None:
            sound.until(math.inf)


def _even(frames: Frames) -> Frames:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be uint8 (F, Y, X, 3), not {frames.shape}")
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    return np.pad(frames, odd, mode="edge") if any(map(any, odd)) else frames


def _yuv(pixels, reformatter: VideoReformatter) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return reformatter.reformat(
        frame, format="yuv420p", dst_colorspace="ITU709", threads=1
    )


# Sound


class _Track(NamedTuple):
    """Sound to encode: float planar frames, laid end to end from 0."""

    rate: int
    layout: str
    frames: Iterator[av.AudioFrame]


class _Interleaved:
    """Encodes a track piece by piece, as far as the picture has come."""

    def __init__(self, container, track: _Track):
        self.container, self.track = container, track
        self.stream = container.add_stream("aac", rate=track.rate, layout=track.layout)
        self.stream.bit_rate = 4 * track.rate * self.stream.codec_context.channels
        self.samples = 0

    def until(self, seconds: float) -> None:
        """Encode up to there; at infinity, all that is left."""
        while self.samples < seconds * self.track.rate:
            frame = next(self.track.frames, None)
            if frame is None:
                if seconds == math.inf:
                    self.container.mux(self.stream.encode(None))
                return
            frame.pts = self.samples
            frame.time_base = Fraction(1, self.track.rate)
            self.samples += frame.samples
            self.container.mux(self.stream.encode(frame))


def _track(sound: Sound | None, rate: int) -> _Track | None:
    if sound is None or isinstance(sound, np.ndarray):
        return None if sound is None else _Track(rate, "mono", _of_wave(sound, rate))
    with containers.opened(sound) as container:
        stream = containers.sound_stream(sound, container)
        rate = stream.rate if stream.rate in _rates() else FALLBACK_RATE
        layout = LAYOUTS.get(stream.channels, "stereo")
    return _Track(rate, layout, _of_file(sound, rate, layout))


def _of_wave(wave: Float[np.ndarray, " n"], rate: int) -> Iterator[av.AudioFrame]:
    clipped = np.clip(np.asarray(wave, np.float32), -1, 1)
    return _frames(clipped[None], rate, "mono")


def _of_file(path: Sound, rate: int, layout: str) -> Iterator[av.AudioFrame]:
    """The track on the clock of `media.read_audio`: lips follow what that gives."""
    mixers: dict[tuple[str, str], av.AudioResampler] = {}  # channels change in some
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for silence, decoded, kept in containers.timed_sound(path):
        kind = decoded.format.name, decoded.layout.name
        if kind not in mixers:
            mixers[kind] = av.AudioResampler(format="fltp", layout=layout)
        (mixed,) = mixers[kind].resample(decoded)  # at its own rate: sample for sample
        samples = np.pad(mixed.to_ndarray()[:, kept], [(0, 0), (silence, 0)])
        for frame in _frames(samples, decoded.sample_rate, layout):
            yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _frames(
    samples: Float[np.ndarray, "c n"], rate: int, layout: str
) -> Iterator[av.AudioFrame]:
    for start in range(0, samples.shape[1], PIECE):
        piece = np.ascontiguousarray(samples[:, start : start + PIECE])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate = rate
        yield frame


def _rates() -> list[int]:
    return av.Codec("aac", "w").audio_rates
