"""Makes tests/golden/text: a umT5 encoder by PyTorch on random weights.

    python tests/golden/make_text.py      # needs torch and transformers

config.json and hf.safetensors as transformers writes them, and cases.npz in the form of
the oracle wan_seed0/umt5, so that `launch.parity_text` replays it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import UMT5Config, UMT5EncoderModel

FOLDER = Path(__file__).parent / "text"
SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
}
LENGTHS = (7, 150)  # beyond 128 all distances share a bucket


def main() -> None:
    """Write the folder anew."""
    torch.manual_seed(0)
    config = UMT5Config(**SIZES, feed_forward_proj="gated-gelu")
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "relative" in name:
                weight.copy_(torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    rng = np.random.default_rng(0)
    mask = (np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]).astype(np.int32)
    ids = rng.integers(2, SIZES["vocab_size"], mask.shape).astype(np.int32) * mask
    ids[[0, 1], np.array(LENGTHS) - 1] = 1
    arrays = {"a_ids": ids, "a_mask": mask, "a_lens": np.array(LENGTHS)}
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
        b_ids = ids[:, :5]
        arrays |= {"b_ids": b_ids}
        arrays["b_hidden"] = model(torch.tensor(b_ids)).last_hidden_state.numpy()
    for row, length in enumerate(LENGTHS):
        arrays[f"a_hidden_valid{row}"] = hidden[row, :length]
    FOLDER.mkdir(exist_ok=True)
    np.savez(FOLDER / "cases.npz", **arrays)
    tensors = {name: t.contiguous() for name, t in model.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)  # tied
    save_file(tensors, FOLDER / "hf.safetensors")
    kept = (*SIZES, "model_type", "layer_norm_epsilon", "feed_forward_proj")
    kept += ("relative_attention_num_buckets", "relative_attention_max_distance")
    found = config.to_dict()
    settings = {name: found[name] for name in kept}
    (FOLDER / "config.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
