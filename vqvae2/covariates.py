"""Labels that are numbers, such as an age: values in even steps, which take the place of classes.

Codes, stores and priors know a label as the place of a class in a list. A number is the place of the nearest value.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["nearest", "number_of", "number_values"]

_MOST = 1000  # steps
_DICOM_AGE = re.compile(r"(\d{3})([YMWD])")
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def number_of(cell: str) -> float | None:
    """A text as a finite number; None: it is none.

    ``89+``, as BIDS writes ages above 89, a decimal comma, and an age of DICOM, ``061Y``, in years, are understood.
    """
    text = cell.removesuffix("+").strip()
    if age := _DICOM_AGE.fullmatch(text):
        return int(age[1]) * _YEARS[age[2]]
    try:
        value = float(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def number_values(low: float, high: float) -> tuple[str, ...]:
    """Return the values from ``low`` to ``high`` as texts, in at most 1000 steps of 1, 2 or 5 times a power of ten.

    Example:
        >>> values = number_values(20.17, 79.4)
        >>> values[:3], values[-1]
        (('20.1', '20.2', '20.3'), '79.4')
    """
    exponent = math.floor(math.log10((high - low) / _MOST))
    for factor in (1, 2, 5, 10):
        unit = factor * 10.0**exponent
        first, last = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
        if last - first <= _MOST:
            break
    texts = (f"{round(k * unit, -exponent) + 0.0:.{max(0, -exponent)}f}" for k in range(first, last + 1))
    return tuple(text.rstrip("0").removesuffix(".") if "." in text else text for text in texts)


def nearest(values: Sequence[str], wanted: ArrayLike) -> NDArray[np.int64]:
    """Return the place of the value that is nearest to each number; those beyond the ends take the ends.

    Args:
        values: as `number_values` returns them, N of them.
        wanted: numbers, any shape.

    Returns:
        int64 in [0, N), of the shape of ``wanted``.
    """
    low, high = float(values[0]), float(values[-1])
    share = (np.asarray(wanted, np.float64) - low) / (high - low)
    return np.rint(share.clip(0, 1) * (len(values) - 1)).astype(np.int64)
