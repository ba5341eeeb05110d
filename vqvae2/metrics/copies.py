"""Copies that a distance of pixels misses: shifted, mirrored, blurred or in another light."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.metrics.neighbours import take

_SIDE = 16  # of the thumbnails that choose candidates


@dataclass(frozen=True)
class Aligned:
    """The reference that correlates best with each of N queries, over shifts and mirroring.

    Attributes:
        index: (N,) int64 into the references.
        correlation: (N,) in [-1, 1].
        mirrored: (N,) bool: whether the mirrored reference does.
    """

    index: Tensor
    correlation: Tensor
    mirrored: Tensor


def aligned_nearest(
    queries: Tensor, references: Any, reach: int = 4, candidates: int = 16, chunk: int = 256
) -> Aligned:
    """Find the reference that correlates best with each query after the best shift, mirrored or not.

    Correlation does not change with brightness and contrast. Thumbnails choose the candidates, which are then compared
    at full size at every shift.

    Args:
        queries: (N, C, H, W) of any range.
        references: (M, C, H, W), M >= 1, of another range perhaps: an array, a tensor, or what gives rows of either;
            colours are averaged, as the queries' are.
        reach: pixels by which a reference is shifted at most along each side; what leaves the frame comes back on the
            other side.
        candidates: references, mirrored ones included, that are compared at full size.
        chunk: images turned into thumbnails at once.

    Raises:
        ValueError: shapes differ or there is no reference.
    """
    if queries.ndim != 4 or tuple(queries.shape[1:]) != tuple(references.shape[1:]) or not len(references):
        raise ValueError(
            "aligned_nearest takes (N, C, H, W) and (M, C, H, W), M >= 1, got "
            f"{tuple(queries.shape)} and {tuple(references.shape)}"
        )
    known = _thumbnails(references, chunk)
    known = torch.cat([known, known.flip(-1)]).flatten(1)
    count, height, width = len(references), *queries.shape[2:]
    most = min(candidates, len(known))
    # A shift of a few pixels changes a thumbnail: the query is shifted, too.
    moved = [(down, across) for down in {-(reach // 2), 0, reach // 2} for across in {-(reach // 2), 0, reach // 2}]
    small = torch.stack([_thumbnails(queries.roll(move, (2, 3)), chunk).flatten(1) for move in moved])
    alike = (functools.reduce(torch.maximum, (part @ known.T for part in parts)) for parts in small.split(chunk, dim=1))
    chosen = torch.cat([rows.topk(most, dim=1).indices for rows in alike])
    rows = torch.arange(-min(reach, height // 2), min(reach, height // 2) + 1) % height
    columns = torch.arange(-min(reach, width // 2), min(reach, width // 2) + 1) % width
    found = []
    for query, places in zip(queries, chosen, strict=True):
        others = torch.stack([take(references, int(place) % count) for place in places])
        mirrored = places >= count
        others = torch.where(mirrored[:, None, None], _standard(others).flip(-1), _standard(others))
        product = torch.fft.rfft2(_standard(query[None])).conj() * torch.fft.rfft2(others)
        at_shifts = torch.fft.irfft2(product, s=(height, width))[:, rows][:, :, columns]
        best, where = at_shifts.flatten(1).amax(1).max(0)
        found.append((places[where] % count, best, mirrored[where]))
    if not found:
        return Aligned(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    index, correlation, flipped = map(torch.stack, zip(*found, strict=True))
    return Aligned(index, correlation.clamp(-1, 1), flipped)


def _standard(images: Tensor) -> Tensor:
    """Grey (B, H, W) of mean 0 and length 1; zeros where an image is one single value."""
    grey = images.float().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    return grey / grey.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12)


def _thumbnails(images: Any, chunk: int) -> Tensor:
    """Small ones, standardised: (N, side, side)."""
    height, width = images.shape[2:]
    size = (min(_SIDE, height), min(_SIDE, width))
    parts = [torch.zeros(0, *size)]
    for start in range(0, len(images), chunk):
        grey = take(images, slice(start, start + chunk)).float().mean(1, keepdim=True)
        parts.append(_standard(F.adaptive_avg_pool2d(grey, size)))
    return torch.cat(parts)
