"""Whether samples hold regions that were copied from training images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.data import ImageSet
from vqvae2.metrics import Regions, region_nearest
from vqvae2.report.describe import spread_out

__all__ = ["region_figures"]

_MOST = 256  # samples, and held-out images, that are searched
_SHOWN = 5
_KNOWN = 0.3  # share of held-out images that must have texture at a place
_UNLIKE = 0.02  # 1 - correlation there, in the median, below which everyone's images are too much alike


def region_figures(
    samples: Tensor,
    real: Tensor,
    reconstructed: Tensor,
    train: ImageSet,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any] | None:
    """Look for regions, a quarter of the image wide and high, that are in samples as they are in a training image.

    At each place 1 - correlation with the most similar training image is divided by its median over held-out images and
    their reconstructions; an image has the lowest such ratio of all places, its mirror image included. A region counts
    as copied where that is below the bound: as many times below the 1st percentile of held-out images, or of their
    reconstructions, as that is below their median.

    Args:
        samples: (N, C, H, W) in [-1, 1].
        real: (M, C, H, W) held-out images.
        reconstructed: (M, C, H, W) their reconstructions.
        train: the training images.
        progress: called with the number of training images compared since, twice their number in all.

    Returns:
        ``count`` and ``real_count`` (images searched), ``copied`` (samples with such a region), ``bound``, the lower
        1st percentile ``p1`` of the two, ``median`` of samples, ``real_median``, ``reconstructed_median``, and the
        ``nearest``, up to five: ``sample``, ``key`` of the training image, ``ratio``, ``correlation``, ``mirrored`` and
        the region's corner and size in pixels (``y``, ``x``, ``height``, ``width``). None for images too small for
        regions, and where no place has texture that differs from person to person.
    """
    if min(samples.shape[2:]) < 16:
        return None
    rows, beside = spread_out(len(samples), _MOST), spread_out(len(real), _MOST)
    sets = (samples[rows], real[beside], reconstructed[beside])
    together = torch.cat(sets)
    both = [region_nearest(images, train.images, progress=progress) for images in (together, together.flip(-1))]
    known = both[0].correlation[len(rows) :]
    typical = (1 - known).nanmedian(0).values.nan_to_num(0)
    usable = ((~known.isnan()).double().mean(0) > _KNOWN) & (typical > _UNLIKE)
    if not usable.any():
        return None
    ratios, places = zip(*(_lowest(found, typical, usable) for found in both), strict=True)
    mirrored = ratios[1] < ratios[0]
    ratio = np.where(mirrored, ratios[1], ratios[0])
    own, others, again = np.split(ratio, np.cumsum([len(part) for part in sets])[:-1])
    low = min(float(np.percentile(part, 1)) for part in (others, again))
    bound = low**2 / float(np.median(np.concatenate([others, again])))
    found: dict[str, Any] = {
        "count": len(own),
        "real_count": len(others),
        "copied": int((own < bound).sum()),
        "bound": bound,
        "p1": low,
        "median": float(np.median(own)),
        "real_median": float(np.median(others)),
        "reconstructed_median": float(np.median(again)),
        "nearest": [],
    }
    for i in np.argsort(own)[:_SHOWN].tolist():
        regions, place = both[int(mirrored[i])], int(places[int(mirrored[i])][i])
        (y, x), width = regions.places[place], regions.size[1]
        found["nearest"].append(
            {
                "sample": rows[i],
                "key": train.keys[int(regions.index[i, place])],
                "ratio": float(own[i]),
                "correlation": float(regions.correlation[i, place]),
                "mirrored": bool(mirrored[i]),
                "y": y,
                "x": samples.shape[3] - x - width if mirrored[i] else x,
                "height": regions.size[0],
                "width": width,
            }
        )
    return found


def _lowest(found: Regions, typical: Tensor, usable: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The lowest ratio of each image, (N,), 1 where it has no texture at all, and its place."""
    ratio = ((1 - found.correlation) / typical).masked_fill(~usable, torch.inf).nan_to_num(torch.inf, posinf=torch.inf)
    lowest, place = ratio.double().min(1)
    return torch.where(lowest.isfinite(), lowest, 1.0).numpy(), place.numpy()
