"""Footage -> a dataset, whole: what `launch.prepare_data` runs.

    find videos - leave out what a benchmark scores - clips of each video (pipeline.py)
    - who is who, records (writing.py) - summary page - encode - checksums

All is made in OUTPUT.partial beside the present dataset, which is replaced at the end
by renaming. Cut and encoded clips are kept in OUTPUT.partial/work until then, so that a
stopped run goes on where it was. Two fingerprints decide what has to be made at all.
With prepare.encode=False nothing is encoded, and the second fingerprint is None.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines import features, records
from data_pipelines.features import Readers
from data_pipelines.prepare import (
    checksums,
    clips,
    encode,
    leaks,
    pipeline,
    remote,
    store,
    summary,
    writing,
)
from data_pipelines.prepare.identity import CropNetwork, FaceNetwork
from data_pipelines.prepare.importers import Video, find_videos
from data_pipelines.prepare.pipeline import Runner
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError

# fields that change how fast, not what
_SPEED = ("workers", "records_per_shard", "worker_memory", "video_timeout")
_NOT_OF_CLIPS = (*_SPEED, "encode")
_READ_WITH = ("speech", "text", "tokenizer")  # networks of encoded records, and codec


class Networks(NamedTuple):
    """What clips are read with; no codec and readers where prepare.encode=False."""

    codec: Codec | None
    readers: Readers | None
    face: FaceNetwork | None  # None: people are told apart by name alone


def prepare(
    source: Path,
    output: Path,
    config: ConfigDict,
    networks: Networks,
    runner: Runner,
) -> bool:
    """Bring `output` up to what footage, config and networks say; false: it already was

    A link is followed: what it points to is replaced.
    InputError: nothing to read, nothing kept, a folder in the way, another run that
    writes there, a full disk.
    """
    _check(config)
    if config.prepare.encode:
        features.check(networks.readers, config)
    output = output.resolve()
    partial = output.with_name(f"{output.name}.partial")
    try:
        return _prepare(source, output, partial, config, networks, runner)
    except (OSError, RuntimeError) as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"--output {output}: the disk is full; make room and run the same command "
            f"again: it goes on from what is in {partial}"
        ) from error


def _is_full(error: Exception) -> bool:
    """Whether an error is a full disk's; ArrayRecord tells it in words only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in codes
    return any(os.strerror(code) in str(error) for code in codes)


def _prepare(
    source: Path,
    output: Path,
    partial: Path,
    config: ConfigDict,
    networks: Networks,
    runner: Runner,
) -> bool:
    videos, refused = _videos(source, config)
    names = [reject.video_id for reject in refused]
    cut, encoded = _fingerprints(videos, names, config, networks)
    with store.alone(output):
        present = _present(output)
        if (present.get("clips"), present.get("encoded")) == (cut, encoded):
            print(f"{output}: up to date, nothing to do")
            return False
        work = _resumed(partial, cut)
        if present.get("clips") == cut:
            print(f"{output}: same clips, {_change(present['encoded'], encoded)}")
            _link_clips(output, partial)
        else:
            cut_out = cut_videos(videos, config, networks.face, work, runner, source)
            rejects = [*refused, *cut_out]
            try:
                writing.write_clips(
                    videos, rejects, config, networks.face, work, partial
                )
            except InputError:
                shutil.rmtree(partial)  # nothing to keep: no clip, nobody to train on
                raise
            title, shown = runner.bucket or source.name, _shown(videos, work)
            summary.write(partial, title, rejects, shown, config)
        if encoded:
            _write_encoded(config, networks, work / encoded, partial)
        _write_facts(partial, cut, encoded, config, networks)
        checksums.write(partial, ("work",))
        shutil.rmtree(partial / "work")
        _publish(partial, output)
    return True


def _write_facts(
    partial: Path,
    cut: str,
    encoded: str | None,
    config: ConfigDict,
    networks: Networks,
) -> None:
    facts = {
        "version": records.VERSION,
        "clips": cut,
        "encoded": encoded,
        "codec": fingerprint(networks.codec) if encoded else None,
        "config": config.name,
        "count": len(records.read_index(partial)),
    }
    (partial / records.SUMMARY).write_text(json.dumps(facts, indent=2) + "\n")


def _videos(source: Path, config: ConfigDict) -> tuple[list[Video], list[clips.Reject]]:
    """All footage that may be used, and what may not for its name."""
    videos, refused = find_videos(source, config.prepare.cluster_people), []
    for video in videos:
        if video.video_id != video.video_id.encode(errors="replace").decode():
            name = video.video_id.encode(errors="backslashreplace").decode()
            detail = "its name is not UTF-8; rename it"
            refused.append(clips.Reject(name, "unreadable", detail, 0, 0, {}))
            videos = [other for other in videos if other is not video]
    if config.prepare.exclude:
        guard = leaks.leaks(config.prepare.exclude)
        videos, leaking = leaks.without_leaks(videos, guard)
        refused += [
            clips.Reject(video.video_id, "in a benchmark", reason, 0, 0, {})
            for video, reason in leaking
        ]
    return videos, refused


def cut_videos(
    videos: list[Video],
    config: ConfigDict,
    network: FaceNetwork | None,
    work: Path,
    runner: Runner,
    source: Path,
) -> list[clips.Reject]:
    """Clips of all videos into the work folder; what was left out, in order."""
    settings = clips.ClipSettings(
        config.prepare,
        config.face.size,
        config.speech.sample_rate,
        config.speech.fps,
        _only_crops(network),
    )
    if runner.exchange:  # one folder a fingerprint; an earlier run may have filled it
        runner = runner._replace(exchange=f"{runner.exchange}/{work.name}")
        remote.copy_results(runner.exchange, str(work))
    waiting = [video for video in videos if not store.is_done(video, work)]
    if waiting and runner.beam:
        pipeline.run(waiting, settings, work, runner, source)
    elif waiting:
        done = pipeline.each_video(waiting, settings, work)
        bar = {"desc": "cutting", "unit": "video", "mininterval": 2}
        for _ in tqdm(done, total=len(waiting), **bar):
            pass
    return [reject for video in videos for reject in store.rejects(video, work)]


def _only_crops(network: FaceNetwork | None) -> FaceNetwork | None:
    """The network as workers use it: they cut faces out, and load no weights."""
    if isinstance(network, CropNetwork):
        return network._replace(embed=None)
    return network


def _shown(videos: list[Video], work: Path) -> list[tuple[str, bytes]]:
    """Names and pictures of some clips, evenly among all."""
    paths = [path for video in videos for path in store.clip_paths(video, work)]
    count = min(len(paths), summary.SHOWN)
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, count).astype(int)]
    loaded = [store.load_record(path, ("clip_id", "thumbnail")) for path in chosen]
    return [(clip["clip_id"], clip["thumbnail"].tobytes()) for clip in loaded]


# What is there


def _check(config: ConfigDict) -> None:
    p = config.prepare
    if p.clip_frames < p.min_frames:
        raise InputError(
            f"prepare.clip_frames={p.clip_frames}: shorter than prepare.min_frames="
            f"{p.min_frames}; no clip could be kept"
        )
    for name in ("landscape", "portrait"):
        if any(side % 16 for side in p[name]):
            raise InputError(f"prepare.{name}={tuple(p[name])}: use multiples of 16")
    positive = ("min_frames", "detect_every", "search_every", "identity_faces")
    for name in (*positive, "records_per_shard"):
        if p[name] < 1:
            raise InputError(f"prepare.{name}={p[name]}: use 1 or more")


def _fingerprints(
    videos: list[Video], refused: list[str], config: ConfigDict, networks: Networks
) -> tuple[str, str | None]:
    """Of everything that clips depend on, and that encoded records depend on."""
    p = config.prepare.to_dict()
    wanted = {k: v for k, v in p.items() if k not in _NOT_OF_CLIPS}
    footage = [
        (*video[1:], *_stamps(video.path, ("", ".json", ".txt"))) for video in videos
    ]
    guards = [_stamps(Path(file), ("",)) for file in config.prepare.exclude]
    face = networks.face and networks.face.name
    speech = config.speech.to_dict()
    made = [records.VERSION, footage, refused, wanted, guards, face]
    cut = _digest([*made, config.face.size, speech["sample_rate"], speech["fps"]])
    if not config.prepare.encode:
        return cut, None
    sections = [config[name].to_dict() for name in ("codec", "wav2vec", "text")]
    read = [_content(config.networks[name]) for name in _READ_WITH]
    codec = fingerprint(networks.codec)
    return cut, _digest([cut, codec, speech, sections, read])


def _change(present: str | None, encoded: str | None) -> str:
    """What happens to the encoded records, in words."""
    if encoded is None:
        return "prepare.encode=False: leaving out what was encoded"
    return "another codec or text: encoding again" if present else "encoding them"


def _stamps(path: Path, suffixes: Iterable[str]) -> list[tuple[int, int] | None]:
    files = [path.with_suffix(suffix) if suffix else path for suffix in suffixes]
    stats = [file.stat() if file.exists() else None for file in files]
    return [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]


def _content(network: str) -> str | list[tuple[str, str]]:
    """The files that a network's name means, by what is in them; other names as such.

    One on the hub is its name: which revision is in the cache is not asked.
    """
    path = Path(network)
    if not path.exists():
        return network
    found = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            found.append((file.relative_to(path).as_posix(), digest))
    return found


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _present(output: Path) -> dict[str, Any]:
    """The summary of the dataset to replace; empty if there is none or an older one."""
    old = output.with_name(f"{output.name}.old")
    if old.exists() and not output.exists():
        os.replace(old, output)  # stopped between the two renames of _publish
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}
    path = output / records.SUMMARY
    if not path.is_file():
        raise InputError(
            f"--output {output}: is there and is no dataset; choose another folder"
        )
    facts = json.loads(path.read_text())
    return facts if facts.get("version") == records.VERSION else {}


def _resumed(partial: Path, cut: str) -> Path:
    """The work folder of this cut, kept from a run that was stopped, all else gone."""
    work = partial / "work" / cut
    for path in [*partial.glob("*"), *partial.glob("work/*")]:
        if path not in (work, work.parent):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(parents=True, exist_ok=True)
    return work


# Encoding


def _write_encoded(
    config: ConfigDict, networks: Networks, cache: Path, partial: Path
) -> None:
    """The encoded dataset, record for record with the clips."""
    cache.mkdir(exist_ok=True)
    readers, name = networks.readers, fingerprint(networks.codec)
    run = encode.make_encoder(networks.codec, name, readers, config)
    writer = records.RecordWriter(
        partial,
        "encoded",
        encode.features(config),
        f"Latents (codec {name}) and features of the clips, in the same order.",
        config.prepare.records_per_shard,
    )
    rows = records.read_index(partial)
    opened = {
        split: records.open_records(partial, "clips", split)
        for split in {row.split for row in rows}
    }
    bar = tqdm(rows, desc="encoding", unit="clip", mininterval=2)
    for number, row in enumerate(bar):
        path = cache / f"{number:08d}.npz"
        if not path.exists():
            store.save_record(path, run(opened[row.split][row.record]))
        writer.add(row.split, store.load_record(path))
    writer.close()
    np.save(partial / records.NULL_TEXT, encode.null_text(readers))


# Replacing


def _link_clips(output: Path, partial: Path) -> None:
    """The present clips under the new folder, without copying where links work."""
    shutil.copytree(output / "clips", partial / "clips", copy_function=_link)
    for name in (records.INDEX, records.REJECTS, writing.QUALITY, summary.PAGE):
        shutil.copy2(output / name, partial / name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _publish(partial: Path, output: Path) -> None:
    old = output.with_name(f"{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(partial, output)
    shutil.rmtree(old, ignore_errors=True)
