"""From what the user names to images in memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqvae2.data.config import DataConfig
from vqvae2.data.dataset import ImageData, ImageSet
from vqvae2.data.labels import encode
from vqvae2.data.layout import read_layout
from vqvae2.data.reading import Reading
from vqvae2.data.ready import open_phantom, open_torchvision
from vqvae2.data.selection import Layout, key_of
from vqvae2.data.slicing import config_of, cut_volumes
from vqvae2.data.splits import SPLITS, assign, overlap
from vqvae2.data.subjects import subjects_by_pattern
from vqvae2.data.tables import Table, parse_labels, read_table
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


def load_images(
    source: str | Path | Sequence[str | Path], like: dict[str, Any], config: DataConfig | None = None
) -> ImageSet:
    """Read a folder, or files by their paths, to a stored config's channels, size and values, without splits.

    Args:
        source: a folder, or paths of images.
        like: a stored ``ImageData.to_config()``.
        config: which files of a folder are taken; None: those of the stored kind.

    Returns:
        The images, their keys relative to the folder, labels (N, A) all -1; ``skipped`` tells what could not
        be read.

    Raises:
        UserError: where nothing can be read or values exceed the stored range.
    """
    skipped: list[tuple[str, str]] = []
    if isinstance(source, str | Path):
        entities = tuple(like.get("bids_entity", ()))
        config = config or DataConfig(bids_suffix=like.get("bids_suffix"), bids_entity=entities)
        layout = read_layout(Path(source).expanduser(), replace(config.choice(), again=True))
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
    layout = read_layout(Path(config.data).expanduser(), replace(config.choice(), again=like is not None))
    folder = layout.folder
    slicing = config_of(like) if like and like.get("slices") else config
    layout, pictures = cut_volumes(layout, slicing)
    texts, subjects = _tables(config, layout)
    place = assign(subjects, layout.splits, config.split_seed)
    if "val" not in place:
        raise UserError(
            f"all {len(place):,} images show one subject, {subjects[0]}, so that nothing can be held out",
            folder,
            "If they show several, give --subject-pattern; '.+' counts each image as a subject",
        )
    _check_apart(subjects, place, layout)
    notes = layout.notes + _split_notes(place, layout)
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
    elif channels == 3 and read.coloured and len(read.coloured) < len(read.kept) / 2:
        notes.append(
            f"{len(read.coloured):,} of {len(read.kept):,} images have colour, such as {read.keys[read.coloured[0]]}, "
            "so all are read as RGB; --channels 1 reads all as grey"
        )
    member = {j: place[wanted[j]] for j in read.kept}
    # Where data are read again, their first report has told of what is nearly the same.
    notes += _copy_notes(read, member, near=like is None)

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
        doubts=layout.doubts + (layout.subject_doubts if config.subject_pattern is None else []),
        fit=how,
        bins=labels.bins,
        sizes=dict(read.sizes),
        slices=slice_settings(slicing) if pictures is not None else None,
        bids_suffix=config.bids_suffix,
        bids_entity=config.bids_entity,
    )


def _tables(config: DataConfig, layout: Layout) -> tuple[dict[str, list[str]], list[str]]:
    """The texts of each attribute, and the subjects by pattern, else tables, else folders and names."""
    texts = dict(layout.attributes)
    wanted = parse_labels(config.labels, layout.folder) if config.labels is not None else []
    tables = [table for table, _ in wanted]
    own = layout.folder / "slices.csv"
    if own.is_file() and not any(own.samefile(table.path) for table in tables):
        try:
            tables.insert(0, read_table(own))
        except UserError as error:
            layout.notes.append(f"slices.csv is not used: {error}")
    subjects = _subjects(config, layout, tables)
    for table, columns in wanted:
        texts |= _columns(table, columns, layout, subjects)
    return texts, subjects


def _columns(table: Table, columns: tuple[str, ...], layout: Layout, subjects: list[str]) -> dict[str, list[str]]:
    """The texts of a table's columns for each image, and notes on what was not found."""
    name = table.path.name
    layout.notes += table.notes
    for column in columns:
        if said := table.blanks[column]:
            told = ", ".join(f"{cell} ({count:,})" for cell, count in said.most_common(6))
            layout.notes.append(f"{column}: treated as missing: {told}")
    files = [key_of(path, layout.folder) for path in layout.paths] if layout.volumes else layout.keys
    found = table.match(files, subjects, people=layout.volumes)
    lacking = sum(row is None for row in found.rows)
    if lacking == len(found.rows):
        raise UserError(
            "no row of the table names an image of the data",
            table.path,
            f"An image is called {files[0]}, its subject {subjects[0]}",
        )
    if found.by_visit:
        layout.notes.append(f"{found.by_visit:,} images have the labels of their visit in {name}")
    if found.loose:
        layout.notes.append(f"{found.what} of {name} are matched approximately: {found.loose}")
    if lacking:
        layout.notes.append(f"{lacking:,} images have no row in {name}; their labels count as missing")
    if found.absent:
        layout.notes.append(f"{found.absent:,} rows of {name} name {found.what} that are not there")
    for column in columns:
        if known := found.conflicts.get(column):
            layout.notes.append(
                f"{column}: the rows of {len(known):,} {found.what} contradict each other, such as {known[0]}; "
                "they count as missing"
            )
    return {column: [row[column] if row else "" for row in found.rows] for column in columns}


def _subjects(config: DataConfig, layout: Layout, tables: list[Table]) -> list[str]:
    """Whom each image shows; says in a note what told it."""
    subjects, told_by = list(layout.subjects), layout.told_by
    if config.subject_pattern is not None:
        subjects, told_by = subjects_by_pattern(layout.keys, config.subject_pattern), "--subject-pattern"
    else:
        for table in tables:
            if not table.subject_columns or table.file_column is None or layout.volumes:
                continue
            column = table.subject_columns[0]
            rows = table.match(layout.keys, subjects).rows
            named = [row[column] if row else "" for row in rows]
            known = sum(name != "" for name in named)
            if known:
                told_by = f"{table.path.name} and {told_by}" if known < len(named) else table.path.name
            if known < len(named):
                lacking = len(named) - known
                layout.notes.append(
                    f"{lacking:,} of {len(named):,} images have no subject in {table.path.name}; theirs is told by "
                    f"{layout.told_by}"
                )
            subjects = [new or old for new, old in zip(named, subjects, strict=True)]
    alone = sum(count == 1 for count in Counter(subjects).values())
    if alone > len(subjects) / 2 and config.subject_pattern is None:
        layout.notes.append(
            f"{alone:,} of {len(subjects):,} images each count as a separate subject, by {told_by}; "
            "if several show one person, give --subject-pattern"
        )
    else:
        layout.notes.append(f"subjects by {told_by}, such as {subjects[0]} of {layout.keys[0]}")
    return subjects


def _check_apart(subjects: list[str], place: list[str], layout: Layout) -> None:
    """Raise UserError where a subject is in two splits, which only folders that name the splits can lead to."""
    shared = overlap(subjects, place)
    if shared:
        example = min(shared)
        anew = "--layout flat" + (" --subject-pattern '([^/]+)/[^/]+$'" if layout.told_by == "the folders" else "")
        raise UserError(
            f"{len(shared):,} subjects are in more than one split, such as {example} "
            f"({', '.join(sorted(shared[example]))}), so that held-out figures would be too good",
            layout.folder,
            f"Give {anew}, which splits anew by subject; or, if these are not people, --subject-pattern ('.+' "
            "counts each image as a subject)",
        )


def _split_notes(place: list[str], layout: Layout) -> list[str]:
    notes = []
    if any(layout.splits) and "val" not in layout.splits and "val" in place:
        notes.append("there is no val folder: a tenth of the training subjects is held out as val")
    if "selection" not in place:
        notes.append("too few training subjects to set any aside for selection")
    return notes


def _copy_notes(read: Reading, member: dict[int, str], near: bool) -> list[str]:
    """Remark on images that are, exactly or nearly, in an earlier split too."""
    exact: dict[int, int] = {}
    nearly: dict[int, int] = {}
    for position, split in enumerate(SPLITS[1:], 1):
        earlier = [j for j in read.kept if member[j] in SPLITS[:position]]
        own = [j for j in read.kept if member[j] == split]
        exact |= read.copies(earlier, own)
        if near:
            nearly |= read.near_copies(earlier, [j for j in own if j not in exact])
    notes = []
    for found, words in ((exact, "exact copies"), (nearly, "nearly copies")):
        if found:
            pairs = Counter((member[a], member[b]) for a, b in found.items())
            told = ", ".join(f"{count:,} of {split} in {other}" for (split, other), count in pairs.items())
            one, other = next(iter(found.items()))
            notes.append(
                f"{len(found):,} images are {words} of images of another split ({told}), such as {read.keys[one]} of "
                f"{read.keys[other]}"
            )
    return notes
