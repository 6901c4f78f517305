"""Live against transformers, where PyTorch is installed (it is no dependency)."""

import numpy as np
import pytest
from flax import nnx

from tavr_jax.encoders.wav2vec2_wave import Listener, normalised
from tavr_jax.encoders.weights_wav2vec2 import published_wav2vec2

torch = pytest.importorskip("torch", reason="compares with PyTorch, not installed")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

KINDS = {
    "base": {},
    "xlsr": {
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
    },
    "mixed": {
        "feat_extract_norm": "layer",
        "hidden_act": "relu",
        "feat_extract_activation": "gelu_new",
        "num_conv_pos_embeddings": 15,
        "layer_norm_eps": 1e-3,
    },
    "group_bias": {
        "conv_bias": True,
        "do_stable_layer_norm": True,
        "conv_dim": [8, 12, 20],
        "conv_kernel": [7, 4, 3],
        "conv_stride": [3, 2, 1],
    },
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embedding_groups": 8,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ctc", [False, True])
def test_transformers_agrees(tmp_path, kind, ctc):
    torch.manual_seed(0)
    settings = transformers.Wav2Vec2Config(**(SIZES | KINDS[kind]))
    name = "Wav2Vec2ForCTC" if ctc else "Wav2Vec2Model"
    model = getattr(transformers, name)(settings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)
    if ctc:
        for path in tmp_path.glob("*.safetensors"):
            path.unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    wave = np.random.default_rng(1).standard_normal((1, 4321)).astype(np.float32)
    with torch.no_grad():
        inner = model.wav2vec2 if ctc else model
        theirs = inner(torch.from_numpy(normalised(wave)), output_hidden_states=True)

    network = published_wav2vec2(tmp_path)
    heard = nnx.jit(lambda n, x: n(x))(network, normalised(wave))
    hidden = torch.stack(theirs.hidden_states).numpy()
    for ours, expected in (
        (heard.features, theirs.extract_features.numpy()),
        (heard.hidden, hidden),
        (heard.last, theirs.last_hidden_state.numpy()),
        (Listener(network)(wave[0], (1, -1))[0], hidden[1, 0]),
    ):
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        assert error < 5e-6
