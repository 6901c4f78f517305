"""Where training starts: what is trained, what is frozen, and where both come from.

init_from (launch/origin.py): "" (seeded), a workdir of ours or one of its
checkpoints/<step> (averaged weights, whole, also where the run trained only a part), a
stage that the package carries (launch/shipped.py), TAVR's or Wan 2.1's published
weights, or a network that we exported. What Wan has not is seeded. The trained part is
float32; the frozen part keeps the dtypes it is stored in, which loses nothing and is
half of the memory where the file is bfloat16.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import origin
from tavr_jax import storage
from tavr_jax.diffusion.guidance import Network
from tavr_jax.errors import InputError
from tavr_jax.parallel import sharding
from tavr_jax.storage import Place
from tavr_jax.training import checkpoint, lora, trainable
from tavr_jax.types import PyTree


class Start(NamedTuple):
    """What a run begins with."""

    graph: nnx.GraphDef  # nnx.merge(graph, trained, frozen)
    abstract: PyTree  # shapes of what is trained, with shardings
    frozen: PyTree  # the rest of the parameters, on the mesh; may be empty
    params: Callable[[], PyTree]  # what is trained, to start from, on the mesh
    base: origin.Base  # what it started from

    def network(self) -> Callable[[PyTree], Network]:
        """The transformer as a function of what is trained; the rest are its leaves."""
        return jax.tree_util.Partial(partial(_network, self.graph), self.frozen)

    def whole(self, params: PyTree) -> PyTree:
        """Trained and frozen parameters as one state: nnx.merge(graph, whole)."""
        return origin.over(self.frozen, params)

    @property
    def facts(self) -> dict[str, str]:
        """What it started from, with its fingerprint; {} for scratch."""
        told = ("init_from", "path", "fingerprint")
        return {name: getattr(self.base, name) for name in told if self.base.path}

    def told(self) -> str:
        """Where it starts and what stays as it is, for the terminal."""
        where = f"{self.base.path} ({self.base.fingerprint})" if self.base.path else ""
        trained, frozen = (
            sum(leaf.size for leaf in jax.tree.leaves(part))
            for part in (self.abstract, self.frozen)
        )
        rest = f"; trains {trained:,} parameters beside {frozen:,} frozen ones"
        return f"starts from {where or 'seeded weights'}{rest if frozen else ''}"

    def reference(self, workdir: Place, resuming: bool) -> PyTree:
        """What is trained as it was at the start, kept in WORKDIR/start.

        The policy to stay near in stage 3. Where everything is trained this is a second
        copy of the parameters; with low-rank additions, two small factors a layer.
        """
        if resuming:
            return checkpoint.load_tree(workdir / "start", self.abstract)
        values = self.params()
        checkpoint.save_tree(workdir / "start", values)
        return values


def begin(config: ConfigDict, mesh: Mesh, workdir: Place, resuming: bool) -> Start:
    """Load or make everything. Writes nothing: `origin.write` does, for a new run.

    A resumed run takes its trained part from its checkpoint: here only the frozen part
    is loaded, from where the run started, which has to stay there (origin.py).
    InputError: weights that do not fit, a base that is missing, has changed or is not
    the one that is asked for now, a choice of parameters that names none.
    """
    graph, shapes = _parts(config, mesh)
    base, loaded = _resumed(config, mesh, workdir) if resuming else _first(config, mesh)
    frozen = _frozen(loaded, shapes) if loaded else nnx.State({})
    kept = [] if resuming else [_trained(config, loaded, shapes)]
    del loaded

    def params() -> PyTree:
        # Handed over at the first call: nobody holds a second copy for the whole run.
        if kept:
            return kept.pop()
        if base.trainable == "lora":
            return _factors(config, shapes)
        again = origin.load_base(base, config, mesh, config.init_from)
        return _trained(config, again, shapes)

    return Start(graph, shapes, frozen, params, base)


def _parts(config: ConfigDict, mesh: Mesh) -> tuple[nnx.GraphDef, PyTree]:
    """The network, and the shapes of what is trained of it."""
    part = config.optimizer.trainable
    if config.stage in origin.ALONE and part != "all":
        raise InputError(
            f"optimizer.trainable: {part!r}: stage {config.stage} trains all of its "
            "network; expected all"
        )
    additions = config.lora.to_dict()
    model = nnx.eval_shape(partial(origin.grafted, config, part, additions))
    graph, shapes, _ = nnx.split(model, trainable.chosen(part, model), nnx.Param)
    return graph, sharding.abstract(mesh, shapes)


def _resumed(
    config: ConfigDict, mesh: Mesh, workdir: Place
) -> tuple[origin.Base, origin.Loaded | None]:
    """What a run started from; loaded where the run does not train all of it."""
    base = origin.read(workdir)
    if base is None:
        raise InputError(
            f"{workdir}: base.json is gone, which says what this run started from; "
            "bring it back, or give another --workdir"
        )
    all_trained = base.trainable == "all"
    moved = base.path and not storage.place(base.path).exists() and not all_trained
    if config.init_from != base.init_from and not moved:
        raise InputError(
            f"--config.init_from: {config.init_from!r}, but the run in {workdir} "
            f"started from {base.init_from!r}; give that, or another --workdir"
        )
    if all_trained:
        return base, None
    return base, origin.load_base(base, config, mesh, config.init_from)


def _first(config: ConfigDict, mesh: Mesh) -> tuple[origin.Base, origin.Loaded]:
    path = origin.find(config.init_from)
    loaded = origin.load(path, config, mesh)
    base = origin.Base(
        init_from=config.init_from,
        path=str(path or ""),
        fingerprint=loaded.fingerprint,
        seed=config.seed,
        trainable=config.optimizer.trainable,
        lora=config.lora.to_dict(),
    )
    return base, loaded


def _frozen(loaded: origin.Loaded, shapes: PyTree) -> PyTree:
    """What is not trained, as it was loaded."""
    trained = {key for key, _ in nnx.to_flat_state(shapes)}
    flat = nnx.to_flat_state(loaded.params)
    return nnx.from_flat_state([item for item in flat if item[0] not in trained])


def _trained(config: ConfigDict, loaded: origin.Loaded, shapes: PyTree) -> PyTree:
    """What is trained, in the dtypes (float32) and at the places of `shapes`."""
    if config.optimizer.trainable == "lora":
        return _factors(config, shapes)
    flat, made = dict(nnx.to_flat_state(loaded.params)), []
    for key, shape in nnx.to_flat_state(shapes):
        value = flat[key].get_value().astype(shape.dtype)
        value = jax.device_put(value, shape.get_value().sharding)
        made.append((key, flat[key].replace(value)))
    return nnx.from_flat_state(made)


def _factors(config: ConfigDict, shapes: PyTree) -> PyTree:
    """Low-rank additions that change nothing yet; the network itself is not made."""
    additions = config.lora.to_dict()

    def made() -> PyTree:
        model = origin.grafted(config, "lora", additions)
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return nnx.from_flat_state([i for i in flat if i[0][-1] in lora.FACTORS])

    places = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(made, out_shardings=places)()


def _network(graph: nnx.GraphDef, frozen: PyTree, params: PyTree) -> Network:
    model = nnx.merge(graph, params, frozen)
    return Network(model.prefill, model)
