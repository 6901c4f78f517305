"""The few operations of pickle that a PyTorch state dict is written with.

A pickle is a program for a stack machine; Python's own machine imports and calls what
the program names. This one knows ten names, imports nothing and calls nothing but the
functions below. Every operation costs at most what it takes in the file, and keys are
texts or whole numbers (hashing nested tuples could take forever).
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tavr_jax.errors import InputError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MOST_AXES = 32


class Storage(NamedTuple):
    """A block of `count` numbers that lies outside of the pickle, under `key`."""

    dtype: np.dtype
    key: str
    count: int


class View(NamedTuple):
    """A tensor: a walk through a block; offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(ValueError):
    """What the program asked for and does not get."""


def read(path: Path, program: bytes) -> Any:
    """What the program builds, its tensors as `View`. InputError names `path`."""
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(program):
            if operation.name == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(operation.name)
            if step is None:
                raise _Refused(f"operation {operation.name}")
            step(machine, argument)
        raise ValueError("it has no end")
    except _Refused as error:
        raise InputError(
            f"{path}: refused: it asks for {error}, which no state dict needs and "
            "which could run code; save the state dict alone"
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError) as error:
        line = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: not a readable PyTorch file ({line}); fetch it again"
        ) from error


class _Machine:
    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> tuple[Any, ...]:
        """The last `count` things, removed."""
        if len(self.stack) < count:
            raise IndexError("it takes more than it has")
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def since_mark(self) -> tuple[Any, ...]:
        """Everything after the last mark, removed."""
        return self.take(len(self.stack) - self.marks.pop())

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {kind.__name__} was expected")
        return self.stack[-1]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """torch._utils._rebuild_tensor_v2: the rest is about gradients."""
    whole = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not isinstance(storage, Storage) or not whole or len(shape) != len(strides):
        raise TypeError("a tensor without numbers or shape")
    numbers = (offset, *shape, *strides)
    if len(shape) > _MOST_AXES or not all(_natural(n) for n in numbers):
        raise ValueError("a tensor of impossible shape")
    return View(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    """torch._utils._rebuild_parameter: its tensor."""
    return data


def _ordered(*items: Any) -> dict:
    """collections.OrderedDict, which is always written empty and filled afterwards."""
    if items:
        raise TypeError("an OrderedDict with arguments")
    return {}


_CALLS: dict[str, Callable] = {
    "collections OrderedDict": _ordered,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
_NAMES: dict[str, Any] = _CALLS | {
    f"torch {name}": np.dtype(dtype) for name, dtype in _DTYPES.items()
}


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _global(machine: _Machine, name: str) -> None:
    if name not in _NAMES:
        raise _Refused(repr(name.replace(" ", ".")[:200]))
    machine.stack.append(_NAMES[name])


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.take(2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a name that is no text")
    _global(machine, f"{module} {name}")


def _reduce(machine: _Machine, _: Any) -> None:
    call, arguments = machine.take(2)
    if not any(call is known for known in _CALLS.values()):
        raise _Refused("a call of something that is no function")
    if not isinstance(arguments, tuple):
        raise TypeError("arguments that are no tuple")
    machine.stack.append(call(*arguments))


def _persistent(machine: _Machine, _: Any) -> None:
    """("storage", type, key, device, count): a block outside of the pickle."""
    (reference,) = machine.take(1)
    if not isinstance(reference, tuple) or len(reference) != 5:
        raise TypeError("a reference to no storage")
    kind, dtype, key, _device, count = reference
    sound = isinstance(dtype, np.dtype) and isinstance(key, str) and _natural(count)
    if kind != "storage" or not sound:
        raise TypeError("a reference to no storage")
    machine.stack.append(Storage(dtype, key, count))


def _set_items(machine: _Machine, items: tuple[Any, ...]) -> None:
    target = machine.top(dict)
    if len(items) % 2:
        raise ValueError("a key without value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not _natural(key):
            raise TypeError("a key that is neither text nor number")
        if key in target:
            raise ValueError(f"{str(key)[:80]!r} is there twice")
        target[key] = value


def _append(machine: _Machine, items: tuple[Any, ...]) -> None:
    machine.top(list).extend(items)


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _build(machine: _Machine, _: Any) -> None:
    """Attributes: an OrderedDict has `_metadata`, versions of layers; not needed."""
    machine.take(1)
    machine.top(dict)


def _get(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _constant(make: Callable[[], Any]) -> Callable:
    return lambda machine, _: machine.stack.append(make())


def _literal(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _tuple(count: int) -> Callable:
    return lambda machine, _: machine.stack.append(machine.take(count))


def _nothing(machine: _Machine, _: Any) -> None:
    """PROTO and FRAME are for readers of streams."""


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: machine.take(1) and None,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2"), _literal),
    **dict.fromkeys(("LONG1", "LONG4", "BINFLOAT"), _literal),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _literal),
    "EMPTY_TUPLE": _constant(tuple),
    "TUPLE": lambda machine, _: machine.stack.append(machine.since_mark()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "EMPTY_LIST": _constant(list),
    "LIST": lambda machine, _: machine.stack.append(list(machine.since_mark())),
    "APPEND": lambda machine, _: _append(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.since_mark()),
    "EMPTY_DICT": _constant(dict),
    "DICT": _dict,
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _get),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), _put),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BINPERSID": _persistent,
    "BUILD": _build,
}
