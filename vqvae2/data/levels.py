"""What a level of folders tells: people, a class, a site, visits."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vqvae2.data import rules
from vqvae2.data.folder_names import are_counted, are_listed, differ_by, differ_by_size, differ_in, look_like_people
from vqvae2.data.people import Folders, numbered, pattern_of
from vqvae2.data.scans import is_person, under_heads, without_counters
from vqvae2.data.selection import Layout
from vqvae2.data.subjects import kind_of, known_subject, person_of, stem_of, words_of

_SERIES = re.compile(r"S\d{3}(?:_\d+)?")  # how `dicom` calls one


def tells_no_person(name: str) -> bool:
    """Whether all parts of a folder's name are words of visits, kinds, sides and the like."""
    return not known_subject(name) and all(word.role not in ("", "number") for word in words_of(name))


def meaning(layout: Layout, folders: Folders, depth: int, by_name: Sequence[str], classes: bool = False) -> str:
    """What a level of folders tells: "people", an attribute's name, or nothing ("").

    Args:
        layout: takes a doubt where two readings are possible.
        folders: of each image, those that can tell something.
        depth: of the level, from 0.
        by_name: whom each image shows by its file's name alone.
        classes: folders are said to be classes.
    """
    names, below = ([parts[at] if len(parts) > at else "" for parts in folders] for at in (depth, depth + 1))
    above = [parts[:depth] for parts in folders]
    distinct = set(names) - {""}
    if any(all(map(pattern.fullmatch, distinct)) for pattern in (rules.WORDNET, rules.DATA_SETS)):
        return "class"
    bare = any(who == key for who, key in zip(by_name, layout.keys, strict=True))  # 01.Smith/1.png: a person's slices
    nameless = layout.volumes and _tell_nobody(by_name, layout.keys, names)
    listed = len(distinct) > 1 and are_listed(distinct, rules.LISTED_OR_PEOPLE)
    several = len(distinct) > 1 and not bare
    if several and (are_listed(distinct, rules.LISTED) or (listed and _hold_others(names, by_name))):
        layout.subject_doubts.append(
            f"folders like {min(distinct)} are read as classes; if they are people, give --layout subjects"
        )
        return "class"
    if _are_visits(layout, folders, depth, by_name):
        return "visit"
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    whom = [known_subject(stem) or "" for stem in stems]
    cohort: dict[str, set[str]] = {}
    for name, who in zip(names, whom, strict=True):
        cohort.setdefault(name, set()).update({who} - {""})
    cohort.pop("", None)  # of images in no such folder
    named = next((role for role in ("visit", "kind", "side") if differ_by(distinct, role)), "")
    if all(map(rules.MODALITIES.fullmatch, distinct)):
        named = "kind"
    named = named or next((name for name, pattern in rules.ATTRIBUTES if differ_in(distinct, pattern)), "")
    if not named and differ_by_size(names, stems):
        named = "size"
    attribute = named or "class"
    if any(len(people) > 1 for people in cohort.values()):  # several people in a folder, by a cohort's own names
        return attribute
    if all(map(known_subject, distinct)):
        return "people"
    if named:
        return named
    if look_like_people(distinct):
        if reason := _why_classes(layout, names, stems):
            layout.subject_doubts.append(
                f"folders like {min(distinct)} are read as classes, as held-out images lie in {reason}; if they are "
                "people, give --layout subjects"
            )
            return attribute
        if _hold_people(names, by_name, layout.volumes):
            layout.subject_doubts.append(
                f"folders like {min(distinct)} hold several people by the names of their files and are read as a "
                f"{attribute}; if they are people, give --layout subjects"
            )
            return attribute
        few = len(distinct) <= 20
        if (few and listed) or (are_counted(distinct) and (few or all(map(str.isdecimal, distinct)))):
            layout.subject_doubts.append(
                f"folders like {min(distinct)} are read as people; if they are classes, give --layout classes"
            )
        return "people"
    if _are_called_by_names(layout, names, stems):
        return "people"
    kinds = Counter((*place, kind_of(stem)) for *place, stem in zip(above, names, stems, strict=True))
    alike = len({kind for *_, kind in kinds}) > 1 or len(set(stems)) == 1 < len(distinct) - 2
    if layout.volumes and numbered(distinct) and alike and max(kinds.values()) == 1:
        return "people"  # 1/VSD.Brain.XX.O.MR_T1.54512.nii, 1/VSD.Brain.XX.O.MR_Flair.54513.nii
    if above[0] and nameless and (numbered(distinct) or all(map(str.__eq__, by_name, names))):
        return "people"  # AD/1/T1.nii, CN/1/T1.nii; rest/anna/T1.nii, task/anna/T1.nii
    shared = Counter(name for name, _ in set(zip(names, above, strict=True)))
    if above[0] and sum(count > 1 for count in shared.values()) * 2 >= len(shared):
        return attribute  # the same names in several folders: original/AD, augmented/AD
    if layout.volumes and not any(person_of(stem, volume=True) for stem in stems) and len(set(stems)) < len(stems):
        inside = set(below) - {""}
        if not inside and not numbered(distinct) and _are_lists(names, stems):
            layout.subject_doubts.append(
                f"folders like {min(distinct)} are read as a {attribute}, and each volume as a subject; if they are "
                "people, give --layout subjects"
            )
            return attribute  # AD/image_001.nii.gz
        called = len(inside) > len(distinct) and not any(map(tells_no_person, inside))  # AD/anna, rest/anna
        if len(inside) < len(distinct) or not all(below) or not (numbered(inside) or called):
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
        and not all(tells_no_person(name) for _, name in within)
    ):
        return attribute  # adenosis/14-22549AB: words above people
    if above[0]:
        return "" if layout.volumes else _within_classes(layout, names, above, stems, classes)
    scans = all(
        any(word.role in ("kind", "visit") for part in key.split("/")[:-1] for word in words_of(part))
        for key in layout.keys
    )
    if bare and attribute == "class" and (numbered(distinct) or scans) and not any(layout.splits):
        # 1/0.png; a3f9c1/0.png; anna/T1/0.png, anna/T2/0.png
        layout.subject_doubts.append(
            f"folders like {min(distinct)} are read as classes; if they are people, give --layout subjects"
        )
    if nameless and not any(layout.splits):
        # anna/scan1/im.nii, anna/scan2/im.nii: no name tells people, so that each volume would be one
        people = len(distinct) > 2 and max(Counter(names).values()) <= len(distinct)
        read, other, flag = ("people", "classes", "classes") if people else ("classes", "people", "subjects")
        layout.subject_doubts.append(
            f"folders like {min(distinct)} are read as {read}; if they are {other}, give --layout {flag}"
        )
        return "people" if people else attribute
    training, held_out = _by_split(layout, names)
    # Classes of a held-out split are classes of the training split; subjects are not.
    return "people" if held_out and not held_out & training else attribute


def _within_classes(
    layout: Layout, names: Sequence[str], above: Sequence[tuple[str, ...]], stems: Sequence[str], classes: bool
) -> str:
    """What folders of images within those of classes tell: a class of its own (``Apple/scab``) or people (``AD/anna``).

    They are classes, which the report asks about, if held-out images lie in folders of the same names, or if they have
    no number, lie in one folder each, and hold files called by hashes or by a word that they share with the folder
    above (``colon_image_sets/colon_aca/colonca1.jpeg``).
    """
    distinct = set(names) - {""}
    within = {(name, place) for name, place in zip(names, above, strict=True) if name}
    training, held_out = _by_split(layout, names)
    if classes and not numbered(distinct):
        return "class"
    again = not numbered(distinct) and 2 * len(training & held_out) > len(held_out) > 0
    hashes = sum(rules.HASH.fullmatch(stem.replace("-", "")) is not None for stem in stems)
    first = {name: re.split(r"[\W_]+", name.lower().strip("_ "))[0] for name in names}
    called = all(
        name and stem.lower().startswith(first[name]) and first[name] in re.split(r"[\W_]+", place[-1].lower())
        for name, place, stem in zip(names, above, stems, strict=True)
    )
    words = len(within) == len(distinct) and not any(re.search(r"\d", name) for name in distinct)
    if again or (words and (10 * hashes >= 9 * len(stems) or called)):
        layout.subject_doubts.append(
            f"folders like {'/'.join((*above[0], names[0]))} are read as classes within classes; if they are people, "
            f"give --subject-pattern {pattern_of(layout.keys, list(names))}"
        )
        return "class"
    if not numbered(distinct):
        layout.subject_doubts.append(
            f"folders like {min(distinct)} are read as people; if they are classes, give --layout classes"
        )
    return "people"


def _tell_nobody(by_name: Sequence[str], keys: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the names of volumes, by which they would show people, are of none: of a DICOM series (``S004``), one for
    all of them, or a word in several of the folders that are called ``names`` (``1/pre.nii``, ``2/pre.nii``)."""
    homes: dict[str, set[str]] = {}
    for who, name in zip(by_name, names, strict=True):
        homes.setdefault(who, set()).add(name)
    words = {who for who, held in homes.items() if len(held) > 1 and (len(homes) == 1 or not re.search(r"\d", who))}
    return all(
        who in (key, name) or who in words or bool(_SERIES.fullmatch(key.rsplit("/", 1)[-1]))
        for who, key, name in zip(by_name, keys, names, strict=True)
    )


def _why_classes(layout: Layout, names: Sequence[str], stems: Sequence[str]) -> str:
    """Where held-out images lie, if that shows that numbers are classes: in no such folders (GTSRB), or in the same
    as training images, whose files no other folder counts anew (``train/1/image_06734.jpg``); "" if it does not.
    """
    training, held_out = _by_split(layout, names)
    if layout.volumes or len(training) < 3 or not are_counted(training) or 10 * len(set(stems)) < 9 * len(stems):
        return ""
    if 2 * len(training & held_out) > len(held_out):
        return "folders of the same names"
    return "no such folders" if not held_out and {"val", "test"} & set(layout.splits) else ""


def _by_split(layout: Layout, names: Sequence[str]) -> tuple[set[str], set[str]]:
    """The names of the training split, and those of held-out ones."""
    told = set(zip(names, (split in (None, "train") for split in layout.splits), strict=True))
    training, held_out = ({name for name, own in told if name and own == side} for side in (True, False))
    return training, held_out


def _are_lists(names: Sequence[str], stems: Sequence[str]) -> bool:
    """Whether folders hold five files and more that are counted behind one word: ``AD/image_001``, ``AD/image_002``."""
    words = {re.sub(r"\d+$", "", stem) for stem in stems}
    counted = all(re.search(r"\d$", stem) for stem in stems) and len(words) == 1 and min(Counter(names).values()) >= 5
    return counted and all(word.role in ("slice", "thing", "number") for word in words_of(stems[0]))  # no visits


def _hold_people(names: Sequence[str], by_name: Sequence[str], volumes: bool) -> bool:
    """Whether files tell more people than there are folders, by words that mean a person: ``subset3/P03_7.png``.

    False where the folders themselves are people, by such words or bare numbers, and where each image has a name of its
    own (``P1010017.JPG`` of a camera).
    """
    if all(name.isdecimal() or is_person(name) for name in set(names)):
        return False
    told = ((name, who) for name, who in zip(names, by_name, strict=True) if "/" not in who and re.search(r"\d", who))
    pairs = {(name, who) for name, who in told if is_person(who)}
    held, folders, people = Counter(name for name, _ in pairs), len(set(names)), {who for _, who in pairs}
    apart = len(pairs) <= 1.2 * len(people)  # else each folder counts anew: patient/p1.png
    if not volumes and len(pairs) == len(names):
        return False
    return apart and 2 * sum(count > 1 for count in held.values()) >= folders < len(people)


def _hold_others(names: Sequence[str], by_name: Sequence[str]) -> bool:
    """Whether files name more people than there are folders, and most of them occur in several folders.

    Names that are a counter (``CT000001``) are no people.
    """
    words = re.compile(r"[^\W\d_]{3,}")
    for name, who in zip(names, by_name, strict=True):
        if set(words.findall(name.lower())) & set(words.findall(who.lower())):
            return False
    pairs = {(name, who) for name, who in zip(names, by_name, strict=True) if re.search(r"\d", who)}
    often = Counter(who for _, who in pairs)
    counted = len({re.sub(r"\d+", "#", who) for who in often}) <= 2  # CT000001 of each
    return not counted and len(often) > 2 * len(set(names)) and 2 * sum(n > 1 for n in often.values()) >= len(often)


def _are_visits(layout: Layout, folders: Folders, depth: int, by_name: Sequence[str]) -> bool:
    """Whether folders are called by codes of visits, and the same people are in several of them: ``M00/AD/001``."""
    codes = [parts[depth].lower() if len(parts) > depth else "" for parts in folders]
    year = re.compile(r"^[a-z]+[_\-. ](?=(?:19|20)\d\d$)")
    codes = [code if is_person(code) else year.sub("", code) for code in codes]  # PPMI_2022
    distinct = set(codes) - {""}
    if len(distinct) < 2 or not all(map(rules.VISIT_CODE.fullmatch, distinct)) or distinct == {"t1", "t2"}:
        return False
    months = rules.MONTHS.issuperset(distinct)
    begun = months and not distinct.isdisjoint(rules.MONTH_0)  # M00/001.png: no mouse's first slice
    visits_of: dict[str, set[str]] = {}
    people_at: dict[str, set[str]] = {code: set() for code in distinct}
    for code, parts, who, key in zip(codes, folders, by_name, layout.keys, strict=True):
        inside = parts[depth + 1 :]
        whom = [name for name in inside if re.search(r"\d", name) and not tells_no_person(name)][-1:]
        if not whom and (inside or layout.volumes or months) and who.lower() != code and who != key:
            whom = [who]  # V01/001_2.png may be of a volunteer, 01
        elif not whom and begun:
            whom = [stem_of(key.rsplit("/", 1)[-1])]
        for name in whom:
            visits_of.setdefault(name, set()).add(code)
            people_at.setdefault(code, set()).add(name)
    again = [name for name, held in visits_of.items() if len(held) > 1]
    if len(visits_of) < max(len(distinct), 2) or 3 * len(again) < len(visits_of):
        return False
    if not months:
        layout.subject_doubts.append(
            f"folders like {min(distinct)} are read as visits, as those in them, like {again[0]}, are in several; if "
            "the former are people, --layout subjects takes them"
        )
    return True


def people_of(layout: Layout, names: Sequence[str]) -> list[str]:
    """The people whom folders name, without visits."""
    # Of FreeSurfer's P01_2.long.P01_template the latter is the person.
    whom = {name: person_of(name.rpartition(".long.")[2], volume=True) or name for name in names}
    order = [name for name in whom if not known_subject(name)]
    told = without_counters([whom[name] for name in order], order, layout.subject_doubts)
    whom |= zip(order, under_heads(told, order, layout.subject_doubts), strict=True)
    return [whom[name] for name in names]


def are_chunks(keys: list[str], names: list[str]) -> bool:
    """Whether folders are nothing but blocks of one numbering, as those of `rules.BLOCKS` or ``69000/69999.png``."""
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in keys]
    if any(_are_blocks(block, names, stems) for block in rules.BLOCKS):
        return True
    if not all(
        stem.isdecimal() and name.isdecimal() and len(stem) == len(name)
        for stem, name in zip(stems, names, strict=True)
    ):
        return False
    starts = sorted({int(name) for name in names})
    step = min((b - a for a, b in pairwise(starts)), default=0)
    return step >= 10 and all(int(stem) // step * step == int(name) for stem, name in zip(stems, names, strict=True))


def _are_blocks(block: rules.Block, names: Sequence[str], stems: Sequence[str]) -> bool:
    """Whether folders and files are called as those of a block, and are filled as it demands."""
    last: dict[int, int] = {}  # by a folder's number, the last file's place in it
    for name, stem in zip(names, stems, strict=True):
        file = re.fullmatch(block.file, stem)
        if file is None or not re.fullmatch(block.folder, name) or int(file[1]) // block.size != int(name):
            return False
        last[int(name)] = max(last.get(int(name), 0), int(file[1]) % block.size)
    return all(place >= block.filled * (block.size - 1) for folder, place in last.items() if folder < max(last))


def _are_called_by_names(layout: Layout, names: Sequence[str], stems: Sequence[str]) -> bool:
    """Whether folders are called as people are, and hold too few images each or are too many for classes: LFW's."""
    counts = Counter(name for name in names if name)
    starts = {re.split(r"(?<=[_ ])", name)[0] for name in counts}
    begin = min(starts) if len(starts) == 1 else ""  # pins_Adriana Lima
    words = {name: re.split(r"[ _]+", name.removeprefix(begin)) for name in counts}
    personal = [
        name
        for name, own in words.items()
        if rules.PERSONAL_NAME.fullmatch(name.removeprefix(begin)) and all(word[:1].isupper() for word in own)
    ]
    few = sum(count < 3 for count in counts.values())
    repeated = all(stem.startswith(name.removeprefix(begin)) for stem, name in zip(stems, names, strict=True) if name)
    training, held_out = _by_split(layout, names)
    if held_out & training:
        return False  # classes, as they are in both
    if 5 * len(personal) >= 4 * len(counts) and (4 * few >= len(counts) > 3 or len(counts) > 20):
        if not repeated:
            layout.subject_doubts.append(
                f"folders like {min(personal)} are read as people; if they are classes, give --layout classes"
            )
        return True
    if repeated and numbered(set(counts)) and 2 * few >= len(counts) > 3:  # A0S9V9/A0S9V9_sa.nii.gz
        return True
    every = [word for own in words.values() for word in own]
    lower = [name for name, own in words.items() if len(own) == 2 and all(map(str.isalpha, own))]  # aaron_paul
    may_be = len(personal) == len(counts) > 2 or len(lower) == len(counts) > 4
    if may_be and len(every) == len(set(every)):
        layout.subject_doubts.append(
            f"folders like {min(counts)} may be people; they are read as classes; --layout subjects takes them for "
            "people"
        )
    return False
