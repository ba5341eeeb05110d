"""Files that are whole or not there: atomic writing, JSON, folders, locks, and errors told in one line."""

import dataclasses
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vqvae2.errors import UserError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "locked",
    "make_folder",
    "plain",
    "read_json",
    "sync_folder",
    "told_as",
    "write_atomic",
    "write_json",
]


def write_atomic(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that its name only ever shows the whole old or the whole new content.

    Args:
        path: in a folder that exists.
        content: bytes, or a function that writes them to the open binary file it is given.

    Raises:
        UserError: the file cannot be written (disk full, read-only folder); the old content is intact.
    """
    path = Path(path)
    # The numbers keep two stages, or two threads, that write one file at once from writing into each other.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with told_as("cannot write", path, "Free the disk or choose another folder"):
        try:
            with open(partial, "wb") as file:
                file.write(content) if isinstance(content, bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as JSON, atomically.

    Args:
        path: in a folder that exists.
        obj: JSON values, dataclasses, paths, NumPy or torch numbers and arrays; NaN and infinity, which JSON
            does not have, become null.

    Raises:
        UserError: the file cannot be written.
        TypeError: a value of any other type.
    """
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode("utf-8", "surrogatepass"))  # names that are no UTF-8


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: file missing, unreadable, or not JSON.
    """
    if not Path(path).exists():
        raise UserError("there is no such file", path, "Check the folder, or run the stage that writes it")
    with told_as("cannot read", path, "Run the stage that writes it again", (OSError, ValueError)):
        return json.loads(Path(path).read_bytes())


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder with its parents where it is absent, and return its path.

    Raises:
        UserError: it cannot be made, or a file has its name.
    """
    with told_as("cannot make the folder", folder, "Choose another folder"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


@contextmanager
def told_as(
    what: str, where: object, how: str = "", errors: tuple[type[Exception], ...] = (OSError,)
) -> Iterator[None]:
    """Tell the given errors of a ``with`` block as a :class:`UserError` with the cause in brackets."""
    try:
        yield
    except errors as error:
        raise UserError(f"{what} ({getattr(error, 'strerror', None) or error})", where, how) from error


@contextmanager
def locked(path: str | os.PathLike[str], wait: bool = False) -> Iterator[None]:
    """Hold a lock for a ``with`` block; it ends with the process, however that ends.

    Args:
        path: of the lock's file, in a folder that exists. It is left there: removing it would let two in.
        wait: wait for the lock instead of refusing.

    Raises:
        UserError: another process holds the lock.
    """
    if fcntl is None:  # Windows: without locks
        yield
        return
    with told_as("cannot lock", path, "Choose another folder"):
        file = open(path, "a")  # noqa: SIM115 - closed below, and no sooner
    with file:
        with told_as("cannot lock", path, "Choose another folder"):
            try:
                # Unlike flock, not inherited by the processes that load data, which may outlive their parent.
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except (BlockingIOError, PermissionError):
                raise UserError(
                    "another process is using this folder", path, "Wait for it, or choose another --run"
                ) from None
        yield


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it outlives a power cut."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(obj: Any) -> Any:
    """Turn dataclasses, mappings, tuples, paths, arrays and tensors into JSON values; NaN and infinity become None."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if hasattr(obj, "tolist"):  # NumPy scalars and arrays, tensors
        return plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj
