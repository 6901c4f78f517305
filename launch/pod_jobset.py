"""A JobSet for GKE: one job a slice, one pod a host.

Fields as in api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset and in the
Kubernetes API of batch/v1; labels of nodes as in GKE's documentation. No cluster was
at hand: no API server has seen the result.
"""

import json
from collections.abc import Iterator
from typing import Any

from launch import pod_fields
from launch.pod_job import GRACE, Job

_HEAD = """\
{title}
#
#   kubectl apply -f FILE      start; the JobSet restarts the run when a pod fails or a
#                              node is taken away, and the run resumes
#   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name={name},\
batch.kubernetes.io/job-completion-index=0
#   kubectl delete -f FILE     SIGTERM: the run saves at the next step and ends; apply
#                              the file again to resume it
#
# Node pools, one a slice: {machine}, {hosts} nodes, {placed} {dims}{tier}.
# Bad input (exit code 2) fails the JobSet at once (rules of a failure policy: JobSet
# 0.6 and newer, from memory); a pod waits an hour for the others before it fails, and
# what may pass restarts the run. The image has jax[tpu]. The account of the nodes has
# to read the dataset's bucket and to write the workdir's: a pod on the host's network
# is that account. Nodes of the spot tier leave less than the grace period (from memory
# 15 to 25 s): then the last checkpoint counts. Variables of multi-slice runs come from
# GKE (from memory).
"""
_SELECT = "cloud.google.com/gke-"


def render(job: Job) -> str:
    """The manifest as YAML."""
    topology = job.topology
    # how `gcloud container node-pools create` is told the shape
    by_policy = topology.kind == "tpu7x"
    placed = "a --placement-policy of" if by_policy else "--tpu-topology"
    head = _HEAD.format(
        title="\n".join(f"# {line}" for line in job.title),
        name=job.name,
        machine=f"{topology.chip.machine}{topology.chips_per_host}t",
        hosts=topology.hosts,
        placed=placed,
        dims=topology.dims,
        tier=f", {job.tier}" if job.tier else "",
    )
    found = manifest(job)
    pod_fields.check(found)
    return head + "\n".join(_yaml(found)) + "\n"


def manifest(job: Job) -> dict[str, Any]:
    """The JobSet."""
    # one slice, one node pool: no two slices of a run may share one
    alone = {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    labels = {"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {}
    bad_input = {
        "name": "badInput",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    policy = {"maxRestarts": job.restarts, "rules": [bad_input]}
    slices = {
        "name": "slice",
        "replicas": job.slices,
        "template": {"spec": _job(job)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name, "annotations": alone}
        | ({"labels": labels} if labels else {}),
        "spec": {"failurePolicy": policy, "replicatedJobs": [slices]},
    }


def _job(job: Job) -> dict[str, Any]:
    """Of one slice: it is whole or it has failed."""
    bad_input = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]},
    }
    return {
        "completionMode": "Indexed",
        "parallelism": job.topology.hosts,
        "completions": job.topology.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [bad_input]},
        "template": {"spec": _pod(job)},
    }


def _pod(job: Job) -> dict[str, Any]:
    """Of one host. Its network is the host's, as slices talk to each other on it."""
    select = {
        f"{_SELECT}tpu-accelerator": job.topology.chip.accelerator,
        f"{_SELECT}tpu-topology": job.topology.dims,
    }
    spec = {
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": select,
        "containers": [_container(job)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if job.tier == "spot":
        select[f"{_SELECT}spot"] = "true"
        taint = {"key": f"{_SELECT}spot", "operator": "Equal", "value": "true"}
        spec["tolerations"] = [taint | {"effect": "NoSchedule"}]
    return spec


def _container(job: Job) -> dict[str, Any]:
    """Python is process 1, so that SIGTERM reaches it; it is root and privileged, as
    the devices of a TPU belong to root."""
    tpus = {"google.com/tpu": job.topology.chips_per_host}
    return {
        "name": "train",
        "image": job.image,
        "command": ["python"],
        "args": [_plain(argument) for argument in job.train],
        "env": [{"name": n, "value": _plain(v)} for n, v in job.variables.items()],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "resources": {"requests": tpus, "limits": tpus},
        "securityContext": {"privileged": True, "runAsUser": 0},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _plain(text: str) -> str:
    """Kubernetes fills in $(NAME); $$ is its way to write $."""
    return text.replace("$", "$$")


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Block-style YAML of dicts, lists and scalars. Scalars are written as JSON, which
    YAML contains as far as printable text goes."""
    items = value.items() if isinstance(value, dict) else (("-", v) for v in value)
    for key, item in items:
        mark = "-" if key == "-" else f"{key}:"
        if not isinstance(item, dict | list):
            yield f"{indent}{mark} {json.dumps(item, ensure_ascii=False)}"
        elif isinstance(value, dict):
            yield f"{indent}{mark}"
            yield from _yaml(item, indent + "  ")
        else:
            first, *rest = _yaml(item, indent + "  ")
            yield f"{indent}- {first.strip()}"
            yield from rest
