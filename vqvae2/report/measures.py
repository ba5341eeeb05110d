"""What the VQ-VAE and the priors make of a set of images, as numbers; each beside the most naive method's.

Shapes: N images, B of a batch, C channels, H x W pixels, h x w cells of a level, K codes, A label attributes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import distributed
from vqvae2.data import ImageSet, to_unit
from vqvae2.metrics import (
    Bands,
    BlurScale,
    CodeCounts,
    Sharpness,
    background_value,
    constant_cells,
    foreground,
    image_scores,
    naive_log_tables,
    position_counts,
    table_nll,
    usage,
)
from vqvae2.prior import Prior
from vqvae2.report.describe import resampled_intervals, spread, spread_out, subject_interval
from vqvae2.vqvae import VQVAE

Progress = Callable[[int], object]
Scores = dict[str, NDArray[np.float64]]

_GROUPS = 256  # of subjects, by which powers and coherences are resampled
_FIGURES = ("mse", "psnr_db", "ssim", "ssim_foreground", "psnr_foreground_db")


@dataclass(frozen=True)
class Scan:
    """A set of images seen through the VQ-VAE.

    Attributes:
        codes: by level, top first, (N, h, w) int64.
        scores: method -> ``mse``, ``psnr_db``, ``ssim``, and ``ssim_foreground`` and ``psnr_foreground_db`` (NaN for
            an image without foreground) -> (N,). Methods are ``all`` levels, ``upper.LEVEL`` (decoded from that level
            and the coarser ones alone) and, where a mean image was given, ``mean_image``.
        sharpness: method -> power and coherence by band of wavelengths, and the blur of equal score.
        intervals: method -> 95% intervals of powers and coherences, over subjects; none for fewer than five.
        counts: of the codes, by level.
        foreground_share: share of the pixels that are foreground; 1 for images without a background.
    """

    codes: list[Tensor]
    scores: dict[str, Scores]
    sharpness: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float]]]
    counts: list[CodeCounts]
    foreground_share: float


@dataclass(frozen=True)
class CodeScores:
    """What a prior says of a set of code maps.

    Attributes:
        nll: (N,) nats per code.
        nll_map: (h, w) nats per code, mean over the images.
        accuracy: share of the codes that were the most probable one.
    """

    nll: NDArray[np.float64]
    nll_map: NDArray[np.float64]
    accuracy: float


def upper_name(levels: Iterable[str], level: str) -> str:
    """Name a decoding that stops at a level.

    Example:
        >>> upper_name(("top", "middle", "bottom"), "top"), upper_name(("top", "middle", "bottom"), "middle")
        ('top only', 'top to middle')
    """
    first = next(iter(levels))
    return f"{first} only" if level == first else f"{first} to {level}"


MOST_EXCHANGED = 32
"""Images from which it is measured what a prior draws on."""


def mean_image(images: ImageSet, chunk: int = 256) -> Tensor:
    """Average a set of images, each process its share: (C, H, W) in [-1, 1], the reconstruction that needs no code."""
    own = distributed.own_part(range(len(images)))
    total = np.zeros(images.images.shape[1:])  # of integers: exact in any order
    for start in range(own.start, own.stop, chunk):
        total += images.images[start : min(start + chunk, own.stop)].sum(0, dtype=np.float64)
    whole = distributed.all_reduce_sum(torch.from_numpy(total)).numpy()
    return to_unit(whole / len(images), images.value_range)


def background_of(images: ImageSet, count: int = 256) -> float | None:
    """Look for a background in some images of a set, see :func:`vqvae2.metrics.background_value`."""
    return background_value(images.at(spread_out(len(images), count)))


@torch.no_grad()
def scan(
    model: VQVAE,
    images: ImageSet,
    *,
    naive: Tensor | None = None,
    background: float | None = None,
    batch_size: int = 32,
    each: Callable[[Sequence[int], Tensor], object] | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Encode, count, decode and score every image, in fp32.

    Args:
        model: in evaluation mode.
        images: N >= 1 of the model's size, at least 11x11 pixels.
        naive: (C, H, W) in [-1, 1], scored as the reconstruction of every image.
        background: of the images, in [-1, 1]; None: they have none, and all of them is foreground.
        batch_size: images at once.
        each: called with the indices and the reconstructions (B, C, H, W) of every batch.
        progress: called with the number of images done, after each batch.

    In a distributed run each process sees its part of the images, which may be none, and all return the whole.
    """
    device = model.device
    counts = [CodeCounts(k) for k in model.config.num_embeddings]
    shape = images.images.shape[-2:]
    blur, marked = BlurScale(shape), torch.zeros((), dtype=torch.int64)
    names = ["all", *(f"upper.{name}" for name in model.levels[:-1]), *([] if naive is None else ["mean_image"])]
    place = {subject: i % _GROUPS for i, subject in enumerate(dict.fromkeys(images.subjects))}
    groups = min(len(place), _GROUPS)
    sharpness = {name: Sharpness(shape, background, blur, groups) for name in names}
    # Each begins with no rows: a process without images joins the others' collectives, too.
    codes = [[torch.zeros(0, *cells, dtype=torch.int32)] for cells in model.config.shapes]
    parts = {name: [dict.fromkeys(_FIGURES, np.zeros(0))] for name in names}
    own = distributed.own_part(range(len(images)))
    for start in range(0, len(own), batch_size):
        rows = own[start : start + batch_size]
        x = images.at(rows)
        batch = model.encode(x.to(device))
        for count, level in zip(counts, batch, strict=True):
            count.update(level, ~constant_cells(x, level.shape[1:]).to(device))
        for rows_of_level, level in zip(codes, batch, strict=True):
            rows_of_level.append(level.to(torch.int32).cpu())
        mask = foreground(x, background)
        blur.update(x, mask)
        marked += mask.sum()
        made = [model.decode(batch).cpu(), *(model.decode(batch[: i + 1]).cpu() for i in range(len(batch) - 1))]
        made += [] if naive is None else [naive.expand_as(x)]
        group = torch.tensor([place[images.subjects[row]] for row in rows])
        for name, y in zip(names, made, strict=True):
            inside = sharpness[name].update(y, x, mask, group)
            scores = image_scores(y, x) | {figure: values.numpy() for figure, values in inside.items()}
            parts[name].append(scores)
        if each is not None:
            each(rows, made[0])
        if progress is not None:
            progress(len(rows))
    by_method = {
        name: {figure: _gathered(np.concatenate([batch[figure] for batch in batches])) for figure in _FIGURES}
        for name, batches in parts.items()
    }
    blur.gather()
    for count in counts:
        count.gather()
    for kind in sharpness.values():
        kind.gather()
    bands = {name: kind.bands.pooled() | kind.figures() for name, kind in sharpness.items()}
    intervals = {name: _band_intervals(kind.bands) for name, kind in sharpness.items()}
    share = float(distributed.all_reduce_sum(marked)) / (len(images) * math.prod(shape))
    gathered = [distributed.all_gather_rows(torch.cat(level)) for level in codes]
    return Scan(gathered, by_method, bands, intervals, counts, share)


def _band_intervals(bands: Bands) -> dict[str, list[float]]:
    """95% intervals of power and coherence by a bootstrap over groups of subjects, where there are enough."""
    count, *shape = bands.sums.shape
    names = list(bands.figures())

    def figures(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        found = bands.figures_of(torch.from_numpy(sums).view(-1, *shape))
        return torch.stack([found[name] for name in names], 1).numpy()

    if not names:
        return {}
    intervals = resampled_intervals(bands.sums.flatten(1).numpy(), np.arange(count).astype(str), figures)
    return dict(zip(names, intervals or [], strict=False))


def _gathered(values: NDArray[Any]) -> NDArray[Any]:
    """Join the values of all processes."""
    return distributed.all_gather_rows(torch.from_numpy(np.ascontiguousarray(values))).numpy()


def reconstruction_figures(found: Scan, images: ImageSet, worst: int = 8) -> dict[str, Any]:
    """Summarise reconstruction errors over a set.

    Returns:
        ``count``, ``subjects``, ``foreground_share``, :func:`spread` of ``mse`` ([-1, 1] scale), ``psnr_db`` (peak 2)
        and ``ssim`` and of the latter two in the foreground, ``sharpness`` and ``sharpness_intervals``, the ``worst``
        cases by SSIM with their keys, and the same but for these of ``mean_image`` and ``upper``.
    """

    def summary(name: str) -> dict[str, Any]:
        errors = {figure: spread(values, images.subjects) for figure, values in found.scores[name].items()}
        return {**errors, "sharpness": found.sharpness[name], "sharpness_intervals": found.intervals[name]}

    own = found.scores["all"]
    order = np.argsort(own["ssim"], kind="stable")[:worst]
    figures: dict[str, Any] = {"count": len(images), "subjects": len(set(images.subjects)), **summary("all")}
    figures["foreground_share"] = found.foreground_share
    figures["worst"] = [
        {"key": images.keys[i], "subject": images.subjects[i], **{name: float(own[name][i]) for name in _FIGURES}}
        for i in order
    ]
    if "mean_image" in found.scores:
        figures["mean_image"] = summary("mean_image")
    upper = [name for name in found.scores if name.startswith("upper.")]
    figures["upper"] = {name.removeprefix("upper."): summary(name) for name in upper}
    return figures


def level_figures(found: Scan, model: VQVAE) -> dict[str, dict[str, Any]]:
    """Summarise how each level uses its codebook.

    Returns:
        By level: ``num_embeddings``, ``shape``, ``perplexity`` and ``usage`` over all cells and, with
        ``_foreground``, without those whose image block is constant (``constant_share`` of them),
        ``least_perplexity`` (of `metrics.CodeCounts`) and whether it has ``collapsed``.
    """
    config, figures = model.config, {}
    for level, shape, k, count in zip(config.levels, config.shapes, config.num_embeddings, found.counts, strict=True):
        everywhere, foreground = int(count.counts.sum()), int(count.counts_foreground.sum())
        figures[level] = {
            "num_embeddings": k,
            "shape": list(shape),
            "perplexity": count.perplexity,
            "perplexity_foreground": count.perplexity_foreground,
            "usage": count.usage,
            "usage_foreground": usage(count.counts_foreground),
            "constant_share": 1 - foreground / max(everywhere, 1),
            "least_perplexity": count.least_perplexity,
            "collapsed": count.collapsed,
        }
    return figures


@torch.no_grad()
def score_codes(
    prior: Prior, codes: Sequence[Tensor], labels: Tensor, batch_size: int = 32, progress: Progress | None = None
) -> CodeScores:
    """Score code maps under a prior, in fp32.

    Args:
        prior: of the finest of these levels.
        codes: of the coarser levels and the prior's own, top first, (N, h, w) integers, N >= 1.
        labels: (N, A) int64, -1 missing.
        batch_size: images at once.
        progress: called with the number of images done, after each batch.

    In a distributed run each process scores its part of the images, and all return the whole.
    """
    device = prior.device
    nll, total = [torch.zeros(0, dtype=torch.float64)], torch.zeros(prior.config.shape, dtype=torch.float64)
    right = torch.zeros((), dtype=torch.int64)
    own_rows = distributed.own_part(range(len(labels)))
    for start in range(0, len(own_rows), batch_size):
        rows = list(own_rows[start : start + batch_size])
        *coarser, own = (level[rows].long().to(device) for level in codes)
        log_p = prior.log_probabilities(own, coarser, labels[rows].to(device))
        cells = F.nll_loss(log_p, own, reduction="none").cpu().double()
        nll.append(cells.mean((1, 2)))
        total += cells.sum(0)
        right += (log_p.argmax(1) == own).sum().cpu()
        if progress is not None:
            progress(len(own))
    count, total, right = len(labels), distributed.all_reduce_sum(total), distributed.all_reduce_sum(right)
    nll_by_image = distributed.all_gather_rows(torch.cat(nll)).numpy()
    return CodeScores(nll_by_image, (total / count).numpy(), float(right) / (count * total.numel()))


@torch.no_grad()
def reliance(
    prior: Prior, codes: Sequence[Tensor], labels: Tensor, batch_size: int = 32, most: int = MOST_EXCHANGED
) -> dict[str, float]:
    """Measure what a prior draws on: how much its NLL rises where one thing that it is told is another image's.

    Args:
        prior: of the finest of these levels.
        codes: of the coarser levels and the prior's own, top first, (N, h, w) integers, N >= 1.
        labels: (N, A) int64, -1 missing.
        batch_size: images at once.
        most: images, spread evenly over the N. Each is told of the one half of them further on.

    Returns:
        Nats per code by what is exchanged: ``own``, the earlier codes of the prior's own level; the coarser levels, by
        name; ``labels``, all at once, where there are any. Near 0: the prior makes no use of it. Nothing for a single
        image, which has no other to exchange with.

    Source: permutation importance (Breiman 2001, "Random forests"), of whole inputs.
    """
    device, rows = prior.device, spread_out(len(labels), most)
    if len(rows) < 2:
        return {}
    *coarser, own = (level[rows].long().to(device) for level in codes)
    told = {"own": own, **dict(zip(prior.config.condition_levels, coarser, strict=True))}
    told |= {"labels": labels[rows].to(device)} if prior.config.attributes else {}

    def nll(inputs: dict[str, Tensor]) -> float:
        total = 0.0
        for start in range(0, len(rows), batch_size):
            given = {name: tensor[start : start + batch_size] for name, tensor in inputs.items()}
            condition = [given[name] for name in prior.config.condition_levels]
            log_p = prior.log_probabilities(given["own"], condition, given.get("labels"))
            total += float(F.nll_loss(log_p, own[start : start + batch_size], reduction="sum"))
        return total / own.numel()

    usual = nll(told)
    return {name: nll({**told, name: given.roll(len(rows) // 2, 0)}) - usual for name, given in told.items()}


def table_figures(
    codes: NDArray[Any], train_codes: Any, num_embeddings: int
) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Score codes under tables of counts of the training codes, the most naive priors.

    Args:
        codes: (N, h, w) integers in [0, K), those scored.
        train_codes: (M, h, w), those counted: an array, or what gives slices of one.
        num_embeddings: K.

    Returns:
        ``unigram_nll`` and ``position_nll`` (the position-wise unigram) in nats per code, and with ``_bits`` in bits,
        ``position_accuracy`` and ``position_perplexity`` = exp(position_nll), the number of codes left to choose among
        once the position is known; and the position-wise unigram's NLL at each position (h, w).
    """
    everywhere, table = naive_log_tables(train_codes, num_embeddings)
    counts = position_counts(codes, num_embeddings)
    position_map = -(counts * table).sum(1).reshape(codes.shape[1:]) / len(codes)
    unigram, position = table_nll(everywhere, codes), float(position_map.mean())
    figures = {
        "unigram_nll": unigram,
        "unigram_nll_bits": unigram / math.log(2),
        "position_nll": position,
        "position_nll_bits": position / math.log(2),
        "position_perplexity": math.exp(position),
        "position_accuracy": float(counts[np.arange(len(counts)), table.argmax(1)].sum() / counts.sum()),
    }
    return figures, position_map


def prior_figures(
    held_out: CodeScores, train: CodeScores, position_nll: float, subjects: Sequence[str]
) -> dict[str, Any]:
    """Summarise a prior's scores on held-out and on training codes.

    Args:
        held_out: of N images.
        train: of some training images.
        position_nll: of the position-wise unigram on the former.
        subjects: of the N images.

    Returns:
        ``nll``, its ``nll_interval`` and ``train_nll`` in nats per code, and with ``_bits`` in bits, ``nll_std`` over
        images, ``gain`` = position_nll - nll, ``accuracy`` and ``train_accuracy``, ``train_count``.
    """
    nll, train_nll = float(held_out.nll.mean()), float(train.nll.mean())
    return {
        "nll": nll,
        "nll_interval": subject_interval(held_out.nll, subjects),
        "nll_bits": nll / math.log(2),
        "nll_std": float(held_out.nll.std()),
        "gain": position_nll - nll,
        "accuracy": held_out.accuracy,
        "train_nll": train_nll,
        "train_nll_bits": train_nll / math.log(2),
        "train_accuracy": train.accuracy,
        "train_count": len(train.nll),
    }


def bits_per_dim(levels: Mapping[str, Mapping[str, Any]], dims: int) -> dict[str, float]:
    """Sum the codes' bits over all levels, per image dimension.

    They pay for the codes, from which the image comes back with loss; they are no likelihood of the image.

    Args:
        levels: figures by level, with ``shape``, ``num_embeddings`` and the NLLs.
        dims: C * H * W.

    Returns:
        ``prior``, ``position_unigram``, ``unigram`` and ``uniform`` (log2 K a code).
    """
    methods = {"prior": "nll", "position_unigram": "position_nll", "unigram": "unigram_nll"}
    cells = {level: math.prod(figures["shape"]) for level, figures in levels.items()}
    sums = {
        method: sum(cells[level] * figures[name] / math.log(2) for level, figures in levels.items()) / dims
        for method, name in methods.items()
    }
    uniform = sum(cells[level] * math.log2(figures["num_embeddings"]) for level, figures in levels.items())
    return {**sums, "uniform": uniform / dims}
