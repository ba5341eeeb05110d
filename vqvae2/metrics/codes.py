"""Use of the codebooks, and the likelihood of codes under tables of counts, the most naive priors.

Codes are integer maps (B, h, w), likelihoods in nats per code.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import distributed

_STRENGTHS = tuple(float(2**k) for k in range(-3, 13))
_CELLS = 1 << 22  # counted at once


def perplexity(counts: Any) -> float:
    """Exponential of the entropy of a histogram of codes.

    Args:
        counts: (K,) how often each code occurs, >= 0.

    Returns:
        From 1 (one code only) to K (all equally often); NaN where nothing was counted.

    >>> perplexity([5, 5, 0, 0])
    2.0
    """
    share = _array(counts, np.float64)
    if share.sum() == 0:
        return math.nan
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def usage(counts: Any) -> float:
    """Share of the codebook that occurs at all, in [0, 1].

    Args:
        counts: (K,) how often each code occurs, >= 0.

    >>> usage([5, 5, 0, 0])
    0.5
    """
    return float((_array(counts, np.float64) > 0).mean())


def least_perplexity(num_embeddings: int) -> float:
    """Return the perplexity under which a codebook of K codes counts as collapsed: max(4, K / 50), below 8 codes
    (K + 1) / 2.

    It is that of held-out images, without constant cells: of a brain slice most cells are air, which take one code each
    and say nothing about the others.
    """
    return min(max(4.0, num_embeddings / 50), (num_embeddings + 1) / 2)


class CodeCounts:
    """How often each code of one level occurs over a window of batches, everywhere and in the foreground.

    Args:
        num_embeddings: codebook size K.

    Attributes:
        counts: (K,) int64, all cells.
        counts_foreground: (K,) int64, the cells that the masks let through.
    """

    def __init__(self, num_embeddings: int) -> None:
        self.counts = torch.zeros(num_embeddings, dtype=torch.int64)
        self.counts_foreground = torch.zeros(num_embeddings, dtype=torch.int64)

    def update(self, codes: Tensor, mask: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            codes: (B, h, w) integers in [0, K).
            mask: (B, h, w) bool, True in the foreground (``~constant_cells(images, (h, w))``); None takes all
                cells for foreground.

        Raises:
            ValueError: the mask's shape is not the codes'.
        """
        if mask is not None and mask.shape != codes.shape:
            raise ValueError(f"mask is {tuple(mask.shape)}, codes are {tuple(codes.shape)}")
        flat = codes.detach().reshape(-1).long()
        ones = torch.ones_like(flat)
        chosen = ones if mask is None else mask.reshape(-1).to(flat)
        # scatter_add_ where bincount would make the device wait for the host at every batch.
        self.counts = self.counts.to(flat.device).scatter_add_(0, flat, ones)
        self.counts_foreground = self.counts_foreground.to(flat.device).scatter_add_(0, flat, chosen)

    def gather(self) -> None:
        """Replace the counts by their sums over all processes."""
        # On the host: some processes may not have counted on their device yet.
        device = self.counts.device
        self.counts = distributed.all_reduce_sum(self.counts.cpu()).to(device)
        self.counts_foreground = distributed.all_reduce_sum(self.counts_foreground.cpu()).to(device)

    def reset(self) -> None:
        """Begin a fresh window."""
        self.counts.zero_()
        self.counts_foreground.zero_()

    @property
    def perplexity(self) -> float:
        """Perplexity over all cells, see :func:`perplexity`."""
        return perplexity(self.counts)

    @property
    def perplexity_foreground(self) -> float:
        """Perplexity over the foreground, see :func:`perplexity`."""
        return perplexity(self.counts_foreground)

    @property
    def least_perplexity(self) -> float:
        """Perplexity below which the level counts as collapsed: that of :func:`least_perplexity`, but at most a quarter
        of the foreground cells."""
        return min(least_perplexity(len(self.counts)), float(self.counts_foreground.sum()) / 4)

    @property
    def collapsed(self) -> bool:
        """Whether too few codes are used in the foreground; False if there is none, which tells nothing."""
        return self.perplexity_foreground < self.least_perplexity

    @property
    def usage(self) -> float:
        """Share of the codebook seen, see :func:`usage`."""
        return usage(self.counts)


def constant_cells(images: Tensor, shape: Sequence[int]) -> Tensor:
    """Mark the cells whose image block is constant: largest equals smallest value in every channel.

    Args:
        images: (B, C, H, W).
        shape: (h, w) of the code map; h divides H and w divides W.

    Returns:
        (B, h, w) bool.

    Raises:
        ValueError: the shape does not divide the images'.
    """
    (b, c, height, width), (h, w) = images.shape, shape
    if height % h or width % w:
        raise ValueError(f"a code map of {h}x{w} does not divide images of {height}x{width}")
    blocks = images.reshape(b, c, h, height // h, w, width // w)
    return (blocks.amax(dim=(3, 5)) == blocks.amin(dim=(3, 5))).all(dim=1)


def unigram_nll(train_codes: Any, codes: Any, num_embeddings: int, smoothing: float = 1.0) -> float:
    """Held-out NLL of the most naive prior: one histogram of the training codes for all positions.

    Args:
        train_codes: (N, h, w) integers in [0, K).
        codes: (M, h, w) integers in [0, K), the ones scored.
        num_embeddings: codebook size K.
        smoothing: pseudo-count added to each code, > 0.

    Returns:
        Mean NLL in nats per code; log K for a uniform histogram.
    """
    return table_nll(np.log(_unigram(position_counts(train_codes, num_embeddings), smoothing))[None], codes)


def positionwise_unigram_nll(
    train_codes: Any, codes: Any, num_embeddings: int, strength: float | None = None, smoothing: float = 1.0
) -> float:
    """Held-out NLL of a table of counts for each position, smoothed by the global unigram.

    Args:
        train_codes: (N, h, w) integers in [0, K).
        codes: (M, h, w) integers in [0, K), the ones scored.
        num_embeddings: codebook size K.
        strength: weight of the global unigram in training images, > 0; None takes :func:`best_strength`.
        smoothing: pseudo-count of each code in the global unigram, > 0.

    Returns:
        Mean NLL in nats per code.

    Raises:
        ValueError: the maps of the two sets differ in shape.
    """
    if tuple(train_codes.shape[1:]) != tuple(codes.shape[1:]):
        raise ValueError(f"training codes are {train_codes.shape[1:]} maps, the scored ones {codes.shape[1:]}")
    return table_nll(positionwise_log_table(train_codes, num_embeddings, strength, smoothing), codes)


def table_nll(table: NDArray[np.float64], codes: Any) -> float:
    """NLL of codes (M, h, w) under log-probabilities (h * w, K), or (1, K) for all positions, in nats per code."""
    counts = position_counts(codes, table.shape[1])
    return float(-(counts * table).sum() / counts.sum())


def positionwise_log_table(
    train_codes: Any, num_embeddings: int, strength: float | None = None, smoothing: float = 1.0
) -> NDArray[np.float64]:
    """Log-probability of each code at each position, from training codes alone.

    ``(counts at the position + strength * global unigram) / (N + strength)``

    Args:
        train_codes: (N, h, w) integers in [0, K).
        num_embeddings: codebook size K.
        strength: weight of the global unigram in training images, > 0; None takes :func:`best_strength`.
        smoothing: pseudo-count of each code in the global unigram, > 0.

    Returns:
        (h * w, K), raster order; each row's exponentials sum to 1.
    """
    return _position_table(position_counts(train_codes, num_embeddings), len(train_codes), strength, smoothing)


def _position_table(
    counts: NDArray[np.int64], images: int, strength: float | None, smoothing: float
) -> NDArray[np.float64]:
    if strength is None:
        strength = _best_strength(counts, images, smoothing, _STRENGTHS)
    table = np.log(counts + strength * _unigram(counts, smoothing))
    table -= math.log(images + strength)
    return table


def naive_log_tables(train_codes: Any, num_embeddings: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities of the codes under the two most naive priors, from one pass over the training codes.

    Args:
        train_codes: (N, h, w) integers in [0, K): a tensor, an array, or what gives slices of one.
        num_embeddings: codebook size K.

    Returns:
        Those of :func:`unigram_nll`, (1, K), and of :func:`positionwise_log_table`, (h * w, K); `table_nll` takes both.
    """
    counts = position_counts(train_codes, num_embeddings)
    return np.log(_unigram(counts, 1.0))[None], _position_table(counts, len(train_codes), None, 1.0)


def best_strength(
    train_codes: Any, num_embeddings: int, smoothing: float = 1.0, grid: Sequence[float] = _STRENGTHS
) -> float:
    """Choose the smoothing of the position-wise table by leave-one-out likelihood of the training codes.

    Each code is predicted from the counts without itself, so the choice costs no held-out data.

    Args:
        train_codes: (N, h, w) integers in [0, K).
        num_embeddings: codebook size K.
        smoothing: pseudo-count of each code in the global unigram, > 0.
        grid: strengths to choose from, in training images, > 0.

    Returns:
        The member of the grid with the highest likelihood.
    """
    return _best_strength(position_counts(train_codes, num_embeddings), len(train_codes), smoothing, grid)


def _best_strength(counts: NDArray[np.int64], images: int, smoothing: float, grid: Sequence[float]) -> float:
    num_embeddings = counts.shape[1]
    everywhere = counts.sum(axis=0)
    # The code left out is missing from the global unigram too. What never occurs has no term.
    unigram = (everywhere - 1 + smoothing) / (everywhere.sum() - 1 + smoothing * num_embeddings)
    position, code = np.nonzero(counts)
    count, unigram = counts[position, code], unigram[code]

    def likelihood(strength: float) -> float:
        shares = (count - 1 + strength * unigram) / (images - 1 + strength)
        return float((count * np.log(shares)).sum())

    return max(grid, key=likelihood)


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(dtype)


def _unigram(counts: NDArray[np.int64], smoothing: float) -> NDArray[np.float64]:
    """Share of each code over all positions, from counts by position."""
    smooth = counts.sum(0) + smoothing
    return smooth / smooth.sum()


def position_counts(codes: Any, num_embeddings: int) -> NDArray[np.int64]:
    """Count codes by position, some images at a time.

    Args:
        codes: (N, h, w) integers in [0, K): a tensor, an array, or what gives slices of one.
        num_embeddings: codebook size K.

    Returns:
        (h * w, K), raster order.
    """
    positions = math.prod(codes.shape[1:])
    counts = np.zeros(positions * num_embeddings, np.int64)
    chunk = max(1, _CELLS // positions)
    begins = np.arange(positions) * num_embeddings
    for start in range(0, len(codes), chunk):
        part = _array(codes[start : start + chunk], np.int64).reshape(-1, positions)
        counts += np.bincount((part + begins).reshape(-1), minlength=len(counts))
    return counts.reshape(positions, num_embeddings)
