"""Whether samples show the numbers that they were asked for, such as an age."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vqvae2.report.describe import resampled_interval

__all__ = ["apparent", "number_figures"]

_FOLDS = 5
_PENALTIES = np.geomspace(1e-3, 1e3, 13)  # times the number of images


def number_figures(
    train: tuple[Tensor, NDArray[np.float64], list[str]],
    real: tuple[Tensor, NDArray[np.float64], list[str]],
    reconstructed: Tensor,
    samples: tuple[Tensor, NDArray[np.float64]],
) -> dict[str, Any] | None:
    """Compare the number that images show with the number that they have, or were asked for.

    What an image shows is told by a ridge regression on features of training images. It is drawn towards their mean,
    so that even the slope of real images is below 1. That of samples is compared with the slope of reconstructions,
    which lack what samples cannot have either.

    Args:
        train: features (L, d), numbers (L,), nan missing, and subjects, of training images.
        real: the same of M held-out images.
        reconstructed: features (M, d) of their reconstructions.
        samples: features (N, d) and the numbers asked for.

    Returns:
        Of ``real``, ``reconstructions``, ``samples`` and ``shuffled`` (samples under each other's numbers): ``slope``
        of the number shown over the number that was given, its 95% ``interval``, over subjects where there are any,
        ``correlation`` and ``count``; and ``ratio``, the slope of samples over that of reconstructions. None where
        fewer than 8 images of a side have different numbers.
    """
    every = (train, real, (reconstructed, *real[1:]), samples)
    sides = [_known(features.double().numpy(), *rest) for features, *rest in every]
    if any(len(numbers) < 8 or np.ptp(numbers) == 0 for _, numbers, _ in sides):
        return None
    (known, truth, subjects), others = sides[0], sides[1:]
    shown = apparent(known, truth, subjects, np.concatenate([features for features, _, _ in others]))
    parts = np.split(shown, np.cumsum([len(given) for _, given, _ in others])[:-1])
    names = ("real", "reconstructions", "samples")
    found: dict[str, Any] = {
        name: _slope(given, part, people) for name, part, (_, given, people) in zip(names, parts, others, strict=True)
    }
    _, asked, each = others[-1]
    found["shuffled"] = _slope(np.random.default_rng(0).permutation(asked), parts[-1], each)
    slope = found["reconstructions"]["slope"]
    return {**found, "ratio": found["samples"]["slope"] / slope if slope else float("nan")}


def apparent(
    known: NDArray[np.float64], numbers: NDArray[np.float64], subjects: list[str], features: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tell numbers from features, by ridge regression; its penalty is chosen by leaving out fifths of the subjects.

    Args:
        known: (L, d) features of training images.
        numbers: (L,) theirs.
        subjects: L names.
        features: (M, d).

    Returns:
        (M,).
    """
    names = sorted(set(subjects))
    place = {name: i % _FOLDS for i, name in enumerate(np.random.default_rng(0).permutation(names).tolist())}
    fold = np.array([place[name] for name in subjects])
    errors = np.zeros(len(_PENALTIES))
    for k in set(fold.tolist()) if len(names) > 1 else ():
        told = _ridge(known[fold != k], numbers[fold != k], known[fold == k])
        errors += np.square(told - numbers[fold == k]).sum(1)
    return _ridge(known, numbers, features)[int(errors.argmin())]


def _ridge(known: ArrayLike, numbers: ArrayLike, features: ArrayLike) -> NDArray[np.float64]:
    """Predictions for each penalty, (P, M)."""
    x, y = np.asarray(known), np.asarray(numbers)
    mean, middle = x.mean(0), y.mean()
    left, size, right = np.linalg.svd(x - mean, full_matrices=False)
    inside = left.T @ (y - middle)
    weights = (size / (size**2 + len(y) * _PENALTIES[:, None]) * inside) @ right
    return middle + weights @ (np.asarray(features) - mean).T


def _known(
    features: NDArray[np.float64], numbers: NDArray[np.float64], subjects: list[str] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """The rows whose number is known; without subjects each row is its own."""
    rows = np.flatnonzero(np.isfinite(numbers))
    names = [str(i) for i in rows] if subjects is None else [subjects[i] for i in rows]
    return features[rows], numbers[rows], names


def _slope(given: NDArray[np.float64], shown: NDArray[np.float64], subjects: list[str]) -> dict[str, Any]:
    """Slope of what is shown over what was given, with an interval by resampling subjects."""
    x, y = given - given.mean(), shown - shown.mean()
    columns = np.stack([np.ones_like(x), x, y, x**2, x * y], 1)

    def slope(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        n, x, y, xx, xy = sums.T
        spread = xx - x * x / n
        spread[spread <= 1e-9 * np.maximum(xx, 1e-30)] = np.nan  # a draw of one number has no slope
        return (xy - x * y / n) / spread

    return {
        "slope": float(slope(columns.sum(0, keepdims=True))[0]),
        "interval": resampled_interval(columns, subjects, slope),
        "correlation": float(np.corrcoef(given, shown)[0, 1]) if np.std(shown) else 0.0,
        "count": len(given),
    }
