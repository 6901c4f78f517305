"""The one loop, for every stage. It knows no dataset, no network and no config file."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.training.checkpoint import Checkpoints
from tavr_jax.training.report import Media, Report
from tavr_jax.training.state import Step, TrainState, sampling_params
from tavr_jax.types import Metrics, PyTree

# (state, global batch) -> (state, metrics); the state is donated
Update = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Section `train`; meanings and values are in configs/base.py."""

    steps: int
    log_every: int
    sample_every: int
    checkpoint_every: int
    keep: int
    max_skipped: int


def compiled(step: Step, seed: int, mesh: Mesh, shardings: TrainState) -> Update:
    """The step under jit on the mesh, its state donated.

    The key of a step is fold_in(key(seed), state.step): nothing random is stored.
    Frozen weights of `step` (leaves of a Partial) stay where they are.
    """
    frozen = jax.tree_util.Partial(step)

    def keyed(frozen, state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        return frozen(state, batch, key)

    jitted = jax.jit(
        keyed,
        donate_argnums=1,
        in_shardings=(None, shardings, None),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )

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
) -> TrainState:
    """Train from where the workdir stands to `config.steps`.

    `create` makes the state to start from, `abstract` is its shapes with shardings;
    `place` turns a host's batch into a global one; `on_sample(params, step)` makes
    pictures, video and sound. A stopped run (SIGTERM, Ctrl-C) writes a checkpoint and
    returns a state with fewer steps. InputError when updates stay non-finite.
    """
    # Where to start, in this order: (1) the newest complete checkpoint of the workdir,
    # (2) what `create` makes: weights of init_from, or seeded ones.
    found = checkpoints.latest()
    state = create() if found is None else checkpoints.restore(abstract, batches)
    report.start(int(state.step), state.params)
    window = _Window(config.max_skipped, report)
    first = int(state.step) + 1
    with _stop_requests() as stop_asked, contextlib.closing(report):
        for step in range(first, config.steps + 1):
            state, metrics = update(state, place(next(batches)))
            window.add(step, metrics)
            if step == first:
                jax.block_until_ready(metrics)
                report.first_step(step)
            # Asked once a step: what is decided here is also what is saved below.
            last = step == config.steps or stop_asked(step)

            if step % config.log_every == 0 or last:
                report.scalars(step, window.means())
            since = time.monotonic()
            if on_sample and (_due(step, config.sample_every) or step == config.steps):
                report.media(step, on_sample(sampling_params(state), step))
            if step % config.checkpoint_every == 0 or last:
                window.check()
                checkpoints.save(state, batches)
            report.pause(since)
            if last:
                break
    checkpoints.wait()
    done = int(state.step)
    if done < config.steps:
        report.say(f"stopped and saved at step {done}; the same command goes on")
    else:
        report.say(f"finished {done} steps")
    return state


class _Window:
    """Metrics since the last log line.

    Checks each step's outcome one step late, so that the device never waits for it.
    """

    def __init__(self, max_skipped: int, report: Report):
        self._max_skipped, self._report = max_skipped, report
        self._scalars: list[Metrics] = []
        self._unchecked: list[tuple[int, Metrics]] = []
        self._skipped = 0  # in a row

    def add(self, step: int, metrics: Metrics) -> None:
        self.check()
        self._unchecked.append((step, metrics))
        self._scalars.append({n: v for n, v in metrics.items() if v.ndim == 0})

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
    finite = np.array(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else float("nan")


def _clips(metrics: Metrics) -> str:
    """Which clips broke it: those with a bad loss, else all (a bad gradient)."""
    if "clip" not in metrics:
        return ""
    clips, loss = np.asarray(metrics["clip"]), np.asarray(metrics["clip_loss"])
    bad = clips[~np.isfinite(loss)]
    return f"; clips {', '.join(map(str, bad if bad.size else clips))}"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """A function of the step: has this run been asked to stop?

    One process listens to SIGTERM and the first Ctrl-C (the second one kills). Many
    processes must stop at the same step, so there JAX's preemption service decides.
    """
    if jax.process_count() > 1:
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
