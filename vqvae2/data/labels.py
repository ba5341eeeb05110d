"""The texts of labels as class numbers: sorted classes, or numbers binned at edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vqvae2.covariates import nearest, number_of, number_values
from vqvae2.errors import UserError

MOST_VALUES = 20  # more numbers than these are binned by quartiles
MOST_CLASSES = 1000


@dataclass
class Labels:
    """Labels (N, A) int64, -1 missing; attributes with their classes; edges of binned numbers; attributes whose classes
    are values of a number; notes."""

    values: NDArray[np.int64]
    attributes: dict[str, tuple[str, ...]]
    bins: dict[str, list[float]]
    numbers: tuple[str, ...]
    notes: list[str]


def encode(
    texts: dict[str, list[str]],
    training: NDArray[np.bool_],
    known: dict[str, Sequence[str]] | None = None,
    bins: dict[str, list[float]] | None = None,
    stated: dict[str, list[float]] | None = None,
    numbers: Sequence[str] = (),
) -> Labels:
    """Turn the texts of each attribute into class numbers.

    Numbers are kept as such where that is wanted, else binned at stated edges; without them, where there are more than
    20 different values, at the quartiles of the training images. Other classes are sorted, numbers by value.

    Args:
        texts: attribute -> N texts, missing where empty.
        training: (N,) the images whose numbers set the bins; all are used where there are none.
        known: attribute -> classes of a stored data set, to be kept.
        bins: attribute -> inner edges of a stored data set.
        stated: attribute -> inner edges that the user wants.
        numbers: attributes that stay numbers: their classes are values in even steps over those of the training images.

    Raises:
        UserError: for an attribute without any value or with too many classes.
    """
    rows = len(training)
    if known is not None:  # the stored attributes in the stored order, whatever this data tells
        texts = {name: texts.get(name, [""] * rows) for name in known}
    columns: list[NDArray[np.int64]] = []
    attributes: dict[str, tuple[str, ...]] = {}
    edges: dict[str, list[float]] = {}
    notes: list[str] = []
    for name, cells in texts.items():
        present = np.array([cell != "" for cell in cells], bool)
        found, odd = _numbers(cells, present)
        if name in numbers:
            label, classes = _as_number(name, found, odd, present, training, (known or {}).get(name), notes)
            columns.append(label)
            attributes[name] = classes
            continue
        if known is not None:
            classes, inner = tuple(known[name]), (bins or {}).get(name)
        elif not present.any():
            raise UserError("no image has a label", name, "All cells are missing, or contradict each other")
        elif name in (stated or {}):
            inner, classes = _stated(name, odd, stated[name])  # type: ignore[index]
        elif found is not None and len(np.unique(found[present])) > MOST_VALUES:
            inner, classes = _quartiles(found[present & training if (present & training).any() else present])
            notes.append(f"{name}: numbers, binned at quartiles of the training images")
        else:
            inner = None
            distinct = {cell for cell, here in zip(cells, present, strict=True) if here}
            classes = tuple(sorted(distinct, key=lambda c: (number_of(c) or 0.0 if found is not None else 0.0, c)))
            if odd and len(classes) > MOST_VALUES:
                notes.append(f"{name}: {len(classes):,} distinct values become classes, since {odd!r} is not a number")
        if len(classes) > MOST_CLASSES:
            raise UserError(f"{len(classes):,} different texts are too many classes", name, "Choose another column")
        if inner is None:
            place = {cell: k for k, cell in enumerate(classes)}
            label = np.array([place.get(cell, -1) for cell in cells], np.int64)
        elif found is None:
            label = np.full(rows, -1, np.int64)
        else:
            label = np.digitize(found, inner).astype(np.int64)
            edges[name] = inner
        label[~present] = -1
        foreign = sorted({cell for cell, k, here in zip(cells, label, present, strict=True) if here and k < 0})
        if foreign:
            notes.append(f"{name}: {', '.join(foreign[:3])} fit no stored class and count as missing")
        columns.append(label)
        attributes[name] = classes
    values = np.stack(columns, 1) if columns else np.zeros((rows, 0), np.int64)
    return Labels(values, attributes, edges, tuple(name for name in attributes if name in numbers), notes)


def untrained_notes(labels: Labels, training: NDArray[np.bool_]) -> list[str]:
    """Say which classes none of the training images has, (N,) by mask, so that models cannot learn them."""
    notes = []
    for column, (name, classes) in enumerate(labels.attributes.items()):
        learnt = set(labels.values[training, column].tolist())
        absent = [kind for k, kind in enumerate(classes) if k not in learnt and name not in labels.numbers]
        if absent:
            shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3:,} more" if len(absent) > 3 else "")
            notes.append(f"{name}: no training image is of class {shown}; models learn nothing of it")
    return notes


def _as_number(
    name: str,
    found: NDArray[np.float64] | None,
    odd: str,
    present: NDArray[np.bool_],
    training: NDArray[np.bool_],
    known: Sequence[str] | None,
    notes: list[str],
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Places of a number among its values, -1 missing, and the values; adds to the notes what lies beyond them."""
    label = np.full(len(present), -1, np.int64)
    if known is None:
        if not present.any():
            raise UserError("no image has a label", name, "All cells are missing, or contradict each other")
        if found is None:
            raise UserError("this column holds texts", f"--numbers {name}", f"One is {odd}: leave {name} out")
        own = found[present & training] if (present & training).any() else found[present]
        if own.min() == own.max():
            raise UserError(f"all training images have {own.min():g}", f"--numbers {name}", f"Leave {name} out")
        classes = number_values(own.min(), own.max())
    else:
        classes = tuple(known)
    if found is None:
        notes.append(f"{name}: {odd} is not a number, so that all count as missing")
        return label, classes
    low, high = float(classes[0]), float(classes[-1])
    beyond = found[present & ((found < low) | (found > high))]
    if beyond.size:
        notes.append(
            f"{name}: {beyond.size:,} images lie outside {low:g} to {high:g}, the range of the training images, "
            f"such as {beyond[0]:g}, and take its ends"
        )
    label[present] = nearest(classes, found[present])
    return label, classes


def _numbers(cells: list[str], present: NDArray[np.bool_]) -> tuple[NDArray[np.float64] | None, str]:
    """The cells as numbers, nan where missing, and ""; or None and the first cell that is none."""
    values = [number_of(cell) if here else np.nan for cell, here in zip(cells, present, strict=True)]
    odd = next((cell for cell, value in zip(cells, values, strict=True) if value is None), "")
    return (None, odd) if odd else (np.array(values, np.float64), "")


def _stated(name: str, odd: str, inner: list[float]) -> tuple[list[float], tuple[str, ...]]:
    """Stated edges, and classes named by them: below the first, between two, from the last on."""
    if odd:
        raise UserError("only numbers can be binned", f"--bins {name}", f"This column holds other texts, such as {odd}")
    between = tuple(f"{low:g}-{high:g}" for low, high in pairwise(inner))
    return inner, (f"<{inner[0]:g}", *between, f">={inner[-1]:g}")


def _quartiles(values: NDArray[np.float64]) -> tuple[list[float], tuple[str, ...]]:
    """Inner edges at the quartiles, and classes named by their edges; every bin includes its lower edge."""
    inner = sorted({float(f"{edge:.4g}") for edge in np.quantile(values, (0.25, 0.5, 0.75))})
    inner = [edge for edge in inner if edge > values.min()]
    ends = [values.min(), *inner, values.max()]
    return inner, tuple(f"{low:.4g}-{high:.4g}" for low, high in pairwise(ends))
