"""Ancestral sampling: the top's codes, each finer level's given the coarser ones, then the image.

Razavi et al. 2019 (arXiv 1906.00446), algorithm 2 and section 3.2. The distribution is the model's own: nothing is
approximated. Sample i is made of random numbers that depend on the seed, on i and on the level alone, in chunks of one
fixed size, the last one padded; so a set can be enlarged, interrupted or shared out and holds the same bytes.

Shapes: N samples, S of a chunk, K codes, P positions of a level, A label attributes.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.covariates import nearest, number_of
from vqvae2.device import widest
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.vqvae import VQVAE

__all__ = [
    "Samples",
    "Sharpness",
    "check_priors",
    "chunk_rows",
    "draw_codes",
    "draw_labels",
    "label_rows",
    "log_probabilities",
    "sample",
    "sample_chunk",
    "sample_chunks",
    "sample_codes",
    "sharpness_by_level",
]

_LEAST = 8  # training images whose labels are drawn for a number


@dataclass(frozen=True)
class Sharpness:
    """How a level's distribution is changed before a code is drawn; the default leaves it as it is."""

    temperature: float = 1.0
    """Logits are divided by it; > 0, below 1 sharpens."""
    top_k: int = 0
    """Draw among the k most probable codes; 0: among all."""
    top_p: float = 1.0
    """Draw among the fewest codes whose probability reaches p, in (0, 1] (Holtzman et al. 2020)."""
    guidance: float = 1.0
    """Weight of the label, >= 0: logits go from those without a label (0) to those with it (1) and beyond (Ho and
    Salimans 2022, arXiv 2207.12598). Anything but 1 takes twice the work."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.guidance < 0:
            raise ValueError(f"need temperature > 0, top_k >= 0, 0 < top_p <= 1 and guidance >= 0, got {self}")


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    Attributes:
        images: (N, C, H, W) in [-1, 1].
        codes: by level, top first, (N, h, w) int64.
        nll: (N, levels) in nats per code under the priors themselves, whatever the sharpness.
        label: (N, A) int64, those that the priors were given, -1 missing.
    """

    images: Tensor
    codes: list[Tensor]
    nll: Tensor
    label: Tensor


def log_probabilities(logits: Tensor, sharpness: Sharpness) -> Tensor:
    """Apply temperature, then top-k, then top-p.

    Args:
        logits: (B, K).
        sharpness: of the level.

    Returns:
        (B, K) log-probabilities in float64, -inf for codes that are left out.
    """
    log_p = (logits.to(widest(logits.device)) / sharpness.temperature).log_softmax(-1)
    if 0 < sharpness.top_k < log_p.shape[-1]:
        least = log_p.topk(sharpness.top_k, -1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf).log_softmax(-1)
    if sharpness.top_p < 1:
        ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        # A code is kept while those before it fall short of p, so that the kept ones reach it.
        ordered = ordered.masked_fill(before >= sharpness.top_p, -torch.inf)
        log_p = torch.empty_like(log_p).scatter_(-1, order, ordered).log_softmax(-1)
    return log_p


def draw_codes(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Invert the distribution function: log-probabilities (B, K), numbers in [0, 1) (B,) -> codes (B,) int64."""
    cumulative = log_p.exp().cumsum(-1)
    # right=True: a code of probability zero is never the first to exceed the number.
    codes = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return codes.clamp_max_(log_p.shape[-1] - 1)[:, 0]


def sample_codes(
    prior: Prior,
    uniform: Tensor,
    condition: list[Tensor] | None = None,
    label: Tensor | None = None,
    sharpness: Sharpness | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample one level.

    Args:
        prior: of the level.
        uniform: (B, P) random numbers in [0, 1), float64, one for each position in raster order, on any device.
        condition: codes of the coarser levels, top first, (B, h', w').
        label: (B, A) int64, -1 missing; None: all missing.
        sharpness: None: the prior's own distribution.
        progress: called with the number of codes made, after each row.

    Returns:
        ``(codes, nll)``: (B, h, w) int64, and (B,) nats per code under the prior, given the label.

    Raises:
        ValueError: guidance without a label.
    """
    sharpness = sharpness or Sharpness()
    plain, guided, batch = sharpness == Sharpness(), sharpness.guidance != 1, len(uniform)
    if guided and (label is None or not prior.config.attributes):
        raise ValueError("guidance needs a label")

    def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        logits, without = logits[:batch], logits[batch:]
        mixed = without + sharpness.guidance * (logits - without) if guided else logits
        log_p = log_probabilities(mixed, sharpness)
        codes = draw_codes(log_p, u[:batch])
        own = log_p if plain else logits.to(widest(logits.device)).log_softmax(-1)
        log_p = own.gather(-1, codes[:, None])[:, 0]
        return (codes.repeat(2), log_p.repeat(2)) if guided else (codes, log_p)

    device = next(prior.parameters()).device
    uniform = uniform.to(device, widest(device))
    # Rounding to float32 may reach 1.
    maps = uniform.clamp_max(1 - torch.finfo(uniform.dtype).eps).view(-1, *prior.config.shape)
    if guided and label is not None:  # the same maps without the label run beside them
        maps, label = maps.repeat(2, 1, 1), torch.cat([label, torch.full_like(label, -1)])
        condition = None if condition is None else [level.repeat(2, 1, 1) for level in condition]
    codes, log_p = prior.generate(draw, maps, condition, label, progress)
    return codes[:batch], -log_p[:batch] / uniform.shape[1]


def sample_chunk(
    model: VQVAE,
    priors: Sequence[Prior],
    indices: Sequence[int],
    label: Tensor,
    seed: int = 0,
    sharpness: Sequence[Sharpness] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Samples:
    """Sample the images of given indices together.

    Args:
        model: the VQ-VAE.
        priors: of all its levels, top first.
        indices: S sample indices; sample i is the same in any chunk of equal size.
        label: (S, A) int64, -1 missing.
        seed: of the set.
        sharpness: by level, top first.
        progress: called with the number of codes made, after each row.
    """
    device = next(model.parameters()).device
    codes: list[Tensor] = []
    nll = []
    for i, prior in enumerate(priors):
        positions = prior.config.height * prior.config.width
        rows = np.stack([np.random.default_rng([seed, index, i]).random(positions) for index in indices])
        level, level_nll = sample_codes(
            prior, torch.from_numpy(rows), list(codes), label.to(device), sharpness[i] if sharpness else None, progress
        )
        codes.append(level)
        nll.append(level_nll)
    return Samples(model.decode(codes), codes, torch.stack(nll, 1), label)


def sample(
    model: VQVAE,
    priors: Sequence[Prior],
    num: int,
    label: Tensor | Mapping[str, str] | None = None,
    seed: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    chunk_size: int = 16,
    guidance: float | Sequence[float] = 1.0,
) -> Samples:
    """Sample images; in a distributed run every process returns the whole set.

    Args:
        model: the VQ-VAE.
        priors: of all its levels, top first.
        num: N >= 1.
        label: (N, A) or (A,) int64 classes, -1 missing; or class names by attribute; None: all missing.
        seed: >= 0; sample i is the same for any N with equal ``chunk_size``.
        temperature: > 0, of all levels or by level, top first.
        top_k: >= 0, likewise; 0 leaves all codes.
        top_p: in (0, 1], likewise.
        chunk_size: S, images made at once.
        guidance: weight of the label, likewise; above 1 samples show their label more, and vary less.

    Returns:
        The samples, on the model's device.

    Raises:
        ValueError: priors that are not those of the model's levels, or a setting out of range.
        UserError: a label that does not exist.

    Example:
        >>> from vqvae2 import PriorConfig, VQVAEConfig
        >>> model = VQVAE(VQVAEConfig(height=8, width=8, strides=(4,), num_embeddings=(16,), embedding_dim=(4,)))
        >>> prior = Prior(PriorConfig(height=2, width=2, num_embeddings=16, channels=16, num_layers=1))
        >>> tuple(sample(model.eval(), [prior.eval()], num=3).images.shape)
        (3, 1, 8, 8)
    """
    check_priors(model, priors)
    if num < 1 or chunk_size < 1:
        raise ValueError(f"num and chunk_size must be >= 1, got {num} and {chunk_size}")
    sharpness = sharpness_by_level(temperature, top_k, top_p, len(priors), guidance)
    rows = label_rows(priors[0].config.attributes, label, num, priors[0].config.numbers)
    parts = [part for _, part in sample_chunks(model, priors, rows, seed, sharpness, chunk_size)]
    if not parts:  # more processes than chunks
        parts = [_nothing(model, rows)]
    chunks = -(-num // chunk_size)
    images, *codes, nll = (
        _in_order(column, chunks, chunk_size)[:num]
        for column in zip(*((part.images, *part.codes, part.nll) for part in parts), strict=True)
    )
    return Samples(images, codes, nll, rows)


def sample_chunks(
    model: VQVAE,
    priors: Sequence[Prior],
    label: Tensor,
    seed: int = 0,
    sharpness: Sequence[Sharpness] | None = None,
    chunk_size: int = 16,
    progress: Callable[[int], object] | None = None,
    done: Container[int] = (),
) -> Iterator[tuple[int, Samples]]:
    """Sample one image for each row of labels, chunk by chunk; in a distributed run the processes take turns.

    Args:
        model, priors, seed, sharpness, progress: as of `sample_chunk`.
        label: (N, A) int64, -1 missing.
        chunk_size: S, images of a chunk; the last one is filled up with more samples, so that all are made alike.
        done: first samples of the chunks that are left out.

    Yields:
        (number of its first sample, the chunk of S samples), of this process's chunks.
    """
    num = len(label)
    for first in range(0, num, chunk_size)[distributed.rank() :: distributed.world_size()]:
        indices = range(first, first + chunk_size)
        if first in done:
            if progress is not None:
                progress(chunk_size * sum(prior.config.height * prior.config.width for prior in priors))
            continue
        rows = label[chunk_rows(first, chunk_size, num)]
        yield first, sample_chunk(model, priors, indices, rows, seed, sharpness, progress)


def chunk_rows(first: int, chunk_size: int, num: int) -> list[int]:
    """Number the rows of labels that a chunk takes: its own, and the last one of all for those beyond the end.

    Example:
        >>> chunk_rows(4, 4, 6)
        [4, 5, 5, 5]
    """
    return [min(first + i, num - 1) for i in range(chunk_size)]


def _nothing(model: VQVAE, label: Tensor) -> Samples:
    device, config = next(model.parameters()).device, model.config
    images = torch.empty(0, config.channels, config.height, config.width, device=device)
    codes = [torch.empty(0, *shape, dtype=torch.int64, device=device) for shape in config.shapes]
    return Samples(images, codes, torch.empty(0, len(codes), dtype=widest(device), device=device), label[:0])


def _in_order(parts: Sequence[Tensor], chunks: int, chunk_size: int) -> Tensor:
    """Join the chunks of all processes, each of which made every so many-th: (chunks * S, ...), in order."""
    rows = distributed.all_gather_rows(torch.cat(list(parts)))
    made = [
        chunk for rank in range(distributed.world_size()) for chunk in range(chunks)[rank :: distributed.world_size()]
    ]
    return rows.unflatten(0, (chunks, chunk_size))[torch.tensor(made).argsort()].flatten(0, 1)


def check_priors(model: VQVAE, priors: Sequence[Prior]) -> None:
    """Raise ValueError unless the priors are those of the model's levels, in order."""
    wanted = list(zip(model.levels, model.config.shapes, model.config.num_embeddings, strict=True))
    got = [(prior.config.level, prior.config.shape, prior.config.num_embeddings) for prior in priors]
    if [entry[1:] for entry in wanted] != [entry[1:] for entry in got]:
        raise ValueError(f"the model's levels (name, shape, K) are {wanted}, the priors' {got}")


def sharpness_by_level(
    temperature: float | Sequence[float],
    top_k: int | Sequence[int],
    top_p: float | Sequence[float],
    levels: int,
    guidance: float | Sequence[float] = 1.0,
) -> list[Sharpness]:
    """Spread settings over levels: one value serves all; ValueError for any other number than that of the levels."""
    columns = []
    for name, value in (
        ("temperature", temperature),
        ("top_k", top_k),
        ("top_p", top_p),
        ("guidance", guidance),
    ):
        values = list(value) if isinstance(value, Sequence) else [value]
        if len(values) not in (1, levels):
            raise ValueError(f"{name} needs 1 value or {levels}, one for each level; got {len(values)}")
        columns.append(values * levels if len(values) == 1 else values)
    return [Sharpness(t, int(k), p, g) for t, k, p, g in zip(*columns, strict=True)]


def label_rows(
    attributes: Sequence[tuple[str, Sequence[str]]],
    label: Tensor | Mapping[str, str] | None,
    num: int,
    numbers: Sequence[str] = (),
) -> Tensor:
    """Turn what was asked for into class indices.

    Args:
        attributes: name and class names of each attribute, in order.
        label: (num, A) or (A,) indices, class names by attribute, or None. Of a number the nearest value is taken.
        num: rows.
        numbers: the attributes that are numbers.

    Returns:
        (num, A) int64, -1 missing.

    Raises:
        UserError: an attribute or a class that does not exist, or a number outside the training images' range.
        ValueError: a tensor of another shape, or with a class that does not exist.
    """
    if isinstance(label, Tensor):
        rows = label.expand(num, -1) if label.ndim == 1 else label
        if tuple(rows.shape) != (num, len(attributes)):
            raise ValueError(f"label must be ({num}, {len(attributes)}), got {tuple(label.shape)}")
        for (name, names), column in zip(attributes, rows.T, strict=True):
            if ((column < -1) | (column >= len(names))).any():
                raise ValueError(f"label must be -1 to {len(names) - 1} for {name}, got {column.tolist()}")
        return rows.long()
    rows = torch.full((num, len(attributes)), -1)
    classes = {name: list(names) for name, names in attributes}
    for name, value in (label or {}).items():
        if name not in classes:
            known = ", ".join(classes) or "none: the codes have no labels"
            raise UserError(f"there is no attribute {name}", f"label {name}={value}", f"Attributes are {known}")
        if name in numbers:
            rows[:, list(classes).index(name)] = _place_of(name, value, classes[name])
            continue
        if value not in classes[name]:
            raise UserError(
                f"{name} has no class {value}",
                f"label {name}={value}",
                f"Classes are {', '.join(classes[name])}",
            )
        rows[:, list(classes).index(name)] = classes[name].index(value)
    return rows


def _place_of(name: str, value: str, values: Sequence[str]) -> int:
    """The place of a number among the values of an attribute."""
    number = number_of(str(value))
    if number is None or not float(values[0]) <= number <= float(values[-1]):
        what = "is not a number" if number is None else "is outside the training images' range"
        raise UserError(f"{name} {value} {what}", f"label {name}={value}", f"Give {values[0]} to {values[-1]}")
    return int(nearest(values, number))


def draw_labels(wanted: Tensor, known: Tensor, seed: int, numbers: Sequence[int] = ()) -> Tensor:
    """Fill in the attributes that were not asked for as the training images have them together.

    Each row takes the labels of a training image, drawn at random from those with all the classes asked for, and of
    these from the tenth (8 at least) that is nearest to the numbers asked for. So samples without a label follow the
    training set's labels, rather than those of images whose labels are missing. The first rows of a longer draw are the
    same.

    Args:
        wanted: (num, A) classes asked for, -1 for any; the same in every row.
        known: (N, A) labels of the training images, -1 missing.
        seed: of the draws, >= 0.
        numbers: the columns that are numbers.

    Returns:
        (num, A) int64; ``wanted`` where no training image has all the classes asked for.

    Example:
        >>> draw_labels(torch.tensor([[1, -1]]), torch.tensor([[0, 0], [1, 2]]), seed=0)
        tensor([[1, 2]])
    """
    asked = wanted[0] if len(wanted) else wanted.new_empty(wanted.shape[1])
    near = torch.tensor([column in numbers for column in range(len(asked))], dtype=torch.bool)
    fitting = known[((known == asked) | (asked < 0) | (near & (known >= 0))).all(1)]
    if not len(fitting):
        return wanted
    distance = ((fitting - asked).abs() * (near & (asked >= 0))).sum(1)
    most = distance.sort().values[min(len(fitting), max(_LEAST, len(fitting) // 10)) - 1]
    fitting = fitting[distance <= most]
    uniform = torch.from_numpy(np.random.default_rng(seed).random(len(wanted)))
    drawn = fitting[(uniform * len(fitting)).long()].long()
    return torch.where(asked >= 0, asked, drawn)
