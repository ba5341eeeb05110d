"""The cache of decoded images: what it holds, and how large that is."""

import json
import shutil
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vqvae2 import files
from vqvae2.data.storage import cache_folder
from vqvae2.errors import UserError
from vqvae2.stages.common import memory_in_words
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage


@dataclass(frozen=True)
class Arguments:
    """List the decoded images that are kept in $VQVAE2_CACHE, and remove them.

    They are made again when they are needed. Images in use by another process stay until it ends.
    """

    remove: tuple[str, ...] = ()
    """Names of those to remove, as they are listed; all: everything."""
    older_than: float | None = None
    """Remove those that were not used for so many days."""


_GROUPS = {"cache": ("remove", "older_than")}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    return run_stage(partial(CommandLine, "cache", Arguments, _GROUPS), _story, argv)


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    words: str
    size: int
    used: float  # in seconds since 1970


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    if arguments.older_than is not None and not arguments.older_than >= 0:
        raise UserError(f"--older-than {arguments.older_than:g} is negative", how="Give 0 or more days")
    folder = cache_folder()
    entries = _entries(folder)
    unknown = sorted(set(arguments.remove) - {entry.name for entry in entries} - {"all"})
    if unknown:
        raise UserError(f"there is no {unknown[0]}", folder, "Names are those that vqvae2 cache lists")
    oldest = None if arguments.older_than is None else time.time() - 86400 * arguments.older_than
    removed = [
        entry
        for entry in entries
        if entry.name in arguments.remove or "all" in arguments.remove or (oldest is not None and entry.used < oldest)
    ]
    for entry in list(removed):
        with ExitStack() as stack:
            try:
                stack.enter_context(_unused(entry))
            except UserError as error:
                print(f"{entry.name} stays: {error}")
                removed.remove(entry)
                continue
            with files.told_as("cannot remove", entry.path):
                shutil.rmtree(entry.path)
    if removed:
        freed = memory_in_words(sum(entry.size for entry in removed))
        print(f"removed {len(removed):,} of {len(entries):,} from {folder}, {freed}")
        return
    if not entries:
        print(f"nothing is kept in {folder}")
        return
    print(f"{'name':<34}{'size':>10}  {'last used':<12}data")
    for entry in sorted(entries, key=lambda entry: -entry.used):
        day = time.strftime("%Y-%m-%d", time.localtime(entry.used))
        print(f"{entry.name:<34}{memory_in_words(entry.size):>10}  {day:<12}{entry.words}")
    print(f"{memory_in_words(sum(entry.size for entry in entries))} in {folder}")


def _unused(entry: _Entry) -> AbstractContextManager[None]:
    """Hold the lock under which an entry is written; the lock itself stays, as locks must."""
    if entry.path.parent.name != "pixels":
        return nullcontext()
    key = entry.path.name.lstrip(".").split(".")[0]
    return files.locked(entry.path.parent / f".{key}.lock")


def _entries(folder: Path) -> list[_Entry]:
    pixels = folder / "pixels"
    found = [_entry(path) for path in sorted([*pixels.glob("[!.]*"), *pixels.glob(".*.tmp")]) if path.is_dir()]
    slices = folder / "slices"
    if slices.is_dir() and (times := [path.stat().st_mtime for path in slices.iterdir()]):
        found.append(_Entry("slices", slices, f"the slices of {len(times):,} volumes", _size(slices), max(times)))
    return found


def _entry(path: Path) -> _Entry:
    try:
        about = json.loads((path / "about.json").read_bytes())
        shape = about["shape"]
        size = " x ".join(map(str, shape[2:]))
        words = f"{shape[0]:,} images of {size} of {about['of']}" + (", not decoded" if about["decoded"] else "")
    except (OSError, ValueError, KeyError, TypeError):
        words = "unfinished" if path.suffix == ".tmp" else "damaged"
    return _Entry(path.name, path, words, _size(path), path.stat().st_mtime)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += path.stat().st_size
    return total
