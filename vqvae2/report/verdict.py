"""The verdict, the summary and the warnings of a report, in words, from its figures alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from scipy.stats import binom

from vqvae2.report.captions import SETS, space_words
from vqvae2.report.followed import label_warnings, labels_followed
from vqvae2.report.measures import upper_name

__all__ = ["nearest_features", "sample_summary", "summary", "verdict", "warnings"]

Report = Mapping[str, Any]

_SHARP, _SOFT = 0.75, 1.5
"""Blur of equal score, in pixels, up to which reconstructions are good, and weak."""
_ENOUGH = 30
"""Images of each set from which on coverage and neighbours are judged."""
_APART = 0.9
"""Accuracy of the nearest neighbour above which samples are told from held-out images."""
_LEAST_RELIANCE = 0.005
"""Rise of a prior's NLL, in nats, below which it makes no use of what was exchanged."""
_LEAST_SHARE = 0.75
"""Share of the training images' coverage and recall below which kinds of images are missing from samples."""
_EXCESS = 0.1
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
    told = f"SSIM {found['ssim']['mean']:.3f}" + (f" (mean training image {naive:.3f})" if naive > -1 else "")
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
    least = kid - 2 * error if known else kid
    band = "good" if least <= low else "weak" if least <= high else "fail"
    if band != "good" and "reconstructions" in sets:
        own = sets["reconstructions"]["kid"]
        told += f". Reconstructions have {own:.3f}: most is lost by {'the priors' if kid > 2 * own else 'the VQ-VAE'}"
    excess = _excess_likeness(samples)
    if abs(excess) > _EXCESS:
        diversity = samples["diversity"]
        pairs = f"two samples have SSIM {diversity['pairwise_ssim']:.2f}, two reconstructions"
        kind = f"{'alike' if excess > 0 else 'unlike'}: {pairs} {diversity['reconstructed_pairwise_ssim']:.2f}"
        band, told = "fail", f"Samples are too {kind}. {told}"
    known_people = sets.get("training_images", {})
    if found.get("compared", 0) >= _ENOUGH and known_people:
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


def _excess_likeness(samples: Mapping[str, Any]) -> float:
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
        f"{copies or 'None'} of {found['count']} samples {_be(copies or 1)} a copy of a training image. Nearer to one "
        "than 99 % of held-out people's images and reconstructions are (by chance 1 %): "
        f"{found['closer_share_reconstructed']:.0%} by distance, {found['correlated_share']:.0%} by correlation over "
        "shifts, mirrored or not"
    )
    near = any(_more_than_chance(found, name) for name in ("closer_share_reconstructed", "correlated_share"))
    regions = report["samples"].get("regions")
    if regions:
        parts = regions["copied"]
        told += f". Copied regions: in {parts or 'none'} of {regions['count']}"
        near = near or bool(parts)
    return ("fail" if copies else "weak" if near else "good"), f"{told}."


def _more_than_chance(found: Mapping[str, Any], name: str) -> bool:
    """Tell whether more samples than by chance lie beyond the nearest 1 % of held-out images.

    That bound is measured on few images, so that twice as many are granted, or more where there are very few.
    """
    share = min(1.0, max(0.02, 3 / (found["real_count"] + 1)))
    more: bool = found[name] * found["count"] > binom.ppf(0.999, found["count"], share)
    return more


def summary(report: Report) -> list[str]:
    """Return a sentence for each part measured: reconstruction, codebooks, priors, diversity, memorisation, labels."""
    return [
        *_quality(report),
        *_other_data(report),
        *_levels(report),
        *_priors(report),
        *sample_summary(report),
    ]


def sample_summary(report: Report) -> list[str]:
    """Return the sentences of the summary on samples: diversity, memorisation, labels."""
    return [*_diversity(report), *_privacy(report), *labels_followed(report)]


def warnings(report: Report) -> list[str]:
    """Return a sentence for each problem; empty if there is none.

    Checked: whether the split is held out, images unlike the training images, collapsed or useless levels, priors no
    better than a table of counts, overfitting, samples that are too alike, too unlike or copies, and labels without
    effect.
    """
    return [
        *_split_warnings(report),
        *_unlike_warnings(report),
        *_level_warnings(report),
        *_prior_warnings(report),
        *_sample_warnings(report),
        *label_warnings(report),
    ]


def _quality(report: Report) -> Iterator[str]:
    found = report["reconstruction"]
    naive = found.get("mean_image")
    text = (
        f"Reconstruction: SSIM {found['ssim']['mean']:.3f}, PSNR {found['psnr_db']['mean']:.1f} dB over "
        f"{found['count']:,} images of {found['subjects']:,} subjects"
    )
    if naive:
        text += f"; the mean training image alone: {naive['ssim']['mean']:.3f} and {naive['psnr_db']['mean']:.1f} dB"
    yield text + "."
    inside, detail = found["ssim_foreground"], found["sharpness"]
    if math.isfinite(inside["mean"]):
        text = (
            f"Sharpness: in the foreground ({found['foreground_share']:.0%} of the pixels) SSIM {inside['mean']:.3f}, "
            f"PSNR {found['psnr_foreground_db']['mean']:.1f} dB, as after a Gaussian blur of "
            f"{detail['blur_px']:.2f} pixels"
        )
        if naive:
            text += f"; the mean training image alone: SSIM {naive['ssim_foreground']['mean']:.3f}"
        if "power_2_4" in detail:
            text += (
                f"; detail of 2 to 4 pixels has {detail['power_2_4']:.2f} of the originals' power, at a coherence of "
                f"{detail['coherence_2_4']:.2f}"
            )
        yield text + "."
    space, found = nearest_features(report)
    if found:
        told = [f"{words} {found[name]['kid']:.3f}" for name, words in SETS.items() if name in found]
        yield f"KID against the scored images in {space_words(space)}: {', '.join(told)}."


def _other_data(report: Report) -> Iterator[str]:
    compared = _compared(report)
    if compared:
        found = ", ".join(f"{name} {here:.3g} (val {own['mean']:.3g})" for name, here, own in compared)
        yield f"Compared with {report['own']['count']:,} of the run's own val images: {found}."


def _compared(report: Report) -> list[tuple[str, float, Mapping[str, float]]]:
    """Return, for other data than the run's: name of a figure, its mean, and its distribution over the run's val."""
    if "own" not in report:
        return []
    errors = [("MSE", report["reconstruction"]["mse"]["mean"], report["own"]["mse"])]
    return errors + [
        (f"NLL {level}", report["levels"][level]["nll"], nll) for level, nll in report["own"]["nll"].items()
    ]


def _levels(report: Report) -> Iterator[str]:
    used = [
        f"{level} {figures['perplexity_foreground']:.0f} of {figures['num_embeddings']}"
        for level, figures in report["levels"].items()
    ]
    yield f"Codebooks: perplexity without constant cells {', '.join(used)}."


def _priors(report: Report) -> Iterator[str]:
    gains = [
        f"{level} {figures['nll']:.2f} nats per code, {abs(figures['gain']):.2f} "
        f"{'below' if figures['gain'] >= 0 else 'above'} the position-wise unigram"
        for level, figures in report["levels"].items()
        if "nll" in figures
    ]
    if gains:
        yield f"Priors: {'; '.join(gains)}."
    bits = report.get("bits_per_dim")
    if bits:
        yield (
            f"Bits: the codes of an image cost {bits['prior']:.3f} bits per image dimension under the priors, "
            f"{bits['position_unigram']:.3f} under the position-wise unigram, {bits['uniform']:.3f} uncompressed."
        )


def _diversity(report: Report) -> Iterator[str]:
    found = report.get("samples", {}).get("diversity")
    if found and found["compared"] > 1:
        yield (
            f"Diversity: two samples have SSIM {found['pairwise_ssim']:.2f} on average, two held-out images "
            f"{found['real_pairwise_ssim']:.2f}, their reconstructions {found['reconstructed_pairwise_ssim']:.2f}."
        )


def _privacy(report: Report) -> Iterator[str]:
    found = report.get("samples", {}).get("memorisation")
    if found:
        copies = found["copied"]
        yield (
            f"Memorisation: samples are {found['ratio_of_medians']:.2f} times as far from the nearest training image "
            f"as held-out images are ({found['ratio_of_medians_reconstructed']:.2f} times their reconstructions); "
            f"{copies or 'none'} of {found['count']} looks like a copy."
        )


def _split_warnings(report: Report) -> Iterator[str]:
    if not report["split"]["held_out"]:
        yield (
            f"The split {report['split']['name']} was used for training or for choosing checkpoints: "
            "these are not held-out figures."
        )
    if report["split"]["shared_subjects"]:
        yield (
            f"{report['split']['shared_subjects']:,} subjects of the split are also training subjects: "
            "held-out figures are too good."
        )
    if report["split"]["identical_images"]:
        yield f"{report['split']['identical_images']:,} images of the split are exact copies of training images."


def _unlike_warnings(report: Report) -> Iterator[str]:
    """Compare means with the 95th percentile of the run's own held-out images."""
    beyond = [
        f"{name} {here:.3g} (on the run's own val images {own['mean']:.3g})"
        for name, here, own in _compared(report)
        if here > own["p95"]
    ]
    if beyond:
        yield f"These images are unlike the training images: {'; '.join(beyond)}."


def _level_warnings(report: Report) -> Iterator[str]:
    found, own = report["reconstruction"], report["split"]["own"]
    naive = found.get("mean_image", {}).get("ssim", {}).get("mean")
    if naive is not None and found["ssim"]["mean"] <= naive:
        yield (
            f"Reconstructions (SSIM {found['ssim']['mean']:.3f}) are no better than the mean training image "
            f"({naive:.3f})" + (": train the VQ-VAE longer." if own else ".")
        )
    for level, figures in found["upper"].items():
        if naive is not None and figures["ssim"]["mean"] <= naive:
            yield (
                f"Decoding from {upper_name(report['levels'], level)} (SSIM {figures['ssim']['mean']:.3f}) is no "
                f"better than the mean training image ({naive:.3f}): it carries little information by itself."
            )
    for level, figures in report["levels"].items():
        if figures["collapsed"]:
            yield (
                f"The codebook of level {level} has collapsed: perplexity without constant cells "
                f"{figures['perplexity_foreground'] or 0:.1f} of {figures['num_embeddings']}, at least "
                f"{figures['least_perplexity']:g} is needed."
            )
        elif figures["usage"] < 0.5:
            yield f"Level {level} uses {figures['usage']:.0%} of its codebook on these images."


def _prior_warnings(report: Report) -> Iterator[str]:
    own = report["split"]["own"]
    drawn = report.get("samples", {}).get("levels") or list(report["levels"])
    for level, figures in report["levels"].items():
        if "nll" not in figures:
            continue
        if figures["gain"] <= 0:
            yield (
                f"The prior of level {level} ({figures['nll']:.2f} nats per code) is no better than a table of counts "
                f"for each position ({figures['position_nll']:.2f})" + (": train it longer." if own else ".")
            )
        if (rise := figures.get("reliance", {}).get("own", math.inf)) < _LEAST_RELIANCE:
            yield (
                f"The prior of level {level} makes no use of its own earlier codes: its NLL rises by {rise:.3f} nats "
                "if they come from another image. Samples that draw this level will not be coherent"
                + ("" if level in drawn else "; those of this report do not draw it")
                + (": train it longer." if own and level in drawn else ".")
            )
        # Other data than the run's may be harder without any overfitting.
        if own and figures["train_nll"] < 0.75 * figures["nll"]:
            yield (
                f"The prior of level {level} overfits: {figures['train_nll']:.2f} nats per code on training images, "
                f"{figures['nll']:.2f} on held-out ones."
            )


def _sample_warnings(report: Report) -> Iterator[str]:
    samples = report.get("samples", {})
    ones = (value for name in ("temperature", "guidance", "autoguidance") for value in samples.get(name, ()))
    plain = all(value == 1 for value in ones) and not any(samples.get("min_p", ()))
    for level, figures in report["levels"].items():
        drawn = samples.get("nll", {}).get(level)
        if plain and drawn is not None and "nll" in figures and drawn["mean"] < 0.75 * figures["nll"]:
            yield (
                f"At level {level} samples ({drawn['mean']:.2f} nats per code) are much more probable to the prior "
                f"than held-out images ({figures['nll']:.2f}): it is overconfident."
            )
    excess = _excess_likeness(samples)
    if abs(excess) > _EXCESS:
        found = samples["diversity"]
        kind = (
            "more alike than real images are: they lack diversity"
            if excess > 0
            else "less alike than real images are, as noise would be"
        )
        yield (
            f"Samples are {kind} (mean pairwise SSIM {found['pairwise_ssim']:.2f} against "
            f"{found['reconstructed_pairwise_ssim']:.2f})."
        )
    found = samples.get("memorisation")
    if found:
        for name, what in (
            ("copies", "as close to a training image as that image's reconstruction"),
            ("mirrored_copies", "as close to a mirrored training image as that image's reconstruction"),
            ("identical_codes", "made of exactly the codes of a training image"),
        ):
            if found[name]:
                yield f"Memorisation: {found[name]} of {found['count']} samples {_be(found[name])} {what}."
        for name, how in (
            ("closer_share_reconstructed", "lie closer to a training image"),
            ("correlated_share", "correlate, shifted or mirrored, more with a training image"),
        ):
            if _more_than_chance(found, name):
                yield (
                    f"Memorisation: {found[name]:.0%} of the samples {how} than 99 % of held-out people's images "
                    "and reconstructions do."
                )


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
