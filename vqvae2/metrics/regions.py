"""Regions that were copied from one image into another, at about the same place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2 import distributed
from vqvae2.metrics.neighbours import own_chunks, take

__all__ = ["Regions", "region_nearest"]

_PARTS = 4  # of the image's height and width that a region takes one of
_LEAST = 8  # pixels of a region's side
_SIDE = 8  # of the thumbnails of regions that choose candidates
_TEXTURE = 0.2  # of the images' standard deviation that a region must have


@dataclass(frozen=True)
class Regions:
    """The reference that correlates best with each region of N queries, at P places.

    Attributes:
        correlation: (N, P) in [-1, 1]; NaN where the query has hardly any texture.
        index: (N, P) int64 into the references.
        places: P corners (y, x) in pixels.
        size: height and width of a region in pixels.
    """

    correlation: Tensor
    index: Tensor
    places: list[tuple[int, int]]
    size: tuple[int, int]


def region_nearest(
    queries: Tensor,
    references: Any,
    reach: int = 2,
    candidates: int = 8,
    chunk: int = 256,
    progress: Callable[[int], object] | None = None,
) -> Regions:
    """Find for each region of the queries the reference that correlates best with it there.

    Regions are squares of a quarter of the image, every eighth of it. Thumbnails of them choose the candidates, which
    are then compared at full size. Correlation does not change with brightness and contrast. Several processes share
    the work; each must make the call, with the same arguments.

    Args:
        queries: (N, C, H, W) of any range, N >= 1.
        references: (M, C, H, W), M >= 1, of another range perhaps: an array, a tensor, or what gives rows of either;
            colours are averaged, as the queries' are.
        reach: pixels by which a reference is shifted along each side.
        candidates: references compared at full size.
        chunk: images compared at once.
        progress: called with the number of references compared since.

    Raises:
        ValueError: shapes differ, there is no query or no reference, or images are smaller than 8x8.
    """
    height, width = queries.shape[2:]
    if tuple(queries.shape[1:]) != tuple(references.shape[1:]) or not len(queries) or not len(references):
        raise ValueError(f"regions need images of one shape, got {tuple(queries.shape)}, {tuple(references.shape)}")
    if min(height, width) < _LEAST:
        raise ValueError(f"images of {height}x{width} are too small for regions")
    size = tuple(max(_LEAST, side // _PARTS) for side in (height, width))
    rows, columns = (
        sorted({*range(0, side - part, part // 2), side - part})
        for side, part in zip((height, width), size, strict=True)
    )
    places = [(y, x) for y in rows for x in columns]
    grey = queries.float().mean(1)
    textured = [_cut(grey, place, size).flatten(1).std(1) > _TEXTURE * grey.std() for place in places]
    small = [_thumbnails(_cut(grey, place, size)) for place in places]
    most = min(candidates, len(references))
    alike = torch.full((len(places), len(grey), most), -2.0)
    index = torch.zeros(len(places), len(grey), most, dtype=torch.int64)
    for start, images in own_chunks(references, chunk, progress):
        others = images.float().mean(1)
        for p, place in enumerate(places):
            around = torch.cat([_cut(others, corner, size) for corner in _moved(place, size, (height, width), reach)])
            products = small[p] @ _thumbnails(around).T
            known = torch.cat([alike[p], products.unflatten(1, (-1, len(others))).amax(1)], 1)
            numbers = torch.arange(start, start + len(others)).expand(len(grey), -1)
            alike[p], chosen = known.topk(most, 1)
            index[p] = torch.cat([index[p], numbers], 1).gather(1, chosen)
    alike, index = (distributed.all_gather_rows(one.movedim(2, 0)).movedim(0, 2) for one in (alike, index))
    index = index.gather(2, alike.topk(most, 2).indices)
    share = distributed.own_part(range(len(grey)))
    grey, index = grey[share.start : share.stop], index[:, share.start : share.stop]
    best = torch.full((len(places), len(grey)), -1.0)
    which = index[:, :, 0].clone()
    for p, place in enumerate(places):
        own, back = _standard(_cut(grey, place, size)), index[p].unique()
        others = torch.cat([take(references, rows.tolist()).float().mean(1) for rows in back.split(chunk)])
        at = torch.searchsorted(back, index[p])
        shifted = [_standard(_cut(others, moved, size)) for moved in _moved(place, size, (height, width), reach)]
        for part in torch.arange(len(grey)).split(chunk // 4 or 1):
            found = torch.stack([torch.einsum("nd,nkd->nk", own[part], moved[at[part]]) for moved in shifted])
            best[p, part], where = found.amax(0).max(1)
            which[p, part] = index[p, part].gather(1, where[:, None])[:, 0]
    correlation, which = (distributed.all_gather_rows(one.T) for one in (best.clamp(-1, 1), which))
    return Regions(torch.where(torch.stack(textured, 1), correlation, torch.nan), which, places, (size[0], size[1]))


def _cut(grey: Tensor, place: tuple[int, int], size: tuple[int, ...]) -> Tensor:
    return grey[:, place[0] : place[0] + size[0], place[1] : place[1] + size[1]]


def _standard(regions: Tensor) -> Tensor:
    """Flat (B, d) of mean 0 and length 1; zeros where a region is one single value."""
    flat = regions.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return F.normalize(flat, eps=1e-6)


def _thumbnails(regions: Tensor) -> Tensor:
    return _standard(F.adaptive_avg_pool2d(regions[:, None], _SIDE)[:, 0])


def _moved(
    place: tuple[int, int], size: tuple[int, ...], frame: tuple[int, int], reach: int
) -> Iterator[tuple[int, int]]:
    """The place, and those a few pixels beside it, within the frame."""
    steps = sorted({-reach, 0, reach})
    for y in {min(max(place[0] + step, 0), frame[0] - size[0]) for step in steps}:
        for x in {min(max(place[1] + step, 0), frame[1] - size[1]) for step in steps}:
            yield y, x
