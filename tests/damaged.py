"""Footage as it should not be: damaged, odd and hostile files for the data engine.

Made of one good clip (drawn or real) with PyAV and by cutting and overwriting bytes;
the same seed gives the same files.
"""

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from data_pipelines import media

RATE = 16000
NAMES = (
    "ünïcödé 日本語 😀",
    "$(touch pwned)",
    "`touch pwned`",
    "a; touch pwned; b",
    "| touch pwned",
    "'single' \"double\"",
    "-rf --source",
    "new\nline",
    " spaces  and\ttab ",
    "%s%n%d {0} {x}",
    "a&b<script>alert(1)<b>",
    "back\\slash",
    "*?[x]~",
    "é combining e\u0301",
    "very long " + "x" * 200,
)


def encode(
    path: Path,
    frames: np.ndarray,
    wave: np.ndarray | None = None,
    *,
    fps: int = 25,
    rate: int = RATE,
    layout: str = "mono",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    turned: int = 0,
    tags: dict[str, int] | None = None,
    container: str | None = None,
) -> None:
    """A video by the given codec; `times` are in milliseconds, `wave` mono."""
    with av.open(str(path), "w", format=container) as out:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        video = out.add_stream(codec, rate=fps, options=quiet)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = pixels
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        if turned:
            video.set_display_rotation(turned)
        if times is not None:
            video.codec_context.time_base = video.time_base = Fraction(1, 1000)
        sound = None
        if wave is not None:
            sound = out.add_stream("aac", rate=rate, layout=layout)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(image), format="rgb24"
            )
            frame = frame.reformat(format=pixels)
            frame.pts = index if times is None else times[index]
            if times is not None:
                frame.time_base = Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if sound is not None:
            _sound(out, sound, wave, rate, layout)


def _sound(out, stream, wave: np.ndarray, rate: int, layout: str) -> None:
    if rate != RATE:
        count = int(len(wave) * rate / RATE)
        wave = np.interp(np.arange(count) * RATE / rate, np.arange(len(wave)), wave)
    channels = av.AudioLayout(layout).nb_channels
    samples = np.repeat(wave[None].astype(np.float32), channels, axis=0)
    for start in range(0, samples.shape[1], 1024):
        piece = np.ascontiguousarray(samples[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, start
        frame.time_base = Fraction(1, rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


class Maker:
    """Variants of one good clip, written into a folder under a name's beginning."""

    def __init__(self, clip: Path, folder: Path, prefix: str = ""):
        self.clip, self.folder, self.prefix = clip, folder, prefix
        self.frames = media.read_frames(clip, 25)
        self.wave = media.read_audio(clip, RATE)
        self.bytes = clip.read_bytes()
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a variant goes."""
        return self.folder / f"{self.prefix}{name}"

    def resized(self, rows: int, columns: int, count: int | None = None) -> np.ndarray:
        """Frames at another size."""
        chosen = self.frames[:count]
        return np.stack([cv2.resize(frame, (columns, rows)) for frame in chosen])

    def raw(self, name: str, data: bytes) -> None:
        """A file of bytes."""
        self.path(name).write_bytes(data)

    def as_bytes(self) -> None:
        """Truncated, empty and misnamed files, and things that are no files."""
        size = len(self.bytes)
        for share in (1, 25, 60, 95):
            self.raw(f"truncated_{share}.mp4", self.bytes[: size * share // 100])
        self.raw("truncated_front.mp4", self.bytes[size // 3 :])
        self.raw("zero.mp4", b"")
        self.raw("one_byte.mp4", b"\0")
        self.raw("zeros.mp4", bytes(4096))
        self.raw("text.mp4", b"#EXTM3U\nfile:///etc/passwd\n" * 9)
        self.raw("page.webm", b"<html><script>alert(1)</script></html>")
        self.raw("right_bytes_wrong_name.avi", self.bytes)
        picture = cv2.imencode(".png", self.frames[0])[1].tobytes()
        self.raw("picture.mp4", picture)
        self.path("folder.mp4").mkdir(exist_ok=True)
        self.path("nowhere.mp4").symlink_to("/nowhere/at/all.mp4")

    def as_sound(self) -> None:
        """Sound of other rates and channels, and none."""
        some = self.resized(120, 160)
        encode(self.path("mute.mp4"), some)
        encode(self.path("5_1.mkv"), some, self.wave, rate=48000, layout="5.1")
        encode(self.path("8khz.mp4"), some, self.wave, rate=8000)
        encode(self.path("44khz.mov"), some, self.wave, rate=44100, layout="stereo")
        encode(self.path("silent.mp4"), some, np.zeros_like(self.wave))
        encode(self.path("short_sound.mp4"), some, self.wave[: len(self.wave) // 8])
        with av.open(str(self.path("sound_only.mp4")), "w") as out:
            stream = out.add_stream("aac", rate=RATE, layout="mono")
            _sound(out, stream, self.wave, RATE, "mono")

    def as_picture(self) -> None:
        """Other rates, sizes, turns, colours and codecs."""
        wave, some = self.wave, self.resized(120, 160)
        uneven = np.cumsum(np.random.default_rng(0).integers(5, 90, len(some)))
        encode(self.path("vfr.mkv"), some, wave, times=uneven.tolist())
        for turn in (90, 180, 270):
            lying = np.rot90(some, -turn // 90, axes=(1, 2))
            encode(self.path(f"turned_{turn}.mp4"), lying, wave, turned=turn)
        encode(self.path("120fps.mp4"), np.repeat(some, 5, axis=0), wave, fps=125)
        encode(self.path("10fps.mp4"), some[::2], wave, fps=10)
        encode(self.path("one_frame.mp4"), some[:1], wave)
        encode(self.path("tiny.mp4"), self.resized(16, 16), wave)
        encode(self.path("flat.mp4"), self.resized(16, 640), wave)
        hdr = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
        encode(
            self.path("hdr.mkv"), some[:12], wave, codec="libx265",
            pixels="yuv420p10le", tags=hdr,
        )  # fmt: skip
        encode(self.path("gray.mp4"), some, wave, pixels="gray")
        encode(self.path("444.mp4"), some, wave, pixels="yuv444p")
        encode(self.path("mpeg1.mpg"), some, codec="mpeg1video")
        encode(self.path("black.mp4"), np.zeros_like(some), wave)
        encode(self.path("still.mp4"), np.repeat(some[:1], len(some), axis=0), wave)
        noise = np.random.default_rng(1).integers(0, 256, some.shape, np.uint8)
        encode(self.path("noise.mp4"), noise, wave)

    def as_names(self, names=NAMES) -> None:
        """A good clip under names that are trouble."""
        for name in names:
            shutil.copy(self.clip, self.path(f"{name}{self.clip.suffix}"))

    def as_4k(self, seconds: int) -> None:
        """A long 4K clip, its frames repeated."""
        count, wave = seconds * 25, np.resize(self.wave, seconds * RATE)
        big = self.resized(2160, 3840, min(len(self.frames), 10))
        chosen = _Repeated(big, count)
        encode(self.path("4k.mp4"), chosen, wave, codec="mpeg4")

    def as_damage(self, seeds: range) -> None:
        """Bytes overwritten, blocks zeroed or gone, anywhere."""
        for seed in seeds:
            random = np.random.default_rng(seed)
            data = np.frombuffer(self.bytes, np.uint8).copy()
            kind = ("flips", "zeros", "hole", "swap")[seed % 4]
            start = int(random.integers(0, len(data)))
            length = int(random.integers(1, max(2, len(data) // 10)))
            if kind == "flips":
                where = random.integers(0, len(data), 1 + seed * 3)
                data[where] = random.integers(0, 256, len(where))
            elif kind == "zeros":
                data[start : start + length] = 0
            elif kind == "hole":
                data = np.delete(data, np.s_[start : start + length])
            else:
                data = np.roll(data, length)
            self.raw(f"{kind}_{seed}{self.clip.suffix}", data.tobytes())


class _Repeated:
    """A few frames as if they were many."""

    def __init__(self, frames: np.ndarray, count: int):
        self._frames, self._count = frames, count
        self.shape = (count, *frames.shape[1:])

    def __iter__(self):
        return (self._frames[i % len(self._frames)] for i in range(self._count))


KINDS: tuple[Callable[[Maker], None], ...] = (
    Maker.as_bytes,
    Maker.as_sound,
    Maker.as_picture,
    Maker.as_names,
)
