"""The folder that XLA writes a program to. It goes when the process does.

Python handles a signal between two of its own steps, and a compilation is one step of
minutes. So a thread reads the signal's number from a pipe, and ends the process.
"""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Empty; removed at the end, or by a SIGTERM, which ends the process (code 143).

    For the main thread.
    """
    with tempfile.TemporaryDirectory(prefix="tavr_plan_") as name:
        receive, send = os.pipe()
        os.set_blocking(send, False)

        def wait() -> None:
            while number := os.read(receive, 1):
                if number[0] == signal.SIGTERM:
                    shutil.rmtree(name, ignore_errors=True)
                    os._exit(128 + signal.SIGTERM)

        handler = signal.signal(signal.SIGTERM, lambda *_: None)
        wakeup = signal.set_wakeup_fd(send)
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        try:
            yield Path(name)
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGTERM, handler)
            os.close(send)
            thread.join()
            os.close(receive)
