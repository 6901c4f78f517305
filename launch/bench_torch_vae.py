"""The video autoencoder in plain PyTorch: what launch.bench vae measures ours against.

TAVR_SPEC 6 with F.conv3d, a whole clip at once, channels first; weights by Wan's own
names. No memory between pieces: that is the fastest it gets.

    letters as in tavr_jax/types.py, but PyTorch's order: "B C T H W"
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tavr_jax.encoders.vae import CodecConfig


class Reference(NamedTuple):
    """A codec: its sizes, and its weights by name."""

    config: CodecConfig
    weights: dict[str, Tensor]

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised posterior mean; 1 + 4k frames."""
        c = self.config
        x = self._conv("encoder.conv1", frames)
        index = 0
        for level, temporal in enumerate((*c.temporal_downsample, None)):
            for _ in range(c.num_res_blocks):
                x = self._residual(f"encoder.downsamples.{index}", x)
                index += 1
            if level < len(c.dim_mult) - 1:
                x = self._halved(f"encoder.downsamples.{index}", x, temporal)
                index += 1
        x = self._ends("encoder", self._middle("encoder", x))
        mean = self._conv("conv1", x)[:, : c.z_dim]
        return (mean - self._row(c.latents_mean)) / self._row(c.latents_std)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames in [-1, 1]."""
        c = self.config
        x = latents * self._row(c.latents_std) + self._row(c.latents_mean)
        x = self._conv("decoder.conv1", self._conv("conv2", x))
        x = self._middle("decoder", x)
        index = 0
        for level, temporal in enumerate((*reversed(c.temporal_downsample), None)):
            for _ in range(c.num_res_blocks + 1):
                x = self._residual(f"decoder.upsamples.{index}", x)
                index += 1
            if level < len(c.dim_mult) - 1:
                x = self._doubled(f"decoder.upsamples.{index}", x, temporal)
                index += 1
        return self._ends("decoder", x).clamp(-1, 1)

    def _row(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1, 1)

    def _conv(self, name: str, x: Tensor, past: int | None = None, stride=1) -> Tensor:
        """Causal in time, zero-padded in space."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        past = weight.shape[2] - 1 if past is None else past
        x = F.pad(x, (0, 0, 0, 0, past, 0)) if past else x
        around = (0, weight.shape[3] // 2, weight.shape[4] // 2)
        return F.conv3d(x, weight, bias, (stride, 1, 1), around)

    def _frames(self, name: str, x: Tensor, **way) -> Tensor:
        """A 2-D convolution of each frame."""
        flat = x.transpose(1, 2).flatten(0, 1)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        y = F.conv2d(flat, weight, bias, **way)
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        gamma = self.weights[f"{name}.gamma"].view(1, -1, *(1,) * (x.ndim - 2))
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma

    def _residual(self, name: str, x: Tensor) -> Tensor:
        y = F.silu(self._norm(f"{name}.residual.0", x))
        y = self._conv(f"{name}.residual.2", y)
        y = F.silu(self._norm(f"{name}.residual.3", y))
        y = self._conv(f"{name}.residual.6", y)
        if f"{name}.shortcut.weight" in self.weights:
            x = self._conv(f"{name}.shortcut", x)
        return x + y

    def _middle(self, side: str, x: Tensor) -> Tensor:
        x = self._residual(f"{side}.middle.0", x)
        name = f"{side}.middle.1"
        qkv = self._frames(f"{name}.to_qkv", self._norm(f"{name}.norm", x))
        flat = qkv.permute(0, 2, 3, 4, 1).flatten(2, 3)
        read = F.scaled_dot_product_attention(*flat.chunk(3, dim=-1))
        read = read.unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)
        x = x + self._frames(f"{name}.proj", read)
        return self._residual(f"{side}.middle.2", x)

    def _ends(self, side: str, x: Tensor) -> Tensor:
        y = F.silu(self._norm(f"{side}.head.0", x))
        return self._conv(f"{side}.head.2", y)

    def _halved(self, name: str, x: Tensor, temporal: bool) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        x = self._frames(f"{name}.resample.1", x, stride=2)
        if not temporal or x.shape[2] == 1:
            return x
        later = self._conv(f"{name}.time_conv", x, past=0, stride=2)
        return torch.cat([x[:, :, :1], later], 2)

    def _doubled(self, name: str, x: Tensor, temporal: bool) -> Tensor:
        if temporal and x.shape[2] > 1:
            pairs = self._conv(f"{name}.time_conv", x[:, :, 1:])
            pairs = torch.stack(pairs.chunk(2, dim=1), dim=3).flatten(2, 3)
            x = torch.cat([x[:, :, :1], pairs], 2)
        x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest-exact")
        return self._frames(f"{name}.resample.1", x, padding=1)
