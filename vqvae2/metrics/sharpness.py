"""How sharp images are beside their originals, where there is something to be seen.

Over the whole frame, SSIM mostly scores air: half of a brain slice is black. So SSIM and PSNR are taken in the
foreground too. And neither tells detail that is kept from detail that is invented, which power and coherence by
wavelength do: a blur loses power and keeps coherence, invented texture has power and no coherence.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy  # its parts are loaded where they are first used: all of them take a second
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import distributed
from vqvae2.device import widest
from vqvae2.metrics.images import gaussian_blur, ssim_map

BANDS = ((2, 4), (4, 8), (8, 16))
"""Wavelengths in pixels, from (included) and to (excluded)."""

_SIGMAS = (0.0, 0.3, 0.35, *(round(0.4 + 0.1 * i, 1) for i in range(12)), 1.75, 2.0, 2.5, 3.0, 4.0)
_NEAR = 0.05 * 2  # of the range of pixel values, which is 2


def background_value(images: Tensor) -> float | None:
    """Return the value of the background, or None for images that have none.

    It is the most frequent value on the border of the frames, in steps of 1% of the range. There is a background
    where at least half of the border's pixels lie within 5% of the range of it: true of heads in air and of digits,
    false of photographs.

    Args:
        images: (N, C, H, W) in [-1, 1], some of the training images. Values are means over channels.
    """
    grey = images.float().mean(1)
    border = torch.cat([grey[:, (0, -1), :].flatten(), grey[:, 1:-1, (0, -1)].flatten()])
    bins = ((border + 1) * 50).round().clamp(0, 100).long()
    if not len(bins):
        return None
    most = int(bins.bincount().argmax())
    value = float(border[bins == most].median())
    return value if float(((border - value).abs() <= _NEAR).float().mean()) >= 0.5 else None


def foreground(images: Tensor, background: float | None = -1.0) -> Tensor:
    """Mark what stands before the background: the largest connected piece, holes filled.

    A pixel stands out if its mean over channels differs from the background by more than 5% of the range: on black,
    if it is brighter than 5%. Pieces are connected by pixels' sides.

    Args:
        images: (B, C, H, W) in [-1, 1].
        background: as of :func:`background_value`; None marks all pixels.

    Returns:
        (B, H, W) bool; all False where no pixel stands out.
    """
    if background is None:
        return torch.ones_like(images[:, 0], dtype=torch.bool)
    outstanding = ((images.float().mean(1) - background).abs() > _NEAR).cpu().numpy()
    masks = np.stack([_largest_filled(one) for one in outstanding]) if len(outstanding) else outstanding
    return torch.from_numpy(masks).to(images.device)


def _largest_filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = scipy.ndimage.label(mask)
    if count == 0:
        return mask
    largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    outside, _ = scipy.ndimage.label(np.pad(~largest, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def foreground_scores(y: Tensor, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Score images against originals in the foreground.

    Args:
        y: (B, C, H, W) in [-1, 1], H and W >= 11.
        x: the originals, like y.
        mask: (B, H, W) bool, of the originals.

    Returns:
        (B,) each, in double precision where the device has it: ``ssim_foreground``, the map of SSIM (see
        :func:`ssim_map`) averaged over the mask, and ``psnr_foreground_db``, of the squared error in the mask (peak 2;
        infinite for equal images). NaN where the mask is empty.
    """
    maps = torch.stack([ssim_map(y, x), (y.float() - x.float()).square().mean(1)])
    similarity, error = (maps * mask).sum((2, 3), dtype=widest(mask.device)) / mask.sum((1, 2))
    return {"ssim_foreground": similarity, "psnr_foreground_db": 10 * torch.log10(4 / error)}


class Bands:
    """Power and coherence of a set of images beside its originals by band of wavelengths, counted over batches.

    Spectra are summed over the set in rings of equal frequency, one cycle per frame wide. A ring's coherence is the sum
    of ``Re(conj(X) Y)`` over the root of the product of the sums of ``|X|^2`` and ``|Y|^2`` (Fourier ring correlation),
    a band's the mean of its rings', weighted by the originals' power. Ring by ring a blur, which changes powers alone,
    has coherence 1; taken over a whole band at once (:meth:`pooled`) it would lose some, as its power falls within the
    band.

    Args:
        shape: (H, W) of the images.
        windowed: weight the frames, less their mean, by a Hann window, for images that do not end in a background:
            the frame's edge would be taken for detail.
        groups: of images, whose sums are kept apart.

    Attributes:
        sums: (groups, 3, R) of ``|X|^2``, ``|Y|^2`` and ``Re(conj(X) Y)`` in the R rings of all bands.

    Source: Saxton and Baumeister, "The correlation averaging of a regularly arranged bacterial cell envelope
    protein", 1982.
    """

    def __init__(self, shape: Sequence[int], windowed: bool = False, groups: int = 1) -> None:
        self.shape, self.windowed = tuple(shape), windowed
        height, width = self.shape
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
        ring = (frequency * min(height, width)).round().long()
        band = torch.full_like(ring, len(BANDS))
        for i, (shortest, longest) in enumerate(BANDS):
            band[(frequency > 1 / longest) & (frequency <= 1 / shortest)] = i
        # Each frequency of a band with its place among the rings of all bands.
        self._inside = (band < len(BANDS)).flatten().nonzero()[:, 0]
        many = int(ring.max()) + 1
        kinds, self._place = (band * many + ring).flatten()[self._inside].unique(return_inverse=True)
        self._band = kinds // many
        # Each column but the first and, for even widths, the last stands for its mirror image too.
        twice = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1
        twice[width // 2] -= 1 - width % 2
        self._weight = twice.expand(height, -1).flatten()[self._inside]
        # |X|^2, |Y|^2 and Re(conj(X) Y), summed over images and channels.
        self.sums = torch.zeros(groups, 3, len(kinds), dtype=torch.float64)

    def update(self, y: Tensor, x: Tensor, groups: Tensor | None = None) -> None:
        """Count a batch y (B, C, H, W) of originals x, each image in its group (B,), by default the first."""
        a, b = (torch.fft.rfft2(self._prepared(images.float())) for images in (x, y))
        parts = torch.stack([a.abs().square(), b.abs().square(), (a.conj() * b).real], 1).sum(2).flatten(2)
        inside = parts[..., self._inside.to(parts.device)].cpu().double() * self._weight
        groups = torch.zeros(len(x), dtype=torch.int64) if groups is None else groups
        rings = inside.new_zeros(len(x), *self.sums.shape[1:]).index_add_(2, self._place, inside)
        self.sums.index_add_(0, groups, rings)

    def _prepared(self, images: Tensor) -> Tensor:
        centred = images - images.mean((-2, -1), keepdim=True)
        if not self.windowed:
            return centred
        rows, columns = (torch.hann_window(n, device=images.device) for n in images.shape[-2:])
        return centred * rows[:, None] * columns

    def gather(self) -> None:
        """Replace the sums by those over all processes."""
        self.sums = distributed.all_reduce_sum(self.sums)

    def figures(self) -> dict[str, float]:
        """Return ``power_2_4`` (ratio), ``coherence_2_4`` (in [-1, 1]), and so on.

        Bands of which the images have no frequency, or the originals no power, are left out.
        """
        found = self.figures_of(self.sums.sum(0, keepdim=True))
        return {name: float(value) for name, value in found.items() if not value.isnan()}

    def figures_of(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the `figures` of N sums over other images, (N, 3, R) like ``sums``: (N,) each, NaN without power."""
        found = {}
        for shortest, longest, (originals, made, common) in self._by_band(sums):
            coherence = common / (originals * made).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
            power, band = originals.sum(1), f"{shortest}_{longest}"
            found[f"power_{band}"] = (made.sum(1) / power).where(power > 0, torch.nan)
            found[f"coherence_{band}"] = ((coherence * originals).sum(1) / power).where(power > 0, torch.nan)
        return found

    def pooled(self) -> dict[str, float]:
        """Return ``coherence_pooled_2_4``, and so on, each taken over its whole band at once."""
        found = {}
        for shortest, longest, rings in self._by_band(self.sums.sum(0, keepdim=True)):
            a, b, c = (float(part.sum()) for part in rings)
            if a:
                found[f"coherence_pooled_{shortest}_{longest}"] = c / math.sqrt(a * b) if b else 0.0
        return found

    def _by_band(self, sums: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """The rings of each band, (3, N, R of the band), after its wavelengths."""
        for i, (shortest, longest) in enumerate(BANDS):
            yield shortest, longest, sums[..., self._band == i].movedim(1, 0)


class BlurScale:
    """Translates SSIM in the foreground to the Gaussian blur of the originals that has the same score.

    The mean score of the originals blurred by each of a grid of sigmas is counted over batches, and interpolated.

    Args:
        shape: (H, W) of the images; the grid ends at a quarter of the shorter side, at most at 4 pixels.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.sigmas = tuple(sigma for sigma in _SIGMAS if sigma <= min(shape) / 4)
        self._sums = torch.zeros(len(self.sigmas) + 1, dtype=torch.float64)

    def update(self, x: Tensor, mask: Tensor) -> None:
        """Count a batch of originals (B, C, H, W), foreground (B, H, W)."""
        chosen = mask.flatten(1).any(1)
        if not chosen.any():
            return
        x, mask = x[chosen], mask[chosen]
        for i, sigma in enumerate(self.sigmas):
            self._sums[i] += foreground_scores(gaussian_blur(x, sigma), x, mask)["ssim_foreground"].sum().cpu()
        self._sums[-1] += len(x)

    def gather(self) -> None:
        """Replace the sums by those over all processes."""
        self._sums = distributed.all_reduce_sum(self._sums)

    def equal(self, ssim_foreground: float) -> float:
        """Return the sigma, in pixels, at which blurred originals have this score; at most the grid's largest."""
        scores = (self._sums[:-1] / self._sums[-1]).numpy()
        return float(np.interp(-ssim_foreground, -scores, self.sigmas))


class Sharpness:
    """All figures of this module for a set of images, counted over batches.

    Args:
        shape: (H, W) of the images, each >= 11.
        background: as of :func:`background_value`; None takes the whole frame for foreground, and windows spectra.
        blur: the scale for ``blur_px``; None leaves it out.
        groups: as of `Bands`.
    """

    def __init__(
        self, shape: Sequence[int], background: float | None, blur: BlurScale | None = None, groups: int = 1
    ) -> None:
        self.background, self.blur = background, blur
        self.bands = Bands(shape, windowed=background is None, groups=groups)
        self._sums = torch.zeros(3, dtype=torch.float64)  # SSIM, PSNR, images with a foreground

    def update(
        self, y: Tensor, x: Tensor, mask: Tensor | None = None, groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Count a batch.

        Args:
            y: (B, C, H, W) in [-1, 1].
            x: the originals, like y.
            mask: (B, H, W) bool, the originals' :func:`foreground`, where it is known already.
            groups: (B,) as of :meth:`Bands.update`.

        Returns:
            :func:`foreground_scores` of the batch.
        """
        scores = foreground_scores(y, x, foreground(x, self.background) if mask is None else mask)
        self.bands.update(y, x, groups)
        ssim, psnr = (scores[name].cpu() for name in ("ssim_foreground", "psnr_foreground_db"))
        measured = ssim.isfinite()
        # An exact image has an infinite PSNR, which has no place in a mean.
        self._sums += torch.stack([ssim[measured].sum(), psnr[measured].clamp_max(120).sum(), measured.sum().double()])
        return scores

    def gather(self) -> None:
        """Replace the counts by those over all processes."""
        self._sums = distributed.all_reduce_sum(self._sums)
        self.bands.gather()

    def figures(self) -> dict[str, float]:
        """Return ``ssim_foreground``, ``psnr_foreground_db`` (means over images), :meth:`Bands.figures`, ``blur_px``.

        Foreground figures are left out where no image has a foreground.
        """
        ssim, psnr, count = self._sums.tolist()
        if not count:
            return self.bands.figures()
        found = {"ssim_foreground": ssim / count, "psnr_foreground_db": psnr / count, **self.bands.figures()}
        return found if self.blur is None else {**found, "blur_px": self.blur.equal(ssim / count)}
