"""What the names of a level's folders tell, all taken together: people, a list, a count, or one word alone."""

import re
from collections import Counter
from collections.abc import Sequence

from vqvae2.data import rules
from vqvae2.data.people import numbered
from vqvae2.data.scans import is_person
from vqvae2.data.subjects import spaced, words_of

_NUMBERED = re.compile(r"((?:site|cent(?:er|re)|hospital|scanner)s?)[\W_]*(?:\d+|[a-z])(?![^\W_])")


def differ_by_size(names: Sequence[str], stems: Sequence[str]) -> bool:
    """Whether folders are called alike but for a few sizes in pixels, and hold images of the same names.

    Such as ``data128x128`` and ``data256x256``, or ``celeba_hq_128`` and ``celeba_hq_256``.
    """
    distinct = set(names)
    sizes = {name: re.findall(r"(?<!\d)[1-9]\d{1,3}(?!\d)", name) for name in distinct}
    if not 1 < len(distinct) <= 6 or any(not found or int(found[-1]) % 16 for found in sizes.values()):
        return False
    words = ({word for word in re.split(r"[\W_]+|\d+x?\d*(?:px?)?", name.lower()) if word} for name in distinct)
    if len({frozenset(word for word in own if not rules.NEUTRAL.fullmatch(word)) for own in words}) > 1:
        return False
    homes: dict[str, set[str]] = {}
    for name, stem in zip(names, stems, strict=True):
        homes.setdefault(stem, set()).add(name)
    return 2 * sum(len(held) > 1 for held in homes.values()) >= len(homes)


def are_listed(names: set[str], pattern: re.Pattern[str]) -> bool:
    """Whether names count a list of words, without a gap: ``001.ak47``, ``002.american-flag``."""
    numbers = sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)
    return len(numbers) == len(names) and _without_gap(numbers)


def _without_gap(numbers: list[int]) -> bool:
    """Whether each of sorted numbers is the one after the number before it."""
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def are_counted(names: set[str]) -> bool:
    """Whether names are 0 or 1 and the numbers after it, behind one word or none that tells no person: ``G1``."""
    matches = [re.fullmatch(r"(\D*)(0|[1-9]\d*)", name) for name in names]
    if not all(matches) or len({match[1].lower() for match in matches if match}) > 1:
        return False
    if any(is_person(re.split(r"[\W_]+", name)[-1]) for name in names):
        return False
    numbers = sorted(int(match[2]) for match in matches if match)
    return numbers[0] in (0, 1) and _without_gap(numbers)


def half(names: set[str], pattern: re.Pattern[str]) -> bool:
    """Whether a part of at least half of the names fits."""
    parts = [re.split(r"[_\-. ]+", spaced(name).lower()) for name in names]
    return 2 * sum(any(map(pattern.fullmatch, words)) for words in parts) >= len(names)


def differ_in(names: set[str], pattern: re.Pattern[str]) -> bool:
    """Whether a part of at least half of the names fits, and the rest of these tells no more: not ``P01_axial``."""
    parts = [re.split(r"[_\-. ]+", _NUMBERED.sub(r"\1", spaced(name).lower())) for name in names]
    fitting = [
        (tuple(filter(pattern.fullmatch, words)), words) for words in parts if any(map(pattern.fullmatch, words))
    ]
    rests = {tuple(word for word in words if word not in found) for found, words in fitting}
    return 2 * len(fitting) >= len(names) and len(rests) <= len({found for found, _ in fitting})


def differ_by(names: set[str], role: str) -> bool:
    """Whether all names have a word of a role, and only that tells them apart: ``IXI-T1``, ``IXI-T2``."""
    words = [words_of(name) for name in names]
    rest = {tuple(word.text for word in one if word.role != role) for one in words}
    return (
        len(rest) == 1
        and all(len(one) > len(next(iter(rest))) for one in words)
        and (not any(map(rules.NO_VISIT.match, names)))
    )


def look_like_people(names: set[str]) -> bool:
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
