"""How a command ends: one clear line and exit code 2 for bad input, no traceback; 1
where the same may work later."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from tavr_jax.errors import InputError, PassingError

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

_positionals: list[str] = []


def config_flag(default: str | None = None):
    """`--config FILE.py:size`, with any field as `--config.section.field=value`.

    The default is ours wherever the command is called from.
    """
    if default is not None:
        default = str(Path(__file__).parents[1] / default)
    try:
        return config_flags.DEFINE_config_file("config", default, lock_config=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # With a default, overrides are read here already, before `run`.
        print(f"error: {_flag_error(error)}", file=sys.stderr)
        sys.exit(2)


def positional(name: str, index: int = 0) -> str:
    """The argument at `index` after the flags; InputError when it was not given."""
    if index >= len(_positionals):
        raise InputError(f"{name}: missing; give it on the command line (see --help)")
    return _positionals[index]


def positionals(name: str) -> list[str]:
    """All arguments beside flags; InputError when none was given."""
    return [positional(name), *_positionals[1:]]


def output_file(flag: str, path: str) -> None:
    """InputError, before the work is done, where its outcome cannot be written."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise InputError(f"--{flag}: {path}: is a folder; name a file in it")
    if not folder.is_dir():
        raise InputError(f"--{flag}: {path}: no such folder")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--{flag}: {path}: the folder cannot be written to")


def others() -> list[str]:
    """All arguments beside flags, none if there are none."""
    return list(_positionals)


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or else in the
    user's cache folder: the second run of a command starts in seconds."""
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = str(home / "tavr_jax" / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)


def exact_products() -> None:
    """Products of float32 numbers are those of float32, unless
    JAX_DEFAULT_MATMUL_PRECISION says otherwise.

    By itself JAX rounds them to bfloat16 on TPUs and to TF32 on NVIDIA's GPUs, and what
    a config declares to be float32 would be so on CPUs alone. Products of bfloat16
    numbers stay what they are.
    """
    if jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "float32")


def run(main: Callable[[], None], doc: str, positional: int = 0) -> None:
    """Parse flags, call `main`, turn bad input into one line and exit code 2, what may
    pass into one and exit code 1.

    `positional` is how many arguments beside flags the command takes.
    """
    sys.modules["__main__"].__doc__ = doc
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_help(doc))
        sys.exit(0)
    exact_products()
    try:
        _parse(sys.argv, positional)
        main()
    except (InputError, PassingError) as error:
        if flags.FLAGS.is_parsed() and DEBUG.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _help(doc: str) -> str:
    """What the command is for, and the flags of our modules."""
    ours = [name for name in flags.FLAGS.flags_by_module_dict() if "launch" in name]
    parts = [flags.FLAGS.module_help(name).partition("\n")[2] for name in ours]
    return f"{doc.strip()}\n\nFlags (- and _ are the same):\n" + "\n".join(parts)


def _parse(argv: list[str], positional: int) -> None:
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow positional arguments
    try:
        rest = flags.FLAGS([argv[0], *map(_underscored, argv[1:])])[1:]
    except OSError as error:  # with fields to override, the file is read here already
        raise _no_config(argv) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(_flag_error(error)) from error
    _check_config(argv)
    if len(rest) > positional:
        raise InputError(f"flags: unexpected argument {rest[positional]!r}; see --help")
    _positionals[:] = rest


def _underscored(argument: str) -> str:
    """--sample-dir=X and --sample_dir=X are the same flag."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or "." in name:
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _check_config(argv: list[str]) -> None:
    """A config file that cannot be loaded is reported at its first use only."""
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    try:
        _ = flags.FLAGS["config"].value.stage
    except OSError as error:
        raise _no_config(argv) from error


def _no_config(argv: list[str]) -> InputError:
    given = [a for a in argv if ".py" in a and not a.startswith("--config.")]
    name = given[-1].removeprefix("--config=") if given else "--config"
    return InputError(f"{name}: no such config file; see configs/")


def _flag_error(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).strip()
    if "Traceback" in text:  # of a config file: its last line says what is wrong
        text = text.splitlines()[-1]
    line = " ".join(text.split())
    unknown = isinstance(error, (AttributeError, KeyError))
    return f"flags: {'no such config field: ' * unknown}{line} (see --help)"
