"""Codes that cost fewer bits under the priors, for a little more error.

The nearest codes give the best image, but are not the cheapest to write. Here each code is chosen by its distance from
what the encoder found and by its cost under the prior, given the codes chosen before it: rate-distortion optimised
quantisation, as in video encoders (Sullivan and Wiegand 1998, "Rate-distortion optimization for video compression").
Decoding is unchanged.

Shapes: N images, K codes, D dimensions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqvae2.prior import Prior
from vqvae2.sampling import check_priors
from vqvae2.vqvae import VQVAE

__all__ = ["choose_codes"]


@torch.no_grad()
def choose_codes(
    model: VQVAE,
    priors: Sequence[Prior],
    images: Tensor,
    label: Tensor,
    rate_weight: Sequence[float],
    progress: Callable[[int], object] | None = None,
) -> list[Tensor]:
    """Encode images to codes that trade error for bits.

    A code i costs ``|x - e_i|^2 - lambda log p_i``, where x is what the encoder found and p_i the probability that the
    prior gives the code after those before it. `VectorQuantizer` has the same formula with p_i the code's frequency.

    Args:
        model: the VQ-VAE.
        priors: of all levels, top first.
        images: (N, C, H, W) in [-1, 1].
        label: (N, A) int64, -1 missing.
        rate_weight: lambda >= 0 of each level, top first; 0: the nearest code.
        progress: called with the number of codes chosen, after each row.

    Returns:
        Codes by level, top first, (N, h, w) int64.

    Raises:
        ValueError: priors that are not those of the model's levels, or other than one weight >= 0 for each.
    """
    check_priors(model, priors)
    if len(rate_weight) != len(priors) or min(rate_weight) < 0:
        raise ValueError(f"need a rate_weight >= 0 for each of {len(priors)} levels, got {list(rate_weight)}")
    found: list[Tensor] = []

    def choose(level: int, vectors: Tensor) -> Tensor:
        count, height, width, dim = vectors.shape
        x, codebook = vectors.reshape(count, -1, dim), model.codebooks[level].embedding
        squares = codebook.square().sum(1)

        def draw(logits: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            log_p = logits.to(squares.dtype).log_softmax(-1)
            here = x.index_select(1, place[:1].long())[:, 0]  # all images are at the same place
            # |x|^2 is the same for all codes.
            cost = torch.addmm(squares, here, codebook.T, alpha=-2) - rate_weight[level] * log_p
            codes = cost.argmin(-1)
            return codes, log_p.gather(-1, codes[:, None])[:, 0]

        places = torch.arange(height * width, dtype=squares.dtype, device=x.device).view(1, height, width)
        found.append(priors[level].generate(draw, places.repeat(count, 1, 1), list(found), label, progress)[0])
        return found[-1]

    return model.encode(images, choose=choose)
