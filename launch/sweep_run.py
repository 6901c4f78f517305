"""Run a sweep here, one run after another; the same command goes on with it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from launch.sweep_grid import Run
from launch.sweep_scripts import command

MARK = "sweep.json"  # in a finished workdir: the command that finished it
LOG = "sweep.log"  # in a workdir: everything its run said

_ERROR = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Outcome(NamedTuple):
    """Names of runs."""

    finished: list[str]
    skipped: list[str]  # had finished before
    failed: list[str]
    stopped: bool  # asked to, before the last one was done


def run_all(runs: Sequence[Run], folder: Path) -> Outcome:
    """Train every run that has not finished; a failed one does not stop the rest.

    A run has finished when this very command ended well. SIGTERM and Ctrl-C are passed
    on: the run saves a checkpoint, and nothing else is begun.
    """
    skipped = [run.name for run in runs if _is_finished(run, folder)]
    todo = [run for run in runs if run.name not in skipped]
    finished, failed, seconds = [], [], []
    if skipped:
        print(f"{len(skipped)} of {len(runs)} runs had finished before", flush=True)
    for number, run in enumerate(todo, 1):
        workdir = folder / run.name
        at = f"[{number}/{len(todo)}] {run.name}"
        print(f"{at}: begun, see {workdir / LOG}", flush=True)
        began = time.monotonic()
        code, stopped = _train(run, folder)
        seconds.append(time.monotonic() - began)
        if code == 0:
            _mark(run, folder)
            finished.append(run.name)
        if stopped:
            print(f"{at}: stopped; the same command goes on", flush=True)
            return Outcome(finished, skipped, failed, True)
        if code:
            failed.append(run.name)
        word = "finished" if code == 0 else f"FAILED ({code}): {_reason(workdir)}"
        left = sum(seconds) / len(seconds) * (len(todo) - number)
        print(f"{at}: {word}; {_minutes(left)} left for the rest", flush=True)
    return Outcome(finished, skipped, failed, False)


def _train(run: Run, folder: Path) -> tuple[int, bool]:
    """Exit code of the run, and whether we were asked to stop meanwhile."""
    workdir = folder / run.name
    workdir.mkdir(parents=True, exist_ok=True)
    words = command(run, folder, sys.executable)
    with (workdir / LOG).open("ab") as log, _stop_requests() as asked:
        child = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        told = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2), bool(asked)
            if asked and not told:
                child.terminate()
                told = True


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Signals received so far."""
    seen: list[int] = []
    before = {s: signal.signal(s, lambda n, _: seen.append(n)) for s in _SIGNALS}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_finished(run: Run, folder: Path) -> bool:
    try:
        mark = json.loads((folder / run.name / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return mark == {"arguments": run.arguments}


def _mark(run: Run, folder: Path) -> None:
    path = folder / run.name / MARK
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"arguments": run.arguments}) + "\n", "utf-8")
    os.replace(partial, path)


def _reason(workdir: Path) -> str:
    """The last error that a run told of; without one, the last thing it said."""
    text = (workdir / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or ["it said nothing"])[-1][:200]


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds else "nothing"
