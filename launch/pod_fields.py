"""The fields of a JobSet that we write, and their types.

By the published Go types (their json names) of JobSet v1alpha2, of Job v1 and of Pod
v1. No schema comes with a client, and no API server was at hand to ask.
"""

from typing import Any

TEXTS = {str: str}  # a map
AMOUNTS = {str: int}
POD = {
    "restartPolicy": str, "hostNetwork": bool, "dnsPolicy": str,
    "terminationGracePeriodSeconds": int, "nodeSelector": TEXTS,
    "containers": [{
        "name": str, "image": str, "command": [str], "args": [str],
        "env": [{"name": str, "value": str}],
        "ports": [{"containerPort": int}],
        "resources": {"requests": AMOUNTS, "limits": AMOUNTS},
        "securityContext": {"privileged": bool, "runAsUser": int},
        "volumeMounts": [{"name": str, "mountPath": str}],
    }],
    "volumes": [{"name": str, "emptyDir": {"medium": str}}],
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
}  # fmt: skip
JOB = {
    "completionMode": str, "parallelism": int, "completions": int, "backoffLimit": int,
    "podFailurePolicy": {"rules": [{
        "action": str,
        "onExitCodes": {"containerName": str, "operator": str, "values": [int]},
    }]},
    "template": {"spec": POD},
}  # fmt: skip
JOBSET = {
    "apiVersion": str, "kind": str,
    "metadata": {"name": str, "annotations": TEXTS, "labels": TEXTS},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}  # fmt: skip
_OPTIONAL = {"labels", "tolerations"}


def check(value: Any, form: Any = JOBSET, path: str = "JobSet") -> None:
    """ValueError at a field that is unknown, missing, empty or of another type."""
    if isinstance(form, list):
        _expect(isinstance(value, list) and value, path)
        for i, item in enumerate(value):
            check(item, form[0], f"{path}[{i}]")
    elif isinstance(form, dict):
        _expect(isinstance(value, dict) and value, path)
        of_map = form.get(str)
        for name in set() if of_map else set(form) - set(value) - _OPTIONAL:
            _expect(False, f"{path}.{name}")
        for name, item in value.items():
            _expect(of_map or name in form, f"{path}.{name}")
            check(item, of_map or form[name], f"{path}.{name}")
    else:
        _expect(type(value) is form, path)


def _expect(true: Any, path: str) -> None:
    if not true:
        raise ValueError(f"{path}: not as the published types have it")
