"""The images of a split, decoded once a machine into a file that every process maps.

The folder ``pixels`` of the cache (``$VQVAE2_CACHE``, else ``vqvae2`` in the user's cache folder) has a folder for each
split of each data set, named by a hash of the files' paths, sizes and times and of the settings:

    pixels         (N, C, H, W), uint8 or uint16, in order, without a header
    index.npy      one record an image, see `INDEX`
    about.json     shape, type, what could not be read, and for people: whose images these are

It is written under another name, and renamed when it is whole. One process writes; the others of the machine wait.
Where the disk has no room for the pixels, the index alone is kept, and images are decoded whenever they are asked for.
"""

import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vqvae2 import files
from vqvae2.data.decoding import Picture, UnreadableError, decode, fit, recolour
from vqvae2.data.duplicates import pooled, thumbnail
from vqvae2.data.pools import cores, processes_pay, read_all, read_by_processes
from vqvae2.data.storage import cache_folder, memory_limit
from vqvae2.errors import UserError

FORMAT = 1  # of the cache
DISK_SHARE = 0.8  # of the free disk that the pixels of one split may take
_CHUNK = 64  # images copied at once
_MANY = 2000  # files that are decoded by processes, whose start takes a moment

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
    """One image: pixels (1, H, W) or (3, H, W) as they are stored, and its record but for ``item`` and ``place``."""

    pixels: NDArray[Any]
    record: tuple[Any, ...]


Prepare = Callable[[Picture], Prepared]


class Item(NamedTuple):
    """What one file or volume holds: its images with their places (-1: no slice), and remarks as JSON values."""

    images: Sequence[tuple[int, Prepared]]
    about: dict[str, Any] | None = None


class Source(Protocol):
    """Files in order, whose pictures make a split."""

    def identity(self) -> Iterator[str] | None:
        """Tell in words everything that the pixels depend on; None if that cannot be told."""
        ...

    def items(self, prepare: Prepare) -> Iterator[tuple[int, Item | UnreadableError]]:
        """Read them, in order, each prepared where it is read."""
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


@dataclass(frozen=True)
class Files:
    """Image files."""

    paths: Sequence[Path]
    whose: str

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self) -> Iterator[str]:
        """Name each file with its size and time."""
        return (stamp(path) for path in self.paths)

    def items(self, prepare: Prepare) -> Iterator[tuple[int, Item | UnreadableError]]:
        """Decode them, in threads or, if there are many, in processes."""
        if len(self.paths) < _MANY or not processes_pay(self.paths[0]):
            read = functools.partial(_item, prepare)
            yield from read_all(self.paths, read, "reading images", "images", 2 * cores())
            return
        for first, (pixels, records) in read_by_processes(
            self.paths, functools.partial(_chunk, prepare), "reading images", "images"
        ):
            if isinstance(pixels, str):
                raise UserError(pixels)
            rest = iter(pixels.numpy() if isinstance(pixels, torch.Tensor) else pixels)
            for index, record in enumerate(records, first):
                if isinstance(record, str):
                    yield index, UnreadableError(record)
                else:
                    yield index, Item([(-1, Prepared(next(rest), record))])


def _item(prepare: Prepare, path: Path) -> Item:
    return Item([(-1, prepare(decode(path)))])


def _chunk(
    prepare: Prepare, paths: Sequence[Path]
) -> tuple[torch.Tensor | list[NDArray[Any]] | str, list[tuple[Any, ...] | str]]:
    """Decode some files: the pixels of those that can be read, together where they are alike, and record or reason.

    An error of the user's is returned as its text: raised, it would reach the main process as a traceback.
    """
    pixels: list[NDArray[Any]] = []
    records: list[tuple[Any, ...] | str] = []
    for path in paths:
        try:
            image = prepare(decode(path))
        except UnreadableError as reason:
            records.append(str(reason))
            continue
        except UserError as error:
            return str(error), []
        pixels.append(image.pixels)
        records.append(image.record)
    alike = len({(image.shape, image.dtype) for image in pixels}) == 1
    return torch.from_numpy(np.stack(pixels)) if alike else pixels, records


def stamp(path: Path) -> str:
    """Name a file with its size and the time of its last change."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path} absent"
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


class Mapped:
    """An array in a file, of which a copy for another process takes the name along, not the pixels."""

    def __init__(self, path: Path, dtype: str, shape: Sequence[int], channels: int | None = None) -> None:
        self.path, self._stored = path, (dtype, tuple(shape), channels)
        whole: NDArray[Any] = np.memmap(path, np.dtype(dtype), "r", shape=tuple(shape))
        if channels not in (None, shape[1]):  # grey as RGB
            whole = np.broadcast_to(whole, (shape[0], channels, *shape[2:]))
        self.array = whole

    def __reduce__(self) -> tuple[Any, ...]:
        dtype, shape, channels = self._stored
        return Mapped, (self.path, dtype, shape, channels)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self.array[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """4."""
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 or uint16."""
        return self.array.dtype


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


Images = NDArray[Any] | Mapped | Decoded
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


def read_pixels(source: Source, size: tuple[int, int] | None, how: str, grey: bool = False) -> PixelFile:
    """Read a split: map what was decoded before, or decode it.

    Args:
        source: its files.
        size: (height, width) to which all are brought; None: their own, which must be equal.
        how: as of `decoding.fit`.
        grey: turn colours to grey.

    Raises:
        UserError: neither disk nor memory has room for the slices of volumes.
    """
    identity = _identity(source)
    if identity is None or not len(source):
        return _Reader(source, size, how, grey, None).read()
    folder = cache_folder() / "pixels"
    # Images of their own, equal size serve for that size, and those that are grey anyway for grey.
    key = _key(identity, size, how, grey)
    names = [key, *(_key(identity, other, how, colours) for other in (size, None) for colours in (grey, False))]
    for name in dict.fromkeys(names):
        if (found := _load(folder / name, source, how)) and found.serves(size, grey):
            return found
    with ExitStack() as stack:
        try:
            files.make_folder(folder)
            stack.enter_context(files.locked(folder / f".{key}.lock", wait=True))
        except UserError:  # no right to write, or no locks on this disk: it is only a cache
            return _Reader(source, size, how, grey, None).read()
        if found := _load(folder / key, source, how):  # by another process, meanwhile
            return found
        try:
            return _Reader(source, size, how, grey, folder / key).read()
        except _NoCacheError:
            return _Reader(source, size, how, grey, None).read()


class _NoCacheError(Exception):
    """The cache cannot be written."""


def _identity(source: Source) -> bytes | None:
    """A hash of everything that the pixels depend on but size and colours."""
    identity = source.identity()
    if identity is None:
        return None
    digest = hashlib.sha256(str(FORMAT).encode())
    for words in identity:
        digest.update(words.encode("utf-8", "surrogatepass") + b"\0")
    return digest.digest()


def _key(identity: bytes, size: tuple[int, int] | None, how: str, grey: bool) -> str:
    settings = json.dumps([size, how if size else "", grey]).encode()
    return hashlib.sha256(identity + settings).hexdigest()[:32]


def _load(folder: Path, source: Source, how: str) -> PixelFile | None:
    """Map what lies in a folder of the cache; None if there is nothing, or it is damaged."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        index = np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False)
        shape, dtype = tuple(about["shape"]), about["dtype"]
        if index.dtype != INDEX or len(index) != shape[0]:
            return None
        images: Mapped | Decoded
        if about["decoded"]:
            if _has_room(math.prod(shape) * np.dtype(dtype).itemsize, folder.parent):
                return None  # there was none when the index was made
            images = _on_demand(source, index, shape, np.dtype(dtype), how)
        else:
            images = Mapped(folder / "pixels", dtype, shape)
        skipped = [(item, reason) for item, reason in about["skipped"]]
        told = {int(item): words for item, words in about["about"].items()}
        if source.paths is not None and any(_readable(source.paths[item]) for item, _ in skipped):
            return None  # what could not be read then can be read now
        with suppress(OSError):
            os.utime(folder)  # when it was last used
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PixelFile(index, images, skipped, told, how)


def _on_demand(source: Source, index: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], how: str) -> Decoded:
    assert source.paths is not None
    count, channels, height, width = shape
    return Decoded([source.paths[item] for item in index["item"]], (count, channels, height, width), dtype, how)


def _readable(path: Path) -> bool:
    try:
        decode(path)
    except UnreadableError:
        return False
    return True


def _has_room(need: int, folder: Path) -> bool:
    return need <= DISK_SHARE * shutil.disk_usage(folder).free


@dataclass(frozen=True)
class _Preparation:
    """Brings a picture to the size and colours in which it is stored, and makes its record."""

    size: tuple[int, int] | None
    how: str
    grey: bool

    def __call__(self, picture: Picture) -> Prepared:
        pixels = picture.pixels
        if self.size is not None:
            pixels = fit(pixels, self.size, self.how)
        coloured = pixels.ndim == 3
        stored = np.ascontiguousarray(recolour(pixels, 3 if coloured and not self.grey else 1))
        digest = np.frombuffer(picture.digest or bytes(32), np.uint8)
        kind = (picture.halved, coloured, stored.dtype == np.uint16, stored.min(), stored.max())
        return Prepared(stored, (picture.size, digest, *kind, pooled(thumbnail(pixels))))


@dataclass
class _Reader:
    """Decodes a split into a file, into memory (where there is no folder), or, without room for it, the index alone."""

    source: Source
    size: tuple[int, int] | None
    how: str
    grey: bool
    folder: Path | None
    out: "BinaryIO | io.BytesIO | None" = None  # none: no room for the pixels
    records: list[NDArray[Any]] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    about: dict[int, dict[str, Any]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()  # of an image: C, H, W
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    count: int = 0  # images
    unequal: bool = False  # in size or bit depth

    def read(self) -> PixelFile:
        """Read all."""
        partial = self._begin()
        try:
            self._items()
            index = np.concatenate([*self.records, np.empty(0, INDEX)])
            images = None if self.unequal or not self.count else self._images(partial, index)
            return PixelFile(index, images, self.skipped, self.about, self.how)
        finally:
            if partial is not None:
                self._close()
                shutil.rmtree(partial, ignore_errors=True)

    def _begin(self) -> Path | None:
        """Open what is written to; return the folder in which it lies until it is whole."""
        if self.folder is None:
            # Slices cannot be read anew one by one: beyond the memory they lie in a file without a name.
            self.out = io.BytesIO() if self.source.paths is not None else tempfile.TemporaryFile()  # noqa: SIM115 - mapped
            return None
        host = re.sub(r"\W", "-", platform.node())
        for left in self.folder.parent.glob(f".{self.folder.name}.{host}.*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = self.folder.with_name(f".{self.folder.name}.{host}.{os.getpid()}.tmp")
        try:
            partial.mkdir()
            self.out = open(partial / "pixels", "w+b")  # noqa: SIM115 - closed by read
        except OSError as error:
            raise _NoCacheError from error
        return partial

    def _items(self) -> None:
        records = []
        for item, result in self.source.items(_Preparation(self.size, self.how, self.grey)):
            if isinstance(result, UnreadableError):
                self.skipped.append((item, str(result)))
                continue
            if result.about is not None:
                self.about[item] = result.about
            for place, image in result.images:
                self._keep(image.pixels)
                records.append((item, place, *image.record))
            if len(records) >= 1024:
                self.records.append(np.array(records, INDEX))
                records = []
        self.records.append(np.array(records, INDEX))

    def _keep(self, pixels: NDArray[Any]) -> None:
        """Write one image, unless there is no room or not all are alike."""
        if not self.count:
            self.shape, self.dtype = pixels.shape, pixels.dtype
            self._check_room(pixels.nbytes)
        self.count += 1
        self.unequal |= pixels.shape[1:] != self.shape[1:] or pixels.dtype != self.dtype
        if self.unequal:
            return
        if len(pixels) > self.shape[0]:
            self._widen()
        self._write(np.broadcast_to(pixels, self.shape))

    def _check_room(self, each: int) -> None:
        """Give up the pixels where the disk has no room for all of them."""
        if self.folder is None or self.source.paths is None:
            return
        if not _has_room(each * len(self.source), self.folder.parent):
            self._give_up()

    def _write(self, pixels: NDArray[Any]) -> None:
        if self.out is None:
            return
        content = np.ascontiguousarray(pixels)
        if self.folder is None and self.out.tell() + content.nbytes > memory_limit() and self.source.paths is not None:
            self._give_up()
            return
        try:
            self.out.write(content.data)
        except OSError as error:
            self._no_room(error)

    def _no_room(self, error: Exception) -> None:
        """Give up the pixels; UserError for volumes, whose slices cannot be decoded one by one."""
        self._give_up()
        if self.source.paths is None:
            raise UserError(
                f"no room for the images ({getattr(error, 'strerror', None) or error})",
                cache_folder(),
                "Free the disk, or name another folder in VQVAE2_CACHE",
            ) from None

    def _give_up(self) -> None:
        """Go on with the index alone: images are decoded when they are asked for."""
        self._close()
        self.out = None

    def _close(self) -> None:
        with suppress(OSError):  # of a full disk, which was met before
            if self.out is not None:
                self.out.close()

    def _widen(self) -> None:
        """Turn what was written so far from grey to RGB."""
        shape, self.shape = self.shape, (3, *self.shape[1:])
        if self.out is None:
            return
        grey, each = self.out, int(np.prod(shape)) * self.dtype.itemsize
        self._check_room(4 * each)  # what is there, and three times that
        if self.out is None:
            return
        grey.seek(0)
        self.out = io.BytesIO() if self.folder is None else open(f"{grey.name}.new", "w+b")  # noqa: SIM115 - closed by read
        for start in range(0, self.count - 1, _CHUNK):
            n = min(_CHUNK, self.count - 1 - start)
            part = np.frombuffer(grey.read(n * each), self.dtype).reshape(n, *shape)
            self._write(np.broadcast_to(part, (n, *self.shape)))
        grey.close()
        if self.out is not None and self.folder is not None:
            os.replace(self.out.name, grey.name)

    def _images(self, partial: Path | None, index: NDArray[Any]) -> Images:
        """Give the folder its name where there is one, and return the images."""
        shape = (self.count, *self.shape)
        try:
            if self.out is not None:
                self.out.flush()
            if partial is not None:
                self._settle(partial, index, shape)
        except (OSError, UserError) as error:
            self._no_room(error)
            return _on_demand(self.source, index, shape, self.dtype, self.how)
        if self.out is None:
            return _on_demand(self.source, index, shape, self.dtype, self.how)
        if self.folder is not None:
            return Mapped(self.folder / "pixels", self.dtype.name, shape)
        if isinstance(self.out, io.BytesIO):
            return np.frombuffer(self.out.getbuffer(), self.dtype).reshape(shape)
        return np.memmap(self.out, self.dtype, "r", shape=shape)

    def _settle(self, partial: Path, index: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Write the index, and give the folder its name."""
        assert self.folder is not None
        if self.out is not None:
            os.fsync(self.out.fileno())
        else:
            for left in partial.iterdir():
                left.unlink()
        about = {
            "of": self.source.whose,
            "shape": shape,
            "dtype": self.dtype.name,
            "decoded": self.out is None,
            "skipped": self.skipped,
            "about": self.about,
        }
        files.write_atomic(partial / "index.npy", lambda file: np.save(file, index))
        files.write_json(partial / "about.json", about)
        shutil.rmtree(self.folder, ignore_errors=True)  # damaged, or it would have been found
        os.replace(partial, self.folder)
        files.sync_folder(self.folder.parent)
