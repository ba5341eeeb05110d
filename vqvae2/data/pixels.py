"""The images of a split, decoded once a machine into a file that every process maps.

The folder ``pixels`` of the cache (``$VQVAE2_CACHE``, else ``vqvae2`` in the user's cache folder) has a folder for each
split of each data set, named by a hash of the files' paths, sizes and times and of the settings:

    pixels         (N, C, H, W), uint8 or uint16, in order, without a header
    index.npy      one record an image, see `pixel_file.INDEX`
    about.json     shape, type, what could not be read, and for people: whose images these are

It is written under another name, and renamed when it is whole. One process writes, with others that it starts where
there are many files; the other processes of the machine wait.
Where the disk has no room for the pixels, the index alone is kept, and images are decoded whenever they are asked for.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqvae2 import files
from vqvae2.data.decoding import UnreadableError, decode
from vqvae2.data.pixel_file import (
    INDEX,
    Decoded,
    Item,
    Items,
    Mapped,
    PixelFile,
    Prepare,
    Prepared,
    Slots,
    Source,
    on_demand,
)
from vqvae2.data.pixel_writer import NoCacheError, PixelWriter, has_room
from vqvae2.data.pools import cores, processes_pay, read_all, read_by_processes
from vqvae2.data.storage import cache_folder
from vqvae2.errors import UserError

FORMAT = 3  # of the cache
_MANY = 2000  # files that are decoded by processes, whose start takes a moment


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

    @property
    def many(self) -> bool:
        """Whether there are so many that processes should read them."""
        return len(self.paths) >= _MANY and processes_pay()

    def items(self, prepare: Prepare, slots: Slots | None = None) -> Items:
        """Decode them: in threads, or, where there are slots to write into, in processes."""
        if slots is None:
            read = functools.partial(_item, prepare)
            yield from read_all(self.paths, read, "reading images", "images", 2 * cores())
            return
        read_some = functools.partial(_some_items, prepare, slots)
        for first, found in read_by_processes(self.paths, read_some, "reading images", "images"):
            if isinstance(found, UserError):
                raise found
            yield from enumerate(found, first)


def _item(prepare: Prepare, path: Path) -> Item:
    return Item([(-1, prepare(decode(path)))])


def _some_items(
    prepare: Prepare, slots: Slots, first: int, paths: Sequence[Path]
) -> list[Item | UnreadableError] | UserError:
    """Decode some files, of which the first has this number, and write each image that fits into its slot.

    An error of the user's is returned: raised, it would reach the main process as a traceback.
    """
    found: list[Item | UnreadableError] = []
    for number, path in enumerate(paths, first):
        try:
            pixels, record = prepare(decode(path))
        except UnreadableError as reason:
            found.append(reason)
            continue
        except UserError as refusal:
            return refusal
        assert pixels is not None
        images = [(-1, Prepared(None, record))]
        try:
            found.append(Item(images, misfit=slots.take(number, pixels)))
        except OSError as error:
            found.append(Item(images, error=error))
    return found


def stamp(path: Path) -> str:
    """Name a file with its size and the time of its last change."""
    try:
        status = os.stat(path)
    except OSError:
        return f"{path} absent"
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


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
        return PixelWriter(source, size, how, grey, None).read()
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
            return PixelWriter(source, size, how, grey, None).read()
        if found := _load(folder / key, source, how):  # by another process, meanwhile
            return found
        try:
            return PixelWriter(source, size, how, grey, folder / key).read()
        except NoCacheError:
            return PixelWriter(source, size, how, grey, None).read()


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
            if has_room(math.prod(shape) * np.dtype(dtype).itemsize, folder.parent):
                return None  # there was none when the index was made
            images = on_demand(source, index, shape, np.dtype(dtype), how)
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


def _readable(path: Path) -> bool:
    try:
        decode(path)
    except UnreadableError:
        return False
    return True
