"""The step of every stage, from its config and what it starts from, and its outcome."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines.sources import Source, paths
from launch import build
from launch.provenance import nobodys
from launch.start import Start
from tavr_jax.encoders import lipsync
from tavr_jax.encoders.face import FaceConfig
from tavr_jax.encoders.lipsync import LipsyncConfig
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights import fingerprint, save_network
from tavr_jax.errors import InputError
from tavr_jax.models import attention
from tavr_jax.parallel import sharding
from tavr_jax.rl import rewards
from tavr_jax.rl.guard import Guard
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training import accumulate, networks, policy, supervised
from tavr_jax.training.loop import LoopConfig
from tavr_jax.training.lora import LoraConfig
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.report import Report
from tavr_jax.training.state import Step
from tavr_jax.training.supervised import FlowConfig
from tavr_jax.types import Batch, PyTree


def check(config: ConfigDict) -> None:
    """InputError where a field has no meaning: what can be told without data, weights
    or devices."""
    if config.stage not in STEPS:
        raise InputError(f"stage: {config.stage!r}: expected {' | '.join(STEPS)}")
    if (rows := config.data.batch_size) < 1:
        raise InputError(f"data.batch_size: {rows}: expected 1 or more")
    rates = OptimizerConfig(**config.optimizer)
    LoopConfig(**config.train)
    if config.stage in FLOW:
        FlowConfig(**config.flow)
    if config.stage == "policy":
        PolicyConfig(**config.policy)
    if rates.trainable == "lora":
        LoraConfig(**config.lora)


def members(config: ConfigDict) -> int:
    """Samples that each one of the batch becomes."""
    return config.policy.group_size if config.stage == "policy" else 1


def check_parts(config: ConfigDict, mesh: Mesh) -> None:
    """InputError where a batch cannot be cut into optimizer.accumulate parts there."""
    rows, parts = config.data.batch_size, config.optimizer.accumulate
    shares = sharding.batch_shares(mesh)
    if config.stage == "policy":
        policy.cuts_of_a_group(rows, config.policy.group_size, parts, shares)
    elif config.stage in FLOW:
        accumulate.is_split(rows, parts, shares)


def check_kernel(config: ConfigDict, mesh: Mesh) -> None:
    """InputError where model.attention is none of the devices' kernels."""
    if config.stage in PAIRED:
        with jax.set_mesh(mesh):
            attention.choose(config.model.attention, jnp.dtype(config.model.dtype))


class Run(NamedTuple):
    """What the builders of steps read."""

    config: ConfigDict
    start: Start
    workdir: Path
    resuming: bool
    is_abstract: bool = False  # shapes instead of weights: launch/plan_program.py


def flow_step(run: Run, rates: OptimizerConfig) -> Step:
    """Stages 1 and 2, and what comes before them."""
    recipe = FlowConfig(**run.config.flow)
    draw = supervised.flow_draw(recipe)
    loss = supervised.flow_loss(run.start.network(), recipe)
    return supervised.make_step(draw, loss, rates)


def policy_step(run: Run, rates: OptimizerConfig) -> Step:
    """Stage 3. The reference policy is what it started from, kept in WORKDIR/start, so
    that a resumed run stays near the same policy whatever became of init_from."""
    config = run.config
    if not config.init_from:
        raise InputError(
            "init_from: empty; stage 3 improves a trained model: give "
            "--config.init_from=WORKDIR_OF_STAGE_2"
        )
    recipe, reference = PolicyConfig(**config.policy), None
    scores = abstract_reward(config) if run.is_abstract else reward(config)
    if recipe.kl_weight:
        reference = run.start.reference(run.workdir, run.resuming)
    flow, network = FlowConfig(**config.flow), run.start.network()
    return policy.make_step(network, scores, reference, recipe, flow, rates)


def codec_step(run: Run, rates: OptimizerConfig) -> Step:
    """Video autoencoder."""
    recipe = CodecConfig(**run.config.codec)
    loss = networks.codec_loss(run.start.graph, recipe)
    return networks.make_step(networks.codec_draw(recipe), loss, rates)


def face_step(run: Run, rates: OptimizerConfig) -> Step:
    """Face network."""
    loss = networks.face_loss(run.start.graph, FaceConfig(**run.config.face))
    return networks.make_step(networks.face_draw, loss, rates)


def lipsync_step(run: Run, rates: OptimizerConfig) -> Step:
    """Lip-sync network."""
    loss = networks.lipsync_loss(run.start.graph, LipsyncConfig(**run.config.lipsync))
    return networks.make_step(networks.lipsync_draw, loss, rates)


FLOW = ("text_to_video", "audio_to_video", "same_scene", "cross_scene")
PAIRED = (*FLOW, "policy")  # stages that train the transformer
STEPS: dict[str, Callable[[Run, OptimizerConfig], Step]] = {
    **dict.fromkeys(FLOW, flow_step),
    "policy": policy_step,
    "codec": codec_step,
    "face": face_step,
    "lipsync": lipsync_step,
}


def guard(config: ConfigDict) -> Guard | None:
    """What stops a run whose rewards are hacked; None where it is off."""
    if config.stage != "policy" or not config.policy.guard_fall:
        return None
    return Guard(PolicyConfig(**config.policy))


def reward(config: ConfigDict) -> policy.Reward:
    """The frozen networks as one function of rollouts; weights are its leaves.

    evaluation.face looks on, where it is another network than networks.face.
    """
    check_window(config)
    check_judges(config)
    networks = build.judges(config)
    check_codec(config, networks.codec)
    return reward_of(config, networks)


def abstract_reward(config: ConfigDict) -> policy.Reward:
    """`reward` with the shapes of its weights as leaves; reads no file."""
    check_window(config)
    return reward_of(config, build.abstract_judges(config))


def check_window(config: ConfigDict) -> None:
    """InputError where the latents that rewards decode are too many or too few."""
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


def check_judges(config: ConfigDict) -> None:
    """InputError where footage would be rewarded by who has seen drawn people only."""
    named = config.networks
    drawn = ("mini", "random")
    if named.codec in drawn:
        return
    for name in ("face", "lipsync"):
        if named[name] == "mini" and config.policy[f"{_REWARDED[name]}_weight"]:
            raise InputError(
                f"networks.{name}: mini has seen drawn people only, and networks.codec "
                f"is {named.codec}; train one on your dataset (--config "
                f"configs/{name}.py) and give its file, or set "
                f"--config.policy.{_REWARDED[name]}_weight=0"
            )


_REWARDED = {"face": "identity", "lipsync": "lipsync"}  # network: its reward


def reward_of(config: ConfigDict, networks: build.Judges) -> policy.Reward:
    """`reward` of these networks."""
    modules = [module for module in networks if module is not None]
    graphs, weights = zip(*(nnx.split(m, nnx.Param) for m in modules), strict=True)

    def scores(weights: PyTree, latents: jax.Array, batch: Batch, key: jax.Array):
        # whole where they are used: else XLA spreads the channels that they were split
        # along, and every device works on the frames of all members
        weights = jax.tree.map(lambda x: sharding.pin(x, PartitionSpec()), weights)
        nets = [nnx.merge(*pair) for pair in zip(graphs, weights, strict=True)]
        codec, sync, face, *judge = nets
        judges = rewards.Judges(
            decode=codec.decode,
            embed_face=face,
            confidence=lambda lips, mel: lipsync.confidence(sync.curve(lips, mel)),
            face_size=config.face.size,
            lips_size=config.lipsync.size,
            held_out=judge[0] if judge else None,
        )
        length = config.policy.reward_latents
        return rewards.rewards(judges, latents, batch, length, key)

    return jax.tree_util.Partial(scores, weights)


def check_codec(config: ConfigDict, codec: Codec) -> None:
    """InputError unless this codec made the latents of every dataset."""
    for path in paths(config):
        source = Source(config, config.data.split, path)
        if not source.is_encoded:
            continue  # they are made with it
        made = source.encoded(0)["codec"]
        made = made.decode() if isinstance(made, bytes) else str(made)
        if made != fingerprint(codec):
            raise InputError(
                f"networks.codec: {config.networks.codec} ({fingerprint(codec)}) did "
                f"not make the latents of {path} ({made}); give the codec that the "
                "dataset was prepared with"
            )


def export(
    config: ConfigDict, report: Report, graph: nnx.GraphDef, weights: PyTree
) -> None:
    """WORKDIR/<stage>.safetensors: what codec, face and lipsync end with."""
    name = f"{config.stage}.safetensors"
    weights = multihost_utils.process_allgather(weights, tiled=True)
    if jax.process_index():
        return
    facts = {
        "config": config.name,
        "steps": str(config.train.steps),
        "seed": str(config.seed),
        "data": nobodys(config.data.path),
    }
    weights = jax.tree.map(jnp.asarray, weights)  # numpy's, of all processes
    save_network(report.workdir / name, nnx.merge(graph, weights), facts)
    report.publish()
    print(
        f"{report.place / name}: weights of {config.name} after {facts['steps']} steps"
    )
