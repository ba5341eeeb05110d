"""The files that a folder or a list names: images, volumes and what else lies there."""

import os
import re
import shlex
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from vqvae2.data import decoding, volume_files
from vqvae2.errors import UserError

DATA_REPORT = "data-report.json"
WRITING = ".writing"  # lies in a folder of samples while they are written
OWN_FOLDERS = {
    "run.json": "a run folder, not data",
    "samples.json": "a folder of samples, not data",
    WRITING: "a folder of samples, not data",
    DATA_REPORT: "a data report, not data",
}
"""Files by which folders are known that this package wrote."""
_LISTS = (".txt", ".lst", ".list")
_PACKED = re.compile(r".*\.(?:zip|tar|tgz|tar\.\w+|gz|bz2|xz|7z|rar)", re.IGNORECASE)
_NOT_READ = (
    *(".gif", ".pnm", ".heic", ".heif", ".jxl", ".tga", ".exr", ".psd", ".svs", ".ndpi", ".mrxs", ".czi"),
    *(".mnc", ".img", ".img.gz", ".par", ".rec", ".mif", ".npy", ".npz", ".h5", ".hdf5", ".parquet", ".tfrecord"),
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".7z", ".rar"),
)
"""Endings of images, volumes, arrays and archives that are not read; ``.img`` is a volume without its header."""
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".mat", ".pkl", ".parquet", ".tfrecord", ".lmdb", ".mdb")


@dataclass
class Found:
    """Files by kind, in order; what was left out and why; the others by suffix."""

    images: list[Path] = field(default_factory=list)
    volumes: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unread: list[Path] = field(default_factory=list)  # of the others, those that may be data

    def add(self, path: Path) -> None:
        """Put a file where it belongs."""
        name = path.name.lower()
        if name.endswith(decoding.SUFFIXES):
            self.images.append(path)
        elif volume_files.is_volume(name) and (not name.endswith((".img", ".img.gz")) or _has_header(path)):
            self.volumes.append(path)
        elif volume_files.is_dicom(path):
            self.dicom.append(path)
        else:
            self.others[os.path.splitext(name)[1] or "no suffix"] += 1
            if name.endswith(_NOT_READ):
                self.unread.append(path)


def find_files(source: Path, alone: bool = False) -> tuple[Path, Found]:
    """Find the files of a folder, or those that a text file names, one a line.

    Args:
        source: the folder or the list.
        alone: whether it may be a single image or volume, too.

    Returns:
        ``(folder, found)``: the folder to which their names are relative; for a list, the one that holds them all.

    Raises:
        UserError: there is no such folder or list.
    """
    if source.is_dir():
        return source, walk(source)
    if not source.exists():
        raise UserError(
            "there is no such folder", source, "Give --data a folder of images, phantom or torchvision:NAME"
        )
    name = source.name.lower()
    if alone and not name.endswith(_LISTS):
        found = Found()
        found.add(source)
        if not found.others:
            return source.parent, found
    if _PACKED.fullmatch(name) and not volume_files.is_volume(name):
        raise UserError("this is an archive", source, "Unpack it, and give --data the folder that comes out")
    if not name.endswith(_LISTS):
        raise UserError(
            "not a folder",
            source,
            "Give --data the folder that holds the images, or a .txt file with a path on each line",
        )
    return _listed(source)


def walk(folder: Path) -> Found:
    """Find the files under a folder.

    Hidden files and folders, folders that this package wrote (see ``OWN_FOLDERS``) and links that lead
    back are passed by.
    """
    found = Found()
    seen: set[tuple[int, int]] = set()

    def denied(error: OSError) -> None:
        found.skipped.append((str(error.filename), error.strerror or "cannot be listed"))

    for here, folders, files in os.walk(folder, followlinks=True, onerror=denied):
        place = os.stat(here)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        if own := _own_folder(files):
            folders.clear()
            found.skipped.append((here, own))
            continue
        folders[:] = sorted(
            (name for name in folders if not name.startswith((".", "__MACOSX", "@eaDir", "$RECYCLE.BIN"))),
            key=lambda name: (Path(here, name).is_symlink(), name),  # known by its own name before a link's
        )
        for name in files:
            if not name.startswith("."):
                found.add(Path(here, name))
    for paths in (found.images, found.volumes, found.dicom):
        paths.sort()
    return found


def _listed(source: Path) -> tuple[Path, Found]:
    """Find the files that a list names, relative to itself or to here."""
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list of files cannot be read ({error})", source) from None
    found, files = Found(), dict[Path, None]()
    for line in filter(None, (line.strip() for line in lines)):
        if line.startswith("#"):
            continue
        try:
            named = Path(line.strip("\"'")).expanduser()
            there = source.parent / named
            path = there if there.exists() or not named.exists() else named
        except (OSError, RuntimeError, ValueError):  # too long for a path, ~nobody, a zero byte
            found.skipped.append((line[:100], "no path"))
            continue
        if path.is_dir():
            inside = walk(path)
            files |= dict.fromkeys(Path(os.path.abspath(p)) for p in inside.images + inside.volumes + inside.dicom)
        elif path.exists():
            files[Path(os.path.abspath(path))] = None
        else:
            found.skipped.append((line, "named in the list, but not there"))
    if not files:
        first = f", such as {found.skipped[0][0]}" if found.skipped else ""
        raise UserError(f"no file in the list exists{first}", source, "Give one path a line")
    for path in files:
        found.add(path)
    return Path(os.path.commonpath([path.parent for path in files])), found


def key_of(path: Path, folder: Path) -> str:
    """The path relative to a folder, with forward slashes, in characters that every file format can hold."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def select(
    paths: list[Path], folder: Path, exclude: tuple[str, ...], skipped: list[tuple[str, str]], matched: set[str]
) -> list[Path]:
    """Leave out the files that one of the patterns names, as `fits` tells.

    Args:
        paths: files in the folder.
        folder: the data's.
        exclude: patterns.
        skipped: takes what was left out.
        matched: takes the patterns that fit a file.
    """
    taken = list(paths)
    for pattern in exclude:
        fitting = {path for path in paths if fits(path.relative_to(folder).as_posix(), pattern)}
        matched |= {pattern} if fitting else set()
        kept = [path for path in taken if path not in fitting]
        if len(kept) < len(taken):
            skipped.append((f"{len(taken) - len(kept):,} files", f"--exclude {pattern}"))
        taken = kept
    return taken


def fits(key: str, pattern: str) -> bool:
    """Tell whether a pattern of --exclude names a file, by its whole path, name, or one of its folders.

    One that begins with ``./`` is a path: ``./0.png`` lies in the data's folder itself.
    """
    parts = key.split("/")
    path = pattern.startswith("./")
    pattern = pattern.strip("/").removeprefix("./")
    if path or "/" in pattern:  # a path, or a folder with all that it holds
        return any(fnmatchcase("/".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))
    return any(fnmatchcase(part, pattern) for part in parts)


def ask_of_unread(unread: list[Path], taken: int, folder: Path, doubts: list[str]) -> None:
    """Ask about archives, and about files of formats that are not read if they are a third as many as those that are.

    Args:
        unread: files of such formats that --exclude does not name.
        taken: how many files are read.
        folder: the data's.
        doubts: takes the question.
    """
    packed = [path for path in unread if _PACKED.fullmatch(path.name) and not path.name.lower().endswith(".img.gz")]
    others = sorted(set(unread) - set(packed))
    for paths, how in ((packed, "unpack them"), (others if 3 * len(others) >= taken else [], "convert them")):
        if paths:
            shown = ", ".join(key_of(path, folder) for path in sorted(paths)[:3])
            ends = sorted({next(end for end in _NOT_READ[::-1] if path.name.lower().endswith(end)) for path in paths})
            doubts.append(
                f"{len(paths):,} {' and '.join(ends)} file{'s' * (len(paths) > 1)} cannot be read ({shown}): {how} if "
                f"they are data; --exclude {shlex.join('*' + end for end in ends)} silences this"
            )


def nothing_found(folder: Path, found: Found, what: str, formats: tuple[str, ...]) -> UserError:
    """Say what lies there instead of images."""
    if own := _own_folder([name for name in OWN_FOLDERS if (folder / name).exists()]):
        return UserError(f"this is {own}", folder, "Give --data the folder that holds the images")
    told = ", ".join(f"{count} {suffix}" for suffix, count in found.others.most_common(3)) or "nothing"
    if any(_PACKED.fullmatch(f"a{suffix}") for suffix in found.others):
        way_out = "Unpack the archives first"
    elif any(suffix in _ARRAYS for suffix in found.others):
        way_out = "Arrays are not read; store each slice as PNG, or each volume as NIfTI"
    elif {".img", ".hdr"} & found.others.keys():
        way_out = "An .img is read with the .hdr of its name, its header"
    else:
        way_out = f"Formats that are read: {' '.join(formats)}"
    return UserError(f"no {what} found, but {told}", folder, way_out)


def _own_folder(names: list[str]) -> str:
    """Say what a folder is that this package wrote, by the names in it; empty: none."""
    return next((words for name, words in OWN_FOLDERS.items() if name in names), "")


def _has_header(path: Path) -> bool:
    """Whether the header of an Analyze or NIfTI pair lies beside its image."""
    stem = re.sub(r"\.img(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    return any((path.parent / f"{stem}{end}").exists() for end in (".hdr", ".HDR", ".hdr.gz"))
