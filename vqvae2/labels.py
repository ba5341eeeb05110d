"""The labels of samples: those that were asked for, the others as training images have them.

Shapes: A label attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vqvae2.covariates import nearest, number_of
from vqvae2.errors import UserError

__all__ = ["draw_labels", "label_rows"]

_LEAST = 8  # training images whose labels are drawn for a number


def label_rows(
    attributes: Sequence[tuple[str, Sequence[str]]],
    label: Tensor | Mapping[str, str] | None,
    num: int,
    numbers: Sequence[str] = (),
) -> Tensor:
    """Turn what was asked for into class indices.

    Args:
        attributes: name and class names of each attribute, in order.
        label: (num, A) or (A,) indices, class names by attribute, or None. Of a number the nearest value is taken.
        num: rows.
        numbers: the attributes that are numbers.

    Returns:
        (num, A) int64, -1 missing.

    Raises:
        UserError: an attribute or a class that does not exist, or a number outside the training images' range.
        ValueError: a tensor of another shape, or with a class that does not exist.
    """
    if isinstance(label, Tensor):
        rows = label.expand(num, -1) if label.ndim == 1 else label
        if tuple(rows.shape) != (num, len(attributes)):
            raise ValueError(f"label must be ({num}, {len(attributes)}), got {tuple(label.shape)}")
        for (name, names), column in zip(attributes, rows.T, strict=True):
            if ((column < -1) | (column >= len(names))).any():
                raise ValueError(f"label must be -1 to {len(names) - 1} for {name}, got {column.tolist()}")
        return rows.long()
    rows = torch.full((num, len(attributes)), -1)
    classes = {name: list(names) for name, names in attributes}
    for name, value in (label or {}).items():
        if name not in classes:
            known = ", ".join(classes) or "none: the codes have no labels"
            raise UserError(f"there is no attribute {name}", f"label {name}={value}", f"Attributes are {known}")
        if name in numbers:
            rows[:, list(classes).index(name)] = _place_of(name, value, classes[name])
            continue
        if value not in classes[name]:
            raise UserError(
                f"{name} has no class {value}",
                f"label {name}={value}",
                f"Classes are {', '.join(classes[name])}",
            )
        rows[:, list(classes).index(name)] = classes[name].index(value)
    return rows


def _place_of(name: str, value: str, values: Sequence[str]) -> int:
    """The place of a number among the values of an attribute."""
    number = number_of(str(value))
    if number is None or not float(values[0]) <= number <= float(values[-1]):
        what = "is not a number" if number is None else "is outside the training images' range"
        raise UserError(f"{name} {value} {what}", f"label {name}={value}", f"Give {values[0]} to {values[-1]}")
    return int(nearest(values, number))


def draw_labels(wanted: Tensor, known: Tensor, seed: int, numbers: Sequence[int] = ()) -> Tensor:
    """Fill in the attributes that were not asked for as the training images have them together.

    Each row takes the labels of a training image, drawn at random from those with all the classes asked for, and of
    these from the tenth (8 at least) that is nearest to the numbers asked for. So samples without a label follow the
    training set's labels, rather than those of images whose labels are missing. The first rows of a longer draw are the
    same.

    Args:
        wanted: (num, A) classes asked for, -1 for any; the same in every row.
        known: (N, A) labels of the training images, -1 missing.
        seed: of the draws, >= 0.
        numbers: the columns that are numbers.

    Returns:
        (num, A) int64; ``wanted`` where no training image has all the classes asked for.

    Example:
        >>> draw_labels(torch.tensor([[1, -1]]), torch.tensor([[0, 0], [1, 2]]), seed=0)
        tensor([[1, 2]])
    """
    asked = wanted[0] if len(wanted) else wanted.new_empty(wanted.shape[1])
    near = torch.tensor([column in numbers for column in range(len(asked))], dtype=torch.bool)
    fitting = known[((known == asked) | (asked < 0) | (near & (known >= 0))).all(1)]
    if not len(fitting):
        return wanted
    distance = ((fitting - asked).abs() * (near & (asked >= 0))).sum(1)
    most = distance.sort().values[min(len(fitting), max(_LEAST, len(fitting) // 10)) - 1]
    fitting = fitting[distance <= most]
    uniform = torch.from_numpy(np.random.default_rng(seed).random(len(wanted)))
    drawn = fitting[(uniform * len(fitting)).long()].long()
    return torch.where(asked >= 0, asked, drawn)
