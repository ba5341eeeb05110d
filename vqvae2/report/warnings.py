"""The warnings of a report, a sentence for each problem, from its figures alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vqvae2.report.captions import space_words
from vqvae2.report.followed import label_warnings
from vqvae2.report.measures import upper_name
from vqvae2.report.summary import beside_own
from vqvae2.report.verdict import EXCESS, be, excess_likeness, more_than_chance

__all__ = ["warnings"]

Report = Mapping[str, Any]

_LEAST_RELIANCE = 0.005
"""Rise of a prior's NLL, in nats, below which it makes no use of what was exchanged."""


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
        for name, here, own in beside_own(report)
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
                f"{figures['perplexity_foreground']:.1f} of {figures['num_embeddings']}, at least "
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
            told = "Samples that draw this level will not be coherent"
            if level not in drawn:
                told += "; those of this report do not draw it."
            else:
                told += ": train it longer." if own else "."
            yield (
                f"The prior of level {level} makes no use of its own earlier codes: its NLL rises by {rise:z.3f} nats "
                f"if they come from another image. {told}"
            )
        # Other data than the run's may be harder without any overfitting.
        if own and figures["train_nll"] < 0.75 * figures["nll"]:
            yield (
                f"The prior of level {level} overfits: {figures['train_nll']:.2f} nats per code on training images, "
                f"{figures['nll']:.2f} on held-out ones."
            )


def _sample_warnings(report: Report) -> Iterator[str]:
    samples = report.get("samples", {})
    settings = ("temperature", "guidance", "autoguidance", "top_p")
    ones = (value for name in settings for value in samples.get(name, ()))
    cut = any(samples.get("min_p", ())) or any(samples.get("top_k", ()))
    plain = all(value == 1 for value in ones) and not cut
    for level, figures in report["levels"].items():
        drawn = samples.get("nll", {}).get(level)
        if plain and drawn is not None and "nll" in figures and drawn["mean"] < 0.75 * figures["nll"]:
            yield (
                f"At level {level} samples ({drawn['mean']:.2f} nats per code) are much more probable to the prior "
                f"than held-out images ({figures['nll']:.2f}): it is overconfident."
            )
    excess = excess_likeness(samples)
    if abs(excess) > EXCESS:
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
            ("aligned_copies", "a training image that was shifted, mirrored or re-lit"),
        ):
            if found.get(name):
                yield f"Memorisation: {found[name]} of {found['count']} samples {be(found[name])} {what}."
        for name, how in (
            ("closer_share_reconstructed", "lie closer to a training image"),
            ("correlated_share", "correlate, shifted or mirrored, more with a training image"),
        ):
            if more_than_chance(found, name):
                yield (
                    f"Memorisation: {found[name]:.0%} of the samples {how} than 99% of held-out people's images "
                    "and reconstructions do."
                )
    by_features = samples.get("feature_neighbours")
    if by_features and more_than_chance(by_features, "closer_share"):
        yield (
            f"Memorisation: in {space_words(by_features['space'])} {by_features['closer_share']:.0%} of the samples "
            "lie closer to a training image than 99% of held-out people's images from their own codes do."
        )
    regions = samples.get("regions")
    if regions and regions["copied"]:
        copied = regions["copied"]
        yield f"Memorisation: {copied} of {regions['count']} samples contain a region copied from a training image."
