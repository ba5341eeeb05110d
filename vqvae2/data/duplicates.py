"""Images that are nearly the same: they correlate, and a perceptual hash agrees.

Shapes: N and M images.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vqvae2.progress import Progress

SIDE = 32
_BITS = 24  # of 256 that may differ
_CORRELATION = 0.995
_CHUNK = 256
_ROWS, _COLUMNS = 256, 1 << 15  # distances held at once: few rows would be read from memory for each product
_LEAST = 0.1 / SIDE

Thumbnails = NDArray[np.float32]


def thumbnail(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Thumbnails:
    """Shrink an image (H, W) or (H, W, 3) to 32 x 32 grey values with mean 0 and norm 1; a constant one to zeros."""
    first, *others = (pixels,) if pixels.ndim == 2 else (pixels[..., k] for k in range(3))
    block = max(1, min(first.shape) // (2 * SIDE))  # summed first, which is faster, where that leaves no remainder
    block = block if not any(side % block for side in first.shape) else 1
    # Sums rather than means, of integers that hold them; quick where each colour lies by itself.
    grey: NDArray[Any] = first.astype(np.uint16 if pixels.dtype == np.uint8 and block < 10 else np.uint32)
    for other in others:
        grey += other
    for _ in range(2):
        grey = functools.reduce(np.add, (grey[i::block] for i in range(block))).T
    image = Image.fromarray(grey.astype(np.float32))
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    small = small - small.mean()
    norm = np.linalg.norm(small)
    return small / norm if norm > 1e-5 * grey.max() else np.zeros_like(small)  # rounding


def pooled(thumbnails: Thumbnails) -> Thumbnails:
    """Sum thumbnails (..., 32, 32) over blocks of 4 x 4, divided by 4: (..., 64), no further apart than they are."""
    blocks = thumbnails.reshape(*thumbnails.shape[:-2], SIDE // 4, 4, SIDE // 4, 4).sum((-3, -1)) / 4
    return blocks.reshape(*thumbnails.shape[:-2], -1)


def near_candidates(some: Thumbnails, others: Thumbnails) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Find what can nearly equal: all pairs of `nearly_equal` are among them.

    Thumbnails of norm 1 that correlate by r are sqrt(2 - 2 r) apart, and their pooled forms no further.

    Args:
        some: (N, 64), as from `pooled`.
        others: (M, 64).

    Yields:
        (index in some, indices in others), where there are any.
    """
    limit = 2 * (1 - _CORRELATION) + 1e-5  # rounding
    known = torch.from_numpy(np.array(others))
    squares = known.square().sum(1)
    with Progress(len(some), "looking for copies", "images") as progress:
        for start in range(0, len(some), _ROWS):
            part = torch.from_numpy(np.array(some[start : start + _ROWS]))
            least = limit - part.square().sum(1)
            found: dict[int, list[NDArray[np.int64]]] = {}
            for first in range(0, len(known), _COLUMNS):
                block = slice(first, first + _COLUMNS)
                apart = torch.addmm(squares[block], part, known[block].T, alpha=-2)  # but for |part|^2
                for row in (apart.amin(1) <= least).nonzero()[:, 0].tolist():
                    near = (apart[row] <= least[row]).nonzero()[:, 0].numpy() + first
                    found.setdefault(row, []).append(near)
            for row in sorted(found):
                yield start + row, np.concatenate(found[row])
            progress(len(part))


def difference_hash(thumbnails: Thumbnails) -> NDArray[np.uint64]:
    """Hash thumbnails (N, 32, 32) by which of neighbouring 2 x 2 blocks is brighter: (N, 4), 256 bits."""
    blocks = thumbnails.reshape(len(thumbnails), 16, 2, 16, 2).mean((2, 4))
    bits = blocks - np.roll(blocks, 1, 2) > _LEAST  # noise on a flat background does not count
    return np.packbits(bits.reshape(len(blocks), -1), axis=1).view(np.uint64)


def nearly_equal(some: Thumbnails, others: Thumbnails) -> list[tuple[int, int]]:
    """Find the thumbnails that nearly equal one of the others.

    Args:
        some: (N, 32, 32), as from `thumbnail`.
        others: (M, 32, 32).

    Returns:
        Pairs (index in some, index of its nearest among the others), for those that have one: at most 24 of 256 bits of
        the hashes differ, and the thumbnails correlate by 0.995 or more. Constant images have none.
    """
    pairs = []
    hashes, known = difference_hash(some), difference_hash(others)
    flat, known_flat = some.reshape(len(some), -1), others.reshape(len(others), -1)
    for start in range(0, len(some), _CHUNK):
        correlation = flat[start : start + _CHUNK] @ known_flat.T  # one matrix product: far cheaper than a look at bits
        for row in np.flatnonzero(correlation.max(1) >= _CORRELATION):
            candidates = np.flatnonzero(correlation[row] >= _CORRELATION)
            apart = np.bitwise_count(hashes[start + row] ^ known[candidates]).sum(1)
            candidates = candidates[apart <= _BITS]
            if len(candidates):
                pairs.append((start + int(row), int(candidates[correlation[row, candidates].argmax()])))
    return pairs
