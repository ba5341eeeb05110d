"""Figures of merit: image quality, codebook use, count-table baselines, nearest neighbours.

No model is known here. Images are (B, C, H, W) in [-1, 1], so the data range is 2, always given and never
guessed. Codes are integer maps (B, h, w). Likelihoods are in nats per code.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.nn import functional as F

from vqvae2 import distributed

_WINDOW = 11  # taps; scikit-image's truncate = 3.5 at sigma = 1.5
_SIGMA = 1.5
_STRENGTHS = tuple(float(2**k) for k in range(-3, 13))


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Structural similarity with Wang's settings, differentiable.

    11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, mean over channels and
    over the pixels whose window lies inside the image, as scikit-image computes it with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. Computed in fp32 at least, whatever the
    surrounding precision.

    Args:
        x: (B, C, H, W), H and W >= 11.
        y: like x.
        data_range: largest minus smallest value that a pixel can take, > 0.
        weight: (B, 1, H, W) weight of each pixel in the mean, >= 0; None: all alike.

    Returns:
        (B,) in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: shapes differ or images are smaller than the window.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    equation 13.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"ssim takes two equal shapes (B, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[-2:]) < _WINDOW:
        raise ValueError(f"ssim needs images of at least {_WINDOW}x{_WINDOW} pixels, got {tuple(x.shape[-2:])}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.to(dtype), y.to(dtype)
        # The variances only enter as a sum, so four local means are enough.
        means = _gaussian_mean(torch.stack([x, y, x * x + y * y, x * y]))  # (4, B, C, H - 10, W - 10)
        mean_x, mean_y, mean_squares, mean_xy = means.unbind()
        product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        covariance, variances = mean_xy - product, mean_squares - squares
        similarity = (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))
        if weight is None:
            return similarity.mean(dim=(1, 2, 3))
        edge = _WINDOW // 2
        inner = weight[..., edge:-edge, edge:-edge].to(dtype)
        inner = inner / inner.sum(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        return (inner * similarity.mean(1, keepdim=True)).sum(dim=(1, 2, 3))


@functools.cache
def _gaussian_taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The window's weights, (11,), once for each device: uploading them at every step would make it wait."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    taps = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return (taps / taps.sum()).to(device, dtype)


def _gaussian_mean(maps: Tensor) -> Tensor:
    taps = _gaussian_taps(maps.device, maps.dtype)
    # One image of many depthwise channels: on a CPU 35 times as fast as many images of one channel.
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    n = flat.shape[1]
    flat = F.conv2d(flat, taps.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
    flat = F.conv2d(flat, taps.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)
    return flat.view(*maps.shape[:3], *flat.shape[-2:])


def image_scores(x: Tensor, y: Tensor) -> dict[str, NDArray[np.float64]]:
    """Score images against references through scikit-image in float64.

    Args:
        x: (B, C, H, W) in [-1, 1], H and W >= 11.
        y: like x.

    Returns:
        (B,) arrays: ``mse`` (mean squared difference on the [-1, 1] scale), ``psnr_db`` (dB, peak 2; infinite
        for equal images), ``ssim`` (Wang's settings, mean over channels).

    Raises:
        ValueError: shapes differ or images are smaller than the window.
    """
    if x.shape != y.shape:
        raise ValueError(f"image_scores takes equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    a, b = (t.detach().cpu().double().numpy() for t in (x, y))
    mse = ((a - b) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(2.0**2 / mse)
    similarity = [
        structural_similarity(
            one,
            two,
            channel_axis=0,
            data_range=2.0,
            gaussian_weights=True,
            sigma=_SIGMA,
            use_sample_covariance=False,
        )
        for one, two in zip(a, b, strict=True)
    ]
    return {"mse": mse, "psnr_db": psnr, "ssim": np.array(similarity, dtype=np.float64)}


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
    """Return the held-out perplexity under which a codebook of K codes counts as collapsed: max(4, K / 50)."""
    return max(4.0, num_embeddings / 50)


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
    table = np.log(_unigram(train_codes, num_embeddings, smoothing))
    return float(-table[_array(codes, np.int64)].mean())


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
    scored = _array(codes, np.int64)
    train = _array(train_codes, np.int64)
    if train.shape[1:] != scored.shape[1:]:
        raise ValueError(f"training codes are {train.shape[1:]} maps, the scored ones {scored.shape[1:]}")
    table = positionwise_log_table(train, num_embeddings, strength, smoothing)
    scored = scored.reshape(len(scored), -1)
    return float(-table[np.arange(scored.shape[1]), scored].mean())


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
    if strength is None:
        strength = best_strength(train_codes, num_embeddings, smoothing)
    prior = strength * _unigram(train_codes, num_embeddings, smoothing)
    table = np.log(_position_counts(train_codes, num_embeddings) + prior)
    table -= math.log(len(train_codes) + strength)
    return table


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
    counts = _position_counts(train_codes, num_embeddings)
    everywhere = counts.sum(axis=0)
    # The code left out is missing from the global unigram too. What never occurs has no term.
    unigram = (everywhere - 1 + smoothing) / (everywhere.sum() - 1 + smoothing * num_embeddings)
    position, code = np.nonzero(counts)
    count, unigram = counts[position, code], unigram[code]

    def likelihood(strength: float) -> float:
        shares = (count - 1 + strength * unigram) / (len(train_codes) - 1 + strength)
        return float((count * np.log(shares)).sum())

    return max(grid, key=likelihood)


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


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    return (values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)).astype(dtype)


def _unigram(codes: Any, num_embeddings: int, smoothing: float) -> NDArray[np.float64]:
    counts = np.bincount(_array(codes, np.int64).reshape(-1), minlength=num_embeddings) + smoothing
    return counts / counts.sum()


def _position_counts(codes: Any, num_embeddings: int) -> NDArray[np.float64]:
    flat = _array(codes, np.int64).reshape(len(codes), -1)  # (N, h * w)
    cells = flat + np.arange(flat.shape[1]) * num_embeddings
    counts = np.bincount(cells.reshape(-1), minlength=flat.shape[1] * num_embeddings)
    return counts.reshape(flat.shape[1], num_embeddings).astype(np.float64)
