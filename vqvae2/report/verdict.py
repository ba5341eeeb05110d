"""The verdict of a report, from its figures alone."""

import math
from collections.abc import Mapping
from typing import Any

import scipy  # scipy.stats is loaded where it is first used: it takes a second

from vqvae2.report.captions import space_words

__all__ = ["EXCESS", "be", "excess_likeness", "more_than_chance", "nearest_features", "verdict"]

Report = Mapping[str, Any]

_SHARP, _SOFT = 0.75, 1.5
"""Blur of equal score, in pixels, up to which reconstructions are good, and weak."""
_ENOUGH = 30
"""Images of each set from which on coverage and neighbours are judged."""
_APART = 0.9
"""Accuracy of the nearest neighbour above which samples are told from held-out images."""
_LEAST_SHARE = 0.75
"""Share of the training images' coverage and recall below which kinds of images are missing from samples."""
EXCESS = 0.1
"""Mean SSIM of two samples minus that of two real images' reconstructions, beyond which the two kinds differ."""


def verdict(report: Report) -> list[dict[str, str]]:
    """Answer three questions about a run: does it reconstruct, do samples look like held-out data, are they copies.

    Returns:
        For each ``question`` its ``band`` (good, weak, fail or not measured) and the ``reason``: the figure, the most
        naive method's beside it, and the threshold that it passed or failed.
    """
    questions = {
        "Does it reconstruct?": _reconstructs(report),
        "Do samples look like held-out images?": _looks_real(report),
        "Are samples new?": _is_new(report),
    }
    return [{"question": name, "band": band, "reason": reason} for name, (band, reason) in questions.items()]


def nearest_features(report: Report) -> tuple[str, Mapping[str, Any]]:
    """Return the features in which sets were compared best, and the figures by set; empty if none were.

    A pretrained network's come first, and of these one by which the decoder was not trained.
    """
    found, known = report.get("distances", {}), report.get("decoder_trained_by", [])
    foreign = sorted(found.keys() - {"encoder"}, key=lambda name: (name in known, name != "MobileNetV2", name))
    space = next((name for name in (*foreign, "encoder") if name in found), "")
    return space, found.get(space, {})


def _reconstructs(report: Report) -> tuple[str, str]:
    found = report["reconstruction"]
    naive = found.get("mean_image", {}).get("ssim", {}).get("mean", -math.inf)
    collapsed = [level for level, figures in report["levels"].items() if figures["collapsed"]]
    interval = found["ssim"].get("interval")
    beside = [f"95% interval {interval[0]:.3f} to {interval[1]:.3f}"] if interval else []
    beside += [f"mean training image {naive:.3f}"] if naive > -1 else []
    told = f"SSIM {found['ssim']['mean']:.3f}" + (f" ({'; '.join(beside)})" if beside else "")
    if found["ssim"]["mean"] <= naive:
        return "fail", f"{told}: no better than one picture for all."
    if collapsed:
        return "fail", f"The codebook of level {collapsed[0]} has collapsed. {told}."
    blur = found["sharpness"].get("blur_px")
    if blur is None:
        return "not measured", f"{told}; no image has a foreground, in which sharpness is measured."
    sight = f"{told}; foreground as soft as after a Gaussian blur of {blur:.2f} pixels"
    for band, most in (("good", _SHARP), ("weak", _SOFT)):
        if blur <= most:
            return band, f"{sight} ({band} is up to {most})."
    return "fail", f"{sight} (more than {_SOFT} is visibly soft)."


def _looks_real(report: Report) -> tuple[str, str]:
    samples = report.get("samples")
    space, sets = nearest_features(report)
    if not samples or "samples" not in sets:
        return "not measured", "Samples were not compared with held-out images."
    if samples["label"]:
        return "not measured", "Samples of a chosen class differ from the scored images by their nature."
    found, low, high = sets["samples"], sets["blurred_0.5"]["kid"], sets["blurred_1.0"]["kid"]
    kid, error = found["kid"], found["standard_error"]
    known = error is not None and math.isfinite(error)  # not of fewer than 20 images
    told = f"KID {kid:.3f}{f' (standard error {error:.3f})' if known else ''} in {space_words(space)}; "
    told += f"held-out images blurred by 0.5 pixels have {low:.3f}, by 1 pixel {high:.3f}"
    if "training_images" in sets:
        told += f", training images {sets['training_images']['kid']:.3f}"
    if space in report.get("decoder_trained_by", []):
        told += " (the decoder was trained by these features, which flatter it)"
    most = kid + 2 * error if known else kid
    band, worse = ("good" if value <= low else "weak" if value <= high else "fail" for value in (kid, most))
    if worse != band:
        told += f". It could be {most:.3f} (two standard errors more), which is {worse}"
    # What made the samples of codes, the VQ-VAE or its detail decoder, beside what drew the codes.
    ways = {"painted": ("Painted from their own codes, held-out images have", "detail decoder")}
    ways |= {"reconstructions": ("Reconstructions have", "VQ-VAE")}
    if band != "good" and (way := next((name for name in ways if name in sets), None)):
        (words, decoder), own = ways[way], sets[way]["kid"]
        told += f". {words} {own:.3f}: most is lost by the {'priors' if kid > 2 * own else decoder}"
    excess = excess_likeness(samples)
    if abs(excess) > EXCESS:
        diversity = samples["diversity"]
        pairs = f"two samples have SSIM {diversity['pairwise_ssim']:.2f}, two reconstructions"
        kind = f"{'alike' if excess > 0 else 'unlike'}: {pairs} {diversity['reconstructed_pairwise_ssim']:.2f}"
        band, told = "fail", f"Samples are too {kind}. {told}"
    known_people = sets.get("training_images", {})
    if known_people and found.get("compared", 0) < _ENOUGH:
        given = found.get("compared", min(found["count"], found["real_count"]))
        told += f". Coverage and nearest neighbours need {_ENOUGH} images of each set, and were given {given}"
    elif known_people:
        apart, usual = found["two_sample"], known_people["two_sample"]
        if apart > max(_APART, usual):
            share = f"{apart:.0%} of them and of real ones have their nearest neighbour in their own set"
            band, told = "fail", f"Samples differ from held-out images: {share} (training images {usual:.0%}). {told}"
        elif band == "good" and any(found[name] < _LEAST_SHARE * known_people[name] for name in ("coverage", "recall")):
            missing = ", ".join(
                f"{name} {found[name]:.2f} (training images {known_people[name]:.2f})"
                for name in ("coverage", "recall")
            )
            band, told = "weak", f"Kinds of images are missing: {missing}. {told}"
    return band, f"{told}."


def excess_likeness(samples: Mapping[str, Any]) -> float:
    """Mean SSIM of two samples minus that of two real images' reconstructions; 0 where too few were compared."""
    found = samples.get("diversity")
    if not found or found["compared"] < 2:
        return 0.0
    return float(found["pairwise_ssim"] - found["reconstructed_pairwise_ssim"])


def _is_new(report: Report) -> tuple[str, str]:
    found = report.get("samples", {}).get("memorisation")
    if not found:
        return "not measured", "Samples were not compared with training images."
    copies = found["copied"]
    told = (
        f"{copies or 'None'} of {found['count']} samples {be(copies or 1)} a copy of a training image. Nearer to one "
        "than 99% of held-out people's images and reconstructions are (by chance 1%): "
        f"{found['closer_share_reconstructed']:.0%} by distance, {found['correlated_share']:.0%} by correlation over "
        "shifts, mirrored or not"
    )
    near = any(more_than_chance(found, name) for name in ("closer_share_reconstructed", "correlated_share"))
    if by_features := report["samples"].get("feature_neighbours"):
        told += f", {by_features['closer_share']:.0%} in {space_words(by_features['space'])}"
        near = near or more_than_chance(by_features, "closer_share")
    regions = report["samples"].get("regions")
    if regions:
        parts = regions["copied"]
        told += f". Copied regions: in {parts or 'none'} of {regions['count']}"
        near = near or bool(parts)
    return ("fail" if copies else "weak" if near else "good"), f"{told}."


def more_than_chance(found: Mapping[str, Any], name: str) -> bool:
    """Tell whether more samples than by chance lie beyond the nearest 1% of held-out images.

    That bound is measured on few images, so that twice as many are granted, or more where there are very few.
    """
    share = min(1.0, max(0.02, 3 / (found["real_count"] + 1)))
    more: bool = found[name] * found["count"] > scipy.stats.binom.ppf(0.999, found["count"], share)
    return more


def be(count: int) -> str:
    """The form of the verb."""
    return "is" if count == 1 else "are"
