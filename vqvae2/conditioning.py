"""What a prior knows of the coarser levels, and of a label that is a number.

Shapes: B batch, n x m positions of the prior, C channels.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vqvae2.lean import Dropout, RMSNorm
from vqvae2.prior_config import PriorConfig

__all__ = ["ConditionStack", "NumberEmbedding", "add"]

_COSINES = 16


class ConditionStack(nn.Module):
    """Turn the coarser levels' codes into features at the prior's resolution (not causal: they are all known).

    Codes are embedded and brought to the finest of the coarser resolutions, a residual stack runs there, and each cell
    is unfolded into the cells below it, every one with features of its own. With `condition_norm` the input of each
    block and the result are normalised. Without it the features can grow until the prior's own codes no longer count.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        channels = config.condition_channels or config.channels
        self.shape = config.condition_shapes[-1]
        self.factors = (config.grid[0] // self.shape[0], config.grid[1] // self.shape[1])
        dim = config.embedding_dim
        self.embeddings = nn.ModuleList(nn.Embedding(k, dim) for k in config.condition_num_embeddings)
        self.inputs = nn.ModuleList(nn.Linear(dim, channels) for _ in config.condition_num_embeddings)
        self.position = nn.Parameter(torch.zeros(*self.shape, channels))
        inside = config.condition_channels or config.residual_channels
        self.blocks = nn.ModuleList(_block(channels, inside, config.dropout) for _ in range(config.condition_layers))
        self.unfold = nn.Linear(channels, config.channels * self.factors[0] * self.factors[1])
        # Identity, which has no weights, in priors of earlier versions.
        norm = RMSNorm if config.condition_norm else nn.Identity
        self.norms = nn.ModuleList(norm(channels) for _ in range(config.condition_layers))
        self.norm = norm(config.channels)

    def forward(self, codes: list[Tensor]) -> Tensor:
        """Map codes (B, h', w') by level, top first, to (B, n, m, C)."""
        inputs = []
        for embedding, project, level in zip(self.embeddings, self.inputs, codes, strict=True):
            repeats = (self.shape[0] // level.shape[1], self.shape[1] // level.shape[2])
            below = "b h w c -> b (h fy) (w fx) c"
            inputs.append(repeat(project(embedding(level.long())), below, fy=repeats[0], fx=repeats[1]))
        x = add(sum(inputs[1:], inputs[0]), self.position)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + rearrange(block(rearrange(norm(x), "b h w c -> b c h w")), "b c h w -> b h w c")
        fy, fx = self.factors
        x = self.norm(rearrange(self.unfold(x), "b h w (fy fx c) -> b h fy w fx c", fy=fy, fx=fx))
        return rearrange(x, "b h fy w fx c -> b (h fy) (w fx) c")


def _block(channels: int, inside: int, dropout: float) -> nn.Sequential:
    """Build what a residual block adds, which is nothing at the start, as in the gated blocks."""
    last = nn.Conv2d(inside, channels, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.SiLU(), nn.Conv2d(channels, inside, 3, padding=1), nn.SiLU(), Dropout(dropout), last)


class NumberEmbedding(nn.Embedding):
    """Turn values of a number into features that change smoothly with it: a weighted sum of cosines.

    Args:
        count: N, values in even steps.
        channels: C.

    Source: a cosine series in the place of the Fourier features of Tancik et al. 2020 (arXiv 2006.10739): it does not
    join the lowest value to the highest.
    """

    basis: Tensor

    def __init__(self, count: int, channels: int) -> None:
        super().__init__(_COSINES + 1, channels)  # the last row stands for a missing number
        order = torch.arange(_COSINES)
        basis = torch.zeros(count + 1, _COSINES + 1)
        basis[:-1, :-1] = torch.cos(torch.pi * order * torch.linspace(0, 1, count)[:, None]) / (1 + order)
        basis[-1, -1] = 1
        self.register_buffer("basis", basis, persistent=False)

    def forward(self, place: Tensor) -> Tensor:
        """Map places (B,) of values, N for a missing one, to (B, C)."""
        return self.basis[place] @ self.weight


def add(x: Tensor, parameter: Tensor) -> Tensor:
    """Add a parameter to activations in their precision: float32 would widen all that follows under autocast."""
    return x + parameter.to(x.dtype)
