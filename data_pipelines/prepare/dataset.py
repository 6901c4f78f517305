"""A folder of videos -> a dataset, whole: what `launch.prepare_data` runs.

    find videos - cut them into clips (processes) - write clips - encode - write encoded

All is made in OUTPUT.partial beside the present dataset, which is replaced at the end
by renaming. Cut and encoded clips are kept in OUTPUT.partial/work until then, so that a
stopped run goes on where it was. Two fingerprints decide what has to be made at all.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines import conditions, records
from data_pipelines.prepare import clips, encode
from data_pipelines.prepare.pairs import Video, find_videos, is_held_out
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError

# fields that change how fast, not what
_SPEED = ("workers", "records_per_shard")


def prepare(source: Path, output: Path, config: ConfigDict, codec: Codec) -> bool:
    """Bring `output` up to what footage, config and codec say; false: it already was.

    InputError: nothing to read, nothing kept, a folder in the way.
    """
    _check(config)
    encode.check_features(config)
    videos = find_videos(source)
    cut, encoded = _fingerprints(videos, config, fingerprint(codec))
    present = _present(output)
    if (present.get("clips"), present.get("encoded")) == (cut, encoded):
        print(f"{output}: up to date, nothing to do")
        return False
    partial = output.with_name(f"{output.name}.partial")
    work = _resumed(partial, cut)
    if present.get("clips") == cut:
        print(f"{output}: same clips, another codec or text: encoding again")
        _link_clips(output, partial)
    else:
        rejects = cut_videos(videos, config, work)
        _write_clips(videos, rejects, config, work, partial)
    _write_encoded(config, codec, work / encoded, partial)
    summary = {
        "version": records.VERSION,
        "clips": cut,
        "encoded": encoded,
        "codec": fingerprint(codec),
        "config": config.name,
        "count": len(records.read_index(partial)),
    }
    (partial / records.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    shutil.rmtree(partial / "work")
    _publish(partial, output)
    return True


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
    for name in ("min_frames", "detect_every", "identity_faces", "records_per_shard"):
        if p[name] < 1:
            raise InputError(f"prepare.{name}={p[name]}: use 1 or more")


def _fingerprints(
    videos: list[Video], config: ConfigDict, codec: str
) -> tuple[str, str]:
    """Of everything that clips depend on, and that encoded records depend on."""
    wanted = {k: v for k, v in config.prepare.to_dict().items() if k not in _SPEED}
    footage = [
        (video.video_id, *_stamps(video.path, ("", ".json", ".txt")))
        for video in videos
    ]
    speech, text = config.speech.to_dict(), config.text.to_dict()
    made = [records.VERSION, footage, wanted, config.face.size]
    cut = _digest([*made, speech["sample_rate"], speech["fps"]])
    return cut, _digest([cut, codec, config.codec.to_dict(), speech, text])


def _stamps(path: Path, suffixes: Iterable[str]) -> list[tuple[int, int] | None]:
    files = [path.with_suffix(suffix) if suffix else path for suffix in suffixes]
    stats = [file.stat() if file.exists() else None for file in files]
    return [stat and (stat.st_size, stat.st_mtime_ns) for stat in stats]


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
    summary = json.loads(path.read_text())
    return summary if summary.get("version") == records.VERSION else {}


def _resumed(partial: Path, cut: str) -> Path:
    """The work folder of this cut, kept from a run that was stopped, all else gone."""
    work = partial / "work" / cut
    for path in [*partial.glob("*"), *partial.glob("work/*")]:
        if path not in (work, work.parent):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(parents=True, exist_ok=True)
    return work


# Cutting


def cut_videos(
    videos: list[Video], config: ConfigDict, work: Path
) -> list[clips.Reject]:
    """Clips of all videos into the work folder, several videos at once."""
    settings = clips.ClipSettings(
        config.prepare,
        config.face.size,
        config.speech.sample_rate,
        config.speech.fps,
    )
    workers = config.prepare.workers or os.cpu_count() or 1
    results: dict[str, list[clips.Reject]] = {}
    with tqdm(total=len(videos), desc="cutting", unit="video", mininterval=2) as bar:
        for video, rejects in _each(videos, settings, work, min(workers, len(videos))):
            results[video.video_id] = rejects
            bar.update()
    return [reject for video in videos for reject in results[video.video_id]]


def _each(
    videos: list[Video], settings: clips.ClipSettings, work: Path, workers: int
) -> Iterator[tuple[Video, list[clips.Reject]]]:
    if workers == 1:
        for video in videos:
            yield video, clips.prepare_video(video, settings, work)
        return
    # Spawned, not forked: JAX and OpenCV have threads that a fork would tear.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _single_threaded) as pool:
        try:
            jobs = {
                pool.submit(clips.prepare_video, video, settings, work): video
                for video in videos
            }
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _single_threaded() -> None:
    cv2.setNumThreads(1)


def _write_clips(
    videos: list[Video],
    rejects: list[clips.Reject],
    config: ConfigDict,
    work: Path,
    partial: Path,
) -> None:
    """The clips dataset, its index and the rejects."""
    paths = [path for video in videos for path in clips.clip_paths(video, work)]
    if not paths:
        _refuse(rejects, partial)
    writer = records.RecordWriter(
        partial,
        "clips",
        records.clip_features(),
        "Clips of one talking person: pictures, sound, face boxes and face crops.",
        config.prepare.records_per_shard,
    )
    rows, counts = [], Counter()
    for path in tqdm(paths, desc="writing", unit="clip", mininterval=2):
        clip = clips.load_record(path)
        split = "test" if is_held_out(clip["person"], config.prepare.held_out) else ""
        split = split or "train"
        rows.append(_row(clip, split, counts[split], config))
        writer.add(split, clip | {"video": clip["video"].tobytes()})
        counts[split] += 1
    writer.close()
    if not counts["train"]:
        shutil.rmtree(partial)
        raise InputError(
            f"prepare.held_out={config.prepare.held_out}: everybody is held out; "
            "lower it, or give more people"
        )
    records.write_index(partial, rows)
    lines = [json.dumps(reject._asdict()) + "\n" for reject in rejects]
    (partial / records.REJECTS).write_text("".join(lines))


def _row(
    clip: dict[str, Any], split: str, record: int, config: ConfigDict
) -> records.Row:
    size = tuple(config.prepare[clip["orientation"]])
    tokens = conditions.face_tokens(clip["face_boxes"], size)
    person = conditions.still_mask(clip["person_box"], size)
    return records.Row(
        *(clip[name] for name in ("clip_id", "video_id", "person", "scene")),
        split=split,
        record=record,
        frames=clip["num_frames"],
        size=size,
        orientation=clip["orientation"],
        still_tokens=int(conditions.still_tokens(person).sum()),
        face_tokens=tuple(tokens.sum(axis=(1, 2)).tolist()),
    )


def _refuse(rejects: list[clips.Reject], partial: Path) -> None:
    """No clip survived: say the commonest reason."""
    shutil.rmtree(partial)
    reason, count = Counter(reject.reason for reject in rejects).most_common(1)[0]
    example = next(reject for reject in rejects if reject.reason == reason)
    raise InputError(
        f"--source: no clip could be kept: {count} of {len(rejects)} rejected for "
        f"'{reason}' ({example.video_id}: {example.detail}); {clips.REMEDIES[reason]}"
    )


# Encoding


def _write_encoded(
    config: ConfigDict, codec: Codec, cache: Path, partial: Path
) -> None:
    """The encoded dataset, record for record with the clips."""
    cache.mkdir(exist_ok=True)
    name = fingerprint(codec)
    run = encode.make_encoder(codec, name, config)
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
            clips.save_record(path, run(opened[row.split][row.record]))
        writer.add(row.split, clips.load_record(path))
    writer.close()
    np.save(partial / records.NULL_TEXT, encode.null_text(config))


# Replacing


def _link_clips(output: Path, partial: Path) -> None:
    """The present clips under the new folder, without copying where links work."""
    shutil.copytree(output / "clips", partial / "clips", copy_function=_link)
    for name in (records.INDEX, records.REJECTS):
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
