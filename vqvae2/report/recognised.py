"""Whether images are recognised as their class better than by chance, and whether a classifier knows how sure it is.

Shapes: N images, K classes.
"""

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.report.describe import resampled_interval, subject_interval

__all__ = ["BINS", "accuracies", "calibration_figures"]

BINS = 10
"""Of the expected calibration error, of equal width."""


def accuracies(judged: Tensor, truth: Tensor, subjects: list[str]) -> dict[str, Any]:
    """Measure how often the most probable class is the true one.

    Args:
        judged: (N, K) probabilities.
        truth: (N,) int64, the true class, or of samples the one that was asked for; -1 missing.
        subjects: N names.

    Returns:
        ``accuracy`` with its 95% ``interval`` over subjects, ``count``, ``by_class`` (NaN for a class without images);
        ``chance``, the accuracy to be expected if the true classes were shuffled among the images, and
        ``over_chance``, the interval of the accuracy minus it; ``probability``, the mean that the true class is given;
        and ``calibration``: the mean probability of the most probable class minus the accuracy, 0 if it knows how sure
        it may be.
    """
    rows = (truth >= 0).nonzero()[:, 0]
    judged, truth, people = judged[rows].double(), truth[rows], [subjects[i] for i in rows.tolist()]
    classes = judged.shape[1]
    named = judged.argmax(1)
    right = (named == truth).double()
    # How many images there are, are right, have each class, and are named each class.
    columns = np.column_stack(
        [np.ones(len(rows)), right.numpy(), F.one_hot(truth, classes).numpy(), F.one_hot(named, classes).numpy()]
    )

    def by_chance(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        given, found = np.split(sums[:, 2:], 2, axis=1)
        with np.errstate(invalid="ignore"):  # no image has a label
            return np.asarray((given * found).sum(1) / sums[:, 0] ** 2)

    return {
        "accuracy": float(right.mean()),
        "interval": subject_interval(right.numpy(), people),
        "count": len(rows),
        "by_class": [float(right[truth == k].mean()) for k in range(classes)],
        "chance": float(by_chance(columns.sum(0, keepdims=True))[0]),
        "over_chance": resampled_interval(columns, people, lambda sums: sums[:, 1] / sums[:, 0] - by_chance(sums)),
        "probability": float(judged.gather(1, truth[:, None]).mean()),
        "calibration": float(judged.amax(1).mean() - right.mean()),
    }


def calibration_figures(judged: Tensor, truth: Tensor, frequencies: Tensor) -> dict[str, Any]:
    """Measure whether the most probable class is the true one as often as its probability says.

    Args:
        judged: (N, K) probabilities.
        truth: (N,) int64, -1 missing.
        frequencies: (K,) shares of the classes among the training images.

    Returns:
        ``error``, the expected calibration error over `BINS` bins of the highest probability (Guo et al. 2017, arXiv
        1706.04599, equation 3); ``expected``, about what it is for probabilities that are exactly right, because an
        accuracy over few images is never exact; ``naive``, what it is where the frequencies stand in place of the
        probabilities; and ``bins``, those that are not empty: ``low``, ``high``, ``count``, mean ``probability``,
        ``accuracy``.
    """
    rows = truth >= 0
    judged, truth, frequencies = judged[rows].double(), truth[rows], frequencies.double()
    error, noise, bins = _reliability(judged, truth)
    naive, *_ = _reliability(frequencies.expand(len(truth), -1), truth)
    return {"error": error, "expected": noise, "naive": naive, "bins": bins}


def _reliability(judged: Tensor, truth: Tensor) -> tuple[float, float, list[dict[str, Any]]]:
    """The expected calibration error, what chance alone makes of it, and the bins."""
    sure, right = judged.amax(1), (judged.argmax(1) == truth).double()
    place = ((sure * BINS).ceil().long() - 1).clamp_max(BINS - 1)  # a bin holds its upper end
    error = noise = 0.0 if len(truth) else math.nan
    bins = []
    for k in place.unique().tolist():
        own = place == k
        count, probability, accuracy = int(own.sum()), float(sure[own].mean()), float(right[own].mean())
        error += count / len(truth) * abs(accuracy - probability)
        # The mean of the absolute value of a normal variable, with the variance of the number that are right.
        noise += math.sqrt(2 / math.pi * float((sure[own] * (1 - sure[own])).sum())) / len(truth)
        bins.append(
            {"low": k / BINS, "high": (k + 1) / BINS, "count": count, "probability": probability, "accuracy": accuracy}
        )
    return error, noise, bins
