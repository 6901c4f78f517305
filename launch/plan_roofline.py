"""How fast a step could be at best, from what it computes, reads and sends.

    (1) compute  FLOPs executed / (devices x peak)
    (2) memory   bytes moved by a device / bandwidth of its memory
    (3) network  bytes a device sends in its slice / its links, and what it sends to
                 other slices / its share of the data centre's network; they overlap
    (4) step     max of (1) to (3)
    (5) ceiling  FLOPs of the model / (devices x peak x step)

Each is a bound from below: kernels reach neither peak nor bandwidth, and (3) has every
link of a chip busy in both directions. (2) and (3) count every branch of a conditional:
too much where the reference is hidden from the sampler's first steps, and where XLA
spreads a product over the turns of a loop, of which the last sends nothing. (5) is thus
what no run can exceed on this layout, not what one will reach. What
rematerialising computes again is in (1), not in the FLOPs of the model. The ratio of
(1) to its true value depends on models/flops.py, that of (2) on plan_moved.py, that of
(3) on plan_sent.py.

Links of a chip, both directions together (docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,
tpu7x}): 400, 1200, 800, 1200 GB/s; half of it is what a chip can send. Network of the
data centre, sent by a chip: 3.1, 6.25, 12.5 GB/s of v5e, v5p, v6e (jax-ml.github.io/
scaling-book, from memory); of tpu7x taken as of v6e, unknown.
"""

from typing import NamedTuple

from tavr_jax.parallel.chips import CHIPS


class Links(NamedTuple):
    """What one device of JAX can send, bytes/s."""

    inside: float
    across: float


LINKS = {
    "TPU v5 lite": Links(200e9, 3.1e9),
    "TPU v5": Links(600e9, 6.25e9),
    "TPU v5p": Links(600e9, 6.25e9),
    "TPU v6 lite": Links(400e9, 12.5e9),
    "TPU7x": Links(600e9 / 2, 12.5e9 / 2),  # two devices a chip
}


class Bound(NamedTuple):
    """(1) to (5); seconds."""

    compute: float
    memory: float
    network: float
    ceiling: float  # 0..1
    by: str  # which of the three it is

    @property
    def step(self) -> float:
        """(4)."""
        return max(self.compute, self.memory, self.network)


def bound(
    kind: str,
    devices: int,
    flops: float,
    executed: float,
    moved: float,
    sent: float,
    across: float,
) -> Bound:
    """`kind`: jax.Device.device_kind; `flops`, `executed` of all devices, the rest of
    one. KeyError for chips whose links are not known."""
    chip, links = CHIPS[kind], LINKS[kind]
    times = {
        "compute": executed / (devices * chip.peak),
        "memory": moved / chip.bandwidth,
        "network": max(sent / links.inside, across / links.across),
    }
    by = max(times, key=times.__getitem__)
    ceiling = flops / (devices * chip.peak * times[by]) if times[by] else 0.0
    return Bound(*times.values(), ceiling, by)
