"""Whether the fluid in samples grows with the age that was asked for, as it does in people.

    python benchmarks/fluid_by_age.py --data DIR --run RUN --samples DIR [DIR ...] --json FILE

DIR of the data holds axial T1 slices and a `slices.csv` with `file`, `subject`, `split`, `mm_below_vertex` and `age`;
the run was trained on them with age as a number (`--numbers age`) or in classes (`--bins age=...`), and
`sample.py` drew the samples with any labels. The share of dark voxels inside the head (fluid, roughly, see
`vqvae2.report.anatomy`) is fitted by a slope in age, by the mean age of each class, and a constant for each height.
Standard errors are by a bootstrap, over people where there are any. Beside it the same with the ages shuffled.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vqvae2 import checkpoint
from vqvae2.data import load_images
from vqvae2.report.anatomy import class_bounds, measure

BACKGROUND, BOOTSTRAPS = -1.0, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="run folder, or exported models")
    parser.add_argument("--samples", type=Path, nargs="+", required=True, help="folders that sample.py wrote")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    arguments = parser.parse_args()
    like = checkpoint.load_config(arguments.run / "vqvae", kind="vqvae")["data"]
    names, edges = list(like["attributes"]), like["bins"].get("age")
    rows = list(csv.DictReader((arguments.data / "slices.csv").open()))
    aged = [row for row in rows if row["age"]]
    if edges is None:  # a number
        ages = [float(value) for value in like["attributes"]["age"]]
        in_class = [int(np.abs(np.subtract(ages, float(row["age"]))).argmin()) for row in aged]
    else:
        in_class = [int(np.digitize(float(row["age"]), edges)) for row in aged]
        ages = [
            float(np.mean([float(r["age"]) for r, k in zip(aged, in_class, strict=True) if k == at]))
            for at in range(len(edges) + 1)
        ]
    sets = {
        split: [(row, k) for row, k in zip(aged, in_class, strict=True) if (row["split"] == "val") == (split == "val")]
        for split in ("train", "val")
    }
    pixels = {split: read([arguments.data / row["file"] for row, _ in own], like) for split, own in sets.items()}
    bounds = class_bounds(pixels["train"][::3], BACKGROUND)
    if bounds is None:
        raise SystemExit("error: the slices show nothing before a background")
    figures: dict[str, dict[str, Any]] = {}
    for split, own in sets.items():
        dark = measure(pixels[split], BACKGROUND, bounds)["dark"]
        age = np.array([ages[k] for _, k in own])
        figures[split] = fit(dark, age, [row["mm_below_vertex"] for row, _ in own], [row["subject"] for row, _ in own])
    for folder in arguments.samples:
        about = json.loads((folder / "samples.json").read_text())
        labels = np.array(about["labels"])
        files = sorted(path for path in folder.rglob("*.png") if path.stem.isdecimal())
        dark = measure(read(files, like), BACKGROUND, bounds)["dark"]
        asked = labels[: len(files), names.index("age")]
        known = asked >= 0
        age = np.array(ages)[asked.clip(0)]
        height = labels[: len(files), names.index("mm_below_vertex")]
        alone = np.arange(len(files))
        shuffled = np.random.default_rng(0).permutation(age[known])
        figures[str(folder)] = {
            **fit(dark[known], age[known], height[known], alone[known]),
            "shuffled": fit(dark[known], shuffled, height[known], alone[known]),
        }
    for name, found in figures.items():
        beside = f"; ages shuffled {found['shuffled']['slope']:.4f}" if "shuffled" in found else ""
        print(f"{name}: {found['slope']:.4f} ({found['se']:.4f}) in ten years, {found['count']} images{beside}")
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def read(files: list[Path], like: dict) -> torch.Tensor:
    """Images (N, 1, H, W) in [-1, 1], as the run was trained on them."""
    parts = [load_images(files[start : start + 512], like) for start in range(0, len(files), 512)]
    return torch.cat([images.at(range(len(images))) for images in parts])


def fit(dark: NDArray, age: NDArray, heights: ArrayLike, people: ArrayLike) -> dict[str, float]:
    """The slope in ten years, its standard error, and how many images."""
    seen = np.isfinite(dark)
    places = np.unique(np.asarray(heights)[seen], return_inverse=True)[1]
    design = np.column_stack([age[seen] / 10, np.eye(places.max() + 1)[places]])
    values, groups = dark[seen], np.unique(np.asarray(people)[seen], return_inverse=True)[1]
    rows = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]

    def slope(chosen: NDArray) -> float:
        return float(np.linalg.lstsq(design[chosen], values[chosen], rcond=None)[0][0])

    rng = np.random.default_rng(0)
    drawn = [
        slope(np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])) for _ in range(BOOTSTRAPS)
    ]
    return {"slope": slope(np.arange(len(values))), "se": float(np.std(drawn)), "count": len(values)}


if __name__ == "__main__":
    main()
