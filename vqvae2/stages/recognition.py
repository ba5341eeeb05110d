"""What a classifier says of a run: whether samples are recognised as their class, and what choosing them gains."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqvae2 import checkpoint, report
from vqvae2.classifier import BATCH_SIZE, Classifier, ClassifierConfig, probabilities, train_classifier
from vqvae2.data import ImageSet
from vqvae2.device import resolve_precision
from vqvae2.errors import UserError
from vqvae2.metrics import frechet_distance, neighbourhoods
from vqvae2.progress import Progress
from vqvae2.stages.common import RunFolder
from vqvae2.stages.evaluated import Evaluated
from vqvae2.vqvae import VQVAE

__all__ = ["check", "kept_share_figures", "recognition"]

STEPS = 200
_PASSES = 50  # over images that are few, at most
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the samples that are kept, in the curve of precision and recall."""
_LEAST = 20  # samples of each class, on average, on which a classifier is trained
_LEAST_COMPARED = 16


def recognition(
    run: RunFolder,
    model: VQVAE,
    evaluated: Evaluated,
    attribute: str,
    found_set: "report.SampleSet | None",
    seed: int,
) -> dict[str, Any]:
    """Let a classifier judge held-out images and samples; it is trained on the run's training images if there is none.

    Args:
        run: where the classifier lies, ``classifier-ATTRIBUTE``.
        model: the VQ-VAE.
        evaluated: the scored images, of the run's own data, with its training images.
        attribute: the label.
        found_set: samples of all classes; None: there are none.
        seed: of the trainings.

    Returns:
        ``attribute``, ``classes``, ``held_out`` (`report.accuracies` of the scored images), ``reliability`` (their
        `report.calibration_figures`), ``majority`` (the accuracy of naming the most common class of the training
        images), and of samples ``recognised`` (`report.accuracies`), ``score`` and ``real_score`` (held-out accuracies
        of classifiers trained on samples and on as many real images, with ``score_count``), and ``curve``: figures by
        share kept.

    Raises:
        UserError: as of `check`.
    """
    known, train = check(evaluated, attribute)
    column = list(known).index(attribute)
    config = ClassifierConfig(attribute, tuple(known[attribute]), model.config.channels)
    labels, truth = (torch.from_numpy(images.labels[:, column]) for images in (train, evaluated.images))
    device = model.device
    folder = run.path / ("classifier-" + re.sub(r"[^\w.-]", "_", attribute))
    trained_on = hashlib.sha256(json.dumps([train.keys, labels.tolist(), train.checksum]).encode()).hexdigest()
    earlier = checkpoint.load_config(folder) if checkpoint.has_model(folder) else {}
    wanted = {"channels": config.channels, "classes": list(config.classes), "trained_on": trained_on}
    there = all(earlier.get(name) == value for name, value in wanted.items())
    if there:
        classifier = Classifier.from_pretrained(folder, device)
    else:
        classifier = _trained(config, train.at, labels, seed, device, "training the classifier")
    judged = _judged(classifier, evaluated.images)
    held_out = report.accuracies(judged, truth, evaluated.images.subjects)
    if not there:
        classifier.save_pretrained(
            folder, {"steps": _steps(labels), "seed": seed, "trained_on": trained_on, "held_out": held_out}
        )
    counts = torch.bincount(labels[labels >= 0], minlength=len(config.classes))
    found: dict[str, Any] = {
        "attribute": attribute,
        "classes": list(config.classes),
        "held_out": held_out,
        "reliability": report.calibration_figures(judged, truth, counts / counts.sum()),
        "majority": float((truth[truth >= 0] == counts.argmax()).double().mean()),
    }
    if found_set is None or found_set.how["label"] or found_set.how.get("reject"):
        return found  # a class that was chosen, or samples that a classifier has chosen, would say too much
    own = torch.from_numpy(found_set.labels[:, column])
    images = found_set.images()
    judged = probabilities(classifier, lambda rows: images[rows], len(images))
    found["recognised"] = report.accuracies(judged, own, [str(i) for i in range(len(own))])
    found["curve"] = _curve(model, images, judged, own, evaluated.images)
    labelled = int((own >= 0).sum())
    real = (labels >= 0).nonzero()[:, 0]
    rows = real[report.spread_out(len(real), labelled)]
    fewer = own.clone()
    fewer[(own >= 0).nonzero()[len(rows) :, 0]] = -1  # as many samples as there are real images, at most
    several = min(len(some[some >= 0].unique()) for some in (fewer, labels[rows])) > 1
    if labelled >= _LEAST * len(config.classes) and several:
        of_samples = _trained(config, lambda rows: images[rows], fewer, seed, device, "training on samples")
        some = torch.full_like(labels, -1)
        some[rows] = labels[rows]
        of_real = _trained(config, train.at, some, seed, device, "training on as many real images")
        found["score_count"] = len(rows)
        for name, judge in (("score", of_samples), ("real_score", of_real)):
            found[name] = report.accuracies(_judged(judge, evaluated.images), truth, evaluated.images.subjects)
    return found


def check(evaluated: Evaluated, attribute: str) -> tuple[dict[str, Any], ImageSet]:
    """Return the labels of the data, and the training images.

    Raises:
        UserError: there is no such label, it has one class alone, or these images are not held out of the training.
    """
    known, train = evaluated.like["attributes"], evaluated.train
    if train is None or not (evaluated.own and evaluated.held_out):
        raise UserError(
            "a classifier is judged on the run's own held-out images", "--classifier", "Leave out --data and --split"
        )
    if attribute not in known:
        raise UserError(
            f"there is no label {attribute}", "--classifier", f"Labels are {', '.join(known) or 'none: give --labels'}"
        )
    if attribute in evaluated.like.get("numbers", ()):
        way_out = f"The report shows whether samples follow it; train with --bins {attribute}=... for classes"
        raise UserError(f"{attribute} is a number, and a classifier needs classes", "--classifier", way_out)
    labels = train.labels[:, list(known).index(attribute)]
    if len(set(labels[labels >= 0].tolist())) < 2:
        raise UserError(f"the training images have one class of {attribute} alone", "--classifier")
    return known, train


def kept_share_figures(
    samples: Tensor, real: Tensor, confidence: Tensor, classes: Tensor, shares: tuple[float, ...] = SHARES
) -> list[dict[str, float]]:
    """Measure precision, recall and Frechet distance where of each class only the surest samples are kept.

    Args:
        samples: (N, d) features.
        real: (M, d).
        confidence: (N,) by which samples are ordered.
        classes: (N,) int64.
        shares: kept of each class.

    Returns:
        For each share its figures, all over the same number ``compared`` of images of both sets; empty where that is
        under 16.
    """
    order = confidence.argsort(descending=True, stable=True)
    place = torch.zeros(len(order), dtype=torch.float64)
    for k in classes.unique():
        own = order[classes[order] == k]
        place[own] = torch.arange(len(own), dtype=torch.float64) / len(own)
    kept = {share: (place < share).nonzero()[:, 0] for share in shares}
    size = min([len(real), *map(len, kept.values())])
    if size < _LEAST_COMPARED:
        return []
    beside = real[report.spread_out(len(real), size)]
    found = []
    for share, rows in kept.items():
        some = samples[rows[report.spread_out(len(rows), size)]]
        near = neighbourhoods(beside, some)
        found.append(
            {
                "share": share,
                "precision": near.precision,
                "recall": near.recall,
                "frechet": frechet_distance(beside, some),
                "compared": size,
            }
        )
    return found


def _curve(
    model: VQVAE, images: Tensor, judged: Tensor, classes: Tensor, real: ImageSet
) -> dict[str, list[dict[str, float]]]:
    """The figures by share kept, in each of the features that there are."""
    known = classes >= 0
    own = torch.where(known, judged.gather(1, classes.clamp_min(0)[:, None])[:, 0], judged.amax(1))
    beside = real.at(report.spread_out(len(real), 1024))
    spaces = report.feature_spaces(model, beside)
    curves: Mapping[str, Any] = {
        name: kept_share_figures(features(images), features(beside), own, classes) for name, features in spaces.items()
    }
    return {name: curve for name, curve in curves.items() if curve}


def _trained(
    config: ClassifierConfig, images: Any, labels: Tensor, seed: int, device: torch.device, doing: str
) -> Classifier:
    steps = _steps(labels)
    with Progress(steps, doing, "steps") as progress:
        return train_classifier(
            config,
            images,
            labels,
            steps=steps,
            seed=seed,
            device=device,
            precision=resolve_precision("auto", device),
            progress=progress,
        )


def _steps(labels: Tensor) -> int:
    """Of the training on the images that have a label."""
    return min(STEPS, math.ceil(_PASSES * int((labels >= 0).sum()) / BATCH_SIZE))


def _judged(classifier: Classifier, images: ImageSet) -> Tensor:
    return probabilities(classifier, images.at, len(images))
