"""Two reports side by side."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from vqvae2.report.verdict import nearest_features
from vqvae2.sampling import SETTINGS

__all__ = ["comparison"]

Report = Mapping[str, Any]


def comparison(report: Report, other: Report) -> dict[str, Any]:
    """Put the figures of two runs beside each other.

    Args:
        report: the one that is written.
        other: that of another run.

    Returns:
        ``run``, the other's name, ``rows`` of ``name``, ``here``, ``there``, ``error``, the standard error of their
        difference where it is known (None otherwise), and ``better``: "here", "there", or "" where they are equal or
        differ by no more than two standard errors; and ``doubts``: why they cannot be compared without thought.
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
        if abs(ahead) <= 2 * (error or 0) or math.isclose(value, against, rel_tol=1e-6):  # sums in another order
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
    """Figures by name, whether more (1) or less (-1) is better, and standard errors of those that depend on which
    samples were drawn; distances in one of these feature spaces."""
    found, sharpness = report["reconstruction"], report["reconstruction"]["sharpness"]
    errors: dict[str, float | None] = {}
    figures: dict[str, tuple[float | None, int]] = {
        "SSIM": (found["ssim"]["mean"], 1),
        "SSIM, foreground": (found["ssim_foreground"]["mean"], 1),
        "PSNR, foreground (dB)": (found["psnr_foreground_db"]["mean"], 1),
        "blur of equal score (pixels)": (sharpness.get("blur_px"), -1),
        "coherence at 2 to 4 pixels": (sharpness.get("coherence_2_4"), 1),
        "bits per dimension under the priors": (report.get("bits_per_dim", {}).get("prior"), -1),
    }
    for level, own in report["levels"].items():
        figures[f"{level}: gain over the position-wise unigram (nats)"] = (own.get("gain"), 1)
    kept = {name: sets for name, sets in report.get("distances", {}).items() if name in spaces}
    space, sets = nearest_features({**report, "distances": kept})
    for name in ("reconstructions", "samples"):
        figures[f"KID of {name}, {space}"] = (sets.get(name, {}).get("kid"), -1)
    errors[f"KID of samples, {space}"] = sets.get("samples", {}).get("standard_error")
    for name in ("precision", "recall", "coverage"):
        share, count = (sets.get("samples", {}).get(key) for key in (name, "compared"))
        figures[f"{name} of samples, {space}"] = (share, 1)
        errors[f"{name} of samples, {space}"] = _error(share, count)
    memory = report.get("samples", {}).get("memorisation", {})
    figures["samples that are copies"] = (memory.get("copied"), -1)
    judged = report.get("recognition", {})
    known = judged.get("recognised", {})
    figures["samples recognised as their class"] = (known.get("accuracy"), 1)
    errors["samples recognised as their class"] = _error(known.get("accuracy"), known.get("count"))
    figures["classification accuracy score"] = (judged.get("score", {}).get("accuracy"), 1)
    return {name: (float(value), way, errors.get(name)) for name, (value, way) in figures.items() if value is not None}


def _error(share: float | None, count: int | None) -> float | None:
    """The standard error of a share of so many images, as if they were independent."""
    return math.sqrt(share * (1 - share) / count) if share is not None and count else None
