"""Vectors and the codes that stand for them: the nearest, and where a codebook starts.

Shapes: N vectors, K codes, D dimensions.
"""

import torch
from torch import Tensor

from vqvae2.device import widest

_CPU_ELEMENTS, _ELEMENTS = 1 << 18, 1 << 24
"""Distances held at once: on a CPU 1 MiB in fp32, which its cache holds; elsewhere 64 MiB."""

__all__ = ["affine_of", "kmeans", "nearest_codes"]


def nearest_codes(
    x: Tensor, codebook: Tensor, chunk: int | None = None, cost: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest code of each vector without holding all N x K distances.

    Args:
        x: (N, D) vectors.
        codebook: (K, D).
        chunk: vectors compared at once; by default as many as 1 MiB of distances allows on a CPU, 64 MiB elsewhere.
        cost: (K,) added to the squared distances of each code when they are compared; None: nothing.

    Returns:
        ``(codes, errors)``: (N,) int64 indices and (N,) squared Euclidean distances, never negative.
    """
    chunk = chunk or max(1, (_CPU_ELEMENTS if x.device.type == "cpu" else _ELEMENTS) // len(codebook))
    squares = codebook.square().sum(1)
    squares = squares if cost is None else squares + cost
    # An exported program takes any number of vectors: it cannot loop over them.
    parts = [x] if torch.compiler.is_exporting() else x.split(chunk)
    # ||x - e||^2 = ||x||^2 + (||e||^2 - 2 x.e); the first term does not decide.
    found = [torch.addmm(squares, part, codebook.t(), alpha=-2).min(1) for part in parts]
    errors, codes = (torch.cat(each) for each in zip(*found, strict=True))
    errors = errors + x.square().sum(1)
    return codes, (errors if cost is None else errors - cost[codes]).clamp_min_(0)


def kmeans(x: Tensor, num_codes: int, iterations: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cluster vectors by Lloyd's iteration from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        x: (N, D) vectors, N >= num_codes.
        num_codes: K.
        iterations: Lloyd steps.
        seed: of the draws; the same input and seed give the same clusters.

    Returns:
        ``(centres, counts)``: (K, D) and (K,) vectors assigned to each.
    """
    if x.shape[0] < num_codes:
        raise ValueError(f"k-means needs at least {num_codes} vectors, got {x.shape[0]}")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_codes, generator=generator, dtype=torch.float64).to(x.device, widest(x.device))
    chosen = [(uniform[0] * x.shape[0]).long()]
    distances = (x - x[chosen[0]]).square().sum(1)
    for k in range(1, num_codes):
        index = _draw(distances, uniform[k : k + 1])[0]
        chosen.append(index)
        distances = torch.minimum(distances, (x - x[index]).square().sum(1))
    centres = x[torch.stack(chosen)].clone()
    counts = torch.zeros(num_codes, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        codes, _ = nearest_codes(x, centres)
        counts = torch.bincount(codes, minlength=num_codes).to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres, counts


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices with probability proportional to ``weights`` (uniformly when all are zero), by inverse CDF."""
    weights = weights.to(widest(weights.device))
    weights = torch.where(weights.sum() > 0, weights, torch.ones_like(weights))
    cumulative = weights.cumsum(0)
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(len(weights) - 1)


def affine_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Find the affine map that gives standard normal vectors z the mean and covariance of others, by z W + b.

    Args:
        x: (N, D) vectors.

    Returns:
        ``(W, b)``: (D, D), the symmetric root of the covariance, and (D,), the mean.
    """
    wide = x.cpu().double()  # some devices have neither eigenvectors nor float64
    mean = wide.mean(0)
    values, directions = torch.linalg.eigh((wide - mean).T @ (wide - mean) / len(wide))
    root = directions * values.clamp_min(0).sqrt() @ directions.T
    return root.to(x.dtype).to(x.device), mean.to(x.dtype).to(x.device)
