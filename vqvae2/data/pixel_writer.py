"""Writes the images of a split into a file, with an index beside it."""

import io
import math
import os
import platform
import re
import shutil
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vqvae2 import files
from vqvae2.data.decoding import Picture, UnreadableError, decode, fit, recolour
from vqvae2.data.duplicates import pooled, thumbnail
from vqvae2.data.pixel_file import INDEX, Images, Mapped, PixelFile, Prepared, Slots, Source, on_demand, write_at
from vqvae2.data.storage import cache_folder, memory_limit
from vqvae2.errors import UserError

DISK_SHARE = 0.8  # of the free disk that the pixels of one split may take
_CHUNK = 64  # images copied at once
_LOOKED_AT = 16  # images that tell the shape of all


class NoCacheError(Exception):
    """The cache cannot be written."""


def has_room(need: int, folder: Path) -> bool:
    """Tell whether a folder's disk has room for so many bytes, and some to spare."""
    return need <= DISK_SHARE * shutil.disk_usage(folder).free


@dataclass(frozen=True)
class Preparation:
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
        planes = stored.transpose(1, 2, 0) if len(stored) == 3 else pixels  # the same values
        return Prepared(stored, (picture.size, digest, *kind, pooled(thumbnail(planes))))


@dataclass
class PixelWriter:
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
    slots: Slots | None = None  # into which processes write
    coloured: list[tuple[int, int]] = field(default_factory=list)  # image and item, where the slots are of grey ones

    def read(self) -> PixelFile:
        """Read all."""
        partial = self._begin()
        try:
            if self.folder is not None and self.source.many:
                self._make_slots()
            self._items()
            index = np.concatenate([*self.records, np.empty(0, INDEX)])
            if self.slots is not None and not self.unequal:
                self._close_gaps(index["item"])
                self._add_colours()
            images = None if self.unequal or not self.count else self._images(partial, index)
            return PixelFile(index, images, self.skipped, self.about, self.how)
        finally:
            if partial is not None:
                self._close()
                shutil.rmtree(partial, ignore_errors=True)

    @property
    def _each(self) -> int:
        """Bytes of an image."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _begin(self) -> Path | None:
        """Open what is written to; return the folder in which it lies until it is whole."""
        if self.folder is None:
            # Slices cannot be read anew one by one: beyond the memory they lie in a file without a name.
            try:
                self.out = io.BytesIO() if self.source.paths is not None else tempfile.TemporaryFile()  # noqa: SIM115 - mapped
            except OSError:  # no folder for temporary files can be written
                self.out = io.BytesIO()
            return None
        host = re.sub(r"\W", "-", platform.node())
        for left in self.folder.parent.glob(f".{self.folder.name}.{host}.*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = self.folder.with_name(f".{self.folder.name}.{host}.{os.getpid()}.tmp")
        try:
            partial.mkdir()
            self.out = open(partial / "pixels", "w+b")  # noqa: SIM115 - closed by read
        except OSError as error:
            raise NoCacheError from error
        return partial

    def _make_slots(self) -> None:
        """Let processes write the images themselves, where a few that are looked at tell their shape."""
        assert self.source.paths is not None
        prepare, shapes = Preparation(self.size, self.how, self.grey), set()
        for number in np.linspace(0, len(self.source) - 1, _LOOKED_AT).astype(int):
            with suppress(UnreadableError):
                pixels = prepare(decode(self.source.paths[number])).pixels
                assert pixels is not None
                shapes.add((pixels.shape, pixels.dtype))
        if not shapes:
            return
        self.shape, self.dtype = max(shapes, key=lambda one: one[0])
        self.unequal = len({(shape[1:], dtype) for shape, dtype in shapes}) > 1
        self._check_room(self._each)
        path = None if self.out is None or self.unequal else Path(self.out.name)
        self.slots = Slots(path, self.shape, self.dtype)

    def _close_gaps(self, items: NDArray[np.int64]) -> None:
        """Move images into the slots of those before them that could not be read."""
        if self.out is None:
            return
        each, file = self._each, self.out.fileno()
        try:
            for row, item in enumerate(items.tolist()):
                if row != item:
                    write_at(file, os.pread(file, each, item * each), row * each)
            os.ftruncate(file, len(items) * each)
        except OSError as error:
            self._no_room(error)

    def _add_colours(self) -> None:
        """Turn grey images to RGB where some have colour, and decode those anew."""
        if not self.coloured:
            return
        assert self.source.paths is not None
        self._widen(self.count)
        prepare = Preparation(self.size, self.how, self.grey)
        for row, item in self.coloured:
            if self.out is None:
                return
            try:
                pixels = prepare(decode(self.source.paths[item])).pixels
            except UnreadableError as reason:
                raise UserError(f"an image was changed while it was read ({reason})", self.source.paths[item]) from None
            assert pixels is not None
            self.out.seek(row * self._each)
            self._write(np.broadcast_to(pixels, self.shape))

    def _items(self) -> None:
        records = []
        prepare = Preparation(self.size, self.how, self.grey)
        with closing(self.source.items(prepare, self.slots)) as found:  # its processes end, whatever happens
            for item, result in found:
                if isinstance(result, UnreadableError):
                    self.skipped.append((item, str(result)))
                    continue
                if result.error is not None:
                    self._no_room(result.error)
                if result.misfit == "colour":
                    self.coloured.append((self.count, item))
                self.unequal |= result.misfit == "unequal"
                if result.about is not None:
                    self.about[item] = result.about
                for place, image in result.images:
                    self._keep(image.pixels)
                    records.append((item, place, *image.record))
                if len(records) >= 1024:
                    self.records.append(np.array(records, INDEX))
                    records = []
        self.records.append(np.array(records, INDEX))

    def _keep(self, pixels: NDArray[Any] | None) -> None:
        """Write one image, unless it is written, there is no room or not all are alike."""
        if pixels is None:
            self.count += 1
            return
        if not self.count:
            self.shape, self.dtype = pixels.shape, pixels.dtype
            self._check_room(pixels.nbytes)
        self.count += 1
        self.unequal |= pixels.shape[1:] != self.shape[1:] or pixels.dtype != self.dtype
        if self.unequal:
            return
        if len(pixels) > self.shape[0]:
            self._widen(self.count - 1)
        self._write(np.broadcast_to(pixels, self.shape))

    def _check_room(self, each: int) -> None:
        """Give up the pixels where the disk has no room for all of them."""
        if self.folder is None or self.source.paths is None:
            return
        if not has_room(each * len(self.source), self.folder.parent):
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
        if self.slots is not None and self.slots.path is not None:
            self.slots.path.unlink(missing_ok=True)  # what still writes finds nothing

    def _close(self) -> None:
        with suppress(OSError):  # of a full disk, which was met before
            if self.out is not None:
                self.out.close()

    def _widen(self, count: int) -> None:
        """Turn the images that were written so far from grey to RGB."""
        shape, each, self.shape = self.shape, self._each, (3, *self.shape[1:])
        if self.out is None:
            return
        grey = self.out
        self._check_room(4 * each)  # what is there, and three times that
        if self.out is None:
            return
        try:
            grey.seek(0)  # writes what is left
            self.out = io.BytesIO() if self.folder is None else open(f"{grey.name}.new", "w+b")  # noqa: SIM115 - closed by read
        except OSError as error:
            self._no_room(error)
            return
        for start in range(0, count, _CHUNK):
            n = min(_CHUNK, count - start)
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
            return on_demand(self.source, index, shape, self.dtype, self.how)
        if self.out is None:
            return on_demand(self.source, index, shape, self.dtype, self.how)
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
