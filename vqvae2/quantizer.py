"""Vector quantisation with a codebook that stays alive.

The codebook follows the encoder by the moving averages of van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1),
as VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, section 3.1) uses them, or is learned by gradients. Two things are
added, without which a codebook collapses on pictures that are mostly background: it starts from k-means over encoder
outputs, and codes that fall out of use are moved to where the quantisation error is largest.

Shapes: N vectors, K codes, D dimensions.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.clustering import affine_of, kmeans, nearest_codes
from vqvae2.estimators import rotated, straight_through

Codebook = Literal["ema", "gradient", "simvq"]
Estimator = Literal["straight_through", "rotation"]
Normalization = Literal["none", "layer"]

_MOST_PENDING = 1000
"""Training passes that one update may follow."""

_LEAST_WINDOW = 4
"""Vectors for each code that the moving average spans at least."""

__all__ = ["Quantized", "QuantizerConfig", "VectorQuantizer"]


class _Assigned(NamedTuple):
    """Vectors of one training pass, (n, D), their codes and squared errors, (n,) each."""

    vectors: Tensor
    codes: Tensor
    errors: Tensor


class Quantized(NamedTuple):
    """What a quantiser returns.

    Attributes:
        vectors: (..., D) the nearest codes; their gradient passes to the input, as `QuantizerConfig.estimator` says.
        codes: (...) int64 indices in [0, K).
        loss: scalar commitment loss, ``commitment_cost * mean((x - sg[e])^2)``; where the codebook is learned by
            gradients, plus the codebook loss, ``mean((sg[x] - e)^2)``.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor


@dataclass(frozen=True)
class QuantizerConfig:
    """How vectors are quantised, alike on all levels."""

    codebook: Codebook = "ema"
    """How codebooks are learned: `ema` by moving averages of what is assigned to each code, `gradient` by the
    optimiser on a codebook loss, `simvq` as frozen random vectors times a matrix, which the optimiser learns."""
    estimator: Estimator = "straight_through"
    """How the gradient passes the quantisation: `straight_through` unchanged, `rotation` through the rotation and
    rescaling that carries an encoder output onto its code."""
    commitment_cost: float = 0.25
    """beta: weight of the commitment loss, >= 0."""
    decay: float = 0.99
    """gamma of the moving averages of the codes' counts and of `ema` codebooks, in [0, 1)."""
    epsilon: float = 1e-5
    """Laplace smoothing of the codes' counts, > 0; of `ema` codebooks."""
    init_vectors: int = 8192
    """Encoder outputs from which a codebook is initialised, by k-means (`simvq`: by their mean and covariance), at
    least K; 0: random initialisation."""
    revival_threshold: float = 0.05
    """Share of the mean count below which a code is dead and revived; 0 turns revival off. `simvq` has none."""
    normalize: Normalization = "none"
    """Encoder outputs before quantisation: 'layer' (zero mean, unit variance for each vector) or 'none'."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon must be > 0, got {self.epsilon}")
        for name in ("commitment_cost", "init_vectors", "revival_threshold"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name, kind in (("codebook", Codebook), ("estimator", Estimator), ("normalize", Normalization)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)}")


class VectorQuantizer(nn.Module):
    """Replace vectors by their nearest code; by default a code is a moving average of what was assigned to it.

    Passes in training mode, with gradients, are noted, and `update`, called after each step of the optimiser, moves the
    codebook by all that was noted since the last one. It computes in fp32 (fp64 for an fp64 model), whatever the
    surrounding precision, with n_i vectors assigned to code i (equations of Razavi et al. 2019, section 3.1)::

        N_i <- decay N_i + (1 - decay) n_i        m_i <- decay m_i + (1 - decay) sum of x assigned to i
        e_i  = m_i / N_i                          N_i smoothed: (N_i + eps) / (sum N + K eps) * sum N

    The decay of update t is at most max((1 + t) / (10 + t), 1 - n / 4K) for n vectors: the codebook can follow the
    encoder's first steps, and small batches do not wipe out its start.
    Until ``init_vectors`` encoder outputs have been seen the input passes through unquantised; then the codebook is
    their k-means. After every update, codes with N_i below ``revival_threshold`` times the mean N are moved to current
    inputs, drawn without replacement with probability proportional to their squared quantisation error. All draws
    depend on the number of updates alone, so a resumed run makes them again.

    A ``gradient`` codebook is a parameter that the optimiser moves by the codebook loss; start, N_i and revival are as
    above. A ``simvq`` codebook is e_i = c_i W + b, with c_i random and frozen and with W and b parameters: all codes
    move together, those that are not used as well. So none is revived, which would be to change its c_i. The W and b of
    the start give the codes the mean and the covariance of the encoder outputs. `update` refreshes its ``embedding``.

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        config: how; the names in the text above are its fields.
        rate_weight: lambda of the entropy-constrained choice: a code i costs ``|x - e_i|^2 - lambda log p_i``, with p_i
            its share of N. Codes that are rare, and so long to write, are chosen where they gain enough alone.

    Source: van den Oord et al. 2017, appendix A.1, `gradient` equation 3; `simvq` Zhu et al. 2024 (arXiv 2411.02038),
    with b as in its authors' code; revival after Jukebox (Dhariwal et al. 2020, section 3.1); `rate_weight` after Chou,
    Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989.

    Example:
        >>> quantizer = VectorQuantizer(num_embeddings=8, embedding_dim=4).eval()
        >>> out = quantizer(torch.zeros(2, 3, 3, 4))
        >>> out.vectors.shape, out.codes.shape
        (torch.Size([2, 3, 3, 4]), torch.Size([2, 3, 3]))
    """

    embedding: Tensor
    cluster_size: Tensor
    embedding_sum: Tensor
    frozen: Tensor
    updates: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        config: QuantizerConfig | None = None,
        rate_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if num_embeddings < 1 or embedding_dim < 1:
            raise ValueError(f"num_embeddings and embedding_dim must be >= 1, got {num_embeddings}, {embedding_dim}")
        if rate_weight < 0:
            raise ValueError(f"rate_weight must be >= 0, got {rate_weight}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.config, self.rate_weight = config or QuantizerConfig(), rate_weight
        self.init_vectors = max(self.config.init_vectors, num_embeddings) if self.config.init_vectors else 0
        start = torch.randn(num_embeddings, embedding_dim)
        if self.config.codebook == "gradient":
            self.embedding = nn.Parameter(start)
        else:
            self.register_buffer("embedding", start)
        self.register_buffer("cluster_size", torch.ones(num_embeddings))
        if self.config.codebook == "ema":
            self.register_buffer("embedding_sum", start.clone())
        elif self.config.codebook == "simvq":
            # Short, as in the authors' code: the longer they are, the further a step of W moves the codes.
            self.register_buffer("frozen", start / embedding_dim**0.5)
            self.embedding_map = nn.Parameter(torch.eye(embedding_dim) * embedding_dim**0.5)
            self.embedding_shift = nn.Parameter(torch.zeros(embedding_dim))
        # Made since the codebook was initialised; -1: not initialised. As a plain number it spares a device round trip.
        self.num_updates = -1 if self.init_vectors else 0
        self.register_buffer("updates", torch.tensor(self.num_updates))
        self.gathered: list[Tensor] = []  # encoder outputs that the start has seen so far
        self.pending: list[_Assigned] = []  # training passes since the last update
        self.register_load_state_dict_post_hook(_recall_updates)

    @property
    def initialized(self) -> bool:
        """Whether the codebook holds its start values, so that inputs are quantised in training too."""
        return self.num_updates >= 0

    def lookup(self, codes: Tensor) -> Tensor:
        """Embed codes: (...) int64 in [0, K) -> (..., D)."""
        return F.embedding(codes, self.embedding.detach())

    def normalized(self, x: Tensor) -> Tensor:
        """Return what is compared with the codes, in the codebook's type: ``x``, or ``x`` under layer norm."""
        wide = x.to(self.embedding.dtype)
        return F.layer_norm(wide, (self.embedding_dim,)) if self.config.normalize == "layer" else wide

    def mean_embedding(self) -> Tensor:
        """Return the usage-weighted mean code (D,), which stands for a level that is absent."""
        return (self.cluster_size[:, None] * self.embedding.detach()).sum(0) / self.cluster_size.sum()

    def forward(self, x: Tensor) -> Quantized:
        """Quantise vectors; in training mode, with gradients, also note them for the next `update`.

        Args:
            x: (..., D), any floating type.

        Returns:
            Quantized vectors in the type of ``x``, codes and loss.

        Raises:
            ValueError: the last dimension is not D.
            RuntimeError: no `update` has followed the last 1,000 passes.
        """
        if x.shape[-1] != self.embedding_dim:
            raise ValueError(f"expected vectors of {self.embedding_dim} dimensions, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            wide = self.normalized(x)
            flat = wide.detach().reshape(-1, self.embedding_dim)
            learning = self.training and torch.is_grad_enabled() and flat.numel() > 0
            if learning and not self.initialized:
                codes = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
                self._note(_Assigned(flat, codes.flatten(), flat.new_zeros(len(flat))))
                return Quantized(wide.to(x.dtype), codes, self._nothing())
            codes, errors = nearest_codes(flat, self.embedding.detach(), cost=self._code_cost())
            if learning:
                self._note(_Assigned(flat, codes, errors))
            codes = codes.view(x.shape[:-1])
            vectors = self.lookup(codes)
            loss = self._loss(wide, vectors, codes) if flat.numel() else wide.sum() * 0 + self._nothing()
            vectors = (rotated if self.config.estimator == "rotation" else straight_through)(wide, vectors)
            return Quantized(vectors.to(x.dtype), codes, loss)

    def _loss(self, x: Tensor, vectors: Tensor, codes: Tensor) -> Tensor:
        loss = self.config.commitment_cost * F.mse_loss(x, vectors)
        if self.config.codebook == "ema":
            return loss
        return loss + F.mse_loss(F.embedding(codes, self._learned()), x.detach())

    def _learned(self) -> Tensor:
        """Compute the codebook (K, D) from the parameters, with their gradient."""
        if self.config.codebook == "simvq":
            return torch.addmm(self.embedding_shift, self.frozen, self.embedding_map)
        return self.embedding

    def _nothing(self) -> Tensor:
        """Return a loss of 0 with a gradient for each parameter: DistributedDataParallel waits for all of them."""
        return self._learned().sum() * 0

    def _note(self, assigned: _Assigned) -> None:
        if len(self.pending) >= _MOST_PENDING:
            raise RuntimeError(
                f"{_MOST_PENDING:,} training passes, and no update of the codebook. After each step of the optimiser "
                "call update_codebooks() of the VQVAE, or update() of a VectorQuantizer by itself"
            )
        self.pending.append(assigned)

    def _code_cost(self) -> Tensor | None:
        """What each code costs beside its squared distance, (K,): its information under the codes' frequencies."""
        if not self.rate_weight:
            return None
        share = self.cluster_size / self.cluster_size.sum()
        return -self.rate_weight * share.clamp_min(1e-3 / self.num_embeddings).log()

    @torch.no_grad()
    def update(self) -> None:
        """Move the codebook by all vectors that training passes have quantised since the last update.

        Call it once after each step of the optimiser: micro-batches whose gradients were accumulated then count as the
        one large batch that they are. In a distributed run all processes call it, after as many passes each.
        """
        passes, self.pending = self.pending, []
        with torch.autocast(self.embedding.device.type, enabled=False):
            if self.config.codebook == "simvq":
                self.embedding.copy_(self._learned())
            if passes and self.initialized:
                self._follow(passes)
            elif passes:
                self._gather(passes)

    def _gather(self, passes: list[_Assigned]) -> None:
        seen = [distributed.all_gather_rows(part.vectors) for part in passes]
        self.gathered += seen
        if sum(len(rows) for rows in self.gathered) < self.init_vectors:
            return
        rows, self.gathered = torch.cat(self.gathered), []
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.init_vectors]
        rows = rows[pick.to(rows.device)]
        # Sums may round otherwise on another GPU, and then another start would be drawn.
        if self.config.codebook == "simvq":
            root, mean = (distributed.tensor_from_main(part) for part in affine_of(rows))
            self.embedding_map.copy_(root * self.embedding_dim**0.5)
            self.embedding_shift.copy_(mean)
            centres = self._learned()
            counts = torch.bincount(nearest_codes(rows, centres)[0], minlength=self.num_embeddings).to(rows.dtype)
        else:
            centres, counts = kmeans(rows, self.num_embeddings)
        centres, counts = distributed.tensor_from_main(centres), distributed.tensor_from_main(counts)
        # Counts in the scale of one update; no code starts as dead.
        counts = counts * (sum(len(rows) for rows in seen) / counts.sum())
        self.cluster_size.copy_(counts.clamp_min(float(self._revived_size(counts))))
        self.embedding.copy_(centres)
        if self.config.codebook == "ema":
            self.embedding_sum.copy_(centres * self.cluster_size[:, None])
        self._advance()

    def _follow(self, passes: list[_Assigned]) -> None:
        vectors, codes, _ = (torch.cat(parts) for parts in zip(*passes, strict=True))
        # Where bincount would make the device wait for the host.
        counts = vectors.new_zeros(self.num_embeddings).scatter_add_(0, codes, vectors.new_ones(1).expand(len(codes)))
        sums = torch.zeros_like(self.embedding)
        if self.config.codebook == "ema":
            sums.index_add_(0, codes, vectors)
        own = [torch.cat([counts[:, None], sums], 1)]
        if revives := bool(self.config.revival_threshold) and self.config.codebook != "simvq":
            own.append(self._candidates(passes))
        everyone = distributed.all_gather(torch.cat(own))  # (processes, K + C, 1 + D): all that is exchanged
        both = everyone[:, : self.num_embeddings].sum(0)
        counts, sums = both[:, 0], both[:, 1:]
        # The encoder moves fast at first, and a long memory would take its codes for alive: the window grows. It spans
        # 4K vectors at least: a few vectors say nothing about most of the codes.
        growing = min(self.config.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weight = (counts.sum() / (_LEAST_WINDOW * self.num_embeddings)).clamp(1 - self.config.decay, 1 - growing)
        self.cluster_size.lerp_(counts, weight)
        if self.config.codebook == "ema":
            self.embedding_sum.lerp_(sums, weight)
            total, epsilon = self.cluster_size.sum(), self.config.epsilon
            smoothed = (self.cluster_size + epsilon) / (total + self.num_embeddings * epsilon) * total
            self.embedding.copy_(self.embedding_sum / smoothed[:, None])
        if revives:
            self._revive(everyone[:, self.num_embeddings :].flatten(0, 1))
        self._advance()

    def _candidates(self, passes: list[_Assigned]) -> Tensor:
        """Draw inputs of this process for dead codes, (C, 1 + D): the key by which one was drawn, then the vector.

        Without replacement, by the largest of error / exponential draw (in logarithms: Gumbel top-k). They are drawn as
        one process would that has the vectors of all, pass after pass, each in the order of the ranks.
        """
        world, rank = distributed.world_size(), distributed.rank()
        vectors, errors = torch.cat([part.vectors for part in passes]), torch.cat([part.errors for part in passes])
        generator = torch.Generator(errors.device).manual_seed(self.num_updates)
        uniform = torch.rand(world * len(errors), dtype=errors.dtype, device=errors.device, generator=generator)
        shares = [part.view(world, -1)[rank] for part in uniform.split([world * len(part.errors) for part in passes])]
        keys, rows = (errors / -torch.cat(shares).log()).topk(min(self.num_embeddings, len(errors)))
        found = torch.cat([keys[:, None], vectors[rows]], 1)
        # Collectives want equal shapes, and processes may have other numbers of vectors.
        lacking = self.num_embeddings - len(found) if world > 1 else 0
        return torch.cat([found, found.new_full((lacking, found.shape[1]), -1.0)]) if lacking else found

    def _revive(self, candidates: Tensor) -> None:
        """Move dead codes to inputs that are badly served, (N, 1 + D); nothing here waits for the device."""
        dead = self.cluster_size < self.config.revival_threshold * self.cluster_size.mean()
        keys, order = candidates[:, 0].topk(min(self.num_embeddings, len(candidates)))
        place = dead.cumsum(0) - 1
        dead &= place < (keys >= 0).sum()  # no input twice: the others wait for the next update
        chosen = candidates[order[place.clamp(0, len(order) - 1)], 1:]
        size = self._revived_size(self.cluster_size)
        self.cluster_size.copy_(torch.where(dead, size, self.cluster_size))
        self.embedding.copy_(torch.where(dead[:, None], chosen, self.embedding))
        if self.config.codebook == "ema":
            self.embedding_sum.copy_(torch.where(dead[:, None], chosen * size, self.embedding_sum))

    def _revived_size(self, counts: Tensor) -> Tensor:
        """Count given to a revived code: five thresholds, some 160 updates of grace at decay 0.99; the mean at most."""
        return min(5 * self.config.revival_threshold, 1.0) * counts.mean()

    def _advance(self) -> None:
        self.num_updates += 1
        self.updates.fill_(self.num_updates)


def _recall_updates(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, VectorQuantizer)
    module.num_updates = int(module.updates)
