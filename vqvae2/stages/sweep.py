"""`sample.py --sweep`: the same samples once for each class of a label, or some values of a number, side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import files
from vqvae2.covariates import nearest
from vqvae2.data import from_unit
from vqvae2.detail import ImageDecoder
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, grid, png_bytes, to_picture
from vqvae2.prior import Prior, PriorConfig
from vqvae2.progress import Progress
from vqvae2.sampling import Sharpness, chunk_rows, sample_chunk
from vqvae2.stages.common import RunFolder
from vqvae2.stages.output_folder import begin, finish
from vqvae2.stages.sample_folder import hashes_of

__all__ = ["draw_sweep", "places_to_sweep"]

_VALUES = 8  # of a number without a range


def places_to_sweep(text: str, config: PriorConfig) -> tuple[str, list[int]]:
    """Read LABEL, or LABEL=START:STOP:STEP of a number, STOP included.

    Returns:
        The label, and the places of its classes or values.

    Raises:
        UserError: there is no such label, or no such range of it.
    """
    name, ranged, listed = text.partition("=")
    classes = dict(config.attributes).get(name)
    if classes is None:
        known = ", ".join(label for label, _ in config.attributes) or "none"
        raise UserError(f"there is no label {name}", "--sweep", f"Labels are {known}")
    if name not in config.numbers:
        if ranged:
            raise UserError(f"{name} has classes, and no range", f"--sweep {text}", f"Give --sweep {name}")
        return name, list(range(len(classes)))
    if not ranged:
        return name, np.linspace(0, len(classes) - 1, _VALUES).round().astype(int).tolist()
    low, high = float(classes[0]), float(classes[-1])
    try:
        start, stop, step = (float(part) for part in listed.split(":"))
    except ValueError:
        start = stop = step = float("nan")
    if not (low <= start < stop <= high and step >= float(classes[1]) - low - 1e-9):
        within = f"within {classes[0]} to {classes[-1]}, in steps of {float(classes[1]) - low:.6g} or more"
        way_out = f"Give {name}=START:STOP:STEP {within}, such as {_example(name, low, high)}"
        raise UserError(f"--sweep {text} is no range", how=way_out)
    return name, nearest(classes, np.arange(start, stop + step / 1000, step)).tolist()


def _example(name: str, low: float, high: float) -> str:
    """A range in round figures."""
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    return f"{name}={np.ceil(low / step) * step:g}:{np.floor(high / step) * step:g}:{step:g}"


def draw_sweep(
    out: Path,
    run: RunFolder,
    model: ImageDecoder,
    priors: list[Prior],
    name: str,
    places: list[int],
    label: Tensor,
    sharpness: list[Sharpness],
    seed: int,
    chunk_size: int,
    how: dict[str, Any],
) -> None:
    """Draw the samples, and write them as ``NUMBER-COLUMN.png`` with a grid: a sample to a row, a class to a column.

    Args:
        out: the folder.
        run: whose models these are.
        model, priors: of the run, on one device.
        name: of the label that is swept.
        places: of its classes, or of the values of a number, a column each.
        label: (num, A) int64 the labels of each sample; that of the swept one is replaced.
        sharpness: by level.
        seed: of the samples.
        chunk_size: images made at once.
        how: what else sweep.json says: how they are drawn, and what was typed.
    """
    names = [attribute for attribute, _ in priors[0].config.attributes]
    known = dict(priors[0].config.attributes)[name]
    classes = [known[place] for place in places]
    num, column = len(label), names.index(name)
    rows = [(sample, k) for sample in range(num) for k in range(len(classes))]
    every = label.repeat_interleave(len(classes), 0)
    every[:, column] = torch.tensor(places).repeat(num)
    cells = sum(h * w for h, w in model.config.shapes)
    images, nll = [], []
    with Progress(-(-len(rows) // chunk_size) * chunk_size * cells, "sampling", "codes") as progress:
        for first in range(0, len(rows), chunk_size):
            own = chunk_rows(first, chunk_size, len(rows))
            part = sample_chunk(model, priors, [rows[i][0] for i in own], every[own], seed, sharpness, progress)
            images.append(part.images.cpu())
            nll.append(part.nll.cpu())
    made = torch.cat(images)[: len(rows)]
    about = {
        "sweep": name,
        "classes": classes,
        **hashes_of(model, run),
        "nll_nats_per_code": torch.cat(nll)[: len(rows)].tolist(),
        "labels": every.tolist(),
        **how,
    }
    _write(out, made, rows, run.value_range, len(classes), about)
    print(f"wrote {out}/grid.png, {len(rows)} images and sweep.json; columns are {', '.join(classes)}")


def _write(
    out: Path,
    made: Tensor,
    rows: list[tuple[int, int]],
    value_range: tuple[float, float],
    columns: int,
    about: dict[str, Any],
) -> None:
    begin(out, "sweep.json", ["[0-9]*-[0-9]*.png"])
    for (sample, k), image in zip(rows, from_unit(made, value_range), strict=True):
        files.write_atomic(out / f"{sample:05d}-{k:03d}.png", png_bytes(channels_last(image)))
    files.write_atomic(out / "grid.png", png_bytes(grid([to_picture(image) for image in made], columns)))
    finish(out, "sweep.json", about)
