"""Who belongs to which split: whole subjects, by a seeded hash, so that adding subjects moves nobody."""

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "selection", "val", "test")
VAL, TEST, SELECTION = 0.1, 0.1, 0.1  # shares of the subjects; selection is a share of the training subjects


def unit_hash(text: str) -> float:
    """A number in [0, 1) that looks uniform and is the same for equal texts everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def assign(subjects: Sequence[str], ready: Sequence[str | None], seed: int) -> list[str]:
    """Give every image a split: "train", "selection", "val" or "test".

    Args:
        subjects: whom each image shows.
        ready: the split that each image's folder names ("train", "val", "test"), None for all without such
            folders.
        seed: of the hash, >= 0.

    Returns:
        A split for each image. Ready splits stand as they are, save that a tenth of the training subjects
        becomes "val" when there is none. Otherwise subjects fall 80 / 10 / 10 into train, val and test. A
        tenth of the training subjects, at least one of two, becomes "selection". Where a few subjects leave
        train or val empty, the nearest by hash is moved there.
    """
    splits: list[str] = []
    place = {subject: unit_hash(f"{seed}:{subject}") for subject in subjects}
    if any(split is not None for split in ready):
        splits = [split or "train" for split in ready]
    else:
        chosen = {s: "train" if u < 1 - VAL - TEST else "val" if u < 1 - TEST else "test" for s, u in place.items()}
        lowest = sorted(place, key=lambda s: (place[s], s))
        if "train" not in chosen.values():
            chosen[lowest[0]] = "train"
        if "val" not in chosen.values() and "test" in chosen.values():
            chosen[next(s for s in lowest if chosen[s] == "test")] = "val"
        splits = [chosen[subject] for subject in subjects]
    if "val" not in splits:
        splits = _carve(subjects, splits, "val", {s: 1 - u for s, u in place.items()}, VAL)
    second = {subject: unit_hash(f"{seed}:selection:{subject}") for subject in subjects}
    return _carve(subjects, splits, "selection", second, SELECTION)


def _carve(subjects: Sequence[str], splits: list[str], part: str, place: dict[str, float], share: float) -> list[str]:
    """Move the training subjects whose place is under share, at least one of two, to another part."""
    training = sorted(
        {s for s, split in zip(subjects, splits, strict=True) if split == "train"},
        key=lambda s: (place[s], s),
    )
    count = sum(place[subject] < share for subject in training)
    moved = set(training[: min(max(count, 1), len(training) - 1)])
    return [part if split == "train" and s in moved else split for s, split in zip(subjects, splits, strict=True)]


def overlap(subjects: Sequence[str], splits: Sequence[str]) -> dict[str, set[str]]:
    """The subjects that are in more than one split, with their splits."""
    seen: dict[str, set[str]] = {}
    for subject, split in zip(subjects, splits, strict=True):
        seen.setdefault(subject, set()).add(split)
    return {subject: held for subject, held in seen.items() if len(held) > 1}
