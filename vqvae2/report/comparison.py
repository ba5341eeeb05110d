"""Two reports side by side."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from vqvae2.report.verdict import nearest_features

__all__ = ["comparison"]

Report = Mapping[str, Any]


def comparison(report: Report, other: Report) -> dict[str, Any]:
    """Put the figures of two runs beside each other.

    Args:
        report: the one that is written.
        other: that of another run.

    Returns:
        ``run``, the other's name, ``rows`` of ``name``, ``here``, ``there`` and ``better`` ("here", "there" or ""), and
        ``doubts``: why they cannot be compared without thought.
    """
    same = report.get("hashes", {}).get("vqvae_sha256") == other.get("hashes", {}).get("vqvae_sha256")
    # Features of both; of the encoder only where it is one network.
    both = set(report.get("distances", {})) & set(other.get("distances", {})) - (set() if same else {"encoder"})
    here, there = _figures(report, both), _figures(other, both)
    rows = []
    for name, (value, upwards) in here.items():
        if name not in there:
            continue
        against = there[name][0]
        if not (math.isfinite(value) and math.isfinite(against)):
            continue
        ahead = (value - against) * upwards
        rows.append(
            {
                "name": name,
                "here": value,
                "there": against,
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
    return doubts


def _figures(report: Report, spaces: Collection[str]) -> dict[str, tuple[float, int]]:
    """Figures by name, and whether more (1) or less (-1) is better; distances in one of these feature spaces."""
    found, sharpness = report["reconstruction"], report["reconstruction"]["sharpness"]
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
    for name in ("precision", "recall", "coverage"):
        figures[f"{name} of samples, {space}"] = (sets.get("samples", {}).get(name), 1)
    memory = report.get("samples", {}).get("memorisation", {})
    figures["samples that are copies"] = (memory.get("copied"), -1)
    judged = report.get("recognition", {})
    figures["samples recognised as their class"] = (judged.get("recognised", {}).get("accuracy"), 1)
    figures["classification accuracy score"] = (judged.get("score", {}).get("accuracy"), 1)
    return {name: (float(value), way) for name, (value, way) in figures.items() if value is not None}
