"""What launch.evaluate compares: held-out samples, and ways to make their videos."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, media, people
from data_pipelines.prepare.pairs import partners
from data_pipelines.records import Row
from data_pipelines.sources import Source
from launch import build, checkpoints
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate, score_video
from tavr_jax.evaluation.benchmark import MARKS, Network
from tavr_jax.evaluation.metrics_method import OURS

_LOOK = 5  # frames between two boxes that say where a clip's person is

# Fields that samples and their scores depend on, beside whole sections.
OF_SAMPLES = (
    "face.size",
    "lipsync.size",
    "lipsync.max_shift",
    "output.decode_dtype",
    "output.exact_release",
    "prepare.detect_every",
    "prepare.identity_faces",
    "prepare.released_colours",
    "wav2vec.states",
)
# And what of a model its weights do not tell.
OF_CHECKPOINTS = (
    "model.dtype",
    "model.audio_window",
    "model.rope_spatial_stride",
    "model.videoref_rope_offset",
)


class Pair(NamedTuple):
    """A target clip and the clip that refers to its person, by index of the source."""

    target: int
    reference: int


class Material(NamedTuple):
    """One sample, read from the dataset."""

    # what a checkpoint makes it from: what it hears in silence is its own
    request: Callable[[checkpoints.Checkpoint], generate.Request]
    plan: chunks.Plan | None  # None: nothing can be generated
    truth: score_video.Truth
    latents: Callable[[], ndarray]  # of the real video, (T, H, W, C)
    wave: ndarray  # its speech
    index: int  # of the sample: each has noise of its own
    key: str  # of the sample: names its files
    frames: int | None = None  # of the video to make; None: as many as the real one


class Video(NamedTuple):
    """What a row makes of a sample."""

    frames: UInt8[ndarray, "F Y X 3"]
    joins: Sequence[int] = ()  # first frames of its chunks but the first, if known
    cost: Mapping[str, float | None] = MappingProxyType({})  # of `benchmark.COST`


class Heard(NamedTuple):
    """What a video was driven by."""

    wave: Float[ndarray, " n"]
    mel: Float[ndarray, "F U"] | None  # None: of the sample's own speech
    silent: bool = False


class Way(NamedTuple):
    """A row: how it makes the video of a sample, and everything that depends on.

    A row that is sampled with several seeds is several of these, its draws.
    """

    name: str
    slug: str
    make: Callable[[Material], Video]
    made_with: dict[str, Any]
    tags: dict[str, str]
    protocol: str = "video"  # what is shown of the person
    # what else a sample's video depends on, by its key: somebody's file
    of: Callable[[str], dict[str, Any]] | None = None
    heard: Callable[[Material], Heard] | None = None  # None: the sample's own speech
    hears: str = "own"  # or "silence", or "swapped"
    family: str = ""  # rows of one checkpoint, or of one folder
    frames: int | None = None  # of the reference; None: as many as the config says
    chunks: int | None = None  # of the video; None: as long as the sample's speech
    stage: str = ""  # that the checkpoint is of
    attention: str = ""  # what its reference tokens read of each other
    draw: int = 0  # which of its row's seeds: 0 is the first
    first: str = ""  # slug of the row's first draw, where this is another

    @property
    def row(self) -> str:
        """Slug of the row."""
        return self.first or self.slug


def field(config: ConfigDict, name: str) -> Any:
    """The value of a section, or of a field as "section.name"."""
    section, _, inner = name.partition(".")
    value = config[section]
    if inner:
        value = value[inner]
    return value.to_dict() if isinstance(value, ConfigDict) else value


def stated(config: ConfigDict, names: Sequence[str]) -> dict[str, Any]:
    """Fields as JSON has them."""
    values = {name: field(config, name) for name in names}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}


def choose_pairs(rows: Sequence[Row], count: int) -> list[Pair]:
    """The first `count` targets, one of every person before a second of anybody.

    Targets with a reference in another scene come first; a clip that is its person's
    only scene refers to itself.
    """
    others, turns = partners(rows), defaultdict(int)
    order = []
    for index, row in sorted(enumerate(rows), key=lambda item: item[1].clip_id):
        crosses = bool(others[index])
        turn = turns[row.person, crosses]
        turns[row.person, crosses] += 1
        found = sorted(others[index], key=lambda other: rows[other].clip_id)
        reference = found[turn % len(found)] if found else index
        order.append((not crosses, turn, row.clip_id, Pair(index, reference)))
    return [pair for *_, pair in sorted(order)][:count]


def frames_of(row: Row, config: ConfigDict) -> int:
    """Of the video made of a clip: at most evaluation.frames, and whole latents."""
    longest = min(row.frames, config.evaluation.frames or row.frames)
    return 1 + (longest - 1) // 4 * 4


def read_sample(
    source: Source,
    pair: Pair,
    index: int,
    config: ConfigDict,
    negative: Float[ndarray, "L E"],
    truth: Path | None,
) -> Material:
    """One sample, at most evaluation.frames long. `negative`: rows of text.negative.

    InputError: the reference is shorter than the model needs, `truth` lacks the clip.
    """
    row, clip = source.rows[pair.target], source.clip(pair.target)
    target, reference = source.encoded(pair.target), source.encoded(pair.reference)
    plan = chunks.plan(
        frames_of(row, config),
        config.model.num_video_latents,
        config.chunks.motion_latents,
        config.chunks.canvas_tail,
    )
    wanted, have = config.model.num_videoref_latents, len(reference["reference"])
    if have < wanted:
        raise InputError(
            f"--dataset {source.root}: clip {source.rows[pair.reference].clip_id} has "
            f"{have} reference latents, the model reads {wanted}; prepare with a "
            "higher prepare.min_frames"
        )
    start, end = conditions.reference_window(have, len(plan.spans), wanted)
    request = generate.Request(
        still=target["still"],
        still_tokens=target["still_tokens"],
        reference=reference["reference"][start:end],
        reference_tokens=reference["reference_tokens"][start:end],
        reference_audio=reference["reference_audio"][4 * start : 4 * end],
        text=target["text"],
        null_text=source.null_text,
        negative_text=negative,
        audio=target["audio"][: plan.frames],
    )
    shown, first = source.clip(pair.reference), conditions.SPAN * start
    boxes = clip["face_boxes"][: plan.frames]
    known = score_video.Truth(
        frames=media.decode_mp4(clip["video"])[: plan.frames],
        boxes=boxes,
        persons=persons(boxes),
        reference=media.decode_mp4(shown["video"])[first:],
        reference_boxes=shown["face_boxes"][first:],
        reference_faces=reference["faces"],
        mel=target["mel"][: plan.frames].astype(np.float32),
        opening=None if truth is None else clip_opening(truth, row, plan.frames),
        fps=float(config.speech.fps),
    )
    rate, fps = config.speech.sample_rate, config.speech.fps
    wave = clip["wave"][: plan.frames * rate // fps].astype(np.float32) / 32767
    latents = target["latents"][: plan.latents]
    return Material(
        lambda _: request, plan, known, lambda: latents, wave, index, row.clip_id
    )


def persons(boxes: Float[ndarray, "F 4"]) -> Float[ndarray, "n 4"]:
    """Head and shoulders wherever a clip's face is: what is no background."""
    found = [conditions.person_box_from_face(box) for box in boxes[::_LOOK]]
    return np.concatenate(found)


def check_codec(source: Source, codec: Codec) -> None:
    """InputError where the dataset's latents are not this codec's."""
    made, have = source.encoded(0)["codec"], fingerprint(codec)
    made = made.decode() if isinstance(made, bytes) else made
    if made != have:
        raise InputError(
            f"--dataset {source.root}: encoded by codec {made}, the checkpoint's "
            f"config names codec {have}; run launch.prepare_data again with that codec"
        )


def marks(codec: Codec | None, output: generate.OutputConfig) -> list[Way]:
    """The rows that are no checkpoint. Without a `codec` there is none of its own."""

    def real(sample: Material) -> Video:
        return Video(sample.truth.frames)

    def reconstruct(sample: Material) -> Video:
        latents = jnp.asarray(sample.latents(), jnp.float32)[None]
        count = len(sample.truth.frames)
        return Video(generate.decode(codec, latents, count, output))

    def repeat(sample: Material) -> Video:
        frames = sample.truth.frames
        return Video(frames[:1].repeat(len(frames), axis=0))

    def copy(sample: Material) -> Video:
        """Forth and back, so that it does not leap."""
        real, shown = sample.truth.frames, sample.truth.reference
        there = np.arange(len(shown))
        order = np.concatenate([there, there[-2:0:-1]])
        frames = shown[np.resize(order, len(real))]
        return Video(media.cover_resize(frames, real.shape[1:3]))

    makes = {
        "truth": real,
        **({} if codec is None else {"codec": reconstruct}),
        "still": repeat,
        "copied": copy,
    }
    made_with = {"codec": {"codec": codec and fingerprint(codec)}}
    return [
        Way(MARKS[slug], slug, make, made_with.get(slug, {}), {"role": MARKS[slug]})
        for slug, make in makes.items()
    ]


def make_judges(config: ConfigDict) -> tuple[score_video.Judges, dict[str, Network]]:
    """The scoring networks, and what they are."""
    face, sync = build.judging_face_net(config), build.sync_net(config)
    face_graph, face_weights = nnx.split(face)
    sync_graph, sync_weights = nnx.split(sync)

    @jax.jit
    def embed(weights, faces):
        return nnx.merge(face_graph, weights)(faces)

    @jax.jit
    def embed_windows(weights, faces, mel):
        net = nnx.merge(sync_graph, weights)
        return net.embed_faces(faces)[0], net.embed_speech(mel)[0]

    def embed_sync(faces: ndarray, mel: ndarray) -> tuple[ndarray, ndarray]:
        lips, speech = embed_windows(sync_weights, signed(faces)[None], mel[None])
        return np.asarray(lips), np.asarray(speech)

    def crop(size: int) -> Callable[[ndarray, ndarray], ndarray]:
        return lambda frames, boxes: people.crop_faces(frames, boxes, size, len(frames))

    judges = score_video.Judges(
        crop_face=crop(config.face.size),
        crop_lips=crop(config.lipsync.size),
        embed_faces=lambda faces: np.asarray(embed(face_weights, signed(faces))),
        embed_sync=embed_sync,
        max_shift=config.lipsync.max_shift,
    )
    mark, reward = fingerprint(face), fingerprint(build.face_net(config))
    same = "the network of stage 3's reward" if mark == reward else "not the reward's"
    face_from, sync_from = config.evaluation.face, config.networks.lipsync
    networks = {
        "face": _network(f"FaceNet {face_from} {mark}, {same}", face_from),
        "lipsync": _network(f"SyncNet {sync_from} {fingerprint(sync)}", sync_from),
    }
    return judges, networks


def _network(what: str, source: str) -> Network:
    shipped = source in (build.PACKAGED, build.UNTRAINED)
    return Network(what, OURS if shipped else "of the file you gave", shipped)


def mouth_opening(
    folder: Path, name: str, first: int, frames: int, held: int = 0
) -> Float[ndarray, " F"]:
    """The true opening of the mouth in frames `first` on of a video called `name`.

    At most `held` frames after its end have the last value. InputError: not there, or
    shorter.
    """
    path = folder / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as truth:
            opening = truth["opening"][first : first + frames]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--truth {path}: no mouth opening in it ({type(error).__name__}); give "
            "the folder truth/ that launch.render_people wrote beside the footage"
        ) from error
    if len(opening) < max(1, frames - held):
        raise InputError(
            f"--truth {path}: {len(opening)} of {frames} frames from frame {first}; "
            "it belongs to other footage"
        )
    missing = frames - len(opening)
    return np.pad(opening, (0, missing), mode="edge").astype(np.float32)


def clip_opening(folder: Path, row: Row, frames: int) -> Float[ndarray, " F"]:
    """`mouth_opening` of a dataset's clip."""
    first = int(row.clip_id.rpartition(":")[2])
    name = Path(row.video_id).with_suffix("").as_posix()
    return mouth_opening(folder, name, first, frames)


def signed(pixels: ndarray) -> ndarray:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
