"""A reference video, a still of the target scene and speech -> a talking video.

    python -m launch.generate --reference ref.mp4 --target scene.png \\
        --audio speech.wav --caption "..." --checkpoint CKPT --output out.mp4

CKPT is a workdir of launch.train (its config and averaged weights are used; override
fields as --config.sampler.steps=16), or a published .safetensors file with --config.
The video is as long as the speech. Its metadata says that it is synthetic.
"""

from pathlib import Path

import jax
from absl import flags
from numpy import ndarray
from tqdm import tqdm

from data_pipelines import media
from launch import build, checkpoints, cli, inputs
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.weights import fingerprint
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate

REFERENCE = flags.DEFINE_string("reference", None, "Video of the person, any scene.")
TARGET = flags.DEFINE_string(
    "target", None, "Still of the target scene; of a video, frame 0."
)
AUDIO = flags.DEFINE_string("audio", None, "Speech; a sound or video file, any rate.")
CAPTION = flags.DEFINE_string("caption", "", "What the video shows, in a sentence.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir or .safetensors file.")
OUTPUT = flags.DEFINE_string("output", None, "The .mp4 to write.")
SEED = flags.DEFINE_integer("seed", None, "Of the noise; config.seed if not given.")
PERSON_BOX = flags.DEFINE_list(
    "person_box",
    None,
    "Where the person is in the still: left,top,right,bottom in 0..1 of what is left "
    "of it after cropping. Needed only where no face is found.",
)
cli.config_flag("configs/cross_scene.py:mini")


def main() -> None:
    """Read everything, then load, sample, decode, write."""
    needed = (REFERENCE, TARGET, AUDIO, CHECKPOINT, OUTPUT)
    if missing := [flag.name for flag in needed if not flag.value]:
        raise InputError(f"flags: --{missing[0]} is missing (see --help)")
    output, path = Path(OUTPUT.value), Path(CHECKPOINT.value)
    inputs.check_output(output)
    box = inputs.person_box(PERSON_BOX.value) if PERSON_BOX.value else None
    config = checkpoints.config_of(path, *checkpoints.flag_config())
    settings = generate.SamplerConfig(**config.sampler)
    seed = config.seed if SEED.value is None else SEED.value

    wave = media.read_audio(AUDIO.value, config.speech.sample_rate)
    rows, plan = inputs.plan_video(AUDIO.value, wave, config)
    target = inputs.read_target(TARGET.value, box, config.prepare)
    size = target.still.shape[:2]
    reference = inputs.read_reference(REFERENCE.value, size, plan, config)
    checkpoint = checkpoints.load(path, config)
    codec = build.codec(config)
    print(
        f"{config.name}: {rows} frames in {plan.latents} latents, {len(plan.spans)} "
        f"chunk(s) of {plan.size}, {settings.steps} steps each, seed {seed}"
    )
    request = inputs.make_request(
        codec, target, reference, wave, CAPTION.value, plan, config
    )
    if not request.reference_tokens.any():
        raise InputError(
            f"--reference {REFERENCE.value}: no face in the frames that are used; cut "
            "the video to where the person is seen"
        )
    frames = sample(checkpoint, codec, request, plan, settings, seed)[:rows]
    tags = checkpoints.provenance(checkpoint, fingerprint(codec), settings, seed)
    rate, fps = config.speech.sample_rate, config.speech.fps
    media.write_video(output, frames, fps, wave, rate, metadata=tags)
    print(f"{output}: {rows} frames of {size[1]}x{size[0]}, {rows / fps:.2f} s")


def sample(
    checkpoint: checkpoints.Checkpoint,
    codec: Codec,
    request: generate.Request,
    plan: chunks.Plan,
    settings: generate.SamplerConfig,
    seed: int,
) -> ndarray:
    """Frames of the request, with a progress bar over all steps of all chunks."""
    steps = len(plan.spans) * settings.steps
    with tqdm(total=steps, desc="sampling", unit="step", mininterval=2) as bar:
        sampler = generate.sampler(checkpoint.graph, settings, bar.update)
        key = jax.random.key(seed)
        latents = generate.latents(sampler, checkpoint.weights, request, plan, key)
        jax.effects_barrier()
    return generate.decode(codec, latents, plan.frames)


if __name__ == "__main__":
    cli.run(main, __doc__)
