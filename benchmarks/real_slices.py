"""The whole pipeline on a folder of real slices: every figure of the README's results, by one command.

    python benchmarks/real_slices.py --data DIR --json FILE [--run runs/real-slices] [--preset brain128]

Runs the five stages one after the other through their command lines. Stages whose result is there already are passed
over, and one that was interrupted is resumed, so the command can be given again until it is done. Then compares the
rate with codecs at equal SSIM in the foreground, prints each claim beside its bar and the naive figure, and draws
sheets to be judged by eye.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import image_codecs as codecs
import numpy as np
from common import stage, stages_parser, train
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vqvae2 import VQVAE, CodeStore, checkpoint
from vqvae2.data import DataConfig, ImageSet, from_unit, open_data
from vqvae2.report import background_of, decode

JUDGED = 16
"""Images of each kind on a sheet."""


def main() -> int:
    parser = stages_parser(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/real-slices"), help="run folder (default: %(default)s)")
    parser.add_argument("--labels", help="FILE:COLUMN[,COLUMN] that condition the priors (default: none)")
    parser.add_argument("--bins", action="append", default=[], help="COLUMN=EDGE[,EDGE] of a label that is a number")
    parser.add_argument("--numbers", nargs="+", default=[], help="labels that are learned as numbers")
    parser.add_argument("--num", type=int, default=64, help="samples (default: %(default)s)")
    arguments = parser.parse_args()
    run = arguments.run

    train(
        "train_vqvae.py",
        run,
        "train_vqvae",
        run / "vqvae",
        "--data",
        arguments.data,
        "--preset",
        arguments.preset,
        *(("--labels", arguments.labels) if arguments.labels else ()),
        *(("--bins", *arguments.bins) if arguments.bins else ()),
        *(("--numbers", *arguments.numbers) if arguments.numbers else ()),
    )
    if not (run / "codes" / "data.mdb").exists():
        stage("extract_codes.py", run)
    for level in json.loads((run / "run.json").read_text())["levels"]:
        train("train_prior.py", run, f"train_prior_{level}", run / f"prior-{level}", level=level)
    if not (run / "samples" / "samples.json").exists():
        stage("sample.py", run, "--num", str(arguments.num))
    stage("evaluate.py", run)
    if arguments.labels:
        write_by_class(run, arguments.labels.rpartition(":")[2].split(",")[0])

    report = json.loads((run / "report" / "report.json").read_text())
    stored = json.loads((run / "run.json").read_text())
    outcomes = {
        name: entry["outcome"] for name, entry in stored.items() if isinstance(entry, dict) and "outcome" in entry
    }
    store = CodeStore(run / "codes")
    ratio = (run / "codes" / "data.mdb").stat().st_size / sum(level.nbytes for level in store.read())
    like = checkpoint.load_config(run / "vqvae", kind="vqvae")["data"]
    data = open_data(DataConfig(data=arguments.data), ["train", report["split"]["name"]], like).splits
    held_out = data[report["split"]["name"]]
    write_judgement(run, held_out)
    curves = codecs.curves(held_out, background_of(data["train"]))
    codecs.draw(curves, by_level(report), run / "rate-curves.png")
    found = claims(report, curves)
    tell(found, report["split"])
    figures = {
        "preset": arguments.preset,
        "trainings": outcomes,
        "store": {"images": len(store), "bytes_ratio": ratio},
        "claims": found,
        "codecs": curves,
        "report": report,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def by_level(report: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """Return ``(name, bits a pixel under the priors so far, SSIM in the foreground)`` of the levels, top first."""
    pixels, bits, found = report["data"]["height"] * report["data"]["width"], 0.0, []
    for name, level in report["levels"].items():
        bits += level["nll_bits"] * math.prod(level["shape"]) / pixels
        scores = report["reconstruction"]["upper"].get(name, report["reconstruction"])
        found.append((name, bits, scores["ssim_foreground"]["mean"]))
    return found


def claims(report: Mapping[str, Any], curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Hold the figures of a report against bars.

    Args:
        report: report.json of a complete run on grey slices.
        curves: of :func:`image_codecs.curves`, on the same slices.

    Returns:
        Claims with ``name``, ``measured`` (None: not measured), ``bar`` (None: there is none), ``moonshot``, ``over``
        (whether more is better) and ``naive``, in words.
    """
    whole, sharp = report["reconstruction"], report["reconstruction"]["sharpness"]
    mean, bits = whole["mean_image"], report["bits_per_dim"]
    kid = report["distances"].get("MobileNetV2", {})
    pixels = report["data"]["height"] * report["data"]["width"]
    found: list[dict[str, Any]] = []

    def claim(name: str, measured: float | None, naive: str, *bars: float, over: bool = True) -> None:
        bar, moonshot = bars or (None, None)
        told = {"name": name, "measured": measured, "bar": bar, "moonshot": moonshot, "over": over, "naive": naive}
        found.append(told)

    def mean_of(figures: Mapping[str, Any], figure: str) -> float:
        return figures[figure]["mean"]

    def beside(figure: str) -> str:
        return f"mean image {mean_of(mean, figure):.3f}"

    score = mean_of(whole, "ssim_foreground")
    claim("SSIM, foreground", score, beside("ssim_foreground"), 0.945, 0.96)
    claim("SSIM, whole frame", mean_of(whole, "ssim"), beside("ssim"), 0.963, 0.975)
    claim("PSNR, foreground (dB)", mean_of(whole, "psnr_foreground_db"), beside("psnr_foreground_db"))
    claim("blur of equal score (px)", sharp["blur_px"], f"mean image {mean['sharpness']['blur_px']:.2f}", over=False)
    pooled = f"over the band at once {sharp['coherence_pooled_2_4']:.3f}"
    claim("coherence at 2-4 px", sharp["coherence_2_4"], pooled, 0.88, 0.93)
    claim("power at 2-4 px", sharp["power_2_4"], "a blur loses it, invented texture has it")
    for level, figures in list(whole["upper"].items())[-1:]:
        claim(f"down to {level}: SSIM, whole", mean_of(figures, "ssim"), beside("ssim"), 0.88, 0.92)
        claim(f"down to {level}: SSIM, foreground", mean_of(figures, "ssim_foreground"), beside("ssim_foreground"))
    uniform = f"position-wise unigram {bits['position_unigram']:.3f}, uncompressed {bits['uniform']:.3f}"
    claim("bits a pixel under the priors", bits["prior"], uniform, 0.5, 0.4, over=False)
    for level, figures in report["levels"].items():
        share = math.prod(figures["shape"]) / pixels
        table = f"position-wise unigram {figures['position_nll_bits'] * share:.3f}"
        claim(f"  of which {level}", figures["nll_bits"] * share, table, over=False)
    for suffix, files in (("", "one slice a file"), (" mosaic", f"{codecs.SIDE**2} slices a file")):
        rates = {
            codec: codecs.rate_at(curves[codec + suffix], score) for codec in codecs.CODECS if codec + suffix in curves
        }
        best = min((rates[codec] for codec in ("WEBP", "AVIF") if math.isfinite(rates[codec])), default=math.nan)
        told = ", ".join(f"{codec} {rate:.3f}" for codec, rate in rates.items()) + " bits a pixel at equal SSIM"
        ratio = bits["prior"] / best if math.isfinite(best) else None
        claim(f"rate over WebP's or AVIF's, {files}", ratio, told, 0.8, 0.5, over=False)
    named = {"training_images": "real", "blurred_0.5": "blurred by 0.5 px"}
    told = ", ".join(f"{words} {kid[name]['kid']:.3f}" for name, words in named.items() if name in kid)
    for name, bars in (("samples", (0.03, 0.01)), ("reconstructions", ())):
        claim(f"KID of {name}", kid[name]["kid"] if name in kid else None, told, *bars, over=False)
    return found


def tell(found: Sequence[Mapping[str, Any]], split: Mapping[str, Any]) -> None:
    """Print the claims as a table."""
    print(f"\n{split['images']} slices of {split['subjects']} people, split {split['name']}")
    print(f"{'claim':<46}{'measured':>10}{'bar':>9}{'moonshot':>10}  {'met':<9}{'beside':<40}")
    for c in found:
        sign = ">=" if c["over"] else "<="
        bars = "".join(f"{'' if c[b] is None else f'{sign} {c[b]:g}':>{w}}" for b, w in (("bar", 9), ("moonshot", 10)))
        measured = "-" if c["measured"] is None else f"{c['measured']:.3f}"
        print(f"{c['name']:<46}{measured:>10}{bars}  {met(c):<9}{c['naive']}")


def met(claim: Mapping[str, Any]) -> str:
    """Say which bar a claim has reached.

    >>> met({"measured": 0.4, "bar": 0.5, "moonshot": 0.4, "over": False}), met({"measured": None, "bar": 1})
    ('moonshot', '')
    """
    if claim["measured"] is None or claim["bar"] is None:
        return ""
    for name, word in (("moonshot", "moonshot"), ("bar", "bar")):
        if (claim["measured"] >= claim[name]) if claim["over"] else (claim["measured"] <= claim[name]):
            return word
    return "no"


def write_by_class(run: Path, attribute: str, classes: int = 4, each: int = 8) -> None:
    """Draw samples asked for as some classes of an attribute, spread over all, a row each."""
    names = json.loads((run / "run.json").read_text())["data"]["attributes"][attribute]
    rows, classes = [], min(classes, len(names))
    for i in range(classes):
        name = names[(2 * i + 1) * len(names) // (2 * classes)]
        out = run / "samples-by-class" / str(i)
        if not (out / "samples.json").exists():
            stage("sample.py", run, "--num", str(each), "--label", f"{attribute}={name}", "--out", str(out))
        rows.append(np.concatenate([np.asarray(Image.open(path)) for path in sorted(out.glob("[0-9]*.png"))], 1))
    Image.fromarray(np.concatenate(rows)).save(run / "samples-by-class.png")
    print(f"wrote {run / 'samples-by-class.png'}")


def write_judgement(run: Path, held_out: ImageSet) -> None:
    """Draw sheets to be judged unlabelled, at the slices' own size and at twice that; the key in a file of its own.

    On each, 16 samples, or 16 reconstructions, are shuffled among 16 held-out slices, other ones than those
    reconstructed; the two sizes are shuffled apart.
    """
    rng = random.Random(0)
    model = VQVAE.from_pretrained(run / "vqvae")
    folder, key = run / "judgement", {}
    folder.mkdir(exist_ok=True)
    for kind in ("samples", "reconstructions"):
        rows = rng.sample(range(len(held_out)), 2 * JUDGED)
        real, others = held_out.images[rows[:JUDGED], 0], rows[JUDGED:]
        if kind == "samples":
            files = sorted((run / "samples").glob("[0-9]*.png"))[:JUDGED]
            made = np.stack([np.asarray(Image.open(path).convert("L")) for path in files])
        else:
            codes = model.encode(held_out.at(others))
            made = from_unit(decode(model, codes), held_out.value_range)[:, 0]
        for times in (1, 2):
            cases = [("real", image) for image in real] + [(kind, image) for image in made]
            rng.shuffle(cases)
            sheet([image for _, image in cases], times).save(folder / f"{kind}-{times}x.png")
            key[f"{kind}-{times}x"] = {i + 1: told for i, (told, _) in enumerate(cases)}
    (run / "judgement-key.json").write_text(json.dumps(key, indent=2) + "\n")
    print(f"wrote {folder}/: {', '.join(f'{name}.png' for name in key)}; judgement-key.json beside the folder")


def sheet(images: Sequence[NDArray[np.uint8]], times: int, columns: int = 8) -> Image.Image:
    """Lay out numbered images (H, W), enlarged."""
    height, width = (times * n for n in images[0].shape)
    rows = -(-len(images) // columns)
    canvas = Image.new("L", (columns * (width + 8) + 8, rows * (height + 24) + 8), 40)
    for place, pixels in enumerate(images):
        left, top = 8 + place % columns * (width + 8), 8 + place // columns * (height + 24)
        canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), (left, top + 16))
        ImageDraw.Draw(canvas).text((left + 2, top + 2), str(place + 1), fill=255)
    return canvas


if __name__ == "__main__":
    raise SystemExit(main())
