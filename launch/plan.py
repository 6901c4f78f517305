"""What a run on a pod will need, compiled for that pod on a machine without a TPU.

    python -m launch.plan --config configs/cross_scene.py:tavr_14b \\
        --topology v6e:16x16 --config.parallel.context=4 --output plan.json

--job train     the step of the config's stage (same_scene and cross_scene are one
                program; of policy with rollouts and the networks of its rewards)
      rollout   the rollouts of stage 3 alone
      generate  the sampler of one chunk, and one piece of the video decoder; on one
                host, as launch.generate is one process

It traces the functions that launch.train and launch.generate run, at the config's real
sizes, and XLA's compiler for TPUs (libtpu, which runs on any x86 Linux; pip install
'tavr_jax[plan]') compiles them: minutes for a large model. Printed, and written to
--output as JSON: memory of a device against its limit and what fills it, what is sent
over the links, FLOPs, bounds of the time. Exit code 1 where it does not fit, with the
nearest change that is guessed to. --search compiles the --tries most promising layouts
of config.parallel and ranks them.

--save FOLDER fills a persistent compilation cache of JAX: a run on that slice with
JAX_COMPILATION_CACHE_DIR=FOLDER, the same versions and the same fields should find its
program there; of generate, that for all tokens of still and reference. On CPU devices
plan and run have the same entry (tests/test_plan.py); on a TPU nobody has tried.
Nothing in it is pickled.
"""

import json
import os
import sys
from importlib import metadata
from pathlib import Path

# Read when JAX and libtpu are loaded: no TPU is looked for.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TPU_SKIP_MDS_QUERY"] = os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
os.environ.update(
    {  # What libtpu would ask the machine, and complain about on stderr.
        "TPU_ACCELERATOR_TYPE": "v6e-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
    }
)

from absl import flags
from ml_collections import ConfigDict

from launch import (
    cli,
    plan_compile,
    plan_layouts,
    plan_program,
    plan_text,
    provenance,
)
from launch.pod_topology import parse
from tavr_jax.errors import InputError
from tavr_jax.parallel.chips import CHIPS
from tavr_jax.parallel.mesh import AXES

CONFIG = cli.config_flag()
TOPOLOGY = flags.DEFINE_string("topology", "", "One slice, as v6e:16x16.")
SLICES = flags.DEFINE_integer("slices", 1, "How many of them.", lower_bound=1)
JOB = flags.DEFINE_enum("job", "train", plan_program.JOBS, "What is planned.")
SEARCH = flags.DEFINE_bool("search", False, "Compile several layouts and rank them.")
TRIES = flags.DEFINE_integer("tries", 4, "Layouts of --search.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", "", "JSON file to write.")
SAVE = flags.DEFINE_string("save", "", "Compilation cache to fill.")
XLA = flags.DEFINE_string("xla", "", "Compiler options, NAME=VALUE,NAME=VALUE.")

_SMALLER = "lower output.decode_latents, or have more devices for the other weights"


def main() -> None:
    """Flags in, tables out; exit code 1 where something does not fit."""
    if CONFIG.value is None or not TOPOLOGY.value:
        missing = "--topology" if CONFIG.value is not None else "--config"
        raise InputError(f"flags: {missing} is missing (see --help)")
    place = plan_layouts.Place(parse(TOPOLOGY.value), SLICES.value)
    if place.topology.kind == "gpu":
        raise InputError(
            f"--topology={place.topology}: only TPUs have a compiler that runs without "
            "them; expected for example v6e:16x16"
        )
    plan_layouts.check_hosts(JOB.value, place)
    if OUTPUT.value:
        cli.output_file("output", OUTPUT.value)
    _options()  # refused now, not after minutes
    _check_compiler()
    plan_compile.keep(Path(SAVE.value) if SAVE.value else None)
    plans = _search(place) if SEARCH.value else [_plan(CONFIG.value, place)]
    if len(plans) > 1:
        print("\nbest first:")
        for one in plans:
            print(_rank_line(one))
    print(f"\n{plan_text.PROVES}")
    fits = all(program["fits"] for program in plans[0]["programs"])
    if OUTPUT.value:
        found = plans[0] if not SEARCH.value else {"search": plans}
        Path(OUTPUT.value).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if not fits:
        sys.exit(1)


def _plan(config: ConfigDict, place: plan_layouts.Place) -> dict:
    mesh = plan_compile.mesh_of(config, place.topology, place.slices)
    axes = {axis: int(size) for axis, size in mesh.shape.items()}
    kind = mesh.devices.flat[0].device_kind
    found = {
        "proves": plan_text.PROVES,
        "versions": {name: metadata.version(name) for name in ("jax", "libtpu")},
        "config": config.name,
        "stage": config.stage,
        "job": JOB.value,
        "topology": str(place.topology),
        "slices": place.slices,
        "chips": place.topology.chips * place.slices,
        "devices": place.devices,
        "device_kind": kind,
        "mesh": axes,
        "batch_size": config.data.batch_size,
        "command": " ".join(
            ["python -m launch.plan", *map(provenance.nobodys, sys.argv[1:])]
        ),
        "programs": [],
    }
    along = " x ".join(f"{axis} {size}" for axis, size in axes.items())
    print(f"{config.name}, {JOB.value}, {place.slices} x {place.topology}: {along}")
    for program in plan_compile.plan(config, JOB.value, mesh, _options()):
        found["programs"].append(program)
        print(f"\n{plan_text.table(program, found['chips'])}", flush=True)
        if not program["fits"] and program["program"] == "decoder":
            print(_SMALLER)
        elif not program["fits"]:
            near = plan_layouts.nearest(
                config,
                JOB.value,
                place,
                CHIPS[kind].memory,
                program["hbm"]["outputs"] + program["hbm"]["temporaries"],
            )
            found["nearest"] = near.flags() if near else ""
            print(_nearest_line(near))
    return found


def _search(place: plan_layouts.Place) -> list[dict]:
    kind = plan_compile.kind_of(place.topology)
    tried = plan_layouts.worth(
        CONFIG.value, JOB.value, place, CHIPS[kind].memory, TRIES.value
    )
    if not tried:
        raise InputError(
            f"data.batch_size: {CONFIG.value.data.batch_size}: no layout of "
            f"{place.devices} devices divides it and the heads; change one of them"
        )
    plans = []
    for sizes in tried:
        config = CONFIG.value.copy_and_resolve_references()
        config.parallel.update(dict(zip(AXES, sizes, strict=True)))
        plans.append(_plan(config, place))
    return sorted(plans, key=_rank)


def _rank(plan: dict) -> tuple:
    programs = plan["programs"]
    fits = all(program["fits"] for program in programs)
    step = sum(program["roofline"]["step"] for program in programs)
    return not fits, step, max(program["hbm"]["total"] for program in programs)


def _rank_line(plan: dict) -> str:
    fails, step, most = _rank(plan)
    along = " ".join(f"--config.parallel.{a}={n}" for a, n in plan["mesh"].items())
    verdict = "does not fit" if fails else f"at best {plan_text.seconds(step)}"
    return f"  {plan_text.gib(most):>10}  {verdict:<20}{along}"


def _nearest_line(near: plan_layouts.Change | None) -> str:
    if near is None:
        return "no larger slice of this kind is guessed to fit it either"
    return (
        f"nearest that is guessed to fit (not compiled): {near.flags()}, "
        f"about {plan_text.gib(near.bytes)} a device"
    )


def _options() -> dict[str, str | float]:
    pairs = [pair.partition("=") for pair in XLA.value.split(",") if pair]
    if odd := [name for name, equals, _ in pairs if not equals]:
        raise InputError(f"--xla: {odd[0]!r}; expected NAME=VALUE,NAME=VALUE")
    numbers = ("exec_time_optimization_effort", "memory_fitting_effort")
    try:
        return {n: float(v) if n in numbers else v for n, _, v in pairs}
    except ValueError as error:
        raise InputError(f"--xla: {error}; expected NAME=VALUE,NAME=VALUE") from error


def _check_compiler() -> None:
    try:
        import libtpu
    except ImportError as error:
        raise InputError(
            "libtpu: not installed, and it is XLA's compiler for TPUs; "
            "pip install 'tavr_jax[plan]'"
        ) from error
    os.environ["TPU_LIBRARY_PATH"] = libtpu.get_library_path()


if __name__ == "__main__":
    cli.run(main, __doc__)
