"""From a layout of volumes to one of slices."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqvae2.checkpoint import config_from
from vqvae2.data.decoding import Picture, UnreadableError, digest_of
from vqvae2.data.selection import Layout
from vqvae2.data.storage import PixelStore
from vqvae2.data.subjects import stem_of
from vqvae2.data.volumes import REMARKS, SliceConfig, cut_all
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
        ``(layout, pictures)``: one entry a slice, its key the volume's with ``_k`` and the index along the axis (the
        volume's alone if that is a single slice); None for images, which are still to be read.

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
    told: dict[str, list[str]] = {remark: [] for remark in REMARKS}
    missing: list[float] = []
    spacings: Counter[tuple[float, float]] = Counter()
    skipped = list(layout.skipped)
    for index, found in cut_all([layout.series.get(path, (path,)) for path in layout.paths], config):
        if isinstance(found, UnreadableError):
            skipped.append((layout.keys[index], str(found)))
            continue
        stem = layout.keys[index] if stems[index] in shared else stems[index]
        empty += found.empty
        for remark in (*found.remarks, *(["missing"] if found.missing else [])):
            told[remark].append(layout.keys[index])
        missing += [found.missing] if found.missing else []
        spacings[tuple(round(size, 3) for size in found.spacing)] += 1  # type: ignore[index]
        for pixels, place in zip(found.pixels, found.places, strict=True):
            size = (pixels.shape[0], pixels.shape[1])
            pictures.append(Picture(held.keep(pixels), size, digest_of(pixels), False))
            keys.append(stem if "flat" in found.remarks else f"{stem}_k{place:03d}")
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
    for remark, whose in told.items():
        if whose:
            share = sum(missing) / max(len(missing), 1)
            notes.append(f"{len(whose):,} volumes " + REMARKS[remark].format(f", such as {whose[0]}", share))
    if empty:
        notes.append(f"{empty:,} slices left out: less than {config.min_foreground:g} of them is foreground")
    cut = replace(
        layout,
        paths=[layout.paths[i] for i in rows],
        keys=keys,
        splits=[layout.splits[i] for i in rows],
        attributes={name: [values[i] for i in rows] for name, values in layout.attributes.items()},
        subjects=[layout.subjects[i] for i in rows],
        skipped=skipped,
        notes=layout.notes + notes,
    )
    return cut, pictures
