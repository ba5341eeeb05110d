"""What a run's likelihood is good for: completion of a removed quarter, and lesions painted on held-out images.

    python benchmarks/inference.py --run RUN --json FILE [--pictures DIR] [--only completion anomaly]

The run must have held-out images and the priors of all levels. Completion: a quarter of the frame is removed, each in
turn; the root of the mean squared error in it, in [-1, 1], beside the mean training image, the mirrored half,
scikit-image's biharmonic inpainting and the nearest training image by the pixels that are left; the models are told
the labels unless a row says *no label*. Anomalies, on every second person, while the others tell what is usual:
discs of 3 to 15 pixels, bright, dark, of another texture, without texture, or with the grey ribbon in them missing (as
bright as white matter); the area under the ROC curve by pixel of the foreground, over all images, for `anomaly_map`
beside simpler scores, one of which is given the height of the slice. *Faint* lesions have half the contrast or less."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import threshold_multiotsu
from skimage.restoration import inpaint_biharmonic
from torch import Tensor

from vqvae2 import VQVAE, Prior
from vqvae2.anomaly import (
    FEATURES,
    Usual,
    anomaly_map,
    anomaly_parts,
    features,
    improbable,
    redraw_blocks,
    residual_map,
    restore_images,
)
from vqvae2.data import ImageSet
from vqvae2.inference import complete, surprise
from vqvae2.inpainting import blend, known_codes
from vqvae2.metrics import foreground, gaussian_blur
from vqvae2.pictures import grid, png_bytes, to_picture
from vqvae2.report import background_of, spread_out
from vqvae2.stages.common import RunFolder
from vqvae2.stages.evaluated import open_evaluated
from vqvae2.stages.sampled import load_models

KINDS = ("bright", "dark", "texture", "smooth", "ribbon")
SIZES = (3, 5, 7, 9, 11, 15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, help="folder for figures of the best and the worst")
    parser.add_argument("--only", nargs="*", default=["completion", "anomaly"], choices=["completion", "anomaly"])
    parser.add_argument("--images", type=int, default=12, help="completed images (default: %(default)s)")
    parser.add_argument("--completions", type=int, default=8, help="of each (default: %(default)s)")
    parser.add_argument("--lesions", type=int, default=60, help="images with lesions (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=4, help="of each block (default: %(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    run = RunFolder(arguments.run)
    record = run.read()
    model, priors = load_models(run, torch.device("cpu"))
    if arguments.precision == "bf16":
        priors = [prior.to(torch.bfloat16) for prior in priors]
    evaluated = open_evaluated(run, record, None, None)
    if evaluated.train is None:
        raise SystemExit("error: the run's training images cannot be read")
    figures: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    if "completion" in arguments.only:
        figures["completion"] = completion(model, priors, evaluated.images, evaluated.train, arguments)
        arguments.json.write_text(json.dumps(figures, indent=1))
    if "anomaly" in arguments.only:
        background = background_of(evaluated.train)
        normal = usual_of(model, priors, evaluated.images, background, arguments)
        for name, strength in (("clear", 1.0), ("faint", 0.45)):
            figures[f"anomaly, {name}"] = anomaly(
                model, priors, evaluated.images, evaluated.train, background, normal, strength, name, arguments
            )
            arguments.json.write_text(json.dumps(figures, indent=1))


def completion(
    model: VQVAE, priors: list[Prior], images: ImageSet, train: ImageSet, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Complete removed quarters, and compare."""
    rows = spread_out(len(images), arguments.images)
    batch = images.__getitems__(rows)
    x, label = batch["image"], batch["label"]
    height, width = x.shape[2:]
    hole = torch.zeros(len(x), 1, height, width, dtype=torch.bool)
    for i in range(len(x)):
        top, left = (i % 4) // 2 * (height // 2), i % 2 * (width // 2)
        hole[i, :, top : top + height // 2, left : left + width // 2] = True
    everyone = train.at(list(range(len(train))))
    mean = everyone.mean(0, keepdim=True).expand_as(x)
    kept = torch.stack([(((everyone - one) ** 2) * ~own).sum((1, 2, 3)) for one, own in zip(x, hole, strict=True)])
    smooth = [inpaint_biharmonic(one.numpy(), own[0].numpy(), channel_axis=0) for one, own in zip(x, hole, strict=True)]
    naive = {
        "mean training image": mean,
        "mirrored half": x.flip(-1),
        "biharmonic inpainting": torch.from_numpy(np.stack(smooth)).float().clamp(-1, 1),
        "nearest training image": everyone[kept.argmin(1)],
        "reconstruction, nothing removed": model.decode(model.encode(x)),
    }
    found: dict[str, Any] = {
        name: {"rmse": round(float(_rmse(other, x, hole).mean()), 4)} for name, other in naive.items()
    }
    for name, figures in found.items():
        print(f"{name:<34} {figures['rmse']:.4f}", flush=True)
    codes, known = known_codes(model, x, hole)
    count = arguments.completions
    made: Any = None
    for particles, sweeps, told in ((1, 0, True), (16, 0, False), (16, 0, True), (16, 2, True)):
        own_label = label if told else torch.full_like(label, -1)
        started, parts, accepted = time.monotonic(), [], []
        for i in range(len(x)):
            drawn = complete(
                priors,
                [level[i : i + 1].expand(count, -1, -1) for level in codes],
                [level[i : i + 1].expand(count, -1, -1) for level in known],
                own_label[i : i + 1].expand(count, -1),
                particles,
                sweeps,
                numbers=range(i * count, (i + 1) * count),
            )
            accepted.append(drawn.accepted)
            parts.append(blend(model.decode(drawn.codes), x[i], hole[i, 0]))
        made = torch.stack(parts)
        single = torch.stack([_rmse(made[:, k], x, hole) for k in range(count)], 1)
        mean_of = _rmse(made.mean(1), x, hole)
        name = f"{particles} particles, {sweeps} sweeps{'' if told else ', no label'}"
        found[name] = {
            "rmse_single": round(float(single.mean()), 4),
            "rmse_mean": round(float(mean_of.mean()), 4),
            "completions": count,
            "images": len(x),
            "accepted": [round(float(share), 3) for share in np.mean(accepted, 0)] if sweeps else [],
            "seconds_each": round((time.monotonic() - started) / count / len(x), 2),
        }
        print(f"{name:<34} {found[name]}", flush=True)
    if arguments.pictures is not None:
        order = _rmse(made.mean(1), x, hole).argsort().tolist()
        sheet = []
        for i in (*order[:2], *order[-2:]):
            shown = [x[i], torch.where(hole[i], torch.zeros_like(x[i]), x[i]), *made[i, :3], made[i].mean(0)]
            sheet += [to_picture(image) for image in shown]
        _save(arguments.pictures / "completions.png", sheet, 6)
    return found


def _of_half(images: ImageSet, half: int) -> list[int]:
    """The images of every second person: some get lesions, the others (1) tell what is usual."""
    everyone = sorted(set(images.subjects))
    people = set(everyone[half::2] if len(everyone) > 1 else everyone)
    return [i for i, who in enumerate(images.subjects) if who in people]


def usual_of(
    model: VQVAE, priors: list[Prior], images: ImageSet, background: float | None, arguments: argparse.Namespace
) -> tuple[Usual, list[float]]:
    """What is usual, by 32 images of people who get no lesions, and the NLL above which a code is improbable."""
    free = _of_half(images, 1)
    x = images.at([free[i] for i in spread_out(len(free), 32)])
    drawn = redraw_blocks(model, priors, x, arguments.draws)
    surprised = [own for own, _ in surprise(priors, model.encode(x))]
    heads = foreground(x, background)
    return Usual.of(anomaly_parts(x, drawn, surprised), heads), improbable(surprised, heads)


def anomaly(
    model: VQVAE,
    priors: list[Prior],
    images: ImageSet,
    train: ImageSet,
    background: float | None,
    normal: tuple[Usual, list[float]],
    strength: float,
    name: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Paint lesions, and look for them."""
    usual, threshold = normal
    half = _of_half(images, 0)
    batch = images.__getitems__([half[i] for i in spread_out(len(half), arguments.lesions)])
    clean, label = batch["image"], batch["label"]
    heads = foreground(clean, background)
    painted = [
        paint(
            clean[i, 0].numpy(),
            heads[i].numpy(),
            KINDS[i % len(KINDS)],
            SIZES[i // len(KINDS) % len(SIZES)],
            strength,
            i,
        )
        for i in range(len(clean))
    ]
    x = torch.from_numpy(np.stack([image for image, _ in painted])).float()[:, None]
    lesions = np.stack([mask for _, mask in painted])
    codes = model.encode(x)
    started = time.monotonic()
    drawn = redraw_blocks(model, priors, x, arguments.draws)
    surprised = [own for own, _ in surprise(priors, codes)]
    parts = anomaly_parts(x, drawn, surprised)
    ours = anomaly_map(parts, usual)
    seconds = (time.monotonic() - started) / len(x)
    up = _upsampler(x.shape[2:])
    nll = torch.stack([up(own) * own[0].numel() for own in surprised]).sum(0) / x[0].numel()
    restored = restore_images(model, priors, codes, threshold, arguments.draws)
    everyone = train.__getitems__(list(range(len(train))))
    their = features(everyone["image"])
    z = []
    for i, own in enumerate(features(x)):
        like = everyone["label"][:, 0] == label[i, 0] if label.shape[1] else torch.ones(len(their), dtype=torch.bool)
        like = like if int(like.sum()) >= 20 else torch.ones_like(like)
        spread = their[like].std(0)
        scale = (spread.square() / 2 + spread.square().mean((1, 2), keepdim=True) / 2).sqrt()
        z.append(((own - their[like].mean(0)) / scale).square().sum(0).sqrt())
    scores = {
        "reconstruction error": (x - model.decode(codes)).abs()[:, 0],
        "NLL of the codes": nll,
        "the same comparison with training images": torch.stack(z),
    }
    scores = {key: gaussian_blur(own[:, None], 1.5)[:, 0] for key, own in scores.items()}
    scores["restoration of improbable codes"] = residual_map(x, restored)
    features_alone = Usual(usual.mean[: len(FEATURES)], usual.std[: len(FEATURES)])
    scores["comparison with redrawn blocks alone"] = anomaly_map(parts[:, : len(FEATURES)], features_alone)
    scores["comparison with redrawn blocks, and NLL"] = ours
    found: dict[str, Any] = {}
    inside = heads.numpy()
    for key, own in scores.items():
        values = own.numpy()
        found[key] = {"all": _auroc(values[inside], lesions[inside])}
        for k, kind in enumerate(KINDS):
            these = np.arange(len(x)) % len(KINDS) == k
            mask = inside[these]
            found[key][kind] = _auroc(values[these][mask], lesions[these][mask])
        print(f"{name:<6} {key:<42} {found[key]}", flush=True)
    found["images"], found["draws"], found["seconds_an_image"] = len(x), arguments.draws, round(seconds, 1)
    print(f"{seconds:.1f} s an image")
    if arguments.pictures is not None:
        each = [_auroc(ours[i].numpy()[inside[i]], lesions[i][inside[i]]) for i in range(len(x))]
        order = np.argsort(each)[::-1].tolist()
        sheet = []
        for i in (*order[:3], *order[-3:]):
            maps = (ours[i] * heads[i], torch.from_numpy(lesions[i]) * 8.0)
            sheet += [to_picture(x[i]), to_picture(drawn[i].mean(0)), *map(_heat, maps)]
        _save(arguments.pictures / f"anomalies-{name}.png", sheet, 4)
    return found


def paint(
    image: Any, head: Any, kind: str, size: int, strength: float, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Paint a lesion into a disc of an image (H, W), at least 8 pixels inside the head.

    Returns:
        The image, and where the lesion is, (H, W) bool: nowhere where there is no place for it.
    """
    random = np.random.default_rng([seed, 7])
    depth = ndimage.distance_transform_edt(head)
    places = np.argwhere(depth > min(size / 2 + 8, depth.max() - 1))
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    grey, bright = np.ones_like(head), 0.0
    if kind == "ribbon":  # where a quarter to three quarters of the disc are grey matter
        dark, white = threshold_multiotsu(image[head], 3)
        grey = (image > dark) & (image <= white)
        bright = float(np.median(image[(image > white) & (depth > depth.max() / 3)]))
        share = ndimage.uniform_filter(grey.astype(float), size)[tuple(places.T)]
        places = places[(share > 0.25) & (share < 0.75)]
    if not len(places):
        return image, np.zeros_like(head)
    row, column = places[random.integers(len(places))]
    where = grey & ((y - row) ** 2 + (x - column) ** 2 <= (size / 2) ** 2 + 0.25)
    weight = ndimage.gaussian_filter(where.astype(float), 0.6)
    weight = weight / weight.max()
    new = {
        "bright": image + 0.9 * strength,
        "dark": image - 0.9 * strength,
        "texture": image + random.normal(0, 0.4 * strength, image.shape),
        "smooth": ndimage.gaussian_filter(image, 3.0 * strength),
        "ribbon": image + strength * (bright - image),
    }[kind]
    return np.clip(image * (1 - weight) + new * weight, -1, 1), where


def _rmse(made: Tensor, x: Tensor, hole: Tensor) -> Tensor:
    return (((made - x) ** 2 * hole).sum((1, 2, 3)) / (hole.sum((1, 2, 3)) * x.shape[1])).sqrt()


def _auroc(scores: Any, positive: Any) -> float:
    """Area under the ROC curve (Mann-Whitney); ties count as they are ordered."""
    rank = np.empty(len(scores))
    rank[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    count = int(positive.sum())
    if not 0 < count < len(scores):
        return float("nan")
    area = (rank[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count))
    return round(float(area), 3)


def _upsampler(size: Any) -> Callable[[Tensor], Tensor]:
    return lambda cells: torch.nn.functional.interpolate(cells[:, None], size=tuple(size), mode="bilinear")[:, 0]


def _heat(own: Tensor) -> np.ndarray[Any, Any]:
    level = np.clip(own.numpy() / 4.5, 0, 3)
    return np.asarray(np.stack([np.clip(level - k, 0, 1) for k in range(3)], -1) * 255, np.uint8)


def _save(path: Path, sheet: list[Any], columns: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(grid(sheet, columns)))


if __name__ == "__main__":
    main()
