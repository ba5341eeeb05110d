"""Patches of codes: the streams of a prior take p x p codes as one position, and a head tells them apart.

A map has p^2 times fewer patches than codes, so that a fine level costs about what the next coarser one does. The order
is raster order of the patches and, within a patch, of its codes.

Shapes: B batch, h x w codes, n x m patches of p x p, E embedding dimensions, C channels, M channels of the head.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae2.lean import Dropout, RMSNorm, gate

__all__ = ["PatchHead", "fold", "unfold"]


def fold(x: Tensor, patch: int) -> Tensor:
    """Put the codes of a patch side by side: (B, h, w, E) -> (B, n, m, p^2 E)."""
    return rearrange(x, "b (n y) (m x) e -> b n m (y x e)", y=patch, x=patch) if patch > 1 else x


def unfold(x: Tensor, patch: int) -> Tensor:
    """Undo `fold`: (B, n, m, p^2 E) -> (B, h, w, E)."""
    return rearrange(x, "b n m (y x e) -> b (n y) (m x) e", y=patch, x=patch) if patch > 1 else x


class PatchHead(nn.Module):
    """Turn what is known of earlier patches into features of each code, which see its patch's earlier codes besides.

    Args:
        channels: C.
        embedding_dim: E.
        codes: p^2.
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
        """Map patches (B, n, m, C) and their embedded codes (B, n, m, p^2 E) to features of each code.

        Args:
            h: the horizontal stream.
            codes: the patches' own codes. Those of a code itself and of later ones are not looked at.
            code: index of the one code in its patch that is wanted; None: all.

        Returns:
            (B, n, m, p^2 M), or (B, n, m, M) of the one.
        """
        rows = slice(None) if code is None else slice(code * self.channels, (code + 1) * self.channels)
        x = F.linear(h, self.unfold.weight[rows], self.unfold.bias[rows])
        x = (x + F.linear(codes, (self.within.weight * self.earlier)[rows])).unflatten(-1, (-1, self.channels))
        return gate(x, self.hidden(self.norm(x)), self.out, self.dropout).flatten(-2)
