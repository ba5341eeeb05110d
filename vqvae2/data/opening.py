"""From what the user names to images by split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqvae2 import distributed
from vqvae2.data import rules
from vqvae2.data.config import DataConfig
from vqvae2.data.dataset import ImageData, ImageSet
from vqvae2.data.label_maps import ask_of_label_maps
from vqvae2.data.labels import encode, untrained_notes
from vqvae2.data.layout import read_layout
from vqvae2.data.people import pattern_of, warn_of_each_alone
from vqvae2.data.pixel_file import PixelFile, Source
from vqvae2.data.pixels import Files, read_pixels
from vqvae2.data.reading import Place, Reading
from vqvae2.data.ready import open_phantom, open_torchvision
from vqvae2.data.selection import Layout
from vqvae2.data.slicing import Volumes, config_of, slice_keys, slice_notes
from vqvae2.data.sources import key_of
from vqvae2.data.splits import SPLITS, assign, overlap
from vqvae2.data.subjects import subjects_by_pattern
from vqvae2.data.tables import Table, codes_for_missing, parse_labels, read_table
from vqvae2.data.volumes import SliceConfig, slice_settings
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
    if config.data == "phantom" or config.data.startswith("torchvision:"):
        if like is None:  # else the flags are of the run's own data
            _refuse_of_folders(config)
        return (open_phantom if config.data == "phantom" else open_torchvision)(config, splits, like)
    return _open_folder(config, splits, like)


def _refuse_of_folders(config: DataConfig) -> None:
    """Refuse labels and choices of files, which only a folder of images can follow, rather than ignore them."""
    for name in ("labels", "bins", "numbers", "subject_pattern", "exclude", "bids_suffix", "bids_entity", "missing"):
        if getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is for a folder of images, not for {config.data}", how=f"Leave out {flag}")


def _refuse_of_volumes(config: DataConfig) -> None:
    """Refuse choices of volumes and of their slices for images, rather than ignore them."""
    usual = DataConfig()
    # --slice-axis may describe slices that were cut beforehand: presets do not mirror those from the side.
    names = {setting.name for setting in fields(SliceConfig)} - {"slice_axis"} | {"bids_suffix", "bids_entity"}
    for name in sorted(name for name in names if getattr(config, name) != getattr(usual, name)):
        flag = f"--{name.replace('_', '-')}"
        raise UserError(f"{flag} is for volumes, and these are images", config.data, f"Leave out {flag}")


def load_images(
    source: str | Path | Sequence[str | Path], like: dict[str, Any], config: DataConfig | None = None
) -> ImageSet:
    """Read a folder, or files by their paths, to a stored config's channels, size and values, without splits.

    Args:
        source: a folder, a volume, an image, or paths of images.
        like: a stored ``ImageData.to_config()``.
        config: which files of a folder are taken; None: those of the stored kind.

    Returns:
        The images, their keys relative to the folder, labels (N, A) all -1; ``skipped`` tells what could not
        be read.

    Raises:
        UserError: where nothing can be read or values exceed the stored range.
    """
    if isinstance(source, str | Path):
        entities = tuple(like.get("bids_entity", ()))
        config = config or DataConfig(bids_suffix=like.get("bids_suffix"), bids_entity=entities)
        layout = read_layout(Path(source).expanduser(), replace(config.choice(), again=True))
    else:
        paths = [Path(path) for path in source]
        keys = [path.as_posix() for path in paths]
        layout = Layout("", paths, keys, [None] * len(paths), keys, paths[0].parent if paths else Path())
    everything = {"all": list(range(len(layout.paths)))}
    opened = _open(layout, everything, (like["height"], like["width"]), like["fit"], like["channels"], config_of(like))
    low, high = like["value_range"]
    opened.read.demand_range((low, high))
    count = len(opened.keys["all"])
    return ImageSet(
        opened.read.files["all"].in_channels(like["channels"]),
        opened.keys["all"],
        [layout.subjects[i] for i in opened.rows["all"]],
        np.full((count, len(like["attributes"])), -1, np.int64),
        (low, high),
        layout.skipped + opened.skipped,
        opened.read.files["all"],
    )


@dataclass
class _Opened:
    """The pixels of some splits, and by split the rows of the layout that its images are of, and their keys."""

    read: Reading
    rows: dict[str, list[int]]
    keys: dict[str, list[str]]
    skipped: list[tuple[str, str]]
    notes: list[str]


def _open(
    layout: Layout,
    wanted: Mapping[str, Sequence[int]],
    size: tuple[int, int] | None,
    how: str,
    channels: int | None,
    slicing: SliceConfig,
) -> _Opened:
    """Read the pixels of splits: of each the wanted rows of the layout."""
    names = slice_keys(layout) if layout.volumes else layout.keys
    files: dict[str, PixelFile] = {}
    rows: dict[str, list[int]] = {}
    keys: dict[str, list[str]] = {}
    skipped: list[tuple[str, str]] = []
    cut: list[tuple[str, dict[str, Any]]] = []
    for split, chosen in wanted.items():
        source: Source
        if layout.volumes:
            groups = [layout.series.get(layout.paths[i], (layout.paths[i],)) for i in chosen]
            source = Volumes(groups, slicing, str(layout.folder))
        else:
            source = Files([layout.paths[i] for i in chosen], str(layout.folder))
        file = files[split] = read_pixels(source, size, how, grey=channels == 1)
        rows[split] = [chosen[item] for item in file.index["item"].tolist()]
        keys[split] = [
            names[i] if place < 0 else f"{names[i]}_k{place:03d}"
            for i, place in zip(rows[split], file.index["place"].tolist(), strict=True)
        ]
        skipped += [(layout.keys[chosen[item]], reason) for item, reason in file.skipped]
        cut += [(layout.keys[chosen[item]], about) for item, about in file.about.items()]
    read = Reading(files, lambda place: keys[place[0]][place[1]], skipped, layout)
    return _Opened(read, rows, keys, skipped, slice_notes(slicing, cut) if layout.volumes else [])


def _open_folder(config: DataConfig, splits: Sequence[str] | None, like: dict[str, Any] | None) -> ImageData:
    layout = read_layout(Path(config.data).expanduser(), replace(config.choice(), again=like is not None))
    folder = layout.folder
    slicing = config_of(like) if like and like.get("slices") else config
    if like is None and not layout.volumes:
        _refuse_of_volumes(config)
    texts, subjects = _tables(config, layout)
    place = assign(subjects, layout.splits, config.split_seed)
    size = (like["height"], like["width"]) if like else config.height_width()
    if "val" not in place:
        _open(layout, {"train": range(len(place))}, size, config.fit, config.channels, slicing)  # perhaps it holds none
        raise UserError(
            f"all {len(place):,} {layout.unit} show one subject, {subjects[0]}, so that nothing can be held out",
            folder,
            "Add volumes of other people, or give --subject-pattern if they show several"
            if layout.volumes
            else "If they show several, give --subject-pattern; '.+' counts each image as a subject",
        )
    _check_apart(subjects, place, layout)
    notes = layout.notes
    notes += _split_notes(place, layout)
    training = np.array([split in ("train", "selection") for split in place])
    stored = like or {}
    edges = config.edges()
    if unused := sorted(set(edges) - set(texts)):
        raise UserError(f"there are no labels {', '.join(unused)}", "--bins", "Give --labels FILE:COLUMN with them")
    numbers = config.number_names(texts)
    if unused := sorted(set(numbers) - set(texts)):
        raise UserError(f"there are no labels {', '.join(unused)}", "--numbers", "Give --labels FILE:COLUMN with them")
    if like is None and (both := sorted(set(edges) & set(numbers))):
        raise UserError(f"{both[0]} cannot be both binned and a number", "--numbers", "Leave out one of the flags")
    labels = encode(
        texts,
        training,
        stored.get("attributes"),
        stored.get("bins"),
        edges,
        stored.get("numbers", ()) if like else numbers,
    )
    if like is None:
        notes += untrained_notes(labels, np.array([split == "train" for split in place]))

    wanted = {split: [i for i, own in enumerate(place) if own == split] for split in SPLITS if split in place}
    chosen = {split: rows for split, rows in wanted.items() if splits is None or split in splits}
    if not chosen:
        raise UserError(f"there are no images in {', '.join(splits or ())}", folder, f"There are {', '.join(wanted)}")
    how = stored.get("fit", config.fit)
    opened = _open(layout, chosen, size, how, stored.get("channels") or config.channels, slicing)
    read = opened.read
    value_range = read.value_range
    if like:
        value_range = (like["value_range"][0], like["value_range"][1])
        read.demand_range(value_range)
    if like is None:
        ask_of_label_maps(read, opened.rows, layout, subjects)
    channels = stored.get("channels") or config.channels or (3 if read.coloured else 1)
    notes += opened.notes
    slices = layout.volumes and all((file.index["place"] < 0).all() for file in read.files.values())
    if slices and config.subject_pattern is None:  # files of a slice each
        warn_of_each_alone(layout, subjects, layout.told_by)
    if read.halved:
        notes.append(f"{read.halved:,} images have 16 bits a colour, of which the upper 8 are read")
    if channels == 1 and read.coloured:
        notes.append("colours are turned to grey by their luminance")
    elif channels == 3 and read.first_coloured and read.coloured < read.count / 2:
        notes.append(
            f"{read.coloured:,} of {read.count:,} images have colour, such as {read.key(read.first_coloured)}, "
            "so all are read as RGB; --channels 1 reads all as grey"
        )
    # Where data are read again, their first report has told of what is nearly the same.
    # The main process writes it: the others need not look, which takes minutes among a million.
    notes += _copy_notes(read, near=like is None and distributed.is_main())

    held = {
        split: ImageSet(
            file.in_channels(channels),
            opened.keys[split],
            [subjects[i] for i in opened.rows[split]],
            labels.values[opened.rows[split]],
            value_range,
            file=file,
        )
        for split, file in read.files.items()
    }
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
        skipped=layout.skipped + opened.skipped,
        notes=notes + labels.notes,
        doubts=layout.doubts + (layout.subject_doubts if config.subject_pattern is None else []),
        fit=how,
        bins=labels.bins,
        numbers=labels.numbers,
        sizes=dict(read.sizes),
        slices=slice_settings(slicing) if layout.volumes else None,
        bids_suffix=config.bids_suffix,
        bids_entity=config.bids_entity,
    )


def _tables(config: DataConfig, layout: Layout) -> tuple[dict[str, list[str]], list[str]]:
    """The texts of each attribute, and the subjects by pattern, else tables, else folders and names."""
    texts = dict(layout.attributes)
    wanted = parse_labels(config.labels, layout.folder, config.missing) if config.labels is not None else []
    tables = [table for table, _ in wanted]
    own = layout.folder / "slices.csv"
    if own.is_file() and not any(own.samefile(table.path) for table in tables):
        try:
            tables.insert(0, read_table(own, config.missing))
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
    files = _files_of(layout)
    found = table.match(files, subjects)
    if layout.volumes and table.subject_columns:  # the table's files may be slices
        ways = (found, table.match(files, subjects, people=True))
        found = max(ways, key=lambda way: sum(row is not None for row in way.rows))
    lacking = sum(row is None for row in found.rows)
    if lacking == len(found.rows):
        folders = {part for key in files for part in key.split("/")[:-1]}
        people = {row[column] for row in table.rows for column in table.subject_columns} & folders
        raise UserError(
            "no row of the table names an image of the data",
            table.path,
            f"An image is called {files[0]}, its subject {subjects[0]}"
            + (f". A folder is called as the table's {min(people)}: give --layout subjects" if people else ""),
        )
    if found.by_visit:
        layout.notes.append(f"{found.by_visit:,} {layout.unit} have the labels of their visit in {name}")
    if found.loose:
        layout.notes.append(f"{found.what} of {name} are matched approximately: {found.loose}")
    if lacking:
        layout.notes.append(f"{lacking:,} {layout.unit} have no row in {name}; their labels count as missing")
    if found.absent:
        layout.notes.append(f"{found.absent:,} rows of {name} name {found.what} that are not there")
    for column in columns:
        if known := found.conflicts.get(column):
            layout.notes.append(
                f"{column}: the rows of {len(known):,} {found.what} contradict each other, such as {known[0]}; "
                "they count as missing"
            )
    texts = {column: [row[column] if row else "" for row in found.rows] for column in columns}
    for column, cells in texts.items():
        alike: dict[str, set[str]] = {}
        for cell in set(cells) - {""}:
            alike.setdefault(rules.ABBREVIATIONS.get(cell.casefold(), cell.casefold()), set()).add(cell)
        if spelled := [sorted(held) for held in alike.values() if len(held) > 1]:
            layout.doubts.append(
                f"{column}: {', '.join(min(spelled))} are read as different classes; if they are one, write them alike "
                f"in {name}"
            )
        if codes := codes_for_missing(cells):
            told = ", ".join(f"{code} ({cells.count(code):,} {layout.unit})" for code in codes[:3])
            layout.doubts.append(
                f"{column}: {told} may stand for a missing value; --missing {' '.join(codes)} reads it so"
            )
    return texts


def _files_of(layout: Layout) -> list[str]:
    """The file of each image, or volume, relative to the data."""
    return [key_of(path, layout.folder) for path in layout.paths] if layout.volumes else layout.keys


def _subjects(config: DataConfig, layout: Layout, tables: list[Table]) -> list[str]:
    """The subject of each image; a note names the source."""
    subjects, told_by = list(layout.subjects), layout.told_by
    if config.subject_pattern is not None:
        subjects, told_by = subjects_by_pattern(layout.keys, config.subject_pattern), "--subject-pattern"
    else:
        for table in tables:
            if not table.subject_columns or (table.file_column is None and table.image_ids is None):
                continue
            column = table.subject_columns[0]
            if table.image_ids is not None and not rules.PEOPLE_COLUMNS.fullmatch(column.lower()):
                continue  # Site ID
            found = table.match(_files_of(layout), subjects)
            if found.what != "files":
                continue
            named = [row[column] if row else "" for row in found.rows]
            known = sum(name != "" for name in named)
            if layout.volumes and 2 * known < len(named):  # the table's files are slices
                continue
            if known:
                told_by = f"{table.path.name} and {told_by}" if known < len(named) else table.path.name
            if known < len(named):
                lacking = len(named) - known
                layout.notes.append(
                    f"{lacking:,} of {len(named):,} {layout.unit} have no subject in {table.path.name}; theirs is told "
                    f"by {layout.told_by}"
                )
            subjects = [new or old for new, old in zip(named, subjects, strict=True)]
    if layout.volumes or config.subject_pattern is not None or not warn_of_each_alone(layout, subjects, told_by):
        layout.notes.append(f"subjects by {told_by}, such as {subjects[0]} of {layout.keys[0]}")
    return subjects


def _check_apart(subjects: list[str], place: list[str], layout: Layout) -> None:
    """Raise UserError where a subject is in two splits, which only folders that name the splits can lead to."""
    shared = overlap(subjects, place)
    if shared:
        example = min(shared)
        own = pattern_of(layout.keys, subjects) if layout.told_by == "the folders" else "REGEX"
        anew = "--layout flat" + (f" --subject-pattern {own}" if own != "REGEX" else "")
        other = pattern_of(layout.keys, [f"{split}/{who}" for split, who in zip(layout.splits, subjects, strict=True)])
        raise UserError(
            f"{len(shared):,} subjects are in more than one split, such as {example} "
            f"({', '.join(sorted(shared[example]))}), so that held-out figures would be too good",
            layout.folder,
            f"Give {anew}, which splits anew by subject; or, if each split has other people of these names, "
            f"--subject-pattern {other}; or, if folders that were read as people are classes, --layout classes; or, if "
            "these are not people, --subject-pattern '.+', which counts each image as a subject",
        )


def _split_notes(place: list[str], layout: Layout) -> list[str]:
    notes = []
    if any(layout.splits) and "val" not in layout.splits and "val" in place:
        notes.append("there is no val folder: a tenth of the training subjects is held out as val")
    if "selection" not in place:
        notes.append("too few training subjects to set any aside for selection")
    return notes


def _copy_notes(read: Reading, near: bool) -> list[str]:
    """Remark on images that are, exactly or nearly, in an earlier split too."""
    exact: dict[Place, Place] = {}
    nearly: dict[Place, Place] = {}
    for position, split in enumerate(SPLITS[1:], 1):
        if split in read.files:
            exact |= read.copies(SPLITS[:position], split)
            if near:
                nearly |= read.near_copies(SPLITS[:position], split)
    notes = []
    nearly = {one: other for one, other in nearly.items() if one not in exact}
    for found, words in ((exact, "exact copies"), (nearly, "nearly copies")):
        if found:
            pairs = Counter((one[0], other[0]) for one, other in found.items())
            told = ", ".join(f"{count:,} of {split} in {other}" for (split, other), count in pairs.items())
            one, other = next(iter(found.items()))
            notes.append(
                f"{len(found):,} images are {words} of images of another split ({told}), such as {read.key(one)} of "
                f"{read.key(other)}"
            )
    return notes
