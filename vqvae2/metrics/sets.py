"""One set of images held against another: nearest neighbours, kernel distance of features."""

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
        found = torch.stack([r[k] for k in at.tolist()])  # torch 2.9 does not index uint16 by a tensor
        distance[i : i + chunk] = (rows - found.float()).pow(2).sum(1).sqrt()
    return index, distance


def kernel_distance(x: Tensor, y: Tensor, groups: int = 10) -> tuple[float, float]:
    """Estimate the squared maximum mean discrepancy of two sets of features, without bias (KID).

    The kernel is (x . y / d + 1)^3. A set compared with another of the same distribution has 0 on average, whatever
    the sizes, and can be below.

    Args:
        x: (N, d) features, N > 1.
        y: (M, d), M > 1.
        groups: that the images are cut into for the standard error (jackknife: each group is left out once). They
            follow one another, so that images of one person are left out together.

    Returns:
        The distance, and its standard error (about 1.4 times too large for sets of one distribution); NaN where there
        are fewer than two images for each group.

    Raises:
        ValueError: the features differ in length, or a set has fewer than two.

    Source: Binkowski et al., "Demystifying MMD GANs", 2018, section 4.
    """
    if x.shape[1:] != y.shape[1:] or x.ndim != 2 or min(len(x), len(y)) < 2:
        raise ValueError(
            f"kernel_distance takes (N, d) and (M, d), N and M > 1, got {tuple(x.shape)}, {tuple(y.shape)}"
        )
    within, across, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    for kernel in (within, across):
        kernel.fill_diagonal_(0)  # an image beside itself is no pair

    def estimate(rows: Tensor, columns: Tensor) -> float:
        n, m = int(rows.sum()), int(columns.sum())
        a, b = rows.double(), columns.double()
        pairs = a @ within @ a / (n * (n - 1)) + b @ across @ b / (m * (m - 1))
        return float(pairs - 2 * (a @ between @ b) / (n * m))

    group_x, group_y = (torch.arange(len(rows)) * groups // len(rows) for rows in (x, y))
    value = estimate(group_x >= 0, group_y >= 0)
    if min(len(x), len(y)) < 2 * groups:
        return value, math.nan
    left = torch.tensor([estimate(group_x != g, group_y != g) for g in range(groups)], dtype=torch.float64)
    return value, float((left.var(correction=0) * (groups - 1)).sqrt())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3
