"""Whom a file shows: subjects read from names, folders and patterns."""

import re
from collections import defaultdict
from collections.abc import Sequence

from vqvae2.errors import UserError

__all__ = ["guess_subjects", "known_subject", "stem_of", "subjects_by_pattern", "tells_kind_alone", "uninformative"]

# What cohorts and BIDS put into their file names, so that several scans of one person stay together.
_KNOWN = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+|OAS[123]_?\d{4,5}|\d{3}_S_\d{4,5})(?![0-9])")
_MODALITY = r"(?:(?:T1|T2|PD)w?|T1ce|T1c|T1gd|FLAIR|MRI?|anat|brain|seg|mask|label)"
_MODALITY_ALONE = re.compile(_MODALITY, re.IGNORECASE)
_MODALITY_TAIL = re.compile(rf"(?<=.)[_\-. ]{_MODALITY}$", re.IGNORECASE)
_SESSION_TAIL = re.compile(
    r"(?<=\d)[_\-. ](?:(?:ses|session|visit|timepoint|tp|run|scan|mr)[_\-]?\d+|v\d|m\d\d|bl)$", re.IGNORECASE
)
_SLICE_TAIL = re.compile(
    r"(?P<subject>.+?)[_\-. ](?:(?:slice|sl|img|image|frame|axial|z)[_\-. ]?|[A-Za-z]{0,3})\d+", re.IGNORECASE
)


def known_subject(text: str) -> str | None:
    """Find a cohort's own identifier in a name: ``sub-01`` of BIDS, ``OAS1_0028``, ADNI's ``002_S_0295``."""
    found = _KNOWN.search(text)
    return found[1] if found else None


def guess_subjects(keys: Sequence[str], volumes: bool = False) -> list[str]:
    """Tell whom each file shows, from its name alone.

    A cohort's own identifier is taken where there is one; otherwise the name without slice number, kind of image and
    visit, so that all scans of a person stay together. A name that is nothing but a number is a subject of its own.

    Args:
        keys: paths of the files, with forward slashes.
        volumes: they have no slice numbers.

    Example:
        >>> guess_subjects(["IXI012-HH-1211_k098.png", "case_001_slice_0.nii.png", "AD/388206_78.jpeg"])
        ['IXI012-HH-1211', 'case_001', '388206']
        >>> guess_subjects(["P003_V1_T1.nii.gz", "P003_V2_FLAIR.nii.gz"], volumes=True)
        ['P003', 'P003']
    """
    return [known_subject(key) or _by_name(key, volumes) for key in keys]


def _by_name(key: str, volume: bool) -> str:
    stem = stem_of(key.rsplit("/", 1)[-1])
    if stem.isdecimal() and not volume:
        return key  # a bare number is counted anew in every folder
    slices = None if volume else _SLICE_TAIL.fullmatch(stem)
    subject = slices["subject"] if slices else stem
    if slices or volume:  # what is no slice of something is a subject of its own
        while tail := _MODALITY_TAIL.search(subject) or _SESSION_TAIL.search(subject):
            subject = subject[: tail.start()]
    return subject


def stem_of(name: str) -> str:
    """Return a file's name without its suffix and without the .nii or .nii.gz of the volume that it was cut from."""
    return re.sub(r"(\.nii)?(\.gz)?\.[A-Za-z]+$", "", name)


def tells_kind_alone(subject: str) -> bool:
    """Tell whether what a name was taken to say of a person is the kind of image alone, as in ``anna/T1.nii``."""
    return _MODALITY_ALONE.fullmatch(subject) is not None


def uninformative(subjects: Sequence[str], classes: Sequence[str], splits: Sequence[str | None]) -> list[int]:
    """Find the images whose names repeat their class and tell no person: ``AD/AD_001.png``, ``glioma/Tr-gl_0010.jpg``.

    Args:
        subjects: as guessed from the names.
        classes, splits: of the same images.

    Returns:
        Indices of the images whose class, in their split, has one guessed subject for several images (or several that
        begin alike, as in ``Tr-glTr_0001.jpg``), and that subject is the class's own name or has no number.
    """
    groups: dict[tuple[str | None, str], list[int]] = defaultdict(list)
    for index, place in enumerate(zip(splits, classes, strict=True)):
        groups[place].append(index)
    found: list[int] = []
    for (_, name), rows in groups.items():
        guessed = {subjects[i] for i in rows}
        one = min(guessed, key=len)
        alike = len(guessed) < len(rows) and all(guess.startswith(one) for guess in guessed)
        if alike and (
            (guessed == {one} and one.lower() == name.lower()) or not any(re.search(r"\d", g) for g in guessed)
        ):
            found += rows
    return sorted(found)


def subjects_by_pattern(keys: Sequence[str], pattern: str) -> list[str]:
    """Read the subject of each file by a regular expression; raises UserError if it does not match every file."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--subject-pattern is no regular expression ({error})", pattern) from None
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
