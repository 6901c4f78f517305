"""What a user hands to launch.generate, read and checked before the long work."""

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import conditions, media, people
from data_pipelines.prepare.encode import PREFIX_ROWS
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.speech import SpeechConfig, log_mel
from tavr_jax.encoders.text import TextConfig, embed
from tavr_jax.encoders.vae import Codec, encode_reference
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate


class Reference(NamedTuple):
    """Footage of the person, from its start."""

    frames: ndarray  # uint8 (F, Y, X, 3) at bucket size
    track: people.FaceTrack
    wave: ndarray | None  # None: no sound track


class Target(NamedTuple):
    """The scene, at bucket size."""

    still: ndarray  # uint8 (Y, X, 3)
    person: ndarray  # one box or several, (n, 4) in 0..1


def check_output(path: Path) -> None:
    """InputError before the long work, not after it."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"--output {path}: video is written as .mp4; give such a name")
    folder = next(p for p in path.absolute().parents if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(
            f"--output {path}: {folder} cannot be written to; give another"
        )


def person_box(values: list[str]) -> ndarray:
    """`--person_box` as left, top, right, bottom. InputError: not such a box."""
    try:
        box = np.array([float(value) for value in values], np.float32)
        left, top, right, bottom = box
        sound = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    except ValueError:
        sound = False
    if not sound:
        raise InputError(
            f"--person_box {','.join(values)}: give left,top,right,bottom, each in "
            "0..1, left < right, top < bottom"
        )
    return box


def plan_video(path: str, wave: ndarray, config: ConfigDict) -> tuple[int, chunks.Plan]:
    """Frames of the video, and its chunks. InputError: the speech is too short."""
    rows = len(wave) * config.speech.fps // config.speech.sample_rate
    frames, size = generate.num_frames(rows), config.model.num_video_latents
    motion, tail = config.chunks.motion_latents, config.chunks.canvas_tail
    try:
        return rows, chunks.plan(frames, size, motion, tail)
    except InputError as error:
        seconds = len(wave) / config.speech.sample_rate
        raise InputError(
            f"--audio {path}: {seconds:.2f} s of speech are too short for a video; "
            f"give at least {(4 * motion + 1) / config.speech.fps:.2f} s"
        ) from error


def read_target(path: str, box: ndarray | None, prepare: ConfigDict) -> Target:
    """The still at bucket size, and where its person is; of a video, frame 0.

    InputError: no picture, no face in it and no box given.
    """
    still = _picture(path)
    bucket = conditions.bucket_of(*still.shape[:2], prepare)
    view = _window(still, bucket)
    if box is None:
        faces = people.find_faces(view)
        if not len(faces):
            raise InputError(
                f"--target {path}: no face found in the still; give a still with the "
                "person in it, or say where the person will be: "
                "--person_box left,top,right,bottom in 0..1"
            )
        area = (faces[:, 2:] - faces[:, :2]).prod(axis=1)
        person = conditions.person_box_from_face(faces[area.argmax()])
    else:
        person = box[None]
    found = conditions.still_mask(person, bucket)
    rows, columns = still.shape[:2]
    print(
        f"target {path}: {columns}x{rows} -> {bucket[1]}x{bucket[0]}, "
        f"{found.mean():.0%} of it masked as the person"
    )
    return Target(media.cover_resize(view[None], bucket)[0], person)


def read_reference(
    path: str, bucket: tuple[int, int], plan: chunks.Plan, config: ConfigDict
) -> Reference:
    """Frames, face track and sound of the reference.

    InputError: not a video, too short, no face.
    """
    fps, every = config.speech.fps, config.prepare.detect_every
    limit = max(plan.frames + 200, 100)  # as released [TAVR_SPEC 9-3]
    has_audio = media.probe(path).has_audio
    frames, found = [], []
    for index, frame in enumerate(islice(media.iterate_frames(path, fps), limit)):
        view = _window(frame, bucket)
        if index % every == 0:
            found.append(people.find_faces(view))
        frames.append(media.cover_resize(view[None], bucket)[0])
    needed = 4 * config.model.num_videoref_latents
    if len(frames) < needed:
        raise InputError(
            f"--reference {path}: {len(frames)} frames at {fps} fps, {needed} are "
            f"needed; give at least {needed / fps:.2f} s of the person"
        )
    track = people.link_faces(found, every, len(frames))
    if not track.coverage:
        raise InputError(
            f"--reference {path}: no face found; give a video that shows the person's "
            "face in the middle, as large as a tenth of the frame or more"
        )
    wave = media.read_audio(path, config.speech.sample_rate) if has_audio else None
    sound = "with sound" if has_audio else "no sound"
    print(
        f"reference {path}: {len(frames)} frames, {sound}, a face in "
        f"{track.coverage:.0%} of those searched"
    )
    return Reference(np.stack(frames), track, wave)


def make_request(
    codec: Codec,
    target: Target,
    reference: Reference,
    wave: ndarray,
    caption: str,
    plan: chunks.Plan,
    config: ConfigDict,
) -> generate.Request:
    """Encode everything: the still, a window of the reference, speech and caption."""
    size, text = target.still.shape[:2], TextConfig(**config.text)
    person = conditions.still_mask(target.person, size)
    start, end = conditions.reference_window(
        len(reference.frames) // 4, len(plan.spans), config.model.num_videoref_latents
    )
    # The codec is causal: frames after the window cannot change it.
    shown = _signed(reference.frames[: 4 * end])
    speech = SpeechConfig(**config.speech)
    spoken = None
    if reference.wave is not None:
        track = log_mel(reference.wave, len(reference.frames), speech)
        track = np.concatenate([track[:1].repeat(PREFIX_ROWS, axis=0), track])
        spoken = track[4 * start : 4 * end]
    graph, weights = nnx.split(codec)

    @jax.jit
    def encode(weights, still, shown):
        codec = nnx.merge(graph, weights)
        return codec.encode(still)[0], encode_reference(codec, shown)[0]

    grey = conditions.grey_person(target.still, person)
    still, latents = encode(weights, grey[None, None], shown[None])
    return generate.Request(
        still=np.asarray(still),
        still_tokens=conditions.still_tokens(person),
        reference=np.asarray(latents)[start:end],
        reference_tokens=conditions.face_tokens(reference.track.boxes, size)[start:end],
        reference_audio=spoken,
        text=embed(caption, text),
        null_text=embed("", text),
        negative_text=embed(config.text.negative, text),
        audio=log_mel(wave, plan.frames, speech),
    )


def _picture(path: str) -> ndarray:
    try:
        return media.read_image(path)
    except InputError:
        if not Path(path).is_file():
            raise
    try:
        return next(media.iterate_frames(path, 1.0))
    except InputError as error:
        raise InputError(
            f"--target {path}: neither a picture nor a video; give a png or jpeg"
        ) from error


def _window(frame: ndarray, bucket: tuple[int, int]) -> ndarray:
    """The centre of a frame with the bucket's proportions, at its own resolution."""
    height, width = frame.shape[:2]
    scale = max(bucket[0] / height, bucket[1] / width)
    size = tuple(
        min(have, round(want / scale))
        for have, want in zip((height, width), bucket, strict=True)
    )
    top, left = ((a - b) // 2 for a, b in zip((height, width), size, strict=True))
    return frame[top : top + size[0], left : left + size[1]]


def _signed(pixels: ndarray) -> ndarray:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
