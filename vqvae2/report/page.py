"""The report as one HTML page: plain HTML and CSS, the figures inside it, nothing from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vqvae2 import files
from vqvae2.metrics import BANDS
from vqvae2.report.captions import SETS, WORDS, space_words
from vqvae2.report.markup import Figure, bullets, mean, num, pictures, table
from vqvae2.report.measures import MOST_EXCHANGED, upper_name
from vqvae2.report.sample_sections import labels_section, samples_section
from vqvae2.report.style import CSS
from vqvae2.report.verdict import nearest_features

__all__ = ["write_page"]

Report = dict[str, Any]


def write_page(path: Path, report: Report, figures: Mapping[str, float]) -> None:
    """Write the page.

    Args:
        path: of the HTML file; the figures are read from ``figures/NAME.png`` beside it.
        report: as in report.json.
        figures: name of each figure that exists -> its width in inches, of 10 that the page is wide.
    """
    known = {
        name: Figure(width, (path.parent / "figures" / f"{name}.png").read_bytes()) for name, width in figures.items()
    }
    other = "" if report["split"].get("own", True) else f" on {report['split']['data']}"
    title = f"{report['run']}{other} · {report['split']['name']}"
    sections = [
        ("summary", "Summary", _summary(report)),
        ("reconstruction", "Reconstruction", _reconstruction(report, known)),
        ("sharpness", "Sharpness", _sharpness(report)),
        ("codebooks", "Codebooks", _codebooks(report, known)),
        ("priors", "Priors", _priors(report, known)),
        ("samples", "Samples", samples_section(report, known)),
        ("labels", "Labels", labels_section(report, known)),
        ("comparison", "Comparison", _comparison(report)),
        ("training", "Training", _training(known)),
        ("words", "Words", _words()),
        ("provenance", "How it was made", _provenance(report)),
    ]
    sections = [section for section in sections if section[2]]
    nav = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>\n{content}</section>\n' for name, heading, content in sections
    )
    html = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style></head>\n<body><header><h1>{escape(report['run'] + other)}</h1>\n"
        f"<p>{_what(report)}</p><nav>{nav}</nav></header>\n<main>{body}</main>\n"
        f"<footer><p>vqvae2 {escape(report['version'])} · {escape(report['created'])} · research software; its images "
        f"are drawn from a model and are not for diagnosis.</p></footer></body></html>\n"
    )
    files.write_atomic(path, html.encode())


def _what(report: Report) -> str:
    split, data = report["split"], report["data"]
    size = f"{data['height']}×{data['width']}" + ("" if data["channels"] == 1 else f"×{data['channels']}")
    return (
        f"{_how_many(report)}, {size} pixels, "
        f"split <b>{escape(split['name'])}</b> of <code>{escape(str(split['data']))}</code>"
    )


def _how_many(report: Report) -> str:
    split = report["split"]
    return f"{split['images']:,} images of {split['subjects']:,} subjects"


def _summary(report: Report) -> str:
    found, cards = report["reconstruction"], []
    naive = found.get("mean_image")
    cards.append(
        (
            "SSIM",
            num(found["ssim"]["mean"], 3),
            f"mean image {num(naive['ssim']['mean'], 3)}" if naive else "1 is perfect",
        )
    )
    cards.append(
        (
            "PSNR",
            f"{num(found['psnr_db']['mean'], 1)} dB",
            f"mean image {num(naive['psnr_db']['mean'], 1)} dB" if naive else "peak 2",
        )
    )
    beside = f"mean image {num(naive['ssim_foreground']['mean'], 3)}" if naive else "1 is perfect"
    cards.append(("SSIM, foreground", num(found["ssim_foreground"]["mean"], 3), beside))
    for level, figures in report["levels"].items():
        of = f"of {figures['num_embeddings']} codes; {num(figures['perplexity'], 0)} with constant cells"
        cards.append((f"perplexity, {level}", num(figures["perplexity_foreground"], 0), of))
    for level, figures in report["levels"].items():
        if "nll" in figures:
            of = f"nats per code; position-wise unigram {num(figures['position_nll'], 2)}"
            cards.append((f"NLL, {level}", num(figures["nll"], 2), of))
    space, distances = nearest_features(report)
    if "samples" in distances:
        of = f"in {space_words(space)}; images blurred by 0.5 px {num(distances['blurred_0.5']['kid'], 3)}"
        cards.append(("KID of samples", num(distances["samples"]["kid"], 3), of))
    samples = report.get("samples", {})
    if "diversity" in samples:
        found = samples["diversity"]
        of = f"mean SSIM of two samples; of two real images {num(found['real_pairwise_ssim'], 2)}"
        cards.append(("likeness of samples", num(found["pairwise_ssim"], 2), of))
    if "memorisation" in samples:
        found = samples["memorisation"]
        of = f"median RMS, to the nearest training image; held-out images {num(found['real_distance_median'], 3)}"
        cards.append(("distance to training", num(found["distance_median"], 3), of))
    ratio = report.get("phantom", {}).get("ventricle_difference_ratio")
    if ratio is not None:
        cards.append(
            ("label effect", f"{num(100 * ratio, 0)}%", "of the true difference in ventricle area; 0% if ignored")
        )
    boxes = "".join(
        f'<div class="card"><h3>{escape(name)}</h3><b>{value}</b><span>{escape(of)}</span></div>'
        for name, value, of in cards
    )
    words = bullets(report["summary"], strong=True)
    if report["warnings"]:
        count = len(report["warnings"])
        told = f'<div class="box warn"><h3>{count} warning{"s" * (count > 1)}</h3>{bullets(report["warnings"])}</div>'
    else:
        judged = any(line["band"] in ("weak", "fail") for line in report["verdict"])
        told = f'<div class="box"><h3>No {"further " if judged else ""}warnings</h3></div>'
    missing = report["missing"]
    told += f'<div class="box"><h3>Not measured</h3>{bullets(missing)}</div>' if missing else ""
    bands = "".join(
        f'<div class="box {_BANDS[line["band"]]}"><h3>{escape(line["question"])} <em>{escape(line["band"])}</em></h3>'
        f"<p>{escape(line['reason'])}</p></div>"
        for line in report["verdict"]
    )
    return f'{bands}\n<div class="cards">{boxes}</div>\n{told}\n<div class="words">{words}</div>\n'


_BANDS = {"good": "good", "weak": "warn", "fail": "fail", "not measured": ""}


def _reconstruction(report: Report, known: Mapping[str, Figure]) -> str:
    found = report["reconstruction"]
    rows = []
    for name, figures in _decodings(report):
        ssim, psnr, mse = figures["ssim"], figures["psnr_db"], figures["mse"]
        rows.append(
            [
                name,
                mean(ssim, 3),
                num(ssim["p5"], 3),
                mean(psnr, 1),
                num(psnr["p5"], 1),
                mean(mse, 4),
                num(mse["p95"], 4),
            ]
        )
    head = ["decoded from", "SSIM", "5th percentile", "PSNR (dB)", "5th percentile", "MSE", "95th percentile"]
    worst = [
        [w["key"], w["subject"], num(w["ssim"], 3), num(w["psnr_db"], 1), num(w["mse"], 4)] for w in found["worst"]
    ]
    note = (
        "Means, in brackets their 95% interval by a bootstrap over subjects (± standard deviation over images where "
        "there are fewer than five subjects). SSIM after Wang et al. (2004): 11×11 Gaussian window, σ 1.5, K1 0.01, "
        "K2 0.03, population covariance. Images are on the [−1, 1] scale, so the data range is 2, and the peak of the "
        "PSNR too."
    )
    return (
        table(f"Errors of {_how_many(report)}", head, rows, naive="mean training image")
        + f'<p class="note">{note}</p>'
        + pictures(["reconstructions", "levels", "ssim"], known)
        + f"<h3>Worst {len(worst)} by SSIM</h3>"
        + table(
            f"Of {_how_many(report)}, those with the lowest SSIM",
            ["image", "subject", "SSIM", "PSNR (dB)", "MSE"],
            worst,
            left=2,
        )
    )


def _decodings(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """Name what images were decoded from, with the figures of each; the naive one last."""
    found = report["reconstruction"]
    kinds = [("all levels", found)]
    kinds += [(upper_name(report["levels"], level), figures) for level, figures in found["upper"].items()]
    return kinds + ([("mean training image", found["mean_image"])] if "mean_image" in found else [])


def _sharpness(report: Report) -> str:
    share = report["reconstruction"]["foreground_share"]
    bands = [f"{shortest}_{longest}" for shortest, longest in BANDS]
    scores, detail = [], []
    for name, figures in _decodings(report):
        ssim, psnr, found = figures["ssim_foreground"], figures["psnr_foreground_db"], figures["sharpness"]
        between = figures.get("sharpness_intervals", {})
        scores.append([name, mean(ssim, 3), num(ssim["p5"], 3), mean(psnr, 1), num(found.get("blur_px"), 2)])
        kinds = [f"{kind}_{band}" for kind in ("power", "coherence") for band in bands]
        detail.append([name, *(_figure(found.get(kind), between.get(kind)) for kind in kinds)])
    wavelengths = [f"{shortest}–{longest} px" for shortest, longest in BANDS]
    head = ["decoded from", "SSIM", "5th percentile", "PSNR (dB)", "blur of equal score (px)"]
    kinds = [f"{kind}, {wavelength}" for kind in ("power", "coherence") for wavelength in wavelengths]
    first = (
        f"Foreground, {share:.0%} of the pixels: more than 5% of the range from the background, the largest connected "
        "piece, holes filled; all pixels where the training images have no background. Blur: the σ at which originals "
        "blurred by a Gaussian have the same SSIM in the foreground."
    )
    second = (
        "Power: of the wavelengths, divided by that of the originals. Coherence: 1 where detail is where it was, "
        "whatever its contrast; 0 where it is invented. A blur loses power and keeps coherence; invented texture has "
        "power without coherence. In brackets, where there are five subjects, 95% intervals by a bootstrap over them."
    )
    own = _how_many(report)
    return (
        table(f"Sharpness in the foreground of {own}", head, scores, naive="mean training image")
        + f'<p class="note">{first}</p>'
        + table(
            f"Detail by wavelength, of {own} together", ["decoded from", *kinds], detail, naive="mean training image"
        )
        + f'<p class="note">{second}</p>'
        + _distances(report)
    )


def _figure(value: float | None, interval: Sequence[float] | None) -> str:
    """A figure of a whole set with its interval, where there is one."""
    return f"{num(value, 2)} ({num(interval[0], 2)} to {num(interval[1], 2)})" if interval else num(value, 2)


def _distances(report: Report) -> str:
    text = ""
    for space, sets in report.get("distances", {}).items():
        rows = []
        for name, words in SETS.items():
            if name in sets:
                f = sets[name]
                kid = f"{num(f['kid'], 3)} ± {num(f['standard_error'], 3)}"
                rest = [num(f.get(figure), 2) for figure in _NEIGHBOURHOODS]
                rows.append([words, str(f["count"]), kid, num(f.get("frechet"), 2), *rest])
        count = next(iter(sets.values()))["real_count"]
        compared = next((f["compared"] for f in sets.values() if "compared" in f), 0)
        head = ["set", "images", "KID ± standard error", "Fréchet distance", *_NEIGHBOURHOODS.values()]
        note = ""
        if compared:
            note += (
                f"Fréchet distance and the columns to its right: {compared} images of each set, 3 nearest neighbours; "
                "not of sets that were made from the scored images themselves. "
            )
        text += f"<h3>Distances in {escape(space_words(space))}</h3>"
        caption = f"Sets of images beside {count:,} scored images, in {space_words(space)}"
        text += table(caption, head, rows, naive=[SETS[name] for name in SETS if name.startswith("blurred")])
        if space in report.get("decoder_trained_by", []):
            note += "The decoder was trained to match these features (--perceptual-weight), so they flatter it. "
        note += _of_all(sets.get("samples", {}))
        if told := note + _SPACE_NOTES.get(space, ""):
            text += f'<p class="note">{told}</p>'
    return text


def _of_all(figures: Mapping[str, Any]) -> str:
    if "frechet_of_all" not in figures:
        return ""
    counts = f"all {figures['samples_of_all']:,} samples and all {figures['real_of_all']:,} scored images"
    return f"Over {counts} the Fréchet distance of samples is {num(figures['frechet_of_all'], 2)}. "


_NEIGHBOURHOODS = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "two_sample": "told apart",
}
_SPACE_NOTES = {
    "MobileNetV2": "The network was trained on the photographs of ImageNet and sees the images at their own size. It "
    "sees blur that SSIM hardly sees. It was not trained on brains: read it beside real images and the other figures.",
    "inception": "Inception-v3 with TensorFlow's weights, by torch-fidelity; images are scaled to 299 pixels "
    "bilinearly, as there. Its Fréchet distance is the FID. Papers take it over 50,000 samples, often beside the "
    "training images: name number and reference when you compare. Over fewer images it is larger.",
    "encoder": "The encoder was trained to find what it can reconstruct, so it cannot see what the codes leave out.",
}


def _codebooks(report: Report, known: Mapping[str, Figure]) -> str:
    head = ["level", "codes", "K", "perplexity", "without constant cells", "at one position", "usage"]
    head += ["constant cells", "verdict"]
    rows = [
        [
            level,
            "×".join(map(str, f["shape"])),
            str(f["num_embeddings"]),
            num(f["perplexity"], 0),
            num(f["perplexity_foreground"], 0),
            num(f.get("position_perplexity"), 1),
            f"{f['usage']:.0%}",
            f"{f['constant_share']:.0%}",
            "–"
            if f["constant_share"] == 1
            else "collapsed"
            if f["collapsed"]
            else f"alive (above {f['least_perplexity']:g})",
        ]
        for level, f in report["levels"].items()
    ]
    note = (
        "Perplexity is the exponential of the entropy of the codes, the number of codes in even use: 1 where one code "
        "says everything, K where all are used alike. Constant cells (of an image block that is one single value, "
        "such as black air) cost codes and say nothing. At one position: the exponential of the position-wise "
        "unigram's NLL, the number of codes that are left to choose among once the position is known. It is far below "
        "the perplexity where codes mostly encode their position."
    )
    text = table(f"Use of the codes by {_how_many(report)}", head, rows)
    return text + f'<p class="note">{note}</p>' + pictures(["code_maps", "codebook_use"], known)


def _priors(report: Report, known: Mapping[str, Figure]) -> str:
    rows = [
        [
            level,
            mean({"mean": f["nll"], "std": f["nll_std"], "interval": f["nll_interval"]}, 3),
            num(f["position_nll"], 3),
            num(f["unigram_nll"], 3),
            num(f["gain"], 3),
            num(f["nll_bits"], 2),
            num(f["train_nll"], 3),
            f"{f['accuracy']:.1%}",
            f"{f['position_accuracy']:.1%}",
        ]
        for level, f in report["levels"].items()
        if "nll" in f
    ]
    if not rows:
        return ""
    head = ["level", "prior", "position-wise unigram", "unigram", "gain", "prior, bits per code"]
    head += ["prior on training images", "accuracy", "accuracy, position-wise"]
    counts = [f["train_count"] for f in report["levels"].values() if "train_count" in f]
    beside = f" and of {max(counts):,} training images" if counts else ""
    text = table(f"NLL of the codes of {_how_many(report)}{beside}, in nats per code", head, rows)
    text += (
        '<p class="note">NLL in nats per code unless a column says otherwise. The unigrams are tables of counts of '
        "the training codes, one for all positions and one for each, the latter smoothed by the former. Gain is the "
        "position-wise unigram's NLL minus the prior's.</p>"
    )
    text += _reliance(report)
    bits = report.get("bits_per_dim")
    if bits:
        names = {
            "prior": "priors",
            "position_unigram": "position-wise unigram",
            "unigram": "unigram",
            "uniform": "log₂ K a code",
        }
        values = [[name, num(bits[key], 4)] for key, name in names.items()]
        caption = f"Length of the codes of {_how_many(report)}"
        text += table(caption, ["all levels together, coded by", "bits per image dimension"], values)
    return text + pictures(["nll_maps"], known)


def _reliance(report: Report) -> str:
    told = {level: f["reliance"] for level, f in report["levels"].items() if f.get("reliance")}
    if not told:
        return ""
    sources = list(dict.fromkeys(name for found in told.values() for name in found))
    names = {"own": "its own earlier codes", "labels": "labels"}
    head = ["level", *(names.get(name, f"codes of level {name}") for name in sources)]
    rows = [[level, *(num(found.get(name), 3) for name in sources)] for level, found in told.items()]
    count = min(MOST_EXCHANGED, report["split"]["images"])
    caption = f"What the NLL of {count:,} of the scored images rises by, in nats per code"
    return table(caption, head, rows) + (
        '<p class="note">What each prior draws on: how much its NLL rises, in nats per code, where one thing that '
        "it is given comes from another image. Near 0, that thing is not used.</p>"
    )


def _comparison(report: Report) -> str:
    found = report.get("comparison")
    if not found:
        return ""
    names = {"here": report["run"], "there": found["run"], "": "neither"}
    if names["here"] == names["there"]:
        names |= {"here": f"{report['run']} (this)", "there": f"{found['run']} (other)"}
    rows = [
        [
            row["name"],
            num(row["here"], 3),
            num(row["there"], 3),
            num(row["error"], 3),
            "–" if row["error"] is None else names[row["better"]],
        ]
        for row in found["rows"]
    ]
    head = [
        "figure",
        names["here"],
        names["there"],
        "standard error of the difference",
        "better, by two standard errors",
    ]
    caption = f"Two runs, each by its own report; {_how_many(report)} here"
    return table(caption, head, rows) + "".join(
        f'<p class="note">Beware: {escape(doubt)}.</p>' for doubt in found["doubts"]
    )


def _words() -> str:
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in WORDS.items()) + "</dl>"


def _training(known: Mapping[str, Figure]) -> str:
    return pictures(["vqvae_curves", "prior_curves"], known)


def _provenance(report: Report) -> str:
    commands = "\n".join(report["commands"])
    rows = [[name, value] for name, value in _flat(report["hashes"])]
    return (
        f"<h3>Commands that repeat it</h3><pre>{escape(commands)}</pre>\n<h3>SHA-256</h3>"
        f'<div class="hashes">{table("Checksums of the weights and codes", ["of", "hex"], rows, left=2)}</div>\n'
        '<p class="note">All numbers are in <code>report.json</code> beside this page, the scores of every image in '
        "<code>scores.csv</code>.</p>"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        elif value:
            yield f"{prefix}{name}", str(value)
