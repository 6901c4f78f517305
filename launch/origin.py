"""What a run started from, and whole weights from anything that can be started from.

A run that trains a part of its network, or low-rank additions to it, has only that part
in its checkpoints. The rest is not copied (38 GB a run): WORKDIR/base.json names it,

    init_from    as it was given         path         where it was found; "" = seeded
    fingerprint  of what is stored there (parallel/checksum.py)
    seed         of what is not stored there          trainable, lora   what is trained

so that a checkpoint is whole again wherever it is loaded. A missing base, and one that
has changed, is an InputError. Seeded values need no file. So do not go on training the
run that another one builds on, whose old checkpoints are then removed, unless
train.keep_every keeps the one it started from.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import build, shipped
from launch.weights_source import resolve
from tavr_jax import storage
from tavr_jax.encoders import weights_wan
from tavr_jax.encoders.face import FaceConfig, FaceNet
from tavr_jax.encoders.lipsync import LipsyncConfig, SyncNet
from tavr_jax.encoders.tensors import Tensors
from tavr_jax.encoders.vae import Codec, CodecConfig
from tavr_jax.encoders.weights import load_network
from tavr_jax.encoders.weights_tavr import load_transformer, open_published
from tavr_jax.encoders.weights_wan import load_wan
from tavr_jax.errors import InputError
from tavr_jax.parallel import checksum, sharding
from tavr_jax.storage import Place
from tavr_jax.training import checkpoint, lora, trainable
from tavr_jax.types import PyTree

_FILE = "base.json"
_NULL = "null_audio_feature.weight"  # TAVR has it, Wan has not
ALONE = ("codec", "face", "lipsync")  # stages that train a network of their own


class Base(NamedTuple):
    """base.json."""

    init_from: str
    path: str
    fingerprint: str
    seed: int
    trainable: str
    lora: dict


class Loaded(NamedTuple):
    """Every parameter of a plain network, in the dtypes it is stored in."""

    params: nnx.State
    fingerprint: str  # of what is stored; "" of seeded values


def is_published(path: Place) -> bool:
    """Whether a checkpoint is somebody's weights: not a workdir of launch.train, nor
    a stage of launch.ship."""
    ours = (path / "params").is_dir() or (workdir_of(path) / "checkpoints").is_dir()
    return (path.is_file() or not ours) and not shipped.is_shipped(path)


def workdir_of(path: Place) -> Place:
    """Of a workdir or of its checkpoints/<step>."""
    inside = path.name.isdecimal() and path.parent.name == "checkpoints"
    return path.parents[1] if inside else path


def seeded(config: ConfigDict) -> nnx.Module:
    """The network that this stage trains, with random weights."""
    rngs = nnx.Rngs(config.seed)
    match config.stage:
        case "codec":
            return Codec(CodecConfig(**config.codec), rngs=rngs)
        case "face":
            return FaceNet(FaceConfig(**config.face), rngs=rngs)
        case "lipsync":
            return SyncNet(LipsyncConfig(**config.lipsync), rngs=rngs)
    return build.transformer(config)


def grafted(config: ConfigDict, part: str, additions: Mapping) -> nnx.Module:
    """The same, with the low-rank additions of a run that trains them."""
    model = seeded(config)
    if part != "lora":
        return model
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return lora.graft(model, lora.LoraConfig(**additions), nnx.Rngs(key))


def read(path: Place) -> Base | None:
    """base.json of a workdir or of one of its steps; None: it has everything itself."""
    file = workdir_of(path) / _FILE
    try:
        return Base(**json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{file}: not what launch.train writes ({error}); train in a new --workdir"
        ) from error


def write(workdir: Place, base: Base) -> None:
    """base.json, by one process, all or nothing."""
    if jax.process_index():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(base._asdict(), indent=2) + "\n"
    storage.write_text(workdir / _FILE, text)


def find(init_from: str) -> Place | None:
    """The file or folder that init_from means today, of a workdir its newest step."""
    if not init_from:
        return None
    path = storage.place(named(init_from, "--config.init_from"))
    return path if is_published(path) else _newest(path)


def named(source: str, flag: str) -> Place:
    """The file or folder of `mini`, `mini:STAGE`, a path or a name on the hub.

    InputError, which begins with `flag`: no such thing.
    """
    if shipped.is_named(source):
        return shipped.find(source, flag)
    return resolve(source, flag)


def load(
    path: Place | None,
    config: ConfigDict,
    mesh: Mesh,
    *,
    ema: bool = True,
    moved: str = "",
) -> Loaded:
    """Weights that `find` found, whole and plain, split over the mesh.

    `config` gives sizes, and the seed of what is not stored; `moved` says where the
    base of a run is now, if not where it was. InputError names a tensor that does not
    fit, or a base that is missing or has changed.
    """
    if path is None:
        return Loaded(_fresh(config, mesh, lambda key: True), "")
    if shipped.is_shipped(path):
        if config.stage in ALONE:
            raise InputError(
                f"{path}: a transformer; stage {config.stage} trains another network"
            )
        return Loaded(*shipped.load(path, config, mesh))
    if not is_published(path):
        return _ours(path, config, mesh, ema, moved)
    return _published(path, config, mesh)


def load_base(base: Base, config: ConfigDict, mesh: Mesh, moved: str = "") -> Loaded:
    """What a run started from, checked against what it was then. See `load`."""
    config = config.copy_and_resolve_references()
    config.seed = base.seed
    path = storage.place(base.path) if base.path else None
    if path and not path.exists():
        try:
            path = find(moved or base.init_from)
        except InputError as error:
            raise InputError(
                f"{base.path}: not there, and the run needs the weights that it "
                f"started from ({error}); give their place: --config.init_from=PATH"
            ) from error
    loaded = load(path, config, mesh)
    if loaded.fingerprint != base.fingerprint:
        raise InputError(
            f"{path}: other weights (fingerprint {loaded.fingerprint}) than the run "
            f"started from ({base.path}, {base.fingerprint}); give the place of those: "
            "--config.init_from=PATH"
        )
    return loaded


def over(base: PyTree, part: PyTree) -> nnx.State:
    """`base` with the parameters of `part` in place of its own, and beside them."""
    flat = dict(nnx.to_flat_state(base)) | dict(nnx.to_flat_state(part))
    return nnx.from_flat_state(list(flat.items()))


def _ours(path: Place, config: ConfigDict, mesh: Mesh, ema: bool, moved: str) -> Loaded:
    base = read(path)
    if base is None or base.trainable == "all":
        shapes = nnx.state(nnx.eval_shape(partial(seeded, config)), nnx.Param)
        shapes = sharding.abstract(mesh, shapes)
        params = checkpoint.load_params(path, shapes, ema, stored_dtypes=True)
        return Loaded(params, checksum.fingerprint(params))
    model = nnx.eval_shape(partial(grafted, config, base.trainable, base.lora))
    is_trained = trainable.chosen(base.trainable, model)
    graph, shapes, _ = nnx.split(model, is_trained, nnx.Param)
    shapes = sharding.abstract(mesh, shapes)
    trained = checkpoint.load_params(path, shapes, ema, stored_dtypes=True)
    below = load_base(base, config, mesh, moved)
    model = nnx.merge(graph, over(below.params, trained))
    marks = f"{below.fingerprint} {base.seed} {checksum.fingerprint(trained)}"
    mark = hashlib.sha256(marks.encode()).hexdigest()[:12]
    return Loaded(nnx.state(lora.merge(model), nnx.Param), mark)


def _published(path: Place, config: ConfigDict, mesh: Mesh) -> Loaded:
    graph, shapes = nnx.split(nnx.eval_shape(partial(seeded, config)), nnx.Param)
    shapes = sharding.abstract(mesh, shapes)
    model = nnx.merge(graph, shapes)
    if config.stage in ALONE:
        params = nnx.state(load_network(path, model), nnx.Param)
        return Loaded(params, checksum.fingerprint(params))
    if not is_wan(open_published(path)):
        model = load_transformer(path, model, dtype="file")
        params = nnx.state(model, nnx.Param)
        return Loaded(params, checksum.fingerprint(params))
    added = _fresh(config, mesh, weights_wan.is_added)
    model = nnx.merge(graph, over(shapes, added))
    params = nnx.state(load_wan(path, model, dtype="file"), nnx.Param)
    flat = nnx.to_flat_state(params)
    stored = [item for item in flat if not weights_wan.is_added(item[0])]
    return Loaded(params, checksum.fingerprint(nnx.from_flat_state(stored)))


def is_wan(tensors: Tensors) -> bool:
    """Whether published names are those of Wan's network, not of TAVR's."""
    wans = any(n.startswith(("condition_embedder.", "text_embedding")) for n in tensors)
    return wans and _NULL not in tensors


def _fresh(config: ConfigDict, mesh: Mesh, wanted) -> nnx.State:
    """Seeded parameters whose keys are wanted; the others are never made."""

    def made() -> nnx.State:
        flat = nnx.to_flat_state(nnx.state(seeded(config), nnx.Param))
        return nnx.from_flat_state([item for item in flat if wanted(item[0])])

    shapes = sharding.abstract(mesh, jax.eval_shape(made))
    return jax.jit(made, out_shardings=jax.tree.map(lambda x: x.sharding, shapes))()


def _newest(path: Place) -> Place:
    """The folder of a workdir's newest complete checkpoint; others as they are."""
    steps = checkpoint.complete_steps(path / "checkpoints")
    return path / "checkpoints" / str(max(steps)) if steps else path
