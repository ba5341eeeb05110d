"""DICOM series: files of one acquisition put together, and whose they are by their headers."""

import math
import statistics
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqvae2.data.decoding import UnreadableError, no_content
from vqvae2.data.pools import read_all
from vqvae2.data.sources import key_of
from vqvae2.data.subjects import patients_of, pseudonym
from vqvae2.errors import UserError

_TAGS = [
    "PatientID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "SOPInstanceUID", "Rows", "Columns",
]  # fmt: skip
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "DOC", "REG"}


@dataclass(frozen=True)
class _Header:
    """What a file says; () and 0 where it does not say it, or not as numbers."""

    patient: str
    series: str
    series_number: int
    modality: str
    kind: tuple[str, ...]
    direction: tuple[float, ...]
    position: tuple[float, ...]
    instance: int
    uid: str
    shape: tuple[str, str]

    @classmethod
    def of(cls, found: Any) -> "_Header":
        """Take the values out of pydicom's data set, which converts them when they are asked for."""

        def text(name: str) -> str:
            return str(found.get(name) or "").strip()

        def whole(name: str) -> int:
            with suppress(ValueError, TypeError):
                return int(found.get(name) or 0)
            return 0

        def vector(name: str, length: int) -> tuple[float, ...]:
            with suppress(ValueError, TypeError):
                values = tuple(float(value) for value in found.get(name) or ())
                return values if len(values) == length and all(map(math.isfinite, values)) else ()
            return ()

        kind = tuple(str(word).upper() for word in found.get("ImageType") or ())
        direction, position = vector("ImageOrientationPatient", 6), vector("ImagePositionPatient", 3)
        return cls(
            text("PatientID"), text("SeriesInstanceUID"), whole("SeriesNumber"), text("Modality"), kind, direction,
            position, whole("InstanceNumber"), text("SOPInstanceUID"), (text("Rows"), text("Columns")),
        )  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A series: its files in order along its axis, its name in messages, and a pseudonym of its patient ("": none)."""

    files: tuple[Path, ...]
    key: str
    patient: str


def read_series(
    paths: list[Path], folder: Path, skipped: list[tuple[str, str]], doubts: list[str]
) -> dict[Path, Series]:
    """Put DICOM files together by their series; by the first file of each.

    The patient is read from the header and replaced by a pseudonym: no name or number of a header is kept or written.

    Args:
        paths: of the files.
        folder: to which the series' names are relative.
        skipped: takes what is no image, or lies in several directions, with the reason.
        doubts: takes a sentence where slices are missing or unevenly spaced, and where patients are uncertain.

    Raises:
        UserError: pydicom or SimpleITK is not installed.
    """
    try:
        import pydicom
        import SimpleITK  # noqa: F401 - needed for the pixels
    except ImportError:
        reasons = [no_content(path) for path in paths]
        if all(reasons):
            raise UserError(f"no DICOM file can be read ({reasons[0]})", paths[0]) from None
        raise UserError("DICOM needs pydicom and SimpleITK", paths[0], "Run pip install pydicom SimpleITK") from None

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # values are only compared

    def header(path: Path) -> _Header:
        if reason := no_content(path):
            raise UnreadableError(reason)
        try:
            return _Header.of(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS))
        except Exception as error:  # whatever a reader of files from everywhere may raise
            raise UnreadableError(f"no readable DICOM file ({' '.join(str(error).split())[:160]})") from None

    groups: dict[tuple[Path, str], list[tuple[Path, _Header]]] = defaultdict(list)
    for index, found in read_all(paths, header, "reading DICOM headers", "files", 8):
        path = paths[index]
        if isinstance(found, UnreadableError):
            skipped.append((key_of(path, folder), str(found)))
        elif found.modality in _NO_IMAGES or path.name.upper() == "DICOMDIR":
            skipped.append((key_of(path, folder), f"DICOM {found.modality or 'directory'}, no image"))
        else:
            groups[path.parent, found.series or str(path)].append((path, found))
    whom = patients_of(
        dict.fromkeys(head.patient for members in groups.values() for _, head in members if head.patient)
    )
    pseudonyms = {"": ""} | {given: pseudonym(patient) if patient else "" for given, patient in whom.items()}
    visits: list[str] = []
    series: dict[Path, Series] = {}
    taken: set[str] = set()
    uneven: list[str] = []
    for (place, _), members in sorted(groups.items(), key=lambda item: item[1][0][0]):
        head = members[0][1]
        name = f"S{head.series_number:03d}" if len(members) > 1 else members[0][0].name
        stem = key_of(place / name, folder)
        key = next(name for n in range(len(groups) + 1) if (name := f"{stem}_{n}" if n else stem) not in taken)
        taken.add(key)
        try:
            files = _in_order(members, uneven)
        except UnreadableError as reason:
            skipped.append((key, str(reason)))
            continue
        if head.patient and whom[head.patient] not in ("", head.patient):
            visits.append(key)
        series[files[0]] = Series(files, key, pseudonyms[head.patient])
    if uneven:
        doubts.append(
            f"slices of {len(uneven):,} DICOM series are missing or unevenly spaced, such as {uneven[0]}; they are "
            "read as even, so positions in mm may be wrong; --exclude leaves them out"
        )
    if visits:
        doubts.append(
            f"the patient IDs of {len(visits):,} DICOM series, such as {visits[0]}, end in a visit, which is left out: "
            "all visits are one person's; --subject-pattern tells otherwise"
        )
    if not series:
        first = f", such as {skipped[-1][0]} ({skipped[-1][1]})" if skipped else ""
        raise UserError(f"none of {len(paths):,} DICOM files can be read{first}", folder)
    return series


def _in_order(members: list[tuple[Path, _Header]], uneven: list[str]) -> tuple[Path, ...]:
    """The files of a series along its axis, copies of a file left out; names it in ``uneven`` where gaps differ.

    Raises:
        UnreadableError: they lie in several directions, or twice in a place.
    """
    copies = {(head.uid or str(path), head.position, head.instance): (path, head) for path, head in reversed(members)}
    members = list(copies.values())[::-1]
    if len(members) == 1:
        return (members[0][0],)
    first = members[0][1]
    if any("LOCALIZER" in head.kind for _, head in members):
        raise UnreadableError("a localizer, no volume")
    for _, head in members:
        pairs = zip(head.direction, first.direction, strict=False)
        turned = len(head.direction) != len(first.direction) or any(abs(a - b) > 1e-3 for a, b in pairs)
        if turned or head.shape != first.shape:
            raise UnreadableError("its slices differ in direction or size")
    if not first.direction or not all(head.position for _, head in members):
        return tuple(path for path, _ in sorted(members, key=lambda member: (member[1].instance, member[0])))
    across, down = first.direction[:3], first.direction[3:]
    normal = [across[i - 2] * down[i - 1] - across[i - 1] * down[i - 2] for i in range(3)]

    def height(head: _Header) -> float:
        return round(sum(n * p for n, p in zip(normal, head.position, strict=True)), 3)

    placed = sorted(members, key=lambda member: (height(member[1]), member[1].instance))
    gaps = [height(b) - height(a) for (_, a), (_, b) in pairwise(placed)]
    if min(gaps) == 0:
        raise UnreadableError("several slices lie in one place (times or echoes); store each as a volume of its own")
    if max(gaps) > 1.5 * statistics.median(gaps):
        uneven.append(f"{members[0][0].parent.name} ({max(gaps):g} mm, {statistics.median(gaps):g} elsewhere)")
    return tuple(path for path, _ in placed)
