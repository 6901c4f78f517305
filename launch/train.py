"""Train one stage; the same command resumes it.

    python -m launch.train --config configs/same_scene.py:mini --workdir W/same_scene \\
        --config.data.path=DATASET

Stages 1 to 3 are same_scene, cross_scene and policy; text_to_video and audio_to_video
may come before them; codec, face and lipsync train the frozen networks and end with
WORKDIR/<stage>.safetensors. WORKDIR also holds config.json, base.json (what it started
from), run.json (who ran it, with what), checkpoints/, metrics.jsonl, parameters.txt,
samples/, tensorboard/, of stage 3 start/, and profile/ where a trace was asked for or
memory ran out. It may be gs://BUCKET/FOLDER, and so may data.path and init_from. Any
field of the config is a flag: --config.optimizer.learning_rate=1e-5.
"""

from functools import partial

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import loader
from launch import (
    cli,
    distributed,
    origin,
    previews,
    provenance,
    readers,
    stages,
    work,
)
from launch.start import begin
from tavr_jax import storage
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.storage import Place
from tavr_jax.training import checkpoint, loop, optimizer, report
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import Step, TrainState, carried, sampling_params

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run, or gs://BUCKET/FOLDER; made if missing."
)


def main() -> None:
    """Flags in, exit code out."""
    if CONFIG.value is None or not WORKDIR.value:
        missing = "--workdir" if CONFIG.value is not None else "--config"
        raise InputError(f"flags: {missing} is missing (see --help)")
    workdir = storage.reached(WORKDIR.value, "--workdir")
    with distributed.joined():
        cli.enable_compilation_cache()
        train(CONFIG.value, workdir)


def train(config: ConfigDict, workdir: Place) -> TrainState:
    """Build everything the loop is given, and run it.

    Nothing is written before everything is accepted. KeyboardInterrupt: it was asked to
    stop, and has saved. A run that its guard stopped is finished.
    """
    stages.check(config)
    rates = OptimizerConfig(**config.optimizer)
    mesh = make_mesh(MeshConfig(**config.parallel))
    rows = config.data.batch_size
    split = sharding.batch(mesh, rows, stages.members(config))
    stages.check_parts(config, mesh)
    stages.check_kernel(config, mesh)
    encoder = readers.make_encoder(config)
    ours = sharding.host_rows(split, rows)
    batches = loader.make_loader(config, rows=ours, encoder=encoder)

    data = provenance.fingerprint(config)
    checkpoints = checkpoint.Checkpoints(workdir, config, data)
    distributed.agree(checkpoints.latest() or 0, int(data, 16) % 2**31)
    resuming = checkpoints.latest() is not None
    start = begin(config, mesh, workdir, resuming)
    create = partial(optimizer.create_state, config=rates)
    abstract = sharding.abstract(mesh, jax.eval_shape(create, start.abstract))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    steps, effort = config.train.steps, work.of(config, start)
    lines = report.Report(workdir, config.stage, steps, effort)
    shown = config.stage in stages.PAIRED
    on_sample = previews.preview(config, start, lines, encoder) if shown else None
    on_evaluate = previews.held_out(config, start, lines, encoder) if shown else None
    run = stages.Run(config, start, workdir, resuming)
    step = on_mesh(mesh, stages.STEPS[config.stage](run, rates))

    checkpoints.claim()
    if not resuming:
        origin.write(workdir, start.base)
        lines.say(start.told())
    provenance.write(workdir, config, data, start.facts)
    state = loop.run(
        loop.LoopConfig(**config.train),
        create=lambda: jax.jit(create, out_shardings=shardings, donate_argnums=0)(
            start.params()
        ),
        abstract=abstract,
        update=loop.compiled(step, config.seed, mesh, shardings),
        batches=batches,
        place=partial(sharding.place, split, rows),
        checkpoints=checkpoints,
        report=lines,
        on_sample=on_sample,
        on_evaluate=on_evaluate,
        watch=stages.guard(config),
    )
    if int(state.step) < steps and checkpoints.stopped() is None:
        raise KeyboardInterrupt  # whatever waits for a finished run must not go on
    if not shown:
        stages.export(config, lines, start.graph, sampling_params(state))
    return state


def on_mesh(mesh: Mesh, step: Step) -> Step:
    """The frozen weights inside a step, split over the mesh like parameters."""
    step = carried(step)
    return jax.device_put(step, sharding.parameters(mesh, step))


if __name__ == "__main__":
    cli.run(main, __doc__)
