"""Work done in child processes that may die of it.

Media libraries crash on damaged files, loop, or eat the memory. So each job runs in a
child process; a child that dies, takes too long or runs out of memory costs its own job
and is replaced, and all others go on. Jobs are handed out one by one, so that a long
video keeps one child busy and no queue waiting behind it.

A child is a fresh Python that runs `child`: it reads pickled (function, arguments) from
its input and answers on its output. It imports nothing of the parent's main module. It
ends with its parent, whose end closes its input.
"""

import contextlib
import os
import pickle
import queue
import resource
import selectors
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tavr_jax.errors import InputError

_ROOT = Path(__file__).parents[2]
_LENGTH = struct.Struct("<Q")


class Failure(NamedTuple):
    """A job that was not done, and the job alone is to blame."""

    reason: str  # crashed | took too long | failed
    detail: str


class Limits(NamedTuple):
    """What one job may take."""

    seconds: float
    memory: float  # GiB


def cores() -> int:
    """How many this process may use; where the system does not say, all there are."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def each(
    function: Callable[..., Any], jobs: Iterable[tuple], workers: int, limits: Limits
) -> Iterator[tuple[tuple, Any]]:
    """(job, function(*job) or Failure) of every job, in the order they finish.

    `function` is importable by name. InputError and OSError of a job end it all.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    count = 0
    for job in jobs:
        waiting.put(job)
        count += 1
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=_serve, args=(function, waiting, done, limits, stop), daemon=True
        )
        for _ in range(min(workers, count))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            job, result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield job, result
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _serve(function, waiting, done, limits: Limits, stop: threading.Event) -> None:
    """One child after the other, as long as there are jobs."""
    child = None
    try:
        while not stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            task = (function, job)
            if child and not child.take(task):  # it died between jobs: nobody's fault
                child.end()
                child = None
            if not child:
                child = _Child(limits.memory)
                child.take(task)
            result = child.answer(limits.seconds, stop)
            if isinstance(result, Failure) and result.reason != "failed":
                child.end()
                child = None
            done.put((job, result))
    except BaseException as error:
        done.put((None, error))
    finally:
        if child:
            child.end()


class _Child:
    """The parent's side of one child process."""

    def __init__(self, memory: float):
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import child; child({memory!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        os.set_blocking(self._process.stdout.fileno(), False)

    def take(self, task: tuple) -> bool:
        """Hand a task over; whether the child was there to take it."""
        try:
            _send(self._process.stdin, task)
        except BrokenPipeError:
            return False
        return True

    def answer(self, seconds: float, stop: threading.Event) -> Any:
        """What the task came to, or the Failure."""
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            waited = 0.0
            while True:
                if not selector.select(timeout=0.5):
                    waited += 0.5
                    if stop.is_set():
                        return Failure("crashed", "stopped")
                    if waited >= seconds:
                        return Failure("took too long", f"more than {seconds:g} s")
                    continue
                part = self._process.stdout.read(1 << 20)
                if not part:
                    return self._death()
                answer += part
                body = len(answer) - _LENGTH.size
                if body >= 0 and body == _LENGTH.unpack_from(answer)[0]:
                    return pickle.loads(answer[_LENGTH.size :])  # our own child's

    def _death(self) -> Failure:
        code = self._process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Failure("crashed", f"its process ended with {how}")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # closing sends what was left
            self._process.stdin.close()
        self._process.stdout.close()


def _send(pipe, message: Any) -> None:
    data = pickle.dumps(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


# The child's side


def child(memory: float) -> None:
    """Serve the parent until it is gone, with at most so many GiB of memory."""
    import cv2

    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    tasks: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, tasks), daemon=True).start()
    while True:
        function, job = pickle.loads(tasks.get())
        _send(answers, _result(function, job))


def _listen(source, tasks: queue.SimpleQueue) -> None:
    """Hand tasks on; when the parent is gone, so is the child, in the midst of work."""
    while len(head := source.read(_LENGTH.size)) == _LENGTH.size:
        tasks.put(source.read(_LENGTH.unpack(head)[0]))
    os._exit(0)


def _result(function, job: tuple) -> Any:
    try:
        return function(*job)
    except MemoryError:
        return Failure("crashed", "out of memory: prepare.worker_memory")
    except (InputError, OSError) as error:
        return error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        text = " ".join(str(error).split())[:200]
        return Failure("failed", f"{type(error).__name__}: {text} ({place})")
