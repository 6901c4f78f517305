"""Makes tests/golden/speech: wav2vec 2.0 by PyTorch on random weights.

    python tests/golden/make_speech.py      # needs torch and transformers

Of each kind of model: config.json, weights, a batch of two waves and what transformers
makes of it. The hidden states are in the order of encoders/wav2vec2.py.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

FOLDER = Path(__file__).parent / "speech"
KINDS = {
    "group": {"feat_extract_norm": "group", "conv_bias": False},
    "layer": {
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "do_stable_layer_norm": True,
    },
}
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "conv_dim": [12] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
USED = (
    *("model_type", "conv_kernel", "conv_stride", "layer_norm_eps", *SIZES),
    *("feat_extract_norm", "feat_extract_activation", "hidden_act"),
    *("conv_bias", "do_stable_layer_norm"),
)


def main() -> None:
    """Two folders."""
    for seed, (kind, fields) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        config = Wav2Vec2Config(**SIZES, **fields, attn_implementation="eager")
        model = Wav2Vec2Model(config).eval()
        with torch.no_grad():
            # no weight keeps the zero or one it starts with
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
            wave = torch.randn(2, 3600) * torch.linspace(0.3, 2, 3600)
            heard = model(wave, output_hidden_states=True)
        folder = FOLDER / kind
        folder.mkdir(parents=True, exist_ok=True)
        found = config.to_dict()
        chosen = {name: found[name] for name in USED}
        (folder / "config.json").write_text(json.dumps(chosen, indent=1) + "\n")
        save_file(model.state_dict(), folder / "model.safetensors")
        np.savez_compressed(
            folder / "cases.npz",
            wave=wave.numpy(),
            features=heard.extract_features.numpy(),
            hidden=torch.stack(heard.hidden_states).numpy(),
            last=heard.last_hidden_state.numpy(),
        )


if __name__ == "__main__":
    main()
