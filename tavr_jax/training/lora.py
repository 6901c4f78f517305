"""Low-rank additions to the dense layers of a frozen network.

    (1) y = x W + (alpha / rank) (x A) B + bias     A: (in, rank), B: (rank, out)
    (2) A normal with deviation 1 / sqrt(in), B zero: a fresh addition changes nothing
    (3) merged: W' = W + (alpha / rank) A B

Source: Hu et al. 2021 (arXiv 2106.09685). In (1) no matrix of the size of W is made and
none has a gradient: A and B are trained, W is not. Products are summed in float32 and
rounded to the layer's dtype once, before the bias: with B = 0 that is what the layer
alone computes, to the bit, and an addition below the last bit of x W still moves where
the sum is rounded to, instead of being rounded away first. (3) has no such help: it is
rounded to W's dtype, and in bfloat16 changes of W below half its last bit are lost.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tavr_jax.errors import InputError
from tavr_jax.models.layers import lecun, linear

Module = TypeVar("Module", bound=nnx.Module)
FACTORS = ("lora_a", "lora_b")  # names of A and B


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Section `lora`; meanings and values are in configs/base.py."""

    rank: int
    alpha: float
    layers: str

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"lora.rank: {self.rank}: expected 1 or more")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha: {self.alpha}: expected more than 0")
        try:
            re.compile(self.layers)
        except re.error as error:
            raise InputError(
                f"lora.layers: {self.layers!r}: no regular expression ({error})"
            ) from error


class LowRank(nnx.Module):
    """(1) in place of a dense layer, whose parameters keep their names."""

    def __init__(self, layer: nnx.Linear, a: nnx.Param, b: nnx.Param, scale: float):
        self.kernel, self.bias = layer.kernel, layer.bias
        self.lora_a, self.lora_b = a, b
        self.dtype, self.scale = layer.dtype, scale

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """(1)."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        a, b = (f[...].astype(self.dtype) for f in (self.lora_a, self.lora_b))
        low = product(x, a).astype(self.dtype)
        y = (product(x, kernel) + self.scale * product(low, b)).astype(self.dtype)
        bias = self.bias[...].astype(self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def merged(self) -> nnx.Linear:
        """(3), in the dtype and at the place of W."""
        inputs, outputs = self.kernel.shape[-2:]
        layer = nnx.eval_shape(lambda: linear(inputs, outputs, self.dtype, nnx.Rngs(0)))
        kernel = self.kernel.get_value()
        a, b = self.lora_a.get_value(), self.lora_b.get_value()
        place = kernel.sharding if kernel.committed else None
        fold = jax.jit(_folded, static_argnums=3, out_shardings=place)
        layer.kernel = self.kernel.replace(fold(kernel, a, b, self.scale))
        layer.bias = self.bias
        return layer


def graft(model: Module, config: LoraConfig, rngs: nnx.Rngs) -> Module:
    """A copy of `model`, which may be abstract, with (1) in the layers of the config.

    `config.layers` is a regular expression of whole names, "blocks/self_attn/q"; the
    factors of a stack of layers are stacked like its kernels. InputError: it names no
    dense layer, or the rank is no bound for one of them.
    """
    model = nnx.clone(model)
    layers = dict(_layers(model, nnx.Linear))
    found = [name for name in layers if re.fullmatch(config.layers, name)]
    if not found:
        some = ", ".join(sorted(layers)[:4])
        raise InputError(
            f"lora.layers: {config.layers!r} matches no dense layer; there are {some}, "
            "..."
        )
    for name in found:
        parent, key, layer = layers[name]
        *_, inputs, outputs = layer.kernel.shape
        if config.rank > min(inputs, outputs):
            raise InputError(
                f"lora.rank: {config.rank}: layer {name} is {inputs} x {outputs}; "
                f"give at most {min(inputs, outputs)}, or leave it out of lora.layers"
            )
        setattr(parent, key, _grafted(layer, config, rngs.params()))
    return model


def merge(model: Module) -> Module:
    """A copy of a grafted `model` as it was before, with (3) under the plain names."""
    model = nnx.clone(model)
    for parent, key, layer in list(dict(_layers(model, LowRank)).values()):
        setattr(parent, key, layer.merged())
    return model


@jax.custom_vjp
def product(x: Float[Array, "*n i"], w: Float[Array, "i o"]) -> Float[Array, "*n o"]:
    """x W in float32; what flows back is in the dtype of x again.

    JAX's own rule would multiply float32 by bfloat16 there, which is slow.
    """
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def _product_forward(x: Array, w: Array):
    return product(x, w), (x, w)


def _product_backward(kept: tuple[Array, Array], slope: Array):
    x, w = kept
    slope = slope.astype(x.dtype)
    return slope @ w.T, jnp.einsum("...i,...o->io", x, slope)


product.defvjp(_product_forward, _product_backward)


def _grafted(layer: nnx.Linear, config: LoraConfig, key: Array) -> LowRank:
    *stack, inputs, outputs = layer.kernel.shape

    def factors() -> tuple[Array, Array]:  # (2)
        a = lecun(key, (inputs, math.prod(stack) * config.rank))
        a = jnp.moveaxis(a.reshape(inputs, *stack, config.rank), 0, -2)
        return a, jnp.zeros((*stack, config.rank, outputs))

    abstract = isinstance(layer.kernel.get_value(), jax.ShapeDtypeStruct)
    a, b = jax.eval_shape(factors) if abstract else factors()
    return LowRank(layer, nnx.Param(a), nnx.Param(b), config.alpha / config.rank)


def _folded(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    delta = jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + scale * delta).astype(kernel.dtype)


def _layers(
    model: nnx.Module, kind: type[nnx.Module]
) -> Iterator[tuple[str, tuple[nnx.Module, str, nnx.Module]]]:
    """Name, parent, name in the parent and module of every module of a kind."""
    modules = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if isinstance(module, kind):
            yield "/".join(map(str, path)), (modules[path[:-1]], path[-1], module)
