"""The summary of a report, a sentence for each part, from its figures alone."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from vqvae2.report.captions import SETS, space_words
from vqvae2.report.followed import labels_followed
from vqvae2.report.verdict import nearest_features

__all__ = ["beside_own", "sample_summary", "summary"]

Report = Mapping[str, Any]


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
    """Return the sentences of the summary on samples: Fréchet distance, diversity, memorisation, labels."""
    return [*_of_all(report), *_diversity(report), *_privacy(report), *labels_followed(report)]


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


def _of_all(report: Report) -> Iterator[str]:
    for space, sets in report.get("distances", {}).items():
        own = sets.get("samples", {})
        if "frechet_of_all" in own:
            yield (
                f"Fréchet distance in {space_words(space)}: {own['frechet_of_all']:.2f} over all "
                f"{own['samples_of_all']:,} samples and all {own['real_of_all']:,} scored images."
            )


def _other_data(report: Report) -> Iterator[str]:
    compared = beside_own(report)
    if compared:
        found = ", ".join(f"{name} {here:.3g} (val {own['mean']:.3g})" for name, here, own in compared)
        yield f"Compared with {report['own']['count']:,} of the run's own val images: {found}."


def beside_own(report: Report) -> list[tuple[str, float, Mapping[str, float]]]:
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
