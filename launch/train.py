"""Train one stage; the same command resumes it.

    python -m launch.train --config configs/same_scene.py:mini --workdir W/same_scene \\
        --config.data.path=DATASET

Stages 1 to 3 are same_scene, cross_scene and policy; codec, face and lipsync train the
frozen networks and end with WORKDIR/<stage>.safetensors. WORKDIR also holds
config.json, checkpoints/, metrics.jsonl, parameters.txt and tensorboard/. Any field of
the config is a flag: --config.optimizer.learning_rate=1e-5.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import loader
from data_pipelines.sources import Encoder, Source
from launch import build, cli, readers
from launch.checkpoints import is_published
from launch.weights_source import resolve
from tavr_jax.diffusion.guidance import Network
from tavr_jax.encoders import lipsync
from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights import fingerprint, load_network, save_network
from tavr_jax.encoders.weights_tavr import load_transformer
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.parallel import sharding
from tavr_jax.parallel.mesh import MeshConfig, make_mesh
from tavr_jax.rl import rewards
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training import (
    checkpoint,
    loop,
    networks,
    optimizer,
    policy,
    report,
    supervised,
)
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import Step, TrainState, sampling_params
from tavr_jax.types import Batch, PyTree

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if missing.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One process of many: give it on every host of a pod."
)


class Run(NamedTuple):
    """What the step builders read."""

    config: ConfigDict
    graph: nnx.GraphDef
    abstract: PyTree  # its parameters' shapes, with their shardings
    start: Callable[[], PyTree]  # parameters to start from, on the mesh
    resuming: bool
    workdir: Path


def main() -> None:
    """Flags in, exit code out."""
    if CONFIG.value is None or not WORKDIR.value:
        missing = "--workdir" if CONFIG.value is not None else "--config"
        raise InputError(f"flags: {missing} is missing (see --help)")
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    cli.enable_compilation_cache()
    state = train(CONFIG.value, Path(WORKDIR.value).absolute())
    if int(state.step) < CONFIG.value.train.steps:
        raise KeyboardInterrupt  # stopped: what waits for a finished run must not go on


def train(config: ConfigDict, workdir: Path) -> TrainState:
    """Build everything the loop is given, and run it."""
    if config.stage not in STEPS:
        raise InputError(f"stage: {config.stage!r}: expected {' | '.join(STEPS)}")
    rates = OptimizerConfig(**config.optimizer)
    group = config.policy.group_size if config.stage == "policy" else 1
    mesh = make_mesh(MeshConfig(**config.parallel))
    rows = config.data.batch_size
    split = sharding.batch(mesh, rows, group)
    shard, shards = sharding.host_share(split, rows)
    encoder = readers.make_encoder(config)
    batches = loader.make_loader(config, shard=shard, shards=shards, encoder=encoder)

    graph, params = nnx.split(nnx.eval_shape(partial(seeded, config)), nnx.Param)
    create = partial(optimizer.create_state, config=rates)
    abstract = sharding.abstract(mesh, jax.eval_shape(create, params))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    start = partial(start_params, config, abstract.params)
    checkpoints = checkpoint.Checkpoints(workdir, config)
    resuming = checkpoints.latest() is not None
    run = Run(config, graph, abstract.params, start, resuming, workdir)
    step = on_mesh(mesh, STEPS[config.stage](run, rates))
    lines = report.Report(workdir, config.stage, config.train.steps)
    shown = config.stage in PAIRED
    state = loop.run(
        loop.LoopConfig(**config.train),
        create=lambda: jax.jit(create, out_shardings=shardings)(start()),
        abstract=abstract,
        update=loop.compiled(step, config.seed, mesh, shardings),
        batches=batches,
        place=partial(sharding.place, split, rows),
        checkpoints=checkpoints,
        report=lines,
        on_sample=preview(config, graph, lines, encoder) if shown else None,
    )
    if config.stage not in PAIRED and int(state.step) >= config.train.steps:
        export(config, workdir, graph, state)
    return state


def seeded(config: ConfigDict) -> nnx.Module:
    """The network that this stage trains, with random weights."""
    rngs = nnx.Rngs(config.seed)
    match config.stage:
        case "codec":
            return Codec(CodecConfig(**config.codec), rngs=rngs)
        case "face":
            return FaceNet(FaceConfig(**config.face), rngs=rngs)
        case "lipsync":
            return SyncNet(LipsyncConfig(**config.lipsync), rngs=rngs)
    return build.transformer(config)


def start_params(config: ConfigDict, abstract: PyTree) -> PyTree:
    """Parameters of init_from, or seeded ones, on the shardings of `abstract`.

    init_from: a workdir or one of its checkpoints/<step> (averaged weights), published
    weights of the transformer, also by their name on the hub, or a network that we
    exported.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    if not config.init_from:

        def made() -> PyTree:
            return nnx.state(seeded(config), nnx.Param)

        return jax.jit(made, out_shardings=shardings)()
    path = resolve(config.init_from, "--config.init_from")
    if not is_published(path):
        return checkpoint.load_params(path, abstract)
    graph, _ = nnx.split(nnx.eval_shape(lambda: seeded(config)), nnx.Param)
    load = load_transformer if config.stage in PAIRED else load_network
    return nnx.state(load(path, nnx.merge(graph, abstract)), nnx.Param)


def on_mesh(mesh: Mesh, step: Step) -> Step:
    """The frozen weights inside a step, split over the mesh like parameters."""
    step = jax.tree_util.Partial(step)
    return jax.device_put(step, sharding.parameters(mesh, step))


def bind(graph: nnx.GraphDef) -> Callable[[PyTree], Network]:
    """The transformer as a function of its parameters."""

    def network(params: PyTree) -> Network:
        model = nnx.merge(graph, params)
        return Network(model.prefill, model)

    return network


# --- the step of every stage ---------------------------------------------------------


def flow_step(run: Run, rates: OptimizerConfig) -> Step:
    """Stages 1 and 2."""
    recipe = supervised.FlowConfig(**run.config.flow)
    return supervised.make_step(supervised.flow_loss(bind(run.graph), recipe), rates)


def policy_step(run: Run, rates: OptimizerConfig) -> Step:
    """Stage 3. The reference policy is what it started from, kept in WORKDIR/start, so
    that a resumed run stays near the same policy whatever became of init_from."""
    config = run.config
    if not config.init_from:
        raise InputError(
            "init_from: empty; stage 3 improves a trained model: give "
            "--config.init_from=WORKDIR_OF_STAGE_2"
        )
    recipe = PolicyConfig(**config.policy)
    reference = None
    if recipe.kl_weight and run.resuming:
        reference = checkpoint.load_tree(run.workdir / "start", run.abstract)
    elif recipe.kl_weight:
        reference = run.start()
        checkpoint.save_tree(run.workdir / "start", reference)
    network = bind(run.graph)
    return policy.make_step(network, reward(config), reference, recipe, rates)


def codec_step(run: Run, rates: OptimizerConfig) -> Step:
    """Video autoencoder."""
    recipe = CodecConfig(**run.config.codec)
    return supervised.make_step(networks.codec_loss(run.graph, recipe), rates)


def face_step(run: Run, rates: OptimizerConfig) -> Step:
    """Face network."""
    recipe = FaceConfig(**run.config.face)
    return supervised.make_step(networks.face_loss(run.graph, recipe), rates)


def lipsync_step(run: Run, rates: OptimizerConfig) -> Step:
    """Lip-sync network."""
    recipe = LipsyncConfig(**run.config.lipsync)
    return supervised.make_step(networks.lipsync_loss(run.graph, recipe), rates)


PAIRED = ("same_scene", "cross_scene", "policy")  # stages that train the transformer
STEPS: dict[str, Callable[[Run, OptimizerConfig], Step]] = {
    "same_scene": flow_step,
    "cross_scene": flow_step,
    "policy": policy_step,
    "codec": codec_step,
    "face": face_step,
    "lipsync": lipsync_step,
}


def reward(config: ConfigDict) -> policy.Reward:
    """The frozen networks as one function of rollouts; weights are its leaves."""
    length = config.policy.reward_latents
    frames = 4 * length - 3
    if not 0 < length <= config.model.num_video_latents:
        raise InputError(
            f"policy.reward_latents: {length}: expected 1 to model.num_video_latents "
            f"= {config.model.num_video_latents}"
        )
    if frames < config.lipsync.frames:
        raise InputError(
            f"policy.reward_latents: {length} latents are {frames} frames, but the "
            f"lip-sync network reads {config.lipsync.frames}; give more latents"
        )
    codec = build.codec(config)
    check_codec(config, codec)
    modules = (codec, build.face_net(config), build.sync_net(config))
    graphs, weights = zip(*(nnx.split(m, nnx.Param) for m in modules), strict=True)

    def scores(weights: PyTree, latents: jax.Array, batch: Batch, key: jax.Array):
        codec, face, sync = (nnx.merge(*p) for p in zip(graphs, weights, strict=True))
        judges = rewards.Judges(
            decode=codec.decode,
            embed_face=face,
            confidence=lambda lips, mel: lipsync.confidence(sync.curve(lips, mel)),
            face_size=config.face.size,
            lips_size=config.lipsync.size,
        )
        return rewards.rewards(judges, latents, batch, length, key)

    return jax.tree_util.Partial(scores, weights)


def check_codec(config: ConfigDict, codec: Codec) -> None:
    """InputError unless this codec made the latents of the dataset."""
    source = Source(config, config.data.split)
    if not source.is_encoded:
        return  # they are made with it
    made = source.encoded(0)["codec"]
    made = made.decode() if isinstance(made, bytes) else str(made)
    if made != fingerprint(codec):
        raise InputError(
            f"networks.codec: {config.networks.codec} ({fingerprint(codec)}) did not "
            f"make the latents of {config.data.path} ({made}); give the codec that the "
            "dataset was prepared with"
        )


# --- what a run shows and leaves behind ----------------------------------------------


def preview(
    config: ConfigDict,
    graph: nnx.GraphDef,
    lines: report.Report,
    encoder: Encoder | None,
) -> Callable[[PyTree, int], dict[str, report.Media]] | None:
    """One clip, generated from averaged weights: a held-out one where there is one."""
    if not config.train.sample_every:
        return None
    pairs = config.data.pairs
    try:
        split, batch = "test", loader.sample(config, "test", 0, pairs, encoder)
    except InputError as error:
        split = config.data.split
        batch = loader.sample(config, split, 0, pairs, encoder)
        lines.say(f"preview of a training clip, for want of a held-out one ({error})")
    codec = build.codec(config)
    check_codec(config, codec)
    settings = generate.SamplerConfig(**config.sampler)
    sample = generate.sampler(graph, settings, lambda: None)
    noise = jax.random.normal(jax.random.key(config.seed), batch.latents.shape)
    conditions = jax.tree.map(jnp.asarray, batch.conditions)

    frames, fps = 4 * batch.latents.shape[1] - 3, config.speech.fps
    rate = config.speech.sample_rate
    wave = Source(config, split).clip(int(batch.clip[0]))["wave"]
    wave = wave[: frames * rate // fps].astype(np.float32) / 32768.0
    output = generate.OutputConfig(**config.output)
    target = generate.decode(codec, jnp.asarray(batch.latents), frames, output)

    def on_sample(params: PyTree, step: int) -> dict[str, report.Media]:
        latents = sample(params, noise, conditions, conditions.null_text)
        latents = multihost_utils.process_allgather(latents, tiled=True)
        made = generate.decode(codec, jnp.asarray(latents), frames, output)
        return {
            "sample/generated_and_target": report.Video(
                np.concatenate([made, target], axis=2), fps
            ),
            "sample/last_frame": report.Image(made[-1]),
            "sample/speech": report.Sound(wave, rate),
        }

    return on_sample


def export(
    config: ConfigDict, workdir: Path, graph: nnx.GraphDef, state: TrainState
) -> None:
    """WORKDIR/<stage>.safetensors: averaged weights of the finished stage."""
    path = workdir / f"{config.stage}.safetensors"
    weights = multihost_utils.process_allgather(sampling_params(state), tiled=True)
    if jax.process_index():
        return
    facts = {
        "config": config.name,
        "steps": str(int(state.step)),
        "seed": str(config.seed),
        "data": config.data.path,
    }
    save_network(path, nnx.merge(graph, weights), facts)
    print(f"{path}: weights of {config.name} after {facts['steps']} steps")


if __name__ == "__main__":
    cli.run(main, __doc__)
