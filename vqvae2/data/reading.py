"""The splits of a data set as pixels: one size, one range of values, one number of channels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from vqvae2.data.duplicates import Thumbnails, near_candidates, nearly_equal, thumbnail
from vqvae2.data.pixel_file import PixelFile
from vqvae2.data.selection import Layout
from vqvae2.errors import UserError

Place = tuple[str, int]
"""An image: its split, and its number there."""


class Reading:
    """The pixels of some splits.

    Args:
        files: the pixels by split.
        key: of an image, for messages.
        skipped: (key, reason) of the files that could not be read.
        layout: of the data, for messages.

    Attributes:
        files: the pixels of the splits that have images.
        count: images in all.
        sizes: (height, width) of the files -> how many.
        coloured: how many images are not grey; grey stored as RGB is grey.
        first_coloured: the first of them.
        highest: of the pixels' values.
        value_range: 0 to 255, or to the top of the fewest bits, from 8, that hold all 16 bit images.
        halved: how many have 16 bits a colour, of which the upper 8 are read.

    Raises:
        UserError: where none can be read, sizes differ, or 8 and 16 bit images are mixed.
    """

    def __init__(
        self,
        files: Mapping[str, PixelFile],
        key: Callable[[Place], str],
        skipped: Sequence[tuple[str, str]],
        layout: Layout,
    ) -> None:
        self.key = key
        self.files = {split: file for split, file in files.items() if len(file.index)}
        self.count = sum(len(file.index) for file in self.files.values())
        if not self.count:
            first = f", such as {skipped[0][0]} ({skipped[0][1]})" if skipped else ""
            raise UserError(f"none of {len(skipped):,} {layout.unit} can be read{first}", layout.folder)
        self.sizes: Counter[tuple[int, int]] = Counter()
        for file in self.files.values():
            found, counts = np.unique(file.index["size"], axis=0, return_counts=True)
            for (height, width), count in zip(found.tolist(), counts.tolist(), strict=True):
                self.sizes[height, width] += count
        self._check_alike()
        colours = {split: np.flatnonzero(file.index["coloured"]) for split, file in self.files.items()}
        self.coloured = sum(map(len, colours.values()))
        self.first_coloured = next(((split, int(rows[0])) for split, rows in colours.items() if len(rows)), None)
        self.halved = sum(int(file.index["halved"].sum()) for file in self.files.values())
        self.highest = max(int(file.index["high"].max()) for file in self.files.values())
        self.value_range = self._value_range()

    def _check_alike(self) -> None:
        wide = sum(int(file.index["wide"].sum()) for file in self.files.values())
        if 0 < wide < self.count:
            one, other = (
                next(key for split, file in self.files.items() if (key := self._first(split, file, is_wide)))
                for is_wide in (True, False)
            )
            raise UserError(
                f"{wide:,} images have 16 bits and {self.count - wide:,} have 8",
                f"{one} and {other}",
                "Store all alike: their brightness cannot be compared",
            )
        shapes = {file.images.shape[2:] for file in self.files.values() if file.images is not None}
        if len(shapes) > 1 or any(file.images is None for file in self.files.values()):
            common = self.sizes.most_common(4)
            told = ", ".join(f"{h}x{w} ({count:,})" for (h, w), count in common)
            told += ", ..." if len(self.sizes) > 4 else ""
            h, w = common[0][0]
            raise UserError(
                "images differ in size",
                told,
                f"Choose one, such as --size {h}x{w}; --fit says how the others come to it",
            )

    def _first(self, split: str, file: PixelFile, wide: bool) -> str:
        """The first image of a bit depth; "" if there is none."""
        rows = np.flatnonzero(file.index["wide"] == wide)
        return self.key((split, int(rows[0]))) if len(rows) else ""

    def _value_range(self) -> tuple[float, float]:
        if not any(file.index["wide"].any() for file in self.files.values()):
            return 0.0, 255.0
        return 0.0, float(next(2**bits for bits in range(8, 17) if self.highest < 2**bits) - 1)

    def demand_range(self, value_range: tuple[float, float]) -> None:
        """Raise UserError unless the files' values fit a stored range."""
        narrow = not any(file.index["wide"].any() for file in self.files.values())
        if self.value_range[1] > value_range[1] or (narrow and value_range[1] > 255):
            raise UserError(
                f"pixel values go up to {self.value_range[1]:g}, those of the training images to {value_range[1]:g}",
                self.key((next(iter(self.files)), 0)),
                "Store both with the same bit depth",
            )

    def copies(self, originals: Sequence[str], split: str) -> dict[Place, Place]:
        """The images of a split that are pixel for pixel in others, each with its original; constant ones have none."""
        known: dict[bytes, Place] = {}
        for name in originals:
            if name in self.files:
                for row, digest in enumerate(self.files[name].index["digest"]):
                    known.setdefault(digest.tobytes(), (name, row))
        known.pop(bytes(32), None)
        own = self.files[split].index["digest"]
        return {
            (split, row): known[text] for row, digest in enumerate(own) if known and (text := digest.tobytes()) in known
        }

    def near_copies(self, originals: Sequence[str], split: str) -> dict[Place, Place]:
        """The images of a split that are nearly in others (recompressed, brightened), each with its original."""
        names = [name for name in originals if name in self.files]
        if not names or split not in self.files:
            return {}
        places = np.cumsum([0] + [len(self.files[name].index) for name in names])
        pooled = np.concatenate([self.files[name].index["pooled"] for name in names])
        found = {}
        for row, candidates in near_candidates(np.asarray(self.files[split].index["pooled"]), pooled):
            which = [
                (names[n], int(i - places[n]))
                for i, n in zip(candidates, np.searchsorted(places, candidates, "right") - 1, strict=True)
            ]
            own = self._thumbnail((split, row))[None]
            if pairs := nearly_equal(own, np.stack([self._thumbnail(place) for place in which])):
                found[split, row] = which[pairs[0][1]]
        return found

    @lru_cache(maxsize=65536)  # noqa: B019 - lives as long as the reading
    def _thumbnail(self, place: Place) -> Thumbnails:
        split, row = place
        images = self.files[split].images
        assert images is not None
        pixels = images[row]
        return thumbnail(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
