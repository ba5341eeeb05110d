"""What a folder of images says by its shape: files, splits, classes and subjects."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vqvae2.data.decoding import SUFFIXES
from vqvae2.data.subjects import guess_subjects, known_subject, stem_of, tells_kind_alone, uninformative
from vqvae2.data.volumes import is_volume
from vqvae2.errors import UserError

LayoutChoice = Literal["auto", "flat", "classes", "subjects", "splits", "volumes", "bids"]
DATA_REPORT = "data-report.json"
WRITING = ".writing"  # lies in a folder of samples while they are written
OWN_FOLDERS = {
    "run.json": "a run folder, not data",
    "samples.json": "a folder of samples, not data",
    WRITING: "a folder of samples, not data",
    DATA_REPORT: "a data report, not data",
}
"""Files by which folders are known that this package wrote."""
SPLIT_FOLDER = re.compile(
    r"(?:keras_png_slices_)?(train|val|test)(?:ing|id|idate|idation)?(?:[_\-. ](?:images?|set|data|slices?))?",
    re.IGNORECASE,
)
_DERIVED = re.compile(r"(?:^|/)(?:derivatives|sourcedata|code)/")
_PERSON_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/")
_ANATOMY_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?anat/")
_CLASS_STEMS = {"", "class", "label", "grade", "stage", "type", "group", "category", "c", "cdr"}
_WORDNET = re.compile(r"n\d{8}")


@dataclass
class Layout:
    """The files of a folder and what their places say; lists run alongside."""

    words: str
    paths: list[Path]
    keys: list[str]  # relative, with forward slashes
    splits: list[str | None]
    classes: list[str] | None
    subjects: list[str]
    volumes: bool = False  # the files are volumes, or slices of them
    told_by: str = "the names of the files"  # what says whom an image shows
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def key_of(path: Path, folder: Path) -> str:
    """The path relative to a folder, with forward slashes, in characters that every file format can hold."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def _own_folder(names: list[str]) -> str:
    """Say what a folder is that this package wrote, by the names in it; empty: none."""
    return next((words for name, words in OWN_FOLDERS.items() if name in names), "")


def walk(folder: Path) -> tuple[list[Path], list[Path], list[tuple[str, str]], Counter[str]]:
    """All image files and volumes under a folder in order, what was left out and why, and the other files by suffix.

    Hidden files and folders, folders that this package wrote (see ``OWN_FOLDERS``) and links that lead
    back are passed by.
    """
    images: list[Path] = []
    volumes: list[Path] = []
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
        if own := _own_folder(files):
            folders.clear()
            skipped.append((here, own))
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
            elif is_volume(name):
                volumes.append(Path(here, name))
            else:
                others[os.path.splitext(name)[1].lower() or "no suffix"] += 1
    return sorted(images), sorted(volumes), skipped, others


def read_layout(folder: Path, wanted: LayoutChoice = "auto", suffix: str = "T1w") -> Layout:
    """Find the images of a folder and understand its shape.

    Args:
        folder: of images or volumes.
        wanted: how to understand it; auto looks at it.
        suffix: what the names of the volumes of a BIDS tree end with that are taken.

    Raises:
        UserError: there are none, or the folder is not of the shape wanted.
    """
    if not folder.exists():
        raise UserError(
            "there is no such folder", folder, "Give --data a folder of images, phantom or torchvision:NAME"
        )
    if not folder.is_dir():
        raise UserError("not a folder", folder, "Give --data the folder that holds the images")
    images, volumes, skipped, others = walk(folder)
    described = (folder / "dataset_description.json").is_file()  # pictures in a BIDS tree are of its quality control
    cut = wanted in ("volumes", "bids") or (wanted == "auto" and bool(volumes) and (described or not images))
    paths, words = (volumes, "volumes") if cut else (images, "")
    if not paths:
        if own := _own_folder([name for name in OWN_FOLDERS if (folder / name).exists()]):
            raise UserError(f"this is {own}", folder, "Give --data the folder that holds the images")
        found = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(3)) or "nothing"
        what, formats = ("NIfTI volumes", (".nii", ".nii.gz")) if cut else ("images", (*SUFFIXES, ".nii", ".nii.gz"))
        raise UserError(f"no {what} found, but {found}", folder, f"Formats that are read: {' '.join(formats)}")
    if cut and images:
        skipped.append((f"{len(images):,} images", "left aside for the volumes; --layout flat reads them"))
    if volumes and not cut:
        skipped.append((f"{len(volumes):,} NIfTI volumes", "left aside for the images; --layout volumes reads them"))
    tree = cut and (wanted == "bids" or (wanted == "auto" and _is_bids(folder, paths)))
    if tree:
        words = f"BIDS tree, {suffix}"
        paths = _of_kind(folder, paths, suffix, skipped)

    keys = [key_of(path, folder) for path in paths]
    splits: list[str | None] = []
    folders: list[tuple[str, ...]] = []
    for key in keys:
        parts = key.split("/")[:-1]
        split = next((match[1].lower() for part in parts if (match := SPLIT_FOLDER.fullmatch(part))), None)
        splits.append(split)
        folders.append(tuple(parts))
    if wanted == "splits" and "train" not in splits:
        raise UserError("there is no train folder", folder, "Leave --layout out, or name the folder above it")
    if "train" in splits and wanted != "flat":
        kept = [i for i, split in enumerate(splits) if split is not None]
        outside = len(keys) - len(kept)
        if outside:
            skipped += [
                (keys[i], "not in a train, val or test folder") for i, split in enumerate(splits) if split is None
            ]
        paths, keys, splits = [paths[i] for i in kept], [keys[i] for i in kept], [splits[i] for i in kept]
        folders = [tuple(p for p in folders[i] if not SPLIT_FOLDER.fullmatch(p)) for i in kept]
        named = "/".join(name for name in ("train", "val", "test") if name in splits) + " folders"
        words = f"{words}, {named}" if words else named
    else:
        splits = [None] * len(keys)
    while folders[0] and all(parts[:1] == folders[0][:1] for parts in folders):
        folders = [parts[1:] for parts in folders]

    subjects = guess_subjects(keys, volumes=cut)
    layout = Layout(words, paths, keys, splits, None, subjects, volumes=cut, skipped=skipped)
    kind = wanted if wanted in ("classes", "subjects", "flat") else "" if tree else _meaning(folders, splits, keys)
    if cut and not tree and wanted != "classes" and all(folders) and all(map(tells_kind_alone, subjects)):
        kind = "subjects"  # anna/T1.nii, anna/FLAIR.nii: the names tell the kind of image alone
    if tree:
        folders = [()] * len(keys)
    elif cut:
        layout.notes += _kinds(keys)
    if kind in ("classes", "subjects") and not all(folders):
        bare = next(key for key, parts in zip(keys, folders, strict=True) if not parts)
        raise UserError(f"--layout {kind} needs every image in a folder", bare, "Leave --layout out")
    if kind == "classes":
        layout.classes = [parts[0] for parts in folders]
        folders = [parts[1:] for parts in folders]
        layout.words = f"{words} with class folders" if words else "class folders"
        inner = not cut and all(folders) and len(set(folders)) > 1
        kind = "subjects" if inner and wanted in ("auto", "classes") else ""
    elif kind == "subjects":
        layout.words = f"{words} with a folder for each subject" if words else "a folder for each subject"
    if kind == "subjects":
        layout.told_by = "the folders"
        layout.subjects = [known_subject(key) or parts[0] for key, parts in zip(keys, folders, strict=True)]
    elif len(set(layout.subjects)) == 1 < len(keys):
        layout.subjects = list(keys)
    elif layout.classes is not None:
        for i in uninformative(layout.subjects, layout.classes, splits):
            layout.subjects[i] = keys[i]
    layout.words = layout.words or ("folders" if any(folders) else "flat folder")
    return layout


def _kinds(keys: list[str]) -> list[str]:
    """Remark on volumes of several kinds, by the last part of their names."""
    tails = (stem_of(key.rsplit("/", 1)[-1]).rpartition("_")[2] for key in keys)
    kinds = Counter(tail for tail in tails if tells_kind_alone(tail))
    if len(kinds) < 2:
        return []
    told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(6))
    return [f"volumes of several kinds are taken together: {told}; --layout bids --bids-suffix KIND takes one alone"]


def _is_bids(folder: Path, paths: list[Path]) -> bool:
    """Whether the volumes lie in folders of subjects as BIDS has them, or a file of BIDS lies beside those folders."""
    raw = [key for path in paths if not _DERIVED.search(key := key_of(path, folder))]
    described = any((folder / name).is_file() for name in ("dataset_description.json", "participants.tsv"))
    pattern = _PERSON_FOLDER if described else _ANATOMY_FOLDER
    return bool(raw) and all(map(pattern.search, raw))


def _of_kind(folder: Path, paths: list[Path], suffix: str, skipped: list[tuple[str, str]]) -> list[Path]:
    """Take the volumes of one kind from a BIDS tree; raises UserError where there are none."""
    taken, kinds = [], Counter[str]()
    for path in paths:
        kind = path.name.split(".")[0].rsplit("_", 1)[-1]
        kinds[kind] += 1
        if kind == suffix and not _DERIVED.search(key_of(path, folder)):
            taken.append(path)
    if not taken:
        told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(5))
        raise UserError(f"no volume of the BIDS tree is called ..._{suffix}", folder, f"--bids-suffix: {told}")
    if len(taken) < len(paths):
        skipped.append((f"{len(paths) - len(taken):,} volumes", f"derived, or not called ..._{suffix} (--bids-suffix)"))
    return taken


def _meaning(folders: list[tuple[str, ...]], splits: list[str | None], keys: list[str]) -> str:
    """Whether the first folders name "classes", "subjects", or neither ("")."""
    names = {parts[0] for parts in folders if parts}
    if not all(folders) or len(names) < 2:
        return ""
    if all(map(_WORDNET.fullmatch, names)):  # ImageNet
        return "classes"
    people: dict[str, set[str]] = {}
    for parts, key in zip(folders, keys, strict=True):
        if subject := known_subject(key.rsplit("/", 1)[-1]):
            people.setdefault(parts[0], set()).add(subject)
    if any(len(whom) > 1 for whom in people.values()):  # several people in a folder, by a cohort's own names
        return "classes"
    if _look_like_people(names):
        return "subjects"
    training = {parts[0] for parts, split in zip(folders, splits, strict=True) if split in (None, "train")}
    held_out = {parts[0] for parts, split in zip(folders, splits, strict=True) if split not in (None, "train")}
    # Classes of a held-out split are classes of the training split; subjects are not.
    return "subjects" if held_out and not held_out & training else "classes"


def _look_like_people(names: set[str]) -> bool:
    """Whether names are numbered as people are: padded with zeros, more than 20, or several of each stem."""
    if not all(re.search(r"\d", name) for name in names):
        return False
    if len(names) > 20:
        return True
    padded = any(re.search(r"(?<!\d)0\d", name) for name in names)
    stems = Counter(re.sub(r"\d+", "", name).strip("_-. ").lower() for name in names)
    if stems.keys() <= _CLASS_STEMS:
        return padded and set(stems) == {""}
    return padded or min(stems.values()) > 1
