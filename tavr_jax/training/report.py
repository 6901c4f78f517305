"""What a run tells: lines on the terminal, metrics.jsonl, TensorBoard, parameters.txt.

Speed is that of the steps alone: time for samples, evaluation and checkpoints is left
out. Of W, the work of a step, over n steps in t seconds:

    (1) samples, tokens a second = n W.samples / t, n W.tokens / t
    (2) MFU = n W.flops / t / W.peak,  flops of the model, whatever is computed twice

metrics.jsonl has a line of means every train.log_every steps, and a line of the scores
of held-out pairs, under "held_out/...", after every evaluation.

A bucket cannot append to a file. There everything lies in a folder of this machine, and
`publish` copies what has changed: before a checkpoint is written, after samples and
scores, at the end. A killed run loses only lines that the resumed one writes again.

TensorBoard files are written without TensorFlow. A video is an animated GIF, which
TensorBoard plays in its image tab; its sound is in the audio tab under the same name.
Only the first process writes.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils
from jaxtyping import Float, UInt8
from numpy import ndarray
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from tavr_jax import storage
from tavr_jax.storage import Place
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


class Work(NamedTuple):
    """One step's work on all devices together; None: unknown, and not reported."""

    samples: int
    tokens: int | None  # of targets: what is learned, not what is read
    flops: float | None  # of the model, forward and backward (models/flops.py)
    peak: float | None  # FLOP/s that all devices could do (parallel/chips.py)


class Report:
    """Everything one run writes but its checkpoints.

    `place` is its workdir, `workdir` the folder of this machine where files are
    written: the same, unless the workdir is in a bucket.
    """

    def __init__(self, workdir: Place, stage: str, steps: int, work: Work | None):
        self.place = storage.place(workdir)
        self._remote = storage.is_bucket(self.place)
        if self._remote:
            self._folder = tempfile.TemporaryDirectory(prefix="tavr_")
        self.workdir = Path(self._folder.name) if self._remote else self.place
        self._published: dict[Path, tuple[int, int]] = {}
        self._stage, self._steps, self._work = stage, steps, work
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
        self.workdir.mkdir(parents=True, exist_ok=True)
        overview = parameter_overview.get_parameter_overview(
            _named(params), include_stats=False
        )
        (self.workdir / "parameters.txt").write_text(overview + "\n")
        path = self.workdir / "metrics.jsonl"
        if self._remote and (before := self.place / path.name).exists():
            path.write_text(before.read_text())
        _truncate(path, step)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(self.workdir / "tensorboard"), purge_step=step + 1
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
        rates = _rates(self._work, speed)
        shown = [f"{n} {v:.4g}" for n, v in values.items() if n in _SHOWN]
        shown += [_SPEEDS[name].format(rate) for name, rate in rates.items()]
        self.say(f"step {step}/{self._steps}  {'  '.join(shown)}  {_clock(left)} left")
        self._log(step, values | rates)

    def held_out(self, step: int, values: dict[str, float]) -> None:
        """Log the scores of held-out pairs."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self._steps}  held out  {shown}")
        self._log(step, {f"{_HELD_OUT}{name}": v for name, v in values.items()})
        self.publish()

    def has_held_out(self, step: int) -> bool:
        """Are the scores of `step` in metrics.jsonl? Every process has to ask; the one
        that writes knows."""
        found = False
        if self._writes:
            lines = (self.workdir / "metrics.jsonl").read_text(encoding="utf-8")
            for line in map(json.loads, lines.splitlines()):
                scored = any(name.startswith(_HELD_OUT) for name in line)
                found = found or (line["step"] == step and scored)
        return bool(multihost_utils.broadcast_one_to_all(np.bool_(found)))

    def _log(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same in TensorBoard."""
        if not self._writes:
            return
        line = {"step": step, "stage": self._stage}
        line |= {n: v if math.isfinite(v) else None for n, v in values.items()}
        line["seconds"] = round(time.monotonic() - self._began[1], 3)
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in values.items():
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
        self.publish()

    def publish(self) -> None:
        """Copy to the bucket what has changed since; a folder needs none of it."""
        if not (self._remote and self._writes):
            return
        for path in sorted(self.workdir.rglob("*")):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if path.is_dir() or self._published.get(path) == state:
                continue
            copy = self.place / path.relative_to(self.workdir).as_posix()
            copy.write_bytes(path.read_bytes())
            self._published[path] = state

    def close(self) -> None:
        """Flush and close the files."""
        if self._lines:
            self._lines.close()
            self._board.close()
        self.publish()

    def _picture(self, name: str, size: tuple, encoded: bytes, step: int) -> None:
        # add_image would need Pillow and add_video moviepy and ffmpeg; the file writer
        # takes any summary.
        image = Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board.file_writer.add_summary(summary, step)


_HELD_OUT = "held_out/"
# what the terminal shows
_SHOWN = ("loss", "reward", "reward_identity", "reward_motion", "judged_identity", "kl")
_SPEEDS = {
    "steps_per_second": "{:.3g} steps/s",
    "samples_per_second": "{:.3g} samples/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "tflops_per_second": "{:.3g} TFLOP/s",
    "mfu": "MFU {:.1%}",
}


def _rates(work: Work | None, speed: float) -> dict[str, float]:
    """(1), (2): what is known of them; nothing before a step was timed."""
    if not speed:
        return {}
    rates = {"steps_per_second": speed}
    if work is None:
        return rates
    rates["samples_per_second"] = work.samples * speed
    if work.tokens is not None:
        rates["tokens_per_second"] = work.tokens * speed
    if work.flops is not None:
        rates["tflops_per_second"] = work.flops * speed / 1e12
        if work.peak is not None:
            rates["mfu"] = work.flops * speed / work.peak
    return rates


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
    storage.write_text(path, "".join(f"{line}\n" for line in kept))


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
