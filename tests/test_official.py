"""The release's own command line, with networks in the published layouts: tiny ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import sentencepiece
from flax import nnx

from configs import cross_scene
from data_pipelines import media, video_files
from launch import build
from tavr_jax.encoders import (
    published,
    weights_umt5,
    weights_vae,
    weights_wav2vec2,
)
from tavr_jax.encoders.umt5 import Umt5, Umt5Config
from tavr_jax.encoders.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from tavr_jax.encoders.weights_tavr import save_transformer

ROOT = Path(__file__).parents[1]
STATES, HIDDEN, ROWS = (0, 1, 2), 16, 24
WAV2VEC = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layer_norm_eps": 1e-5,
}
UMT5 = Umt5Config(
    vocabulary=60, dim=ROWS, ffn_dim=32, head_dim=6, num_heads=4, num_layers=2,
    buckets=32, max_distance=128, eps=1e-6, dtype="float32",
)  # fmt: skip
FIELDS = {
    "model.audio_dim": 2 * HIDDEN * len(STATES),
    "model.videoref_audio_dim": 2 * HIDDEN,
    "model.text_dim": ROWS,
    "text.dim": ROWS,
    "wav2vec.states": STATES,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The files of a release: every frozen network and the transformer."""
    folder = tmp_path_factory.mktemp("base")
    config = cross_scene.get_config("tiny")
    config.update_from_flattened_dict(FIELDS)
    rngs = nnx.Rngs(0)
    (folder / "speech").mkdir()
    (folder / "speech/config.json").write_text(json.dumps(WAV2VEC))
    network = Wav2Vec2(Wav2Vec2Config.from_fields(WAV2VEC, "test"), rngs=rngs)
    table = weights_wav2vec2.entries(network)
    published.save(folder / "speech/model.safetensors", network, table, {})
    network = Umt5(UMT5, rngs=rngs)
    published.save(
        folder / "umt5.safetensors", network, weights_umt5.entries(network), {}
    )
    weights_vae.save_vae(folder / "vae.safetensors", build.codec(config), "wan", {})
    save_transformer(folder / "tavr.safetensors", build.transformer(config), {})
    words = ["a person is talking to the camera", "somebody tells a story at home"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20), model_prefix=str(folder / "spiece"),
        vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def people(shared, tmp_path_factory) -> Path:
    """Two sample folders: one with stereo speech at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("samples")
    face = media.read_image(shared / "media/faces/astronaut.png")[:300, 60:360]
    frames = np.stack([np.roll(face, i, axis=1) for i in range(16)])
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 44100)).astype(np.float32)
    for name, end in (("ann", 26000), ("bob", 44100)):
        one = folder / name
        one.mkdir()
        video_files.write_video(one / "ref.mp4", frames, 25, noise[0, :10000])
        cv2.imwrite(str(one / "target.png"), face[..., ::-1])
        (one / "target_caption.json").write_text('{"caption": "a person talking"}')
        _write_stereo(one / "target.wav", noise[:, :end], 44100)
    return folder


def _write_stereo(path: Path, wave: np.ndarray, rate: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        samples = (wave.T.reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def settings(base: Path) -> list[str]:
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    networks = {
        "codec": "vae.safetensors",
        "text": "umt5.safetensors",
        "tokenizer": "spiece.model",
        "speech": "speech",
    }
    fields += [f"--config.networks.{k}={base / v}" for k, v in networks.items()]
    return ["--config", "configs/cross_scene.py:tiny", *fields]


def launch(
    module: str, *arguments: object, devices: int = 1
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"launch.{module}", *map(str, arguments)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment
    )


def run(base: Path, *arguments: object) -> subprocess.CompletedProcess:
    weights = ["--dit-ckpt", base / "tavr.safetensors"]
    return launch("generate", *settings(base), *weights, *arguments)


def test_sample_folders_become_videos_with_their_own_sound(base, people, tmp_path):
    done = run(
        base, "--sample-dir", people, "--output-dir", tmp_path, "--sample-steps", 1,
        "--txt-guide-scale", 1.0, "--aud-guide-scale", 1.0, "--seed", 7,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 steps each, seed 7" in done.stdout
    for name, samples in (("ann", 26000), ("bob", 44100)):
        path = tmp_path / name / "generated_target.mp4"
        found = media.probe(path)
        assert found.frames == -(-samples * 25 // 44100)  # the last may be begun
        with av.open(str(path)) as container:
            sound = container.streams.audio[0]
            assert (sound.rate, sound.channels) == (44100, 2)
        assert media.read_metadata(path)["synthetic"] == "true"
    assert sorted(p.name for p in (tmp_path / "ann").iterdir()) == [
        "generated_target.mp4"
    ]


def test_converted_or_split_over_devices_the_weights_make_the_same_video(
    base, people, tmp_path
):
    done = launch(
        "convert_weights", "--input", base / "tavr.safetensors",
        "--output", tmp_path / "ours", *settings(base),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = ["--sample-dir", people / "ann", "--sample-steps", 1, "--output-dir"]
    one = run(base, *wanted, tmp_path / "published")
    ours = ["--checkpoint", tmp_path / "ours", *wanted]
    other = launch("generate", *ours, tmp_path)
    split = launch(
        "generate", *ours, tmp_path / "split", "--config.parallel.fsdp=8",
        "--config.parallel.data=1", devices=8,
    )  # fmt: skip
    for done in (one, other, split):
        assert done.returncode == 0, done.stdout + done.stderr
    published, converted, sharded = (
        media.read_frames(folder / "ann/generated_target.mp4", 25).astype(int)
        for folder in (tmp_path / "published", tmp_path, tmp_path / "split")
    )
    np.testing.assert_array_equal(published, converted)
    # other sums in another order, and h264 on top
    assert np.abs(published - sharded).mean() < 0.5 < published.std()


def test_one_bad_sample_does_not_stop_the_others(base, people, tmp_path):
    (people / "bob/target.wav").write_bytes(b"no sound")
    done = run(
        base, "--sample-dir", people, "--output-dir", tmp_path, "--sample-steps", 1
    )
    assert done.returncode == 2
    assert (tmp_path / "ann/generated_target.mp4").is_file()
    assert not (tmp_path / "bob").exists()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "bob/target.wav" in errors[0] and "1 of 2 samples" in errors[1]


def test_a_network_of_other_widths_is_refused(base, people, tmp_path):
    done = run(
        base, "--sample-dir", people, "--output-dir", tmp_path,
        "--config.model.audio_dim=64",
    )  # fmt: skip
    assert done.returncode == 2 and "model.audio_dim=64" in done.stderr
    assert list(tmp_path.iterdir()) == []
