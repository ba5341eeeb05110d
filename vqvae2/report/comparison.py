"""Two reports side by side."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vqvae2.report.describe import subject_interval
from vqvae2.report.verdict import nearest_features
from vqvae2.sampling import SETTINGS

__all__ = ["comparison", "paired_errors"]

Report = Mapping[str, Any]

_SCORES = {"ssim": "SSIM", "ssim_foreground": "SSIM, foreground", "psnr_foreground_db": "PSNR, foreground (dB)"}


def comparison(report: Report, other: Report, paired: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Put the figures of two runs beside each other.

    Args:
        report: the one that is written.
        other: that of another run.
        paired: as `paired_errors` returns it, where both scored the same images.

    Returns:
        ``run``, the other's name, ``rows`` of ``name``, ``here``, ``there``, ``error``, the standard error of their
        difference where it is known (None otherwise), and ``better``: "here" or "there" where they differ by more than
        two standard errors, and ""; and ``doubts``: why they cannot be compared without thought.
    """
    same = report.get("hashes", {}).get("vqvae_sha256") == other.get("hashes", {}).get("vqvae_sha256")
    # Features of both; of the encoder only where it is one network.
    both = set(report.get("distances", {})) & set(other.get("distances", {})) - (set() if same else {"encoder"})
    here, there = _figures(report, both), _figures(other, both)
    rows = []
    for name, (value, upwards, own_error) in here.items():
        if name not in there:
            continue
        against, _, other_error = there[name]
        if not (math.isfinite(value) and math.isfinite(against)):
            continue
        ahead = (value - against) * upwards
        error = None if None in (own_error, other_error) else math.hypot(own_error or 0, other_error or 0)
        error = (paired or {}).get(name, error)
        equal = math.isclose(value, against, rel_tol=1e-6)  # but for sums in another order
        if equal or error is None or abs(ahead) <= 2 * error:
            ahead = 0
        rows.append(
            {
                "name": name,
                "here": value,
                "there": against,
                "error": error,
                "better": "here" if ahead > 0 else "there" if ahead < 0 else "",
            }
        )
    return {"run": other["run"], "rows": rows, "doubts": _doubts(report, other)}


def paired_errors(scores: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Estimate the standard errors of the differences of two runs' means, by a bootstrap over the same subjects.

    Images that are hard for one model are hard for the other, so that differences are known better than means.

    Args:
        scores: of each image, ``file``, ``subject``, ``ssim``, ``ssim_foreground`` and ``psnr_foreground_db``.
        others: the same of the other run.

    Returns:
        By the figures' names in `comparison`; empty where other images were scored, or of fewer than five subjects.
    """
    there = {row["file"]: row for row in others}
    if there.keys() != {row["file"] for row in scores}:
        return {}
    subjects = [row["subject"] for row in scores]
    found = {}
    for column, name in _SCORES.items():
        if all(column in row for row in (*scores, *others)):
            difference = np.array([float(row[column]) - float(there[row["file"]][column]) for row in scores])
            error = _half(subject_interval(difference, subjects))
            if error is not None:
                found[name] = error
    return found


def _half(interval: Sequence[float] | None) -> float | None:
    """The standard error that a 95% interval stands for."""
    return None if interval is None else (interval[1] - interval[0]) / (2 * 1.96)


def _doubts(report: Report, other: Report) -> list[str]:
    doubts = []
    ours, theirs = report["split"], other["split"]
    if any(ours[name] != theirs[name] for name in ("data", "images", "subjects", "name")):
        doubts.append(
            f"other images were scored: {ours['images']:,} of {ours['subjects']:,} subjects ({ours['name']} of "
            f"{ours['data']}) here, {theirs['images']:,} of {theirs['subjects']:,} ({theirs['name']} of "
            f"{theirs['data']}) there"
        )
    sizes = [(found["data"]["height"], found["data"]["width"], found["data"]["channels"]) for found in (report, other)]
    if report.get("decoder_trained_by") != other.get("decoder_trained_by"):
        which = "here" if report.get("decoder_trained_by") else "there"
        doubts.append(f"only {which} the decoder was trained by MobileNetV2's features, which flatter its KID in them")
    if sizes[0] != sizes[1]:
        words = [f"{h} x {w}, {c} channels" for h, w, c in sizes]
        doubts.append(f"images differ in size: {words[0]} here, {words[1]} there")
    counts = [found.get("samples", {}).get("count") for found in (report, other)]
    if None not in counts and counts[0] != counts[1]:
        doubts.append(f"{counts[0]:,} samples here, {counts[1]:,} there: precision, recall and coverage depend on it")
    drawn = [found.get("samples", {}) for found in (report, other)]
    names = ("label", "reject", *SETTINGS) if drawn[0].get("levels") == drawn[1].get("levels") else ("levels",)
    for name in names:  # settings are by level
        if all(name in found for found in drawn) and drawn[0][name] != drawn[1][name]:
            told = [_said(found[name]) for found in drawn]
            doubts.append(f"samples were drawn with another {name.replace('_', ' ')}: {told[0]} here, {told[1]} there")
    return doubts


def _said(setting: Any) -> str:
    """A setting of sampling in words: a label as ``sex=F`` or "any", values by level one after the other."""
    if isinstance(setting, Mapping):
        return ", ".join(f"{name}={value}" for name, value in setting.items()) or "any"
    return " / ".join(map(str, setting)) if isinstance(setting, list) else str(setting)


def _figures(report: Report, spaces: Collection[str]) -> dict[str, tuple[float, int, float | None]]:
    """Figures by name, whether more (1) or less (-1) is better, and standard errors as far as they are known;
    distances in one of these feature spaces."""
    found, sharpness = report["reconstruction"], report["reconstruction"]["sharpness"]
    errors = {words: _half(found[name].get("interval")) for name, words in _SCORES.items()}
    errors["bits per dimension under the priors"] = _bits_error(report)
    errors["coherence at 2 to 4 pixels"] = _half(found.get("sharpness_intervals", {}).get("coherence_2_4"))
    figures: dict[str, tuple[float | None, int]] = {
        "SSIM": (found["ssim"]["mean"], 1),
        "SSIM, foreground": (found["ssim_foreground"]["mean"], 1),
        "PSNR, foreground (dB)": (found["psnr_foreground_db"]["mean"], 1),
        "blur of equal score (pixels)": (sharpness.get("blur_px"), -1),
        "coherence at 2 to 4 pixels": (sharpness.get("coherence_2_4"), 1),
        "bits per dimension under the priors": (report.get("bits_per_dim", {}).get("prior"), -1),
    }
    for level, own in report["levels"].items():
        gain = f"{level}: gain over the position-wise unigram (nats)"
        figures[gain], errors[gain] = (own.get("gain"), 1), _half(own.get("nll_interval"))
    kept = {name: sets for name, sets in report.get("distances", {}).items() if name in spaces}
    space, sets = nearest_features({**report, "distances": kept})
    for name in ("reconstructions", "samples"):
        kid = f"KID of {name}, {space}"
        figures[kid], errors[kid] = (sets.get(name, {}).get("kid"), -1), sets.get(name, {}).get("standard_error")
    for name in ("precision", "recall", "coverage"):
        share, count = (sets.get("samples", {}).get(key) for key in (name, "compared"))
        figures[f"{name} of samples, {space}"] = (share, 1)
        errors[f"{name} of samples, {space}"] = _error(share, count)
    memory = report.get("samples", {}).get("memorisation", {})
    figures["samples that are copies"], count = (memory.get("copied"), -1), memory.get("count")
    if count and "copied" in memory:
        errors["samples that are copies"] = count * (_error(memory["copied"] / count, count) or 0)
    judged = report.get("recognition", {})
    known = judged.get("recognised", {})
    figures["samples recognised as their class"] = (known.get("accuracy"), 1)
    errors["samples recognised as their class"] = _error(known.get("accuracy"), known.get("count"))
    score = judged.get("score", {})
    figures["classification accuracy score"] = (score.get("accuracy"), 1)
    errors["classification accuracy score"] = _half(score.get("interval"))
    return {name: (float(value), way, errors.get(name)) for name, (value, way) in figures.items() if value is not None}


def _bits_error(report: Report) -> float | None:
    """The standard error of the bits per dimension, as if all levels were hard in the same images."""
    halves = [(_half(own.get("nll_interval")), math.prod(own["shape"])) for own in report["levels"].values()]
    if any(half is None for half, _ in halves):
        return None
    values = math.prod(report["data"][name] for name in ("height", "width", "channels"))
    return sum((half or 0) * cells for half, cells in halves) / values / math.log(2)


def _error(share: float | None, count: int | None) -> float | None:
    """The standard error of a share of so many images, as if they were independent."""
    return math.sqrt(share * (1 - share) / count) if share is not None and count else None
