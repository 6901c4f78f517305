"""Softmax attention behind one signature.

    (1) out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j,  over kept keys j

A query whose keys are all masked gets a finite number that nobody reads. The kernels:

    chunked  attention_chunked.py  any device, any mask; what the others are tested by
    splash   attention_splash.py   TPU
    cudnn    attention_cudnn.py    GPU, 16-bit numbers

`auto` takes the fastest that the devices have. Arrays here are those of one device;
attention_sharded.py spreads a call over a mesh.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tavr_jax.errors import InputError
from tavr_jax.models import attention_chunked, attention_cudnn, attention_splash
from tavr_jax.parallel.mesh import platform

KERNELS = ("auto", "chunked", "splash", "cudnn")


def attend(
    q: Float[Array, "B n K d"],
    k: Float[Array, "B m K d"],
    v: Float[Array, "B m K d"],
    mask: Bool[Array, "B q m"] | None,
    kernel: str,
    keep: str | None = None,
) -> Float[Array, "B n K d"]:
    """(1). `mask` is true where a query may read a key; q = n, or 1 for all alike.

    `kernel` is one of KERNELS. A mask that differs between queries is always chunked:
    the fast kernels have no linear form of it, and it is only met where keys are few.
    `keep` names what the backward pass needs (jax.ad_checkpoint.checkpoint_name), so
    that rematerialising need not run the kernel again; cudnn has no such name.
    InputError where the kernel cannot take the numbers.
    """
    chosen = choose(kernel, q.dtype)
    if mask is not None and mask.shape[1] != 1:
        chosen = "chunked"
    if chosen == "chunked":
        return attention_chunked.attend(q, k, v, mask, keep)
    kept = None if mask is None else mask[:, 0]
    if chosen == "splash":
        return attention_splash.attend(q, k, v, kept, keep)
    return attention_cudnn.attend(q, k, v, kept)


def choose(kernel: str, dtype: jnp.dtype) -> str:
    """The kernel that `kernel` means on the devices a program is traced for.

    InputError where they have no such kernel, or it cannot take the numbers.
    """
    small = jax.dtypes.itemsize_bits(dtype) == 16
    if kernel == "auto":
        usual = {"tpu": "splash", "gpu": "cudnn" if small else "chunked"}
        return usual.get(platform(), "chunked")
    if kernel == "cudnn" and not small:
        raise InputError(
            f"model.attention: cudnn reads 16-bit numbers, not {dtype}: set "
            "model.dtype to bfloat16, or model.attention to auto"
        )
    wants = {"splash": ("tpu", "cpu"), "cudnn": ("gpu",)}.get(kernel)
    if wants and platform() not in wants:
        raise InputError(
            f"model.attention: {kernel} does not run on a {platform()}; set it to auto"
        )
    return kernel
