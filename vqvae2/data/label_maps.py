"""Label maps that no name tells: images that are nearly black, or of few values beside others of the same people."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.reading import Place, Reading
from vqvae2.data.selection import Layout
from vqvae2.data.sources import fits
from vqvae2.data.subjects import stem_of

_FEW = 16  # values of pixels; fewer are label maps or images that are nearly black
_GROUPS = 20  # of files that are called alike; where there are more, names tell people
_LOOKED_AT = 6  # images of each


def ask_of_label_maps(
    read: Reading, rows: Mapping[str, Sequence[int]], layout: Layout, subjects: Sequence[str]
) -> None:
    """Ask about images that may be label maps.

    Args:
        read: the pixels by split.
        rows: by split the file, or volume, of each image.
        layout: of these files; takes the doubts.
        subjects: of these files.
    """
    if read.highest < _FEW:
        layout.doubts.append(
            f"no pixel is above {read.highest}, of {read.value_range[1]:g}: images as dark as this may be label maps, "
            f"such as {read.key((next(iter(read.files)), 0))}; if they are, --exclude leaves them out"
        )
    if len(set(subjects)) == len(subjects):
        return
    words = list(map(_word, layout.keys))
    groups: dict[str, list[tuple[Place, int]]] = {}  # by a word of their names
    for split, file in read.files.items():
        for place in np.flatnonzero(file.index["low"] < file.index["high"]).tolist():
            row = rows[split][place]
            groups.setdefault(words[row], []).append(((split, place), row))
            if len(groups) > _GROUPS:
                return
    flat = {word: all(map(_is_flat, _some(read, held))) for word, held in groups.items()}
    others = {subjects[row] for word, held in groups.items() if not flat[word] for _, row in held}
    for word in filter(flat.__getitem__, groups):
        own = {row for _, row in groups[word]}
        whom = {subjects[row] for row in own}
        if len(own) < 3 or 2 * len(whom & others) < len(whom):
            continue
        first, pattern = layout.keys[min(own)], f"*{word}*"
        only = word and all(fits(key, pattern) == (row in own) for row, key in enumerate(layout.keys))
        flag = f"--exclude '{pattern}'" if only else "--exclude with a pattern of theirs"
        layout.doubts.append(
            f"{len(own):,} {layout.unit} such as {first} have few values, and others of the same subjects many; if "
            f"they are masks or label maps, {flag} leaves them out"
        )


def _word(key: str) -> str:
    """The last word of a file's name, or of its folders where the name has none: ``laendo``."""
    return (re.findall(r"[^\W\d_]+", stem_of(key)) or [""])[-1]


def _some(read: Reading, held: list[tuple[Place, int]]) -> list[NDArray[Any]]:
    """Some of the images of a group, of all its parts."""
    found = []
    for (split, place), _ in held[:: max(len(held) // _LOOKED_AT, 1)]:
        images = read.files[split].images
        assert images is not None
        found.append(images[place][0])
    return found


def _is_flat(pixels: NDArray[Any]) -> bool:
    """Whether the two most frequent values cover a third of the bright pixels, as in a mask; of a head about a tenth.

    Bright: above a tenth of the range, without the most frequent value of all, which is the background. Not all pixels
    are asked for, since the edges of a mask that was scaled down have values in between.

    >>> _is_flat(np.array([0, 0, 0, 255, 255, 128])), _is_flat(np.arange(99))
    (True, False)
    """
    values, counts = np.unique(pixels.astype(np.int64), return_counts=True)
    bright = values > values[0] + (values[-1] - values[0]) / 10
    bright[counts.argmax()] = False
    often = np.sort(counts[bright])
    return bool(3 * often[-2:].sum() >= often.sum())
