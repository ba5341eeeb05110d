"""From a layout's volumes to their slices."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqvae2.checkpoint import config_from
from vqvae2.data.decoding import Picture, UnreadableError, digest_of
from vqvae2.data.pixel_file import Item, Items, Prepare, Slots
from vqvae2.data.pixels import stamp
from vqvae2.data.selection import Layout
from vqvae2.data.subjects import stem_of
from vqvae2.data.volume_files import beside
from vqvae2.data.volumes import FORMAT, REMARKS, Cut, SliceConfig, cut_all, slice_settings


def config_of(like: dict[str, Any]) -> SliceConfig:
    """Return how the volumes of a stored data set were cut; the defaults where it had none."""
    return config_from(SliceConfig, like.get("slices") or {}, "the stored slices")


@dataclass(frozen=True)
class Volumes:
    """Volumes, each of one file or of the files of a DICOM series, and how they are cut: a `pixels.Source`."""

    volumes: Sequence[tuple[Path, ...]]
    config: SliceConfig
    whose: str
    paths: None = None  # no slice can be read alone
    many: bool = False

    def __len__(self) -> int:
        return len(self.volumes)

    def identity(self) -> Iterator[str] | None:
        """Name each file with its size and time; None where headers do not tell where their voxels lie."""
        others = [beside(files[0]) for files in self.volumes]
        if None in others:
            return None
        settings = [f"format {FORMAT}", *(f"{name} {value}" for name, value in slice_settings(self.config).items())]
        groups = (
            "\n".join(stamp(path) for path in (*files, *(more or ())))
            for files, more in zip(self.volumes, others, strict=True)
        )
        return iter([*settings, *groups])

    def items(self, prepare: Prepare, slots: Slots | None = None) -> Items:
        """Cut them in a pool of threads; how many slices there will be is not known, so there are no slots."""
        for index, found in cut_all(self.volumes, self.config):
            yield index, found if isinstance(found, UnreadableError) else _item(found, prepare)


def _item(found: Cut, prepare: Prepare) -> Item:
    flat = "flat" in found.remarks
    images = [
        (-1 if flat else place, prepare(Picture(pixels, (pixels.shape[0], pixels.shape[1]), digest_of(pixels), False)))
        for pixels, place in zip(found.pixels, found.places, strict=True)
    ]
    remarks = [*found.remarks, *(["missing"] if found.missing else [])]
    about = {"empty": found.empty, "remarks": remarks, "missing": found.missing, "spacing": found.spacing}
    return Item(images, about)


def slice_keys(layout: Layout) -> list[str]:
    """Return what the slices of each volume are called, but for ``_k`` and their index along the axis."""
    stems = [(Path(key).parent / stem_of(Path(key).name)).as_posix() for key in layout.keys]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}  # a.nii and a.nii.gz
    return [key if stem in shared else stem for key, stem in zip(layout.keys, stems, strict=True)]


def slice_notes(config: SliceConfig, cut: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Say how volumes were cut.

    Args:
        config: how.
        cut: (key, what is known of it) of each volume that was read.
    """
    spacings = Counter(tuple(round(size, 3) for size in about["spacing"]) for _, about in cut)
    common = ", ".join(f"{count:,} of {down:g} x {across:g}" for (down, across), count in spacings.most_common(3))
    notes = [
        f"{len(cut):,} volumes, {config.slice_axis} slices {config.slice_range or 'of the whole extent'}, "
        f"clipped at percentiles {config.clip_low:g} and {config.clip_high:g} of each volume; mm a pixel: {common}"
    ]
    if any(abs(down / across - 1) > 0.02 for down, across in spacings):
        notes.append("pixels are not square in some volumes; --spacing resamples them")
    elif len(spacings) > 1:
        notes.append("pixels differ in size between volumes; --spacing resamples them")
    missing = [about["missing"] for _, about in cut if about["missing"]]
    share = sum(missing) / max(len(missing), 1)
    for remark, words in REMARKS.items():
        if whose := [key for key, about in cut if remark in about["remarks"]]:
            notes.append(f"{len(whose):,} volumes " + words.format(f", such as {whose[0]}", share))
    if empty := sum(about["empty"] for _, about in cut):
        notes.append(f"{empty:,} slices left out: less than {config.min_foreground:g} of them is foreground")
    return notes
