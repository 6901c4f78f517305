"""Makes tests/golden/vae with diffusers, the independent implementation.

    python tests/golden/make_vae.py        (needs torch and diffusers)

A small AutoencoderKLWan with random weights: two levels halve time, the grid is odd.
The weights are rounded to half precision, stored so, and used so.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "vae"
SIZES = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "latents_mean": [-0.5, 0.25, 1.0, 0.0],
    "latents_std": [2.0, 1.5, 0.75, 3.0],
}


def main() -> None:
    """Weights, sizes, one video of two samples through both directions."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(**SIZES).eval()
    for name, weight in model.state_dict().items():
        moved = weight + 0.1 * torch.randn_like(weight)
        if name.endswith("weight"):
            fan_in = weight[0].numel()
            moved = torch.randn_like(weight) * (1.5 / fan_in) ** 0.5
        weight.copy_(moved.half().float())
    half = {name: w.half().contiguous() for name, w in model.state_dict().items()}
    video = np.random.default_rng(0).integers(-128, 128, (2, 3, 9, 12, 20), np.int8)
    latents = torch.randn(2, SIZES["z_dim"], 4, 3, 5)
    mean, std = (
        torch.tensor(SIZES[name]).reshape(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        found = model.encode(torch.from_numpy(video).float() / 128).latent_dist
        decoded = model.decode(latents * std + mean).sample
    FOLDER.mkdir(exist_ok=True)
    save_file(half, FOLDER / "diffusers.safetensors")
    (FOLDER / "config.json").write_text(json.dumps(SIZES, indent=1) + "\n")
    arrays = {
        "a_video_i8": video,
        "a_mean": found.mean.numpy(),
        "a_logvar": found.logvar.numpy(),
        "a_latent_norm": ((found.mean - mean) / std).numpy(),
        "a_z_norm": latents.numpy(),
        "a_decoded": decoded.numpy(),
    }
    np.savez(FOLDER / "cases.npz", **arrays)
    print({name: (a.shape, float(np.abs(a).mean())) for name, a in arrays.items()})


if __name__ == "__main__":
    main()
