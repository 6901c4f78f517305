"""One process of a run of the toy of test_training, through the real loop.

bash launch/local_pod.sh 2 -- python tests/processes/toy.py WORKDIR STEPS PAUSE

PAUSE is the seconds that a batch takes to come; STEPS is where the run ends.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grain
import jax

if __name__ == "__main__":  # as `python tests/processes/toy.py`: not a package
    sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]

from test_training import TOY, compiled_toy, make_batch, run_toy

from launch import cli, distributed
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding

ROWS = 8


class Paused(Iterator):
    """A grain iterator whose batches take a while."""

    def __init__(self, batches, pause: float):
        self._batches, self._pause = batches, pause
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self):
        time.sleep(self._pause)
        return next(self._batches)


def shared_batches():
    """This process's rows of every batch, cut as data_pipelines/loader.py cuts them."""
    mesh = compiled_toy(*TOY)[0]
    ours = sharding.host_rows(sharding.batch(mesh, ROWS), ROWS)
    source = grain.MapDataset.source(range(12)).seed(3).shuffle().repeat(None)

    def sample(place: int, _):
        batch, row = divmod(place, len(ours))
        seed = source[batch * ROWS + int(ours[row])]
        return jax.tree.map(lambda x: x[0], make_batch(1, seed=int(seed)))

    one = grain.MapDataset.range(1).repeat(None).map_with_index(sample)
    one = one.batch(len(ours), drop_remainder=True)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return iter(one.to_iter_dataset(reading))


def train(workdir: Path, steps: int, pause: float = 0.0):
    """The state of TrainState that the run ends with."""
    batches = Paused(shared_batches(), pause)
    return run_toy(workdir, steps, batches=batches, log_every=1)


def main() -> None:
    """Flags of launch/distributed.py in."""
    workdir, steps, pause = (cli.positional("arguments", i) for i in range(3))
    with distributed.joined():
        if pause == "broken" and jax.process_index() == 1:
            raise InputError("pause: 'broken': what a bad host says")
        state = train(Path(workdir), int(steps), float(pause.replace("broken", "0")))
        print(f"ended at step {int(state.step)}", flush=True)


if __name__ == "__main__":
    cli.run(main, __doc__, positional=3)
