"""Where an image differs from what the models expect there, given the rest of it.

Blocks of an image are redrawn, a quarter of them at a time, given the codes of all the others. Brightness, contrast and
fine texture around each pixel are then compared with those of the draws. A probability alone tells less: a patch
without texture is *more* probable than tissue, and is found by comparing textures.

Shapes: N images, D draws of each, C channels, H x W pixels, A label attributes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqvae2.inference import complete
from vqvae2.metrics import gaussian_blur
from vqvae2.prior import Prior
from vqvae2.vqvae import VQVAE

__all__ = ["FEATURES", "anomaly_map", "block_size", "features", "redraw_blocks"]

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
    """Redraw each block of images given the blocks around it.

    Blocks are redrawn in four turns; in each those of every second row and column. Neighbours keep their codes.

    Args:
        model: the VQ-VAE.
        priors: of all its levels, top first.
        images: (N, C, H, W) in [-1, 1].
        draws: D.
        label: (N, A) int64, -1 missing; None: all missing.
        seed: >= 0.
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
                first=(turn * len(images) + start) * draws,
                progress=progress,
            )
            pixels = model.decode(drawn.codes).view(-1, draws, *images.shape[1:])
            made[part] = torch.where(hole, pixels, made[part])
    return made


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


def anomaly_map(images: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Compare images with draws of their blocks.

    Args:
        images: (N, C, H, W) in [-1, 1].
        drawn: (N, D, C, H, W), D >= 2.

    Returns:
        ``(score, parts)``: (N, H, W), >= 0, and for each of `FEATURES` (N, 3, H, W), in standard deviations of the
        draws. The score is the root of the parts' sum of squares, smoothed by 1.5 pixels.
    """
    own = features(images)
    others = features(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])  # (N, D, 3, H, W)
    variance = others.var(1)
    # Few draws: half of the variance is that of the whole image.
    scale = (variance / 2 + variance.mean((2, 3), keepdim=True) / 2).sqrt().clamp_min(1e-6)
    parts = (own - others.mean(1)) / scale
    score = gaussian_blur(parts.square().sum(1, keepdim=True).sqrt(), _SMOOTH)[:, 0]
    return score, parts
