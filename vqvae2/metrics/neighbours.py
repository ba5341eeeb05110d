"""The nearest of many images, by the distance of their pixels.

Shapes: N queries and M references.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 4
"""Side of the blocks whose means tell which references cannot be nearest."""

_PAIRS = 256
"""Pairs of images of which the differences are held at once."""

_MOST = 1 / 64
"""Share of the pairs that are compared one by one; with more in doubt all are compared, by a product of matrices."""

_ROUNDING = 1e-5
"""Squared distances from expanded squares in float32 are right to this share of the squares."""


def nearest(queries: Any, references: Any, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find each query's nearest reference in the Euclidean distance of pixels, in one pass over the references.

    Two images are at least as far apart as the means of their blocks are, each counted once for each of its pixels. So
    images are compared by these means first, and whole where that leaves a doubt. Vectors, and images of less than two
    blocks a side, are compared whole.

    Args:
        queries: (N, ...) images (N, C, H, W) or vectors.
        references: (M, ...) of the same shape, M >= 1: an array, a tensor, or what gives rows of either.
        chunk: rows of either side compared at once.

    Returns:
        index (N,) int64 into the references (the first among equals), and distance (N,), the root of the
        summed squares.

    Raises:
        ValueError: shapes differ or there is no reference.
    """
    q, shape = torch.as_tensor(queries), tuple(references.shape)
    if tuple(q.shape[1:]) != shape[1:] or shape[0] == 0:
        raise ValueError(f"nearest takes (N, ...) and (M, ...), M >= 1, got {tuple(q.shape)} and {shape}")
    least = torch.full((len(q),), math.inf)
    index = torch.zeros(len(q), dtype=torch.int64)
    starts = range(0, len(q), chunk)
    parts = [q[start : start + chunk].float() for start in starts]
    coarse = [_block_means(part) for part in parts]
    for first in range(0, shape[0], chunk):
        rows = take(references, slice(first, first + chunk))
        means = _block_means(rows)
        for start, part, own in zip(starts, parts, coarse, strict=True):
            here = slice(start, start + len(part))
            squares, place = _nearest_of(part, rows, own, means, least[here])
            closer = squares < least[here]
            least[here] = torch.where(closer, squares, least[here])
            index[here] = torch.where(closer, place + first, index[here])
    return index, least.sqrt()


def take(array: Any, rows: Any) -> Tensor:
    """Rows of an array or tensor, or of what gives such rows, as a tensor, which is not to be changed."""
    found = array[rows]
    if isinstance(found, Tensor):
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped files are read-only
        return torch.from_numpy(np.ascontiguousarray(found))


def _nearest_of(
    q: Tensor, rows: Tensor, own: Tensor | None, means: Tensor | None, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared distance (N,) and place (N,) of the nearest of some rows, where it is less than ``least``."""
    if own is None or means is None:
        place = _expanded(q.flatten(1), rows.flatten(1).float()).argmin(1)
        return _squares(q, rows, torch.arange(len(q)), place), place
    slack = _ROUNDING * (own.square().sum(1, keepdim=True) + means.square().sum(1))
    bound = _expanded(own, means) + own.square().sum(1, keepdim=True) - slack  # no squared distance is below it
    likely = bound.argmin(1)
    most = torch.minimum(least, _squares(q, rows, torch.arange(len(q)), likely))
    query, place = (bound <= most[:, None]).nonzero(as_tuple=True)
    if len(query) > max(_MOST * bound.numel(), len(q)):
        return _nearest_of(q, rows, None, None, least)
    squares = _squares(q, rows, query, place)
    found = torch.full((len(q),), math.inf).scatter_reduce_(0, query, squares, "amin")
    first = torch.where(squares == found[query], place, len(rows))  # the first among equals
    return found, torch.full((len(q),), len(rows)).scatter_reduce_(0, query, first, "amin")


def _block_means(images: Tensor) -> Tensor | None:
    """Means (N, d) of blocks, times the blocks' side; None where there are no blocks to speak of."""
    if images.ndim != 4 or min(images.shape[2:]) < 2 * _BLOCK:
        return None
    h, w = (side // _BLOCK for side in images.shape[2:])
    images = images[:, :, : h * _BLOCK, : w * _BLOCK].unflatten(2, (h, _BLOCK))
    rows = images.sum(3, dtype=torch.int16) if images.dtype == torch.uint8 else images.float().sum(3)
    return rows.float().unflatten(3, (w, _BLOCK)).sum(4).flatten(1) / _BLOCK


def _expanded(q: Tensor, rows: Tensor) -> Tensor:
    """Squared distances (N, M) less the squares of the queries."""
    return torch.addmm(rows.square().sum(1), q, rows.T, alpha=-2)


def _squares(q: Tensor, rows: Tensor, query: Tensor, place: Tensor) -> Tensor:
    """Squared distances of pairs, by their differences: expanded squares cannot tell a copy from a near copy."""
    pairs = zip(query.split(_PAIRS), place.split(_PAIRS), strict=True)
    parts = [(q[i] - rows[j].float()).flatten(1).square().sum(1) for i, j in pairs]
    return torch.cat(parts) if parts else torch.zeros(0)
