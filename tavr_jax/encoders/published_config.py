"""The config.json beside published weights: the fields we need, checked.

Other fields are about training, tokens or heads that are not built here.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tavr_jax.errors import InputError

_SOUND: dict[Any, Callable[[Any], bool]] = {
    int: lambda v: type(v) is int and v > 0,
    bool: lambda v: type(v) is bool,
    str: lambda v: type(v) is str,
    float: lambda v: type(v) in (int, float) and v > 0,
    tuple[int, ...]: lambda v: type(v) is list and all(map(_SOUND[int], v)),
}


def read_object(path: str | Path) -> dict[str, Any]:
    """A JSON object. InputError: not there, not JSON, something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not readable JSON ({error}); fetch it again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object; give a network's config.json")
    return found


def read_fields(config: type, found: dict, source: str, model_type: str) -> dict:
    """The fields of the dataclass `config`, in its types; numbers are positive.

    InputError names the field that is missing or of another type, and a file that says
    it is of another `model_type`.
    """
    said = found.get("model_type", model_type)
    if said != model_type:
        raise InputError(
            f"{source}: model_type: {said!r} is not {model_type!r}; give the "
            "config.json of such a model"
        )
    values = {}
    for field in dataclasses.fields(config):
        if field.name not in found:
            raise InputError(f"{source}: {field.name}: missing; is it complete?")
        value = found[field.name]
        if not _SOUND[field.type](value):
            kind = getattr(field.type, "__name__", str(field.type))
            raise InputError(
                f"{source}: {field.name}: {value!r} is no {kind}; fetch it again"
            )
        values[field.name] = tuple(value) if type(value) is list else value
    return values


def require(sound: bool, source: str, config: Any, field: str, remedy: str) -> None:
    """InputError about a field's value unless it is `sound`."""
    if not sound:
        value = getattr(config, field)
        raise InputError(f"{source}: {field}: {value!r}; {remedy}")
