"""The nearest of many images, by the distance of their pixels.

Shapes: N queries and M references, d pixels.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import distributed


def nearest(
    queries: Any, references: Any, chunk: int = 1024, progress: Callable[[int], object] | None = None
) -> tuple[Tensor, Tensor]:
    """Find each query's nearest reference in the Euclidean distance of pixels, in one pass over the references.

    Where both are bytes and the processor multiplies these fast, distances are compared in integers. Several processes
    share the references; each must make the call, with the same arguments.

    Args:
        queries: (N, ...) images or vectors, on the device that compares them.
        references: (M, ...) of the same shape, M >= 1: an array, a tensor, or what gives rows of either.
        chunk: rows of either side compared at once.
        progress: called with the number of references compared since.

    Returns:
        index (N,) int64 into the references (the first among equals), and distance (N,), the root of the
        summed squares, both on the CPU.

    Raises:
        ValueError: shapes differ or there is no reference.
    """
    q, shape = torch.as_tensor(queries), tuple(references.shape)
    if tuple(q.shape[1:]) != shape[1:] or shape[0] == 0:
        raise ValueError(f"nearest takes (N, ...) and (M, ...), M >= 1, got {tuple(q.shape)} and {shape}")
    q, one = q.reshape(len(q), math.prod(shape[1:])), take(references, slice(0, 1))
    in_bytes = q.device.type == "cpu" and q.dtype == one.dtype == torch.uint8 and _multiplies_bytes()
    best = torch.full((len(q),), math.inf, dtype=torch.float64 if in_bytes else torch.float32, device=q.device)
    index = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    for start, rows in own_chunks(references, chunk, progress):
        others = rows.flatten(1).to(q.device)
        others = _signed(others) if in_bytes else others.float()
        squares = _squares(others)
        for part, least, at in zip(q.split(chunk), best.split(chunk), index.split(chunk), strict=True):
            part = _signed(part) if in_bytes else part.float()
            # But for |query|^2; from the side of the references, which is faster.
            value, where = torch.add(squares, _products(others, part).T, alpha=-2).min(dim=1)
            closer = value < least
            least[closer], at[closer] = value[closer].to(least.dtype), where[closer] + start
    bests, indices = (distributed.all_gather_rows(one[None].cpu()) for one in (best.cpu().double(), index))
    index, q = indices.gather(0, bests.argmin(0)[None])[0], q.cpu()
    # Measured as a difference: the expanded square cannot tell a copy from a near copy.
    distance = torch.zeros(len(q))
    for i, found in enumerate(index.tolist()):
        distance[i] = (q[i].float() - take(references, found).flatten().float()).pow(2).sum().sqrt()
    return index, distance


_SUMMED = 1 << 15  # values a row of which 32 bits hold three sums of products of two bytes
_SQUARED = 32  # rows whose products with each other are made for the sake of their own squares


def take(array: Any, rows: Any) -> Tensor:
    """Rows of an array or tensor, or of what gives such rows, as a tensor, which is not to be changed."""
    found = array[rows]
    if isinstance(found, Tensor):
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mapped files are read-only
        return torch.from_numpy(np.ascontiguousarray(found))


def own_chunks(
    references: Any, chunk: int, progress: Callable[[int], object] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Go through this process's part of the references, ``chunk`` rows at a time, each with the number of its first.

    ``progress`` is called with the number of rows after each.
    """
    own = distributed.own_part(range(len(references)))
    for start in range(own.start, own.stop, chunk):
        rows = take(references, slice(start, min(start + chunk, own.stop)))
        yield start, rows
        if progress is not None:
            progress(len(rows))


def _multiplies_bytes() -> bool:
    """Whether the processor has instructions for products of bytes (VNNI), and PyTorch lets them be used."""
    return hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def _signed(x: Tensor) -> Tensor:
    """Bytes less 128, which leaves differences as they are."""
    return (x ^ 128).view(torch.int8)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Multiply rows (n, d) by rows (m, d): (n, m); bytes exactly, in int32, or in int64 where that could overflow."""
    if a.dtype != torch.int8:
        return a @ b.T
    if a.shape[1] <= _SUMMED:
        return torch._int_mm(a, b.T)
    summed = zip(a.split(_SUMMED, 1), b.split(_SUMMED, 1), strict=True)
    return torch.stack([torch._int_mm(x, y.T).long() for x, y in summed]).sum(0)


def _squares(x: Tensor) -> Tensor:
    """Sum the squares of rows (n, d): (n,), of bytes as `_products`."""
    if x.dtype != torch.int8:
        return x.square().sum(1)
    return torch.cat([_products(part, part).diagonal() for part in x.split(_SQUARED)])
