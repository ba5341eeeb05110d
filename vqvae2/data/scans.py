"""Endings of names that tell a person's scan instead of the person, which all names together show."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from vqvae2.data import rules

__all__ = [
    "ask_of_beginnings",
    "behind_slices",
    "is_person",
    "of_keras",
    "processed",
    "under_heads",
    "without_counters",
]

_COUNTER = re.compile(r"(?P<who>.*\d.*?)[_\-. ](?P<counter>\d{1,4})")
_KERAS = re.compile(r"aug[a-z]*[_\- ](?:(?P<name>.+)_(?=\d+_))?(?P<index>\d+)_(?P<drawn>\d{1,7})", re.IGNORECASE)
_WAVE = re.compile(r"[VTWM]\d{1,2}", re.IGNORECASE)
_LETTER = re.compile(r"(?P<who>.*\d)(?P<counter>[a-dA-D]|[_\-. ][A-Za-z])")
_GLUED = re.compile(r"(?P<who>.*\d)(?P<counter>[A-Za-z]{1,4}\d{1,2})")
_SIDE = re.compile(r"(?P<who>.*\d)[A-Za-z]")
_WORD_NUMBER = re.compile(r"(?P<who>[^\d]*[^\d_\-. ])[_\-. ](?P<counter>\d{1,2})")
_GAP = re.compile(r"[_\-. ]+|(?<=\d)(?=[A-Z][a-z]{2,}\d)")
_LONG = re.compile(r"\d{5,}$")
_HASH = re.compile(r"(?=.*[a-f])[0-9a-f]{10,}")
_PERSON = re.compile(
    r"(?:twin|sib|child|mother|father|brother|sister|son|daughter|giver|receiver|sub|subj|subject|patient|pat|pt|case|"
    r"person|participant|volunteer|id|p|hv|hc|pd|ad|nc|cn|mci|mdd|sz|ms|ctrl|control|mouse|mice|rat|animal|pup|monkey)s?"
    r"(?:[\W_]*\d+)?(?:[\W_].*)?",
    re.IGNORECASE,
)
"""Endings that are people: ``family01_twin1``, ``study1_MCI01``."""
_GROUP = re.compile(
    r"(?:study|trial|exp(?:eriment)?|lab|cage|block|litter|dyad|pair|family|fam|image|img|im|scan)[\W_]*\d+",
    re.IGNORECASE,
)
"""Heads that are no person."""
_GROUP_OR_PERSON = re.compile(r"[slf][\W_]*\d+|\d{1,2}", re.IGNORECASE)
"""Heads that are groups, if all are of this form, unless what follows is words or recurs under most of them."""
_LOOSE_DATE = re.compile(
    r"(?:19|20)\d{12}|\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])|(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])(?:\d\d|(?:19|20)\d\d)|"
    r"(?:19|20)\d\d[-_.](?:0?[1-9]|1[0-2])[-_.](?:0?[1-9]|[12]\d|3[01])|(?:0?[1-9]|[12]\d|3[01])[-_.](?:0?[1-9]|1[0-2])[-_.](?:19|20)\d\d"
)
"""Dates, if all endings behind a number are: ``P01_200711``."""
Place = tuple[str, str]

_LEAST = 3  # heads with several endings, or names with processed forms
_MAP = re.compile(r"i?y_|wj_|[mwrs]{0,4}[pc][0-6]")  # of tissue or deformation, by SPM and CAT12
_STEP = re.compile(r"[amrsuw]{1,4}|w?mi")  # of their processing


def is_person(name: str) -> bool:
    """Whether a name is a person's by a word that says so: ``P01``, ``sub-3``."""
    return _PERSON.fullmatch(name) is not None


def without_counters(names: list[str], keys: Sequence[str], doubts: list[str] | None = None) -> list[str]:
    """Strip the bare number that counts a person's scans (``P01_1``, ``P01_2``) where that reading fits all names.

    A number after a word of groups (``site1_012``) is the person's; so is one that counts more than four times as many
    as there are names before it. Either way the reading is told as a doubt where it matters.

    Args:
        names: of people, as told by each file's name.
        keys: of the files, for the doubt.
        doubts: takes a sentence.
    """
    names = _without_sides(names)
    alone = set(names)
    for pattern in (_COUNTER, _LETTER, _GLUED, _WORD_NUMBER):
        matches = [None if _HASH.fullmatch(name) else pattern.fullmatch(name) for name in names]
        counters: dict[str, set[str]] = defaultdict(set)
        for match in matches:
            if match and not rules.GROUP_WORDS.search(re.split(r"\d", match["who"])[0]):
                counters[match["who"]].add(match["counter"])
        several = {who for who, numbers in counters.items() if len(numbers) > 1 or who in alone}
        if not several:
            continue
        every = set().union(*counters.values())
        most = len(every)
        shared = Counter(number for numbers in counters.values() for number in numbers)
        if (
            pattern is _COUNTER
            and 1 < len(counters) < most
            and all(map(_WAVE.fullmatch, counters))
            and 2 * sum(count > 1 for count in shared.values()) >= most
        ):
            if doubts is not None:
                doubts.append(
                    f"names such as {names[0]} are read as a visit and a subject, as most numbers are behind several "
                    f"of {', '.join(sorted(counters)[:3])}; if they are a subject and a scan, give --subject-pattern"
                )
            return [m["counter"] if m and m["who"] in counters else n for m, n in zip(matches, names, strict=True)]
        together = len(counters) > max(most, 4) if pattern is _WORD_NUMBER else 4 * len(counters) >= most
        if pattern is _WORD_NUMBER and (len(counters) < 3 or not together):
            continue
        if pattern is _GLUED and (len(several) < _LEAST or not _are_scans(counters)):
            continue
        told = [i for i, match in enumerate(matches) if match and match["who"] in several]
        read = [m["who"] if together and m and m["who"] in counters else n for m, n in zip(matches, names, strict=True)]
        if doubts is not None:
            firsts = {names[i]: i for i in reversed(told)}
            shown = ", ".join(f"{keys[i]} as {read[i]}" for i in sorted(firsts.values())[:3])
            other = "each name with its last number" if together else "the name before the last number"
            doubts.append(
                f"the last number may be a subject's or a scan's; read as: {shown}; if {other} is a subject, "
                "give --subject-pattern"
            )
        return read
    return names


def of_keras(stems: Sequence[str]) -> dict[str, str]:
    """Names of images that Keras changed, with that of the image each was made of: ``aug_P01_0_4821`` and ``P01``.

    Its ``flow(save_prefix="aug")`` writes the prefix, the image's place in its list and a random number, which no two
    share; a place stands for the image where the prefix names none. Empty where the last numbers recur.
    """
    found = {stem: match for stem in stems if (match := _KERAS.fullmatch(stem))}
    drawn = {match["drawn"] for match in found.values()}
    made_of = {stem: match["name"] or match["index"] for stem, match in found.items()}
    if 10 * len(drawn) < 9 * len(found) or len(set(made_of.values())) == len(found):
        return {}
    return made_of


def behind_slices(stems: Sequence[str], keys: Sequence[str], doubts: list[str] | None = None) -> list[str] | None:
    """Names without the slice that all begin with: ``000_P01``, ``001_1001``; None where they do not.

    All begin with a number, most of these numbers stand before most of what follows, and that is people by a word or
    numbers from 1000 on, no years, and there are as many of them at least. Where there are fewer, the report asks.

    Args:
        stems: names without suffix.
        keys: of the files, for the doubt.
        doubts: takes a sentence.
    """
    matches = [re.fullmatch(r"(\d{1,4})[_\-. ]([^_\-. ]+)", stem) for stem in stems]
    if not matches or not all(matches):
        return None
    pairs = {(match[1], match[2]) for match in matches if match}
    slices, people = {first for first, _ in pairs}, {second for _, second in pairs}
    words = all(is_person(who) and re.search(r"\d", who) for who in people)
    years = all(map(rules.YEAR.fullmatch, people))
    numbers = all(re.fullmatch(r"[1-9]\d{3,}", who) for who in people) and not {"0", "1"}.isdisjoint(
        str(int(first)) for first in slices
    )
    numbers = numbers and math.gcd(*map(int, people)) < 10  # 1_2000: milliseconds
    if min(len(slices), len(people)) < _LEAST or 2 * len(pairs) < len(slices) * len(people) or not (words or numbers):
        return None
    of_slices = len(people) >= len(slices) and not years
    if doubts is not None and not years:
        own = 2 if of_slices else 1
        shown = ", ".join(f"{key} as {match[own]}" for key, match in list(zip(keys, matches, strict=True))[:2] if match)
        doubts.append(
            f"the first number of a name may be a slice's or a subject's; read as: {shown}; if it is the other, "
            "give --subject-pattern"
        )
    return [match[2] for match in matches if match] if of_slices else None


def _are_scans(counters: dict[str, set[str]]) -> bool:
    """Whether numbers joined to people are of one letter or word that is no person's: ``P01S1``, ``P02S1``."""
    every = set().union(*counters.values())
    words = {re.sub(r"\d", "", counter).lower() for counter in every}
    # Bare numbers are people before few letters that mean none: no site with its subjects, 01S01.
    numbers = len(every) < len(counters) and words != {"s"}
    if any(len(held) > len(counters) for held in counters.values()):
        return False  # of a group its people
    people = all((who.isdecimal() and numbers) or re.fullmatch(r"[Ss]\d+", who) or is_person(who) for who in counters)
    own = {re.sub(r"\d", "", who).lower() for who in counters}
    return people and len(words) == 1 and not (words - {"s"} and any(map(is_person, every))) and words != own - {"s"}


def _without_sides(names: list[str]) -> list[str]:
    """Strip the letters of sides behind a number, ``Image_01L``, where three or most have both, and none another."""
    matches = [_SIDE.fullmatch(name) for name in names]
    sides: dict[str, set[str]] = defaultdict(set)
    for match in matches:
        if match:
            sides[match["who"]].add(match[0][-1].upper())
    both = {who for who, held in sides.items() if len(held) == 2}
    few = len(both) < _LEAST and 2 * len(both) < max(len(sides), 2)
    if few or set().union(*sides.values()) != {"L", "R"}:
        return names
    return [match["who"] if match else name for match, name in zip(matches, names, strict=True)]


def processed(places: Sequence[Place]) -> dict[Place, tuple[str, bool]]:
    """Find what SPM and CAT12 made of other volumes: ``wmP01`` and ``c1P01`` of ``P01``, wherever that lies.

    Args:
        places: folder, with forward slashes, and name without suffix of each.

    Returns:
        By place the name of that which it was made of, and whether it is a map of tissue or deformation. Empty for
        fewer than three of them. A name's first letters are no step where the folder is called by them, too
        (``mTBI/mTBI01``), nor is a single "a" in front of all (``aMCI01``), but for names of a cohort.
    """
    stems = {stem for _, stem in places}
    found: dict[Place, tuple[str, bool]] = {}
    for folder, stem in set(places):
        word = folder.rpartition("/")[2]
        for end in range(1, 7):
            begin, base = stem[:end], stem[end:]
            is_map = _MAP.fullmatch(begin) is not None
            own = len(word) > end and word.isalpha() and stem.startswith(word)
            if not (is_map or _STEP.fullmatch(begin)) or base not in stems or own:
                continue
            if len(base) > 2 and re.search(r"[^\W\d_]", base):
                found[folder, stem] = (base, is_map)
    if {stem.removesuffix(base) for (_, stem), (base, _) in found.items()} == {"a"}:
        found = {place: made for place, made in found.items() if rules.KNOWN.search(made[0])}
    return found if len({(folder, base) for (folder, _), (base, _) in found.items()}) >= _LEAST else {}


def under_heads(names: list[str], keys: Sequence[str], doubts: list[str] | None = None) -> list[str]:
    """Keep each name up to a number where what follows recurs under many: ``P01_2CH_ED``, ``1000012_2_0``.

    The first gap behind a number parts head and ending; where that does not fit all names, the second, then the third.
    It fits where three heads at least have several endings, no more different endings than there are heads (four times
    as many where all heads end in five digits or more, which count no scans; any number of dates, or behind words for
    people), and neither is a group or a person of its own. A short number is no group where words follow it or what
    follows recurs. The reading is told as a doubt; so is that names are left apart which only partly fit.

    Args:
        names: of people, as told by each file's name.
        keys: of the files, for the doubt.
        doubts: takes a sentence.

    Example:
        >>> under_heads([f"v_Archery_g{g:02d}_c0{c}" for g in (1, 2, 3) for c in (1, 2)], ["a.png"] * 6)[::2]
        ['v_Archery_g01', 'v_Archery_g02', 'v_Archery_g03']
    """
    unsure = ""
    gaps = [[gap.start() for gap in _GAP.finditer(name) if re.search(r"\d", name[: gap.start()])] for name in names]
    for place in range(3):
        read = [name[: own[place]] if len(own) > place else name for name, own in zip(names, gaps, strict=True)]
        endings: dict[str, set[str]] = defaultdict(set)
        for name, head, own in zip(names, read, gaps, strict=True):
            if head and len(own) >= place:
                ending = re.sub(rf"(?<![^\W_]){re.escape(head)}(?![^\W_])", "", name.removeprefix(head))
                endings[head].add(ending.strip("_-. "))
        heads = {head for head, held in endings.items() if held != {""}}
        several = {head for head in heads if len(endings[head]) > 1}
        often = Counter(ending for head in heads for ending in endings[head] if ending)
        different = often.keys()
        if len(several) < _LEAST or any(map(is_person, different)):
            continue
        if any(rules.GROUP_WORDS.search(re.sub(r"\d+$", "", head)) for head in heads):
            continue
        recur = 2 * min(often.values()) >= len(heads)
        groups = _are_groups(heads, different, recur)
        most = 4 * len(endings) if all(map(_LONG.search, heads)) else len(endings)
        scans = all(map(is_person, heads)) or all(map(_LOOSE_DATE.fullmatch, different))
        scans &= max(map(len, endings.values())) <= len(heads)  # more are the people of a group
        if groups or (len(different) > most and not scans):
            held = sum(len(endings[head]) for head in heads)
            if place == 0 and 2 * len(several) >= len(heads) and held <= 10 * len(heads) and (recur or not groups):
                unsure = min(several)
            continue
        if doubts is not None:
            told = [i for i, head in enumerate(read) if head in several][:3]
            shown = ", ".join(f"{keys[i]} as {read[i]}" for i in told)
            doubts.append(
                f"what follows the number in a name may tell a scan or a subject; read as: {shown}; if each name is a "
                "subject, give --subject-pattern"
            )
        return read
    if unsure and doubts is not None:
        alike = {name: key for name, key in zip(names, keys, strict=True) if name.startswith(unsure)}
        _ask_whether_one(list(alike.items()), doubts)
    return names


def _are_groups(heads: Collection[str], endings: Collection[str], recur: bool) -> bool:
    """Whether heads are groups, of which the endings are the people.

    Short numbers may be either: they are people before words (``01_rest``, ``01_stress``) and before endings
    that recur, but not before one letter with numbers (``03_A07``).
    """
    if any(map(_GROUP.fullmatch, heads)) or all(map(rules.YEAR.fullmatch, heads)):
        return True
    lettered = all(re.search(r"[^\W\d_]", ending) for ending in endings)
    counted = [re.fullmatch(r"([A-Za-z]{1,2})\d+", ending) for ending in endings]
    one_letter = all(counted) and len({match[1] for match in counted if match}) == 1
    words = not re.search(r"\d", "".join(endings))
    scans = lettered and not one_letter and (recur or words)
    return not scans and all(map(_GROUP_OR_PERSON.fullmatch, heads))


def _ask_whether_one(told: Sequence[tuple[str, str]], doubts: list[str]) -> None:
    """Say that names, each with the file that has it, are read as different subjects."""
    shown = ", ".join(f"{key} as {name}" for name, key in told[:2])
    doubts.append(
        f"names that are partly alike are read as different subjects: {shown}; if they show one, give --subject-pattern"
    )


def ask_of_beginnings(names: Sequence[str], keys: Sequence[str], doubts: list[str]) -> None:
    """Say so where most names stand behind several words, which may be conditions: ``rest_01``, ``stress_01``."""
    tails: dict[str, dict[str, int]] = defaultdict(dict)
    for i, name in enumerate(names):
        match = re.fullmatch(r"([^\W\d_]+)[_\-. ]+(\D{0,4}\d.*)", name)
        if rules.COUNTED_IN_SPLIT.fullmatch(name):
            continue
        if match and not is_person(name) and match[1].lower() not in keys[i].rpartition("/")[0].lower():
            tails[match[2]].setdefault(match[1].lower(), i)
    several = [held for held in tails.values() if len(held) > 1]
    of_folder: dict[str, set[str]] = defaultdict(set)
    for held in tails.values():
        for beginning, i in held.items():
            of_folder[keys[i].rpartition("/")[0]].add(beginning)
    if all(len(beginnings) == 1 for beginnings in of_folder.values()):
        return  # each has a folder of its own
    if len(several) >= _LEAST and 2 * len(several) >= len(tails):
        _ask_whether_one([(names[i], keys[i]) for i in several[0].values()], doubts)
