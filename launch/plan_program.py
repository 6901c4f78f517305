"""The programs that a run would start with, traced for devices that are not here.

    train     the step of launch.train: stages.STEPS under loop.compiled
    rollout   the first part of stage 3's step alone: groups of samples by the policy
    generate  what launch.generate calls: the prefill of the reference, all steps of one
              chunk with their guidance, and one later piece of the video decoder. Every
              token of still and reference is taken: no program is larger

They are built from the functions that those commands call, with shapes in the place of
weights and data. What is not known without files is taken to be: weights that are not
trained, and those of generate, are bfloat16, as the published ones are stored; the
frozen networks of rewards have the sizes of the config.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from data_pipelines import transforms
from launch import build, origin, stages
from launch.bench_speech import SIZES
from launch.start import Start
from tavr_jax.encoders import vae_stream
from tavr_jax.encoders.wav2vec2 import Wav2Vec2
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.models.transformer import ReferenceCache, Transformer
from tavr_jax.parallel import sharding
from tavr_jax.rl import rollout
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training import loop, optimizer, policy, trainable
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import TrainState
from tavr_jax.training.supervised import target_latents
from tavr_jax.types import Batch, Conditions, PyTree

JOBS = ("train", "rollout", "generate")
PIXELS = 8  # along each axis of one latent


class Program(NamedTuple):
    """One program of a job."""

    name: str
    lowered: Callable[[], Any]  # -> jax.stages.Lowered; traces under the mesh
    inputs: dict[str, PyTree]  # its arguments: shapes with shardings
    cache: PyTree  # of the reference: shapes with shardings; None: it has none
    beside: PyTree = None  # what else the command holds while it runs


class AbstractStart(Start):
    """`Start` whose weights are shapes."""

    def reference(self, workdir: Path, resuming: bool) -> PyTree:
        """As in `Start`, of shapes."""
        return self.abstract


def programs(config: ConfigDict, job: str, mesh: Mesh) -> Iterator[Program]:
    """What `job` runs on `mesh`. InputError: a stage without a transformer, a batch
    that the mesh does not divide, fields without meaning."""
    if config.stage not in stages.PAIRED:
        raise InputError(
            f"stage: {config.stage}: its network is small and needs no plan; "
            f"expected {' | '.join(stages.PAIRED)}"
        )
    if job == "rollout" and config.stage != "policy":
        raise InputError(
            f"--job=rollout: stage {config.stage} has no rollouts; give a config of "
            "stage policy"
        )
    match job:
        case "train":
            yield train(config, mesh)
        case "rollout":
            yield roll_out(config, mesh)
        case "generate":
            yield from generation(config, mesh)


def train(config: ConfigDict, mesh: Mesh) -> Program:
    """The step of `config.stage`, as launch.train compiles it."""
    stages.check(config)
    stages.check_parts(config, mesh)
    config = config.copy_and_resolve_references()
    config.init_from = config.init_from or "what stage 2 ended with"  # not read
    rates = OptimizerConfig(**config.optimizer)
    begun = start(config, mesh)
    create = partial(optimizer.create_state, config=rates)
    state = sharding.abstract(mesh, jax.eval_shape(create, begun.abstract))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    run = stages.Run(config, begun, Path(), resuming=False, is_abstract=True)
    step = sharding.abstract(mesh, stages.STEPS[config.stage](run, rates))
    rows = config.data.batch_size
    given = batch(config, rows, sharding.batch(mesh, rows, stages.members(config)))
    scale = config.policy.audio_scale if config.stage == "policy" else 1.0
    jitted = loop.program(config.seed, mesh, shardings)
    return Program(
        "train step",
        partial(_lowered, mesh, jitted, step, state, given),
        {"frozen": step, **_parts(state), "batch": given},
        reference_cache(config, given.conditions, mesh, scale),
    )


def roll_out(config: ConfigDict, mesh: Mesh) -> Program:
    """Groups of samples under the policy, as training/policy.py begins its step."""
    settings = PolicyConfig(**config.policy)
    algorithm, begun = policy.ALGORITHMS[settings.algorithm], start(config, mesh)
    network, rows = begun.network(), config.data.batch_size
    network = sharding.abstract(mesh, network)
    given = batch(config, rows, sharding.batch(mesh, rows, settings.group_size))

    def rolled(network, params: PyTree, batch: Batch, key: jax.Array):
        told, group = batch.conditions, settings.group_size
        drawn = target_latents(told, batch.latents.shape[1])
        velocity = rollout.group_velocity(network(params), told, group, settings)
        begin = rollout.begin(told, drawn, group)
        return algorithm.roll_out(velocity, begin, settings, key).latents

    key = jax.eval_shape(lambda: jax.random.key(0))
    inputs = {"frozen": network, "params": begun.abstract, "batch": given}
    call = partial(_lowered, mesh, jax.jit(rolled), *inputs.values(), key)
    cache = reference_cache(config, given.conditions, mesh, settings.audio_scale)
    return Program("rollout", call, inputs, cache)


def generation(config: ConfigDict, mesh: Mesh) -> Iterator[Program]:
    """`sampler` and `decoder`, each beside what the other leaves in memory: the command
    holds both networks from beginning to end, and on its first device the one that
    listens. umT5 comes before them and is gone."""
    prefill, denoise = sampler(config, mesh)
    pieces, listens = decoder(config, mesh), listener(config)
    for program in (prefill, denoise):
        yield program._replace(beside=(pieces.inputs["weights"], listens))
    kept = (denoise.inputs["weights"], denoise.cache, listens)
    yield pieces._replace(beside=kept)


def listener(config: ConfigDict) -> PyTree:
    """The weights of networks.speech: float32, on one device, of the published size."""
    if config.networks.speech == build.PACKAGED:
        return ()
    network = nnx.eval_shape(lambda: Wav2Vec2(SIZES, rngs=nnx.Rngs(0)))
    return nnx.state(network, nnx.Param)


def sampler(config: ConfigDict, mesh: Mesh) -> Iterator[Program]:
    """What launch.generate calls for one video: the reference's keys and values, once,
    and all steps of one chunk."""
    model = build.abstract_transformer(config)
    graph, shapes = nnx.split(model, nnx.Param)
    weights = sharding.abstract(mesh, _stored(shapes))
    config = config.copy_and_resolve_references()
    config.data.reference_latents = (0, 0)  # what training draws does not matter here
    given = batch(config, 1, sharding.replicated(mesh))
    told, settings = given.conditions, generate.SamplerConfig(**config.sampler)
    sample = generate.programs(graph, settings, mesh, 1)
    with jax.set_mesh(mesh):
        shape = jax.eval_shape(sample.prefill, weights, told)
    cache = _kept(model, shape, mesh)
    inputs = {"weights": weights, "conditions": told}
    call = partial(_lowered, mesh, sample.prefill, *inputs.values())
    yield Program("prefill", call, inputs, cache)
    inputs = {
        "weights": weights,
        "noise": given.latents,
        "conditions": told,
        "negative_text": told.null_text,
        "cache": cache,
    }
    call = partial(_lowered, mesh, sample.denoise, *inputs.values())
    yield Program("denoise", call, inputs, cache)


def decoder(config: ConfigDict, mesh: Mesh) -> Program:
    """Frames of output.decode_latents latents in the middle of a video."""
    graph, shapes = nnx.split(build.abstract_judges(config).codec)
    settings = generate.OutputConfig(**config.output)
    alone, dtype = sharding.replicated(mesh), jnp.dtype(settings.decode_dtype)
    weights = _placed(alone, shapes)
    rows, columns = (side // PIXELS for side in size(config))

    def latents(count: int) -> jax.ShapeDtypeStruct:
        shape = (1, count, rows, columns, config.codec.z_dim)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=alone)

    step = vae_stream.decode_step
    with jax.set_mesh(mesh):
        memory = jax.eval_shape(
            lambda w, z: step(graph, w, z, None, dtype)[1], weights, latents(1)
        )
        memory = jax.tree.map(
            lambda x: _placed(
                # columns stay on the devices that made them (encoders/vae_columns.py)
                NamedSharding(mesh, sharding.fitting(x.shape, *"...X.")),
                x,
            ),
            memory,
        )
    inputs = {
        "weights": weights,
        "latents": latents(settings.decode_latents),
        "memory": memory,
    }
    call = partial(_lowered, mesh, step, graph, *inputs.values(), dtype)
    return Program("decoder", call, inputs, None)


def start(config: ConfigDict, mesh: Mesh) -> AbstractStart:
    """What launch.start.begin makes, without a weight."""
    part, additions = config.optimizer.trainable, config.lora.to_dict()
    model = nnx.eval_shape(partial(origin.grafted, config, part, additions))
    graph, trained, rest = nnx.split(model, trainable.chosen(part, model), nnx.Param)
    base = origin.Base(config.init_from, "", "", config.seed, part, additions)
    trained = sharding.abstract(mesh, trained)
    frozen = sharding.abstract(mesh, _stored(rest))
    return AbstractStart(graph, trained, frozen, lambda: trained, base)


def size(config: ConfigDict) -> tuple[int, int]:
    """Pixel rows and columns of the bucket."""
    return tuple(config.prepare[config.data.orientation])


def batch(config: ConfigDict, rows: int, split: NamedSharding) -> Batch:
    """Shapes of a batch of the loader: `rows` of what it makes of a record of zeros."""
    length, model = transforms.lengths(config), config.model
    grid = tuple(side // PIXELS for side in size(config))
    cells = tuple(n // p for n, p in zip(grid, model.patch_size[1:], strict=True))
    frames = 4 * max(length.chunk, length.reference)
    mel, face = 4 * config.speech.mel_bins, config.face.size

    def zeros(*shape: int, dtype=np.float16) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    record = {
        "latents": zeros(length.chunk, *grid, model.out_dim),
        "still": zeros(1, *grid, model.out_dim),
        "still_tokens": zeros(*cells, dtype=np.bool_),
        "reference": zeros(length.reference, *grid, model.out_dim),
        "reference_tokens": zeros(length.reference, *cells, dtype=np.bool_),
        "audio": zeros(frames, model.audio_dim),
        "reference_audio": zeros(frames, model.videoref_audio_dim),
        "mel": zeros(frames, mel),
        "text": zeros(config.text.length, config.text.dim),
        "face_boxes": zeros(frames, 4, dtype=np.float32),
        "faces": zeros(config.prepare.identity_faces, face, face, 3, dtype=np.uint8),
    }
    window = range(length.reference)
    one = transforms.pair_example(record, record, record["text"], 0, 0, window, length)

    def shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        leaf = np.asarray(leaf)
        return jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype, sharding=split)

    return jax.tree.map(shape, one)


def reference_cache(
    config: ConfigDict, given: Conditions, mesh: Mesh, audio_scale: float
) -> PyTree:
    """Shapes of the reference's keys and values that one call of the network reads, or
    two where it is asked without audio too."""
    model = build.abstract_transformer(config)
    graph, shapes = nnx.split(model, nnx.Param)
    with jax.set_mesh(mesh):
        rows = len(given.has_audio)
        held = rollout.prefills(rows, stages.members(config))
        one = jax.eval_shape(
            lambda weights, told: nnx.merge(graph, weights).prefill(
                rollout.repeated(told, held)
            ),
            shapes,
            given,
        )
    return (_kept(model, one, mesh),) * (1 + (audio_scale != 1))


def _kept(model: Transformer, caches: PyTree, mesh: Mesh) -> PyTree:
    """Caches where `prefill` leaves them; a program's results do not name axes of one
    device, and a name more would be another entry in the compilation cache."""

    def bare(place: PartitionSpec) -> NamedSharding:
        split = [(axes,) if isinstance(axes, str) else axes or () for axes in place]
        kept = ([axis for axis in axes if mesh.shape[axis] > 1] for axes in split)
        return NamedSharding(
            mesh, PartitionSpec(*(tuple(axes) or None for axes in kept))
        )

    def placed(one: ReferenceCache) -> ReferenceCache:
        with jax.set_mesh(mesh):
            places = model.cache_specs(len(one.valid))
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=bare(place)
            ),
            one,
            places,
        )

    return jax.tree.map(placed, caches, is_leaf=lambda x: isinstance(x, ReferenceCache))


def _lowered(mesh: Mesh, jitted: Any, *inputs: PyTree) -> Any:
    with jax.set_mesh(mesh):
        return jitted.lower(*inputs)


def _parts(state: TrainState) -> dict[str, PyTree]:
    return {
        "parameters": state.params,
        "moments": state.opt_state,
        "average": state.ema,
    }


def _stored(shapes: PyTree) -> PyTree:
    """As published weights are stored."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), shapes)


def _placed(where: NamedSharding, tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
    )
