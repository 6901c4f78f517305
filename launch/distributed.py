"""Many processes, one run: who they are and where they meet.

    TPU pod (queued resources, GKE)   found by JAX in the machine's metadata
    SLURM                             srun COMMAND: found by JAX in its variables
    anything else                     --coordinator HOST:PORT --processes N --process I,
                                      or TAVR_COORDINATOR, TAVR_PROCESSES, TAVR_PROCESS

A flag wins over its variable. `--processes=1` is a process alone, wherever it runs.
`launch/local_pod.sh` starts N such processes on one machine.
"""

import atexit
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from tavr_jax.errors import InputError, PassingError

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0; on a TPU pod and in SLURM found."
)
PROCESSES = flags.DEFINE_string("processes", None, "Processes of this run; likewise.")
PROCESS = flags.DEFINE_string("process", None, "Which of them this is, from 0.")

PATIENCE = 300  # seconds that processes wait for each other to start
# The same in a pod of Kubernetes (ours): nodes that replace preempted ones may take
# long to come, and where one pod fails nobody waits, as the whole set is restarted.
KUBERNETES_PATIENCE = 3600

_PACKAGES = {"cuda": "jax[cuda12]", "tpu": "jax[tpu]"}  # of a platform of JAX
_VARIABLES = {
    "coordinator": "TAVR_COORDINATOR",
    "processes": "TAVR_PROCESSES",
    "process": "TAVR_PROCESS",
}


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """`initialize`, and when this process fails, leave at once.

    A process that ends waits five minutes for the others to end too, but they may be
    waiting for it inside a collective. A stop is no failure: SIGTERM or the first
    Ctrl-C to one process of a training loop is a stop of all, which have saved and
    leave together. Before and after the loop Ctrl-C ends only the process it went to.
    """
    initialize()
    _check_devices()
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if jax.distributed.is_initialized():
            # At exit: whoever called may still say what happened.
            atexit.register(_leave, 2 if isinstance(error, InputError) else 1)
        raise


def initialize() -> None:
    """Join the other processes of this run, where there are any.

    Call it before anything asks JAX for a device: afterwards jax.devices() are those of
    all processes. InputError: values that are incomplete or impossible. PassingError:
    nobody is at the address, for now.
    """
    given = {"coordinator": COORDINATOR, "processes": PROCESSES, "process": PROCESS}
    values = {n: f.value or os.environ.get(_VARIABLES[n]) for n, f in given.items()}
    if values["processes"] == "1":
        return
    if any(values.values()):
        address, count, index = _checked(values)
        _meet(address, count, index)
        jax.distributed.initialize(
            address, count, index, initialization_timeout=patience()
        )
    elif _in_pod():
        _initialize_pod()


def patience() -> int:
    """Seconds that processes wait for each other to start."""
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ
    return KUBERNETES_PATIENCE if in_kubernetes else PATIENCE


def alone(command: str) -> None:
    """InputError where this is one of many processes: `command` runs in one, on the
    devices that it has."""
    told = PROCESSES.value or os.environ.get(_VARIABLES["processes"])
    many = told != "1" if told else _in_slurm()
    # On a TPU pod JAX finds the other hosts itself when it is asked for the chips.
    if many or jax.process_count() > 1:
        raise InputError(
            f"{command}: runs in one process, and this is one of many; start it once, "
            "on one machine and its own devices (SLURM: srun --ntasks=1)"
        )


def agree(step: int, data: int) -> None:
    """InputError unless all processes see the same checkpoint and the same data."""
    found = multihost_utils.process_allgather(np.array([step, data], np.int32))
    if (found.reshape(-1, 2) != [step, data]).any():
        raise InputError(
            "--workdir, --config.data.path: hosts see different checkpoints or "
            "datasets there; give folders that every host sees"
        )


def _checked(values: dict[str, str | None]) -> tuple[str, int, int]:
    """Coordinator, number of processes, which of them this is."""
    for name, value in values.items():
        if not value:
            raise InputError(
                f"--{name}: missing; many processes need --coordinator, --processes "
                f"and --process together (or {', '.join(_VARIABLES.values())})"
            )
    address, count, index = values.values()
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator: {address!r}: expected HOST:PORT of process 0")
    if not count.isdecimal() or int(count) < 1:
        raise InputError(f"--processes: {count!r}: expected a number from 1 on")
    if not index.isdecimal() or int(index) >= int(count):
        raise InputError(
            f"--process: {index!r}: expected 0 to {int(count) - 1}, one for each of "
            f"the {count} processes"
        )
    return address, int(count), int(index)


def _meet(address: str, count: int, index: int) -> None:
    """One line where JAX would abort the process: InputError for a port that is taken,
    PassingError where nobody is there."""
    host, _, port = address.rpartition(":")
    if index == 0:
        # JAX itself gives up with a stack trace; then this line tells what it was.
        print(f"process 0 waits for {count - 1} more at {address}", flush=True)
        try:
            with socket.create_server(("", int(port)), reuse_port=False):
                return
        except OSError as error:
            raise InputError(
                f"--coordinator: {address}: {error.strerror}; give another port"
            ) from error
    host, until = host.strip("[]"), time.monotonic() + patience()
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise PassingError(
                    f"--coordinator: {address}: no answer in {patience()} s "
                    f"({error}); start process 0 there, on a network all can reach"
                ) from error
            time.sleep(0.2)


def _in_pod() -> bool:
    """Does the environment know other processes of this run?"""
    if _in_slurm():
        return True
    # Set by launch.pod, or by JAX where it finds chips. One host alone is a pod of one.
    return (jax.config.jax_platforms or "").startswith("tpu")


def _in_slurm() -> bool:
    # A shell inside an allocation has SLURM's variables too, but only one task.
    tasks = os.environ.get("SLURM_NTASKS", "1")
    return "SLURM_STEP_NODELIST" in os.environ and tasks != "1"


def _initialize_pod() -> None:
    try:
        jax.distributed.initialize(initialization_timeout=patience())
    except ValueError as error:
        raise InputError(
            f"--coordinator: not found in the environment ({_line(error)}); give it "
            "with --processes and --process, or --processes=1 to run alone (and is "
            "libtpu here? pip install 'jax[tpu]')"
        ) from error
    except (RuntimeError, OSError) as error:  # no name, no metadata, no answer yet
        raise PassingError(
            f"--coordinator: the other processes were not met in {patience()} s "
            f"({_line(error)}); start this again when all machines are there"
        ) from error


def _check_devices() -> None:
    """PassingError where the platform that JAX_PLATFORMS puts first is not there: JAX
    passes over CUDA where it sees no GPU, and training would go on on a CPU."""
    asked = jax.config.jax_platforms or ""
    package = _PACKAGES.get(asked.partition(",")[0])
    if package is None:
        return
    try:
        wrong = "only a CPU" if jax.default_backend() == "cpu" else ""
    except RuntimeError as error:
        wrong = f"nothing ({_line(error)})"
    if wrong:
        raise PassingError(
            f"JAX_PLATFORMS={asked}: JAX found {wrong}; are devices and driver here, "
            f"and {package} in this Python?"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
