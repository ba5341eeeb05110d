"""Which folders are the splits of a data set, by their names and by what lies beside them."""

import re
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.people import Folders
from vqvae2.data.selection import Layout, LayoutChoice, is_bids, keep
from vqvae2.data.subjects import copy_of, spaced
from vqvae2.errors import UserError


def read_splits(layout: Layout, source: Path, wanted: LayoutChoice) -> Folders:
    """Read the splits that folders name, and return the names of the other folders that can tell something."""
    folders = _originals(_once([tuple(key.split("/")[:-1]) for key in layout.keys]))
    paired = {} if layout.volumes and is_bids(layout.folder, layout.keys) else _paired_splits(folders, layout.volumes)
    splits = [
        next(filter(None, (paired[name][0] if name in paired else _split_of(name) for name in parts)), None)
        for parts in folders
    ]
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
    layout.splits = splits
    return folders


def _split_of(name: str) -> str | None:
    """The split that a folder is: ``train``, ``keras_png_slices_validate``, ``imagesTr``; None for none."""
    words = re.split(r"[_\-. ]+", spaced(rules.ENUMERATED.sub("", name, count=1)).lower())
    found = [(word, split) for word in words for split, pattern in rules.SPLITS.items() if pattern.fullmatch(word)]
    rest = [word for word in words if not any(pattern.fullmatch(word) for pattern in rules.SPLITS.values())]
    part = rules.SPLIT_PART.search(name)  # train.X1, but not trainX beside trainY
    plain = all(rules.NEUTRAL.fullmatch(word) or (part and word == part[1].lower()) for word in rest)
    return found[0][1] if len(found) == 1 and plain and (rest or len(found[0][0]) > 2) else None


def _paired_splits(folders: Folders, volumes: bool) -> dict[str, tuple[str, str]]:
    """Folders that differ by the word of a split alone, as ``multicoil_train`` and ``multicoil_val``.

    Returns:
        By name the split, and the rest of the name where there are several rests: ``AD`` of ``train_AD``.
    """
    groups: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}  # of a rest, as it is written first
    above: dict[str, set[tuple[str, ...]]] = {}
    for parts in folders:
        for depth, name in enumerate(parts):
            above.setdefault(name, set()).add(parts[:depth])
    for name, places in above.items():
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
    groups.pop("", None)
    if not any("train" in held.values() and len(set(held.values())) > 1 for held in groups.values()):
        return {}
    several = len(groups) > 1  # train_CN besides, which has no test_CN
    # training_1 and test_1 of ISLES 2017 are two people; the same numbers in all splits would be classes.
    splits = {split for held in groups.values() for split in held.values()}
    same = all(set(held.values()) == splits for held in groups.values())
    counted = volumes and not same and all(rest.isdecimal() for rest in groups)
    return {
        name: (split, (name if counted else texts[rest]) if several else "")
        for rest, held in groups.items()
        for name, split in held.items()
    }


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
