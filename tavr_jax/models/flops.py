"""Arithmetic of the transformer: FLOPs of one sample, part by part.

Only matrix products count, 2 m n k for (m, k) x (k, n); norms, softmax, rotations and
everything else that is linear in the tokens are left out: they are below 1 % of the
large models. The letters are those of tavr_jax/types.py; V = T h w video tokens, N = V
+ packed ref-row tokens, a = 4 T rows of driving audio, window = audio_window, f = width
of the feed-forward, r = of the adapters, c and o = values of a patch in and out.

Main stream, once (patches are packed before they are embedded), then per layer:

    (1) patches   2 N c D                     (6)  projections  8 N D^2
    (2) time      2 (freq D + 7 D^2)          (7)  scores       4 N (N + M) D
    (3) text      2 L (E D + D^2)             (8)  text         4 (N + L) D^2 + 4 N L D
    (4) audio     2 a (U D + D^2)             (9)  audio        4 (V + a) D^2
    (5) head      2 V D o + 2 (freq D + D^2)                    + 4 V window D
                                              (10) feed-forward 4 N D f

Reference stream (`prefill`): (1) with M for N, (2), (3), (4) with Q rows of width
V; (6), (8), (10) with M for N, and

    (11) scores   4 M M D, or 4 M (s M / R) D where a latent only reads s = min(2
                  reference_window + 1, R) around it, itself one of them
    (12) audio    4 (M + Q) D^2 + 4 M Q D, or 4 M (Q / R) D where scores are local
    (13) adapters 4 (M + 2 Q) D r

What a step costs follows from how often it calls the two streams:

    (14) forward  F = prefills x prefill + calls x main
    (15) learned  F + F for activations + F for weights, of the last only the `trained`
                  share where a product is one with weights: 3 F where all is trained

(14) and (15) are FLOPs of the model, as in model FLOP utilisation: what rematerialising
computes again (another forward of the blocks) does not count, nor does a second prefill
that only an accumulating step needs. Rewards, decoders and optimizers are left out, as
are products of low-rank additions.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from tavr_jax.models.transformer import TransformerConfig


class Sizes(NamedTuple):
    """What one sample holds."""

    latents: int  # T
    grid: tuple[int, int]  # h, w of the token grid
    still: int  # packed ref-row tokens
    reference_latents: int  # R
    reference: int  # M, packed reference tokens


class Parts(NamedTuple):
    """FLOPs of one pass through one stream, all layers together."""

    embeddings: int  # (1) to (4)
    projections: int  # (6)
    scores: int  # (7), (11)
    text: int  # (8), its products with weights
    text_scores: int
    audio: int  # (9), (12), products with weights
    audio_scores: int
    adapters: int  # (13)
    ffn: int  # (10)
    head: int  # (5)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    @property
    def unweighted(self) -> int:
        """Products of activations with each other."""
        return self.scores + self.text_scores + self.audio_scores


class Calls(NamedTuple):
    """How often one sample passes through the streams in one step."""

    prefills: int  # forward only
    mains: int
    learned_prefills: int  # forward and backward
    learned_mains: int


@runtime_checkable
class Policy(Protocol):
    """The fields of section `policy` that cost something."""

    algorithm: str
    group_size: int
    steps: int
    updates: int
    stochastic_steps: int
    audio_scale: float
    text_scale: float
    kl_weight: float


FLOW = Calls(0, 0, 1, 1)  # one step of flow matching


def sizes(config: TransformerConfig, rows: int, columns: int) -> Sizes:
    """A whole chunk and reference on a grid of `rows` x `columns` latents, as packed by
    the buckets of `config`."""
    grid = rows // config.patch_size[1], columns // config.patch_size[2]
    room, latents = grid[0] * grid[1], config.num_videoref_latents
    reference = min(config.reference_bucket or latents * room, latents * room)
    if config.reach is not None:
        reference = latents * -(-reference // latents)
    return Sizes(
        latents=config.num_video_latents,
        grid=grid,
        still=min(config.still_bucket or room, room),
        reference_latents=latents,
        reference=reference,
    )


def target_tokens(sizes: Sizes) -> int:
    """Video tokens of one sample: what is learned, not what is read."""
    return sizes.latents * sizes.grid[0] * sizes.grid[1]


def main(config: TransformerConfig, sizes: Sizes) -> Parts:
    """(1) to (10): one call of the main stream, the reference's keys given."""
    c, d = config, config.dim
    video = target_tokens(sizes)
    tokens, rows = video + sizes.still, c.audio_per_latent * sizes.latents
    _, py, px = c.patch_size
    head = 2 * video * d * c.out_dim * py * px + 2 * (c.freq_dim * d + d * d)
    return Parts(
        embeddings=_embeddings(c, tokens, rows, c.audio_dim),
        projections=c.num_layers * 8 * tokens * d**2,
        scores=c.num_layers * 4 * tokens * (tokens + sizes.reference) * d,
        text=c.num_layers * 4 * (tokens + c.text_len) * d**2,
        text_scores=c.num_layers * 4 * tokens * c.text_len * d,
        audio=c.num_layers * 4 * (video + rows) * d**2,
        audio_scores=c.num_layers * 4 * video * c.audio_window * d,
        adapters=0,
        ffn=c.num_layers * 4 * tokens * d * c.ffn_dim,
        head=head,
    )


def prefill(config: TransformerConfig, sizes: Sizes) -> Parts:
    """(1) to (4), (6), (8), (10) to (13): one pass of the reference stream."""
    c, d = config, config.dim
    tokens, rows = sizes.reference, c.audio_per_latent * sizes.reference_latents
    latents, seen, heard = sizes.reference_latents, tokens, rows
    if c.reach is not None:
        heard = c.audio_per_latent
        seen = tokens // latents * min(2 * c.reach + 1, latents)
    return Parts(
        embeddings=_embeddings(c, tokens, rows, c.videoref_audio_dim),
        projections=c.num_layers * 8 * tokens * d**2,
        scores=c.num_layers * 4 * tokens * seen * d,
        text=c.num_layers * 4 * (tokens + c.text_len) * d**2,
        text_scores=c.num_layers * 4 * tokens * c.text_len * d,
        audio=c.num_layers * 4 * (tokens + rows) * d**2,
        audio_scores=c.num_layers * 4 * tokens * heard * d,
        adapters=c.num_layers * 4 * (tokens + 2 * rows) * d * c.adapter_dim,
        ffn=c.num_layers * 4 * tokens * d * c.ffn_dim,
        head=0,
    )


def step(
    config: TransformerConfig,
    sizes: Sizes,
    samples: int,
    calls: Calls = FLOW,
    trained: float = 1.0,
) -> float:
    """(14), (15): one training step of `samples` samples on all devices together.

    `calls`: FLOW, or `policy_calls`. `trained`: share of the weights that have a
    gradient; low-rank factors are about none.
    """
    streams = prefill(config, sizes), main(config, sizes)
    forward = calls.prefills * streams[0].total + calls.mains * streams[1].total
    learned = (
        calls.learned_prefills * _learned(streams[0], trained)
        + calls.learned_mains * _learned(streams[1], trained)
    )  # fmt: skip
    return float(samples * (forward + learned))


def policy_calls(policy: Policy) -> Calls:
    """Of training/policy.py, for one sample and its group.

    Rollouts are forward only; each update learns from every member, `stochastic_steps`
    times (grpo) or once (nft). The reference policy (kl_weight above 0) answers each
    question of grpo once a step and those of nft in every update, where the policy
    that rolled out answers too. Every guidance branch is a call of the main stream, and
    the branch without audio has a prefill of its own.
    """
    p = policy
    branches = 1 + (p.audio_scale != 1) + (p.text_scale != 1)
    prefills = 1 + (p.audio_scale != 1)
    if p.algorithm == "grpo":
        learned = p.updates * p.stochastic_steps
        # policies asked without a gradient, and how often
        asked, answers = bool(p.kl_weight), bool(p.kl_weight) * p.stochastic_steps
    else:
        learned = p.updates
        asked = answers = p.updates * (1 + bool(p.kl_weight))
    return Calls(
        prefills=prefills * (1 + asked),
        mains=p.group_size * branches * (p.steps + answers),
        learned_prefills=prefills * learned,
        learned_mains=p.group_size * branches * learned,
    )


def _learned(parts: Parts, trained: float) -> float:
    """(15)."""
    weighted = parts.total - parts.unweighted
    return 3 * parts.unweighted + (2 + trained) * weighted


def _embeddings(c: TransformerConfig, tokens: int, rows: int, audio_dim: int) -> int:
    """(1) to (4)."""
    d, (_, py, px) = c.dim, c.patch_size
    return 2 * (
        tokens * c.in_channels * py * px * d
        + c.freq_dim * d
        + 7 * d**2
        + c.text_len * (c.text_dim * d + d**2)
        + rows * (audio_dim * d + d**2)
    )
