"""Random changes of images within stated ranges, so that a hundred patients look like more.

Every draw depends on (seed, epoch, row) alone: never on the process that loads, nor on what was loaded before.

Shapes: B images, C channels, H x W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.data.dataset import ImageSet, to_unit
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
    drawn = _draw_changes(config, tuple(images.shape[2:]), seed, epoch, rows)
    return _changed(images, {name: value.to(images.device) for name, value in drawn.items()})


def _draw_changes(
    config: AugmentationConfig, size: tuple[int, ...], seed: int, epoch: int, rows: Sequence[int]
) -> dict[str, Tensor]:
    """Draw the changes of images of a size (H, W).

    Returns:
        ``matrix`` (B, 2, 3) of the sampling grid, ``curve`` and ``factor`` (B,) of the light; ``mirror`` (B,) bool
        where no pixel needs to be interpolated; nothing where no range is open.
    """
    if not config.changes or not len(rows):
        return {}
    draws = np.stack([np.random.default_rng([seed, epoch, row]).random(7) for row in rows])
    unit = torch.from_numpy(draws)
    angle, zoomed, contrast, gamma = (2 * unit[:, 2:6] - 1).T
    mirrored = unit[:, 6] < config.augment_flip
    if config.changes == {"augment_flip"}:
        return {"mirror": mirrored}
    mirror = torch.where(mirrored, -1.0, 1.0).double()
    zoom = torch.exp(-zoomed * math.log1p(config.augment_scale))  # of the sampling grid: less than 1 enlarges
    turn = angle * math.radians(config.augment_rotate)
    height, width = size
    ratio = height / width  # a rotation is one of pixels, not of the unit square
    cosine, sine = turn.cos() * zoom, turn.sin() * zoom
    shifts = []
    for side, draw in ((width, unit[:, 0]), (height, unit[:, 1])):
        most = max(1, round(config.augment_shift * side)) if config.augment_shift else 0
        shifts.append(2 * (((2 * most + 1) * draw).floor() - most) / side)
    shift_x, shift_y = shifts
    across = torch.stack([cosine * mirror, -sine * ratio, shift_x], 1)
    down = torch.stack([sine / ratio * mirror, cosine, shift_y], 1)
    curve, factor = torch.exp(gamma * config.augment_light / 2), 1 + contrast * config.augment_light
    return {"matrix": torch.stack([across, down], 1).float(), "curve": curve.float(), "factor": factor.float()}


def _changed(images: Tensor, changes: Mapping[str, Tensor]) -> Tensor:
    """Make changes that were drawn, on the images' device."""
    if "mirror" in changes:
        return torch.where(changes["mirror"][:, None, None, None], images.flip(-1), images)
    if not changes:
        return images
    grid = F.affine_grid(changes["matrix"].to(images.dtype), list(images.shape), align_corners=False)
    # Zeros come in from outside: background is made zero meanwhile.
    light = F.grid_sample((images + 1) / 2, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    curve, factor = (changes[name].to(light.dtype)[:, None, None, None] for name in ("curve", "factor"))
    return (light.clamp(0, 1).pow(curve) * factor).clamp(0, 1) * 2 - 1


class AugmentedSet:
    """A split whose images come changed, differently in every epoch.

    Batches hold the stored integers and what is drawn for them, which is little to hand from a loading process to a
    device; `unit` makes images of them there.

    Args:
        images: the split.
        config: the ranges.
        seed: of the draws.
    """

    def __init__(self, images: ImageSet, config: AugmentationConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __len__(self) -> int:
        return len(self.images)

    def at_epoch(self, rows: Sequence[int], epoch: int) -> dict[str, Any]:
        """Return a batch for `unit`: `ImageSet.stored`, and ``changes``, drawn for these images in this epoch."""
        size = self.images.images.shape[2:]
        return {
            **self.images.stored(rows),
            "changes": _draw_changes(self.config, tuple(size), self.seed, epoch, rows),
        }

    def unit(self, batch: Mapping[str, Any], device: torch.device | None = None) -> Tensor:
        """Return the changed images of a batch, (B, C, H, W) in [-1, 1], made on a device; None: where the batch is."""
        on_mps = device is not None and device.type == "mps"  # which has no bicubic grid_sample
        here = torch.device("cpu") if on_mps else device
        stored = batch["image"].to(here)
        changes = {name: value.to(stored.device) for name, value in batch["changes"].items()}
        return _changed(to_unit(stored, self.images.value_range), changes).to(device)
