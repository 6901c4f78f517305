"""From conditions to a whole talking video: chunks, guidance, sampler, decoder.

    (1) frames = 4 ceil((rows - 1) / 4) + 1: whole latents that cover the speech; what
        exceeds it is cut off after decoding
    (2) byte = trunc(((x + 1) / 2) 255) in float16, x in [-1, 1]      [TAVR_SPEC 13]

Latents after the last frame are noise on the canvas (`diffusion/chunks.py`). The
decoder is causal, so they are not decoded at all: the frames are the same. For the same
reason a chunk is decoded as soon as it is finished.

The reference is prefilled once a video, by a program of its own; its cache, as short as
its valid tokens allow, serves every chunk, step and guidance branch.

The still of a video of one chunk is cut in the same way. Later chunks read a whole one:
a program for the first alone would take longer to compile than it saves (ours).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8
from numpy import ndarray

from tavr_jax.diffusion import chunks, guidance
from tavr_jax.diffusion.sampler import unipc_sample
from tavr_jax.diffusion.schedule import unipc
from tavr_jax.encoders.vae import Codec
from tavr_jax.encoders.vae_stream import decode_stream
from tavr_jax.errors import InputError
from tavr_jax.evaluation.unfinished import Unfinished
from tavr_jax.models.transformer import ReferenceCache
from tavr_jax.parallel import sharding
from tavr_jax.types import Conditions, PyTree

ROOMS, PLACES = 8, 16  # `room` of a cache (ours)
STILL_PLACES = 128  # of a still: small models, soon done, have one program (ours)
BRANCHES = ("auto", "one_by_one", "batched")
_WAYS = {
    "one_by_one": (guidance.prefill_one_by_one, guidance.one_by_one),
    "batched": (guidance.prefill_batched, guidance.batched),
}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Section `sampler`; meanings and values are in configs/base.py."""

    steps: int
    shift: float
    text_scale: float
    audio_scale: float
    start_use_videoref_step: int
    round_bf16: bool
    branches: str

    def __post_init__(self):
        if self.branches not in BRANCHES:
            raise InputError(
                f"sampler.branches: {self.branches!r}: expected {' | '.join(BRANCHES)}"
            )
        if self.steps < 1:
            raise InputError(f"sampler.steps: {self.steps}: give at least 1")
        if self.shift <= 0:
            raise InputError(f"sampler.shift: {self.shift}: give more than 0")


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Section `output`; meanings and values are in configs/base.py."""

    crf: int
    decode_dtype: str
    decode_latents: int
    exact_release: bool

    def __post_init__(self):
        if self.decode_latents < 1:
            raise InputError(
                f"output.decode_latents: {self.decode_latents}: give at least 1"
            )
        if self.decode_dtype not in ("float32", "bfloat16", "float16"):
            raise InputError(
                f"output.decode_dtype: {self.decode_dtype}: give float32, bfloat16 or "
                "float16"
            )


class Request(NamedTuple):
    """What one video is made from, without a batch axis."""

    still: Float[ndarray, "1 H W C"]
    still_tokens: Bool[ndarray, "h w"]
    reference: Float[ndarray, "R H W C"]
    reference_tokens: Bool[ndarray, "R h w"]
    reference_audio: Float[ndarray, "Q V"] | None  # None: the reference is silent
    text: Float[ndarray, "L E"]
    null_text: Float[ndarray, "L E"]
    negative_text: Float[ndarray, "L E"]
    audio: Float[ndarray, "rows U"]  # the whole speech, a row a frame


def num_frames(rows: int) -> int:
    """(1)."""
    return 4 * -(-(rows - 1) // 4) + 1


class Sampler(NamedTuple):
    """The programs of one transformer on one mesh. Weights are an argument, and are
    read where they are."""

    # (weights, conditions of any chunk of a video) -> what all its chunks read
    prefill: Callable[[PyTree, Conditions], PyTree]
    # (weights, noise of a chunk, conditions, negative text, the above) -> its latents;
    # `still`: places for the still's valid tokens, 0: for all; each is a program
    denoise: Callable[..., Array]

    def __call__(
        self,
        weights: PyTree,
        noise: Float[Array, "B T H W C"],
        conditions: Conditions,
        negative_text: Float[Array, "B L E"],
    ) -> Float[Array, "B T H W C"]:
        """Latents of one chunk. The buffer of `noise` becomes theirs, if it can."""
        cache = self.prefill(weights, conditions)
        return self.denoise(weights, noise, conditions, negative_text, cache)


def sampler(graph: nnx.GraphDef, config: SamplerConfig, mesh: Mesh) -> Sampler:
    """Samples with a transformer's graph, on `mesh`, any number of rows at once."""

    @functools.cache
    def compiled(rows: int, still: int) -> Sampler:
        return programs(graph, config, mesh, rows, still)

    def prefill(weights, conditions):
        with jax.set_mesh(mesh):
            return compiled(len(conditions.has_audio), 0).prefill(weights, conditions)

    def denoise(weights, noise, conditions, negative_text, cache, still=0):
        with jax.set_mesh(mesh):
            run = compiled(len(noise), still).denoise
            return run(weights, noise, conditions, negative_text, cache)

    return Sampler(prefill, denoise)


def programs(
    graph: nnx.GraphDef,
    config: SamplerConfig,
    mesh: Mesh,
    rows: int,
    still: int = 0,
) -> Sampler:
    """The two programs of `sampler` for this many samples and places of their stills,
    as jitted functions that are traced and called inside of `mesh`.

    Samples are split over the batch axes where they divide, else whole on each device;
    guidance branches are split then. Weights and caches stay as they come; the noise is
    donated. Nothing calls back to count steps: JAX would not keep such a program in its
    compilation cache, and a start would compile the largest program again.
    """
    schedule = unipc(config.steps, config.shift)
    scales = guidance.Scales(config.text_scale, config.audio_scale)
    # One device gains little from a batch (0.94 to 0.97 of the time, mini on a CPU) and
    # holds a cache more; several gather each layer's weights once for all branches, and
    # split the branches where samples are too few.
    way = "batched" if mesh.size > 1 else "one_by_one"
    look, guided = _WAYS[way if config.branches == "auto" else config.branches]
    even = rows % sharding.batch_shares(mesh) == 0
    place = sharding.batch(mesh, rows) if even else sharding.replicated(mesh)

    def prefill(weights, conditions):
        return look(_network(graph, weights, mesh, still), conditions, scales)

    def denoise(weights, noise, conditions, negative_text, cache):
        network = _network(graph, weights, mesh, still)
        told = network, conditions, negative_text, scales
        velocity = guidance.switched(
            guided(*told, _each_cache(_hidden, cache)),
            guided(*told, cache),
            config.start_use_videoref_step,
        )
        return unipc_sample(velocity, noise, schedule, config.round_bf16)

    return Sampler(
        jax.jit(prefill, in_shardings=(None, place)),
        jax.jit(
            denoise,
            in_shardings=(None, place, place, place, None),
            out_shardings=place,
            donate_argnums=1,
        ),
    )


def pieces(
    sample: Sampler,
    weights: PyTree,
    request: Request,
    plan: chunks.Plan,
    key: Array,
    kept: Unfinished | None = None,
) -> Iterator[Float[Array, "1 n H W C"]]:
    """The latents of the video in order, handed on as chunks finish.

    `kept` takes every finished chunk, and gives those of an earlier run. `key` is
    consumed.
    """
    _, height, width, channels = request.still.shape
    conditions = first_conditions(request, plan.motion)
    negative = jnp.asarray(request.negative_text, jnp.float32)[None]
    still = still_places(request, plan)

    @functools.cache
    def cache() -> PyTree:
        valid = int(request.reference_tokens.sum())
        # the reference does not hear the speech: one program for any length of it
        told = conditions._replace(audio=conditions.audio[:, :1])
        return shortened(sample.prefill(weights, told), valid)

    def noise(start: int) -> Array:
        shape = (1, height, width, channels)
        return chunks.draw_noise(key, start, plan.size, shape)

    def denoise(noise: Array, conditions: Conditions) -> Array:
        chunk = sample.denoise(weights, noise, conditions, negative, cache(), still)
        # by way of the host: placed on the weights' devices, what the next chunk is
        # told would have its program compiled a second time
        return jnp.asarray(np.asarray(chunk))

    track = request.audio[None]
    load = (lambda index: None) if kept is None else kept.load
    finished = chunks.generate(denoise, conditions, track, noise, plan, load)

    def saved() -> Iterator:
        for index, (span, chunk) in enumerate(finished):
            if kept is not None:
                kept.save(index, chunk)
            yield span, chunk

    yield from chunks.in_order(saved(), plan)


def shortened(caches: PyTree, valid: int) -> PyTree:
    """Reference caches without the places that none of `valid` tokens takes.

    Attention does not ask in which order keys come, so none is changed by it. They stay
    on the devices that they are on.
    """
    keys = jax.tree.leaves(caches)[0]
    whole = keys.shape[2]
    devices = whole // keys.sharding.shard_shape(keys.shape)[2]
    places = room(valid, whole, math.lcm(PLACES, devices))
    if places == whole:
        return caches
    return _shortener(places, jax.tree.map(lambda leaf: leaf.sharding, caches))(caches)


def still_places(request: Request, plan: chunks.Plan) -> int:
    """`Sampler.denoise`'s `still`, for every chunk of this video."""
    whole = request.still_tokens.size
    valid = int(request.still_tokens.sum()) if len(plan.spans) == 1 else whole
    places = room(valid, whole, STILL_PLACES)
    return 0 if places == whole else places


def room(valid: int, whole: int, unit: int) -> int:
    """Places for `valid` of `whole` tokens: about ROOMS sizes, for each is a program of
    its own; multiples of `unit`, or all."""
    step = -(-whole // (ROOMS * unit)) * unit
    return min(max(-(-valid // step), 1) * step, whole)


def latents(
    sample: Sampler,
    weights: PyTree,
    request: Request,
    plan: chunks.Plan,
    key: Array,
) -> Float[Array, "1 T H W C"]:
    """All latents of the video at once, T = plan.latents. `key` is consumed."""
    found = pieces(sample, weights, request, plan, key)
    return jnp.concatenate(list(found), axis=1)


def first_conditions(request: Request, motion: int) -> Conditions:
    """Conditions of the first chunk, B = 1; its audio is cut from the track later."""
    hears = request.reference_audio is not None
    rows, width = 4 * request.reference.shape[0], request.audio.shape[1]
    spoken = request.reference_audio if hears else np.zeros((rows, width))
    shown = request.still.repeat(motion, axis=0)
    one = Conditions(
        still=request.still,
        still_tokens=request.still_tokens,
        motion=np.zeros_like(shown),
        has_motion=np.bool_(False),
        reference=request.reference,
        reference_tokens=request.reference_tokens,
        text=request.text,
        null_text=request.null_text,
        audio=request.audio,
        has_audio=np.bool_(True),
        reference_audio=spoken,
        has_reference_audio=np.bool_(hears),
    )
    return jax.tree.map(_batched, one)


def frames(
    codec: Codec,
    pieces: Iterator[Float[Array, "1 n H W C"]],
    count: int,
    config: OutputConfig,
    mesh: Mesh | None = None,
) -> Iterator[UInt8[ndarray, "F Y X 3"]]:
    """The first `count` pictures of latents, as they come: of 4T - 3. Memory does not
    grow with the video; the devices of a mesh share its columns."""
    dtype, step = jnp.dtype(config.decode_dtype), config.decode_latents
    blocks = decode_stream(codec, pieces, step=step, dtype=dtype, mesh=mesh)
    left = count
    for block in blocks:
        kept = np.asarray(block[0, :left])
        left -= len(kept)
        if len(kept):
            yield to_pixels(kept)


def decode(
    codec: Codec, latents: Float[Array, "1 T H W C"], count: int, config: OutputConfig
) -> UInt8[ndarray, "F Y X 3"]:
    """`frames` of a short video, all at once."""
    step = even_step(latents.shape[1], config)
    even = dataclasses.replace(config, decode_latents=step)
    return np.concatenate(list(frames(codec, iter([latents]), count, even)))


def even_step(latents: int, config: OutputConfig) -> int:
    """`decode_latents` or less, so that as many pieces are of one size: the first
    latent comes alone, and a short last piece costs as much as a whole one."""
    rest = max(latents - 1, 1)
    pieces = -(-rest // config.decode_latents)
    return -(-rest // pieces)


def to_pixels(frames: Float[ndarray, "F Y X 3"]) -> UInt8[ndarray, "F Y X 3"]:
    """(2)."""
    half = np.clip(frames, -1, 1).astype(np.float16)
    return ((half + np.float16(1)) * np.float16(0.5) * np.float16(255)).astype(np.uint8)


def _network(
    graph: nnx.GraphDef, weights: PyTree, mesh: Mesh, still: int
) -> guidance.Network:
    model = nnx.merge(graph, weights)
    # Buckets of a config fit the samples of a dataset. Here any picture comes: what has
    # no place would be dropped, and nothing would say so.
    buckets = {"still_bucket": still, "reference_bucket": 0}
    model.config = dataclasses.replace(model.config, **buckets)
    network = guidance.Network(model.prefill, model)
    return guidance.in_shares(network, sharding.batch_shares(mesh))


def _hidden(cache: ReferenceCache) -> ReferenceCache:
    """The same with no key that may be read: nothing is copied."""
    return cache._replace(valid=jnp.zeros_like(cache.valid))


@functools.cache
def _shortener(places: int, where: PyTree) -> Callable[[PyTree], PyTree]:
    """One program for all videos whose caches are alike."""

    def short(cache: ReferenceCache) -> ReferenceCache:
        order = jnp.argsort(~cache.valid, axis=1, stable=True)[:, :places]
        at = order[None, :, :, None, None]
        keys, values = (jnp.take_along_axis(x, at, axis=2) for x in cache[:2])
        taken = jnp.take_along_axis(cache.valid, order, axis=1)
        return ReferenceCache(keys, values, taken)

    return jax.jit(functools.partial(_each_cache, short), out_shardings=where)


def _each_cache(
    change: Callable[[ReferenceCache], ReferenceCache], caches: PyTree
) -> PyTree:
    def is_leaf(node: PyTree) -> bool:
        return isinstance(node, ReferenceCache)

    return jax.tree.map(change, caches, is_leaf=is_leaf)


def _batched(leaf) -> Array:
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf if leaf.dtype == bool else leaf.astype(np.float32))[None]
