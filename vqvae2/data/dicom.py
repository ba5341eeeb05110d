"""DICOM series: files of one acquisition put together, and whose they are by their headers."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.data.decoding import UnreadableError, no_content
from vqvae2.data.pools import read_all
from vqvae2.data.subjects import pseudonym
from vqvae2.errors import UserError

_TAGS = [
    "PatientID", "SeriesInstanceUID", "SeriesNumber", "Modality", "ImageType", "ImageOrientationPatient",
    "ImagePositionPatient", "InstanceNumber", "AcquisitionNumber", "Rows", "Columns",
]  # fmt: skip
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "DOC", "REG"}


@dataclass(frozen=True)
class Series:
    """A series: its files in order along its axis, its name in messages, and a pseudonym of its patient ("": none)."""

    files: tuple[Path, ...]
    key: str
    patient: str


def read_series(paths: list[Path], folder: Path, skipped: list[tuple[str, str]]) -> dict[Path, Series]:
    """Put DICOM files together by their series; by the first file of each.

    The patient is read from the header and replaced by a pseudonym: no name or number of a header is kept or written.

    Args:
        paths: of the files.
        folder: to which the series' names are relative.
        skipped: takes what is no image, or lies in several directions, with the reason.

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

    def header(path: Path) -> Any:
        if reason := no_content(path):
            raise UnreadableError(reason)
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        except Exception as error:  # whatever a reader of files from everywhere may raise
            raise UnreadableError(f"no readable DICOM file ({' '.join(str(error).split())[:160]})") from None

    groups: dict[tuple[Path, str], list[tuple[Path, Any]]] = defaultdict(list)
    for index, found in read_all(paths, header, "reading DICOM headers", "files", 8):
        path = paths[index]
        if isinstance(found, UnreadableError):
            skipped.append((path.relative_to(folder).as_posix(), str(found)))
        elif str(found.get("Modality", "")) in _NO_IMAGES or path.name.upper() == "DICOMDIR":
            skipped.append(
                (path.relative_to(folder).as_posix(), f"DICOM {found.get('Modality', 'directory')}, no image")
            )
        else:
            groups[path.parent, str(found.get("SeriesInstanceUID", path))].append((path, found))
    pseudonyms: dict[str, str] = {"": ""}
    series: dict[Path, Series] = {}
    taken: set[str] = set()
    for (place, _), members in sorted(groups.items(), key=lambda item: item[1][0][0]):
        head = members[0][1]
        name = f"S{int(head.get('SeriesNumber') or 0):03d}" if len(members) > 1 else members[0][0].name
        stem = (place.relative_to(folder) / name).as_posix()
        key = next(name for n in range(len(groups) + 1) if (name := f"{stem}_{n}" if n else stem) not in taken)
        taken.add(key)
        try:
            files = _in_order(members)
        except UnreadableError as reason:
            skipped.append((key, str(reason)))
            continue
        patient = str(head.get("PatientID") or "").strip()
        pseudonyms.setdefault(patient, pseudonym(patient))
        series[files[0]] = Series(files, key, pseudonyms[patient])
    if not series:
        first = f", such as {skipped[-1][0]} ({skipped[-1][1]})" if skipped else ""
        raise UserError(f"none of {len(paths):,} DICOM files can be read{first}", folder)
    return series


def _in_order(members: list[tuple[Path, Any]]) -> tuple[Path, ...]:
    """The files of a series along its axis; UnreadableError if they lie in several directions, or twice in a place."""
    if len(members) == 1:
        return (members[0][0],)
    if any("LOCALIZER" in [str(word).upper() for word in head.get("ImageType") or ()] for _, head in members):
        raise UnreadableError("a localizer, no volume")
    directions = {tuple(round(float(x), 3) for x in head.get("ImageOrientationPatient") or ()) for _, head in members}
    shapes = {(head.get("Rows"), head.get("Columns")) for _, head in members}
    if len(directions) > 1 or len(shapes) > 1:
        raise UnreadableError("its slices differ in direction or size")
    direction = next(iter(directions))
    if len(direction) != 6 or any(head.get("ImagePositionPatient") is None for _, head in members):
        return tuple(path for path, _ in sorted(members, key=lambda m: (int(m[1].get("InstanceNumber") or 0), m[0])))
    across, down = direction[:3], direction[3:]
    normal = [across[i - 2] * down[i - 1] - across[i - 1] * down[i - 2] for i in range(3)]

    def height(head: Any) -> float:
        return round(sum(n * float(p) for n, p in zip(normal, head.ImagePositionPatient, strict=True)), 3)

    placed = sorted(members, key=lambda member: (height(member[1]), int(member[1].get("InstanceNumber") or 0)))
    if len({height(head) for _, head in placed}) < len(placed):
        raise UnreadableError("several slices lie in one place (times or echoes); store each as a volume of its own")
    return tuple(path for path, _ in placed)
