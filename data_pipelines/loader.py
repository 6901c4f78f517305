"""Batches, streamed by Grain: shuffled over all clips, cut over hosts, resumable.

The stream of a run is one endless sequence of positions. Each belongs to a part (one
dataset of data.path and one kind of data.pairs; mixing.py), and a part gives its clips
epoch after epoch, each epoch a new permutation. A global batch is the next `batch_size`
positions, in order, and each host reads the rows of it that its devices hold: the
batch, and what the step draws for each of its rows, are the same for any hosts. Every
clip of a part comes once in an epoch of it, over all hosts together.

What is drawn for a clip (its partner, its windows) is a function of seed, part, epoch
and clip, so the number of batches read is the whole state of the iterator, and the same
on every host: any host's state continues the run on any number of hosts. Conditions
are dropped later, in the step, by a key of seed and step (training/supervised.py).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import transforms
from data_pipelines.mixing import Mixture, weighted
from data_pipelines.prepare.pairs import PairIndex, Turn
from data_pipelines.sources import Encoder, Source, paths
from tavr_jax.errors import InputError
from tavr_jax.types import Batch

Example = Callable[[np.random.Generator, int], Any]
_KINDS = ("same_scene", "cross_scene")


class Examples(NamedTuple):
    """What a stage learns from: the slots of an epoch, and how a clip becomes one."""

    slots: list[Turn]
    example: Example


class _Opened(NamedTuple):
    """A dataset, and what sets its numbers apart from those of the ones before."""

    source: Source
    clips: int  # rows of the datasets before it
    people: int


def make_loader(
    config: ConfigDict, *, rows: np.ndarray, encoder: Encoder | None = None
):
    """This host's endless iterator of batches of numpy arrays (see tavr_jax/types.py).

    Yields Frames for stage codec, Faces for face, Sync for lipsync and Batch for all
    others, each with this host's `rows` of a global batch (`sharding.host_rows`). The
    iterator is Grain's: `get_state` and `set_state` continue it exactly.
    `encoder` makes the records of datasets that are not encoded, in this process.
    InputError: no usable data, records that do not fit the model, clips to encode but
    no encoder, or none that workers can use.
    """
    if config.data.batch_size < 1:
        raise InputError(f"data.batch_size={config.data.batch_size}: expected above 0")
    stream = grain.MapDataset.range(1).repeat(None)
    stream = stream.map_with_index(_Draw(*_parts(config, encoder), config, rows))
    stream = stream.batch(len(rows), drop_remainder=True)
    reading = grain.ReadOptions(
        num_threads=config.data.threads, prefetch_buffer_size=config.data.prefetch
    )
    stream = stream.to_iter_dataset(reading)
    if config.data.workers:
        options = grain.MultiprocessingOptions(num_workers=config.data.workers)
        stream = stream.mp_prefetch(options)
    return iter(stream)


def sampler(
    config: ConfigDict, split: str, pairs: str, encoder: Encoder | None = None
) -> Callable[[int], Batch]:
    """A function of an index: a first chunk with its reference, B = 1, always the same.

    `pairs` as data.pairs, of which the heaviest kind is taken; of the first dataset.
    Indices beyond the usable clips wrap around. InputError as of `make_loader`.
    """
    kinds = weighted(pairs, "data.pairs")
    opened = _Opened(Source(config, split, encoder=encoder), 0, 0)
    kind = max(kinds, key=kinds.__getitem__)
    examples = _pair_examples(opened, config, kind, continuation=0.0)

    def one(index: int) -> Batch:
        clip = examples.slots[index % len(examples.slots)].row(0)
        generator = np.random.default_rng([config.seed, 0, 0, clip])
        batch = examples.example(generator, clip)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)

    return one


class _Draw:
    """Place in this host's stream -> example; the only source of chance."""

    def __init__(
        self,
        parts: list[Examples],
        mixture: Mixture,
        config: ConfigDict,
        rows: np.ndarray,
    ):
        self._parts, self._mixture, seed = parts, mixture, config.seed
        self._seed, self._rows, self._batch_size = seed, rows, config.data.batch_size
        self._orders = [
            grain.MapDataset.range(len(part.slots)).seed(seed + n).shuffle().repeat()
            for n, part in enumerate(parts)
        ]

    def __call__(self, place: int, _: Any) -> Any:
        batch, row = divmod(place, len(self._rows))
        position = batch * self._batch_size + int(self._rows[row])
        number, item = self._mixture.locate(position)
        part = self._parts[number]
        epoch = item // len(part.slots)
        index = part.slots[self._orders[number][item]].row(epoch)
        generator = np.random.default_rng([self._seed, number, epoch, index])
        return part.example(generator, index)


def _parts(
    config: ConfigDict, encoder: Encoder | None
) -> tuple[list[Examples], Mixture]:
    """All parts of the stream and how they are mixed."""
    kinds, build = {config.stage: 1.0}, _STAGES.get(config.stage)
    if build is None:
        kinds = weighted(config.data.pairs, "data.pairs")
        share = config.data.continuation
    parts, weights, start, clips, people = [], [], [], 0, 0
    for path, weight in paths(config).items():
        opened = _Opened(_source(config, path, encoder), clips, people)
        clips += len(opened.source.rows)
        people += len({row.person for row in opened.source.rows})
        for number, (kind, kind_weight) in enumerate(kinds.items()):
            parts.append(
                build(opened, config)
                if build
                else _pair_examples(opened, config, kind, share)
            )
            weights.append(weight * kind_weight)
            start.append(0.0 if number else weight)
    return parts, Mixture(weights, start, config.data.curriculum)


def _source(config: ConfigDict, path: str, encoder: Encoder | None) -> Source:
    source = Source(config, config.data.split, path, encoder)
    if source.encoder and config.data.workers:
        raise InputError(
            f"data.workers={config.data.workers}: {path} is not encoded, and worker "
            "processes hold no networks; set --config.data.workers=0, or run "
            "launch.prepare_data with --config.prepare.encode=true"
        )
    return source


def _pair_examples(
    opened: _Opened, config: ConfigDict, kind: str, continuation: float
) -> Examples:
    source, length = opened.source, transforms.lengths(config)
    if kind not in _KINDS:
        raise InputError(f"data.pairs={kind}: choose {' or '.join(_KINDS)}")
    crossing, index = kind == "cross_scene", PairIndex(source.rows)
    usable = [i for i in range(len(source.rows)) if index.crosses(i) or not crossing]
    if not usable:
        raise InputError(
            f"data.pairs=cross_scene: nobody in {source.root} ({source.split}) is seen "
            "in two scenes; give footage as <person>/<scene>.mp4 with two scenes of a "
            "person, or set --config.data.pairs=same_scene"
        )
    _check_lengths(source, length)
    _check_buckets(source, config, continuation, length)
    _check_record(source.encoded(usable[0]), config)
    draw = index.draw_cross_scene if crossing else index.draw_same_scene

    def example(generator: np.random.Generator, clip: int) -> Batch:
        row = source.rows[clip]
        offset = transforms.draw_offset(generator, row, continuation, length)
        other = draw(generator, clip)
        avoid = offset if other == clip else None
        window = transforms.draw_window(generator, source.rows[other], avoid, length)
        target = source.encoded(clip)
        reference = target if other == clip else source.encoded(other)
        number, empty = opened.clips + clip, source.null_text
        return transforms.pair_example(
            target, reference, empty, number, offset, window, length
        )

    return Examples(index.turns(usable, config.data.per_person), example)


def _windows(opened: _Opened, config: ConfigDict) -> Examples:
    source = opened.source
    count = config.data.frames
    _check_frames(source, count, "data.frames")

    def example(generator: np.random.Generator, index: int):
        return transforms.frames_example(generator, source.clip(index), count)

    return Examples(_all(source), example)


def _people(opened: _Opened, config: ConfigDict) -> Examples:
    source = opened.source
    names = sorted({row.person for row in source.rows})
    number = {name: index for index, name in enumerate(names, opened.people)}
    pairs = PairIndex(source.rows)
    _check_faces(source.encoded(0)["faces"], config)

    def example(generator: np.random.Generator, index: int):
        clips = [source.encoded(index)]
        if pairs.crosses(index):
            clips.append(source.encoded(pairs.draw_cross_scene(generator, index)))
        person = number[source.rows[index].person]
        return transforms.faces_example(generator, clips, person)

    return Examples(_all(source), example)


def _lips(opened: _Opened, config: ConfigDict) -> Examples:
    source = opened.source
    count, size = config.lipsync.span, config.lipsync.size
    _check_frames(source, count, "lipsync.span")
    source.encoded(0)  # if it cannot be had, say so now and not in a reading thread

    def example(generator: np.random.Generator, index: int):
        mel = source.encoded(index)["mel"]
        clip = source.clip(index)
        return transforms.sync_example(generator, clip, mel, count, size)

    return Examples(_all(source), example)


def _all(source: Source) -> list[Turn]:
    return [Turn([index], 0, 1) for index in range(len(source.rows))]


# All other stages read pairs.
_STAGES = {"codec": _windows, "face": _people, "lipsync": _lips}


def _check_frames(source: Source, count: int, field: str) -> None:
    shortest = min(source.rows, key=lambda row: row.frames)
    if shortest.frames < count:
        raise InputError(
            f"{field}={count}: clip {shortest.clip_id} has {shortest.frames} frames; "
            "lower it, or prepare again with a higher prepare.min_frames"
        )


def _check_lengths(source: Source, length: transforms.Lengths) -> None:
    shortest = min(source.rows, key=lambda row: row.frames)
    needed = max(4 * length.chunk - 3, 4 * length.shortest)
    if shortest.frames < needed:
        raise InputError(
            f"model.num_video_latents={length.chunk}, references of at least "
            f"{length.shortest} latents: clip {shortest.clip_id} has {shortest.frames} "
            f"of the {needed} frames they need; prepare with a higher "
            "prepare.min_frames"
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
        if config.model.reference_attention != "global":
            of_one = length.reference * int(max(row.face_tokens))
            reference = max(reference, of_one)  # every latent has as much room
        else:
            sums = np.convolve(row.face_tokens, np.ones(length.reference, int))
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
