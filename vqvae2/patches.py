"""Several codes as one position: the streams of a prior take them together, a head predicts them one after the other.

A patch is p x p codes. A map has p^2 times fewer patches than codes, so that a fine level costs about what the next
coarser one does. Mirrored, a position holds a patch of the left half and the patch at its mirror image in the right
half. In images that are nearly symmetric these say much about each other.

Positions are made in raster order. Within one the left patch comes first. The codes of a patch are made row by row,
from left to right; those of a right patch from right to left.

Shapes: B batch, h x w codes, n x m positions of G codes (p^2, mirrored 2 p^2), E embedding dimensions, C channels, M
channels of the head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae2.lean import Dropout, RMSNorm, gate

__all__ = ["PatchHead", "fold", "unfold"]


def fold(x: Tensor, patch: int, mirrored: bool = False) -> Tensor:
    """Put the codes of a position side by side: (B, h, w, E) -> (B, n, m, G E)."""
    if mirrored:
        left, right = x.chunk(2, 2)
        return rearrange([left, right.flip(2)], "s b (n y) (m x) e -> b n m (s y x e)", y=patch, x=patch)
    return rearrange(x, "b (n y) (m x) e -> b n m (y x e)", y=patch, x=patch) if patch > 1 else x


def unfold(x: Tensor, patch: int, mirrored: bool = False) -> Tensor:
    """Undo `fold`: (B, n, m, G E) -> (B, h, w, E)."""
    if mirrored:
        left, right = rearrange(x, "b n m (s y x e) -> s b (n y) (m x) e", s=2, y=patch, x=patch)
        return torch.cat([left, right.flip(2)], 2)
    return rearrange(x, "b n m (y x e) -> b (n y) (m x) e", y=patch, x=patch) if patch > 1 else x


class PatchHead(nn.Module):
    """Make features for each code from what is known of earlier positions and from the codes before it in its own.

    Args:
        channels: C.
        embedding_dim: E.
        codes: G.
        head_channels: M.
        dropout: in [0, 1).
    """

    earlier: Tensor

    def __init__(self, channels: int, embedding_dim: int, codes: int, head_channels: int, dropout: float) -> None:
        super().__init__()
        self.channels = head_channels
        self.unfold = nn.Linear(channels, codes * head_channels)
        self.within = nn.Linear(codes * embedding_dim, codes * head_channels, bias=False)
        seen = torch.ones(codes, codes).tril(-1)
        self.register_buffer(
            "earlier",
            seen.repeat_interleave(head_channels, 0).repeat_interleave(embedding_dim, 1),
            persistent=False,
        )
        self.norm = RMSNorm(head_channels)
        self.hidden = nn.Linear(head_channels, head_channels)
        self.out = nn.Linear(head_channels, 2 * head_channels)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, codes: Tensor, code: int | None = None) -> Tensor:
        """Map positions (B, n, m, C) and their embedded codes (B, n, m, G E) to features of each code.

        Args:
            h: the horizontal stream.
            codes: the positions' own codes. The features of a code depend on those before it alone.
            code: index of the one code of each position that is wanted; None: all.

        Returns:
            (B, n, m, G M), or (B, n, m, M) of the one.
        """
        rows = slice(None) if code is None else slice(code * self.channels, (code + 1) * self.channels)
        x = F.linear(h, self.unfold.weight[rows], self.unfold.bias[rows])
        x = (x + F.linear(codes, (self.within.weight * self.earlier)[rows])).unflatten(-1, (-1, self.channels))
        return gate(x, self.hidden(self.norm(x)), self.out, self.dropout).flatten(-2)
