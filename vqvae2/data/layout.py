"""What a folder of images says by its shape: splits, classes and subjects."""

import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.people import (
    SAME_PEOPLE,
    Folders,
    by_data_sets,
    by_numbers,
    numbered,
    warn_of_copies,
    warn_of_few,
    with_headers,
    without_zeros,
)
from vqvae2.data.scans import under_heads, without_counters
from vqvae2.data.selection import Choice, Layout, LayoutChoice, choose_kind, gather, is_bids, keep
from vqvae2.data.sources import find_files
from vqvae2.data.subjects import (
    guess_subjects,
    known_subject,
    person_of,
    spaced,
    stem_of,
    uninformative,
    words_of,
)
from vqvae2.errors import UserError


def read_layout(source: Path, choice: Choice | None = None) -> Layout:
    """Find the images of a folder, or those that a text file names, and understand their places.

    After the training (``choice.again``) a single image or volume will do.

    Raises:
        UserError: there are none, or the folder is not of the shape wanted.
    """
    choice = choice or Choice()
    folder, found = find_files(source, alone=choice.again)
    layout = gather(folder, found, choice)
    tree = layout.volumes and (choice.layout == "bids" or (choice.layout == "auto" and is_bids(folder, layout.keys)))
    if layout.volumes:
        choose_kind(layout, choice, tree)
    folders: Folders = _read_splits(layout, source, choice.layout)
    if tree:
        folders = [()] * len(layout.keys)
    _read_people(layout, folders, choice.layout, tree)
    layout.words = layout.words or ("folders" if any(folders) else "flat folder")
    warn_of_copies(layout)
    warn_of_few(layout)
    return layout


def _split_of(name: str) -> str | None:
    """The split that a folder is: ``train``, ``keras_png_slices_validate``, ``imagesTr``; None for none."""
    words = re.split(r"[_\-. ]+", spaced(name).lower())
    found = [(word, split) for word in words for split, pattern in rules.SPLITS.items() if pattern.fullmatch(word)]
    rest = [word for word in words if not any(pattern.fullmatch(word) for pattern in rules.SPLITS.values())]
    plain = all(map(rules.NEUTRAL.fullmatch, rest))
    return found[0][1] if len(found) == 1 and plain and (rest or len(found[0][0]) > 2) else None


def _paired_splits(folders: Folders) -> dict[str, tuple[str, str]]:
    """Folders that differ by the word of a split alone, as ``multicoil_train`` and ``multicoil_val``.

    Returns:
        By name the split, and the rest of the name where there are several rests: ``AD`` of ``train_AD``.
    """
    groups: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}  # of a rest, as it is written first
    above: dict[str, set[tuple[str, ...]]] = {}
    for parts in folders:
        for depth, name in enumerate(parts):
            above.setdefault(name, set()).add(parts[:depth])
    for name, places in above.items():
        if len(places) > 1:  # P01/motor_train, P02/motor_train: of each person
            continue
        words = re.split(r"[_\-. ]+", spaced(name))
        found = [
            (place, split)
            for place, word in enumerate(words)
            for split, pattern in rules.SPLITS.items()
            if len(word) > 2 and pattern.fullmatch(word.lower())
        ]
        if len(found) == 1 and not _split_of(name):
            place, split = found[0]
            rest = "_".join(words[:place] + words[place + 1 :])
            texts.setdefault(rest.lower(), rest)
            groups.setdefault(rest.lower(), {})[name] = split
    groups.pop("", None)
    if not any("train" in held.values() and len(set(held.values())) > 1 for held in groups.values()):
        return {}
    several = len(groups) > 1  # train_CN besides, which has no test_CN
    return {
        name: (split, texts[rest] if several else "") for rest, held in groups.items() for name, split in held.items()
    }


def _read_splits(layout: Layout, source: Path, wanted: LayoutChoice) -> Folders:
    """Read the splits that folders name, and return the names of the other folders that can tell something."""
    folders: Folders = [tuple(key.split("/")[:-1]) for key in layout.keys]
    paired = {} if layout.volumes and is_bids(layout.folder, layout.keys) else _paired_splits(folders)
    splits = [
        next(filter(None, (paired[name][0] if name in paired else _split_of(name) for name in parts)), None)
        for parts in folders
    ]
    if wanted == "splits" and "train" not in splits:
        raise UserError("there is no train folder", source, "Leave --layout out, or name the folder above it")
    if "train" in splits and wanted != "flat":
        kept = [i for i, split in enumerate(splits) if split is not None]
        layout.skipped += [
            (key, "not in a train, val or test folder")
            for key, split in zip(layout.keys, splits, strict=True)
            if split is None
        ]
        keep(layout, kept)
        splits = [splits[i] for i in kept]
        folders = [
            tuple(
                paired[name][1] if name in paired else name
                for name in folders[i]
                if (paired[name][1] if name in paired else not _split_of(name))
            )
            for i in kept
        ]
        named = "/".join(name for name in ("train", "val", "test") if name in splits) + " folders"
        layout.words = f"{layout.words}, {named}" if layout.words else named
    else:
        splits = [None] * len(layout.keys)
    layout.splits = splits
    if wanted == "flat":
        return [()] * len(layout.keys)
    folders = [tuple(name for name in parts if not _is_neutral(name)) for parts in folders]
    return _telling(layout, folders, wanted not in ("classes", "subjects"))


def _is_neutral(name: str) -> bool:
    return all(map(rules.NEUTRAL.fullmatch, re.split(r"[_\-. ]+", name.lower())))


def _telling(layout: Layout, folders: Folders, parts_too: bool) -> Folders:
    """Leave out the levels of folders whose name is the same for all or counts parts of the data, and the last ones of
    visits or kinds of image."""
    depth = 0
    while depth < max(map(len, folders)):
        here = {parts[depth] for parts in folders if len(parts) > depth}
        counted = parts_too and (_are_parts(layout, folders, depth) or _are_shards(folders, depth))
        if len(here) == 1 or counted:
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


def _are_parts(layout: Layout, folders: Folders, depth: int) -> bool:
    """Whether folders count parts of the data, and what lies in them tells people: ``fold_1/AD/P01``."""
    here = [i for i, parts in enumerate(folders) if len(parts) > depth]
    if not all(rules.PART.fullmatch(folders[i][depth]) for i in here):
        return False
    keys = [layout.keys[i] for i in here if len(folders[i]) == depth + 1]
    return all(who != key for who, key in zip(guess_subjects(keys, layout.volumes), keys, strict=True))


def _are_shards(folders: Folders, depth: int) -> bool:
    """Whether folders hold what begins as they are called: ``p10/p10000032``."""
    pairs = {(parts[depth], parts[depth + 1]) for parts in folders if len(parts) > depth + 1}
    here = {parts[depth] for parts in folders if len(parts) > depth}
    begins = all(below.startswith(name) and below[len(name) :].isdecimal() for name, below in pairs)
    return begins and len(pairs) > len(here) > 1 and {name for name, _ in pairs} == here


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
        layout.subject_doubts += doubts
        if len(set(subjects)) == 1 < len(subjects):
            subjects = list(layout.keys)
        classes = layout.attributes.get("class")
        if classes and all(map(rules.WORDNET.fullmatch, set(filter(None, classes)))):
            subjects = list(layout.keys)
        elif classes:
            for i in uninformative(subjects, classes, layout.splits):
                subjects[i] = layout.keys[i]
    subjects = by_data_sets(layout, subjects)
    one: dict[str, str] = {}  # P01 and p01 are one person
    subjects = [one.setdefault(unicodedata.normalize("NFC", who).lower(), who) for who in subjects]
    layout.subjects = with_headers(layout, by_numbers(layout, without_zeros(layout, subjects, folders), folders))


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
        if len(inside := set(below) - {""}) < len(distinct) or not all(below) or not numbered(inside):
            return "people"  # anna/T1.nii, anna/FLAIR.nii: the names tell the kind of image alone
        layout.subject_doubts.append(
            f"folders like {min(distinct)} or those in them, like {min(inside)}, may be the subjects; the latter are "
            "taken; --layout subjects takes the former"
        )
        return attribute  # Berlin/001/T1.nii.gz
    within = set(zip(names, below, strict=True))
    if (
        all(below)
        and not any(re.search(r"\d", name) for name in distinct)
        and all(re.match(r"\d\d", name) for _, name in within)
        and len({name for _, name in within}) == len(within) > len(distinct)
        and not all(_tells_no_person(name) for _, name in within)
    ):
        return attribute  # adenosis/14-22549AB: words above people
    if above[0]:
        return "" if layout.volumes else "people"
    training = {name for name, split in zip(names, layout.splits, strict=True) if split in (None, "train")}
    held_out = {name for name, split in zip(names, layout.splits, strict=True) if split not in (None, "train")} - {""}
    # Classes of a held-out split are classes of the training split; subjects are not.
    return "people" if held_out and not held_out & training else attribute


def _half(names: set[str], pattern: re.Pattern[str]) -> bool:
    """Whether a part of at least half of the names fits."""
    parts = [re.split(r"[_\-. ]+", spaced(name).lower()) for name in names]
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
    # Of FreeSurfer's P01_2.long.P01_template the latter is the person.
    whom = {name: person_of(name.rpartition(".long.")[2], volume=True) or name for name in names}
    order = [name for name in whom if not known_subject(name)]
    told = without_counters([whom[name] for name in order], order, layout.subject_doubts)
    whom |= zip(order, under_heads(told, order, layout.subject_doubts), strict=True)
    places: dict[str, set[tuple[str, ...]]] = {}
    for name, parts in zip(names, above, strict=True):
        places.setdefault(name, set()).add(parts)
    apart = not SAME_PEOPLE & layout.attributes.keys() and not _drawn_from_many(names)
    return [
        f"{'/'.join(parts)}/{name}" if apart and name.isdecimal() and len(places[name]) > 1 else whom[name]
        for name, parts in zip(names, above, strict=True)
    ]


def _drawn_from_many(names: list[str]) -> bool:
    """Whether numbers count nothing that begins anew, but were drawn from a long list: 103918 of two folders."""
    numbers = sorted({int(name) for name in names if name.isdecimal()})
    neighbours = sum(b - a == 1 for a, b in pairwise(numbers))
    return bool(numbers) and numbers[-1] >= 10_000 and numbers[-1] - numbers[0] > 9 * len(numbers) > 90 * neighbours


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


def _look_like_people(names: set[str]) -> bool:
    """Whether names are numbered as people are: padded with zeros, of three digits, above 20, or several of a stem."""
    if not numbered(names):
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
