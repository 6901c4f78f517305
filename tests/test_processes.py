"""Two processes of one run: they train, are stopped, and go on as two or as one.

The toy runs through the real loop, checkpoints and coordination. Two processes of one
device and one process of two devices run the same partitioned program: a sum over two
devices has one order, so all comparisons are bit for bit.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx

sys.path.append(str(Path(__file__).parent / "processes"))
import toy

from configs import same_scene
from launch import build, distributed
from tavr_jax.errors import InputError, PassingError
from tavr_jax.training import checkpoint

ROOT = Path(__file__).parents[1]
STEPS = 120


class Pod:
    """`launch/local_pod.sh` running a command; what it prints is collected."""

    def __init__(
        self, folder: Path, processes: int, *command: object, devices: int = 1
    ):
        self.log = folder / f"pod_{time.monotonic_ns()}.txt"
        line = ["bash", "launch/local_pod.sh", processes, "--devices", devices, "--"]
        line = [str(x) for x in [*line, sys.executable, *command]]
        with self.log.open("w") as out:
            # Bash cannot listen to a signal that was ignored when it began, as Ctrl-C
            # is in the background job of a shell.
            self.process = subprocess.Popen(
                line,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def pid(self, index: int) -> int:
        return int(re.search(rf"process {index} of \d+: pid (\d+)", self.said)[1])

    def wait(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for index in range(self.said.count(": pid ")):
                os.kill(self.pid(index), signal.SIGKILL)
            pytest.fail(f"still running after {seconds} s:\n{self.said[-3000:]}")


def until(condition, seconds: float, pod: Pod) -> None:
    """Wait for `condition` while the pod runs."""
    end = time.monotonic() + seconds
    while not condition():
        ended = pod.process.poll() is not None or time.monotonic() > end
        if ended and not condition():
            pod.wait(0)
            pytest.fail(f"did not happen:\n{pod.said[-3000:]}")
        time.sleep(0.05)


def lines(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    read = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in read if line.endswith("\n")]


def saved(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Workdir of two processes of which the second got SIGTERM."""
    folder = tmp_path_factory.mktemp("pod")
    workdir = folder / "run"
    pod = Pod(folder, 2, "tests/processes/toy.py", workdir, STEPS, 0.1)
    until(lambda: len(lines(workdir)) >= 3, 120, pod)
    os.kill(pod.pid(1), signal.SIGTERM)
    asked, step = time.monotonic(), lines(workdir)[-1]["step"]
    code = pod.wait(60)
    return workdir, pod.said, code, time.monotonic() - asked, step


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The same run by one process of two devices, never stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    return jax.device_get(toy.train(workdir, STEPS)), workdir


def test_both_stop_and_save_at_one_step(stopped):
    workdir, said, code, seconds, asked_at = stopped
    ends = re.findall(r"\[(\d)\] ended at step (\d+)", said)
    assert code == 0 and sorted(who for who, _ in ends) == ["0", "1"], said
    step = {int(step) for _, step in ends}
    assert len(step) == 1 and saved(workdir) == sorted(step)
    assert asked_at < min(step) < STEPS and seconds < 20, (seconds, said)


def test_only_process_0_writes_lines_and_config(stopped):
    workdir, said, *_ = stopped
    steps = [line["step"] for line in lines(workdir)]
    assert steps == list(range(1, saved(workdir)[0] + 1))
    assert "[0] same_scene: step 1/" in said and "[1] same_scene" not in said
    json.loads((workdir / "config.json").read_text())
    events = list((workdir / "tensorboard").iterdir())
    assert len(events) == 1 and not list(workdir.glob(".config.json*"))


@pytest.mark.parametrize("processes", [2, 1])
def test_resumed_by_as_many_or_fewer_it_is_the_straight_run(
    stopped, straight, tmp_path, processes
):
    expected, path = straight
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    began = saved(workdir)[-1]
    if processes == 2:
        pod = Pod(tmp_path, 2, "tests/processes/toy.py", workdir, STEPS, 0)
        assert pod.wait(120) == 0 and f"resumed at step {began}" in pod.said
        # finished: this only reads what the two have saved
    state = jax.device_get(toy.train(workdir, STEPS))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    for run in (workdir, path):
        assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in lines(run)] for run in (workdir, path)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_real_stage_is_stopped_and_resumed_by_two_processes(tmp_path):
    """launch.train on drawn people: the whole command, encoders and Grain included.

    About four minutes on two cores; pytest -m slow tests/test_processes.py
    """
    people, dataset = tmp_path / "people", tmp_path / "dataset"
    for command in (
        ["launch.render_people", "--output", people, "--people", 5, "--seconds", 1.5,
         "--size", 128],
        ["launch.prepare_data", "--source", people, "--output", dataset,
         "--config", "configs/same_scene.py:tiny"],
    ):  # fmt: skip
        line = [sys.executable, "-m", *map(str, command)]
        subprocess.run(line, cwd=ROOT, check=True, capture_output=True)

    def train(workdir: Path, processes: int, devices: int) -> Pod:
        fields = {"train.steps": 60, "train.checkpoint_every": 100,
                  "train.evaluate_every": 0, "data.path": dataset}  # fmt: skip
        line = ["-m", "launch.train", "--config", "configs/same_scene.py:tiny"]
        line += [
            "--workdir",
            workdir,
            *(f"--config.{n}={v}" for n, v in fields.items()),
        ]
        return Pod(tmp_path, processes, *line, devices=devices)

    straight, run = tmp_path / "straight", tmp_path / "run"
    assert train(straight, 1, 2).wait(900) == 0
    pod = train(run, 2, 1)
    until(lambda: len(lines(run)) >= 2, 900, pod)
    os.kill(pod.pid(1), signal.SIGTERM)
    pod.wait(60)
    (step,) = saved(run)
    assert 2 < step < 60
    pod = train(run, 2, 1)
    assert pod.wait(900) == 0 and f"resumed at step {step}" in pod.said, pod.said
    losses = [[line["loss"] for line in lines(x)] for x in (run, straight)]
    assert len(losses[0]) == 60
    np.testing.assert_array_equal(*losses)
    abstract = build.abstract_transformer(same_scene.get_config("tiny"))
    shapes = nnx.state(abstract, nnx.Param)
    weights = [checkpoint.load_params(x, shapes) for x in (run, straight)]
    jax.tree.map(np.testing.assert_array_equal, *weights)


def test_a_failing_process_ends_the_others_with_its_code(tmp_path):
    pod = Pod(tmp_path, 2, "tests/processes/toy.py", tmp_path / "run", 5, "broken")
    assert pod.wait(60) == 2
    assert "[1] error: pause: 'broken': what a bad host says" in pod.said


LISTENS = """
import os, signal, time
index = int(os.environ["TAVR_PROCESS"])
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), exit(7 * index)))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_pod_is_one_to_every_process(tmp_path, number):
    pod = Pod(tmp_path, 2, "-c", LISTENS)
    until(lambda: pod.said.count("ready") == 2, 30, pod)
    pod.process.send_signal(number)
    assert pod.wait(20) == 7
    assert "[0] asked" in pod.said and "[1] asked" in pod.said


@pytest.mark.parametrize(
    "arguments",
    ["", "0 -- true", "2 true", "2 --devices", "2 --devices x -- true", "2 --"],
)
def test_a_wrong_pod_is_one_line(arguments):
    line = ["bash", "launch/local_pod.sh", *arguments.split()]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch("error: [^\n]*usage: bash [^\n]*\n", done.stderr)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"processes": "2"}, "--coordinator: missing; many processes need"),
        ({"coordinator": "a:1", "process": "0"}, "--processes: missing"),
        ({"coordinator": "host", "processes": "2", "process": "0"}, "HOST:PORT"),
        ({"coordinator": "a:0", "processes": "2", "process": "0"}, "HOST:PORT"),
        ({"coordinator": "a:1", "processes": "two", "process": "0"}, "from 1 on"),
        ({"coordinator": "a:1", "processes": "2", "process": "2"}, "0 to 1"),
    ],
)
@pytest.mark.parametrize("given_by", ["flag", "variable"])
def test_incomplete_or_impossible_values_are_one_line(
    monkeypatch, values, said, given_by
):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    for name, value in values.items():
        if given_by == "variable":
            monkeypatch.setenv(f"TAVR_{name.upper()}", value)
        else:
            monkeypatch.setattr(flags.FLAGS[name], "value", value)
    with pytest.raises(InputError, match=f"^[^\n]*{re.escape(said)}[^\n]*$"):
        distributed.initialize()


SLURM = {"SLURM_STEP_NODELIST": "node[1-4]", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),  # a shell inside an allocation
        ({"SLURM_NTASKS": "4"}, False),  # no step: outside of srun
        (SLURM | {"TAVR_PROCESSES": "1"}, False),  # alone, wherever it runs
    ],
)
def test_a_pod_is_joined_where_the_environment_has_one(monkeypatch, variables, joins):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    for name in (*SLURM, "TAVR_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **k: called.append(k))
    distributed.initialize()
    assert called == [{"initialization_timeout": distributed.patience()}] * joins
    refused = pytest.raises(InputError, match="x: runs in one process")
    with refused if joins else contextlib.nullcontext():
        distributed.alone("x")


def test_an_address_that_cannot_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0.5)
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{address}: [^\n]*another port$"):
            distributed._meet(address, 2, 0)
    with pytest.raises(PassingError, match=f"{address}: no answer [^\n]*$"):
        distributed._meet(address, 2, 1)


JOINS = """
from launch import cli, distributed
def main():
    with distributed.joined():
        print("joined")
cli.run(main, "")
"""


def started(code, *arguments, **variables):
    command = [sys.executable, "-c", code, *arguments]
    place = os.environ | variables
    return subprocess.run(
        command, cwd=ROOT, env=place, capture_output=True, text=True, timeout=60
    )


MULTIPLIES = """
import jax, jax.numpy as jnp
from launch import cli
def main():
    print(jax.jit(jnp.matmul).lower(*[jnp.ones((2, 2))] * 2).as_text())
cli.run(main, "")
"""


@pytest.mark.parametrize(
    ("asked", "told"), [({}, "HIGHEST"), ({"PRECISION": "bfloat16"}, "DEFAULT")]
)
def test_what_a_command_multiplies_in_float32_is_float32(asked, told):
    """On TPUs and GPUs too, which round by themselves; a user may say otherwise."""
    given = {f"JAX_DEFAULT_MATMUL_{name}": value for name, value in asked.items()}
    done = started(MULTIPLIES, **given)
    assert f"precision = [{told}, {told}]" in done.stdout, done.stderr


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="has such devices")
@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_a_platform_that_is_asked_for_is_there_or_the_run_ends(platform):
    """JAX passes over CUDA where it sees no GPU; what launch.pod writes asks for it."""
    done = started(JOINS, JAX_PLATFORMS=f"{platform},cpu", TAVR_PROCESSES="1")
    if platform == "cpu":
        assert (done.returncode, done.stdout) == (0, "joined\n"), done.stderr
        return
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: JAX_PLATFORMS={platform},cpu: JAX found" in done.stderr
    assert f"jax[{platform}" in done.stderr.splitlines()[-1]


# A worker of a slice, as libtpu and GKE describe it; it waits for no one's name.
WORKER = """
import sys
from jax._src.clusters import cloud_tpu_cluster
from launch import cli, distributed
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
distributed.KUBERNETES_PATIENCE = int(sys.argv.pop())
def main():
    with distributed.joined():
        raise AssertionError("nobody was there")
cli.run(main, "")
"""


@pytest.mark.parametrize(
    ("worker", "seconds", "code", "said"),
    [
        # its peers may come: a JobSet starts it again
        ("1", "0", 1, "error: --coordinator: the other processes were not met in 0 s "),
        # what is wrong stays wrong: a JobSet fails (pod_jobset.py)
        ("one", "60", 2, "error: --coordinator: not found in the environment ("),
    ],
)
def test_a_coordinator_that_is_late_is_no_bad_input(worker, seconds, code, said):
    place = {"JAX_PLATFORMS": "tpu,cpu", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    place |= {"TPU_WORKER_HOSTNAMES": "a.invalid,b.invalid", "TPU_WORKER_ID": worker}
    place |= {"MEGASCALE_NUM_SLICES": "1", "MEGASCALE_SLICE_ID": "0"}
    place |= {"MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
    done = started(WORKER, seconds, **place)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
