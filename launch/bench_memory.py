"""Memory of launch.generate against the length of the video.

    python -m launch.bench memory --checkpoint W --reference R --target T --audio A

makes videos of 10 s to 5 min from the same speech, said again and again, each in a
process of its own, and prints the largest resident memory of each against the first's.
What grows is the speech itself: its wave and its rows. One sampler step by default:
memory does not depend on their number.
"""

import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
from absl import flags

from data_pipelines import media
from tavr_jax.errors import InputError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "As of launch.generate.")
REFERENCE = flags.DEFINE_string("reference", None, "Video of the person.")
TARGET = flags.DEFINE_string("target", None, "Still of the scene.")
AUDIO = flags.DEFINE_string("audio", None, "Speech to repeat.")
SECONDS = flags.DEFINE_list("seconds", ["10", "30", "60", "300"], "Lengths to make.")
STEPS = flags.DEFINE_integer("steps", 1, "Sampler steps.")
RATE = 16000


def main() -> None:
    """One process a length."""
    needed = (CHECKPOINT, REFERENCE, TARGET, AUDIO)
    if missing := [flag.name for flag in needed if not flag.value]:
        raise InputError(f"flags: --{missing[0]} is missing (see --help)")
    speech = media.read_audio(AUDIO.value, RATE)
    first = None
    print("video      peak memory   against the first   wall time")
    for seconds in map(float, SECONDS.value):
        with tempfile.TemporaryDirectory() as folder:
            said = Path(folder) / "speech.wav"
            _write(said, np.resize(speech, int(seconds * RATE)))
            peak, wall = _measure(said, Path(folder) / "out.mp4")
        first = first or peak
        print(
            f"{seconds:6.0f} s   {peak / 1e6:8.0f} MB   {peak / first:17.2f}   "
            f"{wall:7.0f} s",
            flush=True,
        )


def _measure(speech: Path, output: Path) -> tuple[int, float]:
    """Largest resident bytes and seconds of one run. InputError: it failed."""
    command = [
        sys.executable, "-m", "launch.generate",
        "--checkpoint", CHECKPOINT.value, "--reference", REFERENCE.value,
        "--target", TARGET.value, "--audio", str(speech), "--output", str(output),
        "--sample_steps", str(STEPS.value),
    ]  # fmt: skip
    log = output.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        line = (log.read_text().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"launch.generate failed on {speech}: {line}")
    return usage.ru_maxrss * 1024, time.perf_counter() - start


def _write(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
