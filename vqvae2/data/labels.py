"""Labels and subjects from tables: who has which sex, age, diagnosis."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.subjects import known_subject
from vqvae2.errors import UserError

FILE_COLUMNS = ("file", "filename", "path", "image")
SUBJECT_COLUMNS = ("subject", "subject_id", "subject id", "participant", "participant_id", "patient", "patient_id")
ROW_COLUMNS = ("id", "ptid")  # name subjects where no column names files: beside one, they may count its rows
MOST_VALUES = 20  # more numbers than these are binned by quartiles
MOST_CLASSES = 1000
_MISSING = {"", "n/a", "na", "nan", "null"}
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")

Row = dict[str, str]


def is_missing(cell: str) -> bool:
    """Tell whether a table's cell says nothing."""
    return cell.lower() in _MISSING


@dataclass
class Matches:
    """The rows of a table that belong to images.

    Attributes:
        rows: of each image; None: there is none.
        what: "files" or "subjects", of which a row tells.
        absent: how many of those that the table names are not there.
        conflicts: column -> the files or subjects whose rows contradict each other; their cell is empty in ``rows``.
    """

    rows: list[Row | None]
    what: str
    absent: int
    conflicts: dict[str, list[str]]


@dataclass
class Table:
    """The rows of a CSV or TSV file with the column that names the images."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    file_column: str | None  # None: the rows are of subjects
    subject_column: str | None = None

    def match(self, keys: Sequence[str], subjects: Sequence[str], people: bool = False) -> Matches:
        """Find the row of each image.

        In a table of files it is the one with its path, or, where no row has just that, the only one whose path ends
        alike, or has its name where that is the name of one image alone, if that fits no other image. In a table of
        subjects it is that of the image's subject; a prefix ``sub-`` and what follows a cohort's own identifier do not
        matter.

        Args:
            keys: relative paths of the images.
            subjects: whom they show.
            people: go by the subject where the table has both.
        """
        if self.subject_column is not None and (people or self.file_column is None):
            merged, conflicts = self._merged(self.subject_column, _person)
            names = [_person(subject) for subject in subjects]
            what = "subjects"
        else:
            assert self.file_column is not None
            merged, conflicts = self._merged(self.file_column, _clean)
            names, what = _files(keys, merged), "files"
        rows = [merged.get(name) for name in names]
        return Matches(rows, what, len(merged.keys() - set(names)), conflicts)

    def _merged(self, column: str, name_of: Callable[[str], str]) -> tuple[dict[str, Row], dict[str, list[str]]]:
        """One row for each name in a column; cells of which its rows say different things are empty, and named."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if not is_missing(row[column]):
                groups.setdefault(name_of(row[column]), []).append(row)
        merged: dict[str, Row] = {}
        conflicts: dict[str, list[str]] = {}
        for name, rows in groups.items():
            merged[name] = dict(rows[0])
            for cell in self.columns if len(rows) > 1 else ():
                told = {row[cell] for row in rows if not is_missing(row[cell])}
                merged[name][cell] = told.pop() if len(told) == 1 else ""
                if told and not merged[name][cell]:
                    conflicts.setdefault(cell, []).append(name)
        return merged, conflicts


def _person(name: str) -> str:
    return (known_subject(name) or name).removeprefix("sub-")


def _files(keys: Sequence[str], rows: dict[str, Row]) -> list[str]:
    """The table's path for each image, "" for none."""
    ends: dict[str, list[str]] = {}  # every end of a path -> the paths that end so
    for path in rows:
        for end in _ends(path):
            ends.setdefault(end, []).append(path)
    names = Counter(key.rsplit("/", 1)[-1] for key in keys)
    found = []
    for key in keys:
        if key in rows:
            found.append(key)
            continue
        alike = ends.get(key, []) + [end for end in _ends(key) if end in rows]
        name = key.rsplit("/", 1)[-1]
        if not alike and names[name] == 1:
            alike = ends.get(name, [])
        found.append(alike[0] if len(alike) == 1 else "")
    fits = Counter(found)
    return [path if path == key or fits[path] == 1 else "" for path, key in zip(found, keys, strict=True)]


def _ends(path: str) -> list[str]:
    """What a path ends with, from its name to all but its first folder."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


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
    wanted = SUBJECT_COLUMNS if file_column else SUBJECT_COLUMNS + ROW_COLUMNS
    subject_column = next((name for name in columns if name.lower() in wanted), None)
    if file_column is None and subject_column is None:
        told = ", ".join(columns) or "none"
        raise UserError(
            f"no column names the images or the subjects (columns: {told})",
            path,
            "Add a column `file` with relative paths, or `subject`",
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
        present = np.array([not is_missing(cell) for cell in cells], bool)
        numbers, odd = _numbers(cells, present)
        if known is not None:
            classes, inner = tuple(known[name]), (bins or {}).get(name)
        elif not present.any():
            raise UserError("no image has a label", name, "All cells are missing, or contradict each other")
        elif name in (stated or {}):
            inner, classes = _stated(name, odd, stated[name])  # type: ignore[index]
            if numbers is not None and inner[0] > 0 and (below := numbers[present & (numbers < 0)]).size:
                notes.append(f"{name}: {below.size:,} images have a number below zero, such as {below[0]:g}")
        elif numbers is not None and len(np.unique(numbers[present])) > MOST_VALUES:
            inner, classes = _quartiles(numbers[present & training if (present & training).any() else present])
            notes.append(f"{name}: numbers, binned at quartiles of the training images")
        else:
            inner = None
            distinct = {cell for cell, here in zip(cells, present, strict=True) if here}
            classes = tuple(sorted(distinct, key=lambda c: (_number(c) or 0.0 if numbers is not None else 0.0, c)))
            if odd and len(classes) > MOST_VALUES:
                notes.append(f"{name}: {len(classes):,} different texts are {len(classes):,} classes; no number: {odd}")
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


def _number(cell: str) -> float | None:
    """A cell as a finite number, ``89+`` (as BIDS writes ages above 89) and a decimal comma understood; None: none."""
    text = cell.removesuffix("+").strip()
    try:
        value = float(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _numbers(cells: list[str], present: NDArray[np.bool_]) -> tuple[NDArray[np.float64] | None, str]:
    """The cells as numbers, nan where missing, and ""; or None and the first cell that is none."""
    values = [_number(cell) if here else np.nan for cell, here in zip(cells, present, strict=True)]
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
