"""Where decoded pixels lie: in memory, or, where they outgrow it, in files that are mapped into it.

The files have no name: they are gone when the process is, however that ends.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vqvae2.files import make_folder, told_as

_BLOCK = 256 * 2**20
_SHARE = 1 / 8
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

Pixels = NDArray[Any]


def cache_folder() -> Path:
    """Return where decoded images are kept: ``$VQVAE2_CACHE``, else ``vqvae2`` in the user's cache folder."""
    own = os.environ.get("VQVAE2_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqvae2"


def memory_limit() -> float:
    """Return the bytes of pixels that this process holds in memory at a time, once as read and once by split.

    An eighth of the machine's memory, or of the container's where that is less, shared by the processes that torchrun
    started on the machine.
    """
    try:
        whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on Windows
        whole = 8.0 * 2**30
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            whole = min(whole, float(path.read_text()))
    return _SHARE * whole / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def empty(shape: Sequence[int], dtype: DTypeLike) -> Pixels:
    """Make an array whose values are not set, in memory or, above the limit, in a mapped file.

    Raises:
        UserError: the disk has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= memory_limit():
        return np.empty(shape, dtype)
    return _mapped(size).view(dtype).reshape(shape)


class PixelStore:
    """Holds arrays one by one, in memory up to the limit and in mapped files from there on."""

    def __init__(self) -> None:
        self._limit = memory_limit()
        self._held = 0
        self._mapped = 0
        self._block: Pixels | None = None
        self._used = 0

    def keep(self, pixels: Pixels) -> Pixels:
        """Return the array itself, or its copy in a mapped file.

        Raises:
            UserError: the disk has no room for it.
        """
        if isinstance(pixels, np.memmap):
            return pixels
        self._held += pixels.nbytes
        if self._held <= self._limit:
            return pixels
        if self._block is None or self._used + pixels.nbytes > len(self._block):
            # Larger and larger, since each block keeps a file open.
            self._block, self._used = _mapped(max(_BLOCK, self._mapped // 2, pixels.nbytes)), 0
            self._mapped += len(self._block)
        place = self._block[self._used : self._used + pixels.nbytes].view(pixels.dtype).reshape(pixels.shape)
        place[...] = pixels
        self._used += -(-pixels.nbytes // 64) * 64
        return place


def _mapped(size: int) -> Pixels:
    folder = make_folder(cache_folder())
    way_out = "Free the disk, or name another folder in VQVAE2_CACHE"
    with (
        told_as("no room for images that outgrow the memory", folder, way_out),
        tempfile.TemporaryFile(dir=folder) as file,
    ):
        if hasattr(os, "posix_fallocate"):  # else a full disk would be met when the pages are written, by a signal
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=(size,))
