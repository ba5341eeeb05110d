"""What a folder of images says by its shape: files, splits, classes and subjects."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vqvae2.data.decoding import SUFFIXES
from vqvae2.errors import UserError

SPLIT_FOLDER = re.compile(r"(?:keras_png_slices_)?(train|val|test)(?:ing|id|idate|idation)?", re.IGNORECASE)
# What cohorts and BIDS put into their file names, so that several scans of one person stay together.
KNOWN_SUBJECT = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+|OAS[123]_?\d{4,5}|\d{3}_S_\d{4,5})(?![0-9])")
SLICE_TAIL = re.compile(
    r"(?P<subject>.+?)[_\-. ](?:(?:slice|sl|img|image|frame|axial|z)[_\-. ]?|[A-Za-z]{0,3})\d+", re.IGNORECASE
)
CLASS_STEMS = {"", "class", "label", "grade", "stage", "type", "group", "category", "c"}


@dataclass
class Layout:
    """The files of a folder and what their places say; lists run alongside."""

    words: str
    paths: list[Path]
    keys: list[str]  # relative, with forward slashes
    splits: list[str | None]
    classes: list[str] | None
    subjects: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def key_of(path: Path, folder: Path) -> str:
    """The path relative to a folder, with forward slashes, in characters that every file format can hold."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def walk(folder: Path) -> tuple[list[Path], list[tuple[str, str]], Counter[str]]:
    """All image files under a folder in order, what was left out and why, and the other files by suffix.

    Hidden files and folders, run folders (they hold a run.json), folders of samples (samples.json) and links that lead
    back are passed by.
    """
    images: list[Path] = []
    skipped: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()

    def denied(error: OSError) -> None:
        skipped.append((str(error.filename), error.strerror or "cannot be listed"))

    for here, folders, files in os.walk(folder, followlinks=True, onerror=denied):
        place = os.stat(here)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        if "run.json" in files or "samples.json" in files:
            folders.clear()
            skipped.append((here, "a run folder, not data" if "run.json" in files else "a folder of samples, not data"))
            continue
        folders[:] = sorted(
            (name for name in folders if not name.startswith((".", "__MACOSX"))),
            key=lambda name: (
                Path(here, name).is_symlink(),
                name,
            ),  # a folder is known by its own name before a link's
        )
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                images.append(Path(here, name))
            else:
                others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return sorted(images), skipped, others


def read_layout(folder: Path) -> Layout:
    """Find the images of a folder and understand its shape; raises UserError where there are none."""
    if not folder.exists():
        raise UserError(
            "there is no such folder", folder, "Give --data a folder of images, phantom or torchvision:NAME"
        )
    if not folder.is_dir():
        raise UserError("not a folder", folder, "Give --data the folder that holds the images")
    paths, skipped, others = walk(folder)
    if not paths:
        if (folder / "run.json").exists():
            raise UserError("this is a run folder, not data", folder, "Give --data the folder that holds the images")
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3)) or "nothing"
        raise UserError(f"no images found, but {found}", folder, f"Formats that are read: {' '.join(SUFFIXES)}")

    keys = [key_of(path, folder) for path in paths]
    splits: list[str | None] = []
    folders: list[tuple[str, ...]] = []
    for key in keys:
        parts = key.split("/")[:-1]
        split = next((match[1].lower() for part in parts if (match := SPLIT_FOLDER.fullmatch(part))), None)
        splits.append(split)
        folders.append(tuple(parts))
    words = ""
    if "train" in splits:
        kept = [i for i, split in enumerate(splits) if split is not None]
        outside = len(keys) - len(kept)
        if outside:
            skipped += [
                (keys[i], "not in a train, val or test folder") for i, split in enumerate(splits) if split is None
            ]
        paths, keys, splits = [paths[i] for i in kept], [keys[i] for i in kept], [splits[i] for i in kept]
        folders = [tuple(p for p in folders[i] if not SPLIT_FOLDER.fullmatch(p)) for i in kept]
        words = "/".join(name for name in ("train", "val", "test") if name in splits) + " folders"
    else:
        splits = [None] * len(keys)
    while folders[0] and all(parts[:1] == folders[0][:1] for parts in folders):
        folders = [parts[1:] for parts in folders]

    layout = Layout(words, paths, keys, splits, None, guess_subjects(keys), skipped)
    kind = _meaning(folders, splits)
    if kind == "classes":
        layout.classes = [parts[0] for parts in folders]
        folders = [parts[1:] for parts in folders]
        layout.words = f"{words} with class folders" if words else "class folders"
        kind = "subjects" if all(folders) and len(set(folders)) > 1 else ""
    elif kind == "subjects":
        layout.words = f"{words} with a folder for each subject" if words else "a folder for each subject"
    if kind == "subjects":
        known_names = [KNOWN_SUBJECT.search(parts[0]) for parts in folders]
        layout.subjects = [known[1] if known else parts[0] for known, parts in zip(known_names, folders, strict=True)]
    elif len(set(layout.subjects)) == 1 < len(keys):
        layout.subjects = list(keys)
        layout.notes.append(
            "file names tell no subjects, so each image counts as one; "
            "if several show one person, give --subject-pattern"
        )
    layout.words = layout.words or ("folders" if any(folders) else "flat folder")
    return layout


def _meaning(folders: list[tuple[str, ...]], splits: list[str | None]) -> str:
    """Whether the first folders name "classes", "subjects", or neither ("")."""
    if not all(folders) or len({parts[0] for parts in folders}) < 2:
        return ""
    names = {parts[0] for parts in folders}
    stems = {re.sub(r"\d+", "", name).strip("_-. ").lower() for name in names}
    numbered = all(re.search(r"\d", name) for name in names)
    like_classes = len(stems) > 1 or stems <= CLASS_STEMS
    if numbered and (len(names) > 20 or not like_classes):
        return "subjects"
    training = {parts[0] for parts, split in zip(folders, splits, strict=True) if split in (None, "train")}
    if names != training:  # classes of a held-out split are classes of the training split; subjects are not
        return "subjects"
    return "classes"


def guess_subjects(keys: list[str]) -> list[str]:
    """Whom each file shows, from its name alone.

    A cohort's own identifier is taken where there is one, otherwise what stands before the last separator and
    slice number. A name without such a tail is a subject of its own.

    >>> guess_subjects(["IXI012-HH-1211_k098.png", "case_001_slice_0.nii.png", "AD/388206_78.jpeg"])
    ['IXI012-HH-1211', 'case_001', '388206']
    """
    guessed = []
    for key in keys:
        name = key.rsplit("/", 1)[-1]
        known = KNOWN_SUBJECT.search(key)
        stem = stem_of(name)
        tail = SLICE_TAIL.fullmatch(stem)
        own = key if stem.isdecimal() else stem  # a bare number is counted anew in every folder
        guessed.append(known[1] if known else tail["subject"] if tail else own)
    return guessed


def stem_of(name: str) -> str:
    """A file's name without its suffix and without the .nii or .nii.gz of the volume that it was cut from."""
    return re.sub(r"(\.nii)?(\.gz)?\.[A-Za-z]+$", "", name)


def subjects_by_pattern(keys: list[str], pattern: str) -> list[str]:
    """The subject of each file by a regular expression; raises UserError if it does not match every file."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern is no regular expression ({error})", pattern) from None
    subjects: list[str] = []
    missed: list[str] = []
    for key in keys:
        match = compiled.search(key)
        if match is None:
            missed.append(key)
        else:
            subjects.append(match[1] if compiled.groups and match[1] is not None else match[0])
    if missed:
        raise UserError(
            f"--subject-pattern {pattern!r} does not match {len(missed):,} of {len(keys):,} files, such as",
            missed[0],
            "It is searched in the path relative to the data",
        )
    return subjects
