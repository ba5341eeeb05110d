"""Small pictures and folders of them for the tests of the data."""

from pathlib import Path

import numpy as np
from PIL import Image

from vqvae2.data import ImageData


def picture(seed: int = 0, shape: tuple[int, ...] = (8, 8), top: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write(folder: Path, names: list[str], **options: object) -> Path:
    """A folder of different small grey pictures of these names."""
    for seed, name in enumerate(names):
        save(folder / name, picture(seed), **options)
    return folder


def ten(folder: Path, count: int = 10) -> Path:
    return write(folder, [f"p{i}_0.png" for i in range(count)])


def every(data: ImageData) -> dict[str, np.ndarray]:
    """All images of all splits by key."""
    return {key: image for part in data.splits.values() for key, image in zip(part.keys, part.images, strict=True)}


def labels_of(data: ImageData) -> dict[str, list[str | None]]:
    """The class names of each image by key."""
    classes = list(data.attributes.values())
    named = {}
    for part in data.splits.values():
        for key, row in zip(part.keys, part.labels, strict=True):
            named[key] = [names[k] if k >= 0 else None for names, k in zip(classes, row, strict=True)]
    return named


ADNI = [
    f"AD_NC/{place}/{patient}_{k}.jpeg"
    for place, patient in (
        ("train/AD", 1001),
        ("train/NC", 1002),
        ("train/AD", 1003),
        ("test/AD", 2001),
        ("test/NC", 2002),
    )
    for k in (78, 79)
]
