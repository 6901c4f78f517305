"""The flags of launch.generate, ours and those of the release's infer.py.

They say which videos to make, and set config fields: a flag wins over --config.
"""

from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float
from ml_collections import ConfigDict
from numpy import ndarray

from launch import samples
from tavr_jax.errors import InputError

REFERENCE = flags.DEFINE_list(
    "reference", None, "Video of the person, any scene; several of one person: A,B."
)
TARGET = flags.DEFINE_string(
    "target", None, "Still of the target scene; of a video, frame 0."
)
BACKGROUND = flags.DEFINE_string(
    "background",
    None,
    "Instead of --target: the scene with nobody in it, a still or a video's frame 0. "
    "The person goes where the reference has them, or to --person_box.",
)
AUDIO = flags.DEFINE_string("audio", None, "Speech; a sound or video file, any rate.")
CAPTION = flags.DEFINE_string("caption", "", "What the video shows, in a sentence.")
OUTPUT = flags.DEFINE_string("output", None, "The .mp4 to write.")
SAMPLE_DIR = flags.DEFINE_list("sample_dir", None, "Sample folders, instead of files.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "outputs", "For --sample_dir.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir, file, hub name or mini.")
flags.DEFINE_alias("dit_ckpt", "checkpoint")
CKPT_DIR = flags.DEFINE_string(
    "ckpt_dir",
    None,
    "Folder of the base files as the release lays them out: Wan2.1_VAE.pth, "
    "models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl, wav2vec2-xlsr-53-espeak-cv-ft.",
)
SEED = flags.DEFINE_integer("seed", None, "Of the noise; config.seed if not given.")
REFERENCE_FRAMES = flags.DEFINE_integer(
    "reference_frames", None, "Frames of the reference to show the model: 12, 20, 48..."
)
PERSON_BOX = flags.DEFINE_list(
    "person_box",
    None,
    "Where the person is in the still: left,top,right,bottom in 0..1 of what is left "
    "of it after cropping. Needed only where nobody is found.",
)
FACE_DETECTOR = flags.DEFINE_string(
    "face_detector", None, "ONNX file of DWPose or UltraFace, instead of MTCNN."
)
PERSON_DETECTOR = flags.DEFINE_string(
    "person_detector", None, "ONNX file of YOLO11, YOLOv8 or YOLOX."
)
EXACT_RELEASE = flags.DEFINE_bool(
    "exact_release", False, "Fail and cut where the release does, decode in float16."
)
# the release's flag -> the field of section `sampler` that it sets
SAMPLER_FLAGS = {
    "sample_steps": "steps",
    "sample_shift": "shift",
    "txt_guide_scale": "text_scale",
    "aud_guide_scale": "audio_scale",
    "start_use_videoref_step": "start_use_videoref_step",
}
for _flag, _field in SAMPLER_FLAGS.items():
    flags.DEFINE_float(_flag, None, f"Sets config.sampler.{_field}.")
BASE_FILES = {
    "codec": "Wan2.1_VAE.pth",
    "text": "models_t5_umt5-xxl-enc-bf16.pth",
    "tokenizer": "google/umt5-xxl",
    "speech": "wav2vec2-xlsr-53-espeak-cv-ft",
}


def checkpoint() -> str:
    """`--checkpoint`. InputError: not given."""
    if not CHECKPOINT.value:
        raise InputError("flags: --checkpoint is missing (see --help)")
    return CHECKPOINT.value


def seed(config: ConfigDict) -> int:
    """Of the noise."""
    return config.seed if SEED.value is None else SEED.value


def person_box() -> Float[ndarray, "4"] | None:
    """`--person_box` as left, top, right, bottom. InputError: not such a box."""
    values = PERSON_BOX.value
    if not values:
        return None
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


def wanted() -> list[samples.Sample]:
    """The videos. InputError: a flag is missing, or two contradict each other."""
    if SAMPLE_DIR.value:
        single = (REFERENCE, TARGET, BACKGROUND, AUDIO, OUTPUT)
        if given := [flag.name for flag in single if flag.value]:
            raise InputError(f"flags: --sample_dir and --{given[0]}: give one of them")
        found = samples.from_folders(SAMPLE_DIR.value, OUTPUT_DIR.value)
    else:
        found = [_single()]
    for sample in found:
        samples.check_output(sample.output)
    return found


def apply(config: ConfigDict) -> None:
    """Set the fields that flags name. InputError: a value that cannot be."""
    for flag, field in SAMPLER_FLAGS.items():
        _set_number(config.sampler, field, flag)
    if REFERENCE_FRAMES.value is not None:
        count = REFERENCE_FRAMES.value
        if count < 4 or count % 4:
            raise InputError(
                f"--reference_frames {count}: a reference latent covers 4 frames; give "
                "a multiple of 4"
            )
        config.model.num_videoref_latents = count // 4
    if CKPT_DIR.value:
        for name, file in BASE_FILES.items():
            config.networks[name] = str(Path(CKPT_DIR.value) / file)
    for flag in (FACE_DETECTOR, PERSON_DETECTOR):
        if flag.value:
            config.networks[flag.name] = flag.value
    if EXACT_RELEASE.value:
        config.output.exact_release = True
        config.output.decode_dtype = "float16"


def _single() -> samples.Sample:
    if TARGET.value and BACKGROUND.value:
        raise InputError("flags: --target and --background: give one of them")
    scene = BACKGROUND if BACKGROUND.value else TARGET
    for flag in (REFERENCE, scene, AUDIO, OUTPUT):
        if not flag.value:
            raise InputError(f"flags: --{flag.name} is missing (see --help)")
    return samples.Sample(
        tuple(REFERENCE.value),
        scene.value,
        AUDIO.value,
        CAPTION.value,
        Path(OUTPUT.value),
        empty_scene=scene is BACKGROUND,
    )


def _set_number(section: ConfigDict, field: str, flag: str) -> None:
    value, kind = flags.FLAGS[flag].value, type(section[field])
    if value is None:
        return
    if kind(value) != value:
        raise InputError(f"--{flag} {value}: give a whole number")
    section[field] = kind(value)
