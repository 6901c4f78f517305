"""What other people's code says of small inputs: torchmetrics, lpips, scikit-image.

    python tests/golden/make_metrics.py

in an environment with torch, torchmetrics, lpips, scikit-image and statsmodels. LPIPS
runs on an AlexNet of random weights: what is recorded is its formula and its released
heads, not its judgement, so torchvision's downloads are not needed (nor torchvision).
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
from skimage.color import rgb2lab
from statsmodels.stats.multitest import multipletests
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

HERE = Path(__file__).parent / "metrics"


def alexnet(pretrained=False, **_):
    """The layers of AlexNet that LPIPS reads, with random weights."""
    layers, last = [], 3
    for width, size, stride, padding, pool in (
        (64, 11, 4, 2, False),
        (192, 5, 1, 2, True),
        (384, 3, 1, 1, True),
        (256, 3, 1, 1, False),
        (256, 3, 1, 1, False),
    ):
        if pool:
            layers.append(torch.nn.MaxPool2d(3, 2))
        layers.append(torch.nn.Conv2d(last, width, size, stride, padding))
        layers.append(torch.nn.ReLU(inplace=True))
        last = width
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


def lpips_case() -> dict[str, np.ndarray]:
    """Activations of both pictures, heads, result."""
    models = types.ModuleType("torchvision.models")
    models.alexnet = alexnet
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    sys.modules |= {"torchvision": torchvision, "torchvision.models": models}
    import lpips

    torch.manual_seed(0)
    net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    pictures = torch.rand(2, 2, 3, 47, 63) * 2 - 1
    with torch.no_grad():
        result = net(*pictures).flatten()
        seen = [net.net.forward(net.scaling_layer(x)) for x in pictures]
    case = {"lpips": result.numpy()}
    for index, lin in enumerate(net.lins):
        case[f"lpips_w{index}"] = lin.model[-1].weight.detach().numpy().ravel()
        for name, layers in zip("xy", seen, strict=True):
            case[f"lpips_{name}{index}"] = layers[index].permute(0, 2, 3, 1).numpy()
    return case


def main() -> None:
    """Write the file."""
    case = lpips_case()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 12)), 1.3 * rng.normal(size=(60, 12)) + 0.2
    first, second = torch.from_numpy(x), torch.from_numpy(y)
    fid = _compute_fid(
        first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T)
    )
    colours = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
    p = rng.uniform(0, 0.2, 9)
    case |= {
        "features_x": x,
        "features_y": y,
        "fid": fid.numpy(),
        "kid": poly_mmd(first, second).numpy(),
        "rgb": colours,
        "lab": rgb2lab(colours),
        "p": p,
        "holm": multipletests(p, method="holm")[1],
    }
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "cases.npz", **case)


if __name__ == "__main__":
    main()
