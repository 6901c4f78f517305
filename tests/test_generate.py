"""From user files to a video: laws of the sampler's use, and every bad input."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import cross_scene
from data_pipelines import conditions, detectors, media, video_files
from launch import build, checkpoints, inputs, readers, samples
from tavr_jax.diffusion import chunks
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.errors import InputError
from tavr_jax.evaluation import generate, unfinished
from tavr_jax.parallel.mesh import MeshConfig, make_mesh

ROOT = Path(__file__).parents[1]
MESH = make_mesh(MeshConfig(1, 1, 1, 1), jax.devices()[:1])


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

    def posterior_step(self, frames, memory=None):
        kept = frames[:, ::4] if memory is None else frames[:, 3::4]
        batch, count, rows, columns, _ = kept.shape
        cells = kept.reshape(batch, count, rows // 8, 8, columns // 8, 8, 3)
        means = jnp.repeat(cells.mean(axis=(3, 5, 6))[..., None], 16, axis=-1)
        return means, means, ()

    def normalised(self, mean):
        return mean


@pytest.fixture(scope="module")
def sampler(network, config):
    """And the chunks that it has sampled."""
    counted = []
    settings = generate.SamplerConfig(**config.sampler)
    made = generate.sampler(network[0], settings, MESH)

    def denoise(*arguments):
        counted.append(1)
        return made.denoise(*arguments)

    return made._replace(denoise=denoise), counted


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
    again = _sampled(sampler, network, request, plan)
    np.testing.assert_array_equal(one, again)
    assert one.shape == (1, plan.latents, 4, 4, config.codec.z_dim)
    assert len(plan.spans) == 2
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
    hidden = generate.sampler(network[0], settings, MESH), []
    np.testing.assert_array_equal(
        _sampled(hidden, network, request, plan),
        _sampled(hidden, network, swapped, plan),
    )


def test_sampler_fields_that_make_no_sense_are_refused(config):
    for field, value in (("steps", 0), ("shift", 0.0), ("branches", "x")):
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
    video_files.write_video(folder / "ref.mp4", frames, 25, wave)
    video_files.write_video(folder / "short.mp4", frames[:5], 25, wave[:3200])
    blank = np.full((12, 96, 96, 3), 128, np.uint8)
    video_files.write_video(folder / "blank.mp4", blank, 25, wave)
    video_files.write_video(folder / "mute.mp4", frames, 25)
    video_files.write_video(folder / "blip.mp4", blank, 25, wave[:1600])
    cv2.imwrite(str(folder / "still.png"), face[:301, 60:357, ::-1])
    cv2.imwrite(str(folder / "blank.png"), blank[0])
    (folder / "text.txt").write_text("no medium")
    return folder


@pytest.fixture
def read(footage, config):
    """Reads one sample of the footage, with some of its files replaced."""

    def read(box=None, config=config, **files):
        named = {"references": ("ref.mp4",), "target": "still.png", "audio": "ref.mp4"}
        named |= files
        sample = samples.Sample(
            tuple(str(footage / name) for name in named["references"]),
            str(footage / named["target"]),
            str(footage / named["audio"]),
            "hi",
            footage / "out.mp4",
            named.get("empty_scene", False),
        )
        speech = readers.load_speech(config)
        return inputs.read(sample, speech, detectors.DEFAULT, box, config)

    return read


def _asked(material, config, null=0.5):
    codec = _Codec(CodecConfig(**config.codec), rngs=nnx.Rngs(0))
    rows = np.zeros((config.model.text_len, config.model.text_dim), np.float32)
    silence = np.full((1, config.model.videoref_audio_dim), null, np.float32)
    captions = inputs.Captions(rows, rows, rows)
    return inputs.request(codec, material, captions, silence, config)


def test_files_become_a_request_of_the_right_shapes(read, config):
    material = read()
    assert material.driving.written == 12
    assert material.target.still.shape == (32, 32, 3)  # of 301 x 297
    request = _asked(material, config)
    like = _request(config, frames=13)
    for name, ours, expected in zip(request._fields, request, like, strict=True):
        assert ours.shape == expected.shape, name
    assert request.reference_tokens.any()
    # The person is masked: mid grey where the still's tokens show no background.
    grey = request.still[0, ::2, ::2, 0] == 0
    assert grey[~request.still_tokens].all()
    assert np.abs(request.reference).max() > 0


def test_any_number_of_reference_frames_can_be_shown(read, config):
    more = config.copy_and_resolve_references()
    more.model.num_videoref_latents = 3
    one = _asked(read(), config)
    request = _asked(read(config=more), more)
    assert request.reference.shape[0] == request.reference_tokens.shape[0] == 3
    assert request.reference_audio.shape[0] == 12
    # The window of a single chunk starts at the first frame, whatever its length.
    np.testing.assert_array_equal(request.reference[:2], one.reference)
    np.testing.assert_array_equal(request.reference_tokens[:2], one.reference_tokens)


def test_several_references_share_the_latents_and_a_silent_one_is_told_as_null(
    read, config
):
    one, material = _asked(read(), config), read(references=("mute.mp4", "ref.mp4"))
    request = _asked(material, config, null=0.5)
    assert [clip.tokens.shape[0] for clip in material.clips] == [1, 1]
    assert request.reference.shape == one.reference.shape
    np.testing.assert_allclose(request.reference[1], one.reference[0], atol=2e-2)
    assert (request.reference_audio[:4] == 0.5).all()
    np.testing.assert_array_equal(request.reference_audio[4:], one.reference_audio[:4])
    assert _asked(read(references=("mute.mp4",)), config).reference_audio is None
    with pytest.raises(InputError, match="3 clips for 2 reference latents"):
        read(references=("ref.mp4", "mute.mp4", "ref.mp4"))


def test_a_silent_reference_is_told_as_silent(config, plan):
    request = _request(config)
    mute = request._replace(reference_audio=None)
    conditions = generate.first_conditions(mute, plan.motion)
    assert not conditions.has_reference_audio[0]
    assert conditions.reference_audio.shape == (1, *request.reference_audio.shape)


def test_a_video_can_be_the_still_and_a_box_can_replace_the_face(read):
    assert read(target="ref.mp4").target.still.shape == (32, 32, 3)
    box = np.float32([0.25, 0.25, 0.75, 1])
    person = read(box=box, target="blank.png").target.person
    assert person[1:, 1:3].all() and not person[:, 0].any() and not person[0].any()


def test_an_empty_scene_gets_the_person_where_the_reference_has_them(read):
    clip = read(target="blank.png", empty_scene=True).clips[0]
    faces = np.array([[-1] * 4, [24, 12, 36, 28]])  # none in the first frame
    box = inputs.place(clip._replace(faces=faces), (96, 96))
    person = conditions.still_mask(box, (96, 96))
    assert person[2:4, 3:5].all() and person[-1, 3:5].all()
    assert not person[:, 7:].any() and not person[:, 0].any()


@pytest.mark.parametrize(
    ("file", "name", "words"),
    [
        ("target", "blank.png", ["no person", "--person_box"]),
        ("target", "text.txt", ["neither a picture nor a video"]),
        ("target", "nowhere.png", ["no such file"]),
        ("references", "blank.mp4", ["a face in 0 of"]),
        ("references", "short.mp4", ["5 frames", "8 are needed", "0.32 s"]),
        ("references", "text.txt", ["video"]),
        ("references", "nowhere.mp4", ["no such file"]),
        ("audio", "text.txt", ["damaged, or not video or sound"]),
        ("audio", "mute.mp4", ["no sound track"]),
        ("audio", "blip.mp4", ["0.10 s", "too short", "at least"]),
    ],
)
def test_a_bad_file_is_one_line_with_its_name_and_a_remedy(
    footage, read, file, name, words
):
    with pytest.raises(InputError) as caught:
        read(**{file: (name,) if file == "references" else name})
    line = str(caught.value)
    assert str(footage / name) in line
    assert "\n" not in line
    assert ";" in line  # what and why; remedy
    for word in words:
        assert word in line


# Sample folders and flags


@pytest.fixture
def folders(tmp_path):
    """Two sample folders inside another."""
    for name in ("one", "two"):
        folder = tmp_path / "samples" / name
        folder.mkdir(parents=True)
        for file in ("ref.mp4", "target.png", "target.mp3", "target.wav"):
            (folder / file).write_bytes(b"")
        (folder / "target_caption.json").write_text('{"caption": "speaks"}')
    return tmp_path / "samples"


def test_a_folder_of_sample_folders_is_all_of_them(folders, tmp_path):
    found = samples.from_folders([str(folders)], str(tmp_path / "out"))
    assert [s.output.parent.name for s in found] == ["one", "two"]
    assert found[0].output == tmp_path / "out/one/generated_target.mp4"
    assert found[0].audio.endswith("target.mp3")  # before target.wav
    assert found == samples.from_folders(
        [str(folders / "one"), str(folders / "two")], str(tmp_path / "out")
    )
    (folders / "two/target.mp3").unlink()
    found = samples.from_folders([str(folders / "two")], "out")
    assert found[0].audio.endswith("target.wav") and found[0].caption == "speaks"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("target.png", None, "target.png is missing"),
        ("target_caption.json", None, "target_caption.json: no caption"),
        ("target_caption.json", "[1", "target_caption.json: no caption"),
        ("target_caption.json", '{"caption": 3}', "expected text"),
    ],
)
def test_a_sample_folder_that_lacks_something_is_named(folders, file, content, words):
    path = folders / "two" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=words):
        samples.from_folders([str(folders)], "out")


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path):
    for name in ("out.avi", "file/out.mp4"):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(InputError, match="--output"):
            samples.check_output(tmp_path / name)
    samples.check_output(tmp_path / "new/folders/out.mp4")
    assert not (tmp_path / "new").exists()


# A video that comes in pieces


def test_a_killed_run_goes_on_at_its_chunk(sampler, network, config, plan, tmp_path):
    request, key = _request(config), jax.random.key(0)
    whole = np.asarray(generate.latents(sampler[0], network[1], request, plan, key))

    def run(facts, chunks=None):
        kept = unfinished.Unfinished(tmp_path / "kept", facts)
        had = len(kept)
        found = generate.pieces(sampler[0], network[1], request, plan, key, kept)
        return had, [np.asarray(piece) for piece in islice(found, chunks)]

    assert run({"seed": "0"}, chunks=1)[0] == 0  # and stops
    sampler[1].clear()
    had, pieces = run({"seed": "0"})
    assert had == 1
    assert len(sampler[1]) == 1  # the second chunk alone
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
    assert run({"seed": "1"}, chunks=1)[0] == 0  # another video: nothing is kept


def test_a_damaged_chunk_is_sampled_again(tmp_path):
    kept = unfinished.Unfinished(tmp_path / "kept", {})
    chunk = jnp.ones((1, 2, 4, 4, 16))
    kept.save(0, chunk)
    np.testing.assert_array_equal(kept.load(0), chunk)
    assert kept.load(1) is None
    path = next((tmp_path / "kept").glob("chunk_*"))
    path.write_bytes(path.read_bytes()[:100])
    assert kept.load(0) is None and len(kept) == 0


def test_checkpoints_without_a_config_or_transformer_are_refused(tmp_path, config):
    with pytest.raises(InputError, match="no such file"):
        checkpoints.find(str(tmp_path / "nowhere"))
    (tmp_path / "a.safetensors").write_bytes(b"")
    official = checkpoints.config_of(tmp_path / "a.safetensors", None, {})
    assert official.model.dim == 5120
    (tmp_path / "W/checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"config\.json"):
        checkpoints.config_of(tmp_path / "W", None, {})
    wrong = config.copy_and_resolve_references()
    wrong.stage = "codec"
    with pytest.raises(InputError, match="no transformer"):
        checkpoints.config_of(tmp_path, wrong, {})


def test_provenance_survives_in_the_file(network, config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = generate.SamplerConfig(**config.sampler)
    place = "/home/somebody/.cache/hub/W"
    checkpoint = checkpoints.Checkpoint(place, config, *network, "0123456789ab")
    tags = checkpoints.provenance(checkpoint, "ba9876543210", settings, 7)
    assert tags["checkpoint"] == "~/.cache/hub/W"
    path, frames = tmp_path / "a.mp4", np.zeros((5, 32, 32, 3), np.uint8)
    video_files.write_video(path, frames, 25, np.zeros(3200, np.float32), metadata=tags)
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


def test_the_default_config_is_found_from_any_folder(tmp_path):
    place = {"PYTHONPATH": str(Path(generate.__file__).parents[2])}
    command = [sys.executable, "-m", "launch.generate"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--reference is missing" in done.stderr
