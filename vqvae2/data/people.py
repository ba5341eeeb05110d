"""Whom images show, after folders and names were read: data sets, zeros, numbers and headers; and what is uncertain."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.scans import is_person
from vqvae2.data.selection import Layout
from vqvae2.data.subjects import copy_of, known_subject, spaced, stem_of, subjects_by_pattern, visit_of, words_of
from vqvae2.errors import UserError

Folders = list[tuple[str, ...]]

SAME_PEOPLE = {"visit", "kind", "side", "source", "plane", "magnification", "size"}
"""Attributes under whose folders the same people are found again."""

_CROSSED = 10_000  # subjects that are compared
_PARTS = (re.compile(r"[^\W_]+"), re.compile(r"\d+(?:st|nd|rd|th)(?![^\W_])|\d+|[^\W\d_]+"))
_DATE = re.compile(r"((?:19|20)\d\d)[-_.](\d\d)[-_.](\d\d)(?!\d)")


def with_headers(layout: Layout, subjects: list[str]) -> list[str]:
    """Whom images show where only some have a header that tells it: a person by folder or name is one patient."""
    patients: dict[str, set[str]] = {}
    for header, who in zip(layout.subjects, subjects, strict=True):
        patients.setdefault(who, set()).update({header} - {""})
    torn = [who for header, who in zip(layout.subjects, subjects, strict=True) if not header and len(patients[who]) > 1]
    if torn:
        layout.subject_doubts.append(
            f"{len(torn):,} DICOM series name no patient, and others of {torn[0]} name several; "
            "--subject-pattern tells whose they are"
        )
    return [
        header or (min(patients[who]) if len(patients[who]) == 1 else who)
        for header, who in zip(layout.subjects, subjects, strict=True)
    ]


def ask_of_headers(layout: Layout, people: list[str]) -> None:
    """Ask where the headers of all images tell other people than the folders do: more of them, or by far fewer."""
    patients: dict[str, set[str]] = {}
    folders: dict[str, set[str]] = {}
    for header, who in zip(layout.subjects, people, strict=True):
        patients.setdefault(who, set()).add(header)
        folders.setdefault(header, set()).add(who)
    settles = "the headers are followed; --subject-pattern '([^/]+)' or the like follows the folders"
    if several := sorted(who for who, held in patients.items() if len(held) > 1):
        layout.subject_doubts.append(
            f"{len(several):,} folders that may be a person's, such as {several[0]}, hold several patients by their "
            f"DICOM headers; {settles}"
        )
    elif 3 * len(folders) <= len(patients):
        layout.subject_doubts.append(
            f"the DICOM headers name {len(folders):,} patients in {len(patients):,} folders that may be a person's "
            f"each, such as {min(patients)}; {settles}"
        )


def by_data_sets(layout: Layout, subjects: list[str]) -> list[str]:
    """Keep apart people of the same name in several BIDS data sets, ``ds000001/sub-01`` and ``ds000002/sub-01``."""
    sets = data_sets(layout)
    homes: dict[str, set[str]] = {}
    for who, home in zip(subjects, sets, strict=True):
        homes.setdefault(who, set()).add(home)
    shared = [who for who, held in homes.items() if len(held - {""}) > 1]
    if not shared:
        return subjects
    layout.subject_doubts.append(
        f"{len(shared):,} names such as {shared[0]} stand in several BIDS data sets, and are read as other people in "
        "each; --subject-pattern tells otherwise, and a table must name the images"
    )
    return [f"{home}/{who}" if who in set(shared) and home else who for who, home in zip(subjects, sets, strict=True)]


def data_sets(layout: Layout) -> list[str]:
    """The BIDS data set below the folder that each file is of; "" for none."""
    homes: dict[str, str] = {}
    sets = []
    for key in layout.keys:
        found = re.match(r"(.+?)/(?:(?:derivatives|rawdata|sourcedata)/.*?)?sub-[A-Za-z0-9]+/", key)
        name = found[1] if found else ""
        if name not in homes:
            homes[name] = _home(layout.folder, name)
        sets.append(homes[name])
    return sets


def _home(folder: Path, name: str) -> str:
    """The BIDS data set that a folder is, by OpenNeuro's number or its own description; "" for none, or what was made
    of another one."""
    if number := re.match(r"ds\d{6}", name.rsplit("/", 1)[-1]):
        return number[0]
    try:
        text = (folder / name / "dataset_description.json").read_text() if name else ""
    except (OSError, UnicodeDecodeError):
        return ""
    if re.search(r'"DatasetType"\s*:\s*"raw"', text):  # GeneratedBy then names what converted the scans
        return name
    return "" if re.search(r'"derivative"|PipelineDescription|GeneratedBy', text) else name if text else ""


def without_zeros(layout: Layout, subjects: list[str], folders: Folders) -> list[str]:
    """Take ``sub1`` and ``sub01`` for one person where no folder has both, and say so."""
    if not SAME_PEOPLE & layout.attributes.keys() or any(layout.splits):
        return subjects
    forms: dict[str, dict[str, set[tuple[str, ...]]]] = {}
    for who, place in zip(subjects, folders, strict=True):
        if "/" not in who:
            forms.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", who), {}).setdefault(who, set()).add(place)
    one: dict[str, str] = {}
    for held in forms.values():
        places = [place for at in held.values() for place in at]
        if len(held) > 1 and len(places) == len(set(places)):
            one |= dict.fromkeys(held, max(held, key=len))
    if one:
        who = next(name for name in one if one[name] != name)
        layout.subject_doubts.append(
            f"names that differ by zeros alone are read as one subject, such as {who} and {one[who]}; if they are two, "
            "give --subject-pattern"
        )
    return [one.get(who, who) for who in subjects]


def by_numbers(layout: Layout, subjects: list[str], folders: Folders) -> list[str]:
    """Take a name that tells nobody for a person where folders of visits, kinds or planes have it again:
    ``baseline/001.png``, ``T1/patient_12.png``."""
    if not {"visit", "kind", "side", "plane", "size"} & layout.attributes.keys():
        return subjects
    kinds = layout.attributes.get("kind", [""] * len(subjects))
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    names = [  # CT/ct_1.png and MRI/mri_1.png are both 1
        re.sub(rf"^{re.escape(kind)}[_\-. ]?(?=\d)", "", stem, flags=re.IGNORECASE) if kind else stem
        for stem, kind in zip(stems, kinds, strict=True)
    ]
    bare = [
        who == key or (name.isdecimal() and name != stem)
        for who, key, name, stem in zip(subjects, layout.keys, names, stems, strict=True)
    ]
    # Each split counts anew.
    whom = [f"{split}/{name}" if split else name for split, name in zip(layout.splits, names, strict=True)]
    often = Counter(name for name, _ in set(zip(whom, folders, strict=True)))
    return [
        name if is_bare and often[name] > 1 else who for who, name, is_bare in zip(subjects, whom, bare, strict=True)
    ]


def in_several_groups(layout: Layout, subjects: list[str]) -> list[str]:
    """Read names that several sites or classes have as `rules.RECURRING` tells, and say so.

    A name is left alone where of each visit, side, kind of image or source it is in one folder, as of a person whose
    diagnosis has changed, and where it is a cohort's or a number of a long list, which nobody else has. (A label of
    BIDS, ``sub-01``, is of one person in its data set alone.)
    """
    _ask_of_modalities(layout, subjects)
    listed = _drawn_from_many(subjects)
    again = [values for name, values in layout.attributes.items() if name in SAME_PEOPLE]
    settings = list(zip(map(visit_of, layout.keys), map(_setting, layout.keys), *again, strict=True))
    for rule in rules.RECURRING:
        if rule.level not in layout.attributes:
            continue
        names = layout.attributes[rule.level]
        homes: dict[tuple[str, tuple[object, ...]], dict[str, str]] = {}
        for key, who, setting, name in zip(layout.keys, subjects, settings, names, strict=True):
            if (not (known := known_subject(key)) or known.startswith("sub-")) and who not in listed:
                homes.setdefault((who, setting), {}).setdefault(name, key)
        shared = {who: list(held.values())[:2] for (who, _), held in homes.items() if len(held) > 1}
        if not shared:
            continue
        apart = [f"{name}/{who}" if who in shared else who for who, name in zip(subjects, names, strict=True)]
        who, shown = next(iter(shared.items()))
        one = rule.one or all(map(rules.SCANNERS.fullmatch, set(names) - {""}))
        read, other = ("one person", "several people") if one else ("several people", "one person")
        layout.subject_doubts.append(
            f"{len(shared):,} names such as {who} are in several {rule.level} folders ({', '.join(shown)}), and each "
            f"is read as {read}; if it is {other}, give --subject-pattern "
            f"{pattern_of(layout.keys, apart if one else subjects)}"
        )
        subjects = subjects if one else apart
    return subjects


def _ask_of_modalities(layout: Layout, subjects: list[str]) -> None:
    """Ask where folders of modalities count the same numbers, perhaps of two people: ``CT/012.png``, ``MR/012.png``."""
    kinds = layout.attributes.get("kind", [])
    if not all(map(rules.MODALITIES.fullmatch, filter(None, kinds))):
        return
    shown: dict[str, dict[str, str]] = {}
    for key, who, kind in zip(layout.keys, subjects, kinds, strict=False):
        if who.rpartition("/")[2].isdecimal():
            shown.setdefault(who, {}).setdefault(kind, key)
    shared = {who: list(held.values())[:2] for who, held in shown.items() if len(held) > 1}
    if shared:
        apart = [f"{kind}/{who}" for kind, who in zip(kinds, subjects, strict=True)]
        layout.subject_doubts.append(
            f"{len(shared):,} numbers are in several kind folders ({', '.join(next(iter(shared.values())))}), and each "
            f"is read as one person; if it is several people, give --subject-pattern {pattern_of(layout.keys, apart)}"
        )


def _drawn_from_many(subjects: list[str]) -> set[str]:
    """Names whose numbers count nothing that begins anew, but were drawn from a long list: 103918 of two folders."""
    held = {who: [int(number) for number in re.findall(r"\d+", who)] for who in set(subjects)}
    long = {who: max(own) for who, own in held.items() if own and max(own) >= 10_000}
    numbers = sorted(set(long.values()))
    neighbours = sum(b - a == 1 for a, b in pairwise(numbers))
    drawn = bool(numbers) and numbers[-1] - numbers[0] > 9 * len(numbers) > 90 * neighbours
    return set(long) if drawn else set()


def _setting(key: str) -> tuple[str, ...]:
    """What a file's name says of visit, kind of image and side."""
    words = words_of(stem_of(key.rsplit("/", 1)[-1]))
    return tuple(word.text.lower() for word in words if word.role in ("visit", "kind", "side"))


def pattern_of(keys: list[str], subjects: list[str]) -> str:
    """A regular expression for --subject-pattern, quoted, that tells files apart as these subjects do; "REGEX" if none
    is known."""
    forms = {re.sub(r"\d+", r"\\d+", re.escape(who.rpartition("/")[2])) for who in subjects}
    name = f"(?:{'|'.join(sorted(forms))})" if len(forms) > 1 else min(forms)
    folders = [
        f"{begin}({own})/{end}"
        for own in ("[^/]+", "[^/]+/[^/]+")
        for begin, end in (("", "[^/]+$"), ("", "[^/]+/[^/]+$"), ("^", ""), ("^[^/]+/", ""), ("^[^/]+/[^/]+/", ""))
    ]
    for pattern in (*folders, *((f"/({name})", f"^(.*?{name})") if len(forms) < 5 else ())):
        try:
            told = subjects_by_pattern(keys, pattern)
        except UserError:
            continue
        if len(set(zip(told, subjects, strict=True))) == len(set(told)) == len(set(subjects)):
            return "REGEX" if "'" in pattern else f"'{pattern}'"
    return "REGEX"


def warn_of_copies(layout: Layout) -> None:
    """Say that changed copies of images lie among them, where their names do not tell of whom they are, and copies
    that a file manager made."""
    copies = [_copy_pattern(key) for key in layout.keys]
    originals = {who for who, copy in zip(layout.subjects, copies, strict=True) if not copy}
    loose = [i for i, copy in enumerate(copies) if copy and layout.subjects[i] not in originals]
    if originals and loose:
        layout.subject_doubts.append(
            f"{len(loose):,} images look like augmented copies by their names, such as {layout.keys[loose[0]]}, but "
            "the names do not say of which image, so copies of held-out people may be in the training set; "
            f"--exclude '{copies[loose[0]]}' leaves them out"
        )
    managed = [(key, part) for key in layout.keys for part in key.split("/") if copy_of(stem_of(part)) != stem_of(part)]
    if managed:
        key, part = managed[0]
        layout.notes.append(
            f"{len(managed):,} {layout.unit} are copies by their names or folders, such as {key}, and count as the "
            f"same person's; --exclude '{part}' leaves these out"
        )


def _copy_pattern(key: str) -> str:
    """A pattern for the folders or names that tell a copy, as this one does; "" if it does not."""
    *folders, name = key.split("/")
    for part in (*folders, stem_of(name)):
        for word in words_of(spaced(copy_of(part))):
            if word.role == "copy" and not word.text.startswith("("):
                return part if part in folders else f"*{word.text}*"
    return ""


def warn_of_cohorts(layout: Layout) -> None:
    """Say what is known of cohorts whose names do not tell all, where a tenth of the files at least is theirs."""
    for caution in rules.CAUTIONS:
        matching = [key for key in layout.keys if re.search(caution.pattern, key)]
        if 10 * len(matching) >= len(layout.keys) > 0:
            layout.doubts.append(f"names like {matching[0]} are those of {caution.cohort}: {caution.sentence}")


def warn_of_few(layout: Layout) -> None:
    """Say so where names tell words, single digits or years instead of people: ``cat.0.jpg``, ``7_12.png``.

    A few names of many files are asked about unless they are of people by a word: ``V1_S001``, ``V2_S001``.
    """
    counts = Counter(layout.subjects)
    by_files = layout.told_by == "the names of the files" and not layout.volumes
    words = not any(numbered({who}) for who in counts)
    digits = len(counts) <= 10 and all(
        re.fullmatch(r"(?:[^\W\d_]{3,})?\d", who) and not is_person(who) for who in counts
    )
    years = all(map(rules.YEAR.fullmatch, counts))
    told = by_files and (words or digits or years) and len(layout.keys) >= 8 * len(counts)
    plain = [
        who for who, count in counts.items() if count >= 8 and 5 * count >= len(layout.keys) and not numbered({who})
    ]
    mixed = (
        by_files and plain and sum(count == 1 for count in counts.values()) * 4 >= len(layout.keys)
    )  # AD_001, CT_001
    if len(counts) > 1 and (told or mixed or _are_too_few(layout, counts)):
        shown = ", ".join(f"{who} ({count:,} {layout.unit})" for who, count in counts.most_common(3))
        layout.subject_doubts.append(
            f"the names identify {len(counts)} subjects: {shown}; if these are classes, "
            f"--subject-pattern '.+' counts each {layout.unit.removesuffix('s')} as a person"
        )


def _are_too_few(layout: Layout, counts: Counter[str]) -> bool:
    """Whether at most four subjects have four files each, and neither folders nor words say that they are people."""
    if layout.subject_doubts or len(counts) > 4 or len(layout.keys) < 4 * len(counts):
        return False
    people = all(is_person(who) and re.fullmatch(r"[^\W\d_]+[\W_]?\d+", who) for who in counts)
    return not people and any(who not in key.split("/") for key, who in zip(layout.keys, layout.subjects, strict=True))


def warn_of_each_alone(layout: Layout, subjects: Sequence[str], told_by: str) -> bool:
    """Say so where most files count as a person of their own: as a doubt where a folder within folders may be one."""
    alone = sum(count == 1 for count in Counter(subjects).values())
    if alone <= len(subjects) / 2:
        return False
    levels: dict[int, set[str]] = {}
    for key in layout.keys:
        for depth, name in enumerate(key.split("/")[:-1]):
            levels.setdefault(depth, set()).add(name)
    nested = sum(len(names) > 1 for names in levels.values()) > 1 + any(layout.splits)
    (layout.subject_doubts if nested else layout.notes).append(
        f"{alone:,} of {len(subjects):,} {layout.unit} each count as a separate subject, by {told_by}; if several show "
        "one person, give --subject-pattern"
    )
    return True


def ask_of_crossed(layout: Layout) -> None:
    """Ask where subjects differ by one part of their names alone, which recurs under most others: ``anna_1st``.

    These may be one person's scans, whatever the part is called. It is not asked where a doubt speaks of the subjects
    already, nor of a cohort's own names, of people by a word (``HC01``, ``AD01``) or of groups (``site1_P01``). Images
    that are a subject each count as one where only a number behind their name tells them apart.
    """
    if layout.subject_doubts:
        return
    firsts: dict[str, str] = {}
    split_folders = any(layout.splits)
    for key, who in zip(layout.keys, layout.subjects, strict=True):
        alone = who == key and not layout.volumes
        if (alone and split_folders) or known_subject(key) or rules.COUNTED_IN_SPLIT.fullmatch(who):
            continue
        firsts.setdefault(re.sub(r"[^\w/]*_?\d+$", "", stem_of(key)) if alone else who, key)
        if len(firsts) == _CROSSED:
            break
    if exam := _exams(firsts):
        layout.subject_doubts.append(
            f"{exam[0]} and {exam[1]} are read as of different subjects; if the number is an examination's, and the "
            "word before it the person, give --subject-pattern"
        )
        return
    alike: dict[tuple[int, int], dict[tuple[str, ...], str]] = {}  # by the way of parting and the number of parts
    for key in firsts.values():
        name = _DATE.sub(r"\1\2\3", stem_of(key).lower())
        for way, part in enumerate(_PARTS):
            parts = tuple(part.findall(name))
            alike.setdefault((way, len(parts)), {})[parts] = key
    for (_, length), keys in alike.items():
        if pair := next(filter(None, (_crossed(keys, place) for place in range(length))), None):
            layout.subject_doubts.append(
                f"files such as {pair[0]} and {pair[1]} are read as of different subjects; if they show one, give "
                "--subject-pattern"
            )
            return


def _exams(firsts: dict[str, str]) -> tuple[str, str] | None:
    """Two files of names that may be a person's and an examination's number, ``Mueller_10234``: five words at least,
    most of which have several numbers, of four digits or more, and few of them."""
    numbers: dict[str, dict[str, str]] = {}
    for who, key in firsts.items():
        if not (match := re.fullmatch(r"([^\W\d_]{2,}(?:[_\- ][^\W\d_]{2,})*)[_\- ](\d{4,})", who)) or is_person(who):
            return None
        numbers.setdefault(match[1], {})[match[2]] = key
    several = [list(held.values()) for held in numbers.values() if len(held) > 1]
    if len(numbers) < 5 or 2 * len(several) < len(numbers) or len(firsts) > 5 * len(numbers):
        return None
    return several[0][0], several[0][1]


def _crossed(keys: dict[tuple[str, ...], str], place: int) -> tuple[str, str] | None:
    """Two files whose names differ at one place alone, if two words stand there with most of the other parts."""
    rests: dict[tuple[str, ...], dict[str, str]] = {}
    for parts, key in keys.items():
        word, before, after = parts[place], "".join(parts[max(place - 1, 0) : place]), "".join(parts[place + 1 :][:1])
        group = any(map(rules.GROUP_WORDS.search, (before, word)))
        if not (group or (after.isdecimal() and is_person(word + after)) or is_person(before + word)):
            rests.setdefault((*parts[:place], *parts[place + 1 :]), {})[word] = key
    crossed = [held for held in rests.values() if len(held) > 1]
    often = Counter(word for held in crossed for word in held)
    recur = [word for word, count in often.items() if 2 * count >= len(rests)]
    if len(rests) < 3 or len(recur) < 2 or len(often) > len(rests):
        return None
    first, second, *_ = crossed[0].values()
    return first, second


def numbered(names: set[str]) -> bool:
    return all(re.search(r"\d", name) for name in names)
