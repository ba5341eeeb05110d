"""How diverse samples are, whether they are copies of training images, and whether labels steer them.

Distances between images are root-mean-square differences on the [-1, 1] scale: the L2 distance divided by the root of
the number of values, so that they can be read beside a reconstruction error.
"""

import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import files
from vqvae2.data import ImageSet, from_unit
from vqvae2.data.phantom import ventricle_area
from vqvae2.detail import ImageDecoder
from vqvae2.metrics import Aligned, aligned_nearest, nearest, ssim
from vqvae2.report.describe import resampled_interval, spread_out
from vqvae2.vqvae import VQVAE

_ELEMENTS_AT_ONCE = 1 << 24  # pixels compared: 64 MiB in fp32
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class SampleSet:
    """Samples as sample.py keeps them.

    Attributes:
        folder: where they lie.
        codes: by level, top first, (N, h, w), the smallest signed integers that hold them.
        nll: (N, levels) nats per code.
        labels: (N, A) int64, those that the priors were given, -1 missing.
        how: samples.json.
        decoder: what makes images of the codes.
    """

    folder: Path
    codes: list[Tensor]
    nll: NDArray[np.float64]
    labels: NDArray[np.int64]
    how: dict[str, Any]
    decoder: ImageDecoder = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, most: int) -> "SampleSet":
        """Return so many of the samples at most, evenly spaced."""
        rows = spread_out(len(self), most)
        codes = [level[rows] for level in self.codes]
        return SampleSet(self.folder, codes, self.nll[rows], self.labels[rows], self.how, self.decoder)

    def images(self) -> Tensor:
        """Decode the samples: (N, C, H, W) in [-1, 1] on the CPU."""
        return decode(self.decoder, self.codes)

    def rows(self) -> list[bytes]:
        """Return each sample's codes of all drawn levels as bytes, equal for equal samples."""
        return code_rows([level.numpy() for level in self.codes])


@dataclass(frozen=True)
class Neighbours:
    """Distances to the nearest training image, of (N,) samples and (M,) held-out images.

    Attributes:
        index: (N,) of the nearest training image.
        distance: (N,) of the samples.
        mirrored_index, mirrored: (N,) of the mirrored samples.
        real_index, real: (M,) of the held-out images.
        reconstructed: (M,) of the held-out images' reconstructions, which lack detail as samples do.
        aligned: best correlation of the samples with a training image over shifts, mirrored or not.
        aligned_real, aligned_reconstructed: (M,) the same correlations of the held-out images and reconstructions.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    mirrored_index: NDArray[np.int64]
    mirrored: NDArray[np.float64]
    real_index: NDArray[np.int64]
    real: NDArray[np.float64]
    reconstructed: NDArray[np.float64]
    aligned: Aligned
    aligned_real: NDArray[np.float64]
    aligned_reconstructed: NDArray[np.float64]


def read_samples(folder: Path, decoders: Sequence[ImageDecoder], hashes: Mapping[str, Any]) -> SampleSet | None:
    """Read a folder of samples.

    Args:
        folder: written by sample.py.
        decoders: of the present run, each for levels of its own: the VQ-VAE, and perhaps a detail decoder.
        hashes: ``vqvae_sha256``, ``prior_sha256`` (by level) and perhaps ``detail_sha256`` of the present models.

    Returns:
        The samples; None where there are none, or where other models made them.

    Raises:
        UserError: the files are damaged.
    """
    if not (folder / "samples.json").is_file() or not (folder / "codes.npz").is_file():
        return None
    how = files.read_json(folder / "samples.json")
    errors = (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile)
    with files.told_as("the samples are damaged", folder, "Delete the folder and sample again", errors):
        drawn = how.get("levels") or list(decoders[0].levels)
        own = {**hashes, "prior_sha256": {level: hashes["prior_sha256"].get(level) for level in drawn}}
        painted = ["detail_sha256"] if "detail_sha256" in how else []
        if any(how.get(name) != own.get(name) for name in ["vqvae_sha256", "prior_sha256", *painted]):
            return None
        model = next(model for model in decoders if list(model.levels) == drawn)
        with np.load(folder / "codes.npz", allow_pickle=False) as arrays:
            stored = [arrays[level] for level in model.levels]
        nll = np.array([how["nll_nats_per_code"][level] for level in model.levels], np.float64).T
        labels = np.array(how["labels"], np.int64).reshape(len(nll), -1)
        codes = []
        for level, shape, k in zip(stored, model.config.shapes, model.config.num_embeddings, strict=True):
            if level.shape != (len(nll), *shape) or not 0 <= level.min() <= level.max() < k:
                raise ValueError(f"codes {level.shape} do not fit {len(nll)} samples of {shape} of {k}")
            codes.append(torch.from_numpy(level.astype(np.min_scalar_type(-k))))
    return SampleSet(folder, codes, nll, labels, how, model)


@torch.no_grad()
def decode(model: ImageDecoder, codes: Sequence[Tensor], chunk: int = 32) -> Tensor:
    """Decode many images' codes: by level, top first, (N, h, w) -> (N, C, H, W) in [-1, 1] on the CPU."""
    device = model.device
    starts = range(0, len(codes[0]), chunk)
    return torch.cat([model.decode([level[i : i + chunk].to(device).long() for level in codes]).cpu() for i in starts])


@torch.no_grad()
def pairwise_ssim(
    images: Tensor, subjects: Sequence[str] | None = None, chunk: int = 64
) -> tuple[float, list[float] | None]:
    """Average the SSIM over all pairs of images: near 1 where all are alike.

    Args:
        images: (N, C, H, W) in [-1, 1].
        subjects: N names; None: each image is a subject.
        chunk: pairs compared at once.

    Returns:
        The mean, NaN for fewer than two images, and its 95% interval by a bootstrap over subjects; None for fewer than
        five subjects.
    """
    first, second = torch.triu_indices(len(images), len(images), 1)
    if not len(first):
        return math.nan, None
    starts = range(0, len(first), chunk)
    parts = [ssim(images[first[i : i + chunk]], images[second[i : i + chunk]]).double() for i in starts]
    values = torch.cat(parts).numpy()
    names, whose = np.unique(np.arange(len(images)) if subjects is None else np.asarray(subjects), return_inverse=True)
    # Sums and numbers of the pairs of two subjects' images, in both orders.
    sums, numbers = np.zeros((2, len(names), len(names)))
    one, other = whose[first.numpy()], whose[second.numpy()]
    for a, b in ((one, other), (other, one)):
        np.add.at(sums, (a, b), values)
        np.add.at(numbers, (a, b), 1.0)

    together = len(names) / max(1, len(names) - 1)

    def mean(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of draws (D, subjects), which say how often each subject was drawn.

        Two subjects are drawn together a little less often than one alone: else pairs of one would count too much.
        """
        total, pairs = (
            drawn @ np.diag(matrix) + together * (drawn * (drawn @ (matrix - np.diag(np.diag(matrix))))).sum(1)
            for matrix in (sums, numbers)
        )
        return np.divide(total, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)

    return float(values.mean()), resampled_interval(np.eye(len(names)), names, mean)


def diversity_figures(
    samples: Tensor,
    real: Tensor,
    reconstructed: Tensor,
    subjects: Sequence[str] | None = None,
    limit: int = 64,
) -> dict[str, Any]:
    """Compare how alike samples are with how alike as many real images are.

    Args:
        samples: (N, C, H, W) in [-1, 1].
        real: (M, C, H, W) held-out images.
        reconstructed: (M, C, H, W) their reconstructions, which are smooth as samples are.
        subjects: M names; None: each held-out image is a subject.
        limit: images of each kind that are compared.

    Returns:
        Mean pairwise SSIM: ``pairwise_ssim``, ``real_pairwise_ssim``, ``reconstructed_pairwise_ssim``; the 95% interval
        of each, with ``_interval`` behind its name; and ``compared``, the number of images of each.
    """
    count = min(len(samples), len(real), limit)
    chosen = spread_out(len(real), count)
    whose = None if subjects is None else [subjects[i] for i in chosen]
    found: dict[str, Any] = {"compared": count}
    for name, images, people in (
        ("pairwise_ssim", samples[:count], None),
        ("real_pairwise_ssim", real[chosen], whose),
        ("reconstructed_pairwise_ssim", reconstructed[chosen], whose),
    ):
        found[name], found[f"{name}_interval"] = pairwise_ssim(images, people)
    return found


def nearest_training(
    queries: Tensor | Iterable[Tensor],
    train: ImageSet,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest training image of each query, rounded as images are stored.

    Args:
        queries: (N, C, H, W) in [-1, 1], or several such sets.
        train: of the same shape.
        device: that compares them.
        progress: called with the number of training images compared since.

    Returns:
        Index (N,) and root-mean-square difference (N,) on the [-1, 1] scale.
    """
    low, high = train.value_range
    unit = 2 / (high - low)
    sets = (queries,) if isinstance(queries, Tensor) else queries
    # Compared as stored, so that the training images need not become floats.
    stored = np.concatenate([from_unit(part, train.value_range) for images in sets for part in images.split(256)])
    dims = math.prod(stored.shape[1:])
    there = torch.from_numpy(stored).to(device)
    index, distance = nearest(there, train.images, max(8, _ELEMENTS_AT_ONCE // dims), progress)
    return index.numpy(), distance.double().numpy() * (unit / math.sqrt(dims))


@torch.no_grad()
def neighbours(
    samples: Tensor,
    real: Tensor,
    reconstructed: Tensor,
    train: ImageSet,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Neighbours:
    """Measure how near samples and held-out images (and their reconstructions) are to the training images.

    Several processes share the work; each must make the call, with the same arguments. ``progress`` is called with the
    number of training images compared since, twice their number in all.
    """
    counts = [len(samples), len(real), len(reconstructed)]
    mirrored_samples = (part.flip(-1) for part in samples.split(256))
    pixels = nearest_training((samples, real, reconstructed, *mirrored_samples), train, device, progress)
    index, real_index, _, mirrored_index = np.split(pixels[0], np.cumsum(counts))
    distance, of_real, of_reconstructed, mirrored = np.split(pixels[1], np.cumsum(counts))
    aligned = aligned_nearest(torch.cat([samples, real, reconstructed]), train.images, progress=progress)
    correlation = [part.double().numpy() for part in aligned.correlation.split(counts)]
    return Neighbours(
        index,
        distance,
        mirrored_index,
        mirrored,
        real_index,
        of_real,
        of_reconstructed,
        Aligned(*(one[: len(samples)] for one in (aligned.index, aligned.correlation, aligned.mirrored))),
        *correlation[1:],
    )


def memorisation_figures(
    found: Neighbours, samples: SampleSet, train: ImageSet, train_codes: Sequence[Any], model: VQVAE
) -> dict[str, Any]:
    """Say whether samples are copies of training images.

    A copy is a sample that lies no farther from a training image than that image's own reconstruction does (5%
    granted), and closer than the 1st percentile of held-out images: the VQ-VAE could not draw that image better. Or it
    correlates with one, after the best shift, so much that it is nearer to 1 than to what held-out images reach.

    Args:
        found: the distances.
        samples: N.
        train: the training images.
        train_codes: of the training images, by level, top first: arrays (M, h, w), or what gives slices of such.
        model: the VQ-VAE.

    Returns:
        Medians, ``ratio_of_medians`` (samples over held-out images) and ``ratio_of_medians_reconstructed`` (over
        their reconstructions), ``closer_share`` and ``closer_share_reconstructed`` of samples below the 1st percentile
        of each, ``copies``, ``mirrored_copies``, ``identical_codes``, ``copied`` (samples that are one of these), and
        the ``nearest`` images of every sample, by distance and by correlation. For correlations over shifts: medians of
        samples and held-out images, ``correlation_p99`` (the greater 99th percentile of held-out images and of their
        reconstructions), ``correlated_share`` of samples above it, and ``aligned_copies``, those above the middle
        between it and 1. ``subjects``: those whose images are most often the nearest, up to five, with the number of
        ``samples`` and of held-out images (``real``) whose nearest image is theirs; ``most_real``: the highest such
        number of a subject among held-out images.
    """
    low, low_reconstructed = (float(np.percentile(d, 1)) for d in (found.real, found.reconstructed))

    def copies(index: NDArray[np.int64], distance: NDArray[np.float64]) -> NDArray[np.bool_]:
        # The millionth is for rounding, where a reconstruction is exact.
        return (distance <= 1.05 * _own_error(model, train, index) + 1e-6) & (distance < low)

    copy = copies(found.index, found.distance)
    mirrored = copies(found.mirrored_index, found.mirrored) & ~copy
    drawn = samples.rows()
    known, wanted = set[bytes](), set(drawn)
    for start in range(0, len(train_codes[0]), _ROWS_AT_ONCE):
        known |= wanted.intersection(code_rows([level[start : start + _ROWS_AT_ONCE] for level in train_codes]))
    identical = np.array([row in known for row in drawn], bool)
    correlation = found.aligned.correlation.double().numpy()
    high = max(float(np.percentile(c, 99)) for c in (found.aligned_real, found.aligned_reconstructed))
    aligned = correlation > (1 + high) / 2
    median = {name: float(np.median(getattr(found, name))) for name in ("distance", "real", "reconstructed")}
    return {
        "count": len(found.index),
        "real_count": len(found.real),
        "distance_median": median["distance"],
        "real_distance_median": median["real"],
        "reconstructed_distance_median": median["reconstructed"],
        "ratio_of_medians": _ratio(median["distance"], median["real"]),
        "ratio_of_medians_reconstructed": _ratio(median["distance"], median["reconstructed"]),
        "real_distance_p1": low,
        "reconstructed_distance_p1": low_reconstructed,
        "closer_share": float((found.distance < low).mean()),
        "closer_share_reconstructed": float((found.distance < low_reconstructed).mean()),
        "correlation_median": float(np.median(correlation)),
        "real_correlation_median": float(np.median(found.aligned_real)),
        "correlation_p99": high,
        "correlated_share": float((correlation > high).mean()),
        "copies": int(copy.sum()),
        "mirrored_copies": int(mirrored.sum()),
        "identical_codes": int(identical.sum()),
        "aligned_copies": int(aligned.sum()),
        "copied": int((copy | mirrored | identical | aligned).sum()),
        **_subjects(found, train.subjects),
        "nearest": [
            {
                "sample": i,
                "key": train.keys[j],
                "distance": float(d),
                "correlated_key": train.keys[int(found.aligned.index[i])],
                "correlation": float(correlation[i]),
                "mirrored": bool(found.aligned.mirrored[i]),
            }
            for i, (j, d) in enumerate(zip(found.index, found.distance, strict=True))
        ],
    }


def _subjects(found: Neighbours, subjects: Sequence[str]) -> dict[str, Any]:
    """Count whose images are the nearest: five subjects at most that are so more than once."""
    samples, real = (Counter(subjects[j] for j in index) for index in (found.index, found.real_index))
    often = [(name, count) for name, count in samples.most_common(5) if count > 1]
    return {
        "subjects": [{"subject": name, "samples": count, "real": real[name]} for name, count in often],
        "most_real": max(real.values(), default=0),
    }


@torch.no_grad()
def _own_error(model: VQVAE, train: ImageSet, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Root-mean-square difference of training images (N,) from their own reconstructions."""
    device = model.device
    errors = []
    for start in range(0, len(index), 32):
        x = train.at(index[start : start + 32])
        y = model.decode(model.encode(x.to(device))).cpu()
        errors.append((y - x).square().mean((1, 2, 3)).sqrt().double())
    return torch.cat(errors).numpy()


def code_rows(codes: Sequence[NDArray[Any]]) -> list[bytes]:
    """Write each image's codes, by level (N, h, w), as bytes that are equal for equal codes of any integer type."""
    wide = [level.reshape(len(level), -1).astype("<i4") for level in codes]
    return [row.tobytes() for row in np.concatenate(wide, axis=1)]


@dataclass(frozen=True)
class Ventricles:
    """Measured ventricle areas, as shares of the brain's area, by the label that was asked for.

    Attributes:
        samples: class name, or ``any``, -> (N,), NaN where no head was found.
        true: class name -> (M,), of training images.
    """

    samples: dict[str, NDArray[np.float64]]
    true: dict[str, NDArray[np.float64]]


def ventricles(sets: Sequence[SampleSet], train: ImageSet, classes: Sequence[str]) -> Ventricles:
    """Measure the phantom's ventricles in samples by their label, and in up to 200 training images of each class.

    Samples that two folders hold alike are measured once.

    Args:
        sets: samples of the present models.
        train: the training images, their label in column 0.
        classes: names of the label's classes, in order.
    """
    asked: dict[str, list[NDArray[np.float64]]] = {}
    seen: set[tuple[int, bytes]] = set()
    for samples in sets:
        own = [(int(label), row) for label, row in zip(samples.labels[:, 0], samples.rows(), strict=True)]
        fresh = [i for i, row in enumerate(own) if row not in seen]
        seen.update(own)
        if not fresh:
            continue
        areas = ventricle_area(decode(samples.decoder, [level[fresh] for level in samples.codes])[:, :1])
        labels = samples.labels[fresh, 0]
        for label in np.unique(labels):
            name = classes[label] if label >= 0 else "any"
            asked.setdefault(name, []).append(areas[labels == label])
    true = {}
    for label, name in enumerate(classes):
        rows = np.flatnonzero(train.labels[:, 0] == label)
        if len(rows):
            chosen = rows[spread_out(len(rows), 200)]
            true[name] = ventricle_area(train.at(chosen)[:, :1])
    return Ventricles({name: np.concatenate(parts) for name, parts in asked.items()}, true)


def ventricle_figures(found: Ventricles, classes: Sequence[str]) -> dict[str, Any]:
    """Compare the ventricle areas that labels ask for with the true ones.

    Returns:
        By label: ``samples``, ``nan`` (no head found), ``mean``, ``std``, ``true_mean``, ``true_std``; and, where
        both classes were sampled, ``ventricle_difference`` (second class minus first), ``true_difference``,
        ``ventricle_difference_ratio`` and its standard error ``ventricle_difference_ratio_se``.
    """
    labels: dict[str, dict[str, float]] = {}
    for name in [name for name in (*classes, "any") if name in found.samples or name in found.true]:
        areas, true = (kind.get(name, np.zeros(0)) for kind in (found.samples, found.true))
        measured = areas[np.isfinite(areas)]
        labels[name] = {
            "samples": len(areas),
            "nan": len(areas) - len(measured),
            **dict(zip(("mean", "std"), _mean_std(measured), strict=True)),
            **dict(zip(("true_mean", "true_std"), _mean_std(true[np.isfinite(true)]), strict=True)),
        }
    figures: dict[str, Any] = {"labels": labels}
    first, second = (labels.get(name) for name in (classes[0], classes[1]))
    if first and second and first["samples"] and second["samples"]:
        difference = second["mean"] - first["mean"]
        true_difference = second["true_mean"] - first["true_mean"]
        variances = [side["std"] ** 2 / max(side["samples"] - side["nan"], 1) for side in (first, second)]
        figures["ventricle_difference"] = difference
        figures["true_difference"] = true_difference
        figures["ventricle_difference_ratio"] = _ratio(difference, true_difference)
        figures["ventricle_difference_ratio_se"] = _ratio(math.sqrt(sum(variances)), abs(true_difference))
    return figures


def _mean_std(values: NDArray[np.float64]) -> tuple[float, float]:
    return (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
