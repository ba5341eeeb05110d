"""Which folders are the splits of a data set, by their names and by what lies beside them."""

import re
import shlex
from collections import Counter
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.levels import tells_no_person
from vqvae2.data.people import Folders
from vqvae2.data.selection import Layout, LayoutChoice, is_bids, keep
from vqvae2.data.split_words import said_split
from vqvae2.data.subjects import copy_of, person_in, spaced
from vqvae2.errors import UserError

Named = dict[str, tuple[str, str]]  # by a folder's name its split, and what else it tells


def read_splits(layout: Layout, source: Path, wanted: LayoutChoice) -> Folders:
    """Read the splits that folders name, and return the names of the other folders that can tell something."""
    folders = _originals(_once([tuple(key.split("/")[:-1]) for key in layout.keys]))
    bids = layout.volumes and is_bids(layout.folder, layout.keys)
    paired = {} if bids else _paired_splits(folders, layout.volumes)
    splits = _first_splits(folders, paired)
    if "train" not in splits and not bids and (paired := _sibling_splits(folders)):
        splits = _first_splits(folders, paired)
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
        if wanted in ("auto", "volumes", "bids"):
            _ask_of_held_out(layout, folders)
    layout.splits = splits
    return folders


def _first_splits(folders: Folders, named: Named) -> list[str | None]:
    """The split that the first folder of each path names which names one; None for none."""
    return [
        next(filter(None, (named[name][0] if name in named else _split_of(name) for name in parts)), None)
        for parts in folders
    ]


def _ask_of_held_out(layout: Layout, folders: Folders) -> None:
    """Ask about folders that may hold held-out images where no others are of training: ``data_256``, ``test_256``."""
    above = _above(folders)
    asked: dict[str, list[str]] = {}
    for key, parts in zip(layout.keys, folders, strict=True):
        held_out = (name for name in parts if said_split(name) in ("val", "test") and not person_in(name))
        if (name := next(held_out, "")) and len(above[name]) == 1:  # P01/test, P02/test: of each person
            asked.setdefault(name, []).append(key)
    shown = [key for held in asked.values() for key in held]
    of_each = len(asked) > 4 or len({place for name in asked for place in above[name]}) > 1  # P01_test, P02_test
    if not asked or of_each or len(shown) == len(layout.keys) or any("retest" in name.lower() for name in above):
        return
    layout.doubts.append(
        f"{len(shown):,} {layout.unit} in folders such as {min(asked)} may be meant for validation or test "
        f"({', '.join(shown[:3])}); no folders are read as splits, so that all are split anew; --exclude "
        f"{shlex.join(sorted(asked))} leaves them out"
    )


def _split_of(name: str) -> str | None:
    """The split that a folder is: ``train``, ``keras_png_slices_validate``, ``imagesTr``; None for none."""
    words = re.split(r"[_\-. ]+", spaced(rules.ENUMERATED.sub("", name, count=1)).lower())
    found = [(word, split) for word in words for split, pattern in rules.SPLITS.items() if pattern.fullmatch(word)]
    rest = [word for word in words if not any(pattern.fullmatch(word) for pattern in rules.SPLITS.values())]
    part = rules.SPLIT_PART.search(name)  # train.X1, but not trainX beside trainY
    plain = all(rules.NEUTRAL.fullmatch(word) or (part and word == part[1].lower()) for word in rest)
    return found[0][1] if len(found) == 1 and plain and (rest or len(found[0][0]) > 2) else None


def _above(folders: Folders) -> dict[str, set[tuple[str, ...]]]:
    """Where folders of each name lie, but for one in itself, as archives have it."""
    above: dict[str, set[tuple[str, ...]]] = {}
    for parts in dict.fromkeys(folders):
        for depth, name in enumerate(parts):
            if name not in parts[:depth]:
                above.setdefault(name, set()).add(parts[:depth])
    return above


def _paired_splits(folders: Folders, volumes: bool) -> Named:
    """Folders that differ by the word of a split alone, as ``multicoil_train`` and ``multicoil_val``.

    Returns:
        By name the split, and the rest of the name where there are several rests: ``AD`` of ``train_AD``.
    """
    groups: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}  # of a rest, as it is written first
    below = False  # a folder that says the split, too
    for name, places in _above(folders).items():
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
            below |= any(map(said_split, min(places)))
    groups.pop("", None)
    if not any("train" in held.values() and len(set(held.values())) > 1 for held in groups.values()):
        return {}
    most = max(Counter(split for held in groups.values() for split in held.values()).values())
    several = len(groups) > 1 and most > 1  # train_CN besides, which has no test_CN
    # training_1 and test_1 of ISLES 2017 are two people; the same numbers in all splits would be classes.
    splits = {split for held in groups.values() for split in held.values()}
    same = not below and all(set(held.values()) == splits for held in groups.values())
    counted = {rest for rest in groups if volumes and not same and rest.isdecimal()}
    return {
        name: (split, (name if rest in counted or person_in(name) else texts[rest]) if several else "")
        for rest, held in groups.items()
        for name, split in held.items()
    }


def _sibling_splits(folders: Folders) -> Named:
    """Folders beside each other that all hold the word of a split, whatever else they are called: ``Training Batch 1``,
    ``Training Batch 2`` and ``LITS-Challenge-Test-Data``.

    Returns:
        By name the split, and what else tells several folders of a split apart, unless it counts parts.
    """
    beside: dict[tuple[str, ...], dict[str, str]] = {}
    for name, places in _above(folders).items():
        for place in places:
            beside.setdefault(place, {})[name] = said_split(name) if len(places) == 1 else ""
    found = [held for held in beside.values() if "" not in held.values() and {"train"} < set(held.values())]
    if len(found) != 1:  # P01/P01_train, P02/P02_train: of each person
        return {}
    named: Named = {}
    for split in set(found[0].values()):
        words = {name: _rest(name) for name, own in found[0].items() if own == split}
        shared = set.intersection(*map(set, words.values()))  # of BRATS_Training_HGG, BRATS_Training_LGG
        shared = set() if any(shared.issuperset(rest) for rest in words.values()) else shared  # acute, sub-acute
        rests = {name: "_".join(word for word in rest if word not in shared) for name, rest in words.items()}
        forms = {re.sub(r"[\W\d_]+", " ", " ".join(rest)).strip().lower() for rest in words.values()}
        counted = len(forms) == 1 and any(map(rules.GROUP_WORDS.fullmatch, min(forms).split()))
        if len(words) == 1 or counted or all(map(rules.YEAR.fullmatch, rests.values())):
            rests = dict.fromkeys(words, "")
        elif len(forms) < len(words) and not all(map(tells_no_person, rests.values())):
            rests = {name: name for name in words}  # CHB_train_Case01, CHB_train_Case02: people
        named |= {name: (split, name if person_in(name) else rest) for name, rest in rests.items()}
    return named


def _rest(name: str) -> list[str]:
    """The words of a folder's name but for its split's: ``siteA`` of ``train_siteA``, ``A`` of ``trainA``."""
    parts = (spaced(word).split("_") if said_split(word) else [word] for word in re.split(r"[_\-. ]+", name))
    return [word for part in parts for word in part if not said_split(word)]


def _originals(folders: Folders) -> Folders:
    """Call folders that a file manager copied as those they were copied of, where these lie beside them."""
    beside: dict[tuple[str, ...], set[str]] = {}
    for parts in set(folders):
        for depth, name in enumerate(parts):
            beside.setdefault(parts[:depth], set()).add(name)

    def original(name: str, others: set[str]) -> str:
        return base if (base := copy_of(name, others)) in others else name

    return [tuple(original(name, beside[parts[:depth]]) for depth, name in enumerate(parts)) for parts in folders]


def _once(folders: Folders) -> Folders:
    """Folders without a level that repeats the one above it everywhere: ``seg_train/seg_train`` of an archive."""
    for depth in range(max(map(len, folders)) - 1, 0, -1):
        here = {parts[depth - 1 : depth + 1] for parts in folders if len(parts) > depth}
        if all(above == name for above, name in here):
            folders = [parts[:depth] + parts[depth + 1 :] for parts in folders]
    return folders
