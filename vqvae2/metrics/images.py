"""Image quality over the whole frame: SSIM, PSNR, MSE."""

import functools

import numpy as np
import skimage  # its parts are loaded where they are first used: all of them take a second
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_WINDOW = 11  # taps; scikit-image's truncate = 3.5 at sigma = 1.5
_SIGMA = 1.5
MARGIN = _WINDOW // 2
"""Pixels along each border whose window of SSIM reaches beyond the image."""


def ssim(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity with Wang's settings, differentiable.

    11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, mean over channels and
    over the pixels whose window lies inside the image, as scikit-image computes it with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``. Computed in fp32 at least, whatever the
    surrounding precision.

    Args:
        x: (B, C, H, W), H and W >= 11.
        y: like x.
        data_range: largest minus smallest value that a pixel can take, > 0.

    Returns:
        (B,) in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: shapes differ or images are smaller than the window.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    equation 13.
    """
    return _similarity(x, y, data_range).mean(dim=(1, 2, 3))


def ssim_map(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity at each pixel, mean over channels, by the settings of :func:`ssim`.

    The images go on as their mirror image beyond the border, edge pixels repeated, as in scikit-image's
    ``structural_similarity(..., full=True)``.

    Args:
        x: (B, C, H, W), H and W >= 11.
        y: like x.
        data_range: largest minus smallest value that a pixel can take, > 0.

    Returns:
        (B, H, W) in [-1, 1].

    Raises:
        ValueError: shapes differ or images are smaller than the window.
    """
    return _similarity(x, y, data_range, padding=MARGIN).mean(dim=1)


def _similarity(x: Tensor, y: Tensor, data_range: float, padding: int = 0) -> Tensor:
    """SSIM of each window, (B, C, H + 2 padding - 10, W + 2 padding - 10)."""
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"ssim takes two equal shapes (B, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
    if min(x.shape[-2:]) < _WINDOW:
        raise ValueError(f"ssim needs images of at least {_WINDOW}x{_WINDOW} pixels, got {tuple(x.shape[-2:])}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    with torch.autocast(x.device.type, enabled=False):
        x, y = (mirrored(images.to(dtype), padding) for images in (x, y))
        # The variances only enter as a sum, so four local means are enough.
        maps = torch.stack([x, y, x * x + y * y, x * y])
        taps = _gaussian_taps(_SIGMA, MARGIN, x.device, dtype)
        means = convolve(maps, taps)
        mean_x, mean_y, mean_squares, mean_xy = means.unbind()
        product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        covariance, variances = mean_xy - product, mean_squares - squares
        return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


@functools.cache
def _gaussian_taps(sigma: float, radius: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A window's weights, (2 radius + 1,), once for each device: uploading them at every step would make it wait."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (taps / taps.sum()).to(device, dtype)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur images by a Gaussian cut off at 4 sigma, as ``scipy.ndimage.gaussian_filter`` does in every channel.

    Args:
        images: (B, C, H, W) floats; beyond the border they go on as their mirror image, edge pixels repeated.
        sigma: standard deviation in pixels, >= 0, at most a quarter of the shorter side.

    Returns:
        Like ``images``.
    """
    radius = int(4 * sigma + 0.5)
    if not radius:
        return images
    return convolve(mirrored(images, radius), _gaussian_taps(sigma, radius, images.device, images.dtype))


def mirrored(maps: Tensor, padding: int) -> Tensor:
    """Widen maps (..., H, W) on each side by their mirror image, edge pixels repeated (d c b a | a b c d)."""
    if not padding:
        return maps
    for dim in (-2, -1):
        ends = maps.narrow(dim, 0, padding), maps.narrow(dim, maps.shape[dim] - padding, padding)
        maps = torch.cat([ends[0].flip(dim), maps, ends[1].flip(dim)], dim)
    return maps


def convolve(maps: Tensor, taps: Tensor) -> Tensor:
    """Weight each window of maps (..., H, W) by taps (n,) in both directions: (..., H - n + 1, W - n + 1)."""
    # One image of many depthwise channels: on a CPU 35 times as fast as many images of one channel.
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    n = flat.shape[1]
    with torch.autocast(maps.device.type, enabled=False):  # figures are of the precision of their images
        flat = F.conv2d(flat, taps.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
        flat = F.conv2d(flat, taps.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)
    return flat.view(*maps.shape[:-2], *flat.shape[-2:])


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
        skimage.metrics.structural_similarity(
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
