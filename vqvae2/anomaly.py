"""Where an image differs from what the models expect there, given the rest of it.

Blocks of an image are redrawn, a quarter of them at a time, given the codes of the others that come before them: those
of coarser levels and, at the same level, those that the prior draws first: further up, and to the left or, in a
mirrored prior, nearer to the borders. Brightness, contrast and fine texture around each pixel are compared with those
of the draws, and the probability of its codes with those of normal images. Neither does alone: a patch without texture
is *more* probable than tissue, and a texture of the right contrast but the wrong kind is found by its codes.

Restoration is the simpler way (Pinaya et al. 2021, arXiv 2102.11650): the codes that are less probable than most
codes of normal images are redrawn, and the image is compared with what they decode to.

Shapes: N images, D draws of each, C channels, H x W pixels, A label attributes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.inference import complete, restore
from vqvae2.metrics import gaussian_blur
from vqvae2.prior import Prior
from vqvae2.vqvae import VQVAE

__all__ = [
    "FEATURES",
    "Usual",
    "anomaly_map",
    "anomaly_parts",
    "block_size",
    "features",
    "improbable",
    "redraw_blocks",
    "residual_map",
    "restore_images",
]

FEATURES = ("brightness", "contrast", "texture")
"""What is compared at each pixel."""

_SMOOTH = 1.5  # pixels, of the map
_EVERY_MAP = 96  # made at once


def block_size(model: VQVAE) -> tuple[int, int]:
    """Return height and width of the blocks: an eighth of the image, in whole cells of the top, two of them at
    least."""
    config = model.config
    return tuple(
        pixels // cells * max(2, round(cells / 8))
        for pixels, cells in zip((config.height, config.width), config.shapes[0], strict=True)
    )


def redraw_blocks(
    model: VQVAE,
    priors: Sequence[Prior],
    images: Tensor,
    draws: int = 4,
    label: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Redraw each block of images given the rest of the image.

    Blocks are redrawn in four turns; in each those of every second row and column. Neighbours keep their codes. A drawn
    code depends on the codes of all coarser levels and on those before it in the prior's order, not on later ones of
    its own level (`inference.complete` with one particle).

    Args:
        model: the VQ-VAE.
        priors: of all its levels, top first.
        images: (N, C, H, W) in [-1, 1].
        draws: D.
        label: (N, A) int64, -1 missing; None: all missing.
        seed: >= 0; every image gets the same random numbers.
        progress: called with the number of codes made, after each row; 4 D N times an image's codes in all.

    Returns:
        (N, D, C, H, W), as decoded.
    """
    config, (tall, wide) = model.config, block_size(model)
    y = torch.arange(config.height, device=images.device)[:, None] // tall
    x = torch.arange(config.width, device=images.device)[None] // wide
    codes = model.encode(images)
    made = torch.empty(len(images), draws, *images.shape[1:], device=images.device)
    step = max(1, _EVERY_MAP // draws)
    for turn in range(4):
        hole = (y % 2 == turn // 2) & (x % 2 == turn % 2)
        cells = [hole[:: config.height // h, :: config.width // w] for h, w in config.shapes]
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            count = len(images[part]) * draws
            drawn = complete(
                priors,
                [level[part].repeat_interleave(draws, 0) for level in codes],
                [~level.expand(count, -1, -1) for level in cells],
                None if label is None else label[part].repeat_interleave(draws, 0),
                particles=1,
                seed=seed,
                # The same for every image, so that its draws do not depend on the images beside it.
                numbers=[turn * draws + draw for draw in range(draws)] * len(images[part]),
                progress=progress,
            )
            pixels = model.decode(drawn.codes).view(-1, draws, *images.shape[1:])
            made[part] = torch.where(hole, pixels, made[part])
    return made


def improbable(nll: Sequence[Tensor], masks: Tensor, share: float = 0.2) -> list[float]:
    """Return the negative log-probability above which a code counts as improbable.

    Args:
        nll: of normal images, by level (N, h, w) in nats.
        masks: (N, H, W) bool, their foreground; cells that hold some of it count.
        share: of these codes that lies above the threshold. With 0.2 lesions were found better than with 0.1 or less.

    Returns:
        The threshold of each level, in nats; infinity where there is no foreground.
    """
    found = []
    for level in nll:
        inside = F.adaptive_max_pool2d(masks[:, None].float(), level.shape[1:])[:, 0] > 0
        values = level[inside].cpu().numpy()
        found.append(float(np.quantile(values, 1 - share)) if len(values) else math.inf)
    return found


def restore_images(
    model: VQVAE,
    priors: Sequence[Prior],
    codes: Sequence[Tensor],
    threshold: Sequence[float],
    draws: int = 4,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Decode images with their improbable codes redrawn (`inference.restore`), labels taken as missing.

    Args:
        model: the VQ-VAE.
        priors: of all its levels, top first.
        codes: of the images, by level (N, h, w) integers.
        threshold: by level, as `improbable` returns them.
        draws: D.
        seed: >= 0; every image gets the same random numbers.
        progress: called with the number of codes made, after each row; D N times an image's codes in all.

    Returns:
        (N, D, C, H, W).
    """
    step, made = max(1, _EVERY_MAP // draws), []
    for start in range(0, len(codes[0]), step):
        some = [level[start : start + step].repeat_interleave(draws, 0) for level in codes]
        numbers = list(range(draws)) * (len(some[0]) // draws)
        drawn = restore(priors, some, threshold, seed=seed, numbers=numbers, progress=progress)
        made.append(model.decode(drawn).unflatten(0, (-1, draws)))
    return torch.cat(made)


def residual_map(images: Tensor, restored: Tensor) -> Tensor:
    """Compare images (N, C, H, W) with the mean of their restorations (N, D, C, H, W).

    Returns:
        (N, H, W) >= 0: the mean absolute difference over channels, smoothed by 1.5 pixels.
    """
    return gaussian_blur((images - restored.mean(1)).abs().mean(1, keepdim=True), _SMOOTH)[:, 0]


def features(images: Tensor) -> Tensor:
    """Describe the surroundings of each pixel.

    Args:
        images: (N, C, H, W) in [-1, 1].

    Returns:
        (N, 3, H, W), in the order of `FEATURES`: the mean in a Gaussian window of 2 pixels, the logarithm of the
        standard deviation in it, and that of the deviation from a blur of 1 pixel, in a window of 1.5. Means over
        channels.
    """
    grey = images.float().mean(1, keepdim=True)
    mean = gaussian_blur(grey, 2.0)
    spread = (gaussian_blur(grey.square(), 2.0) - mean.square()).clamp_min(0).sqrt()
    fine = gaussian_blur((grey - gaussian_blur(grey, 1.0)).square(), 1.5).sqrt()
    return torch.cat([mean, (spread + 0.03).log(), (fine + 0.02).log()], 1)


def anomaly_parts(images: Tensor, drawn: Tensor, nll: Sequence[Tensor]) -> Tensor:
    """Say at each pixel how an image differs from draws of its blocks, and how improbable its codes are.

    Args:
        images: (N, C, H, W) in [-1, 1].
        drawn: (N, D, C, H, W), D >= 2.
        nll: by level, (N, h, w) in nats, as `inference.surprise` returns them.

    Returns:
        (N, 3 + levels, H, W): the difference in each of `FEATURES`, in standard deviations of the draws, then the NLL
        of each level's codes, top first, smoothed by 3/8 of a cell, 1.5 pixels at least, a quarter of the shorter side
        at most.
    """
    own = features(images)
    others = features(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])  # (N, D, 3, H, W)
    variance = others.var(1)
    # Few draws: half of the variance is that of the whole image.
    scale = (variance / 2 + variance.mean((2, 3), keepdim=True) / 2).sqrt().clamp_min(1e-3)
    size = images.shape[2:]
    maps = []
    for level in nll:
        fine = F.interpolate(level.float()[:, None], size=size, mode="bilinear")
        maps.append(gaussian_blur(fine, min(max(_SMOOTH, 3 / 8 * size[0] / level.shape[1]), min(size) / 4)))
    return torch.cat([(own - others.mean(1)) / scale, *maps], 1)


@dataclass(frozen=True)
class Usual:
    """How the parts of normal images are spread.

    Attributes:
        mean: (3 + levels,), 0 for the features.
        std: (3 + levels,) > 0.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, parts: Tensor, masks: Tensor) -> "Usual":
        """Measure it.

        Args:
            parts: of normal images, as `anomaly_parts` returns them.
            masks: (N, H, W) bool, their foreground.
        """
        values = parts.movedim(1, -1)[masks]
        mean = torch.where(torch.arange(values.shape[1], device=values.device) < len(FEATURES), 0, values.mean(0))
        return cls(mean, (values - mean).square().mean(0).sqrt().clamp_min(1e-6))

    def deviations(self, parts: Tensor) -> Tensor:
        """Parts (N, 3 + levels, H, W) in units of their spread; codes that are more probable than usual count as 0."""
        found = (parts - self.mean[:, None, None]) / self.std[:, None, None]
        found[:, len(FEATURES) :].clamp_min_(0)
        return found


def anomaly_map(parts: Tensor, usual: Usual) -> Tensor:
    """Join the parts to a map.

    Args:
        parts: as `anomaly_parts` returns them.
        usual: of normal images.

    Returns:
        (N, H, W) >= 0: the root of the sum of squared deviations, smoothed by 1.5 pixels.
    """
    together = usual.deviations(parts).square().sum(1, keepdim=True).sqrt()
    return gaussian_blur(together, _SMOOTH)[:, 0]
