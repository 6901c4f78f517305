"""What a step costs: a trace on demand, and who held the memory when it ran out.

WORKDIR/profile/plugins/profile/<time>/   the steps of train.profile_from on, of the
                                          first process; read by XProf:
                                          xprof --logdir WORKDIR/profile
WORKDIR/profile/memory_<process>.prof     pprof, of a step that died for want of it;
                                          go tool pprof FILE
"""

import contextlib
import time
from collections.abc import Iterator

import jax

from tavr_jax.errors import InputError
from tavr_jax.storage import Place
from tavr_jax.training.report import Report
from tavr_jax.types import PyTree

STEP = "train"  # name of a step in a trace
_EXHAUSTED = "RESOURCE_EXHAUSTED"


class Trace:
    """A trace of steps `first` to `first + count - 1`; `first` 0: none."""

    def __init__(self, first: int, count: int, report: Report):
        self._first, self._last, self._report = first, first + count - 1, report
        self._folder, self._runs = report.workdir / "profile", False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the whole of a step, its input included."""
        wanted = 0 < self._first <= number <= self._last
        if wanted and not self._runs and jax.process_index() == 0:
            jax.profiler.start_trace(self._folder)
            self._runs = True
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            yield

    def done(self, number: int, results: PyTree) -> None:
        """End it after its last step, whose `results` may still be on their way."""
        if self._runs and number >= self._last:
            jax.block_until_ready(results)
            since = time.monotonic()
            self.close()
            self._report.pause(since)
            place = self._report.place / "profile"
            self._report.say(
                f"trace of steps to {number}: pip install xprof; xprof --logdir {place}"
            )

    def close(self) -> None:
        """End it, where a run ends before."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False


@contextlib.contextmanager
def memory_told(workdir: Place) -> Iterator[None]:
    """Out of memory is one line, and a profile of what was held."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        path = workdir / "profile" / f"memory_{jax.process_index()}.prof"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jax.profiler.device_memory_profile())
        line = " ".join(str(error).split())[:200]
        raise InputError(
            f"train: out of memory of the device ({line}); what was held is in {path}. "
            "Raise optimizer.accumulate, parallel.context or parallel.fsdp, or set "
            "model.remat=full; a smaller data.batch_size is a new run. What fits: "
            "launch.plan"
        ) from error
