"""What the user says about the data: the fields become flags and are stored with the run."""

import math
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from vqvae2.data.selection import Choice, LayoutChoice
from vqvae2.data.volumes import SliceConfig
from vqvae2.errors import UserError

Fit = Literal["shrink", "pad", "crop", "resize", "cover"]


@dataclass(frozen=True)
class DataConfig(SliceConfig):
    """Where the images are and how they are read; raises UserError for a value that cannot be meant."""

    data: str = "phantom"
    """A folder of images or of volumes (NIfTI, DICOM, MGH, MHA, NRRD, Analyze), a BIDS tree, a text file with a path on
    each line, `phantom` (drawn brain slices), or `torchvision:` CIFAR10, MNIST, FashionMNIST."""

    size: str | None = None
    """Height and width in pixels, as HxW; default: the images' own, which must then be all equal."""

    fit: Fit = "shrink"
    """How other sizes come to --size, shape kept: `shrink` scales down what is larger and puts zeros around, `resize`
    also scales up, `cover` scales until the size is covered and cuts out the middle, `crop` only cuts, `pad` only puts
    zeros around."""

    channels: int | None = None
    """1 (grey) or 3 (RGB); default: as the data has it, grey stored as RGB counted as grey."""

    layout: LayoutChoice = "auto"
    """Layout of the data folder; auto detects it, and the data report says what was detected."""

    exclude: tuple[str, ...] = ()
    """Patterns of files to leave out, such as `*_crop*` or `augmented/*`: of a path relative to the data, a name, or a
    folder."""

    include_masks: bool = False
    """Include masks and label maps, recognised by names such as `_mask`, `seg` or a folder `labels`."""

    bids_suffix: str | None = None
    """Kind of volume that is taken, by the end of its name: `T1w`, `t1c`. Default: T1w of a BIDS tree, else all."""

    bids_entity: tuple[str, ...] = ()
    """Parts that the names of volumes must have, such as `space=MNI152NLin2009cAsym`; `space=` takes those without."""

    labels: str | None = None
    """Labels, as FILE:COLUMN[,COLUMN], a CSV or TSV here or in the data; its column `file` holds paths relative to the
    data, or names, or its column `subject` (`participant_id`, `ID`, ...) the people, and `session_id` or `visit` their
    visits. A column is given by its name or, from 1, its number."""

    missing: tuple[str, ...] = ()
    """Cells of labels in tables that stand for a missing value, such as -4 or 999, besides `n/a`, `unknown`, `-9`
    and the like."""

    bins: tuple[str, ...] = ()
    """Edges at which a column of numbers is cut into classes, such as age=40,60; default: quartiles where there
    are more than 20 different values."""

    numbers: tuple[str, ...] = ()
    """Columns of numbers that the priors learn as such, so that samples can be asked for at any value, such as `age`;
    default: numbers are classes, or binned."""

    subject_pattern: str | None = None
    """Regular expression for paths relative to the data; its group 1, or the whole match, is the subject."""

    data_root: str = "data"
    """Folder in which `torchvision:` keeps its downloads."""

    phantom_images: int = 2000
    """Images of the phantom in all splits together, >= 10."""

    split_seed: int = 0
    """Seed of the hash that assigns subjects to splits, >= 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exclude", "bids_entity", "missing", "bins", "numbers"):
            if isinstance(value := getattr(self, name), str):  # one, in Python
                object.__setattr__(self, name, (value,))
        if self.channels not in (None, 1, 3):
            raise UserError(f"--channels {self.channels} is not supported", how="Give 1 (grey) or 3 (RGB)")
        if self.phantom_images < 10:
            raise UserError(f"--phantom-images {self.phantom_images} is too few", how="Give at least 10")
        if self.split_seed < 0:
            raise UserError(f"--split-seed {self.split_seed} is negative", how="Give 0 or more")
        if self.fit not in get_args(Fit):
            raise UserError(f"--fit {self.fit} is not known", how=f"Give one of {', '.join(get_args(Fit))}")
        self.height_width()
        self.edges()
        self.choice()

    def choice(self) -> Choice:
        """Which files are taken; UserError if an entity is not NAME=VALUE."""
        entities = [tuple(text.split("=", 1)) for text in self.bids_entity]
        if wrong := next((text for text in self.bids_entity if not re.fullmatch(r"\w+=[^=]*", text)), None):
            raise UserError(
                f"--bids-entity {wrong} is not an entity", how="Give NAME=VALUE, such as space=MNI152NLin2009cAsym"
            )
        for name, count in Counter(name for name, *_ in set(entities)).items():
            if count > 1:
                raise UserError(f"--bids-entity gives {name} twice", how="Give one value of it")
        return Choice(
            self.layout,
            self.bids_suffix,
            tuple((name, value) for name, value in entities),
            self.exclude,
            self.include_masks,
        )

    def edges(self) -> dict[str, list[float]]:
        """The stated edges by attribute; UserError if one is not ATTRIBUTE=NUMBER[,NUMBER] in order."""
        stated: dict[str, list[float]] = {}
        for text in self.bins:
            name, equals, listed = text.partition("=")
            try:
                numbers = [float(part) for part in listed.split(",")]
            except ValueError:
                numbers = []
            rising = all(low < high for low, high in pairwise(numbers))
            if not (name and equals and numbers and rising and all(map(math.isfinite, numbers))):
                raise UserError(
                    f"--bins {text} names no edges", how="Give ATTRIBUTE=NUMBER[,NUMBER], such as age=40,60"
                )
            if stated.setdefault(name, numbers) != numbers:
                raise UserError(f"--bins gives {name} twice, with other edges", how="Give its edges once")
        return stated

    def number_names(self, known: Container[str]) -> tuple[str, ...]:
        """The columns of `numbers`, which may be joined by commas; a known name may hold some itself."""
        parts = (part for text in self.numbers for part in ([text] if text in known else text.split(",")))
        return tuple(name.strip() for name in parts if name.strip())

    def height_width(self) -> tuple[int, int] | None:
        """The wanted (height, width) in pixels, None for the images' own; UserError if it is not HxW."""
        if self.size is None:
            return None
        parts = self.size.lower().replace("×", "x").split("x")
        if len(parts) == 1:
            parts *= 2
        if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise UserError(f"--size {self.size} is not a size", how="Give height and width in pixels, such as 128x128")
        return int(parts[0]), int(parts[1])
