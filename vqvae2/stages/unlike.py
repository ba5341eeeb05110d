"""Whether images are unlike those that a run was trained on, by what their codes cost under its priors."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import report
from vqvae2.codes import CodeStore
from vqvae2.inference import surprise
from vqvae2.prior import Prior
from vqvae2.stages.common import RunFolder
from vqvae2.stages.sampled import exported

__all__ = ["Range", "nats_per_code", "range_of", "training_nats", "unlike"]

Range = tuple[float, float]
"""Lowest and highest nats per code of usual images."""
_COMPARED = 64  # training images


def nats_per_code(maps: Sequence[Tensor], known: Sequence[Tensor] | None = None) -> NDArray[np.float64]:
    """Average NLLs (N, h, w) by level over the codes of each level.

    Args:
        maps: by level.
        known: by level, (1, h, w) bool; the average is over those codes alone.

    Returns:
        (N, levels), NaN for a level without known codes.
    """
    kept = [torch.ones_like(nll[:1], dtype=torch.bool) for nll in maps] if known is None else known
    return np.stack([nll[:, level[0]].double().mean(1).cpu().numpy() for nll, level in zip(maps, kept, strict=True)], 1)


def range_of(nats: NDArray[np.float64]) -> list[Range]:
    """Return by level the range of usual images' nats per code (N, levels)."""
    return [(float(own.min()), float(own.max())) for own in nats.T]


def training_nats(run: RunFolder, priors: Sequence[Prior], known: Sequence[Tensor] | None = None) -> list[Range] | None:
    """Return by level the range of 64 training images; None for exported models, which have no codes.

    Args:
        run: with codes.
        priors: of all levels, top first.
        known: as of `nats_per_code`.
    """
    if exported(run):
        return None
    device, store = priors[0].device, CodeStore(run.codes)
    rows = store.indices("train")
    batch = store.__getitems__([rows[i] for i in report.spread_out(len(rows), _COMPARED)])
    found = surprise(priors, [level.to(device) for level in batch["codes"]], batch["label"].to(device))
    return range_of(nats_per_code([nll for nll, _ in found], known))


def unlike(nats: NDArray[np.float64], usual: Sequence[Range], levels: Sequence[str]) -> tuple[int, str]:
    """Count the images that lie above the usual range in some level, by more than a quarter of that range.

    Args:
        nats: (N, levels), as of `nats_per_code`.
        usual: by level.
        levels: their names.

    Returns:
        How many there are, and the level in which they stand out most, with its figures in words.
    """
    low, high = np.array(usual).T
    ahead = (nats - high) / np.maximum(high - low, 1e-6)
    above = np.nan_to_num(ahead, nan=-1.0) > 0.25
    place = int(np.nan_to_num(ahead, nan=-np.inf).max(0).argmax())
    words = f"up to {np.nanmax(nats[:, place]):.2f} nats a code of level {levels[place]}, usual are "
    return int(above.any(1).sum()), f"{words}{low[place]:.2f} to {high[place]:.2f}"
