"""What a folder of images says by its shape: files, splits, classes and subjects."""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from vqvae2.data import decoding, rules, volumes
from vqvae2.data.dicom import read_series
from vqvae2.data.sources import Found, find_files, nothing_found, select
from vqvae2.data.subjects import (
    guess_subjects,
    is_mask,
    kind_of,
    known_subject,
    person_of,
    stem_of,
    uninformative,
    without_counters,
    words_of,
)
from vqvae2.errors import UserError

LayoutChoice = Literal["auto", "flat", "classes", "subjects", "splits", "volumes", "bids"]
_DERIVED = re.compile(r"(?:^|/)(?:derivatives|sourcedata|code)/")
_PERSON_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/")
_ANATOMY_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?anat/")

Folders = list[tuple[str, ...]]


@dataclass
class Layout:
    """The files of a folder and what their places say; lists run alongside."""

    words: str
    paths: list[Path]
    keys: list[str]  # relative, with forward slashes
    splits: list[str | None]
    subjects: list[str]
    folder: Path
    attributes: dict[str, list[str]] = field(default_factory=dict)  # by the folders; "" where a folder says nothing
    volumes: bool = False  # the files are volumes, or slices of them
    series: dict[Path, tuple[Path, ...]] = field(default_factory=dict)  # of a DICOM series' first file: all
    told_by: str = "the names of the files"  # what says whom an image shows
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # readings that are uncertain, with the flag that settles them


@dataclass(frozen=True)
class Choice:
    """Which files are taken, as `DataConfig` describes it."""

    layout: LayoutChoice = "auto"
    suffix: str | None = None
    entities: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    include_masks: bool = False


def key_of(path: Path, folder: Path) -> str:
    """The path relative to a folder, with forward slashes, in characters that every file format can hold."""
    return path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()


def read_layout(source: Path, choice: Choice | None = None) -> Layout:
    """Find the images of a folder, or those that a text file names, and understand their places.

    Raises:
        UserError: there are none, or the folder is not of the shape wanted.
    """
    choice = choice or Choice()
    folder, found = find_files(source)
    layout = _gather(folder, found, choice)
    tree = layout.volumes and (
        choice.layout == "bids" or (choice.layout == "auto" and _is_bids(folder, [*layout.keys]))
    )
    if layout.volumes:
        _choose_kind(layout, choice, tree)
    folders: Folders = _read_splits(layout, source, choice.layout)
    if tree:
        folders = [()] * len(layout.keys)
    _read_people(layout, folders, choice.layout, tree)
    layout.words = layout.words or ("folders" if any(folders) else "flat folder")
    _warn_of_copies(layout)
    _warn_of_few(layout)
    return layout


def _gather(folder: Path, found: Found, choice: Choice) -> Layout:
    """Choose between images and volumes, and leave out masks and what --exclude names."""
    skipped = found.skipped
    images, scans, dicom = (
        select(paths, folder, choice.exclude, skipped) for paths in (found.images, found.volumes, found.dicom)
    )
    series = (
        read_series(dicom, folder, skipped) if dicom and (choice.layout in ("volumes", "bids") or not images) else {}
    )
    scans += series
    described = (folder / "dataset_description.json").is_file()  # pictures in a BIDS tree are of its quality control
    cut = choice.layout in ("volumes", "bids") or bool(scans and (described or not images))
    if not (scans if cut else images):
        raise nothing_found(
            folder, found, "volumes" if cut else "images", decoding.SUFFIXES * (not cut) + volumes.SUFFIXES
        )
    if cut and images:
        skipped.append((f"{len(images):,} images", "left aside for the volumes; --exclude '*.nii*' reads them"))
    if (scans or dicom) and not cut:
        skipped.append(
            (f"{len(scans) + len(dicom):,} volumes", "left aside for the images; --layout volumes reads them")
        )
    paths = scans if cut else images
    keys = [series[path].key if path in series else key_of(path, folder) for path in paths]
    layout = Layout("volumes" if cut else "", paths, keys, [], [], folder, volumes=cut, skipped=skipped)
    layout.series = {path: one.files for path, one in series.items()}
    layout.subjects = [series[path].patient if path in series else "" for path in paths]
    if not choice.include_masks:
        _leave_out_masks(layout)
    return layout


def _keep(layout: Layout, rows: list[int]) -> None:
    layout.paths, layout.keys = [layout.paths[i] for i in rows], [layout.keys[i] for i in rows]
    layout.subjects = [layout.subjects[i] for i in rows]


def _leave_out_masks(layout: Layout) -> None:
    masks = []
    for key in layout.keys:
        *folders, name = key.split("/")
        masks.append(is_mask(stem_of(name)) or any(is_mask(part, folder=True) for part in folders))
    if all(masks):
        layout.doubts.append(f"all names say that these are masks, such as {layout.keys[0]}; they are taken as images")
    elif any(masks):
        shown = ", ".join([key for key, mask in zip(layout.keys, masks, strict=True) if mask][:3])
        layout.skipped.append(
            (f"{sum(masks):,} masks", f"left out by their names ({shown}); --include-masks takes them")
        )
        _keep(layout, [i for i, mask in enumerate(masks) if not mask])


def _choose_kind(layout: Layout, choice: Choice, tree: bool) -> None:
    """Take the volumes of one kind, where that is asked for or this is a BIDS tree, and of one space."""
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    suffix = choice.suffix or "T1w"
    if tree:
        layout.words = f"BIDS tree, {suffix}"
        kinds = Counter(stem.rsplit("_", 1)[-1] for stem in stems)
        rows = [
            i
            for i, (stem, key) in enumerate(zip(stems, layout.keys, strict=True))
            if stem.rsplit("_", 1)[-1] == suffix and not _DERIVED.search(key)
        ]
        if not rows:
            told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(5))
            raise UserError(
                f"no volume of the BIDS tree is called ..._{suffix}", layout.folder, f"--bids-suffix: {told}"
            )
        reason = f"derived, or not called ..._{suffix} (--bids-suffix)"
    else:
        rows = list(range(len(stems)))
        if choice.suffix:
            ends = [re.split(r"[_\-. ]", stem)[-1] for stem in stems]
            rows = [i for i in rows if ends[i] == suffix] or [i for i in rows if ends[i].lower() == suffix.lower()]
            if not rows:
                layout.doubts.append(f"no volume is called ...{suffix} (--bids-suffix); all kinds are taken")
                rows = list(range(len(stems)))
        reason = f"not called ...{suffix} (--bids-suffix)"
    if len(rows) < len(stems):
        layout.skipped.append((f"{len(stems) - len(rows):,} volumes", reason))
    _keep(layout, rows)
    _choose_entities(layout, dict(choice.entities))
    kinds = Counter(filter(None, (kind_of(stem_of(key.rsplit("/", 1)[-1])) for key in layout.keys)))
    if not tree and len(kinds) > 1:
        told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(6))
        layout.notes.append(f"volumes of several kinds are taken together: {told}; --bids-suffix KIND takes one alone")


def _choose_entities(layout: Layout, wanted: dict[str, str]) -> None:
    """Take the volumes whose names have the wanted ``key-value`` parts, and of several spaces one."""
    parts = [
        dict(part.split("-", 1) for part in key.rsplit("/", 1)[-1].split("_") if "-" in part) for key in layout.keys
    ]
    spaces = Counter(part.get("space", "") for part, key in zip(parts, layout.keys, strict=True) if "sub-" in key)
    if "space" not in wanted and len(spaces) > 1:
        chosen = "" if "" in spaces else spaces.most_common(1)[0][0]
        wanted = {**wanted, "space": chosen}
        told = ", ".join(f"{space or 'none named'} ({count:,})" for space, count in spaces.most_common())
        layout.doubts.append(
            f"volumes lie in several spaces: {told}; taken: {chosen or 'those that name none'}; "
            "--bids-entity space=NAME takes another"
        )
    for name, value in wanted.items():
        rows = [i for i, part in enumerate(parts) if part.get(name, "") == value]
        if not rows:
            there = ", ".join(sorted({part.get(name) or "none" for part in parts})[:6])
            raise UserError(f"no volume has {name}-{value}", "--bids-entity", f"There are: {there}")
        if len(rows) < len(parts):
            layout.skipped.append((f"{len(parts) - len(rows):,} volumes", f"not {name}={value} (--bids-entity)"))
        parts = [parts[i] for i in rows]
        _keep(layout, rows)


def _is_bids(folder: Path, keys: list[str]) -> bool:
    """Whether the volumes lie in folders of subjects as BIDS has them, or a file of BIDS lies beside those folders."""
    raw = [key for key in keys if not _DERIVED.search(key)]
    described = any((folder / name).is_file() for name in ("dataset_description.json", "participants.tsv"))
    pattern = _PERSON_FOLDER if described else _ANATOMY_FOLDER
    return bool(raw) and all(map(pattern.search, raw))


def _split_of(name: str) -> str | None:
    """The split that a folder is: ``train``, ``keras_png_slices_validate``, ``imagesTr``; None for none."""
    words = re.split(r"[_\-. ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    found = [(word, split) for word in words for split, pattern in rules.SPLITS.items() if pattern.fullmatch(word)]
    rest = [word for word in words if not any(pattern.fullmatch(word) for pattern in rules.SPLITS.values())]
    plain = all(map(rules.NEUTRAL.fullmatch, rest))
    return found[0][1] if len(found) == 1 and plain and (rest or len(found[0][0]) > 2) else None


def _read_splits(layout: Layout, source: Path, wanted: LayoutChoice) -> Folders:
    """Read the splits that folders name, and return the names of the other folders that can tell something."""
    folders: Folders = [tuple(key.split("/")[:-1]) for key in layout.keys]
    splits = [next(filter(None, map(_split_of, parts)), None) for parts in folders]
    if wanted == "splits" and "train" not in splits:
        raise UserError("there is no train folder", source, "Leave --layout out, or name the folder above it")
    if "train" in splits and wanted != "flat":
        kept = [i for i, split in enumerate(splits) if split is not None]
        layout.skipped += [
            (key, "not in a train, val or test folder")
            for key, split in zip(layout.keys, splits, strict=True)
            if split is None
        ]
        _keep(layout, kept)
        splits = [splits[i] for i in kept]
        folders = [tuple(name for name in folders[i] if not _split_of(name)) for i in kept]
        named = "/".join(name for name in ("train", "val", "test") if name in splits) + " folders"
        layout.words = f"{layout.words}, {named}" if layout.words else named
    else:
        splits = [None] * len(layout.keys)
    layout.splits = splits
    if wanted == "flat":
        return [()] * len(layout.keys)
    folders = [tuple(name for name in parts if not _is_neutral(name)) for parts in folders]
    return _telling(folders)


def _is_neutral(name: str) -> bool:
    return all(map(rules.NEUTRAL.fullmatch, re.split(r"[_\-. ]+", name.lower())))


def _telling(folders: Folders) -> Folders:
    """Leave out the levels of folders whose name is the same for all, and the last ones of visits or kinds of image."""
    depth = 0
    while depth < max(map(len, folders)):
        if len({parts[depth] for parts in folders if len(parts) > depth}) == 1:
            folders = [parts[:depth] + parts[depth + 1 :] for parts in folders]
        else:
            depth += 1
    sites = dict(rules.ATTRIBUTES)["site"]
    if _half({parts[0] for parts in folders if parts}, sites):  # a scanner below a site, above its people
        folders = [
            parts[:1] + tuple(name for name in parts[1:-1] if not sites.fullmatch(name.lower())) + parts[1:][-1:]
            for parts in folders
        ]
    for level in range(depth - 1, 0, -1):
        if all(_tells_no_person(parts[level]) for parts in folders if len(parts) > level):
            folders = [parts[:level] for parts in folders]
        else:
            break
    return folders


def _tells_no_person(name: str) -> bool:
    return not known_subject(name) and all(word.role not in ("", "number") for word in words_of(name))


def _read_people(layout: Layout, folders: Folders, wanted: LayoutChoice, tree: bool) -> None:
    """Read attributes and people from the folders, and people from the names where no folder tells them."""
    if wanted in ("classes", "subjects") and not all(folders):
        bare = next(key for key, parts in zip(layout.keys, folders, strict=True) if not parts)
        raise UserError(f"--layout {wanted} needs every image in a folder", bare, "Leave --layout out")
    doubts: list[str] = []
    by_name = guess_subjects(layout.keys, layout.volumes, doubts)
    people: list[str] | None = None
    if not tree and wanted != "flat":
        people = _read_levels(layout, folders, wanted)
        named = " and ".join(reversed(layout.attributes))
        if words := f"{named} folders" if named else "a folder for each subject" if people else "":
            layout.words = f"{layout.words} with {words}" if layout.words else words
    if layout.subjects and all(layout.subjects):
        layout.told_by = "the DICOM headers, whose patients are not written out"
        return
    if people is not None:
        layout.told_by = "the folders"
        subjects = [
            known_subject(key) or who or name for key, who, name in zip(layout.keys, people, by_name, strict=True)
        ]
    else:
        subjects = by_name
        layout.doubts += doubts
        if len(set(subjects)) == 1 < len(subjects):
            subjects = list(layout.keys)
        classes = layout.attributes.get("class")
        if classes and all(map(rules.WORDNET.fullmatch, set(filter(None, classes)))):
            subjects = list(layout.keys)
        elif classes:
            for i in uninformative(subjects, classes, layout.splits):
                subjects[i] = layout.keys[i]
    layout.subjects = [header or who for header, who in zip(layout.subjects, subjects, strict=True)]


def _read_levels(layout: Layout, folders: Folders, wanted: LayoutChoice) -> list[str] | None:
    """Read the levels of folders from the first on as attributes, until one names the people, which it returns."""
    training = [i for i, split in enumerate(layout.splits) if split in (None, "train")]
    for depth in range(3):
        names = [parts[depth] if len(parts) > depth else "" for parts in folders]
        if not all(names[i] for i in training) or len(set(names) - {""}) < (
            1 if depth == 0 and wanted != "auto" else 2
        ):
            return None
        if _are_chunks(layout.keys, names):
            return None
        if depth == 0 and wanted in ("classes", "subjects"):
            meaning = {"classes": "class", "subjects": "people"}[wanted]
        else:
            below = [parts[depth + 1] if len(parts) > depth + 1 else "" for parts in folders]
            meaning = _meaning(layout, names, [parts[:depth] for parts in folders], below)
        if meaning == "people":
            return _people_of(layout, names, [parts[:depth] for parts in folders])
        if not meaning:
            return None
        if meaning in layout.attributes:  # the class is the innermost
            layout.attributes["source"] = layout.attributes.pop(meaning)
        layout.attributes[meaning] = names
        if lacking := Counter(split for split, name in zip(layout.splits, names, strict=True) if not name):
            told = ", ".join(f"{count:,} of {split}" for split, count in lacking.items())
            layout.notes.append(f"{meaning}: {told} lie in no such folder; their label counts as missing")
    return None


def _meaning(layout: Layout, names: list[str], above: Folders, below: list[str]) -> str:
    """What a level of folders tells: "people", an attribute's name, or nothing ("")."""
    distinct = set(names) - {""}
    if all(map(rules.WORDNET.fullmatch, distinct)):
        return "class"
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    whom = [known_subject(stem) or "" for stem in stems]
    cohort: dict[str, set[str]] = {}
    for name, who in zip(names, whom, strict=True):
        cohort.setdefault(name, set()).update({who} - {""})
    named = next((role for role in ("visit", "kind") if _differ_by(distinct, role)), "")
    named = named or next((name for name, pattern in rules.ATTRIBUTES if _half(distinct, pattern)), "")
    attribute = named or "class"
    if any(len(people) > 1 for people in cohort.values()):  # several people in a folder, by a cohort's own names
        return attribute
    if all(map(known_subject, distinct)):
        return "people"
    if named:
        return named
    if _look_like_people(distinct):
        return "people"
    shared = Counter(name for name, _ in set(zip(names, above, strict=True)))
    if above[0] and sum(count > 1 for count in shared.values()) * 2 >= len(shared):
        return attribute  # the same names in several folders: original/AD, augmented/AD
    if layout.volumes and not any(person_of(stem, volume=True) for stem in stems) and len(set(stems)) < len(stems):
        if len(inside := set(below) - {""}) < len(distinct) or not all(below) or not _numbered(inside):
            return "people"  # anna/T1.nii, anna/FLAIR.nii: the names tell the kind of image alone
        layout.doubts.append(
            f"are the folders such as {min(distinct)} people, or those in them, such as {min(inside)}? The latter is "
            "taken; --layout subjects takes the former"
        )
        return attribute  # Berlin/001/T1.nii.gz
    if above[0]:
        return "" if layout.volumes else "people"
    training = {name for name, split in zip(names, layout.splits, strict=True) if split in (None, "train")}
    held_out = {name for name, split in zip(names, layout.splits, strict=True) if split not in (None, "train")} - {""}
    # Classes of a held-out split are classes of the training split; subjects are not.
    return "people" if held_out and not held_out & training else attribute


def _half(names: set[str], pattern: re.Pattern[str]) -> bool:
    """Whether a part of at least half of the names fits."""
    parts = [re.split(r"[_\-. ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names]
    return 2 * sum(any(map(pattern.fullmatch, words)) for words in parts) >= len(names)


def _differ_by(names: set[str], role: str) -> bool:
    """Whether all names have a word of a role, and only that tells them apart: ``IXI-T1``, ``IXI-T2``."""
    words = [words_of(name) for name in names]
    rest = {tuple(word.text for word in one if word.role != role) for one in words}
    return (
        len(rest) == 1
        and all(len(one) > len(next(iter(rest))) for one in words)
        and (not any(map(rules.NO_VISIT.match, names)))
    )


def _people_of(layout: Layout, names: list[str], above: Folders) -> list[str]:
    """The people whom folders name, without visits; a bare number that several classes or sites have is theirs."""
    whom = {name: person_of(name, volume=True) or name for name in names}
    order = [name for name in whom if not known_subject(name)]
    whom |= zip(order, without_counters([whom[name] for name in order], order, layout.doubts), strict=True)
    places: dict[str, set[tuple[str, ...]]] = {}
    for name, parts in zip(names, above, strict=True):
        places.setdefault(name, set()).add(parts)
    apart = not {"visit", "kind", "source"} & layout.attributes.keys()
    return [
        f"{'/'.join(parts)}/{name}" if apart and name.isdecimal() and len(places[name]) > 1 else whom[name]
        for name, parts in zip(names, above, strict=True)
    ]


def _are_chunks(keys: list[str], names: list[str]) -> bool:
    """Whether folders are nothing but blocks of one numbering: ``00000/00000.png`` to ``69000/69999.png``."""
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in keys]
    if not all(
        stem.isdecimal() and name.isdecimal() and len(stem) == len(name)
        for stem, name in zip(stems, names, strict=True)
    ):
        return False
    starts = sorted({int(name) for name in names})
    step = min(b - a for a, b in pairwise(starts))
    return step >= 10 and all(int(stem) // step * step == int(name) for stem, name in zip(stems, names, strict=True))


def _numbered(names: set[str]) -> bool:
    return all(re.search(r"\d", name) for name in names)


def _look_like_people(names: set[str]) -> bool:
    """Whether names are numbered as people are: padded with zeros, of three digits or more, above 20, or of few stems."""
    if not _numbered(names):
        return False
    if len(names) > 20:
        return True
    if all(name.isdecimal() for name in names) and len({len(name) for name in names}) == 1 and len(min(names)) > 2:
        return True  # 100206 of the Human Connectome Project
    padded = any(re.search(r"(?<!\d)0\d", name) for name in names)
    stems = Counter(re.sub(r"\d+", "", name).strip("_-. ").lower() for name in names)
    if stems.keys() <= rules.CLASS_STEMS:
        return padded and set(stems) == {""}
    return padded or min(stems.values()) > 1


def _warn_of_copies(layout: Layout) -> None:
    """Say that changed copies of images lie among them, where their names do not tell of whom they are."""
    copies = [_copy_pattern(key) for key in layout.keys]
    originals = {who for who, copy in zip(layout.subjects, copies, strict=True) if not copy}
    loose = [i for i, copy in enumerate(copies) if copy and layout.subjects[i] not in originals]
    if originals and loose:
        layout.doubts.append(
            f"{len(loose):,} images are changed copies of others by their names, such as {layout.keys[loose[0]]}, and do "
            "not tell whose; copies of held-out people may be among the training images; "
            f"--exclude '{copies[loose[0]]}' leaves them out"
        )


def _copy_pattern(key: str) -> str:
    """A pattern for the folders or names that tell a copy, as this one does; "" if it does not."""
    *folders, name = key.split("/")
    for part in (*folders, stem_of(name)):
        for word in words_of(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part)):
            if word.role == "copy" and not word.text.startswith("("):
                return part if part in folders else f"*{word.text}*"
    return ""


def _warn_of_few(layout: Layout) -> None:
    """Say so where names tell a few words instead of people: ``cat.0.jpg``, ``dog.0.jpg``."""
    counts = Counter(layout.subjects)
    if layout.told_by == "the names of the files" and not layout.volumes and 1 < len(counts) < 10:
        if not any(re.search(r"\d", who) for who in counts) and len(layout.keys) >= 8 * len(counts):
            shown = ", ".join(f"{who} ({count:,} images)" for who, count in counts.most_common(3))
            layout.doubts.append(
                f"the names tell {len(counts)} people: {shown}; if these are kinds of images, "
                "--subject-pattern '.+' counts each image as a person"
            )
