"""Whether loading ever keeps a training waiting: the first pass over a folder, and batches from memory.

    python benchmarks/loading.py --json FILE [--data DIR]

DIR holds images of one size; without it 1,600 PNG of the phantom, 128x128, are written and read. The first claim is the
time until all of them are decoded, split, looked through for copies and ready; the second how many times faster batches
come than a VQ-VAE of the preset brain128 takes them on the same cores.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqvae2.data import DataConfig, open_data
from vqvae2.device import autocast, resolve_precision
from vqvae2.presets import PRESETS
from vqvae2.vqvae import VQVAE

COUNT, SIZE, BATCH = 1600, 128, 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--data", type=Path, help="folder of images, 128x128 and grey; default: the phantom as PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.data or write_phantom(Path(name))
        started = time.perf_counter()
        data = open_data(DataConfig(data=str(folder)))
        first_pass = time.perf_counter() - started
    count = sum(len(images) for images in data.splits.values())
    images = data.splits["train"]
    rng = np.random.default_rng(0)
    started, batches = time.perf_counter(), 500
    for _ in range(batches):
        images.__getitems__(rng.integers(0, len(images), BATCH).tolist())
    loaded = batches * BATCH / (time.perf_counter() - started)
    taken = training_rate(images)
    claims = [
        {"name": "first-pass", "images": count, "seconds": first_pass, "bar": 10 * count / COUNT},
        {"name": "loading", "images_per_second": loaded, "training_takes": taken, "ratio": loaded / taken, "bar": 20},
    ]
    print(f"first-pass: {count:,} images in {first_pass:.2f} s (bar {10 * count / COUNT:.0f})")
    print(f"loading: {loaded:,.0f} images/s, the training takes {taken:.0f}: ratio {loaded / taken:.0f} (bar 20)")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"claims": claims}, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def write_phantom(folder: Path) -> Path:
    phantom = open_data(DataConfig(data="phantom", phantom_images=COUNT, size=f"{SIZE}x{SIZE}"))
    pixels = np.concatenate([images.images for images in phantom.splits.values()])
    for i, image in enumerate(pixels):
        Image.fromarray(image[0]).save(folder / f"s{i // 16:03d}_slice_{i % 16}.png")
    return folder


def training_rate(images: object) -> float:
    """Images per second of the training's step, without its loading."""
    model = VQVAE(PRESETS["brain128"].vqvae).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = images.at(list(range(BATCH)))  # type: ignore[attr-defined]
    precision = resolve_precision("auto", torch.device("cpu"))
    for step in range(15):
        if step == 5:
            started = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            loss, _, _ = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_codebooks()
    return 10 * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
