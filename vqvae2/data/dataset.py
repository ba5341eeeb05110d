"""Images as stored integers, in memory or mapped from a file, handed out as tensors in [-1, 1]."""

import functools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vqvae2.data.decoding import digest_of
from vqvae2.data.pixel_file import Decoded, Images, PixelFile

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def to_unit(values: NDArray[Any] | torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    """Stored values of any shape to float32 in [-1, 1], the ends of value_range to -1 and 1; on their device."""
    low, high = value_range
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values.astype(np.float32))
    unit = values.to(torch.float32, copy=True)
    return unit.sub_(low).mul_(2 / (high - low)).sub_(1)


def from_unit(tensor: torch.Tensor, value_range: tuple[float, float]) -> Pixels:
    """A tensor of any shape in [-1, 1] to stored values, rounded and clipped: uint8, or uint16 above 255."""
    low, high = value_range
    values = (tensor.detach().cpu().double().numpy() + 1) * ((high - low) / 2) + low
    stored = np.clip(np.rint(values), low, high)
    return stored.astype(np.uint8) if high <= 255 else stored.astype(np.uint16)


def as_stored(tensor: torch.Tensor, value_range: tuple[float, float]) -> torch.Tensor:
    """A tensor of any shape in [-1, 1] as it is after `from_unit` and `to_unit`: clipped, rounded; on its device."""
    half = (value_range[1] - value_range[0]) / 2
    return tensor.clamp(-1, 1).add(1).mul(half).round().div(half).sub(1)


@dataclass
class ImageSet(Dataset[dict[str, Any]]):
    """The images of one split with their names, subjects and labels.

    Args:
        images: (N, C, H, W) uint8 or uint16.
        keys: N names, unique: paths relative to the data's folder.
        subjects: N names of whom the images show.
        labels: (N, A) int64, -1 where missing.
        value_range: the stored values that become -1 and 1.
        skipped: (path, reason) of the files that could not be read.
        file: what is known of each image without a look at its pixels, where they were read from files.
    """

    images: Images
    keys: list[str]
    subjects: list[str]
    labels: NDArray[np.int64]
    value_range: tuple[float, float]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    file: PixelFile | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.keys) == len(self.subjects) == len(self.labels):
            raise ValueError("images, keys, subjects and labels differ in length")
        if self.images.ndim != 4 or self.labels.ndim != 2:
            raise ValueError(f"expected (N, C, H, W) and (N, A), got {self.images.shape} and {self.labels.shape}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None}  # processes that load batches do without

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def span(self) -> tuple[int, int]:
        """The lowest and the highest stored value."""
        if self.file is not None:
            return int(self.file.index["low"].min()), int(self.file.index["high"].max())
        return int(np.min(self.images)), int(np.max(self.images))

    @property
    def checksum(self) -> int:
        """Checksum of the images."""
        return zlib.crc32(np.ascontiguousarray(self.images).data) if self.file is None else self.file.checksum

    @property
    def on_demand(self) -> bool:
        """Whether images are decoded from their files whenever they are asked for."""
        return isinstance(self.images, Decoded)

    @functools.cached_property
    def digests(self) -> list[bytes]:
        """A hash of each image's pixels, by which copies are found; empty for an image of one value."""
        if self.file is not None:
            return [row.tobytes() if row.any() else b"" for row in self.file.index["digest"]]
        return [digest_of(self.images[row]) for row in range(len(self))]

    def some(self, rows: Sequence[int]) -> "ImageSet":
        """A set of some of the images, in this order."""
        return replace(
            self,
            images=self.images[rows],
            keys=[self.keys[i] for i in rows],
            subjects=[self.subjects[i] for i in rows],
            labels=self.labels[rows],
            file=None,
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image: "image" (C, H, W) float32 in [-1, 1], "label" (A,) int64, "index"."""
        return {
            "image": to_unit(self.images[index], self.value_range),
            "label": torch.from_numpy(self.labels[index].copy()),
            "index": index,
        }

    def stored(self, indices: Sequence[int] | NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """A batch: "image" (B, C, H, W) as it is stored, uint8 or int32, "label" (B, A), "index" (B,)."""
        rows = np.asarray(indices, dtype=np.int64)
        values = self.images[rows]
        return {
            "image": torch.from_numpy(values if values.dtype == np.uint8 else values.astype(np.int32)),
            "label": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    def at(self, rows: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
        """Some of the images by their numbers: (B, C, H, W) in [-1, 1]."""
        return to_unit(self.stored(rows)["image"], self.value_range)

    def in_parts(self, size: int) -> Iterator[torch.Tensor]:
        """All images in their order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.at(range(start, min(start + size, len(self))))

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A batch: "image" (B, C, H, W) in [-1, 1], "label" (B, A), "index" (B,); for a collate_fn that keeps it."""
        batch = self.stored(indices)
        return {**batch, "image": to_unit(batch["image"], self.value_range)}


@dataclass
class ImageData:
    """A whole data set: what it is, its splits, and what the user should know about it.

    Args:
        name: what the user called it.
        layout: how its folders were understood, in words.
        channels: C, 1 or 3.
        height: H in pixels.
        width: W in pixels.
        value_range: the stored values that become -1 and 1.
        attributes: name -> class names in label order; empty when there are no labels.
        splits: "train", "selection", "val" and perhaps "test".
        skipped: (path, reason) of the files that were left out.
        notes: remarks for the user.
        doubts: readings of names and places that are uncertain, with the flag that settles each.
        fit: how images of other sizes are brought to H x W.
        bins: attribute -> inner edges, for the attributes that are binned numbers.
        numbers: the attributes whose classes are values of a number, in even steps.
        sizes: (height, width) of the files -> how many.
        slices: how volumes were cut; None where the files are images.
        bids_suffix: kind of volume that is taken, by the end of its name; None for the layout's own.
        bids_entity: parts that the names of the volumes have, as NAME=VALUE.
    """

    name: str
    layout: str
    channels: int
    height: int
    width: int
    value_range: tuple[float, float]
    attributes: dict[str, tuple[str, ...]]
    splits: dict[str, ImageSet]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    fit: str = "shrink"
    bins: dict[str, list[float]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    slices: dict[str, Any] | None = None
    bids_suffix: str | None = None
    bids_entity: tuple[str, ...] = ()

    def to_config(self) -> dict[str, Any]:
        """What later stages must know to read images alike, as plain JSON values."""
        return {
            "source": self.name,
            "layout": self.layout,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "fit": self.fit,
            "value_range": list(self.value_range),
            "attributes": {name: list(classes) for name, classes in self.attributes.items()},
            "bins": {name: list(edges) for name, edges in self.bins.items()},
            "numbers": list(self.numbers),
            "slices": self.slices,
            "bids_suffix": self.bids_suffix,
            "bids_entity": list(self.bids_entity),
        }

    def report(self) -> str:
        """The data report: images, subjects and labels by split, sizes, values, what was skipped and why."""
        colour = "grey" if self.channels == 1 else "RGB"
        low, high = self.value_range
        lines = [
            f"data       {self.name}, {self.layout}",
            *(f"uncertain  {_in_line(doubt)}" for doubt in self.doubts),
            f"images     {self.height} x {self.width} (height x width), {colour}, "
            f"stored values {low:g} to {high:g} become -1 to 1",
        ]
        if self.sizes and set(self.sizes) != {(self.height, self.width)}:
            common = Counter(self.sizes).most_common(5)
            listed = ", ".join(f"{count:,} of {h} x {w}" for (h, w), count in common)
            more = f" and {len(self.sizes) - 5} more sizes" if len(self.sizes) > 5 else ""
            lines.append(f"files      {listed}{more}, brought to size by {self.fit}")
        lines.append(f"{'split':<11}{'images':>8}{'subjects':>10}{'values':>14}")
        for split, images in self.splits.items():
            seen = "{} to {}".format(*images.span) if len(images) else "-"
            lines.append(f"{split:<11}{len(images):>8,}{len(set(images.subjects)):>10,}{seen:>14}")
        for column, (attribute, classes) in enumerate(self.attributes.items()):
            for split, images in self.splits.items():
                values = images.labels[:, column]
                if attribute in self.numbers:
                    lines.append(f"{attribute:<10} {split}: {_in_words(values, classes)}")
                    continue
                counts = [f"{name} {int((values == k).sum()):,}" for k, name in enumerate(classes[:12])]
                counts += [f"{len(classes) - 12} more classes"] if len(classes) > 12 else []
                counts += [f"missing {int((values < 0).sum()):,}"] if (values < 0).any() else []
                lines.append(f"{attribute:<10} {split}: {', '.join(counts)}")
        lines += [f"note       {_in_line(note)}" for note in self.notes]
        lines += [f"skipped    {path!r}: {reason}" for path, reason in self.skipped[:10]]
        if len(self.skipped) > 10:
            reasons = Counter(reason for _, reason in self.skipped[10:]).most_common(3)
            told = "; ".join(f"{reason} ({count:,})" for reason, count in reasons)
            lines.append(f"skipped    {len(self.skipped) - 10:,} more: {told}")
        return "\n".join(lines)


def _in_words(places: NDArray[np.int64], values: Sequence[str]) -> str:
    """Lowest, median and highest of a number."""
    known = np.sort(places[places >= 0])
    if not len(known):
        return f"missing {len(places):,}"
    low, middle, high = (values[known[i]] for i in (0, len(known) // 2, -1))
    missing = f", missing {len(places) - len(known):,}" if len(known) < len(places) else ""
    return f"{low} to {high}, median {middle}{missing}"


def _in_line(text: str) -> str:
    return " ".join(text.split())  # names may hold a line's end
