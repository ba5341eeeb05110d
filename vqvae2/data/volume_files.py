"""Files of volumes: which they are, and what is read of them.

A volume is brought to RAS+ (first axis to the right, second to the front, third upwards), as nibabel's
``as_closest_canonical`` does it, with the header's slope and intercept applied.

Shapes: X x Y x Z voxels in RAS+.
"""

import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.decoding import UnreadableError
from vqvae2.errors import UserError

NIBABEL = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".img.gz")
_SIMPLEITK = (".mha", ".mhd", ".nrrd", ".nhdr")
_DICOM = (".dcm", ".dicom", ".ima")
SUFFIXES = NIBABEL + _SIMPLEITK
MOST_VOXELS = 1_000_000_000  # a small file that claims more is there to fill the memory
_DATA_FILE = re.compile(
    rb"^[ \t]*(?:data ?file[ \t]*:|ElementDataFile[ \t]*=)[ \t]*(.+?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE
)


class Canonical(NamedTuple):
    """A volume in RAS+.

    Attributes:
        voxels: (X, Y, Z) float32, nan where the file's value is not finite.
        sizes: of a voxel along each axis, in mm.
        remarks: "unoriented" where the header does not state how the volume lies (nibabel's assumption, LAS, is taken),
            "complex", "flat".
    """

    voxels: NDArray[np.float32]
    sizes: tuple[float, float, float]
    remarks: tuple[str, ...]


def is_volume(name: str) -> bool:
    """Tell by its name whether a file is a volume of a format that is read."""
    return name.lower().endswith(SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Tell whether a file is of DICOM: by its suffix, or, where it has none or a number, by what it begins with."""
    suffix = path.suffix.lower()
    if suffix in _DICOM:
        return True
    if suffix and not suffix[1:].isdecimal():
        return False
    try:
        with open(path, "rb") if path.is_file() else io.BytesIO() as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def beside(path: Path) -> list[Path] | None:
    """The other files that hold a volume: header or voxels; None where they cannot be told, as of a list of files."""
    name = path.name.lower()
    if name.endswith((".img", ".img.gz")):
        stem = re.sub(r"\.img(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        return [other for end in (".hdr", ".HDR", ".hdr.gz") if (other := path.with_name(stem + end)).is_file()] or None
    if not name.endswith(_SIMPLEITK):
        return []
    try:
        with open(path, "rb") as file:
            begin = file.read(65536)
    except OSError:
        return None
    nrrd = name.endswith((".nrrd", ".nhdr"))
    named = _DATA_FILE.search(re.split(rb"\n\r?\n", begin)[0] if nrrd else begin)  # after an empty line come voxels
    if named is None:
        return [] if name.endswith(".nrrd") else None
    if named[1].lower() == b"local":
        return []
    other = path.parent / os.fsdecode(named[1])
    return [other] if other.is_file() else None


def read_canonical(source: Path | tuple[Path, ...]) -> Canonical:
    """Read a volume in RAS+, slope and intercept applied.

    Args:
        source: a file, or the files of a DICOM series in order along its axis.

    Raises:
        UnreadableError: with the reason.
        UserError: it cannot be read now, for want of memory or by an error of the disk.
    """
    import nibabel
    from nibabel.orientations import aff2axcodes

    files = source if isinstance(source, tuple) else (source,)
    try:
        image: Any = _by_nibabel(files[0]) if files[0].name.lower().endswith(NIBABEL) else _by_simpleitk(files)
        shape = image.shape
        _check_shape(shape)
        if len(shape) > 3 and all(n == 1 for n in shape[3:]):
            image = image.slicer[(slice(None),) * 3 + (0,) * (len(shape) - 3)]
        elif len(shape) == 2:
            image = nibabel.Nifti1Image(np.asanyarray(image.dataobj)[..., None], image.affine, image.header)
        shape = image.shape
        if len(shape) != 3:
            raise UnreadableError(
                f"{len(shape)}-dimensional ({' x '.join(map(str, shape))}); store each volume in a file of its own"
            )
        if image.get_data_dtype().fields:
            raise UnreadableError(f"{len(image.get_data_dtype().fields)} values a voxel; a volume has one")
        lengths = np.linalg.norm(image.affine[:3, :3], axis=0)
        if not np.isfinite(image.affine).all() or not abs(np.linalg.det(image.affine[:3, :3])) > 1e-9 * lengths.prod():
            raise UnreadableError("the header's orientation is not usable")
        if None in aff2axcodes(image.affine):
            raise UnreadableError("the header leaves an axis without a direction")
        remarks = [] if _is_oriented(image.header) else ["unoriented"]
        image = nibabel.as_closest_canonical(image)
        values = np.asanyarray(image.dataobj)
        if np.iscomplexobj(values):
            remarks.append("complex")
            values = np.abs(values)
        if sum(n == 1 for n in shape) == 1:
            remarks.append("flat")
        voxels = np.array(values, dtype=np.float32)
        sizes = tuple(_unit_of(image.header) * float(size) for size in np.linalg.norm(image.affine[:3, :3], axis=0))
    except UnreadableError:
        raise
    except Exception as error:  # whatever a reader of files from everywhere may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason.rpartition("): ")[2] if "SimpleITK" in reason else reason  # behind the places in its source
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            # No fault of the file: it may be read another time, and is not to be missing from now on.
            way_out = f"Try again, or leave it out: --exclude {files[0].name}"
            raise UserError(f"a volume cannot be read now ({reason[:160]})", files[0], way_out) from None
        raise UnreadableError(f"no readable {_format_of(files[0])} ({reason[:160]})") from None
    voxels[~np.isfinite(voxels)] = np.nan
    return Canonical(voxels, (sizes[0], sizes[1], sizes[2]), tuple(remarks))


def _format_of(path: Path) -> str:
    return "NIfTI volume" if path.name.lower().endswith((".nii", ".nii.gz")) else "volume"


def _is_oriented(header: Any) -> bool:
    """Whether a header states how the volume lies: NIfTI by its codes, MGH by its flag; Analyze never does."""
    if "sform_code" in header:
        return any(int(header[code]) for code in ("sform_code", "qform_code"))
    return "goodRASFlag" in header and bool(int(header["goodRASFlag"]))


def _unit_of(header: Any) -> float:
    """Millimetres of a header's unit of length: of NIfTI it may be metres or micrometres."""
    unit = "unknown"
    with suppress(KeyError):  # a code that NIfTI does not have
        unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else unit
    return {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)


def _check_shape(shape: Sequence[int]) -> None:
    """Raise UnreadableError if a header names no voxels, or more than `MOST_VOXELS`."""
    if np.prod([float(n) for n in shape]) > MOST_VOXELS or min(shape) < 1:
        raise UnreadableError(f"{' x '.join(map(str, shape))} voxels: the header is damaged, or the volume too large")


def _by_nibabel(path: Path) -> Any:
    """Read NIfTI, MGH or Analyze, also a NIfTI that is called .nii.gz and is not compressed."""
    import nibabel

    if path.name.lower().endswith(".nii.gz"):
        with open(path, "rb") as file:
            if file.read(2) not in (b"\x1f\x8b", b""):
                file.seek(0)
                return nibabel.Nifti1Image.from_bytes(file.read())
    return nibabel.load(path)


def _by_simpleitk(files: tuple[Path, ...]) -> Any:
    """Read MHA, NRRD or DICOM, as an image of nibabel; SimpleITK applies DICOM's slope, and turns MONOCHROME1."""
    import nibabel
    import SimpleITK

    if any("\udc80" <= letter <= "\udcff" for file in files for letter in str(file)):
        raise UnreadableError("SimpleITK reads no path that is not UTF-8; rename the folder or the file")
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # to stderr, once a file
    reader: Any
    if len(files) > 1:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in files])
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)  # each file has a slope of its own
    else:
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(files[0]))
        reader.ReadImageInformation()
        _check_shape(reader.GetSize())
    image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise UnreadableError(f"{image.GetNumberOfComponentsPerPixel()} values a voxel; a volume has one")
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    dimensions = image.GetDimension()
    if dimensions not in (2, 3):
        raise UnreadableError(f"{dimensions}-dimensional ({' x '.join(map(str, image.GetSize()))}); a volume has three")
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dimensions, dimensions) * image.GetSpacing()
    affine[:dimensions, :dimensions] = direction
    affine[:dimensions, 3] = image.GetOrigin()
    affine[:2] *= -1  # from LPS to RAS
    voxels = SimpleITK.GetArrayFromImage(image).T
    if voxels.dtype.kind in "iu":
        voxels = voxels.astype(np.float32 if voxels.dtype.itemsize <= 2 else np.float64)
    return nibabel.Nifti1Image(voxels.reshape(*voxels.shape, *(1,) * (3 - voxels.ndim)), affine)
