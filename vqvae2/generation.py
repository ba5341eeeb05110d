"""A prior in its incremental form: one code after the other, each from what is remembered of those before it.

Shapes: B batch, h x w cells, n x m positions of G cells (1 without patches), K codes, E embedding dimensions.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae2.causal import Cache, RecordedCache
from vqvae2.patches import fold

if TYPE_CHECKING:
    from vqvae2.prior import Prior

__all__ = ["Walk"]


class Walk:
    """A prior on its way through the positions of some maps, in raster order.

    Its owner calls `begin_row` once a row, `move_to` once a position, and then for each cell of the position `logits`
    and `take`. What outlives a row lies in tensors that are written in place, so that a row can be recorded.

    Args:
        prior: in evaluation mode.
        context: (B, n, m, C) what the prior is conditioned on, or None.
        batch: B.
        row: (1,) int64, the row of positions; its owner counts it up.
        recording: whether a row is recorded once and replayed.
    """

    def __init__(self, prior: "Prior", context: Tensor | None, batch: int, row: Tensor, recording: bool) -> None:
        config = prior.config
        (height, width), codes = config.grid, config.codes_per_position
        self.prior, self.context, self.row = prior, context, row
        embedded = codes * config.embedding_dim
        self._above = prior.embedding.weight.new_zeros(batch, 1, width, embedded)  # the row above
        self._previous = self._above[:, :, :1].clone()  # the last position of all
        self._tables = None  # (n, m, G, K)
        if prior.position_table is not None:
            self._tables = fold(prior.position_table[None], config.patch, config.mirrored)[0].unflatten(-1, (codes, -1))
        self._past = RecordedCache(height, width, row) if recording else Cache(height, width)

    def state(self) -> list[Tensor]:
        """Return all that differs between the maps, (B, ...) each: what is remembered, and the condition."""
        context = [] if self.context is None else [self.context]
        return [self._above, self._previous, *self._past.buffers(), *context]

    def clear(self) -> None:
        """Forget everything."""
        self._past.clear()
        self._past.row = 0
        self._above.zero_()
        self._previous.zero_()

    def begin_row(self) -> None:
        """Run the vertical stream over the row."""
        prior = self.prior
        cells = None if self.context is None else self.context.index_select(1, self.row)
        self._links = prior._above(self._above, prior.position_v.index_select(0, self.row), cells, self._past)
        self._positions = prior.position_h.index_select(0, self.row)
        self._table = None if self._tables is None else self._tables.index_select(0, self.row)
        self._made: list[Tensor] = []

    def move_to(self, column: int) -> None:
        """Run the horizontal stream at a position of the row."""
        self._past.column = column
        here, last = slice(column, column + 1), self._made[-1] if self._made else self._previous
        links = [link[:, :, here] for link in self._links]
        self._h = self.prior._within(last, self._positions[:, here], links, self._past)
        self._embedded = torch.zeros_like(self._previous)
        self._made.append(self._embedded)

    def logits(self, cell: int) -> Tensor:
        """Predict a cell of the position, (B, K)."""
        x = self._h if self.prior.head is None else self.prior.head(self._h, self._embedded, cell)
        table = None if self._table is None else self._table[:, self._past.column, cell]
        return self.prior._logits(x[:, 0, 0], table)

    def take(self, cell: int, code: Tensor) -> None:
        """Remember the code (B,) of a cell of the position."""
        dim = self.prior.config.embedding_dim
        self._embedded[..., cell * dim : (cell + 1) * dim] = self.prior.embedding(code[:, None, None])

    def end_row(self) -> None:
        """Remember the row for the one below."""
        self._above.copy_(torch.cat(self._made, 2))
        self._previous.copy_(self._made[-1])
        self._past.row += 1
