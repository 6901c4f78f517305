"""From latents to tokens and back, and the packing of valid tokens.

Invalid tokens are never keys and never influence valid ones (TAVR_SPEC 10.1), so they
are dropped: valid tokens move, in order, to the front of a bucket of static size, and
a mask tells the rest. Equal to the unpacked result, cheaper.

Where the tokens of a sample are split over devices, the main stream is a run for every
device: its columns of the token grid in all latents, then its ref-row tokens.
Everything that a frame does on its own (audio) then stays on the device. One device
has one run: the video, then the ref row.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped


def patchify(
    latents: Float[Array, "B T H W c"], patch: tuple[int, int, int]
) -> Float[Array, "B T h w p"]:
    """Cut the latent grid into patches; p is ordered (row, column, channel)."""
    _, py, px = patch
    b, t, rows, columns, c = latents.shape
    x = latents.reshape(b, t, rows // py, py, columns // px, px, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(
        b, t, rows // py, columns // px, py * px * c
    )


def unpatchify(
    patches: Float[Array, "B T h w p"], patch: tuple[int, int, int]
) -> Float[Array, "B T H W c"]:
    """Inverse of `patchify`."""
    _, py, px = patch
    b, t, h, w, p = patches.shape
    x = patches.reshape(b, t, h, w, py, px, p // (py * px))
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * py, w * px, -1)


class Layout(NamedTuple):
    """N = runs (video + still) tokens of the main stream; a reference that is read
    latent by latent has M = runs x video, and no ref row."""

    runs: int
    slots: int  # T or R
    area: int  # tokens of a latent, h w where they are not packed
    still: int  # ref-row tokens of a run

    @property
    def room(self) -> int:
        """Video tokens that a run has of one latent; the last may have less of use."""
        return -(-self.area // self.runs)

    @property
    def video(self) -> int:
        """Video tokens of a run, latent by latent."""
        return self.slots * self.room

    def order(
        self, still: Int[Array, "B s"], valid: Bool[Array, "B s"]
    ) -> tuple[Int[Array, "B N"], Bool[Array, "B N"]]:
        """Which token stands where, and which places are taken.

        `still` are the places of packed ref-row tokens behind the video, s = runs x
        `self.still` of them.
        """
        batch = still.shape[0]
        columns = np.arange(self.runs * self.room).reshape(self.runs, 1, self.room)
        latents = self.area * np.arange(self.slots)[:, None]
        video = latents + np.minimum(columns, self.area - 1)
        taken = np.broadcast_to(columns < self.area, video.shape)

        def runs(of_video: np.ndarray, of_still: Array) -> Array:
            shape = (batch, self.runs, self.video)
            of_video = jnp.broadcast_to(of_video.reshape(shape[1:])[None], shape)
            of_still = of_still.reshape(batch, self.runs, self.still)
            return jnp.concatenate([of_video, of_still], axis=2).reshape(batch, -1)

        return runs(video, self.slots * self.area + still), runs(taken, valid)

    def video_of(self, x: Float[Array, "B N D"]) -> Float[Array, "B video D"]:
        """The video tokens of every run."""
        runs = x.reshape(x.shape[0], self.runs, -1, x.shape[-1])[:, :, : self.video]
        return runs.reshape(x.shape[0], -1, x.shape[-1])

    def among_all(self, x: Float[Array, "B video D"]) -> Float[Array, "B N D"]:
        """Inverse of `video_of`, zero for the ref row."""
        runs = x.reshape(x.shape[0], self.runs, self.video, x.shape[-1])
        runs = jnp.pad(runs, ((0, 0), (0, 0), (0, self.still), (0, 0)))
        return runs.reshape(x.shape[0], -1, x.shape[-1])

    def on_still(self, row: Float[Array, " D"], batch: int) -> Float[Array, "B N D"]:
        """`row` at every ref-row token, zero for the video."""
        still = (batch, self.runs, self.still, row.shape[0])
        still = jnp.broadcast_to(row.reshape(1, 1, 1, -1), still)
        runs = jnp.pad(still, ((0, 0), (0, 0), (self.video, 0), (0, 0)))
        return runs.reshape(batch, -1, row.shape[0])

    def frames(self, x: Shaped[Array, "B video *D"]) -> Shaped[Array, "B T room *D"]:
        """Latent by latent; the last tokens of each may be nobody's."""
        batch, channels = x.shape[0], x.shape[2:]
        runs = x.reshape(batch, self.runs, self.slots, self.room, *channels)
        shape = (batch, self.slots, self.runs * self.room, *channels)
        return runs.swapaxes(1, 2).reshape(shape)

    def in_runs(self, x: Shaped[Array, "B T room *D"]) -> Shaped[Array, "B video *D"]:
        """Inverse of `frames`."""
        batch, channels = x.shape[0], x.shape[3:]
        runs = x.reshape(batch, self.slots, self.runs, self.room, *channels)
        return runs.swapaxes(1, 2).reshape(batch, self.runs * self.video, *channels)


def pack(
    valid: Bool[Array, "B n"], bucket: int, multiple: int
) -> tuple[Int[Array, "B m"], Bool[Array, "B m"]]:
    """Indices of the valid tokens, in order, and which of the m places are taken.

    m = `bucket`, or all n tokens when it is 0, rounded up to a `multiple`. The caller
    makes sure that a bucket is never too small: inside jit nothing can be raised, so
    the loader checks.
    """
    places = min(bucket, valid.shape[1]) if bucket else valid.shape[1]
    indices = jnp.argsort(~valid, axis=1, stable=True)[:, :places]
    free = ((0, 0), (0, -places % multiple))
    taken = jnp.take_along_axis(valid, indices, axis=1)
    return jnp.pad(indices, free), jnp.pad(taken, free)


def pack_latents(
    valid: Bool[Array, "B R n"], bucket: int, runs: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"], Layout]:
    """`pack` every latent for itself, `bucket` places each, in the layout's order."""
    batch, latents, area = valid.shape
    indices, taken = pack(valid.reshape(batch * latents, area), bucket, runs)
    layout = Layout(runs, latents, indices.shape[1], 0)
    shape = (batch, latents, layout.area)
    indices = indices.reshape(shape) + area * np.arange(latents)[None, :, None]
    return layout.in_runs(indices), layout.in_runs(taken.reshape(shape)), layout


def take(
    tokens: Float[Array, "B n D"], indices: Int[Array, "B m"]
) -> Float[Array, "B m D"]:
    """Tokens at `indices`."""
    return jnp.take_along_axis(tokens, indices[:, :, None], axis=1)
