"""What a run shows of itself: a sample of a clip, and numbers of held-out pairs.

Both use the averaged weights, and always the same clips, noise and noise levels, so
that two steps, or two runs, differ by their weights alone: pair n draws from
fold_in(fold_in(key(seed), 2^32 - 1), n), whatever the number of devices. Step n of
training draws from fold_in(key(seed), n): no noise is shown that was trained on.

    stages before 3   held_out/loss      flow loss, conditions whole, every element
                                         alike; what a pre-stage never sees stays out
    stage 3           held_out/identity  ... rewards of one sample of each pair, made as
                                         launch.generate would, but guided away from
                                         the empty caption, not from
                                         text.negative; identity is that of
                                         evaluation.face, rewarded_identity that of
                                         the network that rewards
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import loader
from data_pipelines.sources import Encoder, Source
from data_pipelines.video_files import write_video
from launch import build, stages
from launch.start import Start
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate
from tavr_jax.parallel import sharding
from tavr_jax.training import supervised
from tavr_jax.training.report import Image, Media, Report, Sound, Video
from tavr_jax.types import Batch, PyTree

OnSample = Callable[[PyTree, int], dict[str, Media]]
OnEvaluate = Callable[[PyTree, int], dict[str, float]]
HELD_OUT = "test"  # split
JUDGED = "judged_identity"  # of rl/rewards.py
# What is folded into the seed; training folds in its steps, which are below 2^31.
_PAIRS, _PREVIEW, _JUDGE = 2**32 - 1, 2**32 - 2, 2**32 - 3


def preview(
    config: ConfigDict, start: Start, lines: Report, encoder: Encoder | None
) -> OnSample | None:
    """One clip, generated beside the real one: a held-out clip where there is one.

    A stage before 3 is given no condition that its training never gives. Also written
    to WORKDIR/samples/step_N.mp4, with sound. None: train.sample_every 0.
    """
    if not config.train.sample_every:
        return None
    pairs = config.data.pairs
    try:
        split, read = HELD_OUT, loader.sampler(config, HELD_OUT, pairs, encoder)
    except InputError as error:
        split = config.data.split
        read = loader.sampler(config, split, pairs, encoder)
        lines.say(f"preview of a training clip, for want of a held-out one ({error})")
    batch = read(0)
    codec = build.codec(config)
    stages.check_codec(config, codec)
    settings = generate.SamplerConfig(**config.sampler)
    sample = generate.sampler(start.graph, settings, _mesh(start))
    key = _root(config, _PREVIEW)
    noise = np.asarray(jax.random.normal(key, batch.latents.shape))
    conditions = jax.tree.map(jnp.asarray, batch.conditions)
    if config.stage in stages.FLOW:
        # shares of 0 and 1 alone: the key decides nothing
        conditions = supervised.drop_conditions(conditions, _always(config), key)

    frames, fps = 4 * batch.latents.shape[1] - 3, config.speech.fps
    rate = config.speech.sample_rate
    wave = Source(config, split).clip(int(batch.clip[0]))["wave"]
    wave = wave[: frames * rate // fps].astype(np.float32) / 32768.0
    output = generate.OutputConfig(**config.output)
    target = generate.decode(codec, jnp.asarray(batch.latents), frames, output)

    def on_sample(params: PyTree, step: int) -> dict[str, Media]:
        weights = start.whole(params)
        latents = sample(weights, jnp.array(noise), conditions, conditions.null_text)
        latents = multihost_utils.process_allgather(latents, tiled=True)
        made = generate.decode(codec, jnp.asarray(latents), frames, output)
        both = np.concatenate([made, target], axis=2)
        if not jax.process_index():
            path = lines.workdir / "samples" / f"step_{step}.mp4"
            tags = _tags(config, step)
            write_video(path, both, fps, wave, rate, output.crf, tags)
        return {
            "sample/generated_and_target": Video(both, float(fps)),
            "sample/last_frame": Image(made[-1]),
            "sample/speech": Sound(wave, rate),
        }

    return on_sample


def held_out(
    config: ConfigDict, start: Start, lines: Report, encoder: Encoder | None
) -> OnEvaluate | None:
    """Loss or rewards of train.evaluate_batches batches of held-out pairs.

    None: train.evaluate_every is 0, or nobody is held out, which is said. Pairs come
    again, with other noise, where there are fewer.
    """
    if not config.train.evaluate_every:
        return None
    try:
        pair = loader.sampler(config, HELD_OUT, config.data.pairs, encoder)
    except InputError as error:
        lines.say(f"no evaluation of held-out pairs ({error})")
        return None
    rows = config.data.batch_size
    if config.stage == "policy":
        group, score = config.policy.group_size, held_out_reward(config, start, lines)
    else:
        group, score = 1, held_out_loss(config, start)
    mesh = _mesh(start)
    split = sharding.batch(mesh, rows, group)
    read = cache(partial(_read, pair, rows, sharding.host_rows(split, rows)))

    def one(params: PyTree, number: int) -> dict[str, float]:
        batch, pairs = sharding.place(split, rows, read(number))
        keys = _keys(_root(config, _PAIRS), pairs)
        return jax.device_get(score(params, batch, keys))

    def on_evaluate(params: PyTree, step: int) -> dict[str, float]:
        with jax.set_mesh(mesh):
            found = [one(params, n) for n in range(config.train.evaluate_batches)]
        return {n: float(np.mean([part[n] for part in found])) for n in found[0]}

    return on_evaluate


# (trained parameters, batch, keys " B") -> means over the batch
Score = Callable[[PyTree, Batch, jax.Array], dict[str, jax.Array]]


def held_out_loss(config: ConfigDict, start: Start) -> Score:
    """Flow loss of whole conditions; those that training never gives stay out."""
    same = {"density": "uniform", "face_weight": 1.0, "lips_weight": 1.0}
    recipe = dataclasses.replace(_always(config), motion_noise=0.0, **same)
    draw = supervised.flow_draw(recipe)

    @jax.jit
    def score(loss, params, batch, keys):
        drawn = jax.vmap(lambda one, key: _first(draw(_one(one), key)))(batch, keys)
        return {"loss": loss(params, drawn)[0]}

    return partial(score, supervised.flow_loss(start.network(), recipe))


def _always(config: ConfigDict) -> supervised.FlowConfig:
    """Section `flow` that drops what training always drops, and nothing else."""
    recipe = supervised.FlowConfig(**config.flow)
    shares = {name: float(getattr(recipe, name) == 1) for name in supervised.SHARES}
    return dataclasses.replace(recipe, **shares)


def held_out_reward(config: ConfigDict, start: Start, lines: Report) -> Score:
    """Rewards of one sample of each pair; identity as evaluation.face sees it."""
    nets = build.face_net(config), build.judging_face_net(config)
    if len({fingerprint(net) for net in nets}) == 1:
        lines.say(
            "held-out pairs are scored by the face network that rewards, which does "
            "not tell a hacked reward; give another with --config.evaluation.face"
        )
    settings = generate.SamplerConfig(**config.sampler)
    sample = generate.sampler(start.graph, settings, _mesh(start))
    judge = jax.jit(lambda reward, *arguments: reward(*arguments))
    reward = stages.reward(config)

    def score(params: PyTree, batch: Batch, keys: jax.Array):
        given = batch.conditions
        noise = _normal(keys, batch.latents.shape[1:])
        noise = jax.device_put(noise, batch.latents.sharding)
        latents = sample(start.whole(params), noise, given, given.null_text)
        scores = judge(reward, latents, batch, _root(config, _JUDGE))
        if JUDGED in scores:
            scores["rewarded_identity"] = scores["identity"]
            scores["identity"] = scores.pop(JUDGED)
        return {name: values.mean() for name, values in scores.items()}

    return score


@partial(jax.jit, static_argnums=1)
def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _read(
    pair: Callable[[int], Batch], batch_size: int, rows: np.ndarray, number: int
) -> tuple[Batch, np.ndarray]:
    """This host's rows of held-out batch `number`, and the numbers of its pairs."""
    numbers = (number * batch_size + rows).astype(np.int32)
    pairs = [pair(int(index)) for index in numbers]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pairs), numbers


def _mesh(start: Start) -> Mesh:
    return jax.tree.leaves(start.abstract)[0].sharding.mesh


def _root(config: ConfigDict, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def _one(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _tags(config: ConfigDict, step: int) -> dict[str, str]:
    """Of a file that shows generated people."""
    return {
        "synthetic": "true",
        "comment": "Synthetic media: the left half was generated by a model.",
        "generator": "tavr_jax",
        "config": config.name,
        "checkpoint": f"step {step}",
        "seed": str(config.seed),
    }
