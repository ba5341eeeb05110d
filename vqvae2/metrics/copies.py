"""Copies that a distance of pixels misses: shifted, mirrored, blurred or in another light."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2 import distributed
from vqvae2.metrics.neighbours import own_chunks, take

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
    queries: Tensor,
    references: Any,
    reach: int = 4,
    candidates: int = 16,
    chunk: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Aligned:
    """Find the reference that correlates best with each query after the best shift, mirrored or not.

    Correlation does not change with brightness and contrast. Thumbnails choose the candidates, which are then compared
    at full size at every shift. Several processes share the work; each must make the call, with the same arguments.

    Args:
        queries: (N, C, H, W) of any range.
        references: (M, C, H, W), M >= 1, of another range perhaps: an array, a tensor, or what gives rows of either;
            colours are averaged, as the queries' are.
        reach: pixels by which a reference is shifted at most along each side; what leaves the frame comes back on the
            other side.
        candidates: references, mirrored ones included, that are compared at full size.
        chunk: images turned into thumbnails at once.
        progress: called with the number of references turned into thumbnails since.

    Raises:
        ValueError: shapes differ or there is no reference.
    """
    if queries.ndim != 4 or tuple(queries.shape[1:]) != tuple(references.shape[1:]) or not len(references):
        raise ValueError(
            "aligned_nearest takes (N, C, H, W) and (M, C, H, W), M >= 1, got "
            f"{tuple(queries.shape)} and {tuple(references.shape)}"
        )
    count, height, width = len(references), *queries.shape[2:]
    # A shift of a few pixels changes a thumbnail: the query is shifted, too.
    moved = [(down, across) for down in {-(reach // 2), 0, reach // 2} for across in {-(reach // 2), 0, reach // 2}]
    shifted = (queries.roll(move, (2, 3)).split(chunk) for move in moved)
    small = torch.stack([_thumbnails(parts, (height, width)).flatten(1) for parts in shifted])
    best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start, rows in own_chunks(references, chunk, progress):
        known = _thumbnails([rows], (height, width))
        known = torch.cat([known, known.flip(-1)]).flatten(1)
        numbers = torch.cat(
            [torch.arange(start, start + len(rows)) + moved for moved in (0, count)]
        )  # beyond M: mirrored
        alike = functools.reduce(torch.maximum, (shift @ known.T for shift in small))
        best = _largest(
            torch.cat([best[0], alike], 1), torch.cat([best[1], numbers.expand(len(alike), -1)], 1), candidates
        )
    values, places = (distributed.all_gather_rows(part.T.contiguous()).T for part in best)
    chosen = _largest(values, places, candidates)[1]
    rows = torch.arange(-min(reach, height // 2), min(reach, height // 2) + 1) % height
    columns = torch.arange(-min(reach, width // 2), min(reach, width // 2) + 1) % width
    found = []
    share = distributed.own_part(range(len(queries)))
    for query, places in zip(queries[share.start : share.stop], chosen[share.start : share.stop], strict=True):
        others = torch.stack([take(references, int(place) % count) for place in places])
        mirrored = places >= count
        others = torch.where(mirrored[:, None, None], _standard(others).flip(-1), _standard(others))
        product = torch.fft.rfft2(_standard(query[None])).conj() * torch.fft.rfft2(others)
        at_shifts = torch.fft.irfft2(product, s=(height, width))[:, rows][:, :, columns]
        best, where = at_shifts.flatten(1).amax(1).max(0)
        found.append((int(places[where]) % count, float(best), bool(mirrored[where])))
    columns_found = [list(column) for column in zip(*found, strict=True)] or [[], [], []]
    index, correlation, flipped = (
        distributed.all_gather_rows(torch.tensor(column, dtype=dtype))
        for column, dtype in zip(columns_found, (torch.int64, torch.float32, torch.uint8), strict=True)
    )
    return Aligned(index, correlation.clamp(-1, 1), flipped.bool())


def _largest(values: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keep of each row the largest values, (N, V) -> (N, min(count, V)), and their places."""
    kept = values.topk(min(count, values.shape[1]), dim=1)
    return kept.values, places.gather(1, kept.indices)


def _standard(images: Tensor) -> Tensor:
    """Grey (B, H, W) of mean 0 and length 1; zeros where an image is one single value."""
    grey = images.float().mean(1)
    grey = grey - grey.mean((1, 2), keepdim=True)
    return grey / grey.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-12)


def _thumbnails(parts: Iterable[Tensor], frame: tuple[int, int]) -> Tensor:
    """Small ones of images (n, C, *frame) that come in parts, standardised: (N, side, side)."""
    size = (min(_SIDE, frame[0]), min(_SIDE, frame[1]))
    grey = (part.float().mean(1, keepdim=True) for part in parts)
    return torch.cat([torch.zeros(0, *size), *(_standard(F.adaptive_avg_pool2d(part, size)) for part in grey)])
