"""What is shown while a video is sampled: chunks, and how long the one at work takes.

All steps of a chunk are one program, and nothing comes out of it before its end: on a
large model that is minutes. A clock runs meanwhile, beside what the last chunk took.
"""

import sys
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from tqdm import tqdm

Piece = TypeVar("Piece")
_EVERY = 2.0  # seconds between two looks at the clock on a terminal, and
_EVERY_IN_LOGS = 30.0


class Progress:
    """A bar of chunks on stderr whose clock runs by itself.

    `kept` of the `total` chunks are there already. `took`: seconds of the last chunk,
    here and of a video before; None: there was none.
    """

    def __init__(self, total: int, kept: int, took: float | None):
        self.took, self._kept = took, kept
        self._bar = tqdm(total=total, initial=kept, desc="sampling", unit="chunk")
        self._doing, self._since = "", time.monotonic()
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self._clock.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._clock.join()
        self._bar.set_postfix_str("", refresh=False)
        self._bar.close()

    def watched(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """`pieces`, one a chunk: sampled when they are asked for, decoded after."""
        number = 0
        while True:
            number += 1
            self._begin(f"chunk {number}")
            try:
                piece = next(pieces)
            except StopIteration:
                return
            seconds = time.monotonic() - self._since
            self._begin("decoding")
            if number > self._kept:
                self.took = seconds
                self._bar.update()
            yield piece

    def text(self) -> str:
        """What is being done and for how long, as minutes:seconds."""
        told = f"{self._doing} {_minutes(time.monotonic() - self._since)}"
        if self.took is None or self._doing == "decoding":
            return told
        return f"{told}, the last took {_minutes(self.took)}"

    def _begin(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()
        self._bar.set_postfix_str(self.text(), refresh=False)

    def _tick(self) -> None:
        every = _EVERY if sys.stderr.isatty() else _EVERY_IN_LOGS
        while not self._ended.wait(every):
            self._bar.set_postfix_str(self.text())


def _minutes(seconds: float) -> str:
    return "{}:{:02}".format(*divmod(round(seconds), 60))
