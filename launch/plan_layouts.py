"""Layouts that could be tried, and a guess of their memory where compiling is too slow.

Of one device, with P parameters of which a share learns, b samples and n tokens of each
(main and reference) after the batch and context axes have cut them:

    (1) state     P trained x (4 + 8 + 4 with an average) + P frozen x 2, both / (fsdp
                  context)
    (2) carries   layers b n D 4 x what model.remat keeps: 1 for inputs of blocks, 0.5
                  more for the output of attention, about 12 for everything
    (3) cache     layers b m D 4: keys and values of m reference tokens, 2 bytes each
    (4) block     b n (8 D + 2 ffn) 4 / tensor: one layer at work, and its gradient
    (5) gathered  P / layers x 8: weights of one layer, and of the next
    (6) gradient  P trained x 4 / (fsdp context)

(2) and (6) are there only where something learns. The sum (2)-(6) is a model, ours; one
compiled layout corrects it by the ratio of its temporaries to it.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import transforms
from launch import build, origin, plan_program, pod_fit, stages
from launch.pod_topology import Topology, valid_shapes
from tavr_jax.errors import InputError
from tavr_jax.models import flops
from tavr_jax.models.transformer import TransformerConfig
from tavr_jax.parallel.mesh import AXES, MeshConfig, axis_sizes
from tavr_jax.training import trainable

_SPARE = 0.05  # of the memory that a guess has to leave
_MOST_TENSOR = 8
# (2) by model.remat, times a carry
_KEPT = {"none": 12.0, "attention": 1.5, "full": 1.0, "offload": 0.5}


class Place(NamedTuple):
    """Where a config would run."""

    topology: Topology
    slices: int

    @property
    def devices(self) -> int:
        """Of JAX, of all slices."""
        return self.topology.devices * self.slices


class Guess(NamedTuple):
    """Bytes of one device."""

    state: float
    rest: float

    def total(self, ratio: float) -> float:
        """With the temporaries corrected by what one compile found."""
        return self.state + ratio * self.rest


class Counts(NamedTuple):
    """Parameters of a job."""

    trained: int
    frozen: int


def check_hosts(job: str, place: Place) -> None:
    """InputError where launch.generate, which is one process, would have to be many."""
    hosts = place.slices * place.topology.hosts
    if job != "generate" or hosts == 1:
        return
    kind, chip = place.topology.kind, place.topology.chip
    alone = [t for s in valid_shapes(chip) if (t := Topology(kind, s)).hosts == 1]
    raise InputError(
        f"--topology={place.topology}: launch.generate runs in one process, on one "
        f"host, and these are {hosts}; the largest of this kind is "
        f"{max(alone, key=lambda t: t.chips)}"
    )


def counts(config: ConfigDict, job: str) -> Counts:
    """How many learn, and how many are only read."""
    part, additions = config.optimizer.trainable, config.lora.to_dict()
    network = nnx.eval_shape(lambda: origin.grafted(config, part, additions))
    if job == "generate":
        return Counts(0, build.parameters(network))
    _, learned, rest = nnx.split(network, trainable.chosen(part, network), nnx.Param)
    return Counts(
        *(sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (learned, rest))
    )


def guess(config: ConfigDict, job: str, count: Counts, sizes: tuple[int, ...]) -> Guess:
    """(1) to (6) on a mesh of these sizes of AXES."""
    data, fsdp, context, tensor = sizes
    model, learns = TransformerConfig(**config.model), job == "train"
    trained, frozen = count
    each = 16 if config.optimizer.ema_decay else 12
    state = (trained * (each if learns else 4) + frozen * 2) / (fsdp * context)

    rows, columns = (n // plan_program.PIXELS for n in plan_program.size(config))
    packed = flops.sizes(model, rows, columns)
    longest = transforms.lengths(config).reference
    if job != "generate":
        packed = packed._replace(
            reference=packed.reference * longest // packed.reference_latents
        )
    samples = 1 if job == "generate" else config.data.batch_size
    members = config.policy.group_size if rolls(config, job) else 1
    parts = config.optimizer.accumulate if learns else 1
    b = max(1.0, samples * members / (data * fsdp) / parts)
    m = packed.reference / context
    n = flops.target_tokens(packed) / context + packed.still / context + m
    d, layers = model.dim, model.num_layers
    total = trained + frozen
    temporaries = layers * b * m * d * 4 + total / layers * 8
    temporaries += b * n * (8 * d + 2 * model.ffn_dim) * 4 / tensor
    if learns:
        temporaries += layers * b * n * d * 4 * _KEPT[model.remat]
        temporaries += trained * 4 / (fsdp * context)
    return Guess(state, temporaries)


def rolls(config: ConfigDict, job: str) -> bool:
    """Whether groups of samples are worked on."""
    return job == "rollout" or (job == "train" and config.stage == "policy")


def layouts(config: ConfigDict, job: str, place: Place) -> Iterator[tuple[int, ...]]:
    """Sizes of AXES that divide devices, batch and heads."""
    heads, count = config.model.num_heads, place.devices
    rows = config.data.batch_size if job != "generate" else 1
    group = config.policy.group_size if rolls(config, job) else 1
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for data, context, tensor in itertools.product(divisors, repeat=3):
        if count % (data * context * tensor) or data % place.slices:
            continue
        fsdp = count // (data * context * tensor)
        if tensor > _MOST_TENSOR or heads % tensor or context > heads:
            continue
        if job != "generate" and rows * group % (data * fsdp):
            continue
        yield data, fsdp, context, tensor


def is_possible(
    config: ConfigDict, job: str, sizes: tuple[int, ...], place: Place
) -> bool:
    """Whether the links allow these axes, and the batch the parts it is cut into."""
    try:
        mesh = pod_fit.planned(MeshConfig(*sizes), place.topology, place.slices)
        if job == "train":
            stages.check_parts(config, mesh)
    except InputError:
        return False
    return True


def worth(
    config: ConfigDict, job: str, place: Place, limit: float, count: int
) -> list[tuple[int, ...]]:
    """The `count` layouts to compile: those guessed to fit, the ones that send least
    first; where none fits, those that need least."""

    count_of = counts(config, job)

    def order(sizes: tuple[int, ...]) -> tuple:
        need = guess(config, job, count_of, sizes).total(1.0)
        return need > (1 - _SPARE) * limit, _sends(config, sizes, need, limit)

    ordered = sorted(layouts(config, job, place), key=order)
    possible = (s for s in ordered if is_possible(config, job, s, place))
    return list(itertools.islice(possible, count))


def _sends(
    config: ConfigDict, sizes: tuple[int, ...], need: float, limit: float
) -> float:
    """Order among layouts: what goes over links a step, in parts of a parameter."""
    data, fsdp, context, tensor = sizes
    if need > limit:
        return need
    ring = config.model.num_heads % (tensor * context) != 0
    # tokens are sent 4 times a layer around context; the ring sends them all
    tokens = (context - 1) / context * (context if ring else 1)
    weights = 3 * (fsdp * context > 1)
    return weights + tokens / max(1, fsdp * data) + 2 * (tensor - 1) + (data > 1)


class Change(NamedTuple):
    """A change of a config or of its place, and what it is guessed to need."""

    fields: dict[str, int | str]
    place: Place
    bytes: float

    def flags(self) -> str:
        """As on a command line."""
        slices = f" --slices {self.place.slices}" if self.place.slices > 1 else ""
        fields = "".join(f" --config.{n}={v}" for n, v in self.fields.items())
        return f"--topology {self.place.topology}{slices}{fields}"


def nearest(
    config: ConfigDict, job: str, place: Place, limit: float, temporaries: float
) -> Change | None:
    """The smallest change that is guessed to fit: another layout of the same devices,
    remat, more parts of a batch, then more chips, of generate on one host. None:
    nothing was found."""
    now = axis_sizes(MeshConfig(**config.parallel), place.devices)
    count = counts(config, job)
    ratio = temporaries / guess(config, job, count, now).rest

    def other_layout(changed: ConfigDict, where: Place) -> Change | None:
        start = axis_sizes(_all_fsdp(where), where.devices) if where != place else now
        for sizes in sorted(
            layouts(changed, job, where), key=lambda s: _distance(s, start)
        ):
            need = guess(changed, job, count, sizes).total(ratio)
            fits = need <= (1 - _SPARE) * limit
            if fits and is_possible(changed, job, sizes, where):
                axes = dict(zip(AXES, sizes, strict=True))
                fields = {f"parallel.{n}": v for n, v in axes.items()}
                return Change(fields, where, need)
        return None

    for fields in ({}, *_lighter(config, job)):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        found = other_layout(changed, place)
        if found is not None:
            return found._replace(fields={**fields, **found.fields})
    for shape in _larger(place.topology):
        if job == "generate" and shape.hosts > 1:
            continue
        found = other_layout(config, Place(shape, place.slices))
        if found is not None:
            return found
    return None


def _lighter(config: ConfigDict, job: str) -> Iterator[dict]:
    if job != "train":
        return
    kept = _KEPT[config.model.remat]
    for policy in ("attention", "full", "offload"):
        if _KEPT[policy] < kept:
            yield {"model.remat": policy}
    parts = config.optimizer.accumulate
    for more in (2, 4, 8, 16):
        yield {"optimizer.accumulate": parts * more}


def _larger(topology: Topology) -> Iterator[Topology]:
    shapes = (Topology(topology.kind, s) for s in valid_shapes(topology.chip))
    more = (s for s in shapes if s.chips > topology.chips and s == s.compact())
    yield from sorted(more, key=lambda s: s.chips)


def _all_fsdp(place: Place) -> MeshConfig:
    return MeshConfig(place.slices, -1, 1, 1)


def _distance(sizes: tuple[int, ...], other: tuple[int, ...]) -> tuple[float, int]:
    moved = sum(abs(math.log2(a / b)) for a, b in zip(sizes, other, strict=True))
    return moved, sizes[3]
