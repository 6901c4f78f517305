"""What is started and where: the one thing that every renderer of launch.pod reads."""

import dataclasses
import re
import shlex
from typing import Any

from launch.pod_topology import Topology
from tavr_jax.errors import InputError

TARGETS = ("queued", "jobset", "slurm")
GRACE = 300  # seconds between SIGTERM and the end of a process (ours)
RESTARTS = 100  # of a JobSet, at most, where nothing else is asked (ours)
_BUCKET = r"gs://[a-z0-9][a-z0-9._-]*(/[^/]+)+"
_NAME = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # Kubernetes allows 63 and adds up to 20


@dataclasses.dataclass(frozen=True)
class Job:
    """One run. InputError: what the target cannot do, or cannot do without."""

    target: str  # of TARGETS
    name: str  # of the queued resource, the JobSet, the SLURM job
    config: str  # FILE.py:size
    overrides: dict[str, Any]  # field of the config -> value
    workdir: str
    topology: Topology
    slices: int
    image: str  # container with this repository
    tier: str  # spot | reserved | "" = on demand
    zone: str  # of a queued resource; "" = the one gcloud is set to
    queue: str  # of Kueue; "" = none
    restarts: int  # of a JobSet, at most

    def __post_init__(self):
        _check_text(self)
        _check_place(self)
        for flag, value, target in (
            ("zone", self.zone, "queued"),
            ("queue", self.queue, "jobset"),
        ):
            if value and self.target != target:
                raise InputError(f"--{flag}: of --target={target} only; leave it out")
        gpus = self.topology.kind == "gpu"
        if gpus != (self.target == "slurm"):
            kinds = "gpu:MACHINESxGPUS" if self.target == "slurm" else "a slice of TPUs"
            raise InputError(
                f"--topology={self.topology}: --target={self.target} runs on {kinds}"
            )
        _CHECKS[self.target](self)

    @property
    def cache(self) -> str:
        """Folder of compiled programs: a restarted run need not compile again."""
        return f"{self.workdir}/xla"

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment. With a platform named, what is missing of it ends the run
        (launch/distributed.py) where JAX by itself would go on on a CPU."""
        kind = "cuda" if self.topology.kind == "gpu" else "tpu"
        return {"JAX_COMPILATION_CACHE_DIR": self.cache, "JAX_PLATFORMS": f"{kind},cpu"}

    @property
    def train(self) -> list[str]:
        """Arguments of python: the same ones start the run and resume it. That it is
        one process of many is found by launch/distributed.py, by JAX's own means."""
        given = [f"--config.{k}={_written(v)}" for k, v in self.overrides.items()]
        run = [f"--config={self.config}", f"--workdir={self.workdir}"]
        return ["-m", "launch.train", *run, *given]

    @property
    def title(self) -> list[str]:
        """First lines of what is rendered, without the comment signs."""
        where = f"{self.slices} x {self.topology}" if self.slices > 1 else self.topology
        command = shlex.join(["python", *self.train])
        return [f"{self.name}: made by launch.pod for {where}", f"runs {command}"]


def name_of(config_name: str) -> str:
    """A name that every target takes: cross_scene:tavr_14b -> cross-scene-tavr-14b."""
    plain = re.sub(r"[^a-z0-9]+", "-", config_name.lower()).strip("-")
    named = plain if plain[:1].isalpha() else f"run-{plain}"
    return named[:40].strip("-")


def _written(value: Any) -> str:
    """A value of a config field as its flag reads it."""
    return value if isinstance(value, str) else repr(value)


def _check_text(job: Job) -> None:
    if not re.fullmatch(_NAME, job.name):
        raise InputError(
            f"--name={job.name}: expected at most 40 of a-z, 0-9 and -, a letter first"
        )
    texts = {"--config": job.config, "--workdir": job.workdir, "--image": job.image}
    texts |= {f"--config.{k}": _written(v) for k, v in job.overrides.items()}
    for flag, text in texts.items():
        if not text.isprintable():
            raise InputError(
                f"{flag}: {text!r} has a line break or a control character; take it out"
            )
    for flag, text in (("zone", job.zone), ("queue", job.queue)):
        if text and not re.fullmatch(r"[a-z0-9][-.a-z0-9]*", text):
            raise InputError(f"--{flag}={text}: expected a-z, 0-9, - and . only")
    if job.slices < 1:
        raise InputError(f"--slices={job.slices}: give 1 or more")
    if job.restarts < 0:
        raise InputError(f"--restarts={job.restarts}: give 0 or more")


def _check_place(job: Job) -> None:
    bucket = re.fullmatch(_BUCKET, job.workdir)
    if job.target == "slurm":
        if not bucket and not job.workdir.startswith("/"):
            raise InputError(
                f"--workdir={job.workdir}: give an absolute path that every node sees, "
                "or gs://BUCKET/FOLDER"
            )
        return
    if not bucket:
        raise InputError(
            f"--workdir={job.workdir}: the machines of --target={job.target} share no "
            "disk; give gs://BUCKET/FOLDER"
        )
    if not job.image or " " in job.image:
        raise InputError(
            f"--image={job.image}: give the container that holds this repository "
            "(launch/Dockerfile), as HOST/PROJECT/NAME:TAG"
        )
    if job.config.startswith(("/", "../")):
        raise InputError(
            f"--config={job.config}: give it relative to the repository, where the "
            "image has it too"
        )


def _check_queued(job: Job) -> None:
    if not job.topology.chip.api:
        raise InputError(
            f"--target=queued: the Cloud TPU API has no {job.topology.kind}; use "
            "--target=jobset"
        )
    given = job.topology.compact()
    if given != job.topology:
        raise InputError(
            f"--topology={job.topology}: gcloud asks for {given.chips} chips and gets "
            f"the shape {given}; take that one, or --target=jobset"
        )


def _check_jobset(job: Job) -> None:
    if job.slices > 1 and job.topology.hosts == 1:
        raise InputError(
            f"--slices={job.slices}: GKE joins slices of two or more hosts only, and "
            f"{job.topology} is one; take a larger --topology"
        )


def _check_slurm(job: Job) -> None:
    if job.slices > 1:
        raise InputError(
            f"--slices={job.slices}: of TPUs only; give more machines, as in "
            f"--topology=gpu:{job.slices * job.topology.hosts}x"
            f"{job.topology.chips_per_host}"
        )
    if job.image:
        raise InputError("--image: SLURM runs the .venv of the checkout; leave it out")
    if job.tier:
        raise InputError(f"--{job.tier}: of TPUs only; leave it out (see sbatch --qos)")


_CHECKS = {"queued": _check_queued, "jobset": _check_jobset, "slurm": _check_slurm}
