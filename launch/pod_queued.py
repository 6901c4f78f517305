"""A Bash script around one queued resource of Cloud TPU.

Flags of gcloud as in its own help (528.0.0); states of a queued resource as in its
documentation. No TPU was at hand: the script was run against a stand-in for gcloud.
"""

import shlex

from launch.pod_job import GRACE, Job

_HEAD = """\
#!/usr/bin/env bash
{title}
#
#   bash FILE          request the machines, wait, pull the image, run, show the log
#   bash FILE logs     show the log of the first worker
#   bash FILE status   state of the request, and of the container on every worker
#   bash FILE stop     SIGTERM: the run saves at the next step and ends
#   bash FILE delete   give the machines back
#
# Safe to run again: what exists is kept, a run that goes on is left alone, one that
# stopped (preempted, crashed, out of time) is resumed from its last checkpoint. After
# a preemption new machines are requested. Ends with the exit code of the run; 2 is bad
# input, which no new start mends. On spot:
#   until bash FILE || [ $? -eq 2 ]; do sleep 60; done
# A worker that dies takes the others with it after some 100 s (jax.distributed).
#
# The image has jax[tpu] (launch/Dockerfile).
# Many workers: run `ssh-add ~/.ssh/google_compute_engine` first. The service account
# of the machines has to read the image and to write to the bucket.
# Not tried on a TPU: the runtime version (a name from public scripts), that gcloud
# hands on the container's exit code, and that a preempted machine leaves it the time
# to save.
#
# What is in single quotes is for the workers to expand.
# shellcheck disable=SC2016
set -euo pipefail
"""
_BODY = """
queued() { gcloud compute tpus queued-resources "$1" "$name" "${@:2}"; }
state() { queued describe --format='value(state.state)' 2>/dev/null || true; }
on_all() { queued ssh --node=all --worker=all --command="$1"; }

acquire() {
  local now
  now="$(state)"
  case "$now" in
    FAILED | SUSPENDED)
      echo "== $name was $now: asking again"
      queued delete --force --quiet
      now=""
      ;;
  esac
  if [ -z "$now" ]; then
    queued create "${request[@]}"
  fi
  while now="$(state)" && [ "$now" != ACTIVE ]; do
    case "$now" in
      "" | FAILED | SUSPENDED)
        echo "error: $name is ${now:-gone}; see: bash $0 status" >&2
        exit 1
        ;;
    esac
    echo "== $name: $now"
    sleep "${POLL_SECONDS:-30}"
  done
}

follow() {
  local code=0
  queued ssh --node=0 --worker=0 --command="$follow" || code=$?
  if [ "$code" -eq 0 ]; then
    echo "== $name has finished; give the machines back: bash $0 delete"
  else
    echo "== $name has stopped, or the connection has (code $code); run: bash $0" >&2
  fi
  return "$code"
}

case "${1:-start}" in
  start)
    acquire
    on_all "$pull"
    on_all "$run"
    follow
    ;;
  logs) follow ;;
  status)
    queued describe
    on_all "$look"
    ;;
  stop) on_all "$stop" ;;
  delete) queued delete --force ;;
  *)
    echo "error: $1: expected start, logs, status, stop or delete" >&2
    exit 2
    ;;
esac
"""


def render(job: Job) -> str:
    """The whole script."""
    title = "\n".join(f"# {line}" for line in job.title)
    zone = [f"export CLOUDSDK_COMPUTE_ZONE={job.zone}"] if job.zone else []
    values = {
        "name": job.name,
        "pull": _pull(job),
        "run": _run(job),
        "follow": _follow(job),
        "look": f"sudo docker ps --all --filter name={job.name}",
        "stop": f"sudo docker stop --time {GRACE} {job.name}",
    }
    lines = [
        *zone,
        f"request=({shlex.join(_request(job))})",
        *(f"{key}={shlex.quote(value)}" for key, value in values.items()),
    ]
    return _HEAD.format(title=title) + "\n" + "\n".join(lines) + "\n" + _BODY


def _request(job: Job) -> list[str]:
    """What is asked for: flags of `queued-resources create`."""
    topology, chip = job.topology, job.topology.chip
    # a number of cores means one shape, `compact`; --type is for older TPUs
    kind = f"--accelerator-type={chip.api}-{topology.chips * chip.cores}"
    flags = [f"--runtime-version={chip.runtime}", kind]
    if job.slices > 1:
        flags += [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
    else:
        flags += [f"--node-id={job.name}"]
    return flags + ([f"--{job.tier}"] if job.tier else [])


# --- what every worker is told; Docker is part of the runtime versions ---------------


def _pull(job: Job) -> str:
    host = job.image.partition("/")[0]
    login = f"sudo gcloud auth configure-docker {shlex.quote(host)} --quiet && "
    ours = host.endswith(("pkg.dev", "gcr.io"))
    return (login if ours else "") + f"sudo docker pull {shlex.quote(job.image)}"


def _run(job: Job) -> str:
    """Start the container unless it is running. It is privileged and root inside: the
    devices of a TPU belong to root; its network is the host's: workers talk on it."""
    running = f"sudo docker inspect --format '{{{{.State.Running}}}}' {job.name}"
    command = [
        "sudo", "docker", "run", "--detach", "--name", job.name, "--privileged",
        "--user=0", "--network=host", "--ipc=host", f"--stop-timeout={GRACE}",
        *(f"--env={name}={value}" for name, value in job.variables.items()),
        job.image, "python", *job.train,
    ]  # fmt: skip
    return (
        f'if [ "$({running} 2>/dev/null)" = true ]; then echo "already running"; else '
        f"sudo docker rm --force {job.name} >/dev/null 2>&1; {shlex.join(command)}; fi"
    )


def _follow(job: Job) -> str:
    show = f"sudo docker logs --follow --tail 200 {job.name}"
    return f'{show}; exit "$(sudo docker wait {job.name})"'
