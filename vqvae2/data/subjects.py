"""Whom a file shows and at which visit: names read by the tables of `rules`."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import NamedTuple

from vqvae2.data import mask_rules, rules
from vqvae2.data.scans import ask_of_beginnings, behind_slices, of_keras, under_heads, without_counters
from vqvae2.data.split_words import said_split
from vqvae2.errors import UserError

__all__ = [
    "copy_of",
    "guess_subjects",
    "is_mask",
    "kind_of",
    "known_subject",
    "patients_of",
    "person_in",
    "person_of",
    "pseudonym",
    "spaced",
    "stem_of",
    "subjects_by_pattern",
    "uninformative",
    "visit_in",
    "visit_of",
    "words_of",
]

_SEPARATOR = re.compile(r"[_\-. ]+")
_TOKEN = re.compile(rf"(?<!\d)(?P<date>{rules.DATE})(?!\d)|[^_\-. +]+")
_GLUED = re.compile(  # P01Week3, P01V2
    r"(?<=\d)(?=(?:slice|week|visit|session|ses|scan|frame|image|img|month|time|tp|run|acq|rep|echo|exam|fu|pre|post)\d)|"
    r"(?<=\d)(?<![Tt][12])(?=(?:pre|post)$)|(?<=[A-Za-z]\d\d)(?=[VTYWM]\d{1,2}$)|"
    r"(?<=\d\d\d)(?=[VTYWM]\d{1,2}$)",
    re.IGNORECASE,
)
_ROLES = [
    (word.role, re.compile(word.alone), re.compile(rf"(?:{word.numbered})\d+[a-z]?"), re.compile(word.numbered))
    for word in rules.WORDS
]
_BEGINNING = re.compile(r"(?![Tt][12])[A-Za-z]\d*[a-dA-D]?|\d+[A-Za-z]|[Oo][DSUdsu]|(?i:n[or])")
_PLANE = re.compile(r"ax(?:ial)?|cor(?:onal)?|sag(?:ittal)?", re.IGNORECASE)
_SPAN = re.compile(r"(?:month|week|year|day)s|mos?|wks|yrs", re.IGNORECASE)


_MONTH = re.compile(rules.YEAR_MONTH)
_OASIS = re.compile(r"(?:OAS\d_\d+_MR|OAS\d+_.*?d)(\d+)")
_SESSION = re.compile(r"(?<![A-Za-z])ses(?:sion)?[ _-]?([a-z0-9]+)", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.rf\.[0-9a-f]{20,})?(\.nii)?(\.gz)?\.[A-Za-z]+\d?$")  # .rf.HASH: an export's copy


class Token(NamedTuple):
    """A part of a name: its text, where it begins and ends, and its role: of `rules.WORDS`, "number", or ""."""

    text: str
    start: int
    end: int
    role: str


@lru_cache(maxsize=rules.NAMES_KEPT)
def words_of(name: str) -> tuple[Token, ...]:
    """Split a name at ``_``, ``-``, dots and blanks, and tell what each part means.

    >>> [token.role for token in words_of("case_004_week_0_T1_slice_3")]
    ['', 'number', 'visit', 'visit', 'kind', 'slice', 'slice']
    """
    parts: list[tuple[str, int, bool]] = []
    for match in _TOKEN.finditer(name):
        month_alone = _MONTH.fullmatch(match[0])
        if month_alone and not re.search(r"\d", name[: match.start()]):
            year, month = match.start(), match.start() + len("2001-")
            parts += [(name[year : month - 1], year, False), (name[month : match.end()], month, False)]
        elif match["date"]:
            parts.append((match[0], match.start(), True))
        else:
            ends = [match.start(), *(match.start() + cut.start() for cut in _GLUED.finditer(match[0])), match.end()]
            parts += [(name[a:b], a, False) for a, b in pairwise(ends)]
    tokens: list[Token] = []
    of_number = ""  # the role of a word that the number after it belongs to
    for place, (text, start, date) in enumerate(parts):
        digits_follow = place + 1 < len(parts) and parts[place + 1][0].isdecimal()
        role, taken = (
            ("visit", "") if date else ("number", "") if text.isdecimal() else _role(text.lower(), digits_follow)
        )
        if text.isdecimal() and of_number and not date:
            role = of_number
        elif role and _BEGINNING.fullmatch(text) and _begins(tokens):
            role, taken = "", ""  # a letter that begins a name is the person's, and no_1000 an image of a class
        elif _SPAN.fullmatch(text) and tokens and tokens[-1].role == "number" and not digits_follow:  # 12 months
            role, tokens[-1] = "visit", tokens[-1]._replace(role="visit")
        of_number = taken
        tokens.append(Token(text, start, start + len(text), role))
    return tuple(tokens)


def _begins(before: list[Token]) -> bool:
    return all(token.role in ("copy", "kind", "mask") for token in before)


def _role(word: str, digits_follow: bool) -> tuple[str, str]:
    """The role of a word, and of the number that follows it."""
    for role, alone, glued, numbered in _ROLES:
        if digits_follow and role != "mask" and numbered.fullmatch(word):
            return role, role
        if alone.fullmatch(word) or glued.fullmatch(word):
            return role, ""
    return "", ""


def known_subject(text: str) -> str | None:
    """Find a cohort's own identifier in a name: ``sub-01`` of BIDS, ``OAS1_0028``, ADNI's ``002_S_0295``."""
    found = rules.KNOWN.search(text)
    return next(filter(None, found.groups())) if found else None


def person_in(text: str) -> str:
    """A cohort's own identifier; "" for none, or for a word behind ``sub-``, as ``sub-acute`` is a class."""
    who = known_subject(text) or ""
    return who if re.search(r"\d", who) else ""


@lru_cache(maxsize=rules.NAMES_KEPT)
def stem_of(name: str) -> str:
    """Return a file's name without its suffix and without the .nii or .nii.gz of the volume that it was cut from."""
    return _SUFFIX.sub("", name)


def copy_of(name: str, others: Collection[str] = ()) -> str:
    """Return the name of what a copy was made of, by that which a file manager calls it; the name itself if it is none.

    Args:
        name: of a folder, or of a file without its suffix.
        others: what lies beside it.

    >>> [copy_of(name) for name in ("Kopie von P01", "P01 - Copy (2)", "P01 copy", "P01 (1)")]
    ['P01', 'P01', 'P01', 'P01 (1)']
    >>> copy_of("P01 (1)", ["P01"])
    'P01'
    """
    for pattern in rules.COPIES:
        if match := pattern.fullmatch(name):
            return copy_of(match["name"], others)
    match = rules.COPY_BESIDE.fullmatch(name)
    return match["name"] if match and match["name"] in others else name


def person_of(stem: str, volume: bool = False) -> str:
    """Tell whom a name shows: what is left without visit, kind of image, slice, side and signs of a copy; "" for none.

    Args:
        stem: a name without its suffix, or the name of a folder.
        volume: there is no slice number at its end.
    """
    if known := known_subject(stem):
        return known
    stem = copy_of(stem)
    tokens = _without_slices(words_of(stem)) if volume else words_of(stem)
    counted = volume and not re.search(r"\d.*\(", stem)  # P (1): no copy, but one of several
    while len(tokens) > 1 and tokens[-1].role == "copy":
        if counted and tokens[-1].text.startswith("("):
            return stem
        tokens = tokens[:-1]
    named = _apart_from_groups(tokens)
    if not volume and len(tokens) > 1 and _is_slice(tokens) and named != [tokens[-1]] and not _is_counted(tokens):
        tokens = tokens[:-1]
        named = _apart_from_groups(tokens)
    numbered = any(re.search(r"\d", token.text) for token in named)
    person: list[Token] = []
    found = False
    for token in tokens:
        if token.role in ("", "number") or (token.role == "thing" and not found):
            person.append(token)
            found |= token in named and (not numbered or re.search(r"\d", token.text) is not None)
        elif found:
            break
    if not named:
        return ""
    sliced = [token for token in tokens if token.role == "slice" and token.text[-1].isdecimal()]
    series = re.match(r"(?:im|img|image)[_\-. ]\d|(?:im|img|image|frame)\d{3,}[_\-. ]\d$", stem, re.IGNORECASE)
    if not volume and series and sliced and named == [tokens[-1]] and named[0].role == "number":
        return stem[: sliced[0].end]  # IM-0115-0001: a series and its slice; frame012_1
    whole = stem[person[0].start : person[-1].end]
    inside = [token for token in tokens if person[0].start <= token.start < person[-1].end]
    return whole if inside == person else "_".join(token.text for token in person)


def _without_slices(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """Read a slice's number as a volume's name has it: a plane's name first (``axial_01``), or alone (``S001``)."""
    read: list[Token] = []
    planes = [token.role == "slice" and _PLANE.fullmatch(token.text) is not None for token in tokens]
    named = (token.text for token in tokens if token.role in ("", "number"))
    numbered = any(re.search(r"\d", text) and not re.fullmatch(r"\d\d?", text) for text in named)
    for place, token in enumerate(tokens):
        if planes[place]:
            token = token._replace(role="kind")
        elif token.role == "slice" and place and planes[place - 1]:
            token = token._replace(role="number")
        elif token.role == "slice" and not numbered and re.fullmatch(r"[A-Za-z]\d{2,}", token.text):
            token = token._replace(role="")
        read.append(token)
    return tuple(read)


def _apart_from_groups(tokens: Sequence[Token]) -> list[Token]:
    """The parts that can name a person: not a site and its number, where another number follows."""
    named = [token for token in tokens if token.role in ("", "number")]
    for place, token in enumerate(named):
        group = rules.GROUP_WORDS.fullmatch(token.text)
        rest = named[place + 1 :] if group and token.text[-1].isdecimal() else named[place + 2 :]
        if group and any(re.search(r"\d", one.text) for one in rest):
            return named[:place] + rest
    return named


def _is_counted(tokens: Sequence[Token]) -> bool:
    """Whether the last number is a person's: behind a word for one, in a name that tells the slice, the kind of image,
    the visit or the group before it: ``slice_034_patient_12``, ``T1_case_012``, ``site1_patient_12``."""
    *before, word, last = tokens[-3:]
    if last.role != "number" or not (before and rules.ONE_PERSON.fullmatch(f"{word.text}_{last.text}")):
        return False
    told, others, group = False, False, False
    for one in tokens[:-2]:
        if group and one.role == "number":  # site_1
            group = False
            continue
        group = rules.GROUP_WORDS.fullmatch(one.text) is not None
        told |= group or one.role in ("slice", "kind", "visit", "side", "thing")
        others |= not group and one.role in ("", "number") and re.search(r"\d", one.text) is not None
    return told and not others


def _is_slice(tokens: Sequence[Token]) -> bool:
    """Whether the last part is a slice's number, which no word says: ``388206_78``, ``P01_b12``."""
    last, before = tokens[-1], tokens[:-1]
    if last.role == "number":
        return True
    short = re.fullmatch(r"(?!p|hc|pt|id)[A-Za-z]{1,3}\d+", last.text)
    return last.role == "" and short is not None and any(re.search(r"\d", token.text) for token in before)


def guess_subjects(keys: Sequence[str], volumes: bool = False, doubts: list[str] | None = None) -> list[str]:
    """Tell whom each file shows, from its name alone.

    A cohort's own identifier is taken where there is one; otherwise the name without slice number, kind of image and
    visit, so that all scans of a person stay together. A name that is nothing but a number is a subject of its own.

    Args:
        keys: paths of the files, with forward slashes.
        volumes: they have no slice numbers.
        doubts: takes a sentence where two readings are possible.

    Example:
        >>> guess_subjects(["IXI012-HH-1211_k098.png", "case_001_slice_0.nii.png", "AD/388206_78.jpeg"])
        ['IXI012-HH-1211', 'case_001', '388206']
        >>> guess_subjects(["P003_V1_T1.nii.gz", "P003_V2_FLAIR.nii.gz"], volumes=True)
        ['P003', 'P003']
    """
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in keys]
    made_of: dict[str, str] = {}
    if not volumes:
        if (people := behind_slices(stems, keys, doubts)) is not None:
            return people
        made_of = of_keras(stems)
    numbered = {stem: name for stem, name in made_of.items() if name.isdecimal()}
    if doubts is not None and numbered:
        copy, image = next(iter(numbered.items()))
        doubts.append(
            f"{len(numbered):,} names such as {copy} are read as copies that Keras made, here of image {image}; if "
            "they are not, give --subject-pattern"
        )
    known = [known_subject(key) for key in keys]
    channels = [rules.CHANNEL.search(key) for key in keys]
    stems = [stem.removesuffix(found[1]) if found else stem for stem, found in zip(stems, channels, strict=True)]
    stems = [stem if stem in numbered else made_of.get(stem, stem) for stem in stems]
    names = [
        k or numbered.get(stem) or _by_name(stem, key, volumes or found is not None)
        for k, stem, key, found in zip(known, stems, keys, channels, strict=True)
    ]
    free = [i for i, (k, name) in enumerate(zip(known, names, strict=True)) if not k and name != keys[i]]
    own = [keys[i] for i in free]
    told = without_counters([names[i] for i in free], own, doubts)
    told = under_heads(told, own, doubts)
    for i, name in zip(free, told, strict=True):
        names[i] = name
    if doubts is not None:
        ask_of_beginnings(told, own, doubts)
    beside: dict[str, dict[str, int]] = defaultdict(dict)
    for i, (key, stem) in enumerate(zip(keys, stems, strict=True)):
        names[i] = names[beside[key.rpartition("/")[0]].setdefault(stem, i)]  # 1.png and 1.jpg are of one person
    for held in beside.values():
        for stem, i in held.items():
            base = copy_of(stem, held)
            if base == stem and not volumes:
                base = _made_of(stem, held)
            names[i] = names[held.get(base, i)]
    return names


def _made_of(stem: str, others: Collection[str]) -> str:
    """The longest name beside it that a name goes on from, ``img_1`` of ``img_1_gauss``; the name itself for none.

    It has a number, and is no group's or year's (``site1`` beside ``site1_012``).
    """
    for gap in reversed(list(_SEPARATOR.finditer(stem))):
        name = stem[: gap.start()]
        if (
            name in others
            and re.search(r"\d", name)
            and not (rules.GROUP_WORDS.search(name) or rules.YEAR.fullmatch(name))
        ):
            return name
    return stem


def _by_name(stem: str, key: str, volume: bool) -> str:
    if not volume and re.fullmatch(r"\d+(?: ?\(\d+\))?", stem):
        return key  # a bare number is counted anew in every folder
    if rules.COUNTED_IN_SPLIT.fullmatch(stem):
        return stem
    if film := rules.FILMS_IN_PAIRS.fullmatch(stem):
        return f"{film[1]}{(int(film[2]) - 1) // 2 * 2 + 1:03}"  # mdb001 of mdb001 and mdb002
    who = person_of(stem, volume)
    if rules.WORDNET.fullmatch(who):  # n02381460_20.jpg
        return key
    if who and not (volume and re.fullmatch(r"[vmwdyt]\d+", stem, re.IGNORECASE)):
        return who
    scans = [token for token in words_of(stem) if token.role == "visit"]
    scan = stem[scans[0].start : scans[-1].end] if scans else ""
    folders = (folder for folder in reversed(key.split("/")[:-1]) if not _is_part(folder))
    above = (person_of(folder, volume=True) for folder in takewhile(lambda folder: not said_split(folder), folders))
    if volume and not rules.NO_VISIT.match(scan) and (folder := next(filter(None, above), "")):
        return folder  # anna/T1.nii, anna/V2.nii
    return scan if re.search(r"\d", scan) else who or key  # scan_003_5.png


def _is_part(folder: str) -> bool:
    """Whether a folder is a split or holds all images, by all words of its name: ``imagesTr``, ``img``."""
    words = _SEPARATOR.split(spaced(folder).lower())
    return all(any(pattern.fullmatch(word) for pattern in rules.PLAIN) for word in words)


def visit_of(key: str) -> str:
    """Tell the visit that a path names, as a number without zeros or a word in lower case; "" for none.

    >>> [visit_of(name) for name in ("sub-01/ses-02/sub-01_T1w.nii", "OAS2_0001_MR2", "P01_m12_3.png", "P01_bl", "P01")]
    ['2', '2', '12', '0', '']
    """
    for name in reversed(key.split("/")):
        words = [token for token in words_of(name) if token.role == "visit"]
        text = " ".join(token.text.lower() for token in words)
        if oasis := _OASIS.search(name):
            return str(int(oasis[1]))
        session = _SESSION.search(name)
        if session and not session[1].startswith("sion"):
            return _visit(session[1].lower())
        text = rules.NO_VISIT.sub("", text).strip()
        if text:
            return _visit(text)
    return ""


def visit_in(cell: str) -> str:
    """Tell the visit that a table's cell names, as `visit_of` does for a path.

    >>> [visit_in(cell) for cell in ("ses-02", "M12", "bl", "Visit 3", "4", "2_year_follow_up_y_arm_1", "autumn", "")]
    ['2', '12', '0', '3', '4', '2yearfollowupyarm1', 'autumn', '']
    """
    if rules.REDCAP_EVENT.fullmatch(cell):
        return _visit(re.sub(r"[\W_]+", "", cell.lower()))
    code = re.fullmatch(r"[A-Za-z]{0,2}[ _-]?(\d+)", cell)
    return str(int(code[1])) if code else visit_of(cell) or cell.lower()


def _visit(text: str) -> str:
    if text in rules.VISIT_BEGIN:
        return "0"
    if re.search(r"arm\d+$", text):  # baselineyear1arm1 is not 1yearfollowupyarm1
        return text
    if date := re.fullmatch(r"((?:19|20)\d\d)\D(\d\d)\D(\d\d)", text):
        return "".join(date.groups())
    numbers = re.findall(r"\d+", text)
    return "-".join(str(int(number)) for number in numbers) or text


def spaced(name: str) -> str:
    """Part the words of a name that only capitals part: ``labels_Tr``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)


def is_mask(name: str, folder: bool = False) -> bool:
    """Tell by its name whether a file, or all files of a folder, are masks or label maps and not images.

    >>> [is_mask(name) for name in ("p1_mask", "seg_004_slice_0", "T1w", "OAS1_0001_masked_gfc")]
    [True, True, False, False]
    >>> [is_mask(name, folder=True) for name in ("labelsTr", "keras_png_slices_seg_train", "with_mask", "label_3")]
    [True, True, False, False]
    """
    if mask_rules.MASK_FILES.match(name):
        return True
    for text in {name, spaced(name)}:  # 1stHO, labelsTr
        tokens = words_of(text)
        for place, token in enumerate(tokens):
            if token.role != "mask" or (place and tokens[place - 1].text.lower() in rules.NO_MASK):
                continue
            numbered = token.text[-1].isdecimal() or (place + 1 < len(tokens) and tokens[place + 1].role == "number")
            if not (folder and numbered and token.text.lower().startswith("label")):
                return True
    return False


def kind_of(stem: str) -> str:
    """Return the parts of a name that tell the kind of image, in lower case: ``t1c``, ``flair``; "" for none."""
    return " ".join(t.text.lower() for t in words_of(stem) if t.role in ("kind", "mask"))


def patients_of(ids: Iterable[str]) -> dict[str, str]:
    """Tell the patient of each ID of DICOM headers: without a visit behind it, "" where it names nobody.

    >>> patients_of(["P01 V1", "P01 V2", "2019-0001", "ANONYMOUS"])
    {'P01 V1': 'P01', 'P01 V2': 'P01', '2019-0001': '2019-0001', 'ANONYMOUS': ''}
    """
    named = {who: not (who.lower() in rules.MISSING or rules.NO_PATIENT.fullmatch(who)) for who in ids}
    known = [who for who, names in named.items() if names]
    whom = dict.fromkeys(named, "") | dict(zip(known, known, strict=True))
    for who, guess in zip(known, guess_subjects(known, volumes=True), strict=True):
        if visit_of(who) and who.startswith(guess):
            whom[who] = guess
    return whom


def pseudonym(patient: str) -> str:
    """Replace a patient's number of a hospital by a name that is always the same and does not tell it."""
    digest = hashlib.pbkdf2_hmac("sha256", patient.strip().encode(), b"vqvae2 patient", 50_000)
    return f"patient-{digest.hex()[:12]}"


def uninformative(subjects: Sequence[str], classes: Sequence[str], splits: Sequence[str | None]) -> list[int]:
    """Find the images whose names repeat their class and tell no person: ``AD/AD_001.png``, ``glioma/Tr-gl_0010.jpg``.

    Args:
        subjects: as guessed from the names.
        classes, splits: of the same images.

    Returns:
        Indices of the images whose class, in their split, has one guessed subject for several images (or several that
        begin alike, as in ``Tr-glTr_0001.jpg``), and that subject is the class's own name or has no number; or
        all, where beside the class's word the names tell a source of photographs: ``cat/flickr_cat_000002.jpg``.
    """
    groups: dict[tuple[str | None, str], list[int]] = defaultdict(list)
    for index, place in enumerate(zip(splits, classes, strict=True)):
        groups[place].append(index)
    found: list[int] = []
    sources = _are_sources(subjects, classes)
    for (_, name), rows in groups.items():
        guessed = {subjects[i] for i in rows}
        if sources and len(guessed) < len(rows):
            found += rows
            continue
        one = min(guessed, key=len)
        alike = len(guessed) < len(rows) and all(guess.startswith(one) for guess in guessed)
        own = {name.lower(), *name.lower().split(".", 1)}  # 001.ak47/001_0001.jpg
        own |= {one} if one.isdecimal() and name.isdecimal() and int(one) == int(name) else set()  # 7/00007_00001.png
        if alike and ((guessed == {one} and one.lower() in own) or not any(re.search(r"\d", g) for g in guessed)):
            found += rows
    return sorted(found)


def _are_sources(subjects: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether all names say besides their class no more than where a photograph comes from."""
    for who, name in set(zip(subjects, classes, strict=True)):
        rest = re.sub(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", "", who, flags=re.IGNORECASE).strip("_-. ")
        if rest == who or not rules.PHOTO_SOURCES.fullmatch(rest):
            return False
    return True


def subjects_by_pattern(keys: Sequence[str], pattern: str) -> list[str]:
    """Read the subject of each file by a regular expression; raises UserError if it does not match every file."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern is not a valid regular expression ({error})", pattern) from None
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
