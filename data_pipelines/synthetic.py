"""Procedural talking people: ordinary videos with sound, and the truth beside them.

Everything is a function of seeds: person i of a cast is the same however many are
drawn, so that people to train on and people to test on are disjoint by index. Static
identity, dynamic identity and scene: `synthetic_people.py`; sound and what the face
does: `synthetic_speech.py`; drawing: `synthetic_head.py`, `synthetic_motion.py`,
`synthetic_backdrop.py`.
"""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from data_pipelines import video_files
from data_pipelines.prepare.workers import cores
from data_pipelines.synthetic_backdrop import backdrop
from data_pipelines.synthetic_head import canvas, head
from data_pipelines.synthetic_motion import face_box, frame_layer, relief
from data_pipelines.synthetic_people import Person, Scene, caption, person, scene
from data_pipelines.synthetic_speech import FPS, SAMPLE_RATE, Track, speech
from tavr_jax.errors import InputError

# Of all that is drawn and heard: raise it with any change of synthetic_*.py that gives
# a seed another picture, sound or truth, or folders would mix two worlds.
DRAWING = 1
FINE = 2  # drawn this many times finer, then averaged: smooth edges
CRF = 14  # quality of the videos


class Clip(NamedTuple):
    """One rendered clip and the truth about it."""

    frames: UInt8[np.ndarray, "F Y X 3"]
    wave: Float[np.ndarray, " n"]
    track: Track
    face_boxes: Float[np.ndarray, "F 4"]


def render(
    who: Person, where: Scene, track: Track, size: int
) -> tuple[UInt8[np.ndarray, "F Y X 3"], Float[np.ndarray, "F 4"]]:
    """Frames of `size` x `size` pixels, and the face's box in 0..1 of each."""
    c = canvas(where, FINE * size)
    still, behind = head(who, where, c), backdrop(where, FINE * size)
    fixed = relief(who, still, c)
    rng = np.random.default_rng(where.texture + 2)
    frames, boxes = [], []
    for i in range(len(track.opening)):
        layer = frame_layer(who, still, fixed, c, track, i)
        picture = layer[..., :3] + behind * (1 - layer[..., 3:])
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
        grain = rng.standard_normal((size, size, 1), np.float32) * where.grain
        frames.append(np.clip((picture + grain) * 255 + 0.5, 0, 255).astype(np.uint8))
        boxes.append(face_box(who, c, track, i))
    return np.stack(frames), np.stack(boxes)


def clip(seed: int, index: int, place: int, seconds: float, size: int) -> Clip:
    """Person `index` of the cast `seed`, in that person's scene `place`."""
    who = person((seed, index))
    where = scene((seed, index, place))
    wave, track = speech(who, (seed, index, place), seconds)
    frames, boxes = render(who, where, track, size)
    return Clip(frames, wave, track, boxes)


def write_people(
    folder: str | os.PathLike,
    people: int,
    scenes: int,
    seconds: float,
    size: int,
    seed: int,
    first_person: int,
) -> list[Path]:
    """Videos FOLDER/person_NNNN/scene_N.mp4 and FOLDER/truth/person_NNNN/scene_N.npz.

    Clips that are there already are left alone, so a stopped run goes on.
    InputError: a folder that cannot be written, or that holds clips of another recipe.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    jobs = [
        _Job(Path(folder), seed, index, place, seconds, size)
        for index in range(first_person, first_person + people)
        for place in range(scenes)
    ]
    missing = [job for job in jobs if not _is_done(job)]
    workers = min(len(missing), cores())
    bar = {"desc": "render", "total": len(missing), "unit": "clip", "mininterval": 2}
    if workers > 1:
        with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
            list(tqdm(pool.map(_write, missing), **bar))
    elif missing:
        list(tqdm(map(_write, missing), **bar))
    return [job.video for job in jobs]


class _Job(NamedTuple):
    folder: Path
    seed: int
    index: int
    place: int
    seconds: float
    size: int

    @property
    def recipe(self) -> np.ndarray:
        """What must be the same for a clip that exists to be the one asked for."""
        return np.array([self.seed, self.size, round(self.seconds * FPS), DRAWING])

    @property
    def video(self) -> Path:
        return self.folder / f"person_{self.index:04d}/scene_{self.place}.mp4"

    @property
    def truth(self) -> Path:
        inside = self.video.relative_to(self.folder).with_suffix(".npz")
        return self.folder / "truth" / inside


def _start_worker() -> None:
    """One thread to draw with; a worker does not outlive who asked for it."""
    cv2.setNumThreads(1)

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _is_done(job: _Job) -> bool:
    if not (job.video.exists() and job.truth.exists()):
        return False
    with np.load(job.truth, allow_pickle=False) as truth:
        if not np.array_equal(truth.get("recipe"), job.recipe):
            raise InputError(
                f"{job.video}: drawn with another seed, size or length, or by another "
                "version of the drawing; give an empty folder, to draw them again"
            )
    return True


def _write(job: _Job) -> None:
    made = clip(job.seed, job.index, job.place, job.seconds, job.size)
    _write_truth(job, made)
    job.video.parent.mkdir(parents=True, exist_ok=True)
    told = caption(scene((job.seed, job.index, job.place)))
    job.video.with_suffix(".txt").write_text(f"{told}\n", encoding="utf-8")
    tags = {"synthetic": "true", "source": "tavr_jax procedural people"}
    video_files.write_video(
        job.video, made.frames, FPS, made.wave, SAMPLE_RATE, crf=CRF, metadata=tags
    )


def _write_truth(job: _Job, made: Clip) -> None:
    path = job.truth
    path.parent.mkdir(parents=True, exist_ok=True)
    track = made.track
    with video_files.appearing(path) as partial:
        np.savez_compressed(
            partial,
            recipe=job.recipe,
            person=job.index,
            scene=job.place,
            opening=track.opening,
            width=track.width,
            rounding=track.rounding,
            yaw=track.yaw,
            lid=track.lid,
            face_boxes=made.face_boxes,
            phonemes=np.array(track.phonemes),
            starts=track.starts,
        )
