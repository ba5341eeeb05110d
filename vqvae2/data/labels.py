"""Labels and subjects from tables: who has which sex, age, diagnosis."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqvae2.errors import UserError

MISSING = {"", "n/a", "na", "nan", "null"}
FILE_COLUMNS = ("file", "filename", "path", "image")
SUBJECT_COLUMNS = ("subject", "participant_id", "subject_id")
MOST_VALUES = 20  # more numbers than these are binned by quartiles
MOST_CLASSES = 1000


@dataclass
class Table:
    """The rows of a CSV or TSV file with the column that names the images."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    file_column: str | None  # None: the rows are of subjects
    subject_column: str | None = None

    def match(self, keys: Sequence[str], subjects: Sequence[str]) -> list[dict[str, str] | None]:
        """The row of each image by its relative path, else by its name if just one row has it, else None.

        In a table of subjects the row is that of the image's subject.
        """
        if self.file_column is None:
            assert self.subject_column is not None
            by_subject = {row[self.subject_column]: row for row in self.rows}
            return [by_subject.get(subject) for subject in subjects]
        by_path = {_clean(row[self.file_column]): row for row in self.rows}
        by_name: dict[str, list[dict[str, str]]] = {}
        for path, row in by_path.items():
            by_name.setdefault(path.rsplit("/", 1)[-1], []).append(row)
        matched: list[dict[str, str] | None] = []
        for key in keys:
            named = by_name.get(key.rsplit("/", 1)[-1], [])
            matched.append(by_path.get(key) or (named[0] if len(named) == 1 else None))
        return matched


@dataclass
class Labels:
    """Labels (N, A) int64, -1 missing; attributes with their classes; edges of binned numbers; notes."""

    values: NDArray[np.int64]
    attributes: dict[str, tuple[str, ...]]
    bins: dict[str, list[float]]
    notes: list[str]


def _clean(path: str) -> str:
    return path.strip().replace("\\", "/").removeprefix("./")


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file that has a column of file names; raises UserError where it cannot be used."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"the table of labels cannot be read ({error.strerror})", path) from None
    except UnicodeDecodeError:
        raise UserError("the table of labels is not UTF-8 text", path, "Save it as CSV in UTF-8") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=head.count)
    try:
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, restval="", restkey="")
        rows = [{(name or "").strip(): str(cell or "").strip() for name, cell in row.items()} for row in reader]
    except csv.Error as error:
        raise UserError(f"the table of labels cannot be understood ({error})", path) from None
    columns = tuple((name or "").strip() for name in reader.fieldnames or ())
    file_column = next((name for name in columns if name.lower() in FILE_COLUMNS), None)
    subject_column = next((name for name in columns if name.lower() in SUBJECT_COLUMNS), None)
    if file_column is None and subject_column is None:
        told = ", ".join(columns) or "none"
        raise UserError(
            f"no column names the images (columns: {told})", path, "Add a column `file` with relative paths"
        )
    return Table(path, columns, rows, file_column, subject_column)


def parse_labels(text: str, folder: Path) -> tuple[Table, tuple[str, ...]]:
    """Read FILE:COLUMN[,COLUMN], FILE relative to here or to the data; raises UserError if that fails."""
    name, colon, listed = text.rpartition(":")
    columns = tuple(column.strip() for column in listed.split(",") if column.strip())
    if not colon or not name or not columns:
        raise UserError(f"--labels {text} names no columns", how="Give FILE.csv:COLUMN[,COLUMN]")
    path = Path(name) if Path(name).exists() else folder / name
    if not path.is_file():
        raise UserError("there is no such table of labels", name, "Give --labels FILE.csv:COLUMN[,COLUMN]")
    table = read_table(path)
    absent = [column for column in columns if column not in table.columns]
    if absent:
        raise UserError(
            f"no column {', '.join(absent)} in the table of labels",
            path,
            f"It has: {', '.join(table.columns)}",
        )
    return table, columns


def encode(
    texts: dict[str, list[str]],
    training: NDArray[np.bool_],
    known: dict[str, Sequence[str]] | None = None,
    bins: dict[str, list[float]] | None = None,
    stated: dict[str, list[float]] | None = None,
) -> Labels:
    """Turn the texts of each attribute into class numbers.

    Numbers are binned at stated edges; without them, where there are more than 20 different values, at the quartiles of
    the training images. Other classes are sorted, numbers by value.

    Args:
        texts: attribute -> N texts, missing where empty, "n/a", "na", "nan" or "null".
        training: (N,) the images whose numbers set the bins; all are used where there are none.
        known: attribute -> classes of a stored data set, to be kept.
        bins: attribute -> inner edges of a stored data set.
        stated: attribute -> inner edges that the user wants.

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
        present = np.array([cell.lower() not in MISSING for cell in cells], bool)
        numbers = _numbers(cells, present)
        if known is not None:
            classes, inner = tuple(known[name]), (bins or {}).get(name)
        elif not present.any():
            raise UserError("no image has a label", name, "The table's column `file` must name the images")
        elif name in (stated or {}):
            inner, classes = _stated(name, numbers, stated[name])  # type: ignore[index]
        elif numbers is not None and len(np.unique(numbers[present])) > MOST_VALUES:
            inner, classes = _quartiles(numbers[present & training if (present & training).any() else present])
            notes.append(f"{name}: numbers, binned at quartiles of the training images")
        else:
            inner = None
            distinct = {cell for cell, here in zip(cells, present, strict=True) if here}
            classes = tuple(sorted(distinct, key=lambda c: (float(c) if numbers is not None else 0.0, c)))
        if len(classes) > MOST_CLASSES:
            raise UserError(f"{len(classes):,} different texts are no classes", name, "Choose another column")
        if inner is None:
            place = {cell: k for k, cell in enumerate(classes)}
            label = np.array([place.get(cell, -1) for cell in cells], np.int64)
        elif numbers is None:
            label = np.full(rows, -1, np.int64)
        else:
            label = np.digitize(numbers, inner).astype(np.int64)
            edges[name] = inner
        label[~present] = -1
        foreign = sorted({cell for cell, k, here in zip(cells, label, present, strict=True) if here and k < 0})
        if foreign:
            notes.append(f"{name}: {', '.join(foreign[:3])} fit no stored class and count as missing")
        columns.append(label)
        attributes[name] = classes
    values = np.stack(columns, 1) if columns else np.zeros((rows, 0), np.int64)
    return Labels(values, attributes, edges, notes)


def _numbers(cells: list[str], present: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """The cells as numbers, nan where missing; None when one is no finite number."""
    try:
        values = np.array([float(cell) if here else np.nan for cell, here in zip(cells, present, strict=True)])
    except ValueError:
        return None
    return values if np.isfinite(values[present]).all() else None


def _stated(name: str, numbers: NDArray[np.float64] | None, inner: list[float]) -> tuple[list[float], tuple[str, ...]]:
    """Stated edges, and classes named by them: below the first, between two, from the last on."""
    if numbers is None:
        raise UserError("only numbers can be binned", f"--bins {name}", "This column holds other texts")
    between = tuple(f"{low:g}-{high:g}" for low, high in pairwise(inner))
    return inner, (f"<{inner[0]:g}", *between, f">={inner[-1]:g}")


def _quartiles(values: NDArray[np.float64]) -> tuple[list[float], tuple[str, ...]]:
    """Inner edges at the quartiles, and classes named by their edges; every bin includes its lower edge."""
    inner = sorted({float(f"{edge:.4g}") for edge in np.quantile(values, (0.25, 0.5, 0.75))})
    inner = [edge for edge in inner if edge > values.min()]
    ends = [values.min(), *inner, values.max()]
    return inner, tuple(f"{low:.4g}-{high:.4g}" for low, high in pairwise(ends))
