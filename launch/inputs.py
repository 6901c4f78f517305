"""What a user hands to launch.generate, read and checked before the long work.

A scene with nobody in it (ours): the person is put where the first reference has them.
Several references are one person in several clips (ours): each gives its share of the
reference latents, the first ones one more where they do not divide, in the order they
are named; a silent clip beside others is told as the learned null.
"""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from data_pipelines import (
    conditions,
    containers,
    media,
    reference,
    reference_sound,
    speech_rows,
    still,
)
from data_pipelines.detectors import Detectors
from data_pipelines.features import Driving, SpeechReader
from data_pipelines.reference import FPS
from launch.samples import Sample
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.vae_stream import encode_reference_stream, encode_stream
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate


class Material(NamedTuple):
    """One sample, read: all that is needed to make its video, but for captions."""

    driving: Driving
    plan: chunks.Plan
    target: still.Target
    clips: tuple[reference.Clip, ...]
    heard: tuple[ndarray | None, ...]  # rows of each clip's sound; None: silent


class Captions(NamedTuple):
    """Rows of the texts of a sample."""

    caption: Float[ndarray, "L E"]
    nothing: Float[ndarray, "L E"]
    negative: Float[ndarray, "L E"]


def read(
    sample: Sample,
    speech: SpeechReader,
    detectors: Detectors,
    box: Float[ndarray, "4"] | None,
    config: ConfigDict,
) -> Material:
    """Everything of one sample. InputError names the file that cannot be used."""
    wave = media.read_audio(sample.audio, config.speech.sample_rate)
    driving = speech.driving(wave)
    plan = _plan(sample.audio, driving.frames, len(wave), config)
    # The release's track goes on with as much silence; no chunk hears most of it.
    end = chunks.FRAMES_PER_LATENT * (plan.spans[-1].read + plan.size - 1) + 1
    driving = driving._replace(rows=driving.rows[:end].copy())
    if sample.empty_scene:
        picture = still.read_picture(sample.target)
        bucket = conditions.bucket_of(*picture.shape[:2], config.prepare)
        clips = _references(sample, bucket, plan, detectors, config)
        box = place(clips[0], bucket) if box is None else box
        target = still.read_target(sample.target, config.prepare, detectors, box)
    else:
        target = still.read_target(sample.target, config.prepare, detectors, box)
        clips = _references(sample, target.still.shape[:2], plan, detectors, config)
    heard = tuple(
        _heard(path, clip, speech, config)
        for path, clip in zip(sample.references, clips, strict=True)
    )
    _tell(sample, target, clips, heard)
    return Material(driving, plan, target, clips, heard)


def request(
    codec: Codec,
    material: Material,
    captions: Captions,
    null_row: Float[ndarray, "1 V"],
    config: ConfigDict,
    mesh: Mesh | None = None,
) -> generate.Request:
    """Encode what was read. `null_row` is what the model hears where there is nothing.

    The codec works in steps, so a long reference costs no more memory than a short one.
    """
    step, target = config.output.decode_latents, material.target
    grey = conditions.grey_person(target.still, target.person)
    (scene,) = encode_stream(codec, [grey[None, None]], step=step, mesh=mesh)
    latents = [_latents(codec, clip, step, mesh) for clip in material.clips]
    return generate.Request(
        still=np.asarray(scene)[0],
        still_tokens=conditions.still_tokens(target.person),
        reference=np.concatenate(latents),
        reference_tokens=np.concatenate([clip.tokens for clip in material.clips]),
        reference_audio=_reference_audio(material, null_row),
        text=captions.caption,
        null_text=captions.nothing,
        negative_text=captions.negative,
        audio=material.driving.rows,
    )


def _plan(path: str, frames: int, samples: int, config: ConfigDict) -> chunks.Plan:
    size, motion = config.model.num_video_latents, config.chunks.motion_latents
    try:
        return chunks.plan(frames, size, motion, config.chunks.canvas_tail)
    except InputError as error:
        seconds = samples / config.speech.sample_rate
        raise InputError(
            f"--audio {path}: {seconds:.2f} s of speech are too short for a video; "
            f"give at least {(4 * motion + 1) / config.speech.fps:.2f} s"
        ) from error


def _references(
    sample: Sample,
    bucket: tuple[int, int],
    plan: chunks.Plan,
    detectors: Detectors,
    config: ConfigDict,
) -> tuple[reference.Clip, ...]:
    wanted, count = config.model.num_videoref_latents, len(sample.references)
    if wanted < count:
        raise InputError(
            f"--reference: {count} clips for {wanted} reference latents; give fewer "
            f"clips, or --reference_frames {4 * count} or more"
        )
    return tuple(
        reference.read(
            path,
            bucket,
            detectors,
            num_frames=plan.frames,
            chunks=len(plan.spans),
            latents=wanted // count + (index < wanted % count),
            colours=containers.COLOURS[config.prepare.released_colours],
        )
        for index, path in enumerate(sample.references)
    )


def _heard(
    path: str, clip: reference.Clip, speech: SpeechReader, config: ConfigDict
) -> ndarray | None:
    """Rows of a clip that has exactly one sound track. [TAVR_SPEC 4]"""
    if clip.sound_tracks != 1:
        return None
    rate = config.speech.sample_rate
    if config.output.exact_release:
        # its way through a lossy mp3, which the features notice
        seconds = min(clip.seconds, clip.count / FPS + speech_rows.EXTRA_REFERENCE)
        wave = reference_sound.read_as_released(path, seconds, rate)
    else:
        wave = media.read_audio(path, rate)[: round(clip.seconds * rate)]
    return speech.reference(wave, clip.count)


def _reference_audio(
    material: Material, null: Float[ndarray, "1 V"]
) -> Float[ndarray, "Q V"] | None:
    if all(rows is None for rows in material.heard):
        return None
    found = []
    for clip, rows in zip(material.clips, material.heard, strict=True):
        rows = null if rows is None else rows
        track = speech_rows.reference_track(rows, clip.count, null)
        found.append(speech_rows.reference_window(track, *clip.window))
    return np.concatenate(found)


def _latents(
    codec: Codec, clip: reference.Clip, step: int, mesh: Mesh | None
) -> ndarray:
    start, end = clip.window
    span = conditions.SPAN * step
    blocks = (
        clip.frames[None, i : i + span].astype(np.float32)
        for i in range(0, len(clip.frames), span)
    )
    found = encode_reference_stream(codec, blocks, step=step, mesh=mesh)
    return np.concatenate([np.asarray(part)[0] for part in found])[start:end]


def place(clip: reference.Clip, bucket: tuple[int, int]) -> Float[ndarray, "n 4"]:
    """Head and shoulders where the reference has its first face, in 0..1 (ours)."""
    rows, columns = bucket
    seen = clip.faces[clip.faces[:, 2] > clip.faces[:, 0]][0]
    # the region reaches further up than a face box: so does the head around it
    return conditions.person_box_from_face(seen / [columns, rows, columns, rows])


def _tell(
    sample: Sample,
    target: still.Target,
    clips: tuple[reference.Clip, ...],
    heard: tuple[ndarray | None, ...],
) -> None:
    (rows, columns), (height, width) = target.still.shape[:2], target.size
    print(
        f"target {sample.target}: {width}x{height} -> {columns}x{rows}, "
        f"{target.person.mean():.0%} of it masked as the person"
    )
    for path, clip, sound in zip(sample.references, clips, heard, strict=True):
        start, end = (conditions.SPAN * edge / FPS for edge in clip.window)
        cut = "whole picture"
        if clip.crop is not None:
            left, top, width, height = clip.crop
            cut = f"cut to {width}x{height} at {left},{top}"
        print(
            f"reference {path}: {start:.2f} to {end:.2f} s, {cut}, a face in "
            f"{clip.coverage:.0%} of the frames, "
            f"{'no sound' if sound is None else 'with sound'}"
        )
