"""What reconstructions lose of their images, as bytes: with them an image comes back as it was, pixel for pixel.

A stored value is coded by a distribution that is centred on the reconstruction. Its spread is learned from the images
themselves, by cases: how much the reconstruction changes around the pixel, and how much the known pixels around it had
lost. These also move the centre. Pixels are coded on grids that become finer, so that all of a grid are coded at once:
every fourth pixel of every fourth row, then those between them, by the nearest ones that are known (as PNG's Adam7
does).

Shapes: N images of C channels and H x W pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy  # its parts are loaded where they are first used: all of them take a second
from numpy.typing import NDArray

from vqvae2.coder import law, range_coder

__all__ = ["ResidualModel"]

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Offsets = tuple[tuple[int, int], ...]

_LAWS = ("QuantizedGaussian", "QuantizedLaplace")
_CHANGES = (1, 4, 12, 24, 48, 96)  # of the reconstruction within 3x3 pixels, of 255
_LOSSES = (0.25, 1, 2, 4, 7, 11, 16, 24)  # mean of the known pixels around, of 255
_LEAST, _STEP = 0.05, 8  # smallest spread; steps of a doubling


class ResidualModel:
    """The law of stored values given reconstructions, by cases.

    Args:
        name: of the distribution, as constriction has it.
        weights: by grid and change: how far the centre follows the mean loss around the pixel, in 64ths.
        spreads: by grid, change and loss: how far values lie from the centre, as steps of an eighth of a doubling.
    """

    def __init__(self, name: str, weights: Sequence[Sequence[int]], spreads: Sequence[Sequence[Sequence[int]]]) -> None:
        self.name = name
        self.weights = np.asarray(weights, np.int64)
        self.spreads = np.asarray(spreads, np.int64)

    def settings(self) -> dict[str, Any]:
        """Return what rebuilds it, for JSON."""
        return {"name": self.name, "weights": self.weights.tolist(), "spreads": self.spreads.tolist()}

    @classmethod
    def fit(cls, images: Pixels, made: Pixels, value_range: tuple[float, float]) -> list["ResidualModel"]:
        """Learn from images (N, C, H, W) and their reconstructions: one model for each law, to be compared."""
        lost = images.astype(np.int64) - made
        weights, found = [], []
        for chosen, around, case, loss in _cases(lost, made, value_range):
            own = lost[..., chosen]
            weight = [_weight(own[case == k], around[case == k]) for k in range(len(_CHANGES) + 1)]
            weights.append(weight)
            found.append((own - np.asarray(weight)[case] / 64 * around, case, loss))
        models = []
        for name in _LAWS:
            spreads = [
                [
                    [_spread(error[(case == k) & (loss == j)], name) for j in range(len(_LOSSES) + 1)]
                    for k in range(len(_CHANGES) + 1)
                ]
                for error, case, loss in found
            ]
            models.append(cls(name, weights, spreads))
        return models

    def encode(self, images: Pixels, made: Pixels, value_range: tuple[float, float]) -> bytes:
        """Write images (N, C, H, W), given their reconstructions.

        Raises:
            UserError: the package constriction is not installed.
        """
        encoder = range_coder().RangeEncoder()
        lost = images.astype(np.int64) - made
        for chosen, centre, spread in self._walk(lost, made, value_range):
            values = images[..., chosen].ravel().astype(np.int32)
            encoder.encode(values, self._family(value_range), centre.ravel(), spread.ravel())
        written: bytes = encoder.get_compressed().astype("<u4").tobytes()
        return written

    def decode(self, stream: bytes, made: Pixels, value_range: tuple[float, float]) -> Pixels:
        """Read images (N, C, H, W) back, given the same reconstructions.

        Raises:
            ValueError, AssertionError: the stream is of others.
        """
        decoder = range_coder().RangeDecoder(np.frombuffer(stream, "<u4").astype(np.uint32))
        lost = np.zeros(made.shape, np.int64)
        images = np.zeros_like(made)
        for chosen, centre, spread in self._walk(lost, made, value_range):
            values = decoder.decode(self._family(value_range), centre.ravel(), spread.ravel()).reshape(centre.shape)
            images[..., chosen] = values
            lost[..., chosen] = values - made[..., chosen].astype(np.int64)
        return images

    def _walk(
        self, lost: NDArray[np.int64], made: Pixels, value_range: tuple[float, float]
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]]:
        """Go through the grids: which pixels (H, W), and their centres and spreads, by what ``lost`` holds by then."""
        for grid, (chosen, around, case, loss) in enumerate(_cases(lost, made, value_range)):
            centre = made[..., chosen] + self.weights[grid][case] / 64 * around
            yield chosen, centre, _LEAST * 2.0 ** (self.spreads[grid][case, loss] / _STEP)

    def _family(self, value_range: tuple[float, float]) -> Any:
        return law(self.name, int(value_range[0]), int(value_range[1]))


def _cases(
    lost: NDArray[np.int64], made: Pixels, value_range: tuple[float, float]
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.intp], NDArray[np.intp]]]:
    """Go through the grids: which pixels (H, W); mean loss around them, and their cases by change and by loss."""
    scale = (value_range[1] - value_range[0]) / 255
    # The filters' sizes leave images and channels apart.
    window = (1, 1, 3, 3)
    change = scipy.ndimage.maximum_filter(made, window).astype(np.int64) - scipy.ndimage.minimum_filter(made, window)
    changes = np.searchsorted(_CHANGES, change / scale, side="right")
    for chosen, offsets in _grids(*made.shape[-2:]):
        around, size = _around(lost, chosen, offsets)
        yield chosen, around, changes[..., chosen], np.searchsorted(_LOSSES, size / scale)


def _grids(height: int, width: int) -> Iterator[tuple[NDArray[np.bool_], Offsets]]:
    """Each pixel once: which ones (H, W), and where the known ones lie that are nearest to them."""
    y, x = np.mgrid[:height, :width]
    yield (y % 4 == 0) & (x % 4 == 0), ()
    for step in (2, 1):
        up, across = y % (2 * step), x % (2 * step)
        yield (up == step) & (across == step), tuple((a, b) for a in (-step, step) for b in (-step, step))
        yield (up + across == step) & (up * across == 0), ((0, -step), (0, step), (-step, 0), (step, 0))


def _around(
    lost: NDArray[np.int64], chosen: NDArray[np.bool_], offsets: Offsets
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean loss, and mean size of the loss, of the known pixels around the chosen ones: (N, C, n) each."""
    total, size = (np.zeros((*lost.shape[:2], int(chosen.sum())), np.int64) for _ in range(2))
    if not offsets:
        return total.astype(np.float64), size.astype(np.float64)
    edge = max(max(map(abs, offset)) for offset in offsets)
    padded = np.pad(lost, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    inside = np.pad(np.ones(chosen.shape, np.int64), edge)
    y, x = (places + edge for places in np.nonzero(chosen))
    known = np.zeros(len(y), np.int64)
    for up, across in offsets:
        there = padded[..., y + up, x + across]
        total += there
        size += np.abs(there)
        known += inside[y + up, x + across]
    return total / np.maximum(known, 1), size / np.maximum(known, 1)


def _weight(own: NDArray[np.int64], around: NDArray[np.float64]) -> int:
    power = float((around * around).sum())
    return int(np.clip(round(64 * float((own * around).sum()) / power), 0, 64)) if power else 0


def _spread(error: NDArray[np.float64], name: str) -> int:
    if not len(error):
        return 6 * _STEP
    size = float(np.sqrt((error * error).mean()) if name == _LAWS[0] else np.abs(error).mean())
    return int(np.clip(round(_STEP * np.log2(max(size, _LEAST) / _LEAST)), 0, 20 * _STEP))
