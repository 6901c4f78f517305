"""The one loop, for every stage. It knows no dataset, no network and no config file."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from clu.metrics import Average
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.training.checkpoint import Checkpoints
from tavr_jax.training.profile import Trace, memory_told
from tavr_jax.training.report import Media, Report
from tavr_jax.training.state import Step, TrainState, carried, sampling_params
from tavr_jax.types import Metrics, PyTree

# (state, global batch) -> (state, metrics); the state is donated
Update = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Section `train`; meanings and values are in configs/base.py."""

    steps: int
    log_every: int
    sample_every: int
    evaluate_every: int
    evaluate_batches: int
    checkpoint_every: int
    keep: int
    keep_every: int
    max_skipped: int
    profile_from: int
    profile_steps: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name in _MAY_BE_ZERO else 1
            if value < least:
                raise InputError(f"train.{name}: {value}: give at least {least}")


_MAY_BE_ZERO = ("sample_every", "evaluate_every", "keep_every", "profile_from")


@runtime_checkable
class Watch(Protocol):
    """Looks at every step and may end the run, as rl/guard.py does."""

    def see(self, step: int, metrics: dict[str, float]) -> str | None:
        """Metrics of one step -> the reason to stop, if there is one. Steps whose
        update was skipped are not shown."""

    def get_state(self) -> dict:
        """What a resumed run needs to decide the same; JSON."""

    def set_state(self, state: dict) -> None:
        """Be where `get_state` was called."""


def program(seed: int, mesh: Mesh, shardings: TrainState) -> Callable:
    """The jitted function (`state.carried` step, state, batch) -> (state, metrics).

    The key of a step is fold_in(key(seed), state.step): nothing random is stored. The
    state is donated; frozen weights, leaves of the step, stay where they are.
    """

    def keyed(frozen, state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        return frozen(state, batch, key)

    return jax.jit(
        keyed,
        donate_argnums=1,
        in_shardings=(None, shardings, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def compiled(step: Step, seed: int, mesh: Mesh, shardings: TrainState) -> Update:
    """`program` of a step, run on the mesh."""
    frozen, jitted = carried(step), program(seed, mesh, shardings)

    def update(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return jitted(frozen, state, batch)

    return update


def run(
    config: LoopConfig,
    *,
    create: Callable[[], TrainState],
    abstract: TrainState,
    update: Update,
    batches: Iterator[Any],
    place: Callable[[PyTree], PyTree],
    checkpoints: Checkpoints,
    report: Report,
    on_sample: Callable[[PyTree, int], dict[str, Media]] | None,
    on_evaluate: Callable[[PyTree, int], dict[str, float]] | None,
    watch: Watch | None,
) -> TrainState:
    """Train from where the workdir stands to `config.steps`.

    `create` makes the state to start from, `abstract` is its shapes with shardings;
    `place` turns a host's batch into a global one; `on_sample(params, step)` makes
    pictures, video and sound, `on_evaluate(params, step)` numbers of held-out pairs.
    A run that is asked to stop (SIGTERM, Ctrl-C), or stopped by `watch`, writes a
    checkpoint and returns a state with fewer steps; what `watch` stopped goes on only
    without one. Scores that a killed run still owed of the step it saved are made up
    for. InputError when updates stay non-finite, the disk is full or the memory of a
    device is; then profile.py.
    """
    # Where to start, in this order: (1) the newest complete checkpoint of the workdir,
    # (2) what `create` makes: weights of init_from, or seeded ones.
    notes = checkpoints.notes()
    state = checkpoints.restore(abstract, batches) if notes else create()
    done = int(state.step)
    report.start(done, state.params)
    window = _Window(config.max_skipped, report, watch)
    stopped = window.restore(notes) if notes else None
    end = done if stopped else config.steps
    trace = Trace(config.profile_from, config.profile_steps, report)
    with (
        memory_told(report.place),
        _stop_requests() as stop_asked,
        contextlib.closing(report),
        contextlib.closing(trace),
        contextlib.closing(checkpoints),
    ):
        due = done == end or _due(done, config.evaluate_every)
        if notes and on_evaluate and due and not report.has_held_out(done):
            since = time.monotonic()
            report.held_out(done, on_evaluate(sampling_params(state), done))
            report.pause(since)
        for step in range(done + 1, end + 1):
            with trace.step(step):
                state, metrics = update(state, place(next(batches)))
            trace.done(step, metrics)
            stopped = window.add(step, metrics)
            if step == done + 1:
                jax.block_until_ready(metrics)
                report.first_step(step)
            final = step == end or stopped is not None
            # Asked once a step: what is decided here is also what is saved below.
            last = stop_asked(step) or final

            if step % config.log_every == 0 or final:
                report.scalars(step, window.means())
            saves = last or _due(step, config.checkpoint_every, config.keep_every)
            samples = on_sample and (final or _due(step, config.sample_every))
            scores = on_evaluate and (final or _due(step, config.evaluate_every))
            if saves or samples or scores:
                jax.block_until_ready(metrics)  # the step in flight is no pause
            since = time.monotonic()
            # Before anything that takes long or may break: a stopped process has little
            # time left, and a broken evaluation should cost no steps.
            if saves:
                window.check()
                report.publish()
                checkpoints.save(state, batches, window.notes(stopped))
            if samples:
                report.media(step, on_sample(sampling_params(state), step))
            if scores:
                report.held_out(step, on_evaluate(sampling_params(state), step))
            report.pause(since)
            if last:
                break
    report.say(_ending(int(state.step), config.steps, stopped))
    return state


def _ending(done: int, steps: int, stopped: str | None) -> str:
    if stopped:
        return (
            f"stopped and saved at step {done} by its guard, and the same command goes "
            f"no further: {stopped}"
        )
    if done < steps:
        return f"stopped and saved at step {done}; the same command goes on"
    return f"finished {done} steps"


class _Window:
    """Metrics since the last log line.

    Checks each step's outcome one step late, so that the device never waits for it. A
    watch has to see a step before the next: else where it stops would depend on where
    checkpoints lie. Only stage 3 has one, and its steps are long.
    """

    def __init__(self, max_skipped: int, report: Report, watch: Watch | None):
        self._max_skipped, self._report = max_skipped, report
        self._watch = watch
        self._scalars: list[Metrics] = []
        self._unchecked: list[tuple[int, Metrics]] = []
        self._skipped = 0  # in a row

    def notes(self, stopped: str | None) -> dict[str, Any]:
        """What goes into a checkpoint; `stopped`: why the watch ends the run there."""
        rows = jax.device_get(self._scalars)
        return {
            "rows": [{name: float(v) for name, v in row.items()} for row in rows],
            "watch": None if self._watch is None else self._watch.get_state(),
            "skipped": self._skipped,
            "stopped": stopped,
        }

    def restore(self, notes: dict[str, Any]) -> str | None:
        """Stand where `notes` was called; why a watch that is still there ended the
        run there."""
        self._scalars, self._skipped = notes["rows"], notes["skipped"]
        if self._watch is None:
            if notes["stopped"]:
                self._report.say(
                    f"goes on without the guard that stopped it ({notes['stopped']})"
                )
            return None
        if notes["watch"] is not None:
            self._watch.set_state(notes["watch"])
        return notes["stopped"]

    def add(self, step: int, metrics: Metrics) -> str | None:
        """Take in a step; the watch's reason to stop, if there is one."""
        self.check()
        self._unchecked.append((step, metrics))
        self._scalars.append({n: v for n, v in metrics.items() if v.ndim == 0})
        if self._watch is None or metrics["skipped"]:
            return None
        seen = jax.device_get(self._scalars[-1])
        return self._watch.see(step, {name: float(v) for name, v in seen.items()})

    def check(self) -> None:
        """Report every step that was skipped; give up when they all are."""
        for step, metrics in self._unchecked:
            if not metrics["skipped"]:
                self._skipped = 0
                continue
            self._skipped += 1
            self._report.say(
                f"step {step}: loss or gradient is not finite, update skipped"
                + _clips(metrics)
            )
        self._unchecked.clear()
        if self._skipped >= self._max_skipped:
            raise InputError(
                f"optimizer: {self._skipped} updates in a row were not finite; lower "
                "optimizer.learning_rate or look at the clips named above"
            )

    def means(self) -> dict[str, float]:
        """Means over the window's finite values; empties the window."""
        rows = jax.device_get(self._scalars)
        self._scalars.clear()
        return {name: _mean([row[name] for row in rows]) for name in rows[0]}


def _mean(values: list) -> float:
    """nan where none is finite."""
    known = np.isfinite(values)
    return float(Average.from_model_output(np.array(values), mask=known).compute())


def _clips(metrics: Metrics) -> str:
    """Which clips broke it: those with a bad loss, else all (a bad gradient)."""
    if "clip" not in metrics:
        return ""
    clips, loss = np.asarray(metrics["clip"]), np.asarray(metrics["clip_loss"])
    bad = clips[~np.isfinite(loss)]
    return f"; clips {', '.join(map(str, bad if bad.size else clips))}"


def _due(step: int, *intervals: int) -> bool:
    return any(every > 0 and step % every == 0 for every in intervals)


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """A function of the step: has this run been asked to stop?

    One process listens to SIGTERM and the first Ctrl-C (the second one kills). Many
    processes must stop at the same step, so there JAX's preemption service decides; it
    hears SIGTERM alone, which Ctrl-C is turned into.
    """
    if jax.process_count() > 1:
        with _interrupt_terminates():
            yield multihost_utils.reached_preemption_sync_point
        return
    seen: list[int] = []

    def note(number: int, _) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda step: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupt_terminates() -> Iterator[None]:
    """The first Ctrl-C is a SIGTERM to this process."""

    def terminate(number: int, _) -> None:
        signal.signal(number, before)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
