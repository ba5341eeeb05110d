"""From what the user names to images in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqvae2.data.config import DataConfig
from vqvae2.data.dataset import ImageData, ImageSet
from vqvae2.data.labels import encode, parse_labels, read_table
from vqvae2.data.layout import Layout, read_layout, subjects_by_pattern
from vqvae2.data.reading import Reading
from vqvae2.data.ready import open_phantom, open_torchvision
from vqvae2.data.slicing import config_of, cut_volumes
from vqvae2.data.splits import SPLITS, assign, overlap
from vqvae2.data.volumes import slice_settings
from vqvae2.errors import UserError


def open_data(config: DataConfig, splits: Sequence[str] | None = None, like: dict[str, Any] | None = None) -> ImageData:
    """Read the data that a config names.

    Args:
        config: what the user said.
        splits: which of "train", "selection", "val" and "test" to decode; None for all that there are.
        like: a stored ``ImageData.to_config()``, whose size, channels, value range and classes are kept.

    Raises:
        UserError: for data that cannot be found, read or brought to one size.

    >>> data = open_data(DataConfig(data="phantom", phantom_images=10), splits=["train", "val"])
    >>> data.splits["train"][0]["image"].shape
    torch.Size([1, 64, 64])
    """
    unknown = sorted(set(splits or ()) - set(SPLITS))
    if unknown:
        raise UserError(f"there is no split {', '.join(unknown)}", how=f"Splits are {', '.join(SPLITS)}")
    if config.data == "phantom":
        return open_phantom(config, splits, like)
    if config.data.startswith("torchvision:"):
        return open_torchvision(config, splits, like)
    return _open_folder(config, splits, like)


def load_images(source: str | Path | Sequence[str | Path], like: dict[str, Any]) -> ImageSet:
    """Read a folder, or files by their paths, to a stored config's channels, size and values, without splits.

    Args:
        source: a folder, or paths of images.
        like: a stored ``ImageData.to_config()``.

    Returns:
        The images, their keys relative to the folder, labels (N, A) all -1; ``skipped`` tells what could not
        be read.

    Raises:
        UserError: where nothing can be read or values exceed the stored range.
    """
    skipped: list[tuple[str, str]] = []
    if isinstance(source, str | Path):
        layout = read_layout(Path(source).expanduser())
        layout, pictures = cut_volumes(layout, config_of(like))
        paths, keys, subjects, skipped = layout.paths, layout.keys, layout.subjects, layout.skipped
    else:
        pictures = None
        paths = [Path(path) for path in source]
        keys = [path.as_posix() for path in paths]
        subjects = keys
    read = Reading(paths, keys, (like["height"], like["width"]), like["fit"], pictures)
    low, high = like["value_range"]
    read.demand_range((low, high))
    return ImageSet(
        read.stack(read.kept, like["channels"]),
        [keys[i] for i in read.kept],
        [subjects[i] for i in read.kept],
        np.full((len(read.kept), len(like["attributes"])), -1, np.int64),
        (low, high),
        skipped + read.skipped,
    )


def _open_folder(config: DataConfig, splits: Sequence[str] | None, like: dict[str, Any] | None) -> ImageData:
    folder = Path(config.data).expanduser()
    layout = read_layout(folder, config.layout, config.bids_suffix)
    slicing = config_of(like) if like and like.get("slices") else config
    layout, pictures = cut_volumes(layout, slicing)
    texts, subjects = _tables(config, layout, folder)
    place = assign(subjects, layout.splits, config.split_seed)
    if "val" not in place:
        raise UserError(
            f"all {len(place):,} images show one subject, {subjects[0]}, so that nothing can be held out",
            folder,
            "If they show several, give --subject-pattern; '.+' counts each image as a subject",
        )
    notes = layout.notes + _split_notes(subjects, place, layout)
    training = np.array([split in ("train", "selection") for split in place])
    stored = like or {}
    edges = config.edges()
    if unused := sorted(set(edges) - set(texts)):
        raise UserError(f"there are no labels {', '.join(unused)}", "--bins", "Give --labels FILE:COLUMN with them")
    labels = encode(texts, training, stored.get("attributes"), stored.get("bins"), edges)

    wanted = [i for i, split in enumerate(place) if splits is None or split in splits]
    if not wanted:
        there = ", ".join(split for split in SPLITS if split in place)
        raise UserError(f"there are no images in {', '.join(splits or ())}", folder, f"There are {there}")
    size = (stored["height"], stored["width"]) if like else config.height_width()
    how = stored.get("fit", config.fit)
    chosen = [layout.paths[i] for i in wanted], [layout.keys[i] for i in wanted]
    read = Reading(*chosen, size, how, None if pictures is None else [pictures[i] for i in wanted])
    value_range = read.value_range
    if like:
        value_range = (like["value_range"][0], like["value_range"][1])
        read.demand_range(value_range)
    channels = stored.get("channels") or config.channels or (1 if read.grey else 3)
    if read.halved:
        notes.append(f"{read.halved:,} images have 16 bits a colour, of which the upper 8 are read")
    if channels == 1 and not read.grey:
        notes.append("colours are turned to grey by their luminance")
    member = {j: place[wanted[j]] for j in read.kept}
    known = [j for j, split in member.items() if split in ("train", "selection")]
    held_out = [j for j, split in member.items() if split in ("val", "test")]
    copies = read.copies(known, held_out)
    if copies:
        example = read.keys[copies[0]]
        notes.append(f"{len(copies):,} held-out images are exact copies of training images, such as {example}")
    near: dict[int, int] = {}
    if like is None:  # where data are read again, their first report has told it
        exact = set(copies)
        near = read.near_copies(known, [j for j in held_out if j not in exact])
    if near:
        one, other = next(iter(near.items()))
        notes.append(
            f"{len(near):,} held-out images are nearly copies of training images, such as {read.keys[one]} of "
            f"{read.keys[other]}"
        )

    held: dict[str, ImageSet] = {}
    for split in SPLITS:
        local = [j for j in read.kept if member[j] == split]
        rows = [wanted[j] for j in local]
        if rows:
            images = read.stack(local, channels)
            names, whom = [layout.keys[i] for i in rows], [subjects[i] for i in rows]
            held[split] = ImageSet(images, names, whom, labels.values[rows], value_range)
    height, width = next(iter(held.values())).images.shape[2:]
    return ImageData(
        name=config.data,
        layout=layout.words,
        channels=channels,
        height=height,
        width=width,
        value_range=value_range,
        attributes=labels.attributes,
        splits=held,
        skipped=layout.skipped + read.skipped,
        notes=notes + labels.notes,
        fit=how,
        bins=labels.bins,
        sizes=dict(read.sizes),
        slices=slice_settings(slicing) if pictures is not None else None,
    )


def _tables(config: DataConfig, layout: Layout, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The texts of each attribute, and the subjects by pattern, else tables, else folders and names."""
    texts = {"class": layout.classes} if layout.classes is not None else {}
    subjects = list(layout.subjects)
    own = folder / "slices.csv"
    tables = [read_table(own)] if own.is_file() else []
    columns: tuple[str, ...] = ()
    if config.labels is not None:
        table, columns = parse_labels(config.labels, folder)
        tables.append(table)
    if config.subject_pattern is not None:
        subjects = subjects_by_pattern(layout.keys, config.subject_pattern)
    else:
        for table in tables:
            if "subject" in table.columns and table.file_column is not None:
                told = table.match(layout.keys, subjects)
                subjects = [
                    row["subject"] if row and row["subject"] else old for row, old in zip(told, subjects, strict=True)
                ]
    if not columns:
        return texts, subjects
    table = tables[-1]
    rows = table.match(layout.keys, subjects)
    lacking = sum(row is None for row in rows)
    if lacking == len(rows):
        raise UserError(
            "no row of the table names an image of the data",
            table.path,
            f"An image is called {layout.keys[0]}, its subject {subjects[0]}",
        )
    if lacking:
        layout.notes.append(f"{lacking:,} images have no row in {table.path.name}; their labels count as missing")
    named = {id(row) for row in rows if row is not None}
    absent = sum(id(row) not in named for row in table.rows)
    if absent:
        what = "files" if table.file_column else "subjects"
        layout.notes.append(f"{absent:,} rows of {table.path.name} name {what} that are not there")
    texts |= {column: [row[column] if row else "" for row in rows] for column in columns}
    return texts, subjects


def _split_notes(subjects: list[str], place: list[str], layout: Layout) -> list[str]:
    notes = []
    shared = overlap(subjects, place)
    if shared:
        example = min(shared)
        notes.append(
            f"{len(shared):,} subjects are in more than one split, such as {example} "
            f"({', '.join(sorted(shared[example]))}): held-out figures are too good"
        )
    if any(layout.splits) and "val" not in layout.splits and "val" in place:
        notes.append("there is no val folder: a tenth of the training subjects is held out as val")
    if "selection" not in place:
        notes.append("too few training subjects to set any aside for selection")
    return notes
