"""Which of the files that lie there are taken: images or volumes, no masks, one kind, one space."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vqvae2.data import decoding, rules, volume_files
from vqvae2.data.dicom import read_series
from vqvae2.data.masks import is_of_volume, left_out
from vqvae2.data.scans import processed
from vqvae2.data.sources import Found, ask_of_unread, key_of, nothing_found, select
from vqvae2.data.subjects import is_mask, kind_of, known_subject, stem_of
from vqvae2.errors import UserError

LayoutChoice = Literal["auto", "flat", "classes", "subjects", "splits", "volumes", "bids"]
_ONE_OF = ("space", "res", "desc", "rec", "part")  # entities of BIDS of which one image has several makings
_CONTRASTS = ("ce", "acq", "echo", "inv", "mt", "flip", "trc")  # by which images of one suffix differ in contrast
_DERIVED = re.compile(r"(?:^|/)(?:derivatives|sourcedata|code)/")
_FREESURFER = ("T1.mgz", "brain.mgz", "norm.mgz", "orig.mgz", "nu.mgz")
_AVERAGE = re.compile(r"fsaverage.*|.*_average", re.IGNORECASE)
_PERSON_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/")
_ANATOMY_FOLDER = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?anat/")


@dataclass
class Layout:
    """The files of a folder and what their places say; lists run alongside."""

    words: str
    paths: list[Path]
    keys: list[str]  # relative, with forward slashes
    splits: list[str | None]
    subjects: list[str]
    folder: Path
    attributes: dict[str, list[str]] = field(default_factory=dict)  # by the folders; "" where a folder says nothing
    volumes: bool = False  # the files are volumes
    series: dict[Path, tuple[Path, ...]] = field(default_factory=dict)  # of a DICOM series' first file: all
    made_of: dict[str, str] = field(default_factory=dict)  # of a key with a step of SPM's in front: without it
    told_by: str = "the names of the files"  # what says whom an image shows
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # readings that are uncertain, with the flag that settles them
    subject_doubts: list[str] = field(default_factory=list)  # whom images show; --subject-pattern settles them all

    @property
    def unit(self) -> str:
        """What the files are."""
        return "volumes" if self.volumes else "images"

    @property
    def originals(self) -> list[str]:
        """The keys from which subjects are read: of a volume that SPM made, that of the scan it was made from."""
        return [self.made_of.get(key, key) for key in self.keys]

    def part(self, rows: Sequence[int]) -> "Layout":
        """Some of the files; what is noted or asked of them is noted of all."""
        attributes = {name: [values[i] for i in rows] for name, values in self.attributes.items()}
        return replace(
            self,
            paths=[self.paths[i] for i in rows],
            keys=[self.keys[i] for i in rows],
            splits=[self.splits[i] for i in rows],
            subjects=[self.subjects[i] for i in rows],
            attributes=attributes,
        )


@dataclass(frozen=True)
class Choice:
    """Which files are taken, as `DataConfig` describes it."""

    layout: LayoutChoice = "auto"
    suffix: str | None = None
    entities: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    include_masks: bool = False
    again: bool = False  # after the training, perhaps for other data: a kind or entity that is not found is passed over


def gather(folder: Path, found: Found, choice: Choice) -> Layout:
    """Choose between images and volumes, and leave out masks and what --exclude names."""
    skipped = found.skipped
    matched: set[str] = set()
    images, scans, dicom, unread = (
        select(paths, folder, choice.exclude, skipped, matched)
        for paths in (found.images, found.volumes, found.dicom, found.unread)
    )
    doubts = [
        f"--exclude {pattern} matches no file; patterns are of a path relative to the data, a name, or a folder"
        for pattern in choice.exclude
        if pattern not in matched and not choice.again
    ]
    cut = choice.layout in ("volumes", "bids") or _are_data(folder, images, scans, dicom, doubts)
    series = {}
    if dicom and cut:
        try:
            series = read_series(dicom, folder, skipped, doubts)
        except UserError as error:
            if not images:
                raise
            doubts.append(f"the images are taken, as of the DICOM files beside them {error}")
    if scans and series:
        doubts.append(
            f"{len(series):,} DICOM series lie beside {len(scans):,} volumes of other formats, which may be the same "
            f"scans; the latter are taken, such as {key_of(scans[0], folder)}; "
            f"--exclude {' '.join(sorted(_patterns(scans)))} takes the series"
        )
        skipped.append((f"{len(series):,} DICOM series", "left aside for the volumes of other formats"))
        series = {}
    scans += series
    cut = choice.layout in ("volumes", "bids") or (cut and bool(scans))
    if not (scans if cut else images):
        raise nothing_found(
            folder, found, "volumes" if cut else "images", decoding.SUFFIXES * (not cut) + volume_files.SUFFIXES
        )
    if cut and images:
        reads = (
            f"--exclude {' '.join(sorted(_patterns(scans)))}" if found.volumes else "--exclude with a pattern of these"
        )
        skipped.append((f"{len(images):,} images", f"left aside for the volumes; {reads} reads them"))
    if (scans or dicom) and not cut:
        skipped.append(
            (f"{len(scans) + len(dicom):,} volumes", "left aside for the images; --layout volumes reads them")
        )
    paths = scans if cut else images
    ask_of_unread(unread, len(paths), folder, doubts)
    keys = [series[path].key if path in series else key_of(path, folder) for path in paths]
    layout = Layout("volumes" if cut else "", paths, keys, [], [], folder, volumes=cut, skipped=skipped, doubts=doubts)
    layout.series = {path: one.files for path, one in series.items()}
    layout.subjects = [series[path].patient if path in series else "" for path in paths]
    if not choice.include_masks:
        _leave_out_masks(layout)
        _of_freesurfer(layout)
    if layout.volumes:
        _read_processed(layout, choice.include_masks)
    if not layout.paths:
        raise UserError("only masks, maps and averages are here", folder, "--include-masks takes them")
    return layout


def _are_data(folder: Path, images: list[Path], scans: list[Path], dicom: list[Path], doubts: list[str]) -> bool:
    """Whether the volumes are the data, and not the images: there are none, or they show the volumes for a check."""
    if not images or not (scans or dicom):
        return not images
    names = [key_of(path, folder) for path in scans]
    if names and ((folder / "dataset_description.json").is_file() or is_bids(folder, names)):
        return True  # pictures in a BIDS tree are of its quality control
    keys = [key_of(path, folder) for path in images]
    others = [key for key, picture in zip(keys, map(is_of_volume, keys), strict=True) if not picture]
    # A series is a folder of files.
    volumes = sum(not is_mask(stem_of(path.name)) for path in scans) if scans else len({path.parent for path in dicom})
    if len(others) > volumes or not volumes:
        return False
    if others:
        doubts.append(
            f"{len(images):,} images such as {others[0]} lie beside {volumes:,} volumes such as "
            f"{key_of((scans or dicom)[0], folder)}, which are taken; --exclude "
            f"{' '.join(sorted(_patterns(scans))) or 'and a pattern of their names'} takes the images"
        )
    return True


def _of_freesurfer(layout: Layout) -> None:
    """Of each of FreeSurfer's subjects take one volume, and none of its averages of other people."""
    mri: dict[Path, dict[str, int]] = defaultdict(dict)
    for i, path in enumerate(layout.paths):
        if path.name.lower().endswith((".mgz", ".mgh")) and "mri" in path.parts[-3:-1]:
            folder = path.parent if path.parent.name == "mri" else path.parents[1]
            mri[folder]["/".join(path.parts[len(folder.parts) :])] = i
    left: set[int] = set()
    for folder, held in mri.items():
        first = next((name for name in _FREESURFER if name in held), None)
        if _AVERAGE.fullmatch(folder.parent.name):
            left |= set(held.values())
        elif first is not None:
            left |= {i for name, i in held.items() if name != first}
    if left:
        told = (
            "left out; of each subject the first is taken of " + ", ".join(_FREESURFER) + "; --exclude leaves out one"
        )
        layout.skipped.append((f"{len(left):,} other volumes of FreeSurfer", told))
        keep(layout, [i for i in range(len(layout.paths)) if i not in left])


def _leave_out_masks(layout: Layout) -> None:
    what = left_out(layout.keys, layout.volumes, layout.doubts)
    for kind in sorted(set(what) - {""}):
        left = [key for key, own in zip(layout.keys, what, strict=True) if own == kind]
        told = f"left out by their names ({', '.join(left[:3])}); --include-masks takes them"
        layout.skipped.append((f"{len(left):,} {kind}", told))
    keep(layout, [i for i, own in enumerate(what) if not own])


def _read_processed(layout: Layout, maps_too: bool) -> None:
    """Find the volumes that SPM and CAT12 made from others, leave out the maps among them, and ask about the rest."""
    places = [(key.rpartition("/")[0], stem_of(key.rpartition("/")[2])) for key in layout.keys]
    made = processed(places)
    begins = {place: place[1].removesuffix(base) for place, (base, _) in made.items()}
    for key, place in zip(layout.keys, places, strict=True):
        if place in made:
            folder, slash, name = key.rpartition("/")
            layout.made_of[key] = folder + slash + name.removeprefix(begins[place])
    if maps_too:
        return
    rows = [i for i, place in enumerate(places) if not made.get(place, ("", False))[1]]
    if left := [key for i, key in enumerate(layout.keys) if i not in set(rows)]:
        told = f"left out by their names, as SPM and CAT12 give them ({left[0]}); --include-masks takes them"
        layout.skipped.append((f"{len(left):,} maps of tissue or deformation", told))
        keep(layout, rows)
    steps = {place: base for place, (base, is_map) in made.items() if not is_map}
    if not steps:
        return
    (folder, stem), base = next(iter(sorted(steps.items())))
    patterns = " ".join(sorted({f"'{begins[place]}*'" for place in steps}))
    layout.doubts.append(
        f"{len(steps):,} volumes such as {'/'.join(filter(None, (folder, stem)))} are steps of processing by their "
        f"names, as SPM gives them, and what they were made of, {base}, is there, too; all are taken together, in "
        f"whatever space each is; --exclude {patterns} takes the latter alone"
    )
    unsure = [place for place, base in steps.items() if not known_subject(base)]
    letters = set(begins.values())
    if unsure and len(letters) == 1 == len(min(letters)):
        own, base = min(unsure)[1], steps[min(unsure)]
        layout.subject_doubts.append(
            f"{own} and {base} are read as of one subject, as SPM would call what it made of the latter; if they are "
            "two, give --subject-pattern"
        )


def _patterns(scans: list[Path]) -> set[str]:
    return {f"'*{end}'" for path in scans for end in volume_files.SUFFIXES if path.name.lower().endswith(end)}


def keep(layout: Layout, rows: list[int]) -> None:
    layout.paths, layout.keys = [layout.paths[i] for i in rows], [layout.keys[i] for i in rows]
    layout.subjects = [layout.subjects[i] for i in rows]


def choose_kind(layout: Layout, choice: Choice, tree: bool) -> None:
    """Take the volumes of one kind, where that is asked for or this is a BIDS tree, and of one space."""
    stems = [stem_of(key.rsplit("/", 1)[-1]) for key in layout.keys]
    suffix = choice.suffix or "T1w"
    if tree:
        layout.words = f"BIDS tree, {suffix}"
        kinds = Counter(stem.rsplit("_", 1)[-1] for stem in stems)
        own = [not _DERIVED.search(key) for key in layout.keys]
        rows = [i for i, stem in enumerate(stems) if own[i] and stem.rsplit("_", 1)[-1] == suffix]
        loose = [layout.keys[i] for i in rows if not _PERSON_FOLDER.search(layout.keys[i])]
        if loose and choice.layout != "bids":  # a template beside the folders of people
            rows = [i for i in rows if _PERSON_FOLDER.search(layout.keys[i])]
            layout.doubts.append(
                f"{len(loose):,} of {len(loose) + len(rows):,} volumes called ..._{suffix} lie in no folder of a "
                f"subject ({', '.join(loose[:3])}) and are left out; --layout bids takes them"
            )
        if not rows and choice.again:
            layout.skipped.append((f"..._{suffix}", "no volume is called so, as in the training; all are taken"))
            rows = [i for i, kept in enumerate(own) if kept]
        if not rows:
            told = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common(5))
            raise UserError(
                f"no volume of the BIDS tree is called ..._{suffix}", layout.folder, f"--bids-suffix: {told}"
            )
        reason = f"derived, in no folder of a subject, or not called ..._{suffix} (--bids-suffix)"
    else:
        rows = list(range(len(stems)))
        if choice.suffix:
            ends = [re.split(r"[_\-. ]", stem)[-1] for stem in stems]
            rows = [i for i in rows if ends[i] == suffix] or [i for i in rows if ends[i].lower() == suffix.lower()]
            if not rows and choice.again:
                layout.skipped.append((f"...{suffix}", "no volume is called so, as in the training; all are taken"))
                rows = list(range(len(stems)))
            elif not rows:
                told = ", ".join(f"{end} ({count:,})" for end, count in Counter(ends).most_common(5))
                how = f"--bids-suffix: names end in {told}"
                raise UserError(f"no volume is called ...{suffix}", layout.folder, how)
        reason = f"not called ...{suffix} (--bids-suffix)"
    if len(rows) < len(stems):
        layout.skipped.append((f"{len(stems) - len(rows):,} volumes", reason))
    keep(layout, rows)
    _choose_entities(layout, choice)
    groups: dict[str, list[str]] = {}
    for key in () if tree else layout.keys:
        found = rules.CHANNEL.search(key)
        if kind := found["channel"] if found else kind_of(stem_of(key.rsplit("/", 1)[-1])):
            groups.setdefault(kind, []).append(key)
    if len(groups) > 1:
        common = sorted(groups.items(), key=lambda one: -len(one[1]))
        layout.doubts.append(
            f"volumes of several kinds are read together: {_listed(common[:6])}; --bids-suffix KIND reads one alone"
        )
    elif not tree and not choice.suffix:
        _ask_of_devices(layout)


def _listed(groups: Sequence[tuple[str, list[str]]]) -> str:
    """Groups of files in words: how many each has, and the first file of the first three."""
    told = ", ".join(f"{name or 'none'} ({len(files):,})" for name, files in groups)
    return f"{told}, such as {', '.join(files[0] for _, files in groups[:3])}"


def _entities(name: str) -> dict[str, str]:
    """The ``key-value`` parts of a file's name."""
    return dict(part.split("-", 1) for part in stem_of(name).split("_") if "-" in part)


def _choose_entities(layout: Layout, choice: Choice) -> None:
    """Take the volumes whose names have the wanted ``key-value`` parts, and of several spaces or makings one."""
    wanted = dict(choice.entities)
    for name in (*wanted, *(name for name in _ONE_OF if name not in wanted)):
        names = [key.rsplit("/", 1)[-1] for key in layout.keys]
        parts = [_entities(n).get(name, "") for n in names]
        there = Counter(part for part, n in zip(parts, names, strict=True) if n.startswith("sub-"))
        value = wanted.get(name, "")
        known = name in wanted
        if known and choice.again and value not in parts:
            layout.skipped.append((f"{name}-{value}", "no volume has it, as in the training"))
            known = False
        if not known:
            if len(there) < 2:
                continue
            value = "" if "" in there else min(there, key=lambda value: (-there[value], value))
            told = ", ".join(f"{value or 'none'} ({count:,})" for value, count in there.most_common(5))
            layout.doubts.append(
                f"volumes differ in {name}: {told}; taken: {value or 'those without'}, such as "
                f"{next(n for n, part in zip(names, parts, strict=True) if part == value)}; "
                f"--bids-entity {name}=NAME takes another"
            )
        rows = [i for i, part in enumerate(parts) if part == value]
        if not known:
            rows = _with_those_who_lack_it(layout, name, parts, rows)
        if not rows:
            told = ", ".join(sorted({part or "none" for part in parts})[:6])
            raise UserError(f"no volume has {name}-{value}", "--bids-entity", f"There are: {told}")
        if len(rows) < len(parts):
            layout.skipped.append(
                (f"{len(parts) - len(rows):,} volumes", f"not {name}={value or 'none'} (--bids-entity)")
            )
        keep(layout, rows)
    _ask_of_contrasts(layout, [name for name in _CONTRASTS if name not in wanted])


def _ask_of_contrasts(layout: Layout, names: Sequence[str]) -> None:
    """Ask about volumes of BIDS that differ in contrast, such as those with and without a contrast agent."""
    files = [key.rsplit("/", 1)[-1] for key in layout.keys]
    files = [name for name in files if name.startswith("sub-")]
    entities = list(map(_entities, files))
    for name in names:
        groups: dict[str, list[str]] = defaultdict(list)
        for file, own in zip(files, entities, strict=True):
            groups[own.get(name, "")].append(file)
        if len(groups) > 1:
            common = sorted(groups.items(), key=lambda one: (-len(one[1]), one[0]))
            without = f", --exclude '*_{name}-*' those without" if "" in groups else ""
            layout.doubts.append(
                f"volumes that differ in {name} are read together: {_listed(common[:5])}; --bids-entity {name}=NAME "
                f"reads one alone{without}"
            )


def _ask_of_devices(layout: Layout) -> None:
    """Ask about volumes whose names say that several devices took them, such as CT and PET."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in layout.keys:
        words = re.split(r"[\W_\d]+", stem_of(key.rsplit("/", 1)[-1]))
        found = {word for word in words if rules.MODALITIES.fullmatch(word)}
        if len(found) == 1:
            groups[found.pop()].append(key)
    if len({"mr" if word.lower() == "mri" else word.lower() for word in groups}) > 1:
        common = sorted(groups.items(), key=lambda one: (-len(one[1]), one[0]))
        layout.doubts.append(
            f"volumes of several kinds are read together: {_listed(common[:5])}; --exclude '*{common[-1][0]}*' leaves "
            "one out"
        )


def _with_those_who_lack_it(layout: Layout, name: str, parts: list[str], rows: list[int]) -> list[int]:
    """Add volumes of people who have none of the making that is taken, and say how many people these are.

    Of a reconstruction (``rec``) one of theirs is added. Spaces and resolutions are not mixed: they are left out.
    """
    whom = [known_subject(key.rsplit("/", 1)[-1]) or key for key in layout.keys]
    lacking = sorted(set(whom) - {whom[i] for i in rows})
    if not lacking:
        return rows
    if name == "rec":
        often, held = Counter(parts), defaultdict(set)
        for who, part in zip(whom, parts, strict=True):
            held[who].add(part)
        best = {who: min(held[who], key=lambda part: (-often[part], part)) for who in lacking}
        taken = set(rows)
        rows = [i for i in range(len(parts)) if i in taken or best.get(whom[i]) == parts[i]]
        told = f"of {len(lacking):,} people who have no such volume, such as {lacking[0]}, another {name} is taken"
    else:
        told = f"{len(lacking):,} people who have no such volume, such as {lacking[0]}, are left out"
    layout.doubts[-1] += f"; {told}"
    return rows


def is_bids(folder: Path, keys: list[str]) -> bool:
    """Whether nearly all volumes lie in folders of subjects as BIDS has them, or do and a file of BIDS lies beside."""
    raw = [key for key in keys if not _DERIVED.search(key)]
    described = any((folder / name).is_file() for name in ("dataset_description.json", "participants.tsv"))
    pattern = _PERSON_FOLDER if described else _ANATOMY_FOLDER
    return 10 * sum(pattern.search(key) is not None for key in raw) >= 9 * len(raw) > 0
