"""What JPEG, WebP, AVIF and JPEG XL need for slices: bits a pixel against SSIM, over the frame and in the foreground.

    python benchmarks/image_codecs.py --data DIR --json FILE [--split val] [--slices N]

Each slice is a file of its own, with its header, and again 16 slices are one file (a mosaic of 4x4, cut apart before
scoring), which spares headers. Settings: JPEG optimised, WebP method 6, AVIF speed 4 (speed 0 takes eight times as
long for files 0.5 % smaller), JPEG XL effort 9 where pillow-jxl-plugin is installed. The codecs know nothing of brains;
a model's weights are knowledge that no file pays for.

Then what files without loss need: PNG, WebP, JPEG 2000 and JPEG XL.
"""

import argparse
import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.metrics import Sharpness, foreground, ssim
from vqvae2.report import background_of, spread_out

with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401 - makes Pillow know JPEG XL

CODECS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "WEBP": {"method": 6},
    "AVIF": {"speed": 4},
    "JXL": {"effort": 9},
}
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},
    "JPEG2000": {"irreversible": False},
    "JXL": {"lossless": True, "effort": 9},
}
QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
SIDE = 4
"""Slices along each side of a mosaic."""

Pixels = NDArray[np.uint8]
Point = Mapping[str, float]


def curves(images: ImageSet, background: float | None, qualities: Sequence[int] = QUALITIES) -> dict[str, list[Point]]:
    """Encode grey slices by every codec and quality.

    Args:
        images: (N, 1, H, W) uint8, N >= 1; what is left over from mosaics of 16 goes into none.
        background: of the images, in [-1, 1]; None: they have none.
        qualities: from 0 to 100.

    Returns:
        ``CODEC`` (JPEG XL where it is installed) and, for 16 slices or more, ``CODEC mosaic`` -> points with
        ``quality``, ``bits_per_pixel``, ``ssim`` and the figures of :class:`vqvae2.metrics.Sharpness`.
    """
    slices = images.images[:, 0]
    x = images.at(range(len(images)))
    mask, found = foreground(x, background), {}
    whole = len(slices) // SIDE**2 * SIDE**2
    for codec in _known(CODECS):
        found[codec] = [_point(codec, q, slices, x, mask, background) for q in tqdm(qualities, codec)]
        if whole:
            parts = slices[:whole], x[:whole], mask[:whole]
            found[f"{codec} mosaic"] = [
                _point(codec, q, *parts, background, SIDE) for q in tqdm(qualities, f"{codec} mosaic")
            ]
    return found


def _point(
    codec: str,
    quality: int,
    slices: Pixels,
    x: torch.Tensor,
    mask: torch.Tensor,
    background: float | None,
    side: int = 1,
) -> Point:
    made, size = transcode(mosaics(slices, side), codec, {"quality": quality, **CODECS[codec]})
    sharpness, total = Sharpness(slices.shape[1:], background), 0.0
    y = torch.from_numpy(cut(made, side)).float()[:, None] / 127.5 - 1
    for a, b, m in zip(y.split(64), x.split(64), mask.split(64), strict=True):
        sharpness.update(a, b, m)
        total += float(ssim(a, b).sum())
    return {
        "quality": quality,
        "bits_per_pixel": 8 * size / slices.size,
        "ssim": total / len(slices),
        **sharpness.figures(),
    }


def lossless(slices: Pixels) -> dict[str, float]:
    """Encode grey slices (N, H, W) without loss, each a file and 16 a file: bits a pixel by codec.

    Raises:
        ValueError: a codec does not give them back.
    """
    whole, found = len(slices) // SIDE**2 * SIDE**2, {}
    for codec, settings in _known(LOSSLESS).items():
        for name, files in ((codec, slices), (f"{codec} mosaic", mosaics(slices[:whole], SIDE))):
            if len(files):
                made, size = transcode(files, codec, settings)
                if not np.array_equal(made, files):
                    raise ValueError(f"{codec} does not give back what was written")
                found[name] = 8 * size / files.size
    return found


def _known(codecs: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out JPEG XL where its plug-in is not installed; Pillow has the others."""
    Image.init()
    return {codec: settings for codec, settings in codecs.items() if codec != "JXL" or codec in Image.SAVE}


def transcode(slices: Pixels, codec: str, settings: Mapping[str, Any]) -> tuple[Pixels, int]:
    """Write and read (N, H, W) by a codec; return what comes back, and the bytes of all files."""
    made, size = np.empty_like(slices), 0
    for i, pixels in enumerate(slices):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, codec, **settings)
        size += file.tell()
        made[i] = np.asarray(Image.open(file).convert("L"))
    return made, size


def mosaics(slices: Pixels, side: int) -> Pixels:
    """Lay out (N side^2, H, W) as (N, side H, side W)."""
    n, h, w = len(slices) // side**2, *slices.shape[1:]
    return slices.reshape(n, side, side, h, w).transpose(0, 1, 3, 2, 4).reshape(n, side * h, side * w)


def cut(made: Pixels, side: int) -> Pixels:
    """Undo :func:`mosaics`."""
    n, h, w = len(made), made.shape[1] // side, made.shape[2] // side
    return made.reshape(n, side, h, side, w).transpose(0, 1, 3, 2, 4).reshape(n * side**2, h, w)


def rate_at(curve: Sequence[Point], score: float, figure: str = "ssim_foreground") -> float:
    """Interpolate the bits a pixel at which a curve reaches a score, in their logarithm; NaN beyond the curve.

    >>> rate_at([{"bits_per_pixel": 0.25, "ssim": 0.8}, {"bits_per_pixel": 1.0, "ssim": 0.9}], 0.85, "ssim")
    0.5
    """
    points = sorted((point[figure], math.log2(point["bits_per_pixel"])) for point in curve)
    scores, rates = zip(*points, strict=True)
    if not scores[0] <= score <= scores[-1]:
        return math.nan
    return float(2 ** np.interp(score, scores, rates))


def draw(curves: Mapping[str, Sequence[Point]], levels: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Draw SSIM in the foreground over bits a pixel, of the codecs and of a model decoded from more and more levels.

    Args:
        curves: of :func:`curves`.
        levels: of the model ``(name, bits a pixel up to there, SSIM)``, top first.
        path: of the PNG.
    """
    colours = dict(zip(CODECS, ("#767676", "#0072B2", "#D55E00", "#009E73"), strict=True))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        codec, _, mosaic = name.partition(" ")
        line = [point["bits_per_pixel"] for point in points], [point["ssim_foreground"] for point in points]
        words = f"{codec.replace('WEBP', 'WebP').replace('JXL', 'JPEG XL')}{', 16 slices a file' if mosaic else ''}"
        axis.plot(*line, color=colours[codec], linestyle="--" if mosaic else "-", linewidth=1.4, label=words)
    names, bits, scores = zip(*levels, strict=True)
    axis.plot(bits, scores, color="black", marker="o", label="codes under the priors")
    for i, place in enumerate(zip(bits, scores, strict=True)):
        words = names[0] if i == 0 else f"and {names[i]}"
        axis.annotate(words, place, textcoords="offset points", xytext=(-6, 5), ha="right", fontsize=8)
    axis.set(xscale="log", xlabel="bits a pixel", ylabel="SSIM inside the head", xlim=(min(bits) / 1.6, None))
    axis.set_xticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
    axis.minorticks_off()
    axis.grid(color="#e6e6e6")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of grey 8-bit images; see docs/data.md for the layouts")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--split", default="val", help="images that are encoded (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=320, help="at most so many, evenly spread (default: %(default)s)")
    arguments = parser.parse_args()
    data = open_data(DataConfig(data=arguments.data), splits=["train", arguments.split])
    chosen = some(data.splits[arguments.split], arguments.slices)
    found = curves(chosen, background_of(data.splits["train"]))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    exact = lossless(chosen.images[:, 0])
    record = {"slices": len(chosen), "curves": found, "lossless": exact}
    arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(chosen)} slices")
    print(f"{'codec':<14}{'quality':>8}{'bits/pixel':>12}{'SSIM':>8}{'foreground':>12}{'PSNR, fg':>10}")
    for codec, curve in found.items():
        for p in curve:
            print(
                f"{codec:<14}{p['quality']:>8}{p['bits_per_pixel']:>12.3f}{p['ssim']:>8.4f}"
                f"{p['ssim_foreground']:>12.4f}{p['psnr_foreground_db']:>10.2f}"
            )
    for codec, bits in exact.items():
        print(f"{codec:<16} without loss{bits:>9.3f} bits a pixel")
    print(f"wrote {arguments.json}")
    return 0


def some(images: ImageSet, count: int) -> ImageSet:
    """Choose images of a set, evenly spread."""
    rows = spread_out(len(images), count)
    return ImageSet(
        images.images[rows],
        [images.keys[i] for i in rows],
        [images.subjects[i] for i in rows],
        images.labels[rows],
        images.value_range,
    )


if __name__ == "__main__":
    raise SystemExit(main())
