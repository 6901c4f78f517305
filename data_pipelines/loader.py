"""Batches, streamed by Grain: shuffled over all clips, cut over hosts, resumable.

The stream of a run is one endless sequence of clips, epoch after epoch, each a new
permutation. Host s of n reads positions s, s + n, s + 2n, ...: a global batch is the
next `batch_size` clips of that sequence whatever n is, and every clip comes once an
epoch over all hosts together. What is drawn for a clip (its partner, its windows) is a
function of seed, epoch and clip, so the position is the whole state of the iterator.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import transforms
from data_pipelines.prepare.pairs import partners
from data_pipelines.sources import Source
from tavr_jax.errors import InputError
from tavr_jax.types import Batch

Example = Callable[[np.random.Generator, int], Any]


class Examples(NamedTuple):
    """What a stage learns from: clips by index, and how one becomes an example."""

    indices: list[int]
    example: Example


def make_loader(config: ConfigDict, *, shard: int, shards: int):
    """This host's endless iterator of batches of numpy arrays (see tavr_jax/types.py).

    Yields Batch for the stages same_scene, cross_scene and policy, Frames for codec,
    Faces for face, Sync for lipsync, each with batch_size / shards samples. The
    iterator is Grain's: `get_state` and `set_state` continue it exactly.
    InputError: no usable data, a batch that the hosts cannot share, records that do
    not fit the model.
    """
    batch_size = config.data.batch_size
    if batch_size < 1 or batch_size % shards:
        raise InputError(
            f"data.batch_size={batch_size}: cannot be shared by {shards} hosts; choose "
            "a multiple"
        )
    examples = _STAGES[config.stage](Source(config, config.data.split), config)
    stream = grain.MapDataset.range(len(examples.indices)).seed(config.seed).shuffle()
    stream = stream.repeat(None).map_with_index(_Draw(examples, config.seed))
    stream = stream[shard::shards].batch(batch_size // shards, drop_remainder=True)
    reading = grain.ReadOptions(
        num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch
    )
    stream = stream.to_iter_dataset(reading)
    if config.data.workers:
        options = grain.MultiprocessingOptions(num_workers=config.data.workers)
        stream = stream.mp_prefetch(options)
    return iter(stream)


def sample(config: ConfigDict, split: str, index: int, pairs: str) -> Batch:
    """One first chunk with its reference, B = 1, always the same for the same index.

    `pairs` is same_scene or cross_scene; indices beyond the usable clips wrap around.
    """
    source = Source(config, split)
    examples = _pair_examples(source, config, pairs, continuation=0.0)
    chosen = index % len(examples.indices)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf)[None],
        _Draw(examples, config.seed)(chosen, chosen),
    )


class _Draw:
    """Position in the stream and clip -> example; the only source of chance."""

    def __init__(self, examples: Examples, seed: int):
        self._examples, self._seed = examples, seed

    def __call__(self, position: int, item: int) -> Any:
        indices = self._examples.indices
        epoch, index = position // len(indices), indices[item % len(indices)]
        generator = np.random.default_rng([self._seed, epoch, index])
        return self._examples.example(generator, index)


def _pair_examples(
    source: Source, config: ConfigDict, pairs: str, continuation: float
) -> Examples:
    length = transforms.lengths(config)
    if pairs == "same_scene":
        indices, others = list(range(len(source.rows))), None
    elif pairs == "cross_scene":
        others = partners(source.rows)
        indices = [index for index, found in enumerate(others) if found]
    else:
        raise InputError(f"data.pairs={pairs}: choose same_scene or cross_scene")
    if not indices:
        raise InputError(
            f"data.pairs=cross_scene: nobody in {source.root} ({source.split}) is seen "
            "in two scenes; give footage as <person>/<scene>.mp4 with two scenes of a "
            "person, or set --config.data.pairs=same_scene"
        )
    _check_lengths(source, length)
    _check_buckets(source, config, continuation, length)
    _check_record(source.encoded(indices[0]), config)

    def example(generator: np.random.Generator, index: int) -> Batch:
        row, other = source.rows[index], index
        offset = transforms.draw_offset(generator, row, continuation, length)
        if others is not None:
            other = int(generator.choice(others[index]))
        avoid = offset if other == index else None
        window = transforms.draw_window(generator, source.rows[other], avoid, length)
        target = source.encoded(index)
        reference = target if other == index else source.encoded(other)
        return transforms.pair_example(
            target, reference, source.null_text, index, offset, window, length
        )

    return Examples(indices, example)


def _paired(source: Source, config: ConfigDict) -> Examples:
    return _pair_examples(source, config, config.data.pairs, config.data.continuation)


def _windows(source: Source, config: ConfigDict) -> Examples:
    count = config.data.frames
    _check_frames(source, count, "data.frames")

    def example(generator: np.random.Generator, index: int):
        return transforms.frames_example(generator, source.clip(index), count)

    return Examples(list(range(len(source.rows))), example)


def _people(source: Source, config: ConfigDict) -> Examples:
    names = sorted({row.person for row in source.rows})
    number = {name: index for index, name in enumerate(names)}
    others = partners(source.rows)
    _check_faces(source.encoded(0)["faces"], config)

    def example(generator: np.random.Generator, index: int):
        clips = [source.encoded(index)]
        if others[index]:
            clips.append(source.encoded(int(generator.choice(others[index]))))
        person = number[source.rows[index].person]
        return transforms.faces_example(generator, clips, person)

    return Examples(list(range(len(source.rows))), example)


def _lips(source: Source, config: ConfigDict) -> Examples:
    count, size = config.lipsync.span, config.lipsync.size
    _check_frames(source, count, "lipsync.span")

    def example(generator: np.random.Generator, index: int):
        mel = source.encoded(index)["mel"]
        clip = source.clip(index)
        return transforms.sync_example(generator, clip, mel, count, size)

    return Examples(list(range(len(source.rows))), example)


_STAGES = {
    "same_scene": _paired,
    "cross_scene": _paired,
    "policy": _paired,
    "codec": _windows,
    "face": _people,
    "lipsync": _lips,
}


def _check_frames(source: Source, count: int, field: str) -> None:
    shortest = min(source.rows, key=lambda row: row.frames)
    if shortest.frames < count:
        raise InputError(
            f"{field}={count}: clip {shortest.clip_id} has {shortest.frames} frames; "
            "lower it, or prepare again with a higher prepare.min_frames"
        )


def _check_lengths(source: Source, length: transforms.Lengths) -> None:
    shortest = min(source.rows, key=lambda row: row.frames)
    needed = max(4 * length.chunk - 3, 4 * length.reference)
    if shortest.frames < needed:
        raise InputError(
            f"model.num_video_latents={length.chunk}, num_videoref_latents="
            f"{length.reference}: clip {shortest.clip_id} has {shortest.frames} of the "
            f"{needed} frames they need; prepare with a higher prepare.min_frames"
        )


def _check_buckets(
    source: Source, config: ConfigDict, continuation: float, length: transforms.Lengths
) -> None:
    """The packed tokens of every possible sample must have room."""
    rows, columns = (side // 16 for side in source.rows[0].size)
    still = reference = 0
    for row in source.rows:
        goes_on = continuation > 0 and transforms.video_latents(row) > length.chunk
        still = max(still, rows * columns if goes_on else row.still_tokens)
        sums = np.convolve(row.face_tokens, np.ones(length.reference, int), "valid")
        reference = max(reference, int(sums.max()))
    room = {
        "model.still_bucket": (config.model.still_bucket, still),
        "model.reference_bucket": (config.model.reference_bucket, reference),
    }
    for field, (bucket, needed) in room.items():
        if bucket and bucket < needed:
            raise InputError(
                f"{field}={bucket}: a sample of {source.root} has {needed} valid "
                f"tokens; set --config.{field} to {needed} or more, or 0 for all"
            )


def _check_record(record: dict[str, Any], config: ConfigDict) -> None:
    """Widths of the records against the model's."""
    model = config.model
    widths = {
        "model.out_dim": (model.out_dim, record["latents"].shape[-1]),
        "model.audio_dim": (model.audio_dim, record["audio"].shape[-1]),
        "model.videoref_audio_dim": (
            model.videoref_audio_dim,
            record["reference_audio"].shape[-1],
        ),
        "model.text_len": (model.text_len, record["text"].shape[0]),
        "model.text_dim": (model.text_dim, record["text"].shape[1]),
    }
    for field, (asked, found) in widths.items():
        if asked != found:
            raise InputError(
                f"{field}={asked}: the records of data.path hold {found}; prepare the "
                "dataset with this config, or train with the config that prepared it"
            )
    _check_faces(record["faces"], config)


def _check_faces(faces: np.ndarray, config: ConfigDict) -> None:
    if faces.shape[:2] != (config.prepare.identity_faces, config.face.size):
        raise InputError(
            f"prepare.identity_faces={config.prepare.identity_faces}, face.size="
            f"{config.face.size}: the records of data.path hold {faces.shape[0]} crops "
            f"of {faces.shape[1]} pixels; prepare the dataset with this config"
        )
