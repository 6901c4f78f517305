"""Makes tests/golden/wan: Wan 2.1's transformer by PyTorch on random weights.

    python tests/golden/make_wan.py      # needs torch and diffusers

config.json and diffusers.safetensors as diffusers names them, and cases.npz in the form
of the oracle wan_seed0/dit_*, so that `launch.parity_wan` replays it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "wan"
SIZES = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 14,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 32,
}
LENGTHS = (3, 6)
SLOPES = ("patch_embedding.weight", "blocks.1.attn1.to_q.weight", "scale_shift_table")


def main() -> None:
    """Write the folder anew."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**SIZES).eval()
    with torch.no_grad():
        for weight in model.parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.2
            weight.add_(scale * torch.randn_like(weight))
    x, target = torch.randn(2, 2, 16, 2, 6, 8).unbind()
    t = torch.tensor([937.0, 250.5])
    text = torch.randn(2, max(LENGTHS), SIZES["text_dim"])
    for sample, length in zip(text, LENGTHS, strict=True):
        sample[length:] = 0
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - max(LENGTHS)))
    v = model(x, t, padded, return_dict=False)[0]
    loss = (v - target).square().mean()
    loss.backward()
    slopes = {name: weight.grad for name, weight in model.named_parameters()}
    arrays = {
        "a_x": x,
        "a_t": t,
        "a_text": text,
        "a_text_lens": torch.tensor(LENGTHS),
        "a_v": v.detach(),
        "a_target": target,
        "a_loss": loss.detach(),
        "a_grad_norms": torch.stack([g.norm() for g in slopes.values()]),
        **{f"a_grad.{name}": slopes[name] for name in SLOPES},
    }
    FOLDER.mkdir(exist_ok=True)
    names = {"a_grad_norms_names": np.array(list(slopes))}
    np.savez(FOLDER / "cases.npz", **{k: v.numpy() for k, v in arrays.items()}, **names)
    tensors = {name: w.detach().contiguous() for name, w in model.named_parameters()}
    save_file(tensors, FOLDER / "diffusers.safetensors")
    (FOLDER / "config.json").write_text(json.dumps(SIZES, indent=1) + "\n")


if __name__ == "__main__":
    main()
