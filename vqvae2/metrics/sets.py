"""One set of images held against another: nearest neighbours."""

import math
from typing import Any

import torch
from torch import Tensor


def nearest(queries: Any, references: Any, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find each query's nearest reference in the Euclidean distance of pixels, in chunks.

    Args:
        queries: (N, ...) images or vectors.
        references: (M, ...) of the same shape, M >= 1.
        chunk: rows of either side compared at once.

    Returns:
        index (N,) int64 into the references (the first among equals), and distance (N,), the root of the
        summed squares.

    Raises:
        ValueError: shapes differ or there is no reference.
    """
    q, r = torch.as_tensor(queries), torch.as_tensor(references)
    if q.shape[1:] != r.shape[1:] or len(r) == 0:
        raise ValueError(f"nearest takes (N, ...) and (M, ...), M >= 1, got {tuple(q.shape)} and {tuple(r.shape)}")
    q, r = q.reshape(len(q), q.shape[1:].numel()), r.reshape(len(r), r.shape[1:].numel())
    index = torch.zeros(len(q), dtype=torch.int64)
    distance = torch.zeros(len(q))
    for i in range(0, len(q), chunk):
        rows = q[i : i + chunk].float()
        best = torch.full((len(rows),), math.inf)
        at = torch.zeros(len(rows), dtype=torch.int64)
        for j in range(0, len(r), chunk):
            others = r[j : j + chunk].float()
            squared = torch.addmm(others.pow(2).sum(1), rows, others.T, alpha=-2)  # but for |query|^2
            value, where = squared.min(dim=1)
            closer = value < best
            best, at = torch.where(closer, value, best), torch.where(closer, where + j, at)
        index[i : i + chunk] = at
        # Measured again as a difference: the expanded square cannot tell a copy from a near copy.
        distance[i : i + chunk] = (rows - r[at].float()).pow(2).sum(1).sqrt()
    return index, distance
