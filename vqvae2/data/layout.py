"""What a folder of images says by its shape: splits, classes and subjects."""

import glob
import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.folder_names import half, look_like_people
from vqvae2.data.levels import are_chunks, meaning, people_of, tells_no_person
from vqvae2.data.people import (
    Folders,
    ask_of_crossed,
    ask_of_headers,
    by_data_sets,
    by_numbers,
    data_sets,
    in_several_groups,
    warn_of_cohorts,
    warn_of_copies,
    warn_of_few,
    with_headers,
    without_zeros,
)
from vqvae2.data.selection import Choice, Layout, LayoutChoice, choose_kind, gather, is_bids
from vqvae2.data.sources import find_files, fits
from vqvae2.data.split_folders import read_splits
from vqvae2.data.subjects import guess_subjects, known_subject, person_in, stem_of, uninformative
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
    folders = read_splits(layout, source, choice.layout)
    if choice.layout == "flat":
        folders = [()] * len(folders)
    else:
        folders = _telling(layout, _without_neutral(folders), choice.layout not in ("classes", "subjects"))
        folders = _aligned(layout, folders)
    if tree:  # HC/sub-01; but what tells data sets apart is no class
        several = any(data_sets(layout))
        folders = [() if several else _above_person(parts) for parts in folders]
    _read_people(layout, folders, choice.layout, tree)
    layout.words = layout.words or ("folders" if any(folders) else "flat folder")
    warn_of_copies(layout)
    warn_of_cohorts(layout)
    warn_of_few(layout)
    ask_of_crossed(layout)
    return layout


def _above_person(folders: tuple[str, ...]) -> tuple[str, ...]:
    """The folders above that of a person of BIDS."""
    return folders[: next((depth for depth, name in enumerate(folders) if name.startswith("sub-")), 0)]


def _without_neutral(folders: Folders) -> Folders:
    """Folders without names that tell nothing: ``images``; but ``MRI`` where ``CT`` lies beside it."""
    modalities: dict[int, set[str]] = {}
    for parts in set(folders):
        for depth, name in enumerate(parts):
            if rules.MODALITIES.fullmatch(name):
                modalities.setdefault(depth, set()).add(name.lower())

    def tells(depth: int, name: str) -> bool:
        if len(modalities.get(depth, ())) > 1 and name.lower() in modalities[depth]:
            return True
        return not all(map(rules.NEUTRAL.fullmatch, re.split(r"[_\-. ]+", name.lower())))

    return [tuple(name for depth, name in enumerate(parts) if tells(depth, name)) for parts in folders]


def _telling(layout: Layout, folders: Folders, parts_too: bool) -> Folders:
    """Leave out the levels of folders whose name is the same for all or counts parts of the data, and the last ones of
    visits or kinds of image."""
    depth = 0
    while depth < max(map(len, folders)):
        here = {parts[depth] for parts in folders if len(parts) > depth}
        counted = parts_too and (
            _are_parts(layout, folders, depth) or _are_shards(folders, depth) or _are_of_hashes(layout, folders, depth)
        )
        if len(here) == 1 or counted:
            folders = [parts[:depth] + parts[depth + 1 :] for parts in folders]
        else:
            depth += 1
    sites = dict(rules.ATTRIBUTES)["site"]
    if half({parts[0] for parts in folders if parts}, sites):  # a scanner below a site, above its people
        folders = [
            parts[:1] + tuple(name for name in parts[1:-1] if not sites.fullmatch(name.lower())) + parts[1:][-1:]
            for parts in folders
        ]
    for level in range(depth - 1, 0, -1):
        if all(tells_no_person(parts[level]) for parts in folders if len(parts) > level):
            folders = [parts[:level] for parts in folders]
        else:
            break
    return folders


def _aligned(layout: Layout, folders: Folders) -> Folders:
    """Pad the folders of held-out images in front where training images have more levels above folders of the same
    form: ``train/HGG/P01`` and ``val/P02``."""
    training, held_out = (
        {parts for parts, split in zip(folders, layout.splits, strict=True) if (split in (None, "train")) == own}
        for own in (True, False)
    )
    training.discard(())  # beside the folders of the others
    deep, low = {len(parts) for parts in training}, {len(parts) for parts in held_out}
    if len(deep) != 1 or len(low) != 1 or not 0 < min(low) < min(deep):
        return folders
    first, last, others = (
        {_form(parts[at]) for parts in own} for own, at in ((training, 0), (training, -1), (held_out, -1))
    )
    if not others <= last or others & first:
        return folders
    blank = ("",) * (min(deep) - min(low))
    return [parts if len(parts) in deep else blank + parts for parts in folders]


def _form(name: str) -> str:
    """The form of a folder's name: ``a#a#`` of ``A1B2``; a name without digits is its own."""
    if person_in(name):
        return "a cohort's"
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "#", name)) if re.search(r"\d", name) else name.lower()


def _are_parts(layout: Layout, folders: Folders, depth: int) -> bool:
    """Whether folders count parts of the data: what is in them tells people, ``fold_1/AD/P01``, or is one list."""
    here = [i for i, parts in enumerate(folders) if len(parts) > depth]
    names = {folders[i][depth] for i in here}
    either = all(map(rules.PART_OR_PATIENT.fullmatch, names))
    if all(map(rules.PART_OF_COHORT.fullmatch, names)) and all(known_subject(layout.keys[i]) for i in here):
        return True
    if not (either or all(map(rules.PART.fullmatch, names))) or len({re.sub(r"\d+$", "", name) for name in names}) > 1:
        return False
    files = {(folders[i][depth], layout.keys[i].rsplit("/", 1)[-1]) for i in here}
    if len({file for _, file in files}) == len(files) and all(len(folders[i]) == depth + 1 for i in here):
        if either:
            layout.subject_doubts.append(
                f"folders like {min(names)} are read as parts of the data, as no two hold files of one name; if they "
                "are people, give --layout subjects"
            )
        return True
    if either:
        return False
    keys = [layout.originals[i] for i in here if len(folders[i]) == depth + 1]
    return all(who != key for who, key in zip(guess_subjects(keys, layout.volumes), keys, strict=True))


def _are_shards(folders: Folders, depth: int) -> bool:
    """Whether the names of the folders within begin with that of the folder: ``p10/p10000032``."""
    pairs = {(parts[depth], parts[depth + 1]) for parts in folders if len(parts) > depth + 1}
    here = {parts[depth] for parts in folders if len(parts) > depth}
    begins = all(below.startswith(name) and below[len(name) :].isdecimal() for name, below in pairs)
    return begins and len(pairs) > len(here) > 1 and {name for name, _ in pairs} == here


def _are_of_hashes(layout: Layout, folders: Folders, depth: int) -> bool:
    """Whether folders are a part of the hashes that their files are called by: ``0/6/f/06f52e9102a8d3b2.jpg``."""
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    names = [parts[depth] if len(parts) > depth else "" for parts in folders]
    hashes = sum(rules.HASH.fullmatch(stem) is not None for stem in stems)
    pairs = [(name, stem) for name, stem in zip(names, stems, strict=True) if name]
    if any(len(name) > 4 for name in names) or 10 * min(hashes, len(pairs)) < 9 * len(stems):
        return False
    return len(pairs) > 8 and all(any(stem.startswith(name, at) for at in range(8)) for name, stem in pairs)


def _read_people(layout: Layout, folders: Folders, wanted: LayoutChoice, tree: bool) -> None:
    """Read attributes and people from the folders, and people from the names where no folder tells them."""
    if wanted in ("classes", "subjects") and not all(folders):
        bare = next(key for key, parts in zip(layout.keys, folders, strict=True) if not parts)
        raise UserError(f"--layout {wanted} needs every image in a folder", bare, "Leave --layout out")
    doubts: list[str] = []
    by_name = guess_subjects(layout.originals, layout.volumes, doubts)
    people: list[str] | None = None
    if wanted != "flat":
        people = _read_levels(layout, folders, wanted, by_name)
        named = " and ".join(reversed(layout.attributes))
        if words := f"{named} folders" if named else "a folder for each subject" if people else "":
            layout.words = f"{layout.words} with {words}" if layout.words else words
    if layout.subjects and all(layout.subjects):
        layout.told_by = "the DICOM headers, whose patients are not written out"
        if people is not None:
            ask_of_headers(layout, people)
        return
    if people is not None:
        layout.told_by = "the folders"
        subjects = [
            known_subject(key) or who or name for key, who, name in zip(layout.keys, people, by_name, strict=True)
        ]
    else:
        subjects = by_name
        layout.subject_doubts += doubts
        places = {key.rpartition("/")[0] for key in layout.keys}
        shared = set.intersection(*({*place.split("/")} for place in places))
        whose = next(filter(rules.ONE_PERSON.fullmatch, sorted(shared)), "")  # all lie in the folder of one person
        if whose and not any(map(known_subject, layout.keys)):
            subjects = [whose] * len(subjects)
        else:
            subjects = _without_series(layout, subjects)
        classes = layout.attributes.get("subclass", layout.attributes.get("class"))
        if classes and all(map(rules.WORDNET.fullmatch, set(filter(None, classes)))):
            subjects = list(layout.keys)
        elif classes:
            for i in uninformative(subjects, classes, layout.splits):
                subjects[i] = person_in(layout.keys[i]) or layout.keys[i]
    subjects = by_data_sets(layout, subjects)
    one: dict[str, str] = {}  # P01 and p01 are one person
    subjects = [one.setdefault(unicodedata.normalize("NFC", who).lower(), who) for who in subjects]
    subjects = by_numbers(layout, without_zeros(layout, subjects, folders), folders)
    layout.subjects = with_headers(layout, in_several_groups(layout, subjects))


def _without_series(layout: Layout, subjects: list[str]) -> list[str]:
    """Count each number as a subject where the word before it names a series of images, not a person: all files have
    it (``Chest_0012.png``), or most images have, and nearly all others a longer form (``ISIC_0000003_downsampled.jpg``
    beside ``ISIC_0000012.jpg``)."""
    (who, count), *others = Counter(subjects).most_common()
    odd = [number for other, number in others if not other.startswith(who)]
    series = not (layout.volumes or re.search(r"\d", who)) and 2 * count >= len(subjects)
    series &= max(odd, default=1) == 1 and 10 * len(odd) <= count
    if len(subjects) == 1 or (others and not series) or rules.ONE_PERSON.fullmatch(who) or known_subject(who):
        return subjects
    firsts: dict[tuple[str, ...], str] = {}  # Chest_0012 and Chest_0012_b are one
    for i in [i for i, own in enumerate(subjects) if own == who]:
        folder, _, name = layout.keys[i].rpartition("/")
        numbers = re.findall(r"\d+", stem_of(name)) or [name]
        subjects[i] = firsts.setdefault((folder, *numbers), layout.keys[i])
    return subjects


def _read_levels(layout: Layout, folders: Folders, wanted: LayoutChoice, by_name: list[str]) -> list[str] | None:
    """Read the levels of folders from the first on as attributes, until one names the people, which it returns.

    A tenth of the training files at most may lie beside the folders of a level, which is then read without these.
    """
    training = [i for i, split in enumerate(layout.splits) if split in (None, "train")]
    asked: set[int] = set()
    for depth in range(3):
        names = [parts[depth] if len(parts) > depth else "" for parts in folders]
        loose = {i for i in training if not names[i]}
        if 10 * len(loose) > len(training) or len(set(names) - {""}) < 2:
            return None
        rows = [i for i in range(len(names)) if i not in loose]
        rest = layout.part(rows)
        if depth == 0 and wanted in ("classes", "subjects"):
            told = {"classes": "class", "subjects": "people"}[wanted]
        elif are_chunks(rest.keys, [names[i] for i in rows]):
            return None
        else:
            told = _meaning_of_most(layout, folders, depth, rows, by_name) or meaning(
                rest, [folders[i] for i in rows], depth, [by_name[i] for i in rows], wanted == "classes"
            )
        if told and loose - asked:
            _ask_of_loose(layout, [layout.keys[i] for i in sorted(loose - asked)], min(set(names) - {""}))
            asked |= loose
        if told == "people":
            _note_what_lies_below(layout, folders, depth)
            return people_of(layout, names)
        if not told or any(map(person_in, set(names))):  # HGG/P01, P02
            return None
        if told in layout.attributes:
            outer = layout.attributes[told]
            within = len(set(names) - {""}) == len({pair for pair in zip(names, outer, strict=True) if pair[0]})
            if told == "class" and within:  # benign/adenosis, malignant/lobular_carcinoma
                told = "subclass"
            else:  # original/AD, augmented/AD: the class is the innermost
                layout.attributes["source"] = layout.attributes.pop(told)
        layout.attributes[told] = names
        if lacking := Counter(layout.splits[i] for i in rows if not names[i]):
            shown = ", ".join(f"{count:,} of {split}" for split, count in lacking.items())
            layout.notes.append(f"{told}: {shown} lie in no such folder; their label counts as missing")
    return None


def _meaning_of_most(layout: Layout, folders: Folders, depth: int, rows: list[int], by_name: list[str]) -> str:
    """ "people" if these would be told by folders without a few that are a word alone, which are asked about; else "".

    Such as ``overview`` beside ``P01`` to ``P40``: it holds a tenth of the files at most, and is one of ten folders.
    """
    own = [i for i in rows if re.search(r"\d", folders[i][depth] if len(folders[i]) > depth else "1")]
    names, words = ({folders[i][depth] for i in at if len(folders[i]) > depth} for at in (own, set(rows) - set(own)))
    few = 10 * len(words) <= len(names | words) and 10 * len(own) >= 9 * len(rows)
    if not words or not few or not look_like_people(names):
        return ""
    part = replace(layout.part(own), subject_doubts=[])
    told = meaning(part, [folders[i] for i in own], depth, [by_name[i] for i in own])
    if told != "people":
        return ""
    layout.subject_doubts += part.subject_doubts
    layout.doubts.append(
        f"folders such as {min(words)} lie beside those of people, such as {min(names)}, and count as a person each; "
        f"if they are no data, --exclude {shlex.join(sorted(words)[:3])} leaves them out"
    )
    return told


def _ask_of_loose(layout: Layout, keys: list[str], name: str) -> None:
    """Ask about a few files that lie beside the folders of all others, as an overview of them may: ``preview.png``."""
    shown = keys[:3]
    named = map(glob.escape, shown)
    paths = [name if sum(fits(key, name) for key in layout.keys) == 1 else f"./{name}" for name in named]
    layout.doubts.append(
        f"{len(keys):,} of {len(layout.keys):,} {layout.unit} ({', '.join(shown)}) lie outside folders such as {name}, "
        f"so that no folder tells their person or label; if they are no data, --exclude {shlex.join(paths)} leaves "
        f"{'these' if len(keys) > 3 else 'them'} out"
    )


def _note_what_lies_below(layout: Layout, folders: Folders, depth: int) -> None:
    """Say that folders which most people have, and that are no visits or kinds of image, are not read: ``10253/0``."""
    inside: dict[str, set[str]] = {}
    for parts in folders:
        if len(parts) > depth + 1:
            inside.setdefault(parts[depth], set()).add(parts[depth + 1])
    often = Counter(name for held in inside.values() for name in held)
    if 1 < len(often) <= 20 and all(2 * count >= len(inside) for count in often.values()) and len(inside) > 2:
        layout.notes.append(
            f"folders such as {' and '.join(sorted(often)[:2])} within those of people are not read; if they are "
            "labels, name the images in a table (--labels)"
        )
