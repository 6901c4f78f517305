"""What sampling one video costs, by arithmetic.

With S steps, b = 1 + [text_scale != 1] + [audio_scale != 1] guidance branches and the
two streams of `models/flops.py`:

    (1) FLOPs  (1 + [audio_scale != 1]) prefill(M) + chunks S b main(V + N, M')
    (2) M      all tokens of the reference: generating has room for all
    (3) M', N  places of the caches that are read and of the still: their valid tokens,
               rounded up to one of a few sizes (`generate.room`), 0 = none left out

Places are counted, not valid tokens: what is padded is computed. Branches that come as
one batch prefill once each, not as in (1); encoders and decoders are left out. Ours.
"""

from typing import NamedTuple

from tavr_jax.diffusion.chunks import Plan
from tavr_jax.evaluation import generate
from tavr_jax.evaluation.generate import Request, SamplerConfig
from tavr_jax.models import flops as arithmetic
from tavr_jax.models.transformer import TransformerConfig


class Places(NamedTuple):
    """(3)."""

    still: int  # N
    reference: int  # M'


def places(request: Request, plan: Plan) -> Places:
    """(3) of one device."""
    tokens = request.reference_tokens
    kept = generate.room(int(tokens.sum()), tokens.size, generate.PLACES)
    still = generate.still_places(request, plan) or request.still_tokens.size
    return Places(still, kept)


def flops(
    config: TransformerConfig, sampler: SamplerConfig, request: Request, plan: Plan
) -> float:
    """(1) of one video."""
    room, tokens = places(request, plan), request.reference_tokens
    sizes = arithmetic.Sizes(
        latents=plan.size,
        grid=tokens.shape[1:],
        still=room.still,
        reference_latents=len(tokens),
        reference=room.reference,
    )
    hears = sampler.audio_scale != 1
    branches = 1 + hears + (sampler.text_scale != 1)
    calls = len(plan.spans) * sampler.steps * branches
    whole = sizes._replace(reference=tokens.size)  # (2)
    look = (1 + hears) * arithmetic.prefill(config, whole).total
    return float(look + calls * arithmetic.main(config, sizes).total)
