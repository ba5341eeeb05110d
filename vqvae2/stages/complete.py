"""`sample.py --complete`: the missing part of an image, drawn several times given the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import files
from vqvae2.data import from_unit, load_images, to_unit
from vqvae2.data.decoding import SUFFIXES, UnreadableError, decode, fit
from vqvae2.errors import UserError
from vqvae2.inference import complete, surprise
from vqvae2.inpainting import blend, known_codes
from vqvae2.pictures import channels_last, grid, png_bytes, to_picture
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.stages.common import RunFolder
from vqvae2.stages.output_folder import begin, finish
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.unlike import nats_per_code, training_nats, unlike
from vqvae2.vqvae import VQVAE

__all__ = ["Completion", "complete_image", "open_completion"]

_AT_ONCE = 64  # maps, particles counted


@dataclass(frozen=True)
class Completion:
    """An image, and what is missing of it.

    Attributes:
        image: (C, H, W) in [-1, 1].
        pixels: the same in stored values.
        value_range: of stored values, those that are -1 and 1.
        hole: (H, W) bool.
        source: where the image comes from.
    """

    image: Tensor
    pixels: NDArray[Any]
    value_range: tuple[float, float]
    hole: Tensor
    source: Path


def open_completion(like: dict[str, Any], path: Path, mask: Path | None, keep_box: str | None) -> Completion:
    """Read the image as the VQ-VAE takes it, and its hole.

    Args:
        like: the data's record in the VQ-VAE's config.
        path: of the image.
        mask: of a picture of the image's size that is not black where the image is missing.
        keep_box: ``y0,x0,y1,x1`` in pixels of the VQ-VAE, the part that is kept; either this or a mask.

    Raises:
        UserError: the image or the mask cannot be read or do not fit; nothing, or everything, is missing.
    """
    if (mask is None) == (keep_box is None):
        raise UserError("it is unclear which part of the image is missing", path, "Give either --mask or --keep-box")
    if not path.is_file():
        raise UserError("there is no such image", path, "Give --complete one file")
    images = load_images(path, like)
    if len(images) != 1:
        raise UserError(f"the file holds {len(images)} images", path, "Give --complete one slice, as a picture")
    size = (like["height"], like["width"])
    hole = _hole_of(mask, path, size, like["fit"]) if mask is not None else _around(keep_box or "", size)
    share = float(hole.mean())
    if share in (0, 1):
        raise UserError(
            "nothing of the image is missing" if share == 0 else "all of the image is missing",
            mask or f"--keep-box {keep_box}",
            "Mark what to draw in white, the rest in black" if mask else "Keep some of the image, not all of it",
        )
    image = to_unit(images.images[0], images.value_range)
    return Completion(image, np.asarray(images.images[0]), images.value_range, torch.from_numpy(hole), path)


def complete_image(
    out: Path,
    run: RunFolder,
    model: VQVAE,
    priors: list[Prior],
    completion: Completion,
    label: Tensor,
    particles: int,
    sweeps: int,
    seed: int,
    record: dict[str, Any],
) -> None:
    """Draw the completions and write them.

    Args:
        out: the folder.
        run: whose models these are.
        model, priors: of the run, on one device.
        completion: the image and its hole.
        label: (num, A) int64, one row for each completion.
        particles, sweeps, seed: as of `inference.complete`.
        record: what completion.json says of the settings.
    """
    device, num = model.device, len(label)
    image, hole = completion.image.to(device), completion.hole.to(device)
    codes, known = known_codes(model, image[None], hole[None, None])
    _tell_cells(model, known, hole)
    step = max(1, _AT_ONCE // particles)
    cells = sum(h * w for h, w in model.config.shapes)
    parts, evidence, accepted, effective = [], [], [], []
    with Progress(num * particles * (1 + sweeps) * cells, "completing", "codes") as progress:
        for first in range(0, num, step):
            rows = label[first : first + step].to(device)
            drawn = complete(
                priors,
                [level.expand(len(rows), -1, -1) for level in codes],
                [level.expand(len(rows), -1, -1) for level in known],
                rows,
                particles,
                sweeps,
                seed,
                range(first, first + len(rows)),
                progress,
            )
            parts.append(drawn.codes)
            evidence += drawn.log_evidence.tolist()
            effective += drawn.effective.tolist()
            accepted.append([share * len(rows) for share in drawn.accepted])
    made_codes = [torch.cat(level) for level in zip(*parts, strict=True)]
    made = blend(torch.cat([model.decode(part) for part in parts]), image, hole)
    taken = [sum(column) / num for column in zip(*accepted, strict=True)]
    print(f"effective particles: {min(effective):.1f} to {max(effective):.1f} of {particles}")
    if sweeps:
        print(f"sweeps that changed a completion: {', '.join(f'{share:.0%}' for share in taken)}")
    usual: dict[str, Any] = {}
    others = training_nats(run, priors, known) if any(level.any() for level in known) else None
    if others is not None:
        drawn_first = surprise(priors, [level[:1] for level in made_codes], label[:1].to(device))
        own = nats_per_code([nll for nll, _ in drawn_first], known)
        kept = [(name, own[0, i], *others[i]) for i, name in enumerate(model.levels) if known[i].any()]
        told = ", ".join(f"{name} {nats:.2f} ({low:.2f} to {high:.2f})" for name, nats, low, high in kept)
        print(f"nats a code of what is kept, in brackets of training images: {told}")
        if unlike(own, others, model.levels)[0]:
            print("note: the image is unlike the training images, and its completions may mean little")
        usual = {
            "kept_nats_per_code": {name: nats for name, nats, *_ in kept},
            "training_nats_per_code": {name: [low, high] for name, _, low, high in kept},
        }
    about = {
        **record,
        **hashes_of(model, run),
        "image": completion.source.name,
        "missing_pixels": int(completion.hole.sum()),
        "redrawn_codes": {name: int((~level).sum()) for name, level in zip(model.levels, known, strict=True)},
        **usual,
        "log_evidence": evidence,
        "effective_particles": effective,
        "accepted": taken,
        "labels": label.tolist(),
    }
    _write(out, completion, made, about)
    print(f"wrote {out}/grid.png, {num} completions, mean.png, spread.png and completion.json")


def _hole_of(mask: Path, image: Path, size: tuple[int, int], how: str) -> NDArray[np.bool_]:
    try:
        marked = decode(mask).pixels
    except UnreadableError as error:
        raise UserError(f"the mask cannot be read: {error}", mask) from error
    marked = (marked if marked.ndim == 2 else marked.max(2)) > 0
    own = decode(image).size if image.suffix.lower() in SUFFIXES else size
    if marked.shape != own:
        raise UserError(
            f"the mask has {marked.shape[0]}x{marked.shape[1]} pixels, the image {own[0]}x{own[1]}",
            mask,
            "Draw it at the image's size",
        )
    return marked if own == size else fit(marked.astype(np.uint8) * 255, size, how) > 0


def _around(box: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        top, left, bottom, right = (int(part) for part in box.split(","))
    except ValueError:
        raise UserError(f"--keep-box {box} is no box", how="Give Y0,X0,Y1,X1 in pixels, such as 0,0,64,128") from None
    if not (0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]):
        raise UserError(
            f"--keep-box {box} is not in the image", how=f"Give Y0 < Y1 <= {size[0]} and X0 < X1 <= {size[1]}"
        )
    hole = np.ones(size, bool)
    hole[top:bottom, left:right] = False
    return hole


def _tell_cells(model: VQVAE, known: list[Tensor], hole: Tensor) -> None:
    parts = []
    for name, level in zip(model.levels, known, strict=True):
        inside = torch.nn.functional.max_pool2d(
            hole[None, None].float(), (hole.shape[0] // level.shape[1], hole.shape[1] // level.shape[2])
        )
        parts.append(f"{name} {int((~level).sum())} of {level.numel()} ({int(inside.sum())} in the hole)")
    print(f"codes to draw: {', '.join(parts)}; those outside the hole depend on pixels in it")


def _write(out: Path, completion: Completion, made: Tensor, about: dict[str, Any]) -> None:
    begin(out, "completion.json", ["[0-9]*.png"])
    made = made.cpu()
    hole = completion.hole.numpy()

    def write(name: str, image: Tensor) -> None:
        pixels = np.where(hole, from_unit(image[None], completion.value_range)[0], completion.pixels)
        files.write_atomic(out / name, png_bytes(channels_last(pixels.astype(completion.pixels.dtype))))

    for i, image in enumerate(made):
        write(f"{i:05d}.png", image)
    mean = made.mean(0)
    write("mean.png", mean)
    spread = made.std(0, correction=0).mean(0)
    brightest = float(spread.max())
    spread_picture = (spread / (brightest or 1.0) * 255).round().to(torch.uint8).numpy()
    files.write_atomic(out / "spread.png", png_bytes(spread_picture))
    missing = torch.where(completion.hole, torch.zeros_like(completion.image), completion.image)
    shown = [to_picture(missing), *map(to_picture, made), to_picture(mean), spread_picture]
    files.write_atomic(out / "grid.png", png_bytes(grid(shown)))
    finish(out, "completion.json", about | {"largest_spread": brightest})
