"""From a layout of volumes to one of slices."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqvae2.checkpoint import config_from
from vqvae2.data.decoding import Picture, UnreadableError, digest_of
from vqvae2.data.layout import Layout
from vqvae2.data.storage import PixelStore
from vqvae2.data.subjects import stem_of
from vqvae2.data.volumes import SliceConfig, cut_all
from vqvae2.errors import UserError


def config_of(like: dict[str, Any]) -> SliceConfig:
    """Return how the volumes of a stored data set were cut; the defaults where it had none."""
    return config_from(SliceConfig, like.get("slices") or {}, "the stored slices")


def cut_volumes(layout: Layout, config: SliceConfig) -> tuple[Layout, list[Picture] | None]:
    """Cut the volumes of a layout.

    Args:
        layout: of volumes, or of images, which is returned as it is.
        config: how.

    Returns:
        ``(layout, pictures)``: one entry a slice, its key the volume's with ``_k`` and the index along the axis; None
        for images, which are still to be read.

    Raises:
        UserError: no volume can be read.
    """
    if not layout.volumes:
        return layout, None
    stems = [(Path(key).parent / stem_of(Path(key).name)).as_posix() for key in layout.keys]
    shared = {stem for stem, count in Counter(stems).items() if count > 1}  # a.nii and a.nii.gz
    pictures: list[Picture] = []
    held = PixelStore()
    keys, rows, empty = [], [], 0
    unoriented: list[str] = []
    spacings: Counter[tuple[float, float]] = Counter()
    skipped = list(layout.skipped)
    for index, found in cut_all(layout.paths, config):
        if isinstance(found, UnreadableError):
            skipped.append((layout.keys[index], str(found)))
            continue
        stem = layout.keys[index] if stems[index] in shared else stems[index]
        empty += found.empty
        unoriented += [] if found.oriented else [layout.keys[index]]
        spacings[tuple(round(size, 3) for size in found.spacing)] += 1  # type: ignore[index]
        for pixels, place in zip(found.pixels, found.places, strict=True):
            size = (pixels.shape[0], pixels.shape[1])
            pictures.append(Picture(held.keep(pixels), size, digest_of(pixels), False))
            keys.append(f"{stem}_k{place:03d}")
            rows.append(index)
    if not pictures:
        first = f", such as {skipped[-1][0]} ({skipped[-1][1]})" if skipped else ""
        raise UserError(f"none of {len(layout.paths):,} volumes can be read{first}", layout.paths[0].parent)
    common = ", ".join(f"{count:,} of {down:g} x {across:g}" for (down, across), count in spacings.most_common(3))
    notes = [
        f"{len(set(rows)):,} volumes, {config.slice_axis} slices {config.slice_range or 'of the whole extent'}, "
        f"clipped at percentiles {config.clip_low:g} and {config.clip_high:g} of each volume; mm a pixel: {common}"
    ]
    if any(abs(down / across - 1) > 0.02 for down, across in spacings):
        notes.append("pixels are not square in some volumes; --spacing resamples them")
    elif len(spacings) > 1:
        notes.append("pixels differ in size between volumes; --spacing resamples them")
    if unoriented:
        notes.append(
            f"{len(unoriented):,} volumes do not say how they lie, such as {unoriented[0]}; their axes are taken to "
            "run to the left, to the front and upwards (LAS), as nibabel does"
        )
    if empty:
        notes.append(f"{empty:,} slices left out: less than {config.min_foreground:g} of them is foreground")
    classes = None if layout.classes is None else [layout.classes[i] for i in rows]
    cut = replace(
        layout,
        paths=[layout.paths[i] for i in rows],
        keys=keys,
        splits=[layout.splits[i] for i in rows],
        classes=classes,
        subjects=[layout.subjects[i] for i in rows],
        skipped=skipped,
        notes=layout.notes + notes,
    )
    return cut, pictures
