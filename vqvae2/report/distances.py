"""Distances between sets of images, in features of one network or another."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from vqvae2.data import ImageSet
from vqvae2.errors import UserError
from vqvae2.metrics import check_features, features, frechet_distance, gaussian_blur, kernel_distance, neighbourhoods
from vqvae2.report.describe import spread_out
from vqvae2.report.samples import SampleSet, decode
from vqvae2.vqvae import VQVAE

Features = Callable[[Tensor], Tensor]
"""From images (N, C, H, W) in [-1, 1] to features (N, d)."""


def encoder_features(model: VQVAE, like: Tensor) -> Features:
    """Return a function: images -> what the model's own encoder makes of them, averaged over each level's map.

    It needs no weights but the run's own. It was trained to find what it can reconstruct, so it is blind to what no
    code holds: read it beside the features of a network that has never seen the model.

    Args:
        model: in evaluation mode.
        like: (N, C, H, W) images, N > 1, by whose features each feature is brought to mean 0 and deviation 1.
    """
    device = model.device

    def raw(images: Tensor) -> Tensor:
        with torch.inference_mode():
            parts = [model.features(part.to(device)) for part in images.split(32)]
            return torch.cat([torch.cat([level.mean((2, 3)) for level in part], 1).cpu() for part in parts])

    known = raw(like)
    mean, deviation = known.mean(0), known.std(0)
    scale = torch.where(deviation > 1e-3 * deviation.max(), 1 / deviation, 0)  # what hardly varies says nothing
    return lambda images: (raw(images) - mean) * scale


def feature_spaces(model: VQVAE, like: Tensor, missing: list[str] | None = None) -> dict[str, Features]:
    """Return the features in which sets can be compared here, by name.

    Args:
        model: in evaluation mode.
        like: as of `encoder_features`.
        missing: takes a line on what is not there.
    """
    spaces = {"encoder": encoder_features(model, like)}
    try:
        check_features()
        spaces["MobileNetV2"] = features
    except UserError as error:
        if missing is not None:
            missing.append(f"distances in MobileNetV2's features, which tell best whether images look real: {error}")
    return spaces


def training_features(train: ImageSet, features_of: Features) -> Tensor:
    """Return the features (N, d) of training images, at most 4,096 evenly spread ones, for `feature_neighbours`."""
    rows = spread_out(len(train), 4096)
    return torch.cat([features_of(train.at(rows[i : i + 256])) for i in range(0, len(rows), 256)])


def frechet_of_all(samples: SampleSet, real: ImageSet, features_of: Features) -> dict[str, float]:
    """Measure the Fréchet distance of all samples to all scored images, decoded and read a part at a time.

    In Inception's features this is the FID. It falls with the number of images, and papers take 50,000.

    Args:
        samples: N of them, N > 1.
        real: M images, M > 1.
        features_of: images -> features.

    Returns:
        ``frechet_of_all``, ``samples_of_all``, N, and ``real_of_all``, M.
    """
    made, parts = [], real.in_parts(256)
    for start in range(0, len(samples), 256):
        codes = [level[start : start + 256] for level in samples.codes]
        made.append(features_of(decode(samples.decoder, codes)))
    distance = frechet_distance(torch.cat([features_of(part) for part in parts]), torch.cat(made))
    return {"frechet_of_all": distance, "samples_of_all": len(samples), "real_of_all": len(real)}


def feature_neighbours(train: Tensor, real: Tensor, decoded: Tensor, samples: Tensor) -> dict[str, float | int]:
    """Compare how near samples and held-out images are to their nearest training images, in features.

    Pixels tell of copies, features also of images that show the same thing at another place or in another light.

    Args:
        train: (T, d) features of training images (`training_features`).
        real: (N, d), of held-out images.
        decoded: (N, d), of the same from their own codes, by the decoder that made the samples.
        samples: (M, d).

    Returns:
        ``count``, ``real_count``, ``train_count``, and of the Euclidean distances to the nearest training image the
        ``median`` of samples, of ``real`` and of ``decoded`` ones, and ``closer_share``: of the samples, those that are
        nearer than 99% of the decoded held-out images.
    """
    near, real_near, decoded_near = (
        torch.cdist(own.double(), train.double()).amin(1) for own in (samples, real, decoded)
    )
    return {
        "count": len(samples),
        "real_count": len(real),
        "train_count": len(train),
        "median": float(near.median()),
        "real_median": float(real_near.median()),
        "decoded_median": float(decoded_near.median()),
        "closer_share": float((near < decoded_near.quantile(0.01)).double().mean()),
    }


def set_distances(
    real: Tensor, others: Mapping[str, Tensor], spaces: Mapping[str, Features]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure how far sets of images are from real ones, beside blurred real ones.

    Args:
        real: (N, C, H, W) in [-1, 1], N > 1.
        others: name -> (M, C, H, W), M > 1. Those called ``reconstructions`` and ``painted`` are of the real ones, in
            their order.
        spaces: name -> function that turns images (N, C, H, W) in [-1, 1] into features (N, d).

    Returns:
        By space, and in it by the name of the set and ``blurred_0.5`` and ``blurred_1.0`` (the real ones blurred by so
        many pixels): ``kid``, its ``standard_error``, ``count`` and ``real_count``. Of sets that were not made from the
        real images, with more than three images, also ``frechet`` and the figures of `metrics.Neighbourhoods`, over
        ``compared`` images of each, the size of the smallest set.
    """
    blurred = {f"blurred_{s}": gaussian_blur(real, s) for s in (0.5, 1.0)}
    made_of_real = {*blurred, "reconstructions", "painted"}
    sets = {**others, **blurred}
    size = min(map(len, [real, *(images for name, images in sets.items() if name not in made_of_real)]))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for space, features_of in spaces.items():
        beside = features_of(real)
        found[space] = {}
        for name, images in sets.items():
            own = features_of(images)
            value, error = kernel_distance(own, beside, paired=name in made_of_real)
            figures = {"kid": value, "standard_error": error, "count": len(own), "real_count": len(beside)}
            if name not in made_of_real and size > 3:
                real_rows, own_rows = (rows[spread_out(len(rows), size)] for rows in (beside, own))
                figures |= {"compared": size, "frechet": frechet_distance(real_rows, own_rows)}
                figures |= asdict(neighbourhoods(real_rows, own_rows))
            found[space][name] = figures
    return found
