"""Vector quantisation with an exponential-moving-average codebook that stays alive.

The codebook follows the encoder by the moving averages of van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1),
as VQ-VAE-2 (Razavi et al. 2019, arXiv 1906.00446, section 3.1) uses them. Two things are added, without which a
codebook collapses on pictures that are mostly background: it starts from k-means over encoder outputs, and codes that
fall out of use are moved to where the quantisation error is largest.

Shapes: N vectors, K codes, D dimensions.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2 import distributed
from vqvae2.device import widest

Normalization = Literal["none", "layer"]

_CPU_ELEMENTS, _ELEMENTS = 1 << 18, 1 << 24
"""Distances held at once: on a CPU 1 MiB in fp32, which its cache holds; elsewhere 64 MiB."""

_MOST_PENDING = 1000
"""Training passes that one update may follow."""

_LEAST_WINDOW = 4
"""Vectors for each code that the moving average spans at least."""

__all__ = ["Quantized", "QuantizerConfig", "VectorQuantizer", "kmeans", "nearest_codes"]


class _Assigned(NamedTuple):
    """Vectors of one training pass, (n, D), their codes and squared errors, (n,) each."""

    vectors: Tensor
    codes: Tensor
    errors: Tensor


class Quantized(NamedTuple):
    """What a quantiser returns.

    Attributes:
        vectors: (..., D) the nearest codes, with the straight-through gradient of the input.
        codes: (...) int64 indices in [0, K).
        loss: scalar commitment loss, ``commitment_cost * mean((x - sg[e])^2)``.
    """

    vectors: Tensor
    codes: Tensor
    loss: Tensor


def nearest_codes(
    x: Tensor, codebook: Tensor, chunk: int | None = None, cost: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest code of each vector without holding all N x K distances.

    Args:
        x: (N, D) vectors.
        codebook: (K, D).
        chunk: vectors compared at once; by default as many as 1 MiB of distances allows on a CPU, 64 MiB elsewhere.
        cost: (K,) added to the squared distances of each code when they are compared; None: nothing.

    Returns:
        ``(codes, errors)``: (N,) int64 indices and (N,) squared Euclidean distances, never negative.
    """
    chunk = chunk or max(1, (_CPU_ELEMENTS if x.device.type == "cpu" else _ELEMENTS) // len(codebook))
    squares = codebook.square().sum(1)
    squares = squares if cost is None else squares + cost
    # An exported program takes any number of vectors: it cannot loop over them.
    parts = [x] if torch.compiler.is_exporting() else x.split(chunk)
    # ||x - e||^2 = ||x||^2 + (||e||^2 - 2 x.e); the first term does not decide.
    found = [torch.addmm(squares, part, codebook.t(), alpha=-2).min(1) for part in parts]
    errors, codes = (torch.cat(each) for each in zip(*found, strict=True))
    errors = errors + x.square().sum(1)
    return codes, (errors if cost is None else errors - cost[codes]).clamp_min_(0)


def kmeans(x: Tensor, num_codes: int, iterations: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cluster vectors by Lloyd's iteration from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        x: (N, D) vectors, N >= num_codes.
        num_codes: K.
        iterations: Lloyd steps.
        seed: of the draws; the same input and seed give the same clusters.

    Returns:
        ``(centres, counts)``: (K, D) and (K,) vectors assigned to each.
    """
    if x.shape[0] < num_codes:
        raise ValueError(f"k-means needs at least {num_codes} vectors, got {x.shape[0]}")
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_codes, generator=generator, dtype=torch.float64).to(x.device, widest(x.device))
    chosen = [(uniform[0] * x.shape[0]).long()]
    distances = (x - x[chosen[0]]).square().sum(1)
    for k in range(1, num_codes):
        index = _draw(distances, uniform[k : k + 1])[0]
        chosen.append(index)
        distances = torch.minimum(distances, (x - x[index]).square().sum(1))
    centres = x[torch.stack(chosen)].clone()
    counts = torch.zeros(num_codes, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        codes, _ = nearest_codes(x, centres)
        counts = torch.bincount(codes, minlength=num_codes).to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, codes, x)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres, counts


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices with probability proportional to ``weights`` (uniformly when all are zero), by inverse CDF."""
    weights = weights.to(widest(weights.device))
    weights = torch.where(weights.sum() > 0, weights, torch.ones_like(weights))
    cumulative = weights.cumsum(0)
    return torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max(len(weights) - 1)


@dataclass(frozen=True)
class QuantizerConfig:
    """How vectors are quantised, alike on all levels."""

    commitment_cost: float = 0.25
    """beta: weight of the commitment loss, >= 0."""
    decay: float = 0.99
    """gamma of the codebooks' moving averages, in [0, 1)."""
    epsilon: float = 1e-5
    """Laplace smoothing of the codes' counts, > 0."""
    init_vectors: int = 8192
    """Encoder outputs from which k-means initialises a codebook, at least K; 0: random initialisation."""
    revival_threshold: float = 0.05
    """Share of the mean count below which a code is dead and revived; 0 turns revival off."""
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
        if self.normalize not in get_args(Normalization):
            raise ValueError(f"normalize must be one of {', '.join(get_args(Normalization))}, got {self.normalize}")


class VectorQuantizer(nn.Module):
    """Replace vectors by their nearest code; the codebook is a moving average of what was assigned to it.

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

    Args:
        num_embeddings: K, at least 1.
        embedding_dim: D, at least 1.
        config: how; the names in the text above are its fields.
        rate_weight: lambda of the entropy-constrained choice: a code i costs ``|x - e_i|^2 - lambda log p_i``, with p_i
            its share of N. Codes that are rare, and so long to write, are chosen where they gain enough alone.

    Source: van den Oord et al. 2017, appendix A.1; revival after Jukebox (Dhariwal et al. 2020, section 3.1);
    `rate_weight` after Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989.

    Example:
        >>> quantizer = VectorQuantizer(num_embeddings=8, embedding_dim=4).eval()
        >>> out = quantizer(torch.zeros(2, 3, 3, 4))
        >>> out.vectors.shape, out.codes.shape
        (torch.Size([2, 3, 3, 4]), torch.Size([2, 3, 3]))
    """

    embedding: Tensor
    cluster_size: Tensor
    embedding_sum: Tensor
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
        self.register_buffer("embedding", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("cluster_size", torch.ones(num_embeddings))
        self.register_buffer("embedding_sum", self.embedding.clone())
        # Updates made since the codebook was initialised; -1: not initialised. `_updates` spares a device round trip.
        self._updates = -1 if self.init_vectors else 0
        self.register_buffer("updates", torch.tensor(self._updates))
        self.gathered: list[Tensor] = []  # encoder outputs that the start has seen so far
        self.pending: list[_Assigned] = []  # training passes since the last update
        self.register_load_state_dict_post_hook(_recall_updates)

    @property
    def initialized(self) -> bool:
        """Whether the codebook holds its start values, so that inputs are quantised in training too."""
        return self._updates >= 0

    @property
    def num_updates(self) -> int:
        """Updates made since the codebook was initialised, -1 before; known without asking the device."""
        return self._updates

    def extra_repr(self) -> str:
        """Name the settings in ``print(model)``."""
        decay, beta = self.config.decay, self.config.commitment_cost
        return f"K={self.num_embeddings}, D={self.embedding_dim}, decay={decay}, beta={beta}"

    def lookup(self, codes: Tensor) -> Tensor:
        """Embed codes: (...) int64 in [0, K) -> (..., D)."""
        return F.embedding(codes, self.embedding)

    def mean_embedding(self) -> Tensor:
        """Return the usage-weighted mean code (D,), which stands for a level that is absent."""
        return (self.cluster_size[:, None] * self.embedding).sum(0) / self.cluster_size.sum()

    def forward(self, x: Tensor) -> Quantized:
        """Quantise vectors; in training mode, with gradients, also note them for the next `update`.

        Args:
            x: (..., D), any floating type.

        Returns:
            Quantized vectors in the type of ``x``, codes and commitment loss.

        Raises:
            ValueError: the last dimension is not D.
            RuntimeError: no `update` has followed the last 1,000 passes.
        """
        if x.shape[-1] != self.embedding_dim:
            raise ValueError(f"expected vectors of {self.embedding_dim} dimensions, got shape {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(self.embedding.dtype)
            if self.config.normalize == "layer":
                wide = F.layer_norm(wide, (self.embedding_dim,))
            flat = wide.detach().reshape(-1, self.embedding_dim)
            learning = self.training and torch.is_grad_enabled() and flat.numel() > 0
            if learning and not self.initialized:
                codes = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
                self._note(_Assigned(flat, codes.flatten(), flat.new_zeros(len(flat))))
                return Quantized(wide.to(x.dtype), codes, wide.new_zeros(()))
            codes, errors = nearest_codes(flat, self.embedding, cost=self._code_cost())
            if learning:
                self._note(_Assigned(flat, codes, errors))
            vectors = self.lookup(codes).view_as(wide)
            loss = self.config.commitment_cost * F.mse_loss(wide, vectors) if flat.numel() else wide.sum() * 0
            vectors = wide + (vectors - wide).detach()
            return Quantized(vectors.to(x.dtype), codes.view(x.shape[:-1]), loss)

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
        if not passes:
            return
        if self.initialized:
            self._follow(passes)
        else:
            self._gather(passes)

    def _gather(self, passes: list[_Assigned]) -> None:
        seen = [distributed.all_gather_rows(part.vectors) for part in passes]
        self.gathered += seen
        if sum(len(rows) for rows in self.gathered) < self.init_vectors:
            return
        rows, self.gathered = torch.cat(self.gathered), []
        pick = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.init_vectors]
        centres, counts = kmeans(rows[pick.to(rows.device)], self.num_embeddings)
        # Sums may round otherwise on another GPU, and then another start would be drawn.
        centres, counts = distributed.tensor_from_main(centres), distributed.tensor_from_main(counts)
        # Counts in the scale of one update, and nobody starts as dead.
        counts = counts * (sum(len(rows) for rows in seen) / counts.sum())
        self.cluster_size.copy_(counts.clamp_min(float(self._revived_size(counts))))
        self.embedding.copy_(centres)
        self.embedding_sum.copy_(centres * self.cluster_size[:, None])
        self._advance()

    def _follow(self, passes: list[_Assigned]) -> None:
        vectors, codes, _ = (torch.cat(parts) for parts in zip(*passes, strict=True))
        # Where bincount would make the device wait for the host.
        counts = vectors.new_zeros(self.num_embeddings).scatter_add_(0, codes, vectors.new_ones(1).expand(len(codes)))
        sums = torch.zeros_like(self.embedding).index_add_(0, codes, vectors)
        both = distributed.all_reduce_sum(torch.cat([counts[:, None], sums], 1))
        counts, sums = both[:, 0], both[:, 1:]
        # The encoder moves fast at first, and a long memory would take its codes for alive: the window grows. It spans
        # 4K vectors at least: a few vectors say nothing about most of the codes.
        growing = min(self.config.decay, (1 + self._updates) / (10 + self._updates))
        weight = (counts.sum() / (_LEAST_WINDOW * self.num_embeddings)).clamp(1 - self.config.decay, 1 - growing)
        self.cluster_size.lerp_(counts, weight)
        self.embedding_sum.lerp_(sums, weight)
        total, epsilon = self.cluster_size.sum(), self.config.epsilon
        smoothed = (self.cluster_size + epsilon) / (total + self.num_embeddings * epsilon) * total
        self.embedding.copy_(self.embedding_sum / smoothed[:, None])
        if self.config.revival_threshold:
            self._revive(passes)
        self._advance()

    def _revive(self, passes: list[_Assigned]) -> None:
        """Move dead codes to inputs that are badly served; nothing here waits for the device."""
        dead = self.cluster_size < self.config.revival_threshold * self.cluster_size.mean()
        errors = torch.cat([distributed.all_gather_rows(part.errors) for part in passes])
        # Without replacement, by the largest of error / exponential draw (in logarithms: Gumbel top-k).
        generator = torch.Generator(errors.device).manual_seed(self._updates)
        uniform = torch.rand(errors.shape, dtype=errors.dtype, device=errors.device, generator=generator)
        order = (errors / -uniform.log()).topk(min(self.num_embeddings, len(errors))).indices
        # Draws differ between kinds of GPU.
        order = distributed.tensor_from_main(order)
        candidates = _rows(passes, order[(dead.cumsum(0) - 1).clamp_min(0) % len(order)])
        size = self._revived_size(self.cluster_size)
        self.cluster_size.copy_(torch.where(dead, size, self.cluster_size))
        self.embedding.copy_(torch.where(dead[:, None], candidates, self.embedding))
        self.embedding_sum.copy_(torch.where(dead[:, None], candidates * size, self.embedding_sum))

    def _revived_size(self, counts: Tensor) -> Tensor:
        """Count given to a revived code: five thresholds, some 160 updates of grace at decay 0.99; the mean at most."""
        return min(5 * self.config.revival_threshold, 1.0) * counts.mean()

    def _advance(self) -> None:
        self._updates += 1
        self.updates.fill_(self._updates)


def _rows(passes: list[_Assigned], index: Tensor) -> Tensor:
    """Look up vectors by their rank among those of all processes: pass after pass, each in the order of the ranks."""
    vectors = torch.cat([part.vectors for part in passes])
    if distributed.world_size() == 1:
        return vectors[index]
    lengths = distributed.all_gather_rows(torch.tensor([[len(part.vectors) for part in passes]]))  # (processes, passes)
    ends = lengths.t().flatten().cumsum(0).view(len(passes), -1)[:, distributed.rank()].tolist()
    own = torch.cat([torch.arange(end - len(part.vectors), end) for end, part in zip(ends, passes, strict=True)])
    own = own.to(index.device, non_blocking=True)
    place = torch.searchsorted(own, index).clamp_max(len(own) - 1)
    return distributed.all_reduce_sum(vectors[place] * (own[place] == index)[:, None])


def _recall_updates(module: nn.Module, _keys: object) -> None:
    assert isinstance(module, VectorQuantizer)
    module._updates = int(module.updates)
