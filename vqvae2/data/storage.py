"""The cache folder, and how much of the memory images may take."""

import contextlib
import os
from pathlib import Path

_SHARE = 1 / 8
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cache_folder() -> Path:
    """Return where decoded images are kept: ``$VQVAE2_CACHE``, else ``vqvae2`` in the user's cache folder."""
    own = os.environ.get("VQVAE2_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vqvae2"


def memory_limit() -> float:
    """Return the bytes of pixels that this process holds in memory where there is no cache to hold them.

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
