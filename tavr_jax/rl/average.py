"""The mean over the elements of one sample, of the latents that were drawn."""

from jaxtyping import Array, Bool, Float


def average(
    values: Float[Array, "N T H W C"], drawn: Bool[Array, "N T"]
) -> Float[Array, " N"]:
    """Mean of each sample. Latents that were given, not drawn, do not count."""
    kept = drawn.astype(values.dtype)
    return (values.mean((2, 3, 4)) * kept).sum(1) / kept.sum(1)
