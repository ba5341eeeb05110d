"""Distances between two sets of images, in features of them.

Shapes: N and M images, d features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def kernel_distance(x: Tensor, y: Tensor, groups: int = 10, paired: bool = False) -> tuple[float, float]:
    """Estimate the squared maximum mean discrepancy of two sets of features, without bias (KID).

    The kernel is (x . y / d + 1)^3. A set compared with another of the same distribution has 0 on average, whatever
    the sizes, and can be below.

    Args:
        x: (N, d) features, N > 1.
        y: (M, d), M > 1.
        groups: that the images are cut into for the standard error (jackknife: each group is left out once). They
            follow one another, so that images of one person are left out together.
        paired: row i of x was made from row i of y, as a reconstruction is: such pairs are left out, since they are
            nearer than two images are.

    Returns:
        The distance, and its standard error (about 1.4 times too large for sets of one distribution); NaN where there
        are fewer than two images for each group.

    Raises:
        ValueError: the features differ in length, or a set has fewer than two.

    Source: Binkowski et al., "Demystifying MMD GANs", 2018, section 4.
    """
    _check("kernel_distance", x, y, least=2)
    if paired and len(x) != len(y):
        raise ValueError(f"kernel_distance takes pairs of two sets of one size, got {len(x)} and {len(y)}")
    within, across, between = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    for kernel in (within, across):
        kernel.fill_diagonal_(0)  # an image beside itself is no pair
    if paired:
        between.fill_diagonal_(0)

    def estimate(rows: Tensor, columns: Tensor) -> float:
        n, m = int(rows.sum()), int(columns.sum())
        a, b = rows.double(), columns.double()
        pairs = a @ within @ a / (n * (n - 1)) + b @ across @ b / (m * (m - 1))
        return float(pairs - 2 * (a @ between @ b) / (n * m - (float(a @ b) if paired else 0)))

    group_x, group_y = (torch.arange(len(rows)) * groups // len(rows) for rows in (x, y))
    value = estimate(group_x >= 0, group_y >= 0)
    if min(len(x), len(y)) < 2 * groups:
        return value, math.nan
    left = torch.tensor([estimate(group_x != g, group_y != g) for g in range(groups)], dtype=torch.float64)
    return value, float((left.var(correction=0) * (groups - 1)).sqrt())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() @ y.double().T / x.shape[1] + 1) ** 3


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Compute the Frechet distance of two Gaussians with the means and covariances of two sets of features.

    In Inception's features it is known as FID. It is biased upwards in small sets, most where there are fewer images
    than features: compare it with that of two sets of real images of the same sizes.

    Args:
        x: (N, d) features, N > 1.
        y: (M, d), M > 1.

    Raises:
        ValueError: the features differ in length, or a set has fewer than two.

    Source: Heusel et al., "GANs trained by a two time-scale update rule", 2017 (arXiv 1706.08500), equation 6.
    """
    _check("frechet_distance", x, y, least=2)
    x, y = x.double(), y.double()
    # The trace of the root of a product of covariances A'A B'B is the sum of the singular values of A B'.
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    squares = a.pow(2).sum() + b.pow(2).sum() - 2 * root
    return float((x.mean(0) - y.mean(0)).pow(2).sum() + squares.clamp_min(0))


@dataclass(frozen=True)
class Neighbourhoods:
    """How far two sets of one size lie among each other, in [0, 1] but for density.

    Attributes:
        precision: share of the made images that lie within the reach of a real one (its k-th nearest real neighbour).
        recall: share of the real images that lie within the reach of a made one.
        density: real images in whose reach a made one lies, on average, over k; 1 is expected of equal sets.
        coverage: share of the real images that have a made one in their reach.
        two_sample: accuracy of the nearest neighbour, of both sets without the image itself, as a classifier of real
            and made: 0.5 where they cannot be told apart, 1 where they lie apart, below 0.5 where one copies the other.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    two_sample: float


def neighbourhoods(real: Tensor, made: Tensor, k: int = 3) -> Neighbourhoods:
    """Measure precision, recall, density, coverage and a nearest-neighbour two-sample test.

    Args:
        real: (N, d) features, N > k.
        made: (N, d).
        k: the reach of an image is the distance to its k-th nearest neighbour of its own set.

    Raises:
        ValueError: the sets differ in size or in features, or have no k-th neighbour.

    Source: Kynkaanniemi et al., "Improved precision and recall metric", 2019 (arXiv 1904.06991); Naeem et al.,
    "Reliable fidelity and diversity metrics", 2020 (arXiv 2002.09797); Lopez-Paz and Oquab, "Revisiting classifier
    two-sample tests", 2017 (arXiv 1610.06545).
    """
    _check("neighbourhoods", real, made, least=k + 1)
    if len(real) != len(made):
        raise ValueError(f"neighbourhoods takes sets of one size, got {len(real)} and {len(made)}")
    real, made = real.double(), made.double()
    exact = "donot_use_mm_for_euclid_dist"
    among_real, among_made, across = (
        torch.cdist(a, b, compute_mode=exact) for a, b in ((real, real), (made, made), (made, real))
    )
    among_real.fill_diagonal_(math.inf)
    among_made.fill_diagonal_(math.inf)
    reach_real, reach_made = (rows.kthvalue(k, dim=1).values for rows in (among_real, among_made))
    inside = across <= reach_real  # (made, real)
    right = [among_real.amin(1) < across.amin(0), among_made.amin(1) < across.amin(1)]
    return Neighbourhoods(
        precision=float(inside.any(1).double().mean()),
        recall=float((reach_made >= across.T).any(1).double().mean()),
        density=float(inside.double().sum(1).mean() / k),
        coverage=float(inside.any(0).double().mean()),
        two_sample=float(torch.cat(right).double().mean()),
    )


def _check(name: str, x: Tensor, y: Tensor, least: int) -> None:
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < least:
        raise ValueError(
            f"{name} takes (N, d) and (M, d), N and M >= {least}, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
