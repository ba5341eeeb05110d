"""The nearest of many images, by the distance of their pixels.

Shapes: N queries and M references, d pixels.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.device import resolve_precision


def nearest(queries: Any, references: Any, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find each query's nearest reference in the Euclidean distance of pixels, in few passes over the references.

    Where the processor multiplies bfloat16 fast, products are rounded to it first: what rounding leaves in doubt is
    compared exactly.

    Args:
        queries: (N, ...) images or vectors.
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
    q = q.reshape(len(q), math.prod(shape[1:])).float()
    index = torch.zeros(len(q), dtype=torch.int64)
    doubtful = torch.arange(len(q))
    fast = resolve_precision("auto", torch.device("cpu")) == torch.bfloat16
    if fast and len(q) and shape[0] > 4 * _MOST:
        parts = [_by_candidates(part, references, chunk) for part in q.split(_QUERIES)]
        index = torch.cat([part for part, _ in parts])
        doubtful = torch.cat([n * _QUERIES + rows for n, (_, rows) in enumerate(parts)])
    if len(doubtful):
        index[doubtful] = _exhaustively(q[doubtful], references, chunk)
    # Measured again as a difference: the expanded square cannot tell a copy from a near copy.
    distance = torch.zeros(len(q))
    for i, at in enumerate(index.tolist()):
        distance[i] = (q[i] - take(references, at).flatten().float()).pow(2).sum().sqrt()
    return index, distance


_QUERIES = 2048  # compared in one pass over the references
_MOST = 64  # references compared exactly for a query, at most; with more in doubt all are


def take(array: Any, rows: Any) -> Tensor:
    """Rows of an array or tensor, or of what gives such rows, as a tensor, which is not to be changed."""
    found = array[rows]
    if isinstance(found, Tensor):
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped files are read-only
        return torch.from_numpy(np.ascontiguousarray(found))


def _exhaustively(q: Tensor, references: Any, chunk: int) -> Tensor:
    """The nearest reference (N,) of queries (N, d)."""
    best = torch.full((len(q),), math.inf)
    at = torch.zeros(len(q), dtype=torch.int64)
    for j in range(0, len(references), chunk):
        others = take(references, slice(j, j + chunk)).flatten(1).float()
        squares = others.pow(2).sum(1)
        for i in range(0, len(q), chunk):
            part = slice(i, i + chunk)
            value, where = torch.addmm(squares, q[part], others.T, alpha=-2).min(dim=1)  # but for |query|^2
            closer = value < best[part]
            best[part], at[part] = torch.where(closer, value, best[part]), torch.where(closer, where + j, at[part])
    return at


def _by_candidates(q: Tensor, references: Any, chunk: int) -> tuple[Tensor, Tensor]:
    """The nearest reference (N,) of queries (N, d), and the queries for which there are too many candidates to tell.

    A product in bfloat16 of vectors of lengths a and b errs by at most 2^-8 a b: the vectors are rounded by 2^-9 of
    themselves each, integers up to 256 not at all, and the product again.
    """
    narrow, lengths = q.to(torch.bfloat16), q.norm(dim=1, keepdim=True)
    most = torch.full((len(q),), math.inf)  # largest possible squared distance of the nearest, but for |query|^2
    doubtful = torch.zeros(len(q), dtype=torch.bool)
    found = _Candidates(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    for j in range(0, len(references), chunk):
        rows = take(references, slice(j, j + chunk)).flatten(1)
        thin = rows.to(torch.bfloat16)
        exact = rows.dtype == torch.uint8
        norms = torch.linalg.vector_norm(thin if exact else rows.float(), dim=1, dtype=torch.float32)
        error = lengths * norms * ((2 if exact else 3) * 2**-8 * 1.01)
        least = torch.addcmul(norms.square() - error, (narrow @ thin.T).float(), error.new_tensor(-2.0))
        most = torch.minimum(most, (least + 2 * error).amin(1))
        query, place = ((least <= most[:, None]) & ~doubtful[:, None]).nonzero(as_tuple=True)
        found = found.joined(_Candidates(query, place + j, least[query, place])).possible(most)
        doubtful |= torch.bincount(found.query, minlength=len(q)) > _MOST
        found = found.where(~doubtful[found.query])
    index = torch.zeros(len(q), dtype=torch.int64)
    order = torch.argsort(found.query, stable=True)  # by query, in the order of the references
    count = torch.bincount(found.query, minlength=len(q)).tolist()
    for i, chosen in enumerate(found.place[order].split(count)):
        if len(chosen):
            others = torch.stack([take(references, k).flatten().float() for k in chosen.tolist()])
            index[i] = chosen[(others - q[i]).pow(2).sum(1).argmin()]
    return index, doubtful.nonzero()[:, 0]


@dataclass(frozen=True)
class _Candidates:
    """What may be nearest: numbers of queries and of references, and the smallest possible squared distance."""

    query: Tensor
    place: Tensor
    least: Tensor

    def joined(self, other: "_Candidates") -> "_Candidates":
        both = (
            torch.cat(pair)
            for pair in ((self.query, other.query), (self.place, other.place), (self.least, other.least))
        )
        return _Candidates(*both)

    def where(self, kept: Tensor) -> "_Candidates":
        return _Candidates(self.query[kept], self.place[kept], self.least[kept])

    def possible(self, most: Tensor) -> "_Candidates":
        """Leave out those that can no longer be the nearest."""
        return self.where(self.least <= most[self.query])
