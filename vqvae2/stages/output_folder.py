"""Folders of files with a record that says what they are: completions, sweeps, anomaly maps and samples.

While such a folder is written it is marked, so that after an interruption the same command writes it again.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqvae2 import files
from vqvae2.data.sources import WRITING
from vqvae2.errors import UserError
from vqvae2.version import __version__

__all__ = ["UNFINISHED", "all_or_nothing", "begin", "check_own", "finish"]

UNFINISHED = ".unfinished"
"""Folder in which files lie until all of them are written."""


def check_own(out: Path, record: str, overwrite: bool) -> None:
    """Raise UserError for a folder that does not hold what is to be written, or holds it already.

    What `begin` has begun and nothing has finished may be written again.

    Args:
        out: the folder.
        record: name of the file that marks it.
        overwrite: whether it may be replaced.
    """
    if out.exists() and not out.is_dir():
        raise UserError("this is a file", out, "Give --out a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if (out / WRITING).is_file() and (out / WRITING).read_text() == record:
        return
    if not (out / record).is_file():
        raise UserError("this folder holds other files", out, "Give --out a folder of its own")
    if not overwrite:
        raise UserError("this folder has been written already", out, "Add --overwrite, or --out with another folder")


def begin(out: Path, record: str, old: Iterable[str]) -> None:
    """Make a folder ready for new files, which `finish` completes: mark it, and remove what an earlier call wrote.

    Args:
        out: the folder.
        record: name of the file that says what the others are; it is never beside those of another call.
        old: patterns of the other files.
    """
    files.make_folder(out)
    files.write_atomic(out / WRITING, record.encode())
    with files.told_as("cannot replace what is there", out, "Choose another folder"):
        (out / record).unlink(missing_ok=True)
        for pattern in old:
            for path in list(out.glob(pattern)):
                path.unlink()


def finish(out: Path, record: str, about: dict[str, Any]) -> None:
    """Write the file that says what the others are, with the package's version, and take the mark away."""
    files.write_json(out / record, {"version": __version__, **about})
    (out / WRITING).unlink()


@contextmanager
def all_or_nothing(out: Path, last: str = "") -> Iterator[Path]:
    """Give a folder for a ``with`` block, whose files then move into ``out``; after an error nothing is left of it.

    Args:
        out: the folder; it may be there.
        last: name of the file that moves last; its presence says that the folder is complete.
    """
    fresh, made = not out.exists(), out / UNFINISHED
    try:
        shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
        files.make_folder(made)
        yield made
        with files.told_as("cannot write", out, "Choose another folder"):
            for path in sorted(made.iterdir(), key=lambda path: path.name == last):
                os.replace(path, out / path.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if fresh and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
