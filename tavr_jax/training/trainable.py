"""Which parameters a run trains: `optimizer.trainable`.

    all         everything
    new         what TAVR adds to Wan 2.1, and the kernel of the patch embedding, two of
                whose input channels are new: a parameter is trained whole or not at all
    attention   everything inside the three attentions of every block
    lora        the low-rank additions (lora.py)
    others      regular expressions of whole names, separated by commas:
                "blocks/self_attn/.*,head/.*"

What is not trained has no gradient, no moments, no average and is in no checkpoint.
"""

import re
from collections.abc import Callable
from typing import Any

from flax import nnx

from tavr_jax.encoders import weights_wan
from tavr_jax.errors import InputError
from tavr_jax.training import lora

_ATTENTION = r"blocks/\w+_attn/.*"
_SHOWN = 4


def chosen(trainable: str, model: nnx.Module) -> Callable[[tuple, Any], bool]:
    """A filter for nnx.split(model, chosen(...), nnx.Param); `model` may be abstract.

    InputError: nothing has such a name.
    """
    keys = [key for key, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    names = {key: "/".join(map(str, key)) for key in keys}
    if trainable == "all":
        taken = set(keys)
    elif trainable == "new":
        taken = {key for key in keys if weights_wan.learns_anew(key)}
    elif trainable == "lora":
        taken = {key for key in keys if key[-1] in lora.FACTORS}
    else:
        pattern = _ATTENTION if trainable == "attention" else trainable
        taken = _matching(pattern.split(","), names)
    if not taken:
        raise _nothing(trainable, names)
    return lambda path, _: path in taken


def _matching(patterns: list[str], names: dict[tuple, str]) -> set[tuple]:
    taken = set()
    for pattern in patterns:
        try:
            found = {k for k, name in names.items() if re.fullmatch(pattern, name)}
        except re.error as error:
            raise InputError(
                f"optimizer.trainable: {pattern!r}: no regular expression ({error})"
            ) from error
        if not found:
            raise _nothing(pattern, names)
        taken |= found
    return taken


def _nothing(pattern: str, names: dict[tuple, str]) -> InputError:
    every = sorted(names.values())
    some = ", ".join(every[:: max(1, len(every) // _SHOWN)][:_SHOWN])
    return InputError(
        f"optimizer.trainable: {pattern!r} matches no parameter; expected all | new | "
        f"attention | lora, or names such as {some}"
    )
