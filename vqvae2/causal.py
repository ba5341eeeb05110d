"""Causal layers over a map of codes, each written once and run in two forms.

The prior reads two views of its codes, made once by `shift_down` and `shift_previous`: the row above each position, and
the code before it in raster order. Every layer after that is inclusive, so a position sees itself and everything
earlier: no future leaks, and nothing earlier is hidden::

    the vertical stream   v (B, n, W, C)   knows finished rows alone: a whole row of it is made at once (`above`)
    the horizontal stream h (B, n, m, C)   knows besides what lies to the left: made position by position (`within`)

Each layer calls its `Past` for what lies before its input. `Padding` answers with zeros, which is the full form: all
rows and columns at once, for training. `Cache` answers with what it remembers, which is the incremental form: one row,
then one position at a time, for sampling. The layers cannot tell the two apart, and share code and parameters.
`RecordedCache` is a cache whose row is known to the device alone, so that a row's work can be recorded and replayed.

Two streams after Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328, section 2.2); causal convolutions with
attention after PixelSNAIL (Chen et al. 2017, arXiv 1712.09763).

Shapes: B batch, n rows of H, m columns of W, C channels, R residual channels, T in-row taps, P = H W positions.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae2.lean import Dropout, RMSNorm, gate

__all__ = [
    "Cache",
    "CausalAttention",
    "ColumnConv",
    "GatedBlock",
    "Padding",
    "Past",
    "RecordedCache",
    "RowConv",
    "shift_down",
    "shift_previous",
]


def shift_down(x: Tensor) -> Tensor:
    """Show each position the one above it: (B, H, W, C) -> the same, the first row zero."""
    return F.pad(x, (0, 0, 0, 0, 1, -1))


def shift_previous(x: Tensor) -> Tensor:
    """Show each position the one before it in raster order: (B, H, W, C) -> the same, the first position zero.

    The first column thereby sees the last code of the row above, which no convolution over that row reaches from there.
    """
    return F.pad(x.flatten(1, 2), (0, 0, 1, -1)).view_as(x)


class Past(Protocol):
    """What lies before a layer's input; ``layer`` is the asking module, each of which has a past of its own."""

    def rows(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Put ``count`` earlier rows above x (B, n, W, C): (B, count + n, W, C)."""
        ...

    def columns(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Put ``count`` earlier columns left of x (B, n, m, C): (B, n, count + m, C)."""
        ...

    def positions(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | bool]:
        """Put all earlier positions before key and value (B, heads, p, d).

        The third returned tells what may be seen: True: each position and those before it; False: all; or a mask
        (p, positions) that is true where it may.
        """
        ...


class Padding:
    """The full form: the input is the whole map, and before it there is nothing."""

    def rows(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Pad with zero rows."""
        return F.pad(x, (0, 0, 0, 0, count, 0))

    def columns(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Pad with zero columns."""
        return F.pad(x, (0, 0, count, 0))

    def positions(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | bool]:
        """All positions are here at once: mask the later ones."""
        return key, value, True


class Cache:
    """The incremental form: the input is one row, or one position, and what came before it is remembered.

    Memory grows with H x W x C for each attention layer and with W x C for each convolution. Buffers are made at a
    layer's first call and kept. The owner sets `row` and `column` before it calls the layers.

    Args:
        height: H.
        width: W.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.row = self.column = 0
        self._buffers: dict[nn.Module, tuple[Tensor, ...]] = {}

    def rows(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Remember a row (B, 1, W, C) and return it below the ``count`` rows before it."""
        if layer not in self._buffers:
            self._buffers[layer] = (x.new_zeros(x.shape[0], count + 1, *x.shape[2:]),)
        (buffer,) = self._buffers[layer]
        if count:
            buffer[:, :-1] = buffer[:, 1:].clone()
        buffer[:, -1:] = x
        return buffer

    def columns(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """Remember a position (B, 1, 1, C) and return it right of the ``count`` positions before it in its row."""
        if layer not in self._buffers:
            self._buffers[layer] = (x.new_zeros(x.shape[0], 1, count + self.width, x.shape[3]),)
        (buffer,) = self._buffers[layer]
        # The first `count` columns stay zero; a row overwrites what the row before it left.
        end = count + self.column
        buffer[:, :, end : end + 1] = x
        return buffer[:, :, self.column : end + 1]

    def positions(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | bool]:
        """Remember a position's key and value (B, heads, 1, d) and return all so far; none of them is later."""
        keys, values = self._keys_and_values(layer, key, value)
        position = self.row * self.width + self.column
        keys[:, :, position : position + 1] = key
        values[:, :, position : position + 1] = value
        return keys[:, :, : position + 1], values[:, :, : position + 1], False

    def clear(self) -> None:
        """Forget what was remembered; the buffers stay where they are."""
        for buffer in self.buffers():
            buffer.zero_()

    def buffers(self) -> Iterator[Tensor]:
        """All that is remembered, each (B, ...)."""
        for buffers in self._buffers.values():
            yield from buffers

    def _keys_and_values(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if layer not in self._buffers:
            shape = (*key.shape[:2], self.height * self.width, key.shape[3])
            self._buffers[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        return self._buffers[layer]


class RecordedCache(Cache):
    """The incremental form of a row that is recorded once and replayed, as a CUDA graph is.

    A recording keeps every number that Python held: the columns, which are the same in each row, but not the row, which
    is therefore a tensor. Attention reads the keys of all positions and masks those that are still to come.

    Args:
        height: H.
        width: W.
        index: (1,) int64, the row; its owner counts it up.
    """

    def __init__(self, height: int, width: int, index: Tensor) -> None:
        super().__init__(height, width)
        self.index = index
        self._places = torch.arange(height * width, device=index.device)

    def positions(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | bool]:
        """Remember a position's key and value (B, heads, 1, d); return those of the whole map, and which are there."""
        keys, values = self._keys_and_values(layer, key, value)
        position = self.index * self.width + self.column
        keys.index_copy_(2, position, key)
        values.index_copy_(2, position, value)
        return keys, values, (self._places <= position)[None]


class RowConv(nn.Module):
    """Convolution of the vertical stream: k//2 + 1 rows that end with its own, k//2 columns to either side.

    Args:
        in_channels: C.
        out_channels: R.
        kernel_size: k >= 2 (an even k reaches as far as k + 1).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        size = (self.reach + 1, 2 * self.reach + 1)
        conv = nn.Conv2d(in_channels, out_channels, size, padding=(0, self.reach))
        self.conv = conv.to(memory_format=torch.channels_last)  # as its input: else each call copies the weights

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Map rows (B, n, W, C) to (B, n, W, R)."""
        window = past.rows(self, x, self.reach)
        if window.shape[1] == self.reach + 1:  # one row: a matrix product, without a convolution's set-up
            taps = F.pad(window, (0, 0, self.reach, self.reach)).unfold(2, 2 * self.reach + 1, 1)
            weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # (R, rows * columns * C), no copy
            return F.linear(rearrange(taps, "b t w c k -> b 1 w (t k c)"), weight, self.conv.bias)
        return self.conv(rearrange(window, "b h w c -> b c h w")).permute(0, 2, 3, 1)


class ColumnConv(nn.Module):
    """Convolution of the horizontal stream: T = k//2 + 1 positions of a row that end with its own.

    Args: as of `RowConv`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        self.weight = nn.Parameter(torch.empty(out_channels, self.reach + 1, in_channels))  # (R, T, C)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.weight.flatten(1), a=5**0.5)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """Map (B, n, m, C) to (B, n, m, R)."""
        window = past.columns(self, x, self.reach)
        if window.shape[2] == self.reach + 1:  # one position: a matrix product, without a convolution's set-up
            return F.linear(window.flatten(2), self.weight.flatten(1), self.bias)[:, :, None]
        weight = self.weight.transpose(1, 2)[:, :, None]  # (R, C, 1, T)
        return F.conv2d(window.permute(0, 3, 1, 2), weight, self.bias).permute(0, 2, 3, 1)


class GatedBlock(nn.Module):
    """Gated residual block of both streams; the vertical one feeds the horizontal one, never the reverse.

    In each stream: RMS norm, convolution C -> R, SiLU, dropout, projection R -> 2 C, gated linear unit, add.

    Args:
        channels: C.
        residual_channels: R.
        kernel_size: k >= 2.
        condition_channels: channels of the condition; 0: none.
        dropout: in [0, 1).
        vertical_channels: residual channels of the vertical stream; 0: R.
    """

    def __init__(
        self,
        channels: int,
        residual_channels: int,
        kernel_size: int,
        condition_channels: int = 0,
        dropout: float = 0.0,
        vertical_channels: int = 0,
    ) -> None:
        super().__init__()
        vertical_channels = vertical_channels or residual_channels
        self.norm_v, self.norm_h = RMSNorm(channels), RMSNorm(channels)
        self.rows = RowConv(channels, vertical_channels, kernel_size)
        self.columns = ColumnConv(channels, residual_channels, kernel_size)
        self.link = nn.Linear(channels, residual_channels, bias=False)
        self.condition_v = nn.Linear(condition_channels, vertical_channels, bias=False) if condition_channels else None
        self.condition_h = nn.Linear(condition_channels, residual_channels, bias=False) if condition_channels else None
        self.out_v = nn.Linear(vertical_channels, 2 * channels)
        self.out_h = nn.Linear(residual_channels, 2 * channels)
        self.dropout = Dropout(dropout)
        for out in (self.out_v, self.out_h):  # the block starts as the identity
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)

    def above(self, v: Tensor, condition: Tensor | None, past: Past) -> tuple[Tensor, Tensor]:
        """Advance the vertical stream.

        Args:
            v: (B, n, W, C).
            condition: (B, n, W, condition channels), or None.
            past: of this pass.

        Returns:
            ``(v, link)``: the new v, and what `within` takes from it: (B, n, W, R).
        """
        x = self.rows(self.norm_v(v), past)
        if condition is not None and self.condition_v is not None:
            x = x + self.condition_v(condition)
        v = gate(v, x, self.out_v, self.dropout)
        link = self.link(v)
        if condition is not None and self.condition_h is not None:
            link = link + self.condition_h(condition)
        return v, link

    def within(self, h: Tensor, link: Tensor, past: Past) -> Tensor:
        """Advance the horizontal stream: h (B, n, m, C), link (B, n, m, R) -> h."""
        return gate(h, self.columns(self.norm_h(h), past) + link, self.out_h, self.dropout)


class CausalAttention(nn.Module):
    """Multi-head attention of the horizontal stream over all positions up to its own in raster order.

    Args:
        channels: C, divided by num_heads.
        num_heads: attention heads.
        dropout: of the attention weights, in [0, 1).
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels must be a multiple of num_heads, got {channels} and {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.norm = RMSNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def within(self, h: Tensor, past: Past) -> Tensor:
        """Advance the horizontal stream: (B, n, m, C) -> the same."""
        batch, rows, columns, channels = h.shape
        qkv = self.qkv(self.norm(h)).view(batch, rows * columns, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, n m, d)
        key, value, seen = past.positions(self, key, value)
        mask = seen if isinstance(seen, Tensor) else None
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=seen is True)
        return h + self.out(x.transpose(1, 2).reshape(batch, rows, columns, channels))
