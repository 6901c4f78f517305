"""What the model benches compute: a network of a config and one batch of its inputs.

Everything is drawn: weights (those that start as zero too, or else outputs would be
zero), latents, text, speech. Half of the still's tokens and a third of the reference's
are valid, the same ones in every sample, and buckets fit them exactly, as packing wants
it: what is measured is the work on tokens that exist.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from launch import build
from tavr_jax.errors import InputError
from tavr_jax.models import flops
from tavr_jax.models.transformer import Transformer, TransformerConfig
from tavr_jax.types import Conditions, PyTree

STILL, REFERENCE = 1 / 2, 1 / 3  # shares of valid tokens
PIXELS = 8  # of a latent, each way
WIDE = ("time_in", "time_out", "time_projection", "head")  # float32 wherever they run


class Problem(NamedTuple):
    """One network, one batch."""

    config: ConfigDict  # with the buckets that fit
    sizes: flops.Sizes
    graph: nnx.GraphDef
    params: PyTree  # float32
    latents: jax.Array  # B T H W C
    timestep: jax.Array
    conditions: Conditions

    @property
    def model(self) -> TransformerConfig:
        """Section `model`."""
        return TransformerConfig(**self.config.model)

    @property
    def samples(self) -> int:
        """B."""
        return self.latents.shape[0]

    @property
    def tokens(self) -> int:
        """N, of the main stream."""
        return flops.target_tokens(self.sizes) + self.sizes.still

    def network(self, params: PyTree) -> Transformer:
        """With these weights."""
        return nnx.merge(self.graph, params)

    def told(self) -> str:
        """Its sizes, as part of a row's name."""
        c = self.model
        return (
            f"{self.config.name} {c.num_layers} x {c.dim}, {self.tokens} + "
            f"{self.sizes.reference} tokens, batch {self.samples}, {c.dtype}"
        )


def make(config: ConfigDict, tokens: int, layers: int, samples: int) -> Problem:
    """Of about `tokens` main tokens; 0: the config's bucket. `layers` 0: its own.

    InputError: another attention of the reference than global.
    """
    if config.model.reference_attention != "global":
        raise InputError(
            f"model.reference_attention: {config.model.reference_attention}: the "
            "benches, and PyTorch's side of them, know global alone"
        )
    config = config.copy_and_resolve_references()
    config.unlock()
    model = config.model
    model.num_layers = layers or model.num_layers
    grid = _grid(config, tokens)
    rng = np.random.default_rng(config.seed)
    still = _valid(rng, 1, grid, STILL)[0]
    reference = _valid(rng, model.num_videoref_latents, grid, REFERENCE)
    model.still_bucket, model.reference_bucket = int(still.sum()), int(reference.sum())
    c = TransformerConfig(**model)
    graph, params = nnx.split(build.transformer(config), nnx.Param)
    rows, columns = (n * p for n, p in zip(grid, c.patch_size[1:], strict=True))
    drawn = _Drawn(rng, samples)
    return Problem(
        config,
        flops.sizes(c, rows, columns),
        graph,
        _filled(params, config.seed),
        drawn(c.num_video_latents, rows, columns, c.out_dim),
        jnp.full(samples, 700.0),
        _conditions(c, drawn, (rows, columns), still, reference),
    )


def stored(problem: Problem) -> PyTree:
    """The weights as inference holds them: matrices in the dtype of their products."""
    dtype = problem.model.dtype

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        matrix = {"kernel", "bias"} & set(names) and "norm" not in "".join(names)
        return leaf.astype(dtype) if matrix and names[0] not in WIDE else leaf

    return jax.tree_util.tree_map_with_path(cast, problem.params)


class _Drawn:
    """Normal numbers for every sample."""

    def __init__(self, rng: np.random.Generator, samples: int):
        self.rng, self.samples = rng, samples

    def __call__(self, *shape: int) -> jax.Array:
        values = self.rng.standard_normal((self.samples, *shape), np.float32)
        return jnp.asarray(values)

    def same(self, value) -> jax.Array:
        """`value` in every sample."""
        value = np.asarray(value)
        return jnp.asarray(np.broadcast_to(value, (self.samples, *value.shape)))


def _conditions(
    c: TransformerConfig,
    drawn: _Drawn,
    grid: tuple[int, int],
    still: np.ndarray,
    reference: np.ndarray,
) -> Conditions:
    latents = c.num_videoref_latents
    return Conditions(
        still=drawn(1, *grid, c.out_dim),
        still_tokens=drawn.same(still),
        motion=jnp.zeros((drawn.samples, 2, *grid, c.out_dim)),
        has_motion=drawn.same(False),
        reference=drawn(latents, *grid, c.out_dim),
        reference_tokens=drawn.same(reference),
        text=drawn(c.text_len, c.text_dim),
        null_text=drawn(c.text_len, c.text_dim),
        audio=drawn(4 * c.num_video_latents - 3, c.audio_dim),
        has_audio=drawn.same(True),
        reference_audio=drawn(c.audio_per_latent * latents, c.videoref_audio_dim),
        has_reference_audio=drawn.same(True),
    )


def _grid(config: ConfigDict, tokens: int) -> tuple[int, int]:
    patch = config.model.patch_size[1:]
    if not tokens:
        bucket = config.prepare[config.data.orientation]
        return tuple(n // PIXELS // p for n, p in zip(bucket, patch, strict=True))
    side = round((tokens / (config.model.num_video_latents + STILL)) ** 0.5)
    if side < 2:
        raise InputError(
            f"--tokens: {tokens}: {config.model.num_video_latents} latents of 2 x 2 "
            "tokens are more; give more tokens"
        )
    return side, side


def _valid(
    rng: np.random.Generator, slots: int, grid: tuple[int, int], share: float
) -> np.ndarray:
    """As many in every slot, at random places."""
    area = grid[0] * grid[1]
    ranks = rng.permuted(np.tile(np.arange(area), (slots, 1)), axis=1)
    return (ranks < max(1, round(share * area))).reshape(slots, *grid)


def _filled(params: PyTree, seed: int) -> PyTree:
    """With a random number added to every weight."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))

    @jax.jit
    def more(key: jax.Array, leaf: jax.Array) -> jax.Array:
        scale = 0.5 * leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
        noise = jax.random.normal(key, (leaf.size,)).reshape(leaf.shape)
        return leaf + scale * noise

    pairs = zip(keys, leaves, strict=True)
    return tree.unflatten([more(*pair) for pair in pairs])
