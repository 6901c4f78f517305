"""Tokens of a latent that read those of the latents around it, and no others.

With `reach` latents on either side each latent reads s = min(2 reach + 1, R): of room
tokens each, R room x s room scores, linear in the length of the reference. Near the
ends the s are the first or the last, and what is out of reach is masked. Local
attention of references is the idea of Avatar V (arXiv 2606.13872), its form is ours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from tavr_jax.models.tokens import Layout


class Nearby(NamedTuple):
    """Which tokens read which: `reach` 0 is every latent alone."""

    layout: Layout
    reach: int

    @property
    def span(self) -> int:
        """Latents that are read by one."""
        return min(2 * self.reach + 1, self.layout.slots)

    def of_a_run(self) -> "Nearby":
        """The same for the tokens of one run."""
        layout = self.layout._replace(runs=1, area=self.layout.room)
        return Nearby(layout, self.reach)

    def queries(self, x: Shaped[Array, "B M *D"]) -> Shaped[Array, "latents room *D"]:
        """Latent by latent, all samples in one row."""
        frames = self.layout.frames(x)
        return frames.reshape(-1, *frames.shape[2:])

    def keys(self, x: Shaped[Array, "B M *D"]) -> Shaped[Array, "latents near *D"]:
        """What each latent of `queries` reads."""
        frames = self.layout.frames(x)
        if self.span > 1:
            frames = frames[:, self._near()]
            frames = frames.reshape(*frames.shape[:2], -1, *frames.shape[4:])
        return frames.reshape(-1, *frames.shape[2:])

    def seen(self, valid: Bool[Array, "B M"]) -> Bool[Array, "latents one near"]:
        """Which of `keys` are valid and within reach."""
        slots, near = self.layout.slots, self._near()
        reached = np.abs(near - np.arange(slots)[:, None]) <= self.reach
        flags = self.keys(valid)
        reached = np.repeat(reached, flags.shape[1] // self.span, axis=1)[None]
        return (flags.reshape(-1, *reached.shape[1:]) & reached).reshape(
            len(flags), 1, flags.shape[1]
        )

    def back(
        self, x: Float[Array, "latents room *D"], samples: int
    ) -> Float[Array, "B M *D"]:
        """Inverse of `queries`."""
        slots = self.layout.slots
        return self.layout.in_runs(x.reshape(samples, slots, *x.shape[1:]))

    def _near(self) -> np.ndarray:
        """The latents that each reads, "R s"."""
        slots = self.layout.slots
        first = np.clip(np.arange(slots) - self.reach, 0, slots - self.span)
        return first[:, None] + np.arange(self.span)
