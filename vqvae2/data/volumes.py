"""NIfTI volumes to slices: reoriented, scaled, clipped, cut, and kept in a cache.

A volume is brought to RAS+ (first axis to the right, second to the front, third upwards), as nibabel's
``as_closest_canonical`` does it, with the header's slope and intercept applied. Slices are in neurological
convention, as one looks at a standing person from above (axial: the front of the head at the top), from behind
(coronal: the crown at the top), both with the person's right at the image's right, or from the right (sagittal: the
crown at the top, the face at the right).

Shapes: X x Y x Z voxels in RAS+, H x W pixels of a slice.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.decoding import UnreadableError, read_all
from vqvae2.data.storage import cache_folder
from vqvae2.errors import UserError
from vqvae2.files import make_folder, write_atomic

SUFFIXES = (".nii", ".nii.gz")
MOST_VOXELS = 1_000_000_000  # a small file that claims more is there to fill the memory
_FORMAT = 2  # of the cache
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_END = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(mm|%)\s*")

Slices = NDArray[np.uint8]


@dataclass(frozen=True)
class SliceConfig:
    """How volumes are cut into slices; raises UserError for a value that cannot be meant."""

    slice_axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Axis across which volumes are cut."""
    slice_range: str | None = None
    """Slices taken of a volume, as FROM:TO in mm or % of its extent (20%:80%), from the feet, the back or the left;
    negative: from the other end. Default: all."""
    slice_every: float = 0.0
    """Distance of the slices taken, in mm; 0: every one."""
    min_foreground: float = 0.05
    """Least share of a slice's pixels above a tenth of the clipping value, in [0, 1]; emptier slices are left out."""
    clip_low: float = 0.0
    """Percentile of a volume's values that becomes black, in [0, 100)."""
    clip_high: float = 99.5
    """Percentile of a volume's values that becomes white, in (clip_low, 100]."""
    spacing: float = 0.0
    """Size of a pixel in mm, along both sides, to which slices are resampled; 0: as stored."""

    def __post_init__(self) -> None:
        if self.slice_axis not in _AXES:
            raise UserError(f"--slice-axis {self.slice_axis} is not known", how=f"Give {', '.join(_AXES)}")
        if not 0 <= self.clip_low < self.clip_high <= 100:
            raise UserError(f"--clip-low {self.clip_low} --clip-high {self.clip_high} are no percentiles in order")
        if not 0 <= self.min_foreground <= 1:
            raise UserError(f"--min-foreground {self.min_foreground} is no share", how="Give 0 to 1")
        if self.slice_every < 0 or self.spacing < 0:
            raise UserError("--slice-every and --spacing are lengths in mm", how="Give 0 or more")
        self.ends(100.0)

    def ends(self, extent: float) -> tuple[float, float]:
        """Return where the range begins and ends, in mm from the low end of an axis that is ``extent`` mm long."""
        if self.slice_range is None:
            return 0.0, extent
        parts = [_END.fullmatch(part) for part in self.slice_range.split(":")]
        if len(parts) != 2 or None in parts:
            raise UserError(f"--slice-range {self.slice_range} is no range", how="Such as 20%:80% or 40mm:-24mm")
        values = [float(m[1]) * (1 if m[2] == "mm" else extent / 100) for m in parts if m is not None]
        low, high = (
            value + extent if value < 0 or part.strip().startswith("-") else value
            for value, part in zip(values, self.slice_range.split(":"), strict=True)
        )
        if low >= high and extent == 100.0 and "mm" not in self.slice_range:
            raise UserError(f"--slice-range {self.slice_range} is empty", how="Give the lower end first")
        return low, high


def slice_settings(config: SliceConfig) -> dict[str, Any]:
    """Return how volumes are cut, as it is kept with a run: of a config that holds more, what belongs to it."""
    return {field.name: getattr(config, field.name) for field in fields(SliceConfig)}


@dataclass(frozen=True)
class Cut:
    """The slices of one volume.

    Attributes:
        pixels: (n, H, W) uint8.
        places: n indices along the axis, in RAS+.
        spacing: mm of a pixel, down and across.
        empty: how many slices were left out for want of foreground.
        range: the volume's values that became 0 and 255.
        oriented: whether the header states how the volume lies.
    """

    pixels: Slices
    places: list[int]
    spacing: tuple[float, float]
    empty: int
    range: tuple[float, float]
    oriented: bool


class Canonical(NamedTuple):
    """A volume in RAS+.

    Attributes:
        voxels: (X, Y, Z) float32.
        sizes: of a voxel along each axis, in mm.
        oriented: whether the header states how the volume lies; else nibabel's assumption, LAS, is taken.
    """

    voxels: NDArray[np.float32]
    sizes: tuple[float, float, float]
    oriented: bool


def is_volume(name: str) -> bool:
    """Tell by its name whether a file is a NIfTI volume."""
    return name.lower().endswith(SUFFIXES)


def cut_all(paths: Sequence[Path], config: SliceConfig) -> Iterator[tuple[int, Cut | UnreadableError]]:
    """Cut volumes in a pool of threads; yields (index, slices or why not) in order.

    Raises:
        UserError: nibabel is not installed.
    """
    try:
        import nibabel  # noqa: F401 - an extra, imported where it is needed
    except ImportError:
        raise UserError("NIfTI volumes need nibabel", str(paths[0]), "Run pip install nibabel") from None
    return read_all(paths, lambda path: _cached(path, config), "cutting volumes", min(8, os.cpu_count() or 1))


def _cached(path: Path, config: SliceConfig) -> Cut:
    """Cut a volume, or find what was cut of the same bytes with the same settings before."""
    if not path.is_file():  # a pipe would be waited for
        raise UnreadableError("not a regular file")
    try:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from None
    settings = json.dumps([_FORMAT, content, slice_settings(config)], sort_keys=True)
    kept = cache_folder() / "slices" / f"{hashlib.sha256(settings.encode()).hexdigest()}.npz"
    try:
        with np.load(kept, allow_pickle=False) as stored:
            record = json.loads(str(stored["record"]))
            return Cut(
                stored["pixels"],
                record["places"],
                tuple(record["spacing"]),
                record["empty"],
                tuple(record["range"]),
                record["oriented"],
            )
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):  # absent, or cut short
        pass
    found = cut(path, config)
    record = {name: getattr(found, name) for name in ("places", "spacing", "empty", "range", "oriented")}
    try:
        make_folder(kept.parent)
        write_atomic(kept, lambda file: np.savez(file, pixels=found.pixels, record=json.dumps(record)))
    except UserError:  # no room, or no right to write: it is only a cache
        pass
    return found


def cut(path: Path, config: SliceConfig) -> Cut:
    """Read a NIfTI volume and cut it into slices.

    Raises:
        UnreadableError: with the reason.
    """
    voxels, sizes, oriented = read_canonical(path)
    low, high = (float(v) for v in np.percentile(voxels, (config.clip_low, config.clip_high)))
    if not low < high:
        raise UnreadableError("constant between the clipping percentiles")
    axis = _AXES[config.slice_axis]
    places = _places(voxels.shape[axis], sizes[axis], config)
    if not places:
        raise UnreadableError(f"no slice lies in {config.slice_range}")
    scaled = np.clip((np.take(voxels, places, axis) - low) / (high - low), 0, 1)
    # The remaining axes, in order: (left to right or back to front) and upwards or to the front.
    slices = np.moveaxis(scaled, axis, 0).transpose(0, 2, 1)[:, ::-1]
    across, up = (size for i, size in enumerate(sizes) if i != axis)
    spacing = (up, across)
    if config.spacing:
        slices, spacing = _resampled(slices, spacing, config.spacing), (config.spacing, config.spacing)
    kept = [i for i, image in enumerate(slices) if (image > 0.1).mean() >= config.min_foreground]
    if not kept:
        raise UnreadableError(f"all {len(places)} slices have less foreground than {config.min_foreground:g}")
    pixels = np.rint(slices[kept] * 255).astype(np.uint8)
    return Cut(pixels, [places[i] for i in kept], spacing, len(places) - len(kept), (low, high), oriented)


def read_canonical(path: Path) -> Canonical:
    """Read a NIfTI volume in RAS+, slope and intercept applied.

    Raises:
        UnreadableError: with the reason.
    """
    import nibabel
    from nibabel.orientations import aff2axcodes

    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        if np.prod([float(n) for n in shape]) > MOST_VOXELS or min(shape) < 1:
            raise UnreadableError(f"{' x '.join(map(str, shape))} voxels cannot be meant")
        if len(shape) > 3 and all(n == 1 for n in shape[3:]):
            image = image.slicer[(slice(None),) * 3 + (0,) * (len(shape) - 3)]
            shape = image.shape
        if len(shape) != 3:
            raise UnreadableError(f"{len(shape)}-dimensional ({' x '.join(map(str, shape))}); a volume has three")
        if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-12:
            raise UnreadableError("the header's orientation is not usable")
        if None in aff2axcodes(image.affine):
            raise UnreadableError("the header leaves an axis without a direction")
        oriented = any(int(image.header[code]) for code in ("sform_code", "qform_code"))
        image = nibabel.as_closest_canonical(image)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        sizes = tuple(float(size) for size in np.linalg.norm(image.affine[:3, :3], axis=0))
    except UnreadableError:
        raise
    except Exception as error:  # whatever a reader of files from everywhere may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"no readable NIfTI volume ({reason[:160]})") from None
    if not np.isfinite(voxels).all():
        raise UnreadableError("holds values that are not finite")
    return Canonical(voxels, (sizes[0], sizes[1], sizes[2]), oriented)


def _places(count: int, size: float, config: SliceConfig) -> list[int]:
    """Choose the indices along the axis: voxel i covers i to i + 1 sizes, and counts where its middle lies."""
    low, high = config.ends(count * size)
    inside = [i for i in range(count) if low <= (i + 0.5) * size <= high]
    step = max(1, round(config.slice_every / size)) if config.slice_every else 1
    return inside[::step]


def _resampled(slices: NDArray[Any], spacing: tuple[float, float], wanted: float) -> NDArray[Any]:
    """Resample slices (n, H, W) to square pixels, without folding where they shrink."""
    from skimage.transform import resize  # imported here: it takes a moment that others need not pay

    shape = tuple(max(1, round(n * own / wanted)) for n, own in zip(slices.shape[1:], spacing, strict=True))
    if shape == slices.shape[1:]:
        return slices
    shrinks = any(new < old for new, old in zip(shape, slices.shape[1:], strict=True))
    return np.stack([resize(image, shape, order=1, mode="edge", anti_aliasing=shrinks) for image in slices])
