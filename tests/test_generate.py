"""From user files to a video: laws of the sampler's use, and every bad input."""

import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import cross_scene
from data_pipelines import media
from launch import build, checkpoints, held_out, inputs
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.errors import InputError
from tavr_jax.evaluation import benchmark, generate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    return cross_scene.get_config("tiny")


@pytest.fixture(scope="module")
def network(config):
    """A graph and weights of any size but zero: a fresh head answers 0 to all."""
    graph, shapes = nnx.split(build.abstract_transformer(config), nnx.Param)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes
    )
    return graph, weights


class _Codec(Codec):
    """Averages of 8 x 8 pixels of every fourth frame, 16 times over."""

    def __init__(self, config):
        self.config = config

    def encode(self, frames):
        kept = frames[:, ::4]
        batch, count, rows, columns, _ = kept.shape
        cells = kept.reshape(batch, count, rows // 8, 8, columns // 8, 8, 3)
        means = cells.mean(axis=(3, 5, 6))[..., None]
        return jnp.repeat(means, self.config.z_dim, axis=-1)


@pytest.fixture(scope="module")
def sampler(network, config):
    counted = []
    settings = generate.SamplerConfig(**config.sampler)
    return generate.sampler(network[0], settings, lambda: counted.append(1)), counted


@pytest.fixture(scope="module")
def plan(config):
    frames, size = 29, config.model.num_video_latents
    motion, tail = config.chunks.motion_latents, config.chunks.canvas_tail
    return chunks.plan(frames, size, motion, tail)


def _request(config, seed=0, frames=29):
    rng, model = np.random.default_rng(seed), config.model
    latent = (4, 4, config.codec.z_dim)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    rows = 4 * model.num_videoref_latents
    return generate.Request(
        still=draw(1, *latent),
        still_tokens=np.ones((2, 2), bool),
        reference=draw(model.num_videoref_latents, *latent),
        reference_tokens=np.ones((model.num_videoref_latents, 2, 2), bool),
        reference_audio=draw(rows, model.videoref_audio_dim),
        text=draw(model.text_len, model.text_dim),
        null_text=draw(model.text_len, model.text_dim),
        negative_text=draw(model.text_len, model.text_dim),
        audio=draw(frames, model.audio_dim),
    )


def _sampled(sampler, network, request, plan, seed=0):
    key = jax.random.key(seed)
    return np.asarray(generate.latents(sampler[0], network[1], request, plan, key))


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 80, 81, 82, 1000])
def test_the_video_covers_the_speech_with_as_few_latents_as_can_be(rows):
    frames = generate.num_frames(rows)
    assert frames % 4 == 1
    assert rows <= frames < rows + 4


def test_pixels_are_truncated_over_the_whole_range():
    values = np.linspace(-1.5, 1.5, 3 * 2000, dtype=np.float32).reshape(1, 1, 2000, 3)
    pixels = generate.to_pixels(values).reshape(-1)
    assert (np.diff(pixels.astype(int)) >= 0).all()
    assert set(pixels) == set(range(256))
    exact = (np.clip(values.reshape(-1), -1, 1) + 1) / 2 * 255
    # three roundings of float16, whose steps reach 1/8 of a level
    assert (np.abs(exact - 0.5 - pixels) <= 0.5 + 3 / 16).all()
    assert (pixels[exact == 255] == 255).all()


def test_a_video_is_a_function_of_request_and_seed(sampler, network, config, plan):
    request = _request(config)
    one = _sampled(sampler, network, request, plan)
    jax.effects_barrier()
    sampler[1].clear()
    again = _sampled(sampler, network, request, plan)
    jax.effects_barrier()
    np.testing.assert_array_equal(one, again)
    assert one.shape == (1, plan.latents, 4, 4, config.codec.z_dim)
    assert len(plan.spans) == 2
    assert len(sampler[1]) == 2 * config.sampler.steps  # progress counts every step
    assert not np.allclose(one, _sampled(sampler, network, request, plan, seed=1))
    other = request._replace(audio=_request(config, 1).audio)
    assert not np.allclose(one, _sampled(sampler, network, other, plan))


def test_a_hidden_reference_cannot_matter_and_a_shown_one_does(
    sampler, network, config, plan
):
    request, other = _request(config), _request(config, 5)
    swapped = request._replace(
        reference=other.reference, reference_audio=other.reference_audio
    )
    shown = _sampled(sampler, network, request, plan)
    assert not np.allclose(shown, _sampled(sampler, network, swapped, plan))
    settings = dict(config.sampler) | {"start_use_videoref_step": -1}
    settings = generate.SamplerConfig(**settings)
    hidden = generate.sampler(network[0], settings, lambda: None), []
    np.testing.assert_array_equal(
        _sampled(hidden, network, request, plan),
        _sampled(hidden, network, swapped, plan),
    )


def test_sampler_fields_that_make_no_sense_are_refused(config):
    for field, value in (("steps", 0), ("shift", 0.0)):
        settings = dict(config.sampler) | {field: value}
        with pytest.raises(InputError, match=f"sampler.{field}"):
            generate.SamplerConfig(**settings)


# What a user hands in


@pytest.fixture(scope="module")
def footage(shared, tmp_path_factory):
    """A moving portrait with sound, the same still of odd size, and their enemies."""
    folder = tmp_path_factory.mktemp("footage")
    face = media.read_image(shared / "media/faces/astronaut.png")
    frames = np.stack([np.roll(face[:300, 60:360], i, axis=1) for i in range(12)])
    wave = np.random.default_rng(0).normal(0, 0.1, 16000 * 12 // 25).astype(np.float32)
    media.write_video(folder / "ref.mp4", frames, 25, wave)
    media.write_video(folder / "short.mp4", frames[:5], 25, wave[:3200])
    blank = np.full((12, 96, 96, 3), 128, np.uint8)
    media.write_video(folder / "blank.mp4", blank, 25, wave)
    media.write_video(folder / "mute.mp4", frames, 25)
    media.write_video(folder / "blip.mp4", blank, 25, wave[:1600])
    cv2.imwrite(str(folder / "still.png"), face[:301, 60:357, ::-1])
    cv2.imwrite(str(folder / "blank.png"), blank[0])
    (folder / "text.txt").write_text("no medium")
    return folder


def test_files_become_a_request_of_the_right_shapes(footage, config):
    wave = media.read_audio(footage / "ref.mp4", 16000)
    rows, plan = inputs.plan_video("speech", wave, config)
    target = inputs.read_target(str(footage / "still.png"), None, config.prepare)
    reference = inputs.read_reference(str(footage / "ref.mp4"), (32, 32), plan, config)
    assert rows == 12
    assert target.still.shape == (32, 32, 3)  # of 301 x 297
    codec = _Codec(CodecConfig(**config.codec))
    request = inputs.make_request(codec, target, reference, wave, "hi", plan, config)
    like = _request(config, frames=13)
    for name, ours, expected in zip(request._fields, request, like, strict=True):
        assert ours.shape == expected.shape, name
    assert request.reference_tokens.any()
    # The person is masked: mid grey where the still's tokens show no background.
    grey = request.still[0, ::2, ::2, 0] == 0
    assert grey[~request.still_tokens].all()
    assert np.abs(request.reference).max() > 0


def test_a_silent_reference_is_told_as_silent(config, plan):
    request = _request(config)
    mute = request._replace(reference_audio=None)
    conditions = generate.first_conditions(mute, plan.motion)
    assert not conditions.has_reference_audio[0]
    assert conditions.reference_audio.shape == (1, *request.reference_audio.shape)


def test_a_video_can_be_the_still_and_a_box_can_replace_the_face(footage, config):
    video = inputs.read_target(str(footage / "ref.mp4"), None, config.prepare)
    assert video.still.shape == (32, 32, 3)
    box = inputs.person_box(["0.2", "0.1", "0.8", "1"])
    blank = inputs.read_target(str(footage / "blank.png"), box, config.prepare)
    np.testing.assert_array_equal(blank.person, box[None])


@pytest.mark.parametrize(
    ("read", "name", "words"),
    [
        ("target", "blank.png", ["no face", "--person_box"]),
        ("target", "text.txt", ["neither a picture nor a video"]),
        ("target", "nowhere.png", ["no such file"]),
        ("reference", "blank.mp4", ["no face found"]),
        ("reference", "short.mp4", ["5 frames", "8 are needed", "0.32 s"]),
        ("reference", "text.txt", ["video"]),
        ("reference", "nowhere.mp4", ["no such file"]),
        ("audio", "text.txt", ["damaged, or not video or sound"]),
        ("audio", "mute.mp4", ["no sound track"]),
        ("audio", "blip.mp4", ["0.10 s", "too short", "at least"]),
    ],
)
def test_a_bad_file_is_one_line_with_its_name_and_a_remedy(
    footage, config, plan, read, name, words
):
    path = str(footage / name)
    with pytest.raises(InputError) as caught:
        if read == "target":
            inputs.read_target(path, None, config.prepare)
        elif read == "reference":
            inputs.read_reference(path, (32, 32), plan, config)
        else:
            inputs.plan_video(path, media.read_audio(path, 16000), config)
    line = str(caught.value)
    assert path in line
    assert "\n" not in line
    assert ";" in line  # what and why; remedy
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "values", [["0", "0", "1"], ["a", "0", "1", "1"], ["0.5", "0", "0.2", "1"]]
)
def test_a_bad_person_box_is_refused(values):
    with pytest.raises(InputError, match="--person_box"):
        inputs.person_box(values)


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    for name in ("out.avi", "file/out.mp4"):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(InputError, match="--output"):
            inputs.check_output(tmp_path / name)
    inputs.check_output(tmp_path / "new/folders/out.mp4")
    assert not (tmp_path / "new").exists()


def test_checkpoints_without_a_config_or_transformer_are_refused(tmp_path, config):
    with pytest.raises(InputError, match="no such file"):
        checkpoints.config_of(tmp_path / "nowhere", None, {})
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="add --config"):
        checkpoints.config_of(tmp_path / "a.safetensors", None, {})
    with pytest.raises(InputError, match=r"config\.json"):
        checkpoints.config_of(tmp_path, None, {})
    wrong = config.copy_and_resolve_references()
    wrong.stage = "codec"
    with pytest.raises(InputError, match="no transformer"):
        checkpoints.config_of(tmp_path, wrong, {})
    with pytest.raises(InputError, match=r"wav2vec2.*mini"):
        checkpoints.config_of(tmp_path, cross_scene.get_config("tavr_14b"), {})


def test_provenance_survives_in_the_file(network, config, tmp_path):
    settings = generate.SamplerConfig(**config.sampler)
    checkpoint = checkpoints.Checkpoint("W/policy", config, *network, "0123456789ab")
    tags = checkpoints.provenance(checkpoint, "ba9876543210", settings, 7)
    path, frames = tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8)
    media.write_video(path, frames, 25, np.zeros(3200, np.float32), metadata=tags)
    found = media.read_metadata(path)
    assert found["synthetic"] == "true"
    assert tags.items() <= found.items()
    assert {"config", "fingerprint", "seed", "steps", "codec"} <= tags.keys()


def test_the_command_answers_bad_flags_in_one_line(tmp_path):
    flags = ["--config.sampler.stepz=3", f"--output={tmp_path / 'out.mp4'}"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.generate", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "stepz" in done.stderr
    assert list(tmp_path.iterdir()) == []


# Which samples, and what their scores say


def _row(person, scene, number):
    clip = f"{person}/{scene}.mp4:{number:06d}"
    return held_out.Row(
        clip, f"{person}/{scene}.mp4", person, scene, "test", 0, 33, (32, 32), "", 1, ()
    )


def test_pairs_cross_scenes_first_and_take_turns_over_people():
    rows = [_row(p, s, n) for p in "cba" for s in ("x", "y") for n in (0, 33)]
    rows.append(_row("alone", "x", 0))
    pairs = held_out.choose_pairs(rows, 100)
    assert len(pairs) == len(rows)
    assert sorted(pair.target for pair in pairs) == list(range(len(rows)))
    people = [rows[pair.target].person for pair in pairs]
    assert people[:3] == ["a", "b", "c"]
    assert pairs[-1].reference == pairs[-1].target  # nobody else to refer to
    for target, reference in pairs[:-1]:
        assert rows[target].person == rows[reference].person
        assert rows[target].scene != rows[reference].scene
    shuffled = held_out.choose_pairs(rows[::-1], 4)
    names = [[rows[::-1][i].clip_id for i in pair] for pair in shuffled]
    assert names == [[rows[i].clip_id for i in pair] for pair in pairs[:4]]


@pytest.fixture(scope="module")
def truth(config):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (48, 48, 3))
    frames = np.repeat(scene[None], 24, axis=0).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame[30 : 30 + index % 5, 18:30] = 0
    return benchmark.Truth(
        frames=frames,
        boxes=np.tile(np.float32([0.3, 0.3, 0.7, 0.8]), (24, 1)),
        reference_faces=rng.integers(0, 255, (3, 16, 16, 3)).astype(np.uint8),
        mel=rng.normal(size=(24, config.lipsync.audio_dim)).astype(np.float32),
        opening=-(np.arange(24) % 5).astype(np.float32),
    )


def test_the_real_video_scores_ideal_and_a_still_does_not_speak(truth, config):
    judges, networks = held_out.make_judges(config)
    real, _ = benchmark.score(truth.frames, truth, judges)
    assert real["psnr"] is None  # infinite
    assert real["ssim"] == pytest.approx(1)
    assert real["sharpness"] == pytest.approx(1)
    assert real["flicker"] == 0
    assert real["mouth"] > 0.9  # the sign of the true opening is found
    still, _ = benchmark.score(truth.frames[:1].repeat(24, axis=0), truth, judges)
    assert still["mouth"] == 0
    assert still["psnr"] > 10
    described = benchmark.methods(networks)
    assert described.keys() == real.keys()
    for method in described.values():
        assert {"network", "version", "preprocessing"} <= method.keys()


def test_paired_differences_cancel_what_samples_share():
    rng = np.random.default_rng(0)
    keys = [metric.key for metric in benchmark.METRICS]
    base = [dict.fromkeys(keys, float(v)) for v in rng.normal(0, 10, 6)]
    better = [{k: v + 0.5 for k, v in row.items()} for row in base]
    better[0]["psnr"] = None
    found = benchmark.differences(better, base)
    assert found["identity"].mean == pytest.approx(0.5)
    assert found["identity"].error == pytest.approx(0, abs=1e-12)
    assert found["psnr"].count == 5
    assert benchmark.summarise(base)["identity"].error > 1
    assert benchmark.summarise(base[:1])["identity"].error is None
    assert benchmark.summarise(base)["offset"].mean >= 0  # -3 and 3 do not cancel
    assert jnp.isfinite(found["offset"].mean)
