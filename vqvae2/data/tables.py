"""Tables of people or images, and which of their rows belongs to which image."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vqvae2.data import rules
from vqvae2.data.decoding import no_content
from vqvae2.data.labels import number_of
from vqvae2.data.subjects import known_subject, patients_of, pseudonym, stem_of, visit_in, visit_of
from vqvae2.errors import UserError

Row = dict[str, str]
_NOT_YET = re.compile(r"sep=.\s*\n|#[^\n,;\t]*\n", re.IGNORECASE)  # lines before the header
_SESSIONS = "sub-*/sub-*_sessions.tsv"
_OWN = "participant_id"  # of a table of sessions, which its name tells


@dataclass
class Matches:
    """The rows of a table that belong to images.

    Attributes:
        rows: of each image; None: there is none.
        what: "files" or "subjects", of which a row tells.
        absent: how many of those that the table names are not there.
        conflicts: column -> the files or subjects whose rows contradict each other; their cell is empty in ``rows``.
        loose: how subjects were found whose name is not just that of the table; "" for none.
        by_visit: images whose row is that of their visit.
    """

    rows: list[Row | None]
    what: str
    absent: int
    conflicts: dict[str, list[str]]
    loose: str = ""
    by_visit: int = 0


@dataclass
class Table:
    """The rows of a CSV or TSV file with the columns that name the images, the people and the visits.

    Cells that say nothing are empty (see `rules.MISSING`); ``notes`` tells of them and of rows of a wrong length.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    file_column: str | None  # None: the rows are of subjects
    subject_columns: tuple[str, ...] = ()  # candidates; that which finds most people is taken
    visit_column: str | None = None
    notes: list[str] = field(default_factory=list)
    blanks: dict[str, Counter[str]] = field(default_factory=dict)  # column -> the cells that say nothing
    of_files: bool = False  # whether the column of files is called so, and no ``image_id``
    image_ids: str | None = None  # column of identifiers that stand in the names of the files

    def match(self, keys: Sequence[str], subjects: Sequence[str], people: bool = False) -> Matches:
        """Find the row of each image.

        In a table of files, if one of them is there, it is the one with its path, or, where no row has just that, the
        only one whose path ends alike, or has its name, with or without a suffix, where that is the name of one image
        alone, if that fits no other image. In a table of subjects it is that of the image's subject (see `join`) and
        visit; where no row has the visit, or no row of a visit has a column (``sex``), what all rows of the subject
        agree on. What another visit's row says is not taken.

        Args:
            keys: relative paths of the images, or of the volumes that they were cut from.
            subjects: whom they show.
            people: go by the subject where the table has both.
        """
        if self.image_ids is not None and (found_ids := self._match_ids(keys, self.image_ids)):
            return found_ids
        if self.subject_columns and (people or self.file_column is None):
            return self._match_people(keys, subjects)
        assert self.file_column is not None
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row[self.file_column]:
                groups[_clean(row[self.file_column])].append(row)
        merged, conflicts = self._merged(groups)
        files = list(dict.fromkeys(keys))  # of a volume all slices have one
        found = dict(zip(files, _files(files, merged), strict=True))
        names = [found[key] for key in keys]
        if self.subject_columns and 2 * sum(map(bool, names)) < len(names) and not self.of_files:
            # Numbers of images, by which few files are called.
            return self._match_people(keys, subjects)
        return Matches([merged.get(name) for name in names], "files", len(merged.keys() - set(names)), conflicts)

    def _match_ids(self, keys: Sequence[str], column: str) -> Matches | None:
        """Find the row whose identifier is a part of an image's path; None unless most images have one."""
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            groups[row[column]].append(row)
        merged, conflicts = self._merged(groups)
        named = [[part for part in re.split(r"[/_\-. ]+", key) if part in merged] for key in keys]
        names = [parts[-1] if len(set(parts)) == 1 else "" for parts in named]
        if 2 * sum(map(bool, names)) < len(names):
            return None
        return Matches([merged.get(name) for name in names], "files", len(merged.keys() - set(names)), conflicts)

    def _match_people(self, keys: Sequence[str], subjects: Sequence[str]) -> Matches:
        everybody = list(dict.fromkeys(subjects))
        joined = {
            column: join(list(dict.fromkeys(row[column] for row in self.rows if row[column])), everybody)
            for column in self.subject_columns
        }

        def fit(name: str) -> tuple[int, int]:
            """How many people a column names, and how many of them to the letter."""
            found = joined[name][0]
            return len(set(found.values())), sum(cell == who for cell, who in found.items())

        column = max(self.subject_columns, key=fit)
        found, loose = joined[column]
        groups: dict[str, list[Row]] = defaultdict(list)
        visits: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if subject := found.get(row[column]):
                groups[subject].append(row)
                stated = visit_in(row[self.visit_column]) if self.visit_column else ""
                if visit := stated or visit_of(row[column]):
                    visits[f"{subject} at visit {visit}"].append(row)
        agreed, conflicts = self._merged(groups)
        exact, at_visit = self._merged(visits)
        of_visits = {name for name in self.columns if any(row[name] for rows in visits.values() for row in rows)}
        rows: list[Row | None] = []
        by_visit = 0
        solved: dict[str, set[str]] = defaultdict(set)
        for key, subject in zip(keys, subjects, strict=True):
            best, own = agreed.get(subject), exact.get(f"{subject} at visit {visit_of(key)}")
            if best and own:
                by_visit += 1
                best = {name: own[name] if name in of_visits else cell for name, cell in best.items()}
                for name in own:
                    if own[name]:
                        solved[name].add(subject)
            rows.append(best)
        for name, whose in conflicts.items():
            conflicts[name] = [who for who in whose if who not in solved[name]]
        for name, whose in at_visit.items():
            conflicts[name] = conflicts.get(name, []) + whose
        absent = len({row[column] for row in self.rows if row[column]} - found.keys())
        return Matches(
            rows, "subjects", absent, {name: whose for name, whose in conflicts.items() if whose}, loose, by_visit
        )

    def _merged(self, groups: dict[str, list[Row]]) -> tuple[dict[str, Row], dict[str, list[str]]]:
        """One row for each name; cells of which its rows say different things are empty, and named."""
        merged: dict[str, Row] = {}
        conflicts: dict[str, list[str]] = {}
        for name, rows in groups.items():
            merged[name] = dict(rows[0])
            for cell in self.columns if len(rows) > 1 else ():
                told = {row[cell] for row in rows if row[cell]}
                merged[name][cell] = told.pop() if len(told) == 1 else ""
                if told and not merged[name][cell]:
                    conflicts.setdefault(cell, []).append(name)
        return merged, conflicts


def join(ids: Sequence[str], subjects: Sequence[str]) -> tuple[dict[str, str], str]:
    """Find the subject of each of a table's names.

    In this order: the same name, but for ``sub-`` and what follows a cohort's own identifier; the pseudonym of a DICOM
    patient; the same letters, in any case, and numbers; a bare number that is a number of the subject's name, always at
    the same place (12 for ``IXI012-HH-1211``). Each only where it leads to one subject from one name.

    Returns:
        ``(subject by name, how the names were found that are not the same)``.

    >>> join(["1", "02"], ["sub-001", "sub-002"])[0]
    {'1': 'sub-001', '02': 'sub-002'}
    """
    found = _unique({name: _person(name) for name in ids}, {who: _person(who) for who in subjects}, several=True)
    if any(who.startswith("patient-") for who in subjects):
        theirs = {name: pseudonym(patient) for name, patient in patients_of(ids).items()}
        found |= _unique(theirs, {who: who for who in subjects}, several=True)
    exact = len(found)
    rest = [name for name in ids if name not in found]
    left = [who for who in subjects if who not in set(found.values())]
    found |= _unique({name: _plain(name) for name in rest}, {who: _plain(who) for who in left})
    rest = [name for name in rest if name not in found and _person(name).isdecimal()]
    left = [who for who in left if who not in set(found.values())]
    numbers = {who: [str(int(number)) for number in re.findall(r"\d+", who)] for who in left}
    tried = []
    for place in range(-3, 3):
        at_place = {who: all_of[place] for who, all_of in numbers.items() if -len(all_of) <= place < len(all_of)}
        tried.append(_unique({name: str(int(_person(name))) for name in rest}, at_place))
    best = max(tried, key=len)
    if all(one == best for one in tried if len(one) == len(best)):
        found |= best
    loose = [(name, who) for name, who in list(found.items())[exact:]]
    told = (
        f"{len(loose):,} matched by number or ignoring case, such as {loose[0][0]} for {loose[0][1]}" if loose else ""
    )
    return found, told


def _unique(names: dict[str, str], subjects: dict[str, str], several: bool = False) -> dict[str, str]:
    """Join names to subjects with equal values, if one subject has the value and (unless ``several``) one name."""
    holders = Counter(subjects.values())
    users = Counter(names.values())
    whose = {value: who for who, value in subjects.items() if holders[value] == 1}
    return {name: whose[value] for name, value in names.items() if value in whose and (several or users[value] == 1)}


def _person(name: str) -> str:
    whole = re.sub(r"^(\d+)\.0+$", r"\1", name)  # as a table with gaps is saved
    return re.sub(r"^sub(?:[-_ ]|(?=\d))", "", known_subject(whole) or whole, flags=re.IGNORECASE)


def _plain(name: str) -> str:
    """Letters in one case and numbers without zeros, with single gaps between: ``P01`` and ``p-1`` are equal."""
    joined = re.sub(r"(?<=[^\W\d_])[\W_]+(?=[^\W\d_])", "", _person(name).lower())  # NDAR_INV1 is NDARINV1
    parts = re.findall(r"\d+|[^\W\d_]+", joined)
    return " ".join(str(int(part)) if part.isdecimal() else part for part in parts)


def _clean(path: str) -> str:
    return path.strip().replace("\\", "/").removeprefix("./")


def _files(keys: Sequence[str], rows: dict[str, Row]) -> list[str]:
    """The table's path for each image, "" for none."""
    ends: dict[str, list[str]] = {}  # every end of a path -> the paths that end so
    stems: dict[str, list[str]] = {}  # a name without its suffix -> the paths of it
    for path in rows:
        stems.setdefault(stem_of(path.rsplit("/", 1)[-1]), []).append(path)
        for end in _ends(path):
            ends.setdefault(end, []).append(path)
    names = Counter(key.rsplit("/", 1)[-1] for key in keys)
    alone = Counter(stem_of(key.rsplit("/", 1)[-1]) for key in keys)
    found = []
    for key in keys:
        if key in rows:
            found.append(key)
            continue
        alike = ends.get(key, []) + [end for end in _ends(key) if end in rows]
        name = key.rsplit("/", 1)[-1]
        if not alike and names[name] == 1:
            alike = ends.get(name, [])
        if not alike and alone[stem := stem_of(name)] == 1:
            alike = stems.get(stem, [])
        found.append(alike[0] if len(alike) == 1 else "")
    fits = Counter(found)
    return [path if path == key or fits[path] == 1 else "" for path, key in zip(found, keys, strict=True)]


def _ends(path: str) -> list[str]:
    """What a path ends with, from its name to all but its first folder."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


def read_table(path: Path, missing: Sequence[str] = ()) -> Table:
    """Read a CSV or TSV file that names images or people.

    Args:
        path: of the file.
        missing: cells of labels that say nothing, besides those of `rules.MISSING`.

    Raises:
        UserError: it cannot be used.
    """
    columns, rows, notes = _read_rows(path)
    folded = {name: re.sub(r"\s+", " ", name.lower()) for name in columns}
    file_column = next((name for name in columns if folded[name] in rules.FILE_COLUMNS), None)
    people = [name for name in columns if rules.SUBJECT_COLUMNS.fullmatch(folded[name])]
    if file_column is None:
        other = next((name for name in columns if rules.OTHER_FILE_COLUMNS.fullmatch(folded[name])), None)
        file_column = other if other and (not people or _are_of_images(rows, other, people)) else None
    if not people and file_column is not None:
        people = [name for name in columns if rules.LESION_COLUMNS.fullmatch(folded[name])]
    of_files = file_column is not None and folded[file_column] in rules.FILE_COLUMNS
    if file_column is None or (people and not of_files):
        known = (*people, file_column)
        people += [name for name in columns if rules.ID_COLUMNS.fullmatch(folded[name]) and name not in known]
    ids = [name for name in columns if rules.IMAGE_ID_COLUMNS.fullmatch(folded[name])]
    image_ids = next((name for name in ids if all(rules.IMAGE_ID.fullmatch(row[name]) for row in rows)), None)
    if image_ids is not None:
        people = [name for name in people if name != image_ids]
        if not people:
            file_column = file_column or image_ids
        elif file_column == image_ids:
            file_column = None
    visits = [name for name in columns if rules.VISIT_COLUMNS.fullmatch(folded[name])]
    visits.sort(key=lambda name: folded[name] in rules.OTHER_OR_VISIT)
    dates = [name for name in columns if rules.DATE_COLUMNS.fullmatch(folded[name])]
    whom = [name for name in people if rules.PEOPLE_COLUMNS.fullmatch(folded[name])]  # no site_id
    visit_column = next(
        (name for name in visits if folded[name] not in rules.OTHER_OR_VISIT or _tells_visits(rows, name, people)),
        next((name for name in dates if _differ_for_one(rows, name, whom)), None),
    )
    people = [name for name in people if name != visit_column]
    if not people and path.name.endswith("_sessions.tsv") and (who := known_subject(path.name)):
        columns, people = (_OWN, *columns), [_OWN]
        rows = [{_OWN: who, **row} for row in rows]
    if file_column is None and not people:
        told = ", ".join(columns) or "none"
        raise UserError(
            f"no column names the images or the subjects (columns: {told})",
            path,
            "Add a column `file` with relative paths, or `subject`",
        )
    table = Table(path, columns, rows, file_column, tuple(people), visit_column, notes, of_files=of_files)
    table.image_ids = image_ids
    names = {file_column, visit_column, image_ids, *people}
    for column in columns:
        table.blanks[column] = _blank(rows, column, () if column in names else missing)
    return table


def _are_of_images(rows: Sequence[Row], files: str, people: Sequence[str]) -> bool:
    """Whether each row has a name of its own in a column, and several are of one person: ``image_name``, ISIC 2020."""
    names = [row[files] for row in rows]
    several = any(len({row[column] for row in rows}) < len(rows) for column in people)
    return all(names) and len(set(names)) == len(names) and several


def _tells_visits(rows: Sequence[Row], column: str, people: Sequence[str]) -> bool:
    """Whether a column's cells are visits: words (``ses-01``), or numbers that differ between one person's rows."""
    told = {row[column] for row in rows if row[column].lower() not in rules.MISSING}
    return any(re.search(r"[A-Za-z]", cell) for cell in told) or _differ_for_one(rows, column, people)


def _differ_for_one(rows: Sequence[Row], column: str, people: Sequence[str]) -> bool:
    """Whether a column's cells that tell something differ between the rows of one person."""
    told = [row for row in rows if row[column].lower() not in rules.MISSING]
    pairs = ({(row[name], row[column]) for row in told if row[name]} for name in people)
    return any(len(pair) > len({who for who, _ in pair}) for pair in pairs)


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[Row], list[str]]:
    """The columns and rows of a table, and a note on rows that are longer or shorter, which are left out."""
    if reason := no_content(path):
        raise UserError(f"the table of labels cannot be read ({reason})", path)
    try:
        with open(path, "rb") as file:
            if file.read(4) in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
                raise UserError("the table of labels is a workbook", path, "Save its sheet as CSV")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"the table of labels cannot be read ({error.strerror})", path) from None
    except UnicodeDecodeError:
        raise UserError("the table of labels is not UTF-8 text", path, "Save it as CSV in UTF-8") from None
    while _NOT_YET.match(text) and re.search(r"[,;\t]", text.partition("\n")[2]):
        text = text.partition("\n")[2]
    head = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
    delimiter = max("\t,;", key=head.count)
    try:
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise UserError(f"the table of labels cannot be understood ({error})", path) from None
    columns = tuple(lines[0][1]) if lines else ()
    while columns and not columns[-1]:  # a delimiter at the line's end
        columns = columns[:-1]
    rows, odd = [], []
    for number, cells in lines[1:]:
        if len(cells) < len(columns) or any(cells[len(columns) :]):
            odd.append(f"line {number} ({delimiter.join(cells)[:40]!r}, {len(cells)} cells)")
        else:
            rows.append(dict(zip(columns, cells, strict=False)))
    notes = []
    if odd:
        shown = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        notes.append(
            f"{path.name}: {len(odd):,} rows do not have {len(columns)} cells: {shown}; they are left out, "
            "and their labels count as missing"
        )
    return columns, rows, notes


def _blank(rows: list[Row], column: str, missing: Sequence[str]) -> Counter[str]:
    """Empty the cells of a column that say nothing, and count them by what they held."""
    stated = {*missing, *(number for cell in missing if (number := number_of(cell)) is not None)}
    negative = any(
        (value := number_of(row[column])) is not None and value < 0 and row[column] not in rules.MISSING_NUMBERS
        for row in rows
    )
    said: Counter[str] = Counter()
    for row in rows:
        cell = row[column]
        usual = cell.lower() in rules.MISSING or (cell in rules.MISSING_NUMBERS and not negative)
        if cell and (usual or (stated and (cell in stated or number_of(cell) in stated))):
            said[cell] += 1
            row[column] = ""
    return said


def codes_for_missing(cells: Sequence[str]) -> list[str]:
    """Find numbers among the cells of a column that may stand for missing values, as in tables of cohorts.

    These are one to three whole numbers below zero where no others are and none is the opposite of another value, and
    numbers written in nines or eights alone that are more than twice all others: -4 (ADNI), 9 and 88 (NACC), 999.

    Example:
        >>> codes_for_missing(["0", "1", "1", "-4"]), codes_for_missing(["63.5", "999", "71"])
        (['-4'], ['999'])
        >>> codes_for_missing(["CN", "AD", "9"]), codes_for_missing(["1", "0", "-1"])
        (['9'], [])
    """
    numbers = {cell: value for cell in dict.fromkeys(cells) if (value := number_of(cell)) is not None}
    texts = {cell for cell in cells if cell} - set(numbers)
    values = set(numbers.values())
    repeated = {value for value in values if re.fullmatch(r"9+|8+", f"{value:g}")}
    plain = {value for value in values - repeated if value >= 0}
    if len(plain) + len(texts) < 2 or (texts and plain):
        return []
    below = {value for value in values if value < 0}
    if len(below) > 3 or any(-value in values or value % 1 for value in below):
        below = set()
    codes = below | {value for value in repeated if value > 2 * max(plain, default=0)}
    return [cell for cell, value in numbers.items() if value in codes]


def parse_labels(text: str, folder: Path, missing: Sequence[str] = ()) -> list[tuple[Table, tuple[str, ...]]]:
    """Read FILE:COLUMN[,COLUMN], FILE relative to here or to the data.

    FILE may be a pattern, such as ``sub-*/sub-*_sessions.tsv``, of tables that are read as one. A column is given by
    its name, in quotes if it holds commas, or by its number, from 1. A column that ``participants.tsv`` lacks is looked
    for in BIDS's tables of sessions. ``missing`` as of `read_table`.

    Returns:
        Tables, with the columns that are wanted of each.

    Raises:
        UserError: there is no such table or column.
    """
    colons = [place for place, letter in enumerate(text) if letter == ":"]
    splits = [(text[:place], text[place + 1 :]) for place in reversed(colons)]
    if not any(name and listed.strip() for name, listed in splits):
        raise UserError(f"--labels {text} names no columns", how="Give FILE.csv:COLUMN[,COLUMN]")
    listed, paths = next(((listed, found) for name, listed in splits if (found := _paths(name, folder))), ("", []))
    if not paths:
        raise UserError("there is no such table of labels", splits[0][0], "Give --labels FILE.csv:COLUMN[,COLUMN]")
    table = _together([read_table(path, missing) for path in paths])
    columns, absent = _columns(listed, table.columns)
    if not columns and not absent:
        raise UserError(f"--labels {text} names no columns", how="Give FILE.csv:COLUMN[,COLUMN]")
    wanted = [(table, tuple(columns))] if columns else []
    if absent and table.path.name == "participants.tsv" and (paths := sorted(folder.glob(_SESSIONS))):
        visits = _together([read_table(path, missing) for path in paths])
        columns, absent = _columns(",".join(absent), visits.columns)
        wanted.append((visits, tuple(columns)))
    if twice := [name for own, names in wanted for name in names if own.columns.count(name) > 1]:
        raise UserError(f"two columns are called {twice[0]}", table.path, "Rename one of them")
    if absent:
        raise UserError(
            f"no column {', '.join(absent)} in the table of labels", table.path, f"It has: {', '.join(table.columns)}"
        )
    return wanted


def _paths(name: str, folder: Path) -> list[Path]:
    """The tables that a name or a pattern means; of BIDS's sessions all."""
    if not name:
        return []
    path = Path(name).expanduser()
    for there in (path, folder / path):
        if there.is_file():
            return [there]
    if any(letter in name for letter in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else folder
        return sorted(anchor.glob(str(path.relative_to(path.anchor))))
    return sorted(folder.glob(_SESSIONS)) if path.name == "sessions.tsv" else []


def _together(tables: list[Table]) -> Table:
    """Several tables as one, with the columns of all."""
    first = tables[0]
    if len(tables) == 1:
        return first
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    rows = [{column: row.get(column, "") for column in columns} for table in tables for row in table.rows]
    notes = [note for table in tables for note in table.notes]
    blanks = {column: sum((table.blanks.get(column, Counter()) for table in tables), Counter()) for column in columns}
    return replace(first, columns=columns, rows=rows, notes=notes, blanks=blanks)


def _columns(text: str, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that a list means, and the words of it that mean none."""
    pieces = text.split(",")
    found, absent = [], []
    while pieces:
        for length in range(len(pieces), 0, -1):  # a name may hold commas
            name = ",".join(pieces[:length]).strip().strip("\"'")
            number = int(name) if name.isdecimal() and name not in columns else 0
            if name in columns or 0 < number <= len(columns):
                found.append(columns[number - 1] if number else name)
                break
        else:
            length = 1
            absent += [pieces[0].strip()] if pieces[0].strip() else []
        pieces = pieces[length:]
    return found, absent
