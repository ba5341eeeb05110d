"""How the gradient of quantised vectors passes to the vectors before quantisation.

Shapes: D dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["rotated", "straight_through"]


def straight_through(x: Tensor, e: Tensor) -> Tensor:
    """Return e, (..., D), with the gradient of x, as if x had not been quantised."""
    return x + (e - x).detach()


def rotated(x: Tensor, e: Tensor) -> Tensor:
    """Return e as x, rotated and rescaled: the gradient of x passes through the map that carries x onto e.

    The map is ``|e| / |x| R``, taken as constant. R rotates in the plane of x and e: of their unit vectors u and v, R =
    I - 2 r r^T + 2 v u^T, with r the unit vector in the middle between them.

    Args:
        x: (..., D) encoder outputs.
        e: (..., D) their codes; no gradient passes to them.

    Source: Fifty et al. 2024 (arXiv 2410.06424), section 4.
    """
    with torch.no_grad():
        long, longer = x.norm(dim=-1, keepdim=True), e.norm(dim=-1, keepdim=True)
        scale = torch.where(long > 1e-6, longer / long, 1.0)  # what is so short has no direction
        u, v = F.normalize(x, dim=-1), F.normalize(e, dim=-1)
        r = F.normalize(u + v, dim=-1)
    along_r, along_u = ((x * direction).sum(-1, keepdim=True) for direction in (r, u))
    return straight_through(scale * (x - 2 * along_r * r + 2 * along_u * v), e)
