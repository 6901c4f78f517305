"""Makes tests/golden/weights with PyTorch: python tests/golden/make_weights.py

    state_dict.pth          every way in which a tensor may lie in its block
    state_dict.safetensors  the same numbers, contiguous
    parameters.pth          a module's state dict (with _metadata) inside {"model": ...}
    module.pth              a whole module: its class would have to be imported
    legacy.pth              the format before PyTorch 1.6

Made with torch 2.13.0. The tests need no PyTorch.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "weights"


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(6, 8, generator=generator)
    tensors = {
        "plain": block,
        "part.of the same block": block[2:5, 1::3],
        "transposed": block.T,
        "turned": block.reshape(2, 3, 8).permute(2, 0, 1),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(3, 0, dtype=torch.float16),
        "expanded": torch.arange(3, dtype=torch.int64)[None].expand(4, 3),
        "ünïcode/\n'name'": torch.tensor([True, False]),
    }
    for name in ("bfloat16", "float16", "int32", "int16", "int8", "uint8"):
        tensors[name] = torch.arange(5).to(getattr(torch, name))
    torch.save(tensors, FOLDER / "state_dict.pth")
    solid = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(solid, FOLDER / "state_dict.safetensors")
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    wrapped = {"epoch": 3, "rates": [0.1, 2], "model": module.state_dict()}
    wrapped["model"]["1.extra"] = torch.nn.Parameter(block[0])
    torch.save(wrapped, FOLDER / "parameters.pth")
    torch.save(module, FOLDER / "module.pth")
    torch.save(
        {"plain": block}, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False
    )


if __name__ == "__main__":
    main()
