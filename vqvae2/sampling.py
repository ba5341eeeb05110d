"""Ancestral sampling: the top's codes, each finer level's given the coarser ones, then the image.

Razavi et al. 2019 (arXiv 1906.00446), algorithm 2 and section 3.2. The distribution is the model's own: nothing is
approximated. Sample i is made of random numbers that depend on the seed, on i and on the level alone, in chunks of one
fixed size, the last one padded; so a set can be enlarged, interrupted or shared out and holds the same bytes.

Shapes: N samples, S of a chunk, K codes, P positions of a level, A label attributes.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.detail import ImageDecoder
from vqvae2.device import widest
from vqvae2.labels import label_rows
from vqvae2.prior import Prior

__all__ = [
    "SETTINGS",
    "Samples",
    "Sharpness",
    "check_priors",
    "chunk_rows",
    "draw_codes",
    "log_probabilities",
    "sample",
    "sample_chunk",
    "sample_chunks",
    "sample_codes",
    "sharpness_by_level",
]


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
    Salimans 2022, arXiv 2207.12598). Anything but 1 takes the work of one more prior."""
    min_p: float = 0.0
    """Draw among the codes whose probability is at least this share of the most probable one's, in [0, 1] (Nguyen et
    al. 2024, arXiv 2407.01082); by the prior itself, before guidance and temperature."""
    autoguidance: float = 1.0
    """Weight of the prior against a weaker one, its guide, >= 0: logits go from the guide's (0) to the prior's (1) and
    beyond (Karras et al. 2024, arXiv 2406.02507); what guidance adds is added to that. Anything but 1 takes the work
    of one more prior."""
    guide: Prior | None = field(default=None, repr=False)
    """The weaker prior, such as the same one early in its training, in evaluation mode."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise ValueError(f"need temperature > 0, top_k >= 0, top_p in (0, 1] and min_p in [0, 1], got {self}")
        if self.guidance < 0 or self.autoguidance < 0:
            raise ValueError(f"need guidance >= 0 and autoguidance >= 0, got {self}")
        if self.autoguidance != 1 and self.guide is None:
            raise ValueError("autoguidance needs a guide")


SETTINGS = tuple(setting.name for setting in fields(Sharpness) if setting.name != "guide")
"""Names of the settings of :class:`Sharpness` that are numbers."""


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


def log_probabilities(logits: Tensor, sharpness: Sharpness, own: Tensor | None = None) -> Tensor:
    """Apply min-p, then temperature, top-k and top-p.

    Args:
        logits: (B, K).
        sharpness: of the level.
        own: (B, K) logits of the prior itself, by which min-p chooses; None: the same.

    Returns:
        (B, K) log-probabilities in float64, -inf for codes that are left out.
    """
    if sharpness.min_p:
        own = logits if own is None else own
        logits = logits.masked_fill(own < own.amax(-1, keepdim=True) + math.log(sharpness.min_p), -torch.inf)
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
        ValueError: guidance without a label, or a guide of other maps.
    """
    sharpness = sharpness or Sharpness()
    plain, weights = sharpness == Sharpness(), []
    beside: list[tuple[Prior, Tensor | None]] = []
    if sharpness.guidance != 1:
        if label is None or not prior.config.attributes:
            raise ValueError("guidance needs a label")
        weights.append(sharpness.guidance - 1)
        beside.append((prior, torch.full_like(label, -1)))
    if sharpness.guide is not None and sharpness.autoguidance != 1:
        weights.append(sharpness.autoguidance - 1)
        beside.append((sharpness.guide, label))

    def draw(own: Tensor, u: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        if not plain:  # differences of rounded logits would be magnified
            own, others = own.to(widest(own.device)), tuple(other.to(widest(own.device)) for other in others)
        logits = own
        for weight, other in zip(weights, others, strict=True):
            logits = logits + weight * (own - other)
        log_p = log_probabilities(logits, sharpness, own)
        codes = draw_codes(log_p, u)
        if not plain:
            log_p = own.log_softmax(-1)
        return codes, log_p.gather(-1, codes[:, None])[:, 0]

    device = prior.device
    uniform = uniform.to(device, widest(device))
    # Rounding to float32 may reach 1.
    maps = uniform.clamp_max(1 - torch.finfo(uniform.dtype).eps).view(-1, *prior.config.shape)
    codes, log_p = prior.generate(draw, maps, condition, label, progress, beside=beside)
    return codes, -log_p / uniform.shape[1]


def sample_chunk(
    model: ImageDecoder,
    priors: Sequence[Prior],
    indices: Sequence[int],
    label: Tensor,
    seed: int = 0,
    sharpness: Sequence[Sharpness] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Samples:
    """Sample the images of given indices together.

    Args:
        model: the VQ-VAE, or its detail decoder.
        priors: of all levels that it decodes, top first.
        indices: S sample indices; sample i is the same in any chunk of equal size.
        label: (S, A) int64, -1 missing.
        seed: of the set.
        sharpness: by level, top first.
        progress: called with the number of codes made, after each row.
    """
    device = model.device
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
    model: ImageDecoder,
    priors: Sequence[Prior],
    num: int,
    label: Tensor | Mapping[str, str] | None = None,
    seed: int = 0,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    chunk_size: int = 16,
    guidance: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    autoguidance: float | Sequence[float] = 1.0,
    guides: Sequence[Prior | None] | None = None,
) -> Samples:
    """Sample images; in a distributed run every process returns the whole set.

    Args:
        model: the VQ-VAE, or its detail decoder.
        priors: of all levels that it decodes, top first.
        num: N >= 1.
        label: (N, A) or (A,) int64 classes, -1 missing; or class names by attribute; None: all missing.
        seed: >= 0; sample i is the same for any N with equal ``chunk_size``.
        temperature: > 0, of all levels or by level, top first.
        top_k: >= 0, likewise; 0 leaves all codes.
        top_p: in (0, 1], likewise.
        chunk_size: S, images made at once.
        guidance: weight of the label, likewise; above 1 samples show their label more, and vary less.
        min_p: least probability, as a share of the most probable code's, in [0, 1], likewise.
        autoguidance: weight of each prior against its guide, likewise; above 1 samples are more like the training
            images, and vary less.
        guides: the weaker priors, top first.

    Returns:
        The samples, on the model's device.

    Raises:
        ValueError: priors that are not those of the model's levels, or a setting out of range.
        UserError: a label that does not exist.

    Example:
        >>> from vqvae2 import VQVAE, PriorConfig, VQVAEConfig
        >>> model = VQVAE(VQVAEConfig(height=8, width=8, strides=(4,), num_embeddings=(16,), embedding_dim=(4,)))
        >>> prior = Prior(PriorConfig(height=2, width=2, num_embeddings=16, channels=16, num_layers=1))
        >>> tuple(sample(model.eval(), [prior.eval()], num=3).images.shape)
        (3, 1, 8, 8)
    """
    check_priors(model, priors)
    if num < 1 or chunk_size < 1:
        raise ValueError(f"num and chunk_size must be >= 1, got {num} and {chunk_size}")
    sharpness = sharpness_by_level(
        len(priors),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        min_p=min_p,
        autoguidance=autoguidance,
        guide=guides,
    )
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
    model: ImageDecoder,
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


def _nothing(model: ImageDecoder, label: Tensor) -> Samples:
    device, config = model.device, model.config
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


def check_priors(model: ImageDecoder, priors: Sequence[Prior]) -> None:
    """Raise ValueError unless the priors are those of the model's levels, in order."""
    wanted = list(zip(model.levels, model.config.shapes, model.config.num_embeddings, strict=True))
    got = [(prior.config.level, prior.config.shape, prior.config.num_embeddings) for prior in priors]
    if [entry[1:] for entry in wanted] != [entry[1:] for entry in got]:
        raise ValueError(f"the model's levels (name, shape, K) are {wanted}, the priors' {got}")


def sharpness_by_level(levels: int, **settings: Any) -> list[Sharpness]:
    """Spread settings over levels.

    Args:
        levels: number of levels.
        settings: fields of :class:`Sharpness`, each one value for all levels or a sequence of one for each.

    Raises:
        ValueError: a sequence of another number, or a value out of range.
    """
    columns = {}
    for name, value in settings.items():
        values = list(value) if isinstance(value, Sequence) else [value]
        if len(values) not in (1, levels):
            raise ValueError(f"{name} needs 1 value or {levels}, one for each level; got {len(values)}")
        columns[name] = values * levels if len(values) == 1 else values
    return [Sharpness(**{name: values[i] for name, values in columns.items()}) for i in range(levels)]
