"""Wan 2.1 in our network against diffusers, on sizes drawn at random.

Runs where torch and diffusers are installed; the product needs neither.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")
diffusers = pytest.importorskip("diffusers", reason="compares with its Wan")

from launch.parity import compare  # noqa: E402
from launch.parity_oracle import Oracle  # noqa: E402
from launch.parity_wan import replay_dit  # noqa: E402


@pytest.mark.parametrize("seed", range(3))
def test_velocities_are_those_of_diffusers(tmp_path, seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    heads, head = int(rng.integers(1, 4)), 2 * int(rng.integers(6, 20))
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": heads,
        "attention_head_dim": head,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": int(rng.integers(4, 30)),
        "freq_dim": 2 * int(rng.integers(4, 20)),
        "ffn_dim": int(rng.integers(8, 60)),
        "num_layers": int(rng.integers(1, 4)),
        "cross_attn_norm": bool(seed % 2),
        "eps": float(rng.choice([1e-6, 1e-4])),
    }
    model = diffusers.WanTransformer3DModel(**sizes).eval()
    with torch.no_grad():
        for weight in model.parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.2
            weight.add_(scale * torch.randn_like(weight))
    slots, rows, columns = int(rng.integers(1, 5)), *(2 * rng.integers(1, 7, 2))
    x = torch.randn(2, 16, slots, int(rows), int(columns))
    t = torch.tensor([0.0, float(rng.uniform(0, 1000))])
    text = torch.randn(2, int(rng.integers(1, 40)), sizes["text_dim"])
    with torch.no_grad():
        v = model(x, t, text, return_dict=False)[0]
    arrays = {"a_x": x, "a_t": t, "a_text": text, "a_v": v}
    np.savez(tmp_path / "cases.npz", **{k: a.numpy() for k, a in arrays.items()})
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/diffusion_pytorch_model.safetensors").rename(
        tmp_path / "diffusers.safetensors"
    )
    oracle = Oracle.open(tmp_path / "cases.npz")
    (check,) = replay_dit(oracle)
    assert compare(check.compute(), v.numpy()) < 2e-5
