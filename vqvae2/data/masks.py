"""Which files are masks, or pictures made of other images, by their names, folders and what lies beside them."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache

from vqvae2.data import mask_rules, rules
from vqvae2.data.subjects import is_mask, spaced, stem_of, words_of

__all__ = ["is_of_volume", "left_out"]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
Place = tuple[tuple[str, ...], tuple[str, ...]]  # folders, and the parts of a name


def left_out(keys: Sequence[str], volumes: bool, doubts: list[str]) -> list[str]:
    """Tell what names say to be masks, or pictures made of others, and no images.

    Args:
        keys: paths of the files, with forward slashes.
        volumes: the files are volumes.
        doubts: takes a sentence where two readings are possible.

    Returns:
        Of each file what it is: of `mask_rules.BESIDE`, "" for an image.
    """
    if not volumes:
        _ask_of_formats(keys, doubts)
    masks = _masks(keys, doubts)
    what = ["masks" if mask else "" for mask in masks]
    if all(masks):
        doubts.append(f"all names say that these are masks, such as {keys[0]}; they are taken as images")
        return [""] * len(keys)
    asked: dict[str, str] = {}
    for i, (rule, image) in _beside(keys, masks, volumes).items():
        what[i] = rule.what
        if not rule.sure:
            asked[keys[i]] = image
    if asked:
        mask, image = next(iter(asked.items()))
        doubts.append(
            f"{len(asked):,} files such as {mask} beside {image} are taken for masks and left out; if they are images, "
            "give --include-masks"
        )
    return what


def _ask_of_formats(keys: Sequence[str], doubts: list[str]) -> None:
    """Ask about images most of which have a file of another format beside them, ``1.jpg`` and ``1.png``."""
    formats: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        name, _, suffix = key.rpartition(".")
        formats[name].add(suffix)
    pairs = Counter(tuple(sorted(held)) for held in formats.values() if len(held) == 2)
    for (one, other), count in pairs.most_common(1):
        if count > 2 and 4 * count >= len(keys):
            name = next(name for name, held in formats.items() if held == {one, other})
            doubts.append(
                f"{count:,} images are there in two formats, such as {name}.{one} and {name}.{other}; if those of one "
                f"are masks or depth maps, --exclude '*.{other}' (or '*.{one}') leaves them out"
            )


def _masks(keys: Sequence[str], doubts: list[str]) -> list[bool]:
    """Which files names tell to be masks; a folder that holds both, by the names in it, tells nothing."""
    places = [key.split("/") for key in keys]
    masks = [is_mask(stem_of(parts[-1])) for parts in places]
    either: dict[str, list[int]] = {}  # folders of masks, or of a class
    for depth in range(max(map(len, places)) - 1, 0, -1):
        inside: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i, parts in enumerate(places):
            if len(parts) > depth and is_mask(parts[depth - 1], folder=True):
                inside[tuple(parts[:depth])].append(i)
        both = {  # WMH_training holds images and masks, so WMH_test beside it is of images
            (folder[:-1], _mask_words(folder[-1]))
            for folder, rows in inside.items()
            if any(masks[i] for i in rows) and not all(masks[i] for i in rows)
        }
        for folder, rows in inside.items():
            if any(masks[i] for i in rows):  # all are masks by name already, or the folder holds both
                continue
            if (folder[:-1], _mask_words(folder[-1])) in both:
                continue
            if len(rows) == len(places) and any(word.role == "" for word in words_of(spaced(folder[-1]))):
                continue  # MoNuSeg: the data's own name
            if mask_rules.CLASS_OR_MASK.fullmatch(folder[-1].lower()) or _is_class_or_mask(folder[-1]):
                either.setdefault(folder[-1], []).extend(rows)
                continue
            for i in rows:
                masks[i] = True
    own = {i for rows in either.values() for i in rows}
    others = {stem_of(parts[-1]) for i, parts in enumerate(places) if either and i not in own}
    for name, rows in either.items():
        if any(stem_of(places[i][-1]) in others for i in rows):  # masks are called as their images are
            for i in rows:
                masks[i] = True
        else:
            doubts.append(
                f"the folder {name} may hold masks, but no other folder has images of the same names, so it is read as "
                f"images; --exclude {name} leaves it out"
            )
    return masks


def _is_class_or_mask(folder: str) -> bool:
    """Whether a folder's name joins such a word and a cohort's: ``ADNI_WMH``; not ``Ground Truth`` or ``GT_train``."""
    named = [word.text.lower() for word in words_of(spaced(folder)) if word.role == ""]
    rest = [word for word in named if word != "ground" and not any(plain.fullmatch(word) for plain in rules.PLAIN)]
    masks = _mask_words(folder)
    return bool(rest and masks) and all(map(mask_rules.CLASS_OR_MASK.fullmatch, masks))


@lru_cache(maxsize=rules.NAMES_KEPT)
def _mask_words(folder: str) -> tuple[str, ...]:
    """The words of a folder's name that mean masks."""
    return tuple(word.text.lower() for word in words_of(spaced(folder)) if word.role == "mask")


def _beside(keys: Sequence[str], masks: list[bool], volumes: bool) -> dict[int, tuple[mask_rules.Beside, str]]:
    """Which files have a word of `mask_rules.BESIDE` and lie beside an image of the name without it, and this."""
    words = {word.lower() for key in keys for word in _WORD.findall(key)}
    if not any(_rule((word,)) for word in words):
        return {}
    images: dict[Place, str] = {}
    going_on: dict[Place, dict[frozenset[str], str]] = defaultdict(
        dict
    )  # by a beginning, the words of controls after it
    wanted: dict[int, tuple[mask_rules.Beside, list[Place]]] = {}
    aside: dict[int, int] = {}  # how deep a folder of its own lies
    for i, key in enumerate(keys):
        *folders, name = key.split("/")
        if masks[i]:
            continue
        here = tuple(folders)
        parts = _parts(stem_of(name))
        told = [_rule((part,)) is not None for part in parts]
        at_word = told.index(True) if any(told) else None
        rest = tuple(part for part, word in zip(parts, told, strict=True) if not word)
        above = next((at for at in range(len(here) - 1, -1, -1) if _is_of_others(here[at])), None)
        if at_word is not None and (rule := _rule(parts)):
            begun = tuple(part for part in parts[:at_word] if part not in mask_rules.QUALIFIERS)
            places = [(here, rest)]  # P01_3_left_lung
            if begun:  # P01_3_lesion_1
                places.append((here, begun))
            # 030001_LesionSmooth_1_stx beside 030001_t1w_stx; stroke_001 and site1_stroke_001 are people of their own
            if volumes and _has(r"\d", begun) and not _has(r"\d\d", parts[at_word + 1 :]):
                places.append((here, (*begun, "*")))
            if above == len(here) - 1 and set(_parts(here[-1])) & set(rest):  # IMD002/IMD002_lesion/IMD002_lesion
                places.append(((*here[:-1], "*"), rest))
            plain = tuple(part for part in rest if part not in mask_rules.QUALIFIERS)  # T1_LogJacobian
            places.append((here, plain))
            if above is not None:  # lesion/P01_3_lesion
                places += _around(here, above, plain)
            wanted[i] = (rule, places)
        elif above is not None and (rule := _rule(_parts(here[above]))):  # lesion/P01_3 beside images/P01_3 or P01_3
            places = _around(here, above, rest)
            words_above = _parts(here[above])
            short = (*words_above, "".join(word[0] for word in words_above))  # tumor/001_t, Silver-standard/001_ss
            if len(rest) > 1 and any(word.startswith(rest[-1]) for word in short):
                places += _around(here, above, rest[:-1])
            wanted[i] = (rule, places)
            aside[i] = above
        else:
            bare = tuple(part for part in rest if not mask_rules.COLOURS.fullmatch(part))  # 00000_colors
            held = [(here, rest), (here, bare), ((*here[:-1], "*"), rest)]
            held += [((*here[:at], "*plain", *here[at + 1 :]), rest) for at in range(len(here)) if _is_plain(here[at])]
            for place in held:
                images.setdefault(place, key)
            for end in range(len(rest) + 1) if volumes else ():
                going_on[here, rest[:end]].setdefault(frozenset(rules.CONTROLS.intersection(rest[end:])), key)
    found: dict[int, tuple[mask_rules.Beside, str]] = {}
    for i, (rule, places) in wanted.items():
        own = set(_parts(stem_of(keys[i].rsplit("/", 1)[-1])))
        places_here = (place for place in places if place[1][-1:] == ("*",))
        others = (
            key for here, begun in places_here for words, key in going_on[here, begun[:-1]].items() if words <= own
        )
        if image := next((images[place] for place in places if place in images), next(others, "")):
            other = image.split("/")[aside[i] : -1] if i in aside else []
            # Of tumor/ and MRI/ both may hold images, of lesion/ and images/ one does.
            unsure = bool(other) and not mask_rules.IMAGES.fullmatch(other[0].lower())
            found[i] = (rule._replace(sure=rule.sure and not unsure), image)
    return found


def _around(here: tuple[str, ...], above: int, rest: tuple[str, ...]) -> list[Place]:
    """Where the image of such a name may lie for a file in a folder of masks: in a plain folder beside it, or above."""
    return [((*here[:above], "*plain", *here[above + 1 :]), rest), ((*here[:above], *here[above + 1 :]), rest)]


def _is_of_others(folder: str) -> bool:
    """Whether a folder's name is of what lies beside images, and not of a data set: ``brain_tumor_dataset``."""
    return _rule(_parts(folder)) is not None and not mask_rules.DATA_SET.search(folder)


def _has(pattern: str, parts: Sequence[str]) -> bool:
    return any(re.search(pattern, part) for part in parts)


@lru_cache(maxsize=rules.NAMES_KEPT)
def _parts(name: str) -> tuple[str, ...]:
    """The parts of a name in lower case, without those that tell the kind of image or that it is one."""
    words = [word for word in words_of(spaced(name)) if word.role not in ("kind", "thing")]
    return tuple(word.text.lower() for word in words)


@lru_cache(maxsize=rules.NAMES_KEPT)
def _rule(parts: tuple[str, ...]) -> mask_rules.Beside | None:
    return next((rule for rule in mask_rules.BESIDE if any(map(rule.words.fullmatch, parts))), None)


@lru_cache(maxsize=rules.NAMES_KEPT)
def _is_plain(folder: str) -> bool:
    """Whether a folder's name says no more than that it holds images, or of which kind."""
    images = mask_rules.IMAGES.fullmatch(folder.lower()) or rules.MODALITIES.fullmatch(folder)
    if images or folder.lower().startswith("original"):
        return True
    return all(
        rules.NEUTRAL.fullmatch(word.text.lower()) or word.role in ("kind", "thing", "slice")
        for word in words_of(spaced(folder))
    )


def is_of_volume(key: str) -> bool:
    """Tell by name or folder whether an image beside volumes is a mask or shows one for a check: ``qc/P01.png``."""
    *folders, name = key.split("/")
    if is_mask(stem_of(name)) or any(is_mask(folder, folder=True) for folder in folders):
        return True
    words = re.split(r"[_\-. /]+", spaced(stem_of(key)).lower())
    return any(map(mask_rules.PICTURES.fullmatch, words))
