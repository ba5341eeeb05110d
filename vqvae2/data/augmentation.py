"""Random changes of images within stated ranges, so that a hundred patients look like more.

Every draw depends on (seed, epoch, row) alone: never on the process that loads, nor on what was loaded before.

Shapes: B images, C channels, H x W pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.data.dataset import ImageSet
from vqvae2.errors import UserError


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges from which each training image's changes are drawn evenly; raises UserError for one out of range."""

    augment_shift: float = 0.0
    """Largest shift along each side, as a share of the side, in [0, 0.5]; whole pixels, one at least, so nothing is
    blurred."""
    augment_rotate: float = 0.0
    """Largest rotation to either side, in degrees, in [0, 180]."""
    augment_scale: float = 0.0
    """Largest change of size, as a share, in [0, 0.5]: 0.1 draws from 1 / 1.1 to 1.1."""
    augment_flip: float = 0.0
    """Probability of mirroring an image left to right, in [0, 1]; use 0 where left and right differ."""
    augment_light: float = 0.0
    """Largest change of contrast, as a share, and half of it of the gamma curve, in [0, 0.9]."""

    def __post_init__(self) -> None:
        highest = {"augment_shift": 0.5, "augment_rotate": 180, "augment_scale": 0.5, "augment_flip": 1}
        for field in fields(AugmentationConfig):
            value, most = getattr(self, field.name), highest.get(field.name, 0.9)
            if not 0 <= value <= most:
                flag = field.name.replace("_", "-")
                raise UserError(f"--{flag} {value} is out of range", how=f"Give 0 to {most}")

    @property
    def changes(self) -> set[str]:
        """Names of the ranges that are open; empty where images stay as they are."""
        return {field.name for field in fields(AugmentationConfig) if getattr(self, field.name)}


def augment(images: Tensor, config: AugmentationConfig, seed: int, epoch: int, rows: Sequence[int]) -> Tensor:
    """Change images at random.

    Args:
        images: (B, C, H, W) in [-1, 1]; -1 is the background, which moves in from outside.
        config: the ranges.
        seed: of the draws.
        epoch: the draws of an image differ between epochs.
        rows: B numbers of the images.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    if not config.changes or not len(rows):
        return images
    draws = np.stack([np.random.default_rng([seed, epoch, row]).random(7) for row in rows])
    unit = torch.from_numpy(draws).to(images.device)
    angle, size, contrast, gamma = (2 * unit[:, 2:6] - 1).T
    if config.changes == {"augment_flip"}:  # no pixel needs to be interpolated
        return torch.where((unit[:, 6] < config.augment_flip)[:, None, None, None], images.flip(-1), images)
    mirror = torch.where(unit[:, 6] < config.augment_flip, -1.0, 1.0).double()
    zoom = torch.exp(-size * math.log1p(config.augment_scale))  # of the sampling grid: less than 1 enlarges
    turn = angle * math.radians(config.augment_rotate)
    height, width = images.shape[2:]
    ratio = height / width  # a rotation is one of pixels, not of the unit square
    cosine, sine = turn.cos() * zoom, turn.sin() * zoom
    shifts = []
    for side, draw in ((width, unit[:, 0]), (height, unit[:, 1])):
        most = max(1, round(config.augment_shift * side)) if config.augment_shift else 0
        shifts.append(2 * (((2 * most + 1) * draw).floor() - most) / side)
    shift_x, shift_y = shifts
    matrix = torch.stack(
        [
            torch.stack([cosine * mirror, -sine * ratio, shift_x], 1),
            torch.stack([sine / ratio * mirror, cosine, shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix.to(images.dtype), list(images.shape), align_corners=False)
    # Zeros come in from outside: background is made zero meanwhile.
    light = F.grid_sample((images + 1) / 2, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    light = light.clamp(0, 1)
    curve = torch.exp(gamma * config.augment_light / 2).to(light.dtype)[:, None, None, None]
    factor = (1 + contrast * config.augment_light).to(light.dtype)[:, None, None, None]
    return (light.pow(curve) * factor).clamp(0, 1) * 2 - 1


class AugmentedSet:
    """A split whose images come changed, differently in every epoch.

    Args:
        images: the split.
        config: the ranges.
        seed: of the draws.
    """

    def __init__(self, images: ImageSet, config: AugmentationConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __len__(self) -> int:
        return len(self.images)

    def at_epoch(self, rows: Sequence[int], epoch: int) -> dict[str, Tensor]:
        """Return a batch as `ImageSet.__getitems__` does, its images changed as they are in this epoch."""
        batch = self.images.__getitems__(rows)
        return {**batch, "image": augment(batch["image"], self.config, self.seed, epoch, rows)}
