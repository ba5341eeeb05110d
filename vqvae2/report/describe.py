"""Figures that stand for many: evenly spaced rows, distributions, and intervals of means."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def spread_out(length: int, count: int) -> list[int]:
    """Choose up to ``count`` of ``length`` indices, evenly spaced from the first to the last.

    Example:
        >>> spread_out(9, 3), spread_out(2, 5)
        ([0, 4, 8], [0, 1])
    """
    return sorted({round(float(i)) for i in np.linspace(0, length - 1, min(count, length))})


def spread(values: NDArray[Any], subjects: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe a distribution: mean, std, p5, median, p95, min and max of the finite values.

    With the ``subjects`` of the values there is the ``interval`` of the mean besides, see `subject_interval`.

    An infinite PSNR (an image reproduced exactly) has no place in a mean; ``infinite`` says how many there are. NaN
    stands for what could not be measured, and is left out.
    """
    if subjects is not None:
        interval = subject_interval(values, subjects)
        return {**spread(values), "interval": interval}
    values = values[~np.isnan(values)]
    finite = values[np.isfinite(values)]
    names = ("mean", "std", "p5", "median", "p95", "min", "max")
    if not len(finite):
        return {**dict.fromkeys(names, math.nan), "infinite": len(values)}
    low, middle, high = np.percentile(finite, [5, 50, 95])
    figures = (finite.mean(), finite.std(), low, middle, high, finite.min(), finite.max())
    described = dict(zip(names, map(float, figures), strict=True))
    return described if len(finite) == len(values) else {**described, "infinite": len(values) - len(finite)}


def subject_interval(values: NDArray[Any], subjects: Sequence[str]) -> list[float] | None:
    """Estimate the 95% interval of a mean over images of several subjects, as `resampled_interval` does.

    Args:
        values: (N,); values that are not finite are left out.
        subjects: N names.
    """
    kept = np.isfinite(values)
    columns = np.stack([values[kept], np.ones(kept.sum())], 1)
    return resampled_interval(columns, np.asarray(subjects)[kept], lambda sums: sums[:, 0] / sums[:, 1])


def resampled_interval(
    columns: NDArray[Any],
    subjects: Sequence[str] | NDArray[Any],
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    draws: int = 2000,
) -> list[float] | None:
    """Estimate the 95% interval of a figure of sums over images of several subjects, by a bootstrap over subjects.

    Args and Returns as of `resampled_intervals`, for one figure.
    """
    found = resampled_intervals(columns, subjects, lambda sums: figure(sums)[:, None], draws)
    return None if found is None else found[0]


def resampled_intervals(
    columns: NDArray[Any],
    subjects: Sequence[str] | NDArray[Any],
    figures: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    draws: int = 2000,
) -> list[list[float]] | None:
    """Estimate the 95% intervals of F figures of sums over images of several subjects, by a bootstrap over subjects.

    Images of one person are alike, so that many images of few people say less than their number promises: subjects are
    drawn with replacement, each with all of its images.

    Args:
        columns: (N, C) what is summed over the images.
        subjects: N names.
        figures: the figures of sums: (draws, C) -> (draws, F); NaN where a draw has none.
        draws: of the bootstrap, always the same ones.

    Returns:
        ``[low, high]`` of each; None for fewer than five subjects, of whom it would promise too much.
    """
    names, row = np.unique(np.asarray(subjects), return_inverse=True)
    if len(names) < 5:
        return None
    sums = np.stack([np.bincount(row, column) for column in columns.T], 1)
    generator, even, drawn = np.random.default_rng(0), np.full(len(names), 1 / len(names)), []
    at_once = max(1, 10_000_000 // len(names))  # 80 MB of numbers
    for start in range(0, draws, at_once):
        counts = generator.multinomial(len(names), even, size=min(at_once, draws - start)).astype(np.float64)
        drawn.append(figures(counts @ sums))
    edges: list[list[float]] = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5], axis=0).T.tolist()
    return edges
