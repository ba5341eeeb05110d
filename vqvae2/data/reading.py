"""Many files decoded and brought to one size, one range of values and one number of channels."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqvae2.data.dataset import Pixels
from vqvae2.data.decoding import Picture, UnreadableError, decode_all, fit, recolour
from vqvae2.data.duplicates import Thumbnails, nearly_equal, thumbnail
from vqvae2.data.storage import PixelStore, empty
from vqvae2.errors import UserError


class Reading:
    """Decoded files.

    Args:
        paths: of the files.
        keys: their names in messages.
        size: (height, width) to which all are brought, None to demand that they are equal.
        how: "shrink", "pad", "crop", "resize" or "cover", as of `decoding.fit`.
        pictures: what they hold, where that is known already.

    Attributes:
        kept: indices of the files that could be read, in order.
        skipped: (key, reason) of the others.
        sizes: (height, width) of the files -> how many.
        coloured: indices of those that are not grey; grey stored as RGB is grey.
        grey: whether all are.
        value_range: 0 to 255, or to the top of the fewest bits, from 9, that hold all 16 bit images.
        halved: how many have 16 bits a colour, of which the upper 8 are read.

    Raises:
        UserError: where none can be read, sizes differ, or 8 and 16 bit images are mixed.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        keys: Sequence[str],
        size: tuple[int, int] | None,
        how: str,
        pictures: Sequence[Picture] | None = None,
    ) -> None:
        self.keys = keys
        self.skipped: list[tuple[str, str]] = []
        self.sizes: Counter[tuple[int, int]] = Counter()
        self._pictures: dict[int, Picture] = {}
        self._thumbnails: dict[int, Thumbnails] = {}
        held = PixelStore()

        def prepare(picture: Picture) -> Picture:
            if size is not None:
                picture.pixels = fit(picture.pixels, size, how)
            return picture

        ready = None if pictures is None else enumerate(prepare(picture) for picture in pictures)
        for index, result in decode_all(paths, prepare) if ready is None else ready:
            if isinstance(result, UnreadableError):
                self.skipped.append((keys[index], str(result)))
            else:
                result.pixels = held.keep(result.pixels)
                self._pictures[index] = result
                self.sizes[result.size] += 1
        self.kept = sorted(self._pictures)
        if not self.kept:
            first = f", such as {keys[0]} ({self.skipped[0][1]})" if self.skipped else ""
            raise UserError(f"none of {len(paths):,} images can be read{first}", paths[0].parent if paths else "")
        if size is None and len(self.sizes) > 1:
            common = self.sizes.most_common(4)
            told = ", ".join(f"{h}x{w} ({count:,})" for (h, w), count in common)
            told += ", ..." if len(self.sizes) > 4 else ""
            h, w = common[0][0]
            raise UserError(
                "images differ in size",
                told,
                f"Choose one, such as --size {h}x{w}; --fit says how the others come to it",
            )
        self.coloured = [i for i in self.kept if self._pictures[i].pixels.ndim == 3]
        self.grey = not self.coloured
        self.halved = sum(picture.halved for picture in self._pictures.values())
        self.value_range = self._value_range()

    def _value_range(self) -> tuple[float, float]:
        wide = [i for i in self.kept if self._pictures[i].pixels.dtype == np.uint16]
        if not wide:
            return 0.0, 255.0
        if len(wide) < len(self.kept):
            narrow = next(i for i in self.kept if i not in wide)
            raise UserError(
                f"{len(wide):,} images have 16 bits and {len(self.kept) - len(wide):,} have 8",
                f"{self.keys[wide[0]]} and {self.keys[narrow]}",
                "Store all alike: their brightness cannot be compared",
            )
        top = max(int(self._pictures[i].pixels.max()) for i in wide)
        return 0.0, float(next(2**bits for bits in range(9, 17) if top < 2**bits) - 1)

    def demand_range(self, value_range: tuple[float, float]) -> None:
        """Raise UserError unless the files' values fit a stored range."""
        if self.value_range[1] > value_range[1] or (self.value_range[1] > 255) != (value_range[1] > 255):
            raise UserError(
                f"pixel values go up to {self.value_range[1]:g}, those of the training images to {value_range[1]:g}",
                self.keys[self.kept[0]],
                "Store both with the same bit depth",
            )

    def stack(self, rows: Sequence[int], channels: int) -> Pixels:
        """The images (N, C, H, W) of these indices, uint8 or uint16."""
        sample = self._pictures[self.kept[0]].pixels
        images = empty((len(rows), channels, *sample.shape[:2]), sample.dtype)
        for place, index in enumerate(rows):
            images[place] = recolour(self._pictures[index].pixels, channels)
        return images

    def copies(self, originals: Sequence[int], others: Sequence[int]) -> dict[int, int]:
        """The others that are pixel for pixel among the originals, each with its original; constant ones left aside."""
        known = {self._pictures[i].digest: i for i in reversed(originals)}
        known.pop(b"", None)
        return {i: known[digest] for i in others if (digest := self._pictures[i].digest) in known}

    def near_copies(self, originals: Sequence[int], others: Sequence[int]) -> dict[int, int]:
        """The others that are nearly among the originals (recompressed, brightened), each with its original."""
        if not originals or not others:
            return {}
        some, rest = (np.stack([self._thumbnail(i) for i in rows]) for rows in (originals, others))
        return {others[a]: originals[b] for a, b in nearly_equal(rest, some)}

    def _thumbnail(self, index: int) -> Thumbnails:
        if index not in self._thumbnails:
            self._thumbnails[index] = thumbnail(self._pictures[index].pixels)
        return self._thumbnails[index]
