"""What a run tells: lines on the terminal, metrics.jsonl, TensorBoard, parameters.txt.

TensorBoard files are written without TensorFlow. A video is an animated GIF, which
TensorBoard plays in its image tab; its sound is in the audio tab under the same name.
Only the first process writes.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
from clu import parameter_overview
from jaxtyping import Float, UInt8
from numpy import ndarray
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from tavr_jax.types import PyTree


class Image(NamedTuple):
    """One picture."""

    pixels: UInt8[ndarray, "Y X 3"]


class Video(NamedTuple):
    """Frames without sound."""

    frames: UInt8[ndarray, "F Y X 3"]
    fps: float


class Sound(NamedTuple):
    """A mono wave in [-1, 1]."""

    wave: Float[ndarray, " n"]
    sample_rate: int


Media = Image | Video | Sound


class Report:
    """Everything one run writes but its checkpoints."""

    def __init__(self, workdir: Path, stage: str, steps: int):
        self._workdir, self._stage, self._steps = Path(workdir), stage, steps
        self._writes = jax.process_index() == 0
        self._board = self._lines = None
        self._began = self._last = (0, time.monotonic())

    def start(self, step: int, params: PyTree) -> None:
        """Open the files and drop what a broken run wrote beyond `step`."""
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        if step:
            self.say(f"resumed at step {step}")
        self.say(f"{sum(sizes):,} parameters in {len(sizes)} arrays")
        self._began = self._last = (step, time.monotonic())
        if not self._writes:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        overview = parameter_overview.get_parameter_overview(
            _named(params), include_stats=False
        )
        (self._workdir / "parameters.txt").write_text(overview + "\n")
        path = self._workdir / "metrics.jsonl"
        _truncate(path, step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(self._workdir / "tensorboard"), purge_step=step + 1
        )

    def first_step(self, step: int) -> None:
        """Call when the first step is done: compilation does not count as speed."""
        began = self._last[1]
        self._last = (step, time.monotonic())
        self.say(f"first step with compilation {self._last[1] - began:.1f} s")

    def say(self, text: str) -> None:
        """One line on the terminal."""
        if self._writes:
            print(f"{self._stage}: {text}", flush=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log one line of means; on the terminal with speed and time left."""
        now = time.monotonic()
        speed = (step - self._last[0]) / max(now - self._last[1], 1e-9)
        self._last = (step, now)
        left = (self._steps - step) / speed if speed else math.inf
        shown = "  ".join(f"{n} {v:.4g}" for n, v in values.items() if n in _SHOWN)
        self.say(
            f"step {step}/{self._steps}  {shown}  "
            f"{speed:.3g} steps/s  {_clock(left)} left"
        )
        if not self._writes:
            return
        line = {"step": step, "stage": self._stage}
        line |= {n: v if math.isfinite(v) else None for n, v in values.items()}
        line |= {"seconds": round(now - self._began[1], 3), "steps_per_second": speed}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in {**values, "steps_per_second": speed}.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def pause(self, since: float) -> None:
        """Leave the time from `since` (time.monotonic) to now out of the speed."""
        step, began = self._last
        self._last = (step, began + time.monotonic() - since)

    def media(self, step: int, media: dict[str, Media]) -> None:
        """Pictures, videos and sounds of one step."""
        if not self._writes:
            return
        for name, item in media.items():
            match item:
                case Image(pixels):
                    self._picture(name, pixels.shape, png(pixels), step)
                case Video(frames, fps):
                    self._picture(name, frames.shape[1:], gif(frames, fps), step)
                case Sound(wave, sample_rate):
                    self._board.add_audio(name, wave[:, None], step, sample_rate)
        self._board.flush()

    def close(self) -> None:
        """Flush and close the files."""
        if self._lines:
            self._lines.close()
            self._board.close()

    def _picture(self, name: str, size: tuple, encoded: bytes, step: int) -> None:
        # add_image would need Pillow and add_video moviepy and ffmpeg; the file writer
        # takes any summary.
        image = Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board.file_writer.add_summary(summary, step)


_SHOWN = ("loss", "reward", "reward_identity", "reward_lipsync", "kl")


def png(pixels: UInt8[ndarray, "Y X 3"]) -> bytes:
    """One picture, lossless."""
    return _encoded(*cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)))


def gif(frames: UInt8[ndarray, "F Y X 3"], fps: float) -> bytes:
    """An animated GIF that loops."""
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    animation.durations = [round(1000 / fps)] * len(frames)
    return _encoded(*cv2.imencodeanimation(".gif", animation))


def _encoded(done: bool, encoded: ndarray) -> bytes:
    if not done:
        raise RuntimeError("OpenCV could not encode a picture")
    return encoded.tobytes()


def _named(params: PyTree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


def _truncate(path: Path, step: int) -> None:
    """Keep the lines up to `step`: a resumed run writes the later ones again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            written = json.loads(line)["step"]
        except (ValueError, KeyError):
            continue  # the line that a killed process was writing
        if written <= step:
            kept.append(line)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
