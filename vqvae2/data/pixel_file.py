"""The images of a split as arrays, mapped from a file or decoded when they are asked for, and what is known of each."""

import functools
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.decoding import Picture, UnreadableError, decode, fit, recolour
from vqvae2.errors import UserError

INDEX = np.dtype(
    [
        ("item", np.int64),  # which of the files, or volumes, the image is of
        ("place", np.int32),  # of a slice along its volume's axis; -1 elsewhere
        ("size", np.int32, 2),  # height and width in the file
        ("digest", np.uint8, 32),  # of the pixels in the file; zeros if they are all equal
        ("halved", np.bool_),  # 16 bits a colour, of which the upper 8 are read
        ("coloured", np.bool_),
        ("wide", np.bool_),  # 16 bits
        ("low", np.uint16),
        ("high", np.uint16),  # of the pixels as they are stored here
        ("pooled", np.float32, 64),  # 8 x 8 means of the thumbnail, by which near copies are looked for
    ]
)
"""What is known of each image."""


class Prepared(NamedTuple):
    """One image: pixels (1, H, W) or (3, H, W) as they are stored, and its record but for ``item`` and ``place``.

    With slots, pixels are None: they lie in their slot, or in none.
    """

    pixels: NDArray[Any] | None
    record: tuple[Any, ...]


Prepare = Callable[[Picture], Prepared]


Misfit = Literal["", "colour", "unequal"]
"""Why an image does not fit into a slot: it has colour where the others are grey, or another size or bit depth."""


@dataclass(frozen=True)
class Slots:
    """A file with room for an image of each item, into which whatever process has read an image writes it.

    Attributes:
        path: of the file, which exists; None: there is no room for it, so images go nowhere.
        shape: (C, H, W) of the images.
        dtype: of the images.
    """

    path: Path | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def each(self) -> int:
        """Bytes of an image."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def take(self, item: int, pixels: NDArray[Any]) -> Misfit:
        """Write an image into its slot, unless it does not fit or there is no file; return why it does not fit.

        Raises:
            OSError: the disk is full, for instance.
        """
        if pixels.dtype != self.dtype or pixels.shape[1:] != self.shape[1:]:
            return "unequal"
        if len(pixels) > self.shape[0]:
            return "colour"
        if self.path is not None:
            file = os.open(self.path, os.O_WRONLY)
            try:
                content = np.ascontiguousarray(np.broadcast_to(pixels, self.shape))
                write_at(file, content.data.cast("B"), item * self.each)
            finally:
                os.close(file)
        return ""


def write_at(file: int, content: bytes | memoryview, place: int) -> None:
    """Write all of some bytes at a place of an open file; one call of the system may write fewer."""
    done = 0
    while done < len(content):
        done += os.pwrite(file, content[done:], place + done)


class Item(NamedTuple):
    """What one file or volume holds: its images with their places (-1: no slice), and remarks as JSON values.

    ``misfit`` says why an image is not in its slot, or ``error`` why it could not be written there.
    """

    images: Sequence[tuple[int, Prepared]]
    about: dict[str, Any] | None = None
    misfit: Misfit = ""
    error: OSError | None = None


Items = Generator[tuple[int, Item | UnreadableError], None, None]
"""Items by their numbers, or why they cannot be read."""


class Source(Protocol):
    """Files in order, whose pictures make a split."""

    def identity(self) -> Iterator[str] | None:
        """Tell in words everything that the pixels depend on; None if that cannot be told."""
        ...

    def items(self, prepare: Prepare, slots: Slots | None = None) -> Items:
        """Read them, in order, each prepared where it is read, and written into its slot if there are any."""
        ...

    @property
    def many(self) -> bool:
        """Whether there are so many that processes should read them, and write each into its slot."""
        ...

    @property
    def paths(self) -> Sequence[Path] | None:
        """The file of each item where it holds one picture that can be decoded alone, else None."""
        ...

    @property
    def whose(self) -> str:
        """Where they lie, for people."""
        ...

    def __len__(self) -> int: ...


class Mapped:
    """An array (N, C, H, W) in a file, of which a copy for another process takes the name along, not the pixels."""

    ndim = 4

    def __init__(self, path: Path, dtype: str, shape: Sequence[int], channels: int | None = None) -> None:
        self.path, self._stored = path, (dtype, tuple(shape), channels)
        whole: NDArray[Any] = np.memmap(path, np.dtype(dtype), "r", shape=tuple(shape))
        if channels not in (None, shape[1]):  # grey as RGB
            whole = np.broadcast_to(whole, (shape[0], channels, *shape[2:]))
        self.array = whole
        self.shape: tuple[int, ...] = whole.shape
        self.dtype: np.dtype[Any] = whole.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        dtype, shape, channels = self._stored
        return Mapped, (self.path, dtype, shape, channels)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self.array[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype)

    def __len__(self) -> int:
        return len(self.array)


@dataclass
class Decoded:
    """An array whose images are decoded from their files whenever they are asked for."""

    paths: Sequence[Path]
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    how: str
    ndim: int = 4

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """One image (C, H, W) by its number, or several (n, C, H, W) by a slice or an array of numbers."""
        if isinstance(rows, int | np.integer):
            return self._one(int(rows))
        chosen = range(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows).tolist()
        images = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        for place, row in enumerate(chosen):
            images[place] = self._one(row)
        return images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def _one(self, row: int) -> NDArray[Any]:
        try:
            picture = decode(self.paths[row])
        except UnreadableError as reason:
            raise UserError(f"an image can no longer be read ({reason})", self.paths[row]) from None
        pixels = recolour(fit(picture.pixels, self.shape[2:], self.how), self.shape[1])
        if pixels.dtype != self.dtype:
            raise UserError("an image was changed while it was in use", self.paths[row], "Start again")
        return pixels


class Joined:
    """Images of several splits, one after the other, none of them copied before it is asked for."""

    ndim = 4

    def __init__(self, parts: Sequence["Images"]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self.parts[0].shape[1:])
        self.dtype: np.dtype[Any] = self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """One image (C, H, W) by its number, or several (n, C, H, W) by a slice or an array of numbers."""
        chosen = np.asarray(range(len(self))[rows] if isinstance(rows, slice) else rows)
        images = np.empty((chosen.size, *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._ends, np.atleast_1d(chosen), "right")
        for place in np.unique(which):
            own = which == place
            first = self._ends[place] - len(self.parts[place])
            images[own] = self.parts[place][np.atleast_1d(chosen)[own] - first]
        return images[0] if chosen.ndim == 0 else images

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)


Images = NDArray[Any] | Mapped | Decoded | Joined
"""(N, C, H, W), uint8 or uint16, of which rows are asked for."""


@dataclass
class PixelFile:
    """The images of a split.

    Attributes:
        index: N records, `INDEX`.
        images: (N, C, H, W) as they are stored, C 1 where all are grey; None where sizes or bit depths differ.
        skipped: (item, reason) of the files that could not be read.
        about: what the source said of items, by item.
        how: as of `decoding.fit`.
    """

    index: NDArray[Any]
    images: Images | None
    skipped: list[tuple[int, str]]
    about: dict[int, dict[str, Any]]
    how: str

    @property
    def checksum(self) -> int:
        """Checksum of the images: of their hashes in the files, and of how they were brought to size."""
        names = ("digest", "low", "high", "size")
        shape = (self.how,) if self.images is None else (self.how, *self.images.shape)
        return functools.reduce(
            lambda found, name: zlib.crc32(self.index[name].tobytes(), found),
            names,
            zlib.crc32(repr(shape).encode()),
        )

    def serves(self, size: tuple[int, int] | None, grey: bool) -> bool:
        """Tell whether these are the images that a reading to this size, and to grey, would give."""
        fits = size is None or (self.images is not None and tuple(self.images.shape[2:]) == size)
        return fits and not (grey and self.images is not None and self.images.shape[1] > 1)

    def in_channels(self, channels: int) -> Images:
        """The images in 1 or 3 channels; grey ones serve as RGB without a copy."""
        images = self.images
        assert images is not None
        if images.shape[1] == channels:
            return images
        if isinstance(images, Mapped):
            dtype, shape, _ = images._stored
            return Mapped(images.path, dtype, shape, channels)
        if isinstance(images, Decoded):
            return Decoded(images.paths, (len(images), channels, *images.shape[2:]), images.dtype, images.how)
        return np.broadcast_to(images, (len(images), channels, *images.shape[2:]))


def on_demand(source: Source, index: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], how: str) -> Decoded:
    """The images of an index, (N, C, H, W), decoded when they are asked for."""
    assert source.paths is not None
    count, channels, height, width = shape
    return Decoded([source.paths[item] for item in index["item"]], (count, channels, height, width), dtype, how)
