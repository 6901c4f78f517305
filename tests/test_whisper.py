import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tavr_jax.encoders.published import save
from tavr_jax.encoders.tensors import open_tensors, write_tensors
from tavr_jax.encoders.weights_whisper import entries, load_whisper
from tavr_jax.encoders.whisper import WhisperConfig, WhisperEncoder, log_mel
from tavr_jax.errors import InputError

TINY = WhisperConfig(
    d_model=16,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=24,
    num_mel_bins=8,
    max_source_positions=40,
    activation_function="gelu",
)

hear = nnx.jit(lambda encoder, mel: encoder(mel))


def babble(samples: int) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(samples)
    return (0.1 * noise).astype(np.float32)


def test_the_published_encoder_is_reproduced(shared):
    folder = shared / "oracles/wan_seed0/whisper"
    data = np.load(folder / "cases.npz")
    config = WhisperConfig.from_json(folder / "config.json")
    empty = nnx.eval_shape(lambda: WhisperEncoder(config, rngs=nnx.Rngs(0)))
    encoder = load_whisper(folder / "hf.safetensors", empty)
    mel = np.stack([log_mel(wave, config) for wave in data["a_wave"]])
    np.testing.assert_allclose(mel.transpose(0, 2, 1), data["a_mel"], atol=1e-5)
    heard = hear(encoder, mel)
    np.testing.assert_allclose(heard.last, data["a_last"], atol=2e-5)
    np.testing.assert_allclose(
        heard.hidden[:-1], data["a_hidden_states"][:-1], atol=2e-5
    )


def test_a_row_of_mel_hears_its_own_25_ms():
    wave = babble(3200)
    late = np.concatenate([babble(480), wave])
    rows, delayed = log_mel(wave, TINY), log_mel(late, TINY)
    assert rows.shape == (20, 8) and delayed.shape == (23, 8)
    # behind the mirrored start; no row is near the floor
    np.testing.assert_allclose(delayed[5:], rows[2:], atol=1e-5)
    # twice as loud is 2 log10(2) / 4 more
    louder = log_mel(2 * wave, TINY)
    np.testing.assert_allclose(louder - rows, np.log10(4) / 4, atol=1e-5)
    silent = log_mel(np.zeros(800, np.float32), TINY)
    np.testing.assert_allclose(silent, -1.5, rtol=1e-6)


def test_weights_survive_the_way_out_and_back(tmp_path):
    encoder = WhisperEncoder(TINY, rngs=nnx.Rngs(0))
    path = tmp_path / "model.safetensors"
    save(path, encoder, entries(encoder), {})
    found = {f"model.{name}": tensor for name, tensor in open_tensors(path).items()}
    other = {"model.decoder.layers.0.fc1.bias": np.zeros(3, np.float32)}
    write_tensors(path, found | other, {})
    again = load_whisper(path, encoder)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(encoder))
    mel = np.random.default_rng(0).standard_normal((1, 50, 8)).astype(np.float32)
    np.testing.assert_array_equal(hear(again, mel).last, hear(encoder, mel).last)
    assert hear(encoder, mel).last.shape == (1, 25, 16)
    with pytest.raises(ValueError, match="40 positions"):
        encoder(jnp.zeros((1, 82, 8)))
    found.popitem()
    write_tensors(path, found, {})
    with pytest.raises(InputError, match="is missing"):
        load_whisper(path, encoder)
