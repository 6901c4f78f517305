"""What is on disk: two TFDS datasets of one order, an index, and a summary.

    DATASET/clips/<version>/    pictures, sound, faces: one ArrayRecord record a clip
    DATASET/encoded/<version>/  what the transformer trains on, record for record;
                                not there with prepare.encode=False
    DATASET/index.jsonl         one line a clip: who, where, how long (see `Row`)
    DATASET/null_text.npy       features of the empty caption, (L, E) float16; ditto
    DATASET/dataset.json        version, counts and fingerprints of what made it;
                                "encoded" is null where there is no encoded/
    DATASET/rejects.jsonl       what was left out, why, with which numbers

Both datasets open with `tfds.builder_from_directory(folder).as_data_source(split)`; no
TensorFlow is needed to write or to read them. The schema is here and nowhere else; a
change of it is a change of `VERSION`, and `MIGRATE` brings a dataset up to it. There is
no conversion in place: new fields are measured on footage, so footage is read again.

    1.0.0   first
    2.0.0   clips: identity, scene_signature, quality, licence, start;
            index: negatives, licence
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from tavr_jax import storage
from tavr_jax.errors import InputError

VERSION = "2.0.0"
MIGRATE = "python -m launch.prepare_data --source FOLDER --output {root}"
SPLITS = ("train", "test")
INDEX, SUMMARY = "index.jsonl", "dataset.json"
NULL_TEXT, REJECTS = "null_text.npy", "rejects.jsonl"

# What a clip says where nothing was measured or stated.
UNKNOWN = {
    "licence": "",
    "start": np.float32(0),
    "quality": "{}",
    "identity": np.zeros(0, np.float32),
    "scene_signature": np.zeros(0, np.float32),
}

_HOMEPAGE = "https://arxiv.org/abs/2604.27918"
_CITATION = """@article{tavr2026,
  title  = {TAVR},
  note   = {arXiv:2604.27918; clips prepared by tavr_jax, see the footage's own source}
}"""
_LICENSE = (
    "The footage keeps its own licence and the rights of the people in it; "
    "prepare_data adds none. Check both before you train on them or pass them on."
)


class Row(NamedTuple):
    """A line of the index: what pairing and checks need, without opening a record."""

    clip_id: str
    video_id: str
    person: str
    scene: str
    split: str
    record: int  # position in its split, the same in both datasets
    frames: int  # F = 1 + 4k
    size: tuple[int, int]  # pixels (Y, X)
    orientation: str
    still_tokens: int  # background tokens of the still
    face_tokens: tuple[int, ...]  # face tokens of each reference latent
    licence: str = ""  # of the footage, as its manifest names it
    negatives: tuple[str, ...] = ()  # clips of the most similar other people


def clip_features() -> tfds.features.FeaturesDict:
    """The record of `clips`. Boxes are left, top, right, bottom in 0..1."""
    features = tfds.features
    return features.FeaturesDict(
        {
            "clip_id": features.Text(),
            "video_id": features.Text(),
            "person": features.Text(),
            "scene": features.Text(),
            "caption": features.Text(),
            "licence": features.Text(),
            "orientation": features.Text(),
            "start": features.Scalar(np.float32),  # seconds into the footage
            "num_frames": features.Scalar(np.int32),
            "quality": features.Text(),  # JSON: what the filters measured
            "identity": _array((None,), np.float32),  # (Z,), unit length or zeros
            "scene_signature": _array((None,), np.float32),  # prepare/scenes.py
            "video": features.Tensor(shape=(), dtype=np.object_),  # mp4 without sound
            "wave": _array((None,), np.int16),  # mono, speech.sample_rate
            "face_boxes": _array((None, 4), np.float32),
            "person_box": _array((None, 4), np.float32),  # of frame 0: one or several
            "faces": _array((None, None, None, 3), np.uint8),
        }
    )


def encoded_features(
    channels: int, driving: int, reference: int, text: tuple[int, int]
) -> tfds.features.FeaturesDict:
    """The record of `encoded`; letters as in tavr_jax/types.py.

    Args: C, U, V and (L, E). T' and R' are the latents of the whole clip.
    """
    features, latents = tfds.features, (None, None, None, channels)
    return features.FeaturesDict(
        {
            "clip_id": features.Text(),
            "latents": _array(latents, np.float16),  # (T', H, W, C)
            "still": _array((1, *latents[1:]), np.float16),  # frame 0, person greyed
            "still_tokens": _array((None, None), np.bool_),
            "reference": _array(latents, np.float16),  # (R', H, W, C)
            "reference_tokens": _array((None, None, None), np.bool_),
            "audio": _array((None, driving), np.float16),  # (F, U)
            "reference_audio": _array((None, reference), np.float16),  # (F + 3, V)
            "mel": _array((None, None), np.float16),  # (F, U of log-mel)
            "text": _array(text, np.float16),
            "face_boxes": _array((None, 4), np.float32),  # as in clips
            "faces": _array((None, None, None, 3), np.uint8),  # as in clips
            "codec": features.Text(),  # fingerprint of the weights that made latents
        }
    )


def _array(shape: tuple, dtype) -> tfds.features.Tensor:
    encoding = tfds.features.Encoding.BYTES
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)


class RecordWriter:
    """Writes one dataset, record by record, in the order given."""

    def __init__(
        self,
        root: Path,
        name: str,
        features: tfds.features.FeaturesDict,
        description: str,
        records_per_shard: int,
    ):
        folder = root / name / VERSION
        folder.mkdir(parents=True)
        identity = DatasetIdentity(
            name=name,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            description=description,
            features=features,
            homepage=_HOMEPAGE,
            citation=_CITATION,
            license=_LICENSE,
        )
        self._features = features
        self._writer = tfds.core.SequentialWriter(
            info, records_per_shard, file_format="array_record"
        )
        self._writer.initialize_splits(list(SPLITS))

    def add(self, split: str, record: Mapping[str, Any]) -> None:
        """Append one record, a value for every feature but those of `UNKNOWN`."""
        known = {name: UNKNOWN[name] for name in UNKNOWN if name in self._features}
        self._writer.add_examples({split: [known | dict(record)]})

    def close(self) -> None:
        """Finish the files; before this nothing can be read."""
        self._writer.close_all()


def write_index(root: Path, rows: Iterable[Row]) -> None:
    """Write the index of a dataset that is still being built."""
    lines = [json.dumps(row._asdict()) + "\n" for row in rows]
    (root / INDEX).write_text("".join(lines))


def read_index(root: Path) -> list[Row]:
    """All rows, every split, in the order written. InputError: not our file."""
    try:
        lines = [json.loads(line) for line in (root / INDEX).read_text().splitlines()]
        return [
            Row(
                **line
                | {
                    name: tuple(line[name])
                    for name in ("size", "face_tokens", "negatives")
                    if name in line
                }
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if storage.may_pass(error):
            raise
        raise InputError(
            f"{root / INDEX}: cannot be read ({error}); run launch.prepare_data again"
        ) from error


def read_summary(root: Path) -> dict[str, Any]:
    """The dataset's summary, its version checked.

    InputError: no dataset there, or one of another version.
    """
    path = root / SUMMARY
    try:
        summary = json.loads(path.read_text())
        version = summary["version"]
    except FileNotFoundError as error:
        raise InputError(
            f"{root}: holds no dataset (no {SUMMARY}); make one with "
            f"launch.prepare_data --source FOLDER --output {root}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if storage.may_pass(error):
            raise
        raise InputError(
            f"{path}: cannot be read ({error}); run launch.prepare_data again"
        ) from error
    if version != VERSION:
        raise InputError(
            f"{root}: dataset version {version}, this code reads {VERSION}; migrate "
            f"it with: {MIGRATE.format(root=root)}"
        )
    return summary


def is_encoded(root: Path) -> bool:
    """Whether the dataset stores latents and features. InputError: no dataset."""
    return read_summary(root).get("encoded", "") is not None


class Records:
    """The records of a split by number, as TFDS gives them, read faster.

    TFDS copies every number of a record through Python lists and regular expressions;
    here arrays are views of the bytes that were read, and cannot be written to.
    """

    def __init__(self, source, features: tfds.features.FeaturesDict):
        self._source = source  # of bytes
        self._tensors = {
            name: (
                np.dtype(feature.np_dtype),
                [-1 if n is None else n for n in feature.shape],
            )
            for name, feature in features.items()
            if feature.shape and feature.np_dtype != np.object_
        }

    def __len__(self) -> int:
        return len(self._source)

    def raw(self, index: int) -> bytes:
        """A record as it is stored: a serialised tf.train.Example."""
        return self._source[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        stored = tf_example_pb2.Example.FromString(self.raw(index)).features.feature
        record = {}
        for key, feature in stored.items():
            name, _, kind = key.partition("/")
            if kind == "shape":
                continue
            kind = feature.WhichOneof("kind")
            value = getattr(feature, kind).value[0]
            if name in self._tensors:
                dtype, shape = self._tensors[name]
                if f"{name}/shape" in stored:  # where several lengths are open
                    shape = tuple(stored[f"{name}/shape"].int64_list.value)
                value = np.frombuffer(value, dtype).reshape(shape)
            record[name] = value
        return record


def open_records(root: Path, name: str, split: str) -> Records:
    """Random access to the records of a split.

    InputError: files missing or damaged.
    """
    folder = root / name / VERSION
    try:
        builder = tfds.builder_from_directory(str(folder))
        source = builder.as_data_source(split).data_source
        return Records(source, builder.info.features)
    except (OSError, ValueError) as error:
        if storage.may_pass(error):
            raise
        line = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be opened ({line}); run launch.prepare_data again"
        ) from error
