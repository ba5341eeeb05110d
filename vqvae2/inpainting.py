"""From a hole in an image to the codes that are unknown for it, and from redrawn codes back to the image.

Shapes: N images, C channels, H x W pixels, h x w cells of a level.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from vqvae2.vqvae import VQVAE

__all__ = ["blend", "known_codes"]


@torch.no_grad()
def known_codes(model: VQVAE, images: Tensor, hole: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Encode images with a hole, and tell which codes do not depend on what was in it.

    The receptive field is measured rather than bounded: the hole is filled with black, grey, white and noise, and a
    code is known if its cell lies outside the hole and all four fillings give the same.

    Args:
        model: the VQ-VAE.
        images: (N, C, H, W) in [-1, 1]; the pixels in the hole are ignored.
        hole: (N, 1, H, W) bool, true where the image is unknown.

    Returns:
        ``(codes, known)`` by level, top first, (N, h, w) int64 and bool each; unknown codes are those of the grey
        filling.
    """
    noise = torch.from_numpy(np.random.default_rng(0).random(images.shape[1:]) * 2 - 1).to(images)
    fillings = [torch.zeros_like(noise), torch.full_like(noise, -1), torch.full_like(noise, 1), noise]
    encoded = [model.encode(torch.where(hole, filling, images)) for filling in fillings]
    known = []
    for i, (h, w) in enumerate(model.config.shapes):
        touched = F.max_pool2d(hole.float(), (hole.shape[2] // h, hole.shape[3] // w))[:, 0] > 0
        same = torch.stack([other[i] == encoded[0][i] for other in encoded[1:]]).all(0)
        known.append(same & ~touched)
    return encoded[0], known


def blend(made: Tensor, image: Tensor, hole: Tensor) -> Tensor:
    """Put what was made into the hole of an image, without a seam.

    Along the edge of the hole what was made differs a little from the image. The difference is continued into the hole
    as a membrane (a harmonic function) and taken off.

    Args:
        made: (N, C, H, W) in [-1, 1].
        image: (C, H, W), kept outside the hole.
        hole: (H, W) bool.

    Returns:
        (N, C, H, W) in [-1, 1].

    Source: membrane interpolation as in Perez, Gangnet and Blake 2003, *Poisson image editing*.
    """
    inside = hole.cpu().numpy()
    if not inside.any() or inside.all():
        return torch.where(hole, made, image)
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns = np.nonzero(inside)
    difference = (image - made).cpu().double().numpy()  # (N, C, H, W)
    count = np.zeros(len(rows))
    edge = np.zeros((*difference.shape[:2], len(rows)))
    links: list[Any] = []
    for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = rows + down, columns + across
        there = (y >= 0) & (y < inside.shape[0]) & (x >= 0) & (x < inside.shape[1])  # the frame's edge is free
        y, x = y.clip(0, inside.shape[0] - 1), x.clip(0, inside.shape[1] - 1)
        count += there
        outside = there & ~inside[y, x]
        edge[..., outside] += difference[..., y[outside], x[outside]]
        linked = there & inside[y, x]
        links.append((number[rows, columns][linked], number[y, x][linked]))
    own, other = (np.concatenate(column) for column in zip(*links, strict=True))
    laplace = sparse.diags(count) - sparse.csc_matrix((np.ones(len(own)), (own, other)), (len(rows), len(rows)))
    # A piece of the hole that touches nothing but the frame has no edge; the tiny term keeps it solvable, at 0.
    membrane = splu((laplace + 1e-9 * sparse.identity(len(rows))).tocsc()).solve(edge.reshape(-1, len(rows)).T).T
    correction = torch.zeros(made.shape, dtype=torch.float64)
    correction[..., torch.from_numpy(inside)] = torch.from_numpy(membrane).view(*made.shape[:2], -1)
    return torch.where(hole, (made + correction.to(made)).clamp(-1, 1), image)
