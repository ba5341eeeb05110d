"""Plain measures of heads: how large, how symmetric, how much of them dark, grey and bright.

They need no atlas and no weights, only images of heads, or of other objects, before a background.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts are loaded where they are first used: all of them take a second
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.metrics import foreground
from vqvae2.report.describe import subject_interval

MEASURES = {
    "area": "area, share of the frame",
    "symmetry": "left-right symmetry, correlation",
    "dark": "dark share",
    "grey": "middle share",
    "bright": "bright share",
}
"""What is measured, and what it is called."""
_BINS = 256


def anatomy_figures(
    samples: Tensor,
    real: Tensor,
    train: Tensor,
    background: float | None,
    subjects: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]] | None:
    """Compare what samples of heads measure with held-out images.

    ``area``: share of the frame that is foreground. ``symmetry``: correlation of the foreground with its mirror image
    about the vertical through its centroid. ``dark``, ``grey`` and ``bright``: shares of the foreground, its rim left
    out, of three classes of brightness, divided where two of three Gaussians fitted to the training images are equally
    likely: in T1 slices fluid, grey matter and white matter, roughly.

    Args:
        samples: (N, 1, H, W) in [-1, 1].
        real: (M, 1, H, W) held-out images.
        train: (L, 1, H, W) some training images.
        background: of the training images, see `metrics.background_value`.
        subjects: names of the images' subjects, of ``real`` and ``train``; where they are missing, each image is one.

    Returns:
        By measure: ``samples``, ``real`` and ``train`` (means), their 95% ``intervals`` by a bootstrap over subjects
        (None for fewer than five), ``distance`` of the samples from the held-out images and ``train_distance`` of the
        training images (Wasserstein's, in standard deviations of the held-out images).
        None for colour, for images without a background, and where nothing stands before it.
    """
    if background is None or samples.shape[1] != 1:
        return None
    bounds = class_bounds(train, background)
    if bounds is None:
        return None
    measured = {
        name: measure(images, background, bounds)
        for name, images in (("samples", samples), ("real", real), ("train", train))
    }
    each_its_own = {kind: list(map(str, range(len(values["area"])))) for kind, values in measured.items()}
    whose = each_its_own | dict(subjects or {})
    found: dict[str, dict[str, Any]] = {}
    for name in MEASURES:
        sides = {kind: values[name][np.isfinite(values[name])] for kind, values in measured.items()}
        if min(map(len, sides.values())) < 2 or not sides["real"].std():
            continue
        unit = float(sides["real"].std())
        found[name] = {
            **{kind: float(values.mean()) for kind, values in sides.items()},
            "intervals": {kind: subject_interval(values[name], whose[kind]) for kind, values in measured.items()},
            "distance": float(scipy.stats.wasserstein_distance(sides["samples"], sides["real"])) / unit,
            "train_distance": float(scipy.stats.wasserstein_distance(sides["train"], sides["real"])) / unit,
        }
    return found or None


def measure(images: Tensor, background: float, bounds: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
    """Measure each image.

    Args:
        images: (N, 1, H, W) in [-1, 1].
        background: of the training images.
        bounds: between dark and grey, and grey and bright, as of `class_bounds`.

    Returns:
        By name of `MEASURES` (N,), NaN where there is no foreground.
    """
    masks = foreground(images, background).numpy()
    rows: list[list[float]] = []
    for picture, mask in zip(images[:, 0].double().numpy(), masks, strict=True):
        inside = picture[_interior(mask)]
        if not len(inside):
            rows.append([np.nan] * len(MEASURES))
            continue
        dark, bright = float((inside < bounds[0]).mean()), float((inside >= bounds[1]).mean())
        rows.append([float(mask.mean()), _symmetry(picture, mask), dark, 1 - dark - bright, bright])
    columns = np.array(rows, np.float64).reshape(len(rows), len(MEASURES)).T
    return dict(zip(MEASURES, columns, strict=True))


def _interior(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out the rim, a fifth of the way to the middle: skin and skull in heads."""
    depth = scipy.ndimage.distance_transform_edt(mask)
    return depth > 0.2 * depth.max() if mask.any() else mask


def _symmetry(picture: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Correlate the foreground with its mirror image about the column of its centroid."""
    columns = np.nonzero(mask)[1]
    turned = 2 * columns.mean() - np.arange(picture.shape[1])
    places = (
        np.broadcast_to(np.arange(picture.shape[0])[:, None], picture.shape),
        np.broadcast_to(turned, picture.shape),
    )
    mirrored = scipy.ndimage.map_coordinates(picture, places, order=1, mode="nearest")
    own, other = picture[mask], mirrored[mask]
    if not own.std() or not other.std():
        return 1.0
    return float(np.corrcoef(own, other)[0, 1])


def class_bounds(images: Tensor, background: float, classes: int = 3, rounds: int = 200) -> tuple[float, float] | None:
    """Fit Gaussians to the brightness inside the foreground's rim; return where neighbours are equally likely.

    Args:
        images: (N, 1, H, W) in [-1, 1].
        background: of them.
        classes: of brightness, 3.
        rounds: of expectation and maximisation.

    Returns:
        The two bounds; None where nothing stands before the background.
    """
    masks = [_interior(mask) for mask in foreground(images, background).numpy()]
    inside = images[:, 0].double().numpy()[np.array(masks).reshape(len(masks), *images.shape[2:])]
    if len(inside) < 10 * classes or not inside.std():
        return None
    counts, edges = np.histogram(inside, _BINS)
    places = (edges[1:] + edges[:-1]) / 2
    low, high = np.percentile(inside, [5, 95])
    means = np.linspace(low, high, classes)
    spreads, weights = np.full(classes, inside.std() / classes), np.full(classes, 1 / classes)
    least = (edges[1] - edges[0]) / 2
    for _ in range(rounds):
        density = weights * np.exp(-0.5 * ((places[:, None] - means) / spreads) ** 2) / spreads
        share = counts[:, None] * density / density.sum(1, keepdims=True).clip(1e-300)
        total = share.sum(0).clip(1e-9)
        weights, means = total / total.sum(), (share * places[:, None]).sum(0) / total
        spreads = np.sqrt((share * (places[:, None] - means) ** 2).sum(0) / total).clip(least)
    order = np.argsort(means)
    fine = np.linspace(means.min(), means.max(), 2001)
    likely = (weights * np.exp(-0.5 * ((fine[:, None] - means) / spreads) ** 2) / spreads)[:, order].argmax(1)
    low, high = (fine[np.argmax(likely >= step)] for step in (1, 2))
    return (float(low), float(high)) if low < high else None
