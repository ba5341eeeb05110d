"""Data that need no folder of the user's: the phantom and torchvision's sets."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2 import distributed
from vqvae2.data import phantom
from vqvae2.data.config import DataConfig
from vqvae2.data.dataset import ImageData, ImageSet
from vqvae2.data.decoding import fit, recolour
from vqvae2.data.labels import encode
from vqvae2.data.splits import SPLITS, assign
from vqvae2.errors import UserError

TORCHVISION = ("CIFAR10", "MNIST", "FashionMNIST")
BYTES = (0.0, 255.0)


def open_phantom(config: DataConfig, splits: Sequence[str] | None, like: dict[str, Any] | None) -> ImageData:
    """Draw the phantom's slices of these splits, each of its own subject, with the attribute "diagnosis"."""
    size = (like["height"], like["width"]) if like else config.height_width() or (64, 64)
    channels = like["channels"] if like else config.channels or 1
    if min(size) < 32:
        raise UserError(f"the phantom needs at least 32x32 pixels, not {size[0]}x{size[1]}", how="Give a larger --size")
    keys = [f"phantom-{index:05d}" for index in range(config.phantom_images)]
    place = assign(keys, [None] * len(keys), config.split_seed)
    held: dict[str, ImageSet] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    for split, rows in _rows(place, splits):
        images = np.empty((len(rows), channels, *size), np.uint8)
        diagnoses = []
        for row, index in enumerate(rows):
            images[row], label, _ = phantom.render(0, index, size)
            diagnoses.append(phantom.DIAGNOSES[label])
        known = like["attributes"] if like else {"diagnosis": phantom.DIAGNOSES}
        labels = encode({"diagnosis": diagnoses}, np.ones(len(rows), bool), known)
        attributes = labels.attributes
        names = [keys[i] for i in rows]
        held[split] = ImageSet(images, names, list(names), labels.values, BYTES)
    layout = "procedural brain slices, one a subject"
    return ImageData("phantom", layout, channels, size[0], size[1], BYTES, attributes, held)


def open_torchvision(config: DataConfig, splits: Sequence[str] | None, like: dict[str, Any] | None) -> ImageData:
    """Fetch a set of torchvision's: its test part is "test", the rest split by image; attribute "class"."""
    name = config.data.partition(":")[2]
    if name not in TORCHVISION:
        raise UserError(f"torchvision:{name} is not supported", how=f"Choose of {', '.join(TORCHVISION)}")
    from torchvision import datasets  # imported here: it takes a second that other data need not pay

    pictures: list[NDArray[np.uint8]] = []
    targets: list[int] = []
    keys: list[str] = []
    ready: list[str] = []
    classes: list[str] = []
    for part, train in (("train", True), ("test", False)):
        try:
            load = partial(getattr(datasets, name), config.data_root, train=train, download=True)
            distributed.on_main(lambda: load() and None)  # noqa: B023 - called at once; one process downloads
            loaded = load()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{name} cannot be downloaded ({error})",
                config.data_root,
                "Put its files there, or give --data-root",
            ) from None
        classes = [str(label) for label in loaded.classes]
        pictures.append(np.asarray(loaded.data))
        targets += [int(target) for target in loaded.targets]
        keys += [f"{part}/{index:05d}" for index in range(len(loaded.data))]
        ready += [part] * len(loaded.data)
    pixels = np.concatenate(pictures)
    place = assign(keys, ready, config.split_seed)
    native = (int(pixels.shape[1]), int(pixels.shape[2]))
    size = (like["height"], like["width"]) if like else config.height_width() or native
    how = like["fit"] if like else config.fit
    channels = like["channels"] if like else config.channels or (3 if pixels.ndim == 4 else 1)
    known = like["attributes"] if like else {"class": classes}
    labels = encode({"class": [classes[target] for target in targets]}, np.ones(len(keys), bool), known)
    held: dict[str, ImageSet] = {}
    for split, rows in _rows(place, splits):
        images = np.stack([recolour(fit(pixels[i], size, how), channels) for i in rows])
        names = [keys[i] for i in rows]
        held[split] = ImageSet(images, names, list(names), labels.values[rows], BYTES)
    return ImageData(
        name=config.data,
        layout="torchvision, its test part as test",
        channels=channels,
        height=size[0],
        width=size[1],
        value_range=BYTES,
        attributes=labels.attributes,
        splits=held,
        fit=how,
        sizes={native: sum(len(images) for images in held.values())},
    )


def _rows(place: list[str], splits: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """The indices of each split that is there and wanted."""
    wanted = [split for split in SPLITS if split in place and (splits is None or split in splits)]
    return [(split, [i for i, held in enumerate(place) if held == split]) for split in wanted]
