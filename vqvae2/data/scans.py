"""Endings of names that tell a person's scan instead of the person, which all names together show."""

import re
from collections import defaultdict
from collections.abc import Sequence

from vqvae2.data import rules

__all__ = ["processed", "under_heads", "without_counters"]

_COUNTER = re.compile(r"(?P<who>.*\d.*?)[_\-. ](?P<counter>\d{1,4})")
_LETTER = re.compile(r"(?P<who>.*\d)(?P<counter>[a-dA-D]|[_\-. ][A-Za-z])")
_WORD_NUMBER = re.compile(r"(?P<who>[^\d]*[^\d_\-. ])[_\-. ](?P<counter>\d{1,2})")
_GAP = re.compile(r"[_\-. ]+|(?<=\d)(?=[LRlr]$)|(?<=\d)(?=[A-Z][a-z]{2,}\d)")
_LONG = re.compile(r"\d{5,}$")
_PERSON = re.compile(
    r"(?:twin|sib|child|mother|father|sub|subj|subject|patient|pat|pt|case|person|participant|id|p|hc|pd|ad|nc|cn)s?"
    r"[\W_]*\d*",
    re.IGNORECASE,
)
_LEAST = 3  # heads with several endings, or names with processed forms
_MAP = re.compile(r"i?y_|wj_|[mwrs]{0,4}[pc][0-6]")  # of tissue or deformation, by SPM and CAT12
_STEP = re.compile(r"[amrsuw]{1,4}")  # of their processing


def without_counters(names: list[str], keys: Sequence[str], doubts: list[str] | None = None) -> list[str]:
    """Strip the bare number that counts a person's scans (``P01_1``, ``P01_2``) where that reading fits all names.

    A number after a word of groups (``site1_012``) is the person's; so is one that counts more than four times as many
    as there are names before it. Either way the reading is told as a doubt where it matters.

    Args:
        names: of people, as told by each file's name.
        keys: of the files, for the doubt.
        doubts: takes a sentence.
    """
    alone = set(names)
    for pattern in (_COUNTER, _LETTER, _WORD_NUMBER):
        matches = [pattern.fullmatch(name) for name in names]
        counters: dict[str, set[str]] = defaultdict(set)
        for match in matches:
            if match and not rules.GROUP_WORDS.search(re.split(r"\d", match["who"])[0]):
                counters[match["who"]].add(match["counter"])
        several = {who for who, numbers in counters.items() if len(numbers) > 1 or who in alone}
        if not several:
            continue
        most = len(set().union(*counters.values()))
        together = len(counters) > max(most, 4) if pattern is _WORD_NUMBER else 4 * len(counters) >= most
        if pattern is _WORD_NUMBER and (len(counters) < 3 or not together):
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


def processed(stems: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Find what SPM and CAT12 made of other files: ``wmP01`` and ``c1P01`` of ``P01``.

    Args:
        stems: names without suffix.

    Returns:
        By name that of the file that it was made of, and whether it is a map of tissue or deformation.
    """
    known, found = set(stems), {}
    for stem in known:
        for end in range(1, 7):
            begin, base = stem[:end], stem[end:]
            is_map = _MAP.fullmatch(begin) is not None
            if not (is_map or _STEP.fullmatch(begin)) or base not in known:
                continue
            if len(base) > 2 and re.search(r"[^\W\d_]", base):
                found[stem] = (base, is_map)
    return found if len({base for base, _ in found.values()}) >= _LEAST else {}


def under_heads(names: list[str], keys: Sequence[str], doubts: list[str] | None = None) -> list[str]:
    """Keep each name up to a number where what follows recurs under many: ``P01_2CH_ED``, ``1000012_2_0``.

    The first gap behind a number parts head and ending; where that does not fit all names, the second, then the third.
    It fits where three heads at least have several endings, no more different endings than there are heads (four times
    as many beside a number of five digits or more, which counts no scans), and neither is a group or a person of its
    own. The reading is told as a doubt.

    Args:
        names: of people, as told by each file's name.
        keys: of the files, for the doubt.
        doubts: takes a sentence.

    Example:
        >>> under_heads([f"v_Archery_g{g:02d}_c0{c}" for g in (1, 2, 3) for c in (1, 2)], ["a.png"] * 6)[::2]
        ['v_Archery_g01', 'v_Archery_g02', 'v_Archery_g03']
    """
    gaps = [[gap.start() for gap in _GAP.finditer(name) if re.search(r"\d", name[: gap.start()])] for name in names]
    for place in range(3):
        read = [name[: own[place]] if len(own) > place else name for name, own in zip(names, gaps, strict=True)]
        endings: dict[str, set[str]] = defaultdict(set)
        for name, head, own in zip(names, read, gaps, strict=True):
            if head and len(own) >= place:
                endings[head].add(name.removeprefix(head).replace(head, "").strip("_-. "))
        heads = {head for head, held in endings.items() if held != {""}}
        several = {head for head in heads if len(endings[head]) > 1}
        different = set().union(*(endings[head] for head in heads)) - {""}
        long = all(map(_LONG.search, heads)) or all(map(_LONG.match, different))
        if (
            len(several) < _LEAST
            or len(different) > (4 if long else 1) * len(endings)
            or any(rules.GROUP_WORDS.search(re.sub(r"\d+$", "", head)) for head in heads)
            or any(map(_PERSON.fullmatch, different))
        ):
            continue
        if doubts is not None:
            told = [i for i, head in enumerate(read) if head in several][:3]
            shown = ", ".join(f"{keys[i]} as {read[i]}" for i in told)
            doubts.append(
                f"what follows the number in a name may tell a scan or a subject; read as: {shown}; if each name is a "
                "subject, give --subject-pattern"
            )
        return read
    return names
