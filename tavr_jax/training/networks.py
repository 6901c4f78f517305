"""Losses of the frozen networks' own training: stages codec, face and lipsync (ours).

Codec, of random crops x, latents z and decoded crops y:

    (1) y = decode(z + latent_noise e)
    (2) loss = mean |y - x| + edge_weight mean |grad y - grad x| + latent_weight prior
    (3) prior = mean over channels of (m^2 + s^2 - 1 - ln s^2) / 2

(3) pulls the mean m and the deviation s of each latent channel to 0 and 1, the scale
that the diffusion model works at; it costs no quality, since only the scale is moved.
(1) makes the decoder forgive the small errors that a diffusion model leaves. Learn from
stills first (data.frames = 1), then from clips with init_from: a fresh codec treats
a clip as stills, so nothing is lost, and stills teach faster (encoders/vae_blocks.py).

Face and lip-sync network, of unit embeddings u, v and p(u -> v) the softmax of u . v /
temperature over all v:

    (4) face    = mean over pairs of crops of one person of -ln p(u -> v), crops of the
                  batch but u itself as the choices (Khosla et al. 2020, L_out)
    (5) lipsync = mean over windows of -ln p(lips -> speech) - ln p(speech -> lips),
                  halved, all windows of the same clip as the choices (InfoNCE)

In (5) only time tells the choices apart. With windows of other clips among them, who it
is and whose voice it is look like the way in, and lead nowhere: on whole face crops 120
steps stay at the loss of guessing, where (5) finds the offset of unseen people after 80
(measured). Light, colour and position of a crop are jittered, so that identity is not
lighting and lips are not where the head is. Lips are also worn as a codec wears them,
since decoded videos are what the network is asked about.

(3) has the statistics of a batch and (4) its samples as choices. A mean over parts of
the batch is not the same, so these stages do not accumulate gradients.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Integer, UInt8

from tavr_jax.encoders.face import FaceConfig
from tavr_jax.encoders.lipsync import LipsyncConfig
from tavr_jax.encoders.vae import SPAN, CodecConfig
from tavr_jax.errors import InputError
from tavr_jax.training import supervised
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.state import Draw, Loss, Step
from tavr_jax.types import Faces, Frames, Metrics, PyTree, Sync

GAIN = 0.3  # jitter of the logarithm of contrast
TINT = 0.1  # of each colour's gain
LIGHT = 0.2  # of brightness, in [-1, 1]
REACH = 16  # a crop is shifted by up to 1 / REACH of its size
WEAR = 0.9  # up to this share of what changes in SPAN frames, and of detail, is lost


class Pictures(NamedTuple):
    """Crops of a batch of clips, and what disturbs their latents."""

    pixels: Float[Array, "B F Y X 3"]  # in [-1, 1]
    noise: Float[Array, "B T H W C"]  # e of (1)


def make_step(draw: Draw, loss: Loss, config: OptimizerConfig) -> Step:
    """The step of these stages. InputError where a batch is to be cut into parts."""
    if config.accumulate != 1:
        raise InputError(
            f"optimizer.accumulate: {config.accumulate}: codec, face and lipsync read "
            "a batch as a whole, which parts of it are not; set it to 1"
        )
    return supervised.make_step(draw, loss, config)


def codec_draw(config: CodecConfig) -> Draw:
    """`Frames` -> `Pictures`."""

    def draw(batch: Frames, key: Array) -> Pictures:
        crop_key, noise_key = jax.random.split(key)
        pixels = random_crops(batch.frames, config.crop, crop_key)
        latents = 1 + (pixels.shape[1] - 1) // SPAN
        kept = pixels[:, : 1 + SPAN * (latents - 1)].astype(jnp.float32)
        grid = [size // config.stride for size in pixels.shape[2:4]]
        shape = (len(pixels), latents, *grid, config.z_dim)
        return Pictures(kept / 127.5 - 1.0, jax.random.normal(noise_key, shape))

    return draw


def face_draw(batch: Faces, key: Array) -> tuple[Array, Array]:
    """`Faces` -> (crops "B J Y X 3" in [-1, 1], each jittered on its own; person)."""
    crops = batch.faces.reshape(-1, 1, *batch.faces.shape[2:])
    return augment(crops, key).reshape(batch.faces.shape), batch.person


def lipsync_draw(batch: Sync, key: Array) -> tuple[Array, Array]:
    """`Sync` -> (crops "B F Y X 3" in [-1, 1], jittered and worn alike in a clip;
    speech)."""
    jitter_key, wear_key = jax.random.split(key)
    return worn(augment(batch.faces, jitter_key), wear_key), batch.mel


def codec_loss(graphdef: nnx.GraphDef, config: CodecConfig) -> Loss:
    """(1)-(3) of `Pictures`. Metrics: psnr in dB, latent_std (mean over channels)."""

    def loss(params: PyTree, example: Pictures) -> tuple[Array, Metrics]:
        pixels, noise = example
        codec = nnx.merge(graphdef, params)
        latents = codec.encode(pixels)
        decoded = codec.unclamped(latents + config.latent_noise * noise)

        error = decoded - pixels
        edges = jnp.abs(jnp.diff(error, axis=2)).mean()
        edges += jnp.abs(jnp.diff(error, axis=3)).mean()
        prior, deviation = unit_gaussian(latents)
        value = jnp.abs(error).mean() + config.edge_weight * edges
        value += config.latent_weight * prior
        seen = jnp.clip(decoded, -1.0, 1.0) - pixels
        psnr = -10.0 * jnp.log10(jnp.mean(seen * seen) / 4.0)
        return value, {"psnr": psnr, "prior": prior, "latent_std": deviation}

    return loss


def face_loss(graphdef: nnx.GraphDef, config: FaceConfig) -> Loss:
    """(4) of what `face_draw` gives. Metrics: accuracy, the share of crops whose
    nearest other crop is of the same person.
    """

    def loss(params: PyTree, example: tuple[Array, Array]) -> tuple[Array, Metrics]:
        crops, person = example
        network = nnx.merge(graphdef, params)
        embedded = network(crops.reshape(-1, *crops.shape[2:]))
        person = jnp.repeat(person, crops.shape[1])
        return supervised_contrast(embedded, person, config.temperature)

    return loss


def lipsync_loss(graphdef: nnx.GraphDef, config: LipsyncConfig) -> Loss:
    """(5) of what `lipsync_draw` gives, in clips of `config.span` frames. Metrics:
    accuracy, the share of windows of lips whose nearest speech of their clip is their
    own.
    """

    def loss(params: PyTree, example: tuple[Array, Array]) -> tuple[Array, Metrics]:
        faces, mel = example
        network = nnx.merge(graphdef, params)
        lips, speech = network.embed_faces(faces), network.embed_speech(mel)
        of_clips = jax.vmap(partial(pair_contrast, temperature=config.temperature))
        return jax.tree.map(jnp.mean, of_clips(lips, speech))

    return loss


def unit_gaussian(
    latents: Float[Array, "B T H W C"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(3), and the mean over channels of their deviation."""
    axes = (0, 1, 2, 3)
    mean, variance = latents.mean(axes), latents.var(axes)
    prior = (mean**2 + variance - 1.0 - jnp.log(variance + 1e-6)) / 2.0
    return prior.mean(), jnp.sqrt(variance).mean()


def supervised_contrast(
    embedded: Float[Array, "N Z"], person: Int[Array, " N"], temperature: float
) -> tuple[Float[Array, ""], Metrics]:
    """(4). Crops of a person seen once in the batch are choices only."""
    itself = jnp.eye(len(person), dtype=bool)
    same = (person[:, None] == person[None, :]) & ~itself
    logits = jnp.where(itself, -jnp.inf, embedded @ embedded.T / temperature)
    log_p = jnp.where(itself, 0.0, jax.nn.log_softmax(logits, axis=1))
    value = -jnp.sum(log_p * same) / jnp.maximum(same.sum(), 1)
    nearest = person[logits.argmax(axis=1)]
    known = same.any(axis=1)
    right = jnp.sum((nearest == person) & known) / jnp.maximum(known.sum(), 1)
    return value, {"accuracy": right}


def pair_contrast(
    lips: Float[Array, "W Z"], speech: Float[Array, "W Z"], temperature: float
) -> tuple[Float[Array, ""], Metrics]:
    """(5) of one clip."""
    logits = lips @ speech.T / temperature
    own = jnp.arange(len(lips))
    value = -jnp.diagonal(jax.nn.log_softmax(logits, axis=1)).mean()
    value -= jnp.diagonal(jax.nn.log_softmax(logits, axis=0)).mean()
    return value / 2.0, {"accuracy": (logits.argmax(axis=1) == own).mean()}


def random_crops(
    frames: Integer[Array, "B F Y X 3"], size: int, key: Array
) -> Integer[Array, "B F y x 3"]:
    """One square crop of each sample, the same in all its frames; key is consumed."""
    batch, count, rows, columns, colours = frames.shape
    height, width = min(size, rows), min(size, columns)
    limit = jnp.array([[rows - height + 1, columns - width + 1]])
    corners = jax.random.randint(key, (batch, 2), 0, limit)

    def crop(sample: Array, corner: Array) -> Array:
        start = (0, corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(sample, start, (count, height, width, colours))

    return jax.vmap(crop)(frames, corners)


def augment(faces: UInt8[Array, "B F Y X 3"], key: Array) -> Float[Array, "B F Y X 3"]:
    """Crops 0..255 -> [-1, 1], jittered alike in all frames; key is consumed."""
    size = faces.shape[2:4]
    light_key, shift_key = jax.random.split(key)
    draw = jax.random.uniform(light_key, (faces.shape[0], 5), minval=-1.0)
    gain = jnp.exp(GAIN * draw[:, :1] + TINT * draw[:, 1:4])[:, None, None, None]
    pixels = faces.astype(jnp.float32) / 127.5 - 1.0
    pixels = pixels * gain + LIGHT * draw[:, 4, None, None, None, None]

    reach = [side // REACH for side in size]
    edges = ((0, 0), (0, 0), *((r, r) for r in reach), (0, 0))
    padded = jnp.pad(pixels, edges, mode="edge")
    limit = jnp.array([[2 * r + 1 for r in reach]])
    corners = jax.random.randint(shift_key, (faces.shape[0], 2), 0, limit)

    def shifted(sample: Array, corner: Array) -> Array:
        start = (0, corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(sample, start, pixels.shape[1:])

    return jax.vmap(shifted)(padded, corners)


def worn(pixels: Float[Array, "B F Y X 3"], key: Array) -> Float[Array, "B F Y X 3"]:
    """Clips as a video autoencoder leaves them: pulled towards the mean of every SPAN
    frames, and towards their neighbours in the picture, each in half of the clips; key
    is consumed.
    """
    begin_key, share_key = jax.random.split(key)
    batch, frames = pixels.shape[:2]
    begin = jax.random.randint(begin_key, (batch, 1), 0, SPAN)
    group = (jnp.arange(frames)[None] + begin) // SPAN
    together = (group[:, :, None] == group[:, None, :]).astype(jnp.float32)
    mean = together / together.sum(axis=2, keepdims=True)
    share = WEAR * jax.random.uniform(share_key, (2, batch, 1, 1, 1, 1), minval=-1.0)
    in_time, in_space = jnp.maximum(share, 0.0)

    pixels += in_time * (jnp.einsum("bfg,bgyxc->bfyxc", mean, pixels) - pixels)
    for axis in (2, 3):
        edges = [(1, 1) if i == axis else (0, 0) for i in range(5)]
        padded = jnp.pad(pixels, edges, mode="edge")
        size = pixels.shape[axis]
        before, after = (
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2)
        )
        pixels += in_space / 3.0 * (before + after - 2.0 * pixels)
    return pixels
