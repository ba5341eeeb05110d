"""The parts of the report's page on samples and on their labels."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from vqvae2.report.anatomy import MEASURES
from vqvae2.report.captions import space_words
from vqvae2.report.followed import class_followed, number_followed
from vqvae2.report.markup import Figure, mean, num, pictures, spread, table
from vqvae2.report.recognised import BINS
from vqvae2.sampling import Sharpness

__all__ = ["labels_section", "samples_section"]

Report = dict[str, Any]


# Settings that are named where they change anything.
_GUIDED = {name: getattr(Sharpness(), name) for name in ("guidance", "autoguidance", "min_p")}


def samples_section(report: Report, known: Mapping[str, Figure]) -> str:
    """What was drawn, how diverse it is, whether it copies, and plain measures of heads."""
    samples = report.get("samples")
    if not samples:
        return ""
    asked = ", ".join(f"{name}={value}" for name, value in samples["label"].items()) or "any"
    settings = ", ".join(
        f"{name.replace('_', ' ')} {' / '.join(f'{v:g}' for v in samples[name])}"
        for name in ("temperature", "top_k", "top_p", *(n for n in _GUIDED if set(samples.get(n, ())) - {_GUIDED[n]}))
    )
    judged, reject = samples.get("judged", samples["count"]), samples.get("reject", 0)
    compared = f" ({judged:,} of them compared)" if judged < samples["count"] else ""
    chosen = f"; chosen by a classifier, which left out {reject:.0%}" if reject else ""
    text = f"<p>{samples['count']:,} samples{compared} of <code>{escape(samples['folder'])}</code>: {settings}, "
    text += f"seed {samples['seed']}, label {escape(asked)}{chosen}.</p>"
    drawn = samples.get("levels", [])
    if drawn and len(drawn) < len(report["levels"]):
        text += (
            f"<p>Drawn: the codes of {' and '.join(map(escape, drawn))}. The rest is painted by the detail decoder.</p>"
        )
    text += pictures(["samples", "samples_by_class"], known)
    found = samples.get("diversity")
    if found:
        text += "<h3>Diversity</h3>" + table(
            f"Likeness of images of one set, over all pairs of {found['compared']:,} of each",
            ["mean over pairs", "SSIM (95%)"],
            [
                [words, mean({"mean": found[name], "interval": found.get(f"{name}_interval")}, 3)]
                for words, name in (
                    ("samples", "pairwise_ssim"),
                    ("held-out images", "real_pairwise_ssim"),
                    ("their reconstructions", "reconstructed_pairwise_ssim"),
                )
            ],
        )
    found = samples.get("memorisation")
    if found:
        rows = [
            ["samples", num(found["distance_median"], 3), "1", "–", "–"],
            [
                "held-out images",
                num(found["real_distance_median"], 3),
                num(found["ratio_of_medians"], 2),
                num(found["real_distance_p1"], 3),
                f"{found['closer_share']:.1%}",
            ],
            [
                "their reconstructions",
                num(found["reconstructed_distance_median"], 3),
                num(found["ratio_of_medians_reconstructed"], 2),
                num(found["reconstructed_distance_p1"], 3),
                f"{found['closer_share_reconstructed']:.1%}",
            ],
        ]
        head = ["distance to the nearest training image", "median", "samples over these"]
        head += ["1st percentile", "samples below it (1% by chance)"]
        text += "<h3>Memorisation</h3>" + table(
            f"{found['count']:,} samples and {found['real_count']:,} held-out images beside the training images",
            head,
            rows,
        )
        text += (
            f'<p class="note">{found["copies"]} copies, {found["mirrored_copies"]} mirrored copies, '
            f"{found['identical_codes']} with exactly the codes of a training image. A copy lies no farther from a "
            "training image than that image's own reconstruction, and closer than the 1st percentile of held-out "
            "images. Distances are root-mean-square differences on the [−1, 1] scale.</p>"
            "<p>Correlation with the nearest training image after the best shift, mirrored or not: median "
            f"{num(found['correlation_median'], 3)} for samples, {num(found['real_correlation_median'], 3)} for "
            f"held-out images; {found['correlated_share']:.1%} of the samples have more than "
            f"{num(found['correlation_p99'], 3)}, which 1% at most of held-out images and of their reconstructions "
            f"have, and {found.get('aligned_copies', 0)} have enough to count as copies: nearer to 1 than to that "
            "bound. It finds copies that were shifted, re-lit, mirrored or blurred.</p>"
        )
        text += _by_features(samples.get("feature_neighbours"))
        text += _regions(samples.get("regions")) + _subjects(found)
    found = samples.get("anatomy")
    if found:
        rows = [
            [
                MEASURES[name],
                *(
                    mean({"mean": f[kind], "interval": f.get("intervals", {}).get(kind)}, 3)
                    for kind in ("samples", "real", "train")
                ),
                num(f["distance"], 2),
                num(f["train_distance"], 2),
            ]
            for name, f in found.items()
        ]
        head = ["mean of (95%)", "samples", "held-out images", "training images"]
        head += ["distance of samples", "distance of training images"]
        counts = samples["anatomy_counts"]
        text += "<h3>Anatomy</h3>" + table(
            f"Measures of {judged:,} samples, {counts['real']:,} held-out and {counts['train']:,} training images",
            head,
            rows,
        )
        text += (
            '<p class="note">Classes of brightness inside the rim of the foreground, by three Gaussians fitted to '
            "training images; in T1 slices of heads roughly fluid, grey and white matter. Distance: Wasserstein's "
            "between the distributions over images, in standard deviations of the held-out images; 0 is equal.</p>"
        )
    return text + pictures(["neighbours", "distances", "sample_nll"], known)


def _by_features(found: Mapping[str, Any] | None) -> str:
    """How near samples are to training images in a network's features."""
    if not found:
        return ""
    return (
        f"<p>The same in {escape(space_words(found['space']))}, beside {found['train_count']:,} training images: "
        f"median distance {num(found['median'], 2)} for {found['count']:,} samples, {num(found['real_median'], 2)} for "
        f"{found['real_count']:,} held-out images, {num(found['decoded_median'], 2)} for these from their own codes. "
        f"{found['closer_share']:.1%} of the samples lie nearer than 99% of the latter.</p>"
    )


def _regions(found: Mapping[str, Any] | None) -> str:
    """Parts of samples that are as in a training image."""
    if not found:
        return ""
    rows = [
        [
            f"{one['sample']}",
            f"{one['y']} to {one['y'] + one['height']}, {one['x']} to {one['x'] + one['width']}",
            f"{one['key']}{' (mirrored)' if one['mirrored'] else ''}",
            num(one["correlation"], 3),
            num(one["ratio"], 2),
        ]
        for one in found["nearest"]
    ]
    head = ["sample", "rows, columns", "training image", "correlation", "ratio"]
    return (
        f"<p>Regions of a quarter of the image's height and width: {found['copied']} of {found['count']} samples have "
        "one that was copied. Ratio: one minus the correlation with the most similar training image there, over the "
        f"median of held-out images; the lowest of an image's regions is {num(found['median'], 2)} for samples and "
        f"{num(found['real_median'], 2)} for held-out images (medians), and 1% of these have "
        f"{num(found['p1'], 2)} or less. Below {num(found['bound'], 2)} a region counts as copied.</p>"
    ) + table(f"The most similar regions of {found['count']:,} samples", head, rows, left=3)


def _subjects(found: Mapping[str, Any]) -> str:
    """Whose images are most often the nearest."""
    subjects = found.get("subjects")
    if not subjects:
        return ""
    count, real = found["count"], found["real_count"]
    rows = [[one["subject"], f"{one['samples']:,}", f"{one['real']:,}"] for one in subjects]
    head = ["people whose images are most often the nearest", f"of {count:,} samples", f"of {real:,} held-out images"]
    return table("People of the training set", head, rows) + (
        f"<p>One person's images are the nearest to {subjects[0]['samples'] / count:.0%} of the samples; of held-out "
        f"images, the highest share for one person is {found['most_real'] / real:.0%}. A much higher share says that "
        "the samples are of few people.</p>"
    )


def labels_section(report: Report, known: Mapping[str, Figure]) -> str:
    """Whether samples follow the labels that were asked for."""
    return _numbers(report) + _recognition(report, known) + _phantom(report, known)


def _numbers(report: Report) -> str:
    found = report.get("samples", {}).get("numbers")
    if not found:
        return ""
    sides = {
        "samples": "samples",
        "reconstructions": "reconstructions of held-out images",
        "real": "held-out images",
        "shuffled": "samples under each other's numbers",
    }
    text = ""
    for name, figures in found.items():
        rows = [
            [words, mean({"mean": side["slope"], **side}, 2), num(side["correlation"], 2), f"{side['count']:,}"]
            for kind, words in sides.items()
            for side in [figures[kind]]
        ]
        head = [f"{name} that images show, over that given", "slope (95%)", "correlation", "images"]
        text += f"<p>{escape(number_followed(name, figures)[1])}</p>"
        text += table(f"{name}, estimated from images", head, rows, naive=sides["shuffled"])
        text += f"<p>The slope of samples is <b>{num(figures['ratio'], 2)}</b> times that of reconstructions.</p>"
    return (
        "<h3>Numbers asked for</h3>"
        + text
        + '<p class="note">What an image shows is estimated by ridge regression on the encoder\'s features of training '
        "images. It errs towards their mean, on real images too, so the slopes are to be compared with each other, and "
        "not with 1. Samples that ignored their number would have a slope of 0.</p>"
    )


def _recognition(report: Report, known: Mapping[str, Figure]) -> str:
    found = report.get("recognition")
    if not found:
        return ""
    kinds = {
        "held_out": "held-out images, by a classifier trained on all training images",
        "recognised": "samples, by that classifier, as the class asked for",
        "score": f"held-out images, by one trained on {found.get('score_count', 0):,} samples alone",
        "real_score": f"held-out images, by one trained on {found.get('score_count', 0):,} training images",
    }
    rows = [
        [
            words,
            mean({"mean": f["accuracy"], **f}, 3),
            num(f["chance"], 3),
            f"{f['count']:,}",
            *(num(value, 2) for value in f["by_class"]),
            num(f["probability"], 2),
            num(f["calibration"], 2),
        ]
        for name, words in kinds.items()
        if (f := found.get(name))
    ]
    rows.append(
        ["naming the most common class", *[num(found["majority"], 3)] * 2, "", *("" for _ in found["classes"]), "", ""]
    )
    head = ["", "accuracy (95%)", "by chance", "images", *found["classes"], "probability", "too sure by"]
    text = f"<h3>Recognition of {escape(found['attribute'])}</h3>"
    if "recognised" in found:
        text += f"<p>{escape(class_followed(found)[1])}</p>"
    caption = f"Whether a classifier names {found['attribute']} rightly"
    text += table(caption, head, rows, naive="naming the most common class") + (
        '<p class="note">By chance: if the true classes, or those asked for, were shuffled among the images. '
        "Probability: the mean that the classifier gives to the class that is true, or was asked for.</p>"
    )
    if "score" in found:
        ratio = found["score"]["accuracy"] / (found["real_score"]["accuracy"] or math.nan)
        text += (
            "<p>Classification accuracy score: a classifier that saw samples alone reaches "
            f"<b>{num(ratio, 2)}</b> times the accuracy of one that saw as many training images.</p>"
        )
    for space, curve in found.get("curve", {}).items():
        text += table(
            f"The surest samples of each class; {int(curve[0]['compared']):,} of each set are compared",
            [f"samples kept, in {space_words(space)}", "precision", "recall", "Fréchet distance"],
            [[f"{p['share']:.0%}", num(p["precision"], 3), num(p["recall"], 3), num(p["frechet"], 2)] for p in curve],
        )
    return text + pictures(["rejection"], known) + _reliability(found)


def _reliability(found: Mapping[str, Any]) -> str:
    """Whether the classifier is right as often as its probabilities say."""
    known = found["reliability"]
    rows = [
        [
            f"{one['low']:.1f} to {one['high']:.1f}",
            f"{one['count']:,}",
            num(one["probability"], 3),
            num(one["accuracy"], 3),
        ]
        for one in known["bins"]
    ]
    head = ["highest probability, held-out images", "images", "mean probability", "share that is right"]
    return (
        f"<h3>Is the classifier of {escape(found['attribute'])} well calibrated?</h3>"
        f"<p>Its expected calibration error on held-out images is <b>{num(known['error'], 3)}</b>. Probabilities that "
        f"are exactly right have about {num(known['expected'], 3)} on as many images, by chance; the frequencies of "
        f"the classes in place of its probabilities, which are the same for all images, have {num(known['naive'], 3)}."
        "</p>"
        + table("Held-out images by how sure the classifier is", head, rows)
        + '<p class="note">After Guo et al. (2017): the mean over images of the difference '
        f"between the last two columns, in {BINS} bins of equal width. Images of one person are alike, so that chance "
        "does more than is said here.</p>"
    )


def _phantom(report: Report, known: Mapping[str, Figure]) -> str:
    found = report.get("phantom")
    if not found:
        return ""
    rows = [
        [
            name,
            str(f["samples"]),
            str(f["nan"]),
            spread(f["mean"], f["std"], 4),
            spread(f["true_mean"], f["true_std"], 4),
        ]
        for name, f in found["labels"].items()
    ]
    text = "<h3>Ventricle area</h3>" + table(
        "Ventricles as a share of the brain, mean ± standard deviation over images",
        ["label asked for", "samples", "without a head", "ventricle area", "of training images"],
        rows,
    )
    if "ventricle_difference_ratio" in found:
        text += (
            f"<p>The difference between the labels is {num(found['ventricle_difference'], 4)} in samples and "
            f"{num(found['true_difference'], 4)} in training images: a ratio of "
            f"<b>{num(found['ventricle_difference_ratio'], 2)}</b> ± "
            f"{num(found['ventricle_difference_ratio_se'], 2)} (standard error), 0 if labels were ignored.</p>"
        )
    return text + pictures(["ventricles"], known)
