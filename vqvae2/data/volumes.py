"""Volumes to slices: scaled, clipped, cut, and kept in a cache.

Volumes are in RAS+, see `volume_files.read_canonical`. Slices are in neurological convention, as one looks at a
standing person from above (axial: the front of the head at the top), from behind (coronal: the crown at the top), both
with the person's right at the image's right, or from the right (sagittal: the crown at the top, the face at the right).

Shapes: X x Y x Z voxels in RAS+, H x W pixels of a slice.
"""

import hashlib
import importlib
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.decoding import UnreadableError, no_content
from vqvae2.data.pools import read_all
from vqvae2.data.storage import cache_folder
from vqvae2.data.volume_files import NIBABEL, beside, read_canonical
from vqvae2.errors import UserError
from vqvae2.files import make_folder, write_atomic

FORMAT = 5  # of the cache
_PARSING = threading.Lock()  # NumPy parses headers by ast, which fails now and then in threads of Python 3.11
_AIR = -1024.0  # in Hounsfield units, the least of 12 bits
_LEAST_AIR = 0.01  # of the voxels, from there to 124 units above
_LEAST_BACKGROUND = 0.05  # of the voxels, that have one value in the corners
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
            raise UserError(f"--clip-low {self.clip_low} --clip-high {self.clip_high} must be percentiles in order")
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
        remarks: what is to be said of the volume, of `REMARKS`.
        missing: share of the voxels that are not finite, in [0, 1].
    """

    pixels: Slices
    places: list[int]
    spacing: tuple[float, float]
    empty: int
    range: tuple[float, float]
    remarks: tuple[str, ...]
    missing: float


REMARKS = {
    "unoriented": "do not say how they lie{}; their axes are taken to run to the left, to the front and upwards (LAS), "
    "as nibabel does",
    "complex": "hold complex numbers{}; their magnitude is read",
    "background": "have values below that of their background{}, as after a z-score; the background, the value of the "
    "corners, is black",
    "padding": "have values below -1024{}, with which CT scanners fill what they do not see; they are read as air",
    "missing": "hold values that are not finite{}, {:.0%} of their voxels; they are read as background, which is black",
    "flat": "are single slices{}",
}
"""What the report says of volumes, by remark, in the words after their number."""


def cut_all(sources: Sequence[tuple[Path, ...]], config: SliceConfig) -> Iterator[tuple[int, Cut | UnreadableError]]:
    """Cut volumes, each of one file or of the files of a DICOM series, in a pool of threads.

    Yields:
        (index, slices or why not), in order.

    Raises:
        UserError: a package that reads them is not installed.
    """
    itk = next((files for files in sources if len(files) > 1 or not files[0].name.lower().endswith(NIBABEL)), None)
    for package, files in [("nibabel", sources[0])] + ([("SimpleITK", itk)] if itk else []):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"volumes of this format need {package}", files[0], f"Run pip install {package}") from None
    return read_all(
        sources, lambda files: _cached(files, config), "cutting volumes", "volumes", min(8, os.cpu_count() or 1)
    )


def _cached(files: tuple[Path, ...], config: SliceConfig) -> Cut:
    """Cut a volume, or find what was cut of the same bytes with the same settings before."""
    content = []
    others = beside(files[0])
    for path in (*files, *(others or ())):
        if reason := no_content(path):
            raise UnreadableError(reason)
        try:
            with open(path, "rb") as file:
                content.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None
    if others is None:
        return cut(files, config)
    settings = json.dumps([FORMAT, content, slice_settings(config)], sort_keys=True)
    kept = cache_folder() / "slices" / f"{hashlib.sha256(settings.encode()).hexdigest()}.npz"
    try:
        with _PARSING, np.load(kept, allow_pickle=False) as stored:
            with suppress(OSError):
                os.utime(kept)  # when it was last used
            return Cut(stored["pixels"], **_tuples(json.loads(str(stored["record"]))))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):  # absent, or cut short
        pass
    found = cut(files, config)
    record = {field.name: getattr(found, field.name) for field in fields(Cut)[1:]}
    try:
        make_folder(kept.parent)
        write_atomic(kept, lambda file: np.savez(file, pixels=found.pixels, record=json.dumps(record)))
    except UserError:  # no room, or no right to write: it is only a cache
        pass
    return found


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if name != "places" and isinstance(value, list) else value for name, value in record.items()
    }


def cut(source: Path | tuple[Path, ...], config: SliceConfig) -> Cut:
    """Read a volume, of one file or of a DICOM series, and cut it into slices.

    What is not finite becomes background. Where the corners have one value that would be grey, and many voxels have it,
    it is the background too, and black. So is what lies below the air of a CT. A volume of a single slice is that
    slice, whatever the axis and range.

    Raises:
        UnreadableError: with the reason.
    """
    voxels, sizes, remarks = read_canonical(source)
    nowhere = np.isnan(voxels)
    missing = float(nowhere.mean())
    if missing == 1:
        raise UnreadableError("holds no value that is finite")
    if missing:
        voxels = np.where(nowhere, min(0.0, float(np.nanmin(voxels))), voxels)
    if _is_padded(voxels):
        remarks, voxels = (*remarks, "padding"), np.maximum(voxels, _AIR)
    background = _grey_background(voxels, config)
    if background is not None:
        remarks = (*remarks, "background")
        outside = voxels == background
        voxels = np.where(outside, voxels[~outside].min(), voxels)
    inside = voxels if background is None else voxels[~outside]
    low, high = float(np.percentile(inside, config.clip_low)), float(np.percentile(voxels, config.clip_high))
    if not low < high:
        raise UnreadableError("constant between the clipping percentiles")
    if "flat" in remarks:
        axis, places = voxels.shape.index(1), [0]
    else:
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
    return Cut(pixels, [places[i] for i in kept], spacing, len(places) - len(kept), (low, high), remarks, missing)


def _is_padded(voxels: NDArray[np.float32]) -> bool:
    """Whether a volume has air, as a CT, and values below it."""
    return bool(voxels.min() < _AIR) and ((voxels >= _AIR) & (voxels <= _AIR + 124)).mean() >= _LEAST_AIR


def _grey_background(voxels: NDArray[np.float32], config: SliceConfig) -> float | None:
    """The value of the background, if it is one value that would not be black: of most corners and of many voxels."""
    corners = voxels[tuple(np.ix_(*((0, n - 1) for n in voxels.shape)))].ravel()
    values, counts = np.unique(corners, return_counts=True)
    value = values[counts.argmax()]
    if 2 * counts.max() < len(corners) or (share := (voxels == value).mean()) < _LEAST_BACKGROUND or share == 1:
        return None
    low, high = np.percentile(voxels, (config.clip_low, config.clip_high))
    return float(value) if (value - low) * 255 > 2 * (high - low) else None


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
