"""Inference over maps of codes: how probable each code is, and codes redrawn given those that are known.

A prior gives the probability of each code given those before it. Codes *after* an unknown one say something about it,
too. They are taken into account by sequential Monte Carlo: particles draw the unknown codes level by level, in each
prior's order, are weighted by the probability of the known codes that they meet, and are drawn anew by their weights
where these differ too much. With enough particles, or enough Metropolis-Hastings sweeps over whole runs, the result
follows the conditional distribution itself; where no known code comes after an unknown one, it does so with a single
particle and without a sweep.

Sources: sequential Monte Carlo as in Doucet and Johansen 2009; particle independent Metropolis-Hastings after Andrieu,
Doucet and Holenstein 2010 (*J. R. Stat. Soc. B* 72, 269-342); restoration after Pinaya et al. 2021 (arXiv 2102.11650).

Shapes: N images, S particles of each, K codes, h x w cells of a level, A label attributes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqvae2.device import widest
from vqvae2.prior import Prior
from vqvae2.sampling import draw_codes

__all__ = ["Completed", "complete", "restore", "surprise"]


@dataclass(frozen=True)
class Completed:
    """What `complete` returns.

    Attributes:
        codes: by level, top first, (N, h, w) int64, the known ones unchanged.
        log_evidence: (N,) estimate of the logarithm of the known codes' probability, nats.
        effective: (N,) of S particles how many the last weights were worth, from 1 to S.
        accepted: for each sweep the share of the N that it changed.
    """

    codes: list[Tensor]
    log_evidence: Tensor
    effective: Tensor
    accepted: list[float]


def surprise(
    priors: Sequence[Prior], codes: Sequence[Tensor], label: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Tell how improbable each code is, given those before it and the coarser levels.

    Args:
        priors: of the levels, top first.
        codes: by level, (N, h, w) integers.
        label: (N, A) int64, -1 missing; None: all missing.

    Returns:
        For each level ``(nll, entropy)``, (N, h, w) each, in nats: the code's negative log-probability, and its mean
        over what the prior expected at that place.
    """
    found = []
    for i, prior in enumerate(priors):
        log_p = prior.log_probabilities(codes[i], list(codes[:i]), label)
        entropy = -(log_p.exp() * log_p).sum(1)
        found.append((-log_p.gather(1, codes[i].long()[:, None])[:, 0], entropy))
    return found


def restore(
    priors: Sequence[Prior],
    codes: Sequence[Tensor],
    threshold: Sequence[float],
    label: Tensor | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Tensor]:
    """Redraw the codes that are too improbable, in the prior's order, given those that were kept or redrawn before.

    Args:
        priors: of all levels, top first.
        codes: by level, (N, h, w) integers.
        threshold: by level: codes of a greater negative log-probability (nats) are redrawn.
        label: (N, A) int64, -1 missing; None: all missing.
        seed: of the draws, >= 0; a row depends on it and on the row's number alone.
        numbers: of the N rows: rows with equal numbers get equal random numbers. None: 0 to N - 1.
        progress: called with the number of codes made, after each row.

    Returns:
        Codes like ``codes``, int64.
    """
    made: list[Tensor] = []
    rows = list(range(len(codes[0])) if numbers is None else numbers)
    for i, prior in enumerate(priors):
        most = threshold[i]

        def draw(logits: Tensor, place: Tensor, most: float = most) -> tuple[Tensor, Tensor]:
            own = place.long()
            log_p = logits.to(place.dtype).log_softmax(-1)
            keep = log_p.gather(-1, own[:, None])[:, 0] >= -most
            return torch.where(keep, own, draw_codes(log_p, place - own)), keep.to(place.dtype)

        uniform = _uniform(codes[i], [[seed, row, i] for row in rows])
        made.append(prior.generate(draw, codes[i] + uniform, list(made), label, progress)[0])
    return made


def complete(
    priors: Sequence[Prior],
    codes: Sequence[Tensor],
    known: Sequence[Tensor],
    label: Tensor | None = None,
    particles: int = 8,
    sweeps: int = 0,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Completed:
    """Draw the unknown codes of maps, given the known ones.

    Args:
        priors: of all levels, top first.
        codes: by level, (N, h, w) integers; those that are not known are ignored. For several completions of one image
            give it several times.
        known: by level, (N, h, w) bool.
        label: (N, A) int64, -1 missing; None: all missing.
        particles: S >= 1.
        sweeps: times that everything is drawn again, and taken by the Metropolis-Hastings rule.
        seed: >= 0; a row depends on it, on the row's number and on the shapes alone.
        numbers: of the N rows: rows with equal numbers get equal random numbers. None: 0 to N - 1.
        progress: called with the number of codes made, after each row of cells; S N times the cells in all, for each
            sweep again.

    Raises:
        ValueError: fewer than one particle, or sweeps below 0.

    Source: particle independent Metropolis-Hastings, Andrieu, Doucet and Holenstein 2010, section 2.4.2.
    """
    if particles < 1 or sweeps < 0:
        raise ValueError(f"need particles >= 1 and sweeps >= 0, got {particles} and {sweeps}")
    run = _Run(priors, codes, known, label, particles, progress)
    numbers = range(len(codes[0])) if numbers is None else numbers
    current, log_z, effective = run.draw([[seed, number, 0] for number in numbers])
    accepted = []
    for sweep in range(1, sweeps + 1):
        keys = [[seed, number, sweep] for number in numbers]
        proposed, other, worth = run.draw(keys)
        uniform = [np.random.default_rng([*key, len(priors)]).random() for key in keys]
        taken = torch.tensor(uniform, dtype=torch.float64).log() < other - log_z
        accepted.append(float(taken.double().mean()))
        where = taken.to(current[0].device)[:, None, None]
        current = [torch.where(where, new, old) for new, old in zip(proposed, current, strict=True)]
        log_z, effective = torch.where(taken, other, log_z), torch.where(taken, worth, effective)
    return Completed(current, log_z, effective, accepted)


class _Run:
    """Sequential Monte Carlo over all levels: N maps, S particles of each, side by side in one batch."""

    def __init__(
        self,
        priors: Sequence[Prior],
        codes: Sequence[Tensor],
        known: Sequence[Tensor],
        label: Tensor | None,
        particles: int,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.priors, self.size, self.progress = priors, particles, progress
        self.codes = [level.repeat_interleave(particles, 0) for level in codes]
        self.known = [level.repeat_interleave(particles, 0) for level in known]
        self.label = None if label is None else label.repeat_interleave(particles, 0)

    def draw(self, keys: Sequence[Sequence[int]]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return codes by level, (N, h, w), the logarithm of the evidence, (N,), and the effective particles, (N,).

        Args:
            keys: of the random numbers of each of the N maps.
        """
        size, count = self.size, len(keys)
        random = [np.random.default_rng([*key, 0]) for key in keys]  # of the selection
        first = torch.arange(count)[:, None] * size
        made: list[Tensor] = []
        # Log-weights at the last selection, less what the level's prior had summed up by then.
        before = torch.zeros(count, size, dtype=torch.float64)
        log_z = torch.zeros(count, dtype=torch.float64)

        def select(log_p: Tensor) -> Tensor | None:
            nonlocal before, log_z, made
            so_far = log_p.cpu().double().view(count, size)
            weight = before + so_far
            worn = _effective(weight) < size / 2
            if not worn.any():
                return None
            # A map's random numbers are its own: they do not move on when another one is selected.
            spin = [one.random() if own else 0.0 for one, own in zip(random, worn.tolist(), strict=True)]
            chosen = _systematic(weight.softmax(1), torch.tensor(spin, dtype=torch.float64))
            chosen = torch.where(worn[:, None], chosen, torch.arange(size))
            log_z = torch.where(worn, log_z + _mean(weight), log_z)
            weight = torch.where(worn[:, None], torch.zeros_like(weight), weight)
            before = weight - so_far.gather(1, chosen)
            rows = (chosen + first).flatten().to(log_p.device)
            made = [level[rows] for level in made]
            return rows

        for i, prior in enumerate(self.priors):
            uniform = _uniform(self.codes[i], [[*key, i, row] for key in keys for row in range(size)])
            places = torch.where(self.known[i], -1 - self.codes[i].to(uniform.dtype), uniform)
            own, log_p = prior.generate(
                _draw_unknown, places, list(made), self.label, self.progress, select if size > 1 else None
            )
            made.append(own)
            before = before + log_p.cpu().double().view(count, size)
        spin = torch.tensor([one.random() for one in random], dtype=torch.float64)
        picked = _systematic(before.softmax(1), spin, 1)
        rows = (picked + first).flatten().to(made[0].device)
        return [level[rows] for level in made], log_z + _mean(before), _effective(before)


def _draw_unknown(logits: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Draw where ``place`` is a random number in [0, 1); where it is -1 - code, take the code and its
    log-probability."""
    log_p = logits.to(place.dtype).log_softmax(-1)
    known = place < 0
    code = torch.where(known, (-1 - place).long(), draw_codes(log_p, place.clamp_min(0)))
    own = log_p.gather(-1, code[:, None])[:, 0]
    return code, torch.where(known, own, torch.zeros_like(own))


def _uniform(like: Tensor, keys: Sequence[Sequence[int]]) -> Tensor:
    """Random numbers in [0, 1) for maps (B, h, w), each row by its own key."""
    rows = np.stack([np.random.default_rng([*key, 1]).random(like[0].numel()) for key in keys])
    uniform = torch.from_numpy(rows).to(like.device, widest(like.device))
    # Rounding to float32 may reach 1, and a code added to it the next one.
    return uniform.clamp_max(1 - 2**-12).view_as(like) if uniform.dtype == torch.float32 else uniform.view_as(like)


def _mean(log_weight: Tensor) -> Tensor:
    """Logarithm of the mean weight, (N, S) -> (N,)."""
    return log_weight.logsumexp(1) - float(np.log(log_weight.shape[1]))


def _effective(log_weight: Tensor) -> Tensor:
    """Effective number of particles, (N, S) -> (N,) in [1, S]."""
    return 1 / (log_weight.softmax(1) ** 2).sum(1)


def _systematic(share: Tensor, uniform: Tensor, count: int | None = None) -> Tensor:
    """Choose particles by their shares (N, S) with one random number a row: (N, count) int64; count: S by default."""
    size = share.shape[1]
    count = count or size
    points = (torch.arange(count) + uniform[:, None]) / count
    return torch.searchsorted(share.cumsum(1), points, right=True).clamp_max(size - 1)
