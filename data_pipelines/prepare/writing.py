"""Clips of all videos -> the clips dataset: the one step that sees everything.

Identities are computed, people and scenes are told apart (pairs.py), and the records
go out in the order of the videos. What is written depends on the footage and the
config alone: no time, no machine, no number of workers.

    DATASET/quality.jsonl    a line a clip: what the filters measured, as in the records
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines import conditions, records
from data_pipelines.prepare import identity, pairs, quality, store
from data_pipelines.prepare.clips import Reject
from data_pipelines.prepare.importers import Video
from tavr_jax.errors import InputError

QUALITY = "quality.jsonl"
_ONLY_HERE = ("split", "identity_faces", "thumbnail")  # not of the record


def write_clips(
    videos: list[Video],
    rejects: list[Reject],
    config: ConfigDict,
    network: identity.FaceNetwork | None,
    work: Path,
    partial: Path,
) -> None:
    """Records, index, measures and rejects. InputError: nothing, or nobody, is left."""
    paths = [path for video in videos for path in store.clip_paths(video, work)]
    if not paths:
        raise _nothing(rejects)
    nodes = [
        _node(path, network)
        for path in tqdm(paths, desc="who is who", unit="clip", mininterval=2)
    ]
    placed = pairs.connect(nodes, config.prepare)
    if not any(each.split == "train" for each in placed):
        raise InputError(
            f"prepare.held_out={config.prepare.held_out}: everybody is held out; "
            "lower it, or give more people"
        )
    writer = records.RecordWriter(
        partial,
        "clips",
        records.clip_features(),
        "Clips of one talking person: pictures, sound, face boxes and face crops.",
        config.prepare.records_per_shard,
    )
    rows, lines, counts = [], [], Counter()
    together = zip(paths, nodes, placed, strict=True)
    for path, node, place in tqdm(
        together, total=len(paths), desc="writing", unit="clip", mininterval=2
    ):
        clip = store.load_record(path)
        clip |= {"person": place.person, "scene": place.scene}
        rows.append(_row(clip, place, counts[place.split], config))
        lines.append({"clip_id": clip["clip_id"], **json.loads(clip["quality"])})
        kept = {name: clip[name] for name in clip if name not in _ONLY_HERE}
        kept |= {"identity": node.identity, "video": clip["video"].tobytes()}
        writer.add(place.split, kept)
        counts[place.split] += 1
    writer.close()
    records.write_index(partial, rows)
    _write_lines(partial / QUALITY, lines)
    told = [
        {k: v for k, v in reject._asdict().items() if k != "thumbnail"}
        for reject in rejects
    ]
    _write_lines(partial / records.REJECTS, told)


def _node(path: Path, network: identity.FaceNetwork | None) -> pairs.Node:
    names = ("clip_id", "video_id", "start", "person", "scene", "split")
    clip = store.load_record(path, (*names, "scene_signature", "identity_faces"))
    faces = clip.pop("identity_faces")
    vector = np.zeros(0, np.float32)
    if len(faces):
        vector = identity.embed_clip(faces, network)
    return pairs.node(clip | {"identity": vector})


def _row(
    clip: dict[str, Any], place: pairs.Placed, record: int, config: ConfigDict
) -> records.Row:
    size = tuple(config.prepare[clip["orientation"]])
    tokens = conditions.face_tokens(clip["face_boxes"], size)
    person = conditions.still_mask(clip["person_box"], size)
    return records.Row(
        *(clip[name] for name in ("clip_id", "video_id", "person", "scene")),
        split=place.split,
        record=record,
        frames=clip["num_frames"],
        size=size,
        orientation=clip["orientation"],
        still_tokens=int(conditions.still_tokens(person).sum()),
        face_tokens=tuple(tokens.sum(axis=(1, 2)).tolist()),
        licence=clip["licence"],
        negatives=place.negatives,
    )


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _nothing(rejects: list[Reject]) -> InputError:
    """No clip survived: say the commonest reason."""
    reason, count = Counter(reject.reason for reject in rejects).most_common(1)[0]
    example = next(reject for reject in rejects if reject.reason == reason)
    return InputError(
        f"--source: no clip could be kept: {count} of {len(rejects)} rejected for "
        f"'{reason}' ({example.video_id}: {example.detail}); {quality.REMEDIES[reason]}"
    )
