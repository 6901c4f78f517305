"""Where weights come from: a path, or the Hugging Face hub.

    runs/stage_2                         a file or folder here
    gs://bucket/stage_2                  a workdir of launch.train, or one of its steps
    owner/name                           a whole repository of the hub
    owner/name:folder/weights.pth        one file of it
    owner/name@revision:weights.pth      of a branch, tag or commit

Downloads go through the hub's own cache and token (HF_HOME, HF_TOKEN); what is in the
cache is found without a network. A hub that is busy or out of reach is a PassingError:
the same command may work later.
"""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from tavr_jax import storage
from tavr_jax.errors import InputError, PassingError
from tavr_jax.storage import Place

_HUB = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[^:]+))?"
)
# Weights, their sizes and their tokenizers; not demos, pictures and other frameworks.
PATTERNS = ("*.safetensors", "*.json", "*.pth", "*.pt", "*.bin", "*.model", "*.txt")
_SECONDS = 10.0  # that the hub may take to answer


def resolve(
    source: str, flag: str = "--checkpoint", patterns: Sequence[str] = PATTERNS
) -> Place:
    """The file or folder that `source` names, fetched if it has to be.

    `patterns`: which files of a whole repository are fetched. InputError, which begins
    with `flag`, if it is not here and cannot be had; PassingError, if perhaps later.
    """
    if storage.is_bucket(source):
        return _in_bucket(source, flag)
    if Path(source).exists():
        return Path(source)
    named = _HUB.fullmatch(source)
    if not named:
        raise InputError(
            f"{flag} {source}: no such file or folder; give a path, or OWNER/NAME or "
            "OWNER/NAME:FILE of the Hugging Face hub"
        )
    try:
        import huggingface_hub as hub  # here: most runs never need it
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise InputError(
            f"{flag} {source}: not a local file, and the hub needs the package "
            "huggingface_hub; install it, or download the file and give its path"
        ) from error
    repo, file, revision = named["repo"], named["file"], named["revision"]
    failures, offline = (HTTPError, OSError, ValueError), None
    try:
        # Asked here first: snapshot_download would wait for ever for a silent hub.
        revision = hub.HfApi().repo_info(repo, revision=revision, timeout=_SECONDS).sha
    except failures as error:
        offline = error
    try:
        folder = hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[glob.escape(file)] if file else list(patterns),
            local_files_only=offline is not None,
        )
    except failures as error:
        kind = PassingError if _may_pass(offline or error) else InputError
        raise kind(f"{flag} {source}: {_why(offline, error)}") from error
    path = Path(folder, file or "")
    if not path.exists():
        raise InputError(
            f"{flag} {source}: {repo} has no file {file!r} (or the hub cannot "
            "be reached and the cache has none); check the name"
        )
    return path


def is_local(source: str) -> bool:
    """Whether `source` is a path of this machine, there or not: neither of a bucket nor
    a name on the hub."""
    if storage.is_bucket(source):
        return False
    return Path(source).exists() or not _HUB.fullmatch(source)


def _in_bucket(source: str, flag: str) -> Place:
    path = storage.reached(source, flag)
    if not ((path / "params").is_dir() or (path / "checkpoints").is_dir()):
        raise InputError(
            f"{flag} {source}: no run of launch.train there; files of weights are read "
            "from a disk: copy them to one"
        )
    return path


def _may_pass(error: BaseException) -> bool:
    """Whether the hub is busy or out of reach, or has refused."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    if isinstance(error, (errors.HTTPError, ConnectionError, TimeoutError)):
        return True
    # The hub's package says that a file is not in the cache, because of something.
    return error.__cause__ is not None and _may_pass(error.__cause__)


def _why(offline: Exception | None, error: Exception) -> str:
    """What the hub's answer means: `offline` to the first question, else `error`."""
    from huggingface_hub import errors

    answer = offline or error
    if isinstance(answer, errors.GatedRepoError):
        return "the hub wants its terms accepted there; then set HF_TOKEN"
    if isinstance(answer, errors.RepositoryNotFoundError):
        return "neither here nor on the hub (or private: set HF_TOKEN); check the name"
    if isinstance(answer, errors.RevisionNotFoundError):
        return "the hub has no such revision of it; check the name"
    if offline is None:
        return f"the hub's copy cannot be fetched ({_line(answer)}); try again"
    return (
        f"not a local file and the hub cannot be reached ({_line(answer)}); download "
        "it elsewhere and give its path, or set HF_HOME to a cache that holds it"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:150] or type(error).__name__
