"""What launch.pod renders, run against stand-ins: no cluster and no TPU was at hand,
so this shows what would be asked of gcloud, docker, Kubernetes and SLURM, not that
they do it. The scripts never reach a real gcloud: stand-ins come first on PATH.
"""

import importlib.metadata
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from launch import pod_fields, pod_fit, pod_jobset, pod_queued, pod_slurm
from launch.pod_job import Job, name_of
from launch.pod_topology import CHIPS, Topology, parse, valid_shapes
from tavr_jax.errors import InputError

ROOT = Path(__file__).parents[1]
# everything that a shell, YAML or Kubernetes could take for its own
AWKWARD = {
    "text.negative": 'it\'s "bad": $HOME $(id) $$ `x` \\ # {a} - *b & ; | é 🙂 ',
    "data.path": "gs://bucket/a b:0.7,gs://bucket/c:0.3",
    "prepare.caption": "",
    "optimizer.learning_rate": 1e-05,
    "model.patch_size": (1, 2, 2),
    "sampler.round_bf16": False,
    "data.batch_size": 512,
}
TARGETS = {"queued": pod_queued, "jobset": pod_jobset, "slurm": pod_slurm}


def job(target: str, **changes) -> Job:
    slurm = target == "slurm"
    common = dict(
        target=target, name="run", config="configs/cross_scene.py:tavr_14b",
        overrides=AWKWARD, workdir="gs://bucket/run", slices=1, tier="", zone="",
        topology=parse("gpu:2x4" if slurm else "v6e:16x16"), queue="", restarts=7,
        image="" if slurm else "us-docker.pkg.dev/p/r/tavr:1",
    )  # fmt: skip
    return Job(**common | changes)


def test_every_shape_is_whole_hosts_and_keeps_its_name():
    for kind, chip in CHIPS.items():
        shapes = list(valid_shapes(chip))
        assert len(set(shapes)) == len(shapes)
        for shape in shapes:
            topology = Topology(kind, shape)
            assert parse(str(topology)) == topology
            assert topology.hosts * topology.chips_per_host == topology.chips
            assert topology.chips == math.prod(shape) <= chip.most
            assert topology.devices % topology.hosts == 0


def test_shapes_of_the_documentation():
    """Tables of Cloud TPU's pages on v5e, v6e and v5p: hosts of every shape listed."""
    flat = {"1x1": 1, "2x2": 1, "2x4": 1, "4x4": 4, "4x8": 8, "8x8": 16, "8x16": 32,
            "16x16": 64}  # fmt: skip
    solid = {"2x2x1": 1, "2x2x2": 2, "2x4x4": 8, "4x4x4": 16, "4x4x8": 32, "4x8x8": 64,
             "8x8x8": 128, "8x8x16": 256, "8x16x16": 512, "16x16x16": 1024,
             "16x16x24": 1536}  # fmt: skip
    for kind, table in {"v5e": flat, "v6e": flat, "v5p": solid}.items():
        listed = {dims: parse(f"{kind}:{dims}") for dims in table}
        assert {dims: topology.hosts for dims, topology in listed.items()} == table
        assert all(topology.compact() == topology for topology in listed.values())
    for kind in ("v5e", "v6e"):
        assert {"x".join(map(str, s)) for s in valid_shapes(CHIPS[kind])} == set(flat)
    assert (parse("tpu7x:4x4x4").devices, parse("gpu:4x8").hosts) == (128, 4)


def test_unknown_shapes_are_refused_with_the_nearest_that_exists():
    key = np.random.default_rng(0)
    for kind, chip in CHIPS.items():
        shapes = set(valid_shapes(chip))
        for _ in range(40):
            asked = tuple(map(int, key.integers(1, 19, chip.dims)))
            if asked in shapes:
                continue
            with pytest.raises(InputError) as refused:
                parse(f"{kind}:{'x'.join(map(str, asked))}")
            near = parse(re.search(r"nearest is (\S+),", str(refused.value))[1])
            ratio = {s: abs(math.log(math.prod(s) / math.prod(asked))) for s in shapes}
            assert ratio[near.shape] == min(ratio.values())
    for name in ("v6e-256", "v7x:2x2x1", "v6e:16x", "v6e:0x4", "gpu:8", "gpu:2x2x2"):
        with pytest.raises(InputError, match="--topology"):
            parse(name)


# --- what arrives at python is what was given -----------------------------------------


def assert_as_given(arguments: list[str], given: Job) -> None:
    """What a parser of flags like launch.train's makes of arguments of python."""
    assert arguments[:2] == ["-m", "launch.train"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(arguments[1:])
    assert values.workdir == given.workdir
    assert config_flags.get_config_filename(values["config"]) == given.config
    assert config_flags.get_override_values(values["config"]) == given.overrides


def test_launch_train_takes_these_flags():
    """In a process of its own: two commands in one would share their flags."""
    code = """if True:
        import json, sys
        from absl.flags import FLAGS
        from launch import train
        FLAGS(sys.argv)
        print(json.dumps([train.WORKDIR.value, FLAGS["config"].override_values]))"""
    given = job("jobset")
    done = subprocess.run(
        [sys.executable, "-c", code, *given.train[2:]],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == json.dumps([given.workdir, given.overrides])


STAND_IN = r'''#!{python} -S
"""Writes down how it was called; acts as gcloud, sudo, docker, srun or scontrol."""
import json, os, subprocess, sys
name, rest = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "sudo":
    os.execvp(rest[0], rest)
here = os.path.dirname(sys.argv[0])
with open(here + "/calls", "a") as calls:
    calls.write(json.dumps([name, *rest]) + "\n")
told = json.load(open(here + "/told"))
if name == "gcloud" and "describe" in rest:
    now = told["states"].pop(0)
    json.dump(told, open(here + "/told", "w"))
    print(now)
    sys.exit(not now)
if name == "gcloud" and "ssh" in rest:
    command = next(a for a in rest if a.startswith("--command="))
    sys.exit(subprocess.run(["bash", "-c", command[10:]]).returncode)
if name == "docker" and rest[0] == "inspect":
    print(told["running"])
if name == "docker" and rest[0] == "wait":
    print(told["code"])
if name == "srun":
    sys.exit(told["code"])
'''


@pytest.fixture
def play(tmp_path):
    """Runs a script among the stand-ins: (exit code, calls)."""
    for name in ("gcloud", "sudo", "docker", "srun", "scontrol"):
        (tmp_path / name).write_text(STAND_IN.replace("{python}", sys.executable))
        (tmp_path / name).chmod(0o755)

    def run(text: str, *arguments: str, states=(), running="false", code=0):
        (tmp_path / "calls").write_text("")
        told = {"states": list(states), "running": running, "code": code}
        (tmp_path / "told").write_text(json.dumps(told))
        script = tmp_path / "script.sh"
        script.write_text(text)
        here = str(tmp_path)
        environment = {"PATH": f"{here}:/usr/bin:/bin", "HOME": here}
        environment |= {"SLURM_SUBMIT_DIR": here, "SLURM_JOB_ID": "11"}
        environment["POLL_SECONDS"] = "0"
        done = subprocess.run(
            ["bash", str(script), *arguments], env=environment, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        calls = (tmp_path / "calls").read_text().splitlines()
        return done.returncode, [json.loads(line) for line in calls]

    return run


def verbs(calls: list[list[str]]) -> list[str]:
    return [c[4] if c[0] == "gcloud" else f"docker {c[1]}" for c in calls]


def test_queued_brings_up_and_runs_what_was_given(play):
    given = job("queued", zone="us-east5-b", tier="spot")
    text = pod_queued.render(given)
    code, calls = play(text, states=["", "PROVISIONING", "ACTIVE"], code=130)
    assert code == 130
    assert "\nexport CLOUDSDK_COMPUTE_ZONE=us-east5-b\n" in text
    assert verbs(calls)[:4] == ["describe", "create", "describe", "describe"]
    create = next(c for c in calls if "create" in c)
    assert create[5:] == [
        "run", "--runtime-version=v2-alpha-tpuv6e", "--accelerator-type=v6e-256",
        "--node-id=run", "--spot",
    ]  # fmt: skip
    told = [c[6:8] for c in calls if "ssh" in c]
    assert told == [["--node=all", "--worker=all"]] * 2 + [["--node=0", "--worker=0"]]
    assert ["docker", "pull", given.image] in calls
    started = next(c for c in calls if c[:2] == ["docker", "run"])
    assert "--env=JAX_COMPILATION_CACHE_DIR=gs://bucket/run/xla" in started
    assert "--env=JAX_PLATFORMS=tpu,cpu" in started  # without chips it ends
    image = started.index(given.image)
    assert started[image + 1] == "python"
    assert_as_given(started[image + 2 :], given)


def test_queued_is_safe_to_run_again(play):
    script = pod_queued.render(job("queued"))
    code, calls = play(script, states=["ACTIVE", "ACTIVE"], running="true")
    assert code == 0
    assert not {"create", "docker run"} & set(verbs(calls))
    # preempted: new machines, and the run is resumed on them
    _, calls = play(script, states=["SUSPENDED", "ACTIVE"])
    assert verbs(calls)[:3] == ["describe", "delete", "create"]
    assert "docker run" in verbs(calls)
    # refused by the cloud: ends, with no second request
    code, calls = play(script, states=["", "WAITING_FOR_RESOURCES", "FAILED"])
    assert (code, verbs(calls).count("create")) == (1, 1)


def test_queued_stops_with_time_to_save_and_deletes(play):
    script = pod_queued.render(job("queued"))
    assert play(script, "stop")[1][-1] == ["docker", "stop", "--time", "300", "run"]
    assert verbs(play(script, "delete")[1]) == ["delete"]
    assert play(script, "destroy") == (2, [])


def test_queued_asks_for_several_slices_of_a_solid_shape(play):
    given = job("queued", topology=parse("v5p:4x4x8"), slices=3, tier="reserved")
    _, calls = play(pod_queued.render(given), states=["", "ACTIVE"])
    create = next(c for c in calls if "create" in c)
    assert create[6:] == [
        "--runtime-version=v2-alpha-tpuv5", "--accelerator-type=v5p-256",
        "--node-count=3", "--node-prefix=run", "--reserved",
    ]  # fmt: skip


def test_slurm_runs_what_was_given_a_task_a_gpu(play):
    given = job("slurm", workdir="/shared/my run")
    text = pod_slurm.render(given)
    header = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    assert header["nodes"] == "2"
    assert header["ntasks-per-node"] == header["gpus-per-node"] == "4"
    assert header["signal"] == "TERM@120"
    assert "\nexport JAX_PLATFORMS=cuda,cpu\n" in text  # without GPUs it ends
    assert text.rindex("#SBATCH") < text.index("\nset -euo")  # as far as sbatch reads
    requeue = [["scontrol", "requeue", "11"]]  # only what stopped before its last step
    for ended, again in {0: [], 130: requeue, 2: [], 139: []}.items():
        code, (srun, *calls) = play(text, code=ended)
        assert (code, calls) == (ended, again)
    assert_as_given(srun[srun.index(".venv/bin/python") + 1 :], given)


# --- the JobSet -----------------------------------------------------------------------


def as_kubernetes_fills_in(argument: str) -> str:
    """$(NAME) -> a value, $$ -> $; what a container is started with."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda m: "$" if m[0] == "$$" else "0", argument)


KINDS = {
    "one": {},
    "spot": {"tier": "spot", "queue": "team-a", "slices": 4},
    "tpu7x": {"topology": parse("tpu7x:4x4x8"), "tier": "reserved"},
    "host": {"topology": parse("v5e:2x4")},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_jobset_is_the_manifest_and_runs_what_was_given(changes):
    yaml = pytest.importorskip("yaml")
    given = job("jobset", **changes)
    found = yaml.safe_load(pod_jobset.render(given))
    assert found == pod_jobset.manifest(given)
    pod_fields.check(found)
    (slices,) = found["spec"]["replicatedJobs"]
    inner = slices["template"]["spec"]
    spec = inner["template"]["spec"]
    (container,) = spec["containers"]
    hosts, chip = given.topology.hosts, given.topology.chip
    assert slices["replicas"] == given.slices
    assert inner["parallelism"] == inner["completions"] == hosts
    tpus = container["resources"]["limits"]["google.com/tpu"]
    assert tpus * hosts == given.topology.chips
    select = {
        "cloud.google.com/gke-tpu-accelerator": chip.accelerator,
        "cloud.google.com/gke-tpu-topology": given.topology.dims,
    }
    if given.tier == "spot":
        select["cloud.google.com/gke-spot"] = "true"
    assert spec["nodeSelector"] == select
    labels = found["metadata"].get("labels", {})
    assert labels.get("kueue.x-k8s.io/queue-name", "") == given.queue
    assert found["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    # a pod's disruption restarts the set, bad input does not
    assert inner["backoffLimit"] == 0
    assert inner["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert found["spec"]["failurePolicy"]["maxRestarts"] == given.restarts
    assert {p["containerPort"] for p in container["ports"]} == {8471, 8080}
    assert {"name": "JAX_PLATFORMS", "value": "tpu,cpu"} in container["env"]
    assert container["command"] == ["python"]  # process 1: SIGTERM reaches it
    assert_as_given([as_kubernetes_fills_in(a) for a in container["args"]], given)


def test_fields_are_checked():
    wrong = {"replicas": "2", "replica": 2, "template": {}, "name": 0}
    for name, value in wrong.items():
        manifest = pod_jobset.manifest(job("jobset"))
        manifest["spec"]["replicatedJobs"][0][name] = value
        with pytest.raises(ValueError, match=name):
            pod_fields.check(manifest)
    del manifest["spec"]["replicatedJobs"][0]["name"]
    with pytest.raises(ValueError, match="name"):
        pod_fields.check(manifest)


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "changes", "message"),
    [
        ("queued", {"workdir": "/shared/run"}, "--workdir=/shared/run: .* gs://"),
        ("jobset", {"workdir": "gs://bucket"}, "--workdir"),
        ("slurm", {"workdir": "runs/a"}, "--workdir=runs/a: .*absolute"),
        ("jobset", {"image": ""}, "--image"),
        ("slurm", {"image": "i:1"}, "--image"),
        ("queued", {"config": "/home/me/c.py"}, "--config"),
        ("queued", {"topology": parse("tpu7x:4x4x4")}, "tpu7x.*jobset"),
        ("queued", {"topology": parse("v5p:4x4x16")}, "shape v5p:4x8x8"),
        ("queued", {"topology": parse("gpu:1x8")}, "--topology"),
        ("slurm", {"topology": parse("v6e:4x4")}, "--topology"),
        ("jobset", {"topology": parse("v6e:2x4"), "slices": 2}, "--slices"),
        ("slurm", {"slices": 2}, "gpu:4x4"),
        ("slurm", {"tier": "spot"}, "--spot"),
        ("jobset", {"zone": "us-east5-b"}, "--zone"),
        ("queued", {"queue": "team-a"}, "--queue"),
        ("jobset", {"queue": "a b"}, "--queue"),
        ("jobset", {"name": "Run_1"}, "--name"),
        ("jobset", {"name": "x" * 41}, "--name"),
        ("jobset", {"slices": 0}, "--slices"),
        ("jobset", {"overrides": {"data.path": "a\nb"}}, "--config.data.path"),
    ],
)
def test_refused_in_one_line(target, changes, message):
    with pytest.raises(InputError, match=message) as refused:
        job(target, **changes)
    assert "\n" not in str(refused.value)


def test_every_config_name_becomes_a_name():
    for name in ("cross_scene:tavr_14b", "9 lives", "-", "é", "x" * 60):
        assert job("jobset", name=name_of(name)).name


# --- the command ----------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.pod", "--config=configs/policy.py:tavr_14b",
         *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_command_from_flags_to_file(tmp_path):
    caption = AWKWARD["text.negative"]
    asked = [
        "--workdir=gs://bucket/run/", "--target=queued", "--topology=v6e:4x4", "--spot",
        "--image=repo/tavr:1", "--config.data.path=gs://b/d",
        "--noconfig.sampler.round_bf16", f"--config.text.negative={caption}",
        "--config.parallel.context", "4",
    ]  # fmt: skip
    fits = command(*asked, "--dry-run")
    assert fits.returncode == 0, fits.stderr
    assert re.search(r"^hosts +4$", fits.stdout, re.M)
    assert re.search(r"^samples a device +16, ", fits.stdout, re.M)  # 8 x 8 rollouts
    path = tmp_path / "run.sh"
    assert command(*asked, f"--output={path}").returncode == 0
    overrides = {"data.path": "gs://b/d", "sampler.round_bf16": False}
    overrides |= {"text.negative": caption, "parallel.context": 4}
    same = job(
        "queued", name="policy-tavr-14b", config="configs/policy.py:tavr_14b",
        overrides=overrides, topology=parse("v6e:4x4"), image="repo/tavr:1",
        tier="spot",
    )  # fmt: skip
    assert path.read_text() == pod_queued.render(same)
    refused = command(*asked, "--reserved")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: --spot, --reserved: give one of them\n"


@pytest.mark.parametrize("target", ["queued", "slurm"])
def test_shellcheck_finds_nothing(target):
    """Where it is installed; bash -n everywhere."""
    pod_fit.check_script(TARGETS[target].render(job(target)))
    with pytest.raises(RuntimeError, match="syntax error"):
        pod_fit.check_script("if true; fi")


def test_the_image_is_pinned_has_what_it_copies_and_is_not_root():
    text = (ROOT / "launch/Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1:] == ["tavr"]
    assert "--constraint constraints.txt" in text
    names = " ".join(re.findall(r"^COPY (.+) \S+$", text, re.M)).split()
    assert names and all((ROOT / name).exists() for name in names)
    packaged = re.findall(r'"(\w+)\*"', (ROOT / "setup.py").read_text())
    assert set(packaged) <= set(names)
    extras = importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert {"tpu", "cuda12"} <= set(extras)
