"""The autoregressive prior over one level's codes, given the coarser levels and a label.

One class serves every level (Razavi et al. 2019, arXiv 1906.00446, section 3.2: p_top with attention, p_bottom
conditioned on the top through a residual stack of its own). Blocks and streams are those of `causal.py`::

    codes -> embed -+- shift down -----> v --- blocks.above ---+
                    |                                          | link
                    +- shift previous -> h --- blocks.within --+-- attention --> 1x1 blocks -> logits

Shapes: B batch, h x w cells, n x m positions of G cells (1 without patches), K codes, E embedding dimensions,
C channels, R residual channels, A label attributes.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from vqvae2 import checkpoint
from vqvae2.causal import (
    CausalAttention,
    GatedBlock,
    Padding,
    Past,
    shift_down,
    shift_previous,
)
from vqvae2.conditioning import ConditionStack, NumberEmbedding, add
from vqvae2.device import recorded, records, widest
from vqvae2.generation import Walk
from vqvae2.lean import Dropout, RMSNorm
from vqvae2.patches import PatchHead, fold, unfold
from vqvae2.prior_config import PriorConfig

__all__ = ["Prior", "PriorConfig"]

P = ParamSpec("P")
T = TypeVar("T")

_LEAST_ROWS = 4  # of a map whose rows are recorded: the recording takes as long as two or three


def _maps(config: PriorConfig) -> tuple[Any, ...]:
    """What priors have in common that can predict the same maps side by side."""
    return config.shape, config.patch, config.mirrored, config.num_embeddings


def _in_evaluation_mode(method: Callable[P, T]) -> Callable[P, T]:
    """Let a model's method run in evaluation mode."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        assert isinstance(args[0], checkpoint.Pretrained)
        with args[0].in_evaluation_mode():
            return method(*args, **kwargs)

    return run


class Prior(checkpoint.Pretrained):
    """An autoregressive distribution over maps of codes, which are made in the order that `vqvae2.patches` gives.

    Args:
        config: its settings.

    Source: Razavi et al. 2019, section 3.2 and table 3 (settings); PixelSNAIL (Chen et al. 2017, arXiv 1712.09763).

    Example:
        >>> prior = Prior(PriorConfig(height=4, width=6, num_embeddings=32, channels=16, num_layers=2)).eval()
        >>> tuple(prior(torch.zeros(2, 4, 6, dtype=torch.int64)).shape)
        (2, 32, 4, 6)
    """

    kind, config_type = "prior", PriorConfig
    position_table: Tensor | None

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        channels, (height, width), codes = config.channels, config.grid, config.codes_per_position
        conditional = bool(config.condition_levels or config.attributes)
        self.embedding = nn.Embedding(config.num_embeddings, config.embedding_dim)
        self.input_v = nn.Linear(codes * config.embedding_dim, channels)
        self.input_h = nn.Linear(codes * config.embedding_dim, channels)
        self.position_v = nn.Parameter(torch.randn(height, width, channels) * 0.02)
        self.position_h = nn.Parameter(torch.randn(height, width, channels) * 0.02)
        self.condition = ConditionStack(config) if config.condition_levels else None
        # The last row of each table stands for a missing label.
        self.labels = nn.ModuleList(
            NumberEmbedding(len(classes), channels)
            if name in config.numbers
            else nn.Embedding(len(classes) + 1, channels)
            for name, classes in config.attributes
        )
        self.blocks = nn.ModuleList(
            GatedBlock(
                channels,
                config.residual_channels,
                config.kernel_size,
                condition_channels=channels if conditional else 0,
                dropout=config.dropout,
                vertical_channels=config.vertical_channels,
            )
            for _ in range(config.num_layers)
        )
        every = config.attention_every
        self.attention = nn.ModuleDict(
            {
                str(i): CausalAttention(channels, config.num_heads, config.attention_dropout)
                for i in range(config.num_layers)
                if every and (i + 1) % every == 0
            }
        )
        self.output_blocks = nn.ModuleList(
            nn.Sequential(
                RMSNorm(channels),
                nn.Linear(channels, config.residual_channels),
                nn.SiLU(),
                Dropout(config.dropout),
                nn.Linear(config.residual_channels, channels),
            )
            for _ in range(config.output_layers)
        )
        self.head = None
        if codes > 1:
            self.head = PatchHead(channels, config.embedding_dim, codes, config.patch_channels, config.dropout)
            channels = config.patch_channels
        self.output_norm = RMSNorm(channels)
        self.output = nn.Linear(channels, config.num_embeddings)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        table = torch.zeros(*config.shape, config.num_embeddings) if config.position_logits else None
        self.register_buffer("position_table", table)

    @torch.no_grad()
    def start_from(self, codebooks: list[Tensor] | None = None, position_log_p: Tensor | None = None) -> None:
        """Give an untrained prior what is known before training; does what the config asks for.

        Args:
            codebooks: (K, D) of the coarser levels, top first, then of its own; used where D is ``embedding_dim``.
            position_log_p: (h w, K) log-frequency of each code at each position, of training codes.
        """
        if codebooks is not None and self.config.codebook_embeddings:
            tables = [*(self.condition.embeddings if self.condition is not None else []), self.embedding]
            for table, codebook in zip(tables, codebooks, strict=True):
                if table.weight.shape == codebook.shape:
                    table.weight.copy_((codebook - codebook.mean(0)) / codebook.std().clamp_min(1e-6))
        if position_log_p is not None and self.position_table is not None:
            self.position_table.copy_(position_log_p.view_as(self.position_table))

    def forward(self, codes: Tensor, condition: list[Tensor] | None = None, label: Tensor | None = None) -> Tensor:
        """Predict every code from those before it (the full form).

        Args:
            codes: (B, h, w) integers.
            condition: codes of the coarser levels, top first, (B, h', w') each; required when the prior has any.
            label: (B, A) int64 class of each attribute, -1 missing; None: all missing.

        Returns:
            (B, K, h, w) logits: at each position of its own code, given all earlier ones.

        Raises:
            ValueError: a shape or a condition is not what the config says.
        """
        if tuple(codes.shape[1:]) != self.config.shape:
            raise ValueError(f"codes must be (B, {self.config.height}, {self.config.width}), got {tuple(codes.shape)}")
        context = self._context(condition, label, len(codes), codes.device)
        x, past = self._embed(codes), Padding()
        links = self._above(shift_down(x), self.position_v, context, past)
        h = self._within(shift_previous(x), self.position_h, links, past)
        if self.head is not None:
            h = unfold(self.head(h, x), self.config.patch, self.config.mirrored)
        return self._logits(h, self.position_table).permute(0, 3, 1, 2)

    @torch.no_grad()
    @_in_evaluation_mode
    def log_probabilities(
        self, codes: Tensor, condition: list[Tensor] | None = None, label: Tensor | None = None
    ) -> Tensor:
        """Return the log-probability of every code at every cell, given all earlier ones: (B, K, h, w).

        Arguments as of `forward`. Nothing is dropped, whatever the prior's mode. In float32, or what is wider.
        """
        logits = self(codes, condition, label)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)

    @torch.no_grad()
    @_in_evaluation_mode
    def generate(
        self,
        draw: Callable[..., tuple[Tensor, Tensor]],
        uniform: Tensor,
        condition: list[Tensor] | None = None,
        label: Tensor | None = None,
        progress: Callable[[int], object] | None = None,
        select: Callable[[Tensor], Tensor | None] | None = None,
        beside: "Sequence[tuple[Prior, Tensor | None]]" = (),
    ) -> tuple[Tensor, Tensor]:
        """Make maps of codes one at a time (the incremental form), in the order that `vqvae2.patches` gives.

        Nothing is dropped, whatever the prior's mode.

        Args:
            draw: called as ``draw(logits, uniform, *others)`` with (B, K), (B,) and (B, K) of each prior beside this
                one; returns ``(codes, log_p)``, (B,) each. On CUDA it is recorded: it may look at nothing but its
                arguments, and wait for nothing.
            uniform: (B, h, w) what `draw` is given at each position.
            condition: as in `forward`.
            label: as in `forward`.
            progress: called with the number of codes made, after each row of positions.
            select: called after each row with the sums so far (B,); returns which map each map goes on from, (B,)
                int64, or None: each from itself. Its condition goes with it.
            beside: priors in evaluation mode that predict the same maps, with the label (B, A) that each is given.

        Returns:
            ``(codes, log_p)``: (B, h, w) int64, and (B,) the sums of what `draw` returned.

        Raises:
            ValueError: a shape or a condition is not what the config says, or a prior beside it is of other maps or not
                in evaluation mode.
        """
        (height, width), batch, device = self.config.grid, len(uniform), uniform.device
        patch, mirrored = self.config.patch, self.config.mirrored
        for other, _ in beside:
            if _maps(other.config) != _maps(self.config):
                raise ValueError(f"the prior beside that of level {self.config.level} is of other maps")
            if other.training:
                raise ValueError(f"the prior beside that of level {self.config.level} is not in evaluation mode")
        uniform = fold(uniform[..., None], patch, mirrored)  # (B, n, m, G), as the codes until they are returned
        row = torch.zeros(1, dtype=torch.int64, device=device)
        codes = torch.zeros(*uniform.shape, dtype=torch.int64, device=device)
        log_p = torch.zeros(batch, dtype=widest(device), device=device)
        recording = records(device) and height >= _LEAST_ROWS
        walks = []
        for prior, given in ((self, label), *beside):
            context = prior._context(condition, given, batch, device)
            if select is not None and context is not None:
                context = context.clone()
            walks.append(Walk(prior, context, batch, row, recording))

        def make_position(noise: Tensor) -> Tensor:
            """Draw the codes (B, G) of one position."""
            made = []
            for i in range(self.config.codes_per_position):
                own, *others = [walk.logits(i) for walk in walks]
                code, added = draw(own, noise[:, i], *others)
                log_p.add_(added)
                made.append(code)
                for walk in walks:
                    walk.take(i, code)
            return torch.stack(made, 1)

        def make_row() -> None:
            noise, made = uniform.index_select(1, row), []
            for walk in walks:
                walk.begin_row()
            for column in range(width):
                for walk in walks:
                    walk.move_to(column)
                made.append(make_position(noise[:, 0, column]))
            codes.index_copy_(1, row, torch.stack(made, 1)[:, None])
            for walk in walks:
                walk.end_row()
            row.add_(1)

        def begin() -> None:
            for walk in walks:
                walk.clear()
            for state in (row, codes, log_p):
                state.zero_()

        make = recorded(make_row, begin, device) if recording else make_row
        for _ in range(height):
            make()
            if select is not None and (chosen := select(log_p)) is not None:
                for state in (codes, log_p, *(tensor for walk in walks for tensor in walk.state())):
                    state.copy_(state[chosen])
            if progress is not None:
                progress(batch * width * self.config.codes_per_position)
        return unfold(codes, patch, mirrored)[..., 0], log_p

    def _logits(self, x: Tensor, table: Tensor | None) -> Tensor:
        """Add the position-wise log-frequencies to the logits: the network learns what lies beyond them."""
        logits: Tensor = self.output(self.output_norm(x))
        return logits if table is None else logits + table

    def _embed(self, codes: Tensor) -> Tensor:
        """Embed codes (B, h, w) -> (B, n, m, G E); in training some are hidden."""
        x = self.embedding(codes.long())
        if self.training and self.config.input_dropout:
            x = x * (torch.rand(x.shape[:3], device=x.device) >= self.config.input_dropout)[..., None]
        return fold(x, self.config.patch, self.config.mirrored)

    def _context(
        self, condition: list[Tensor] | None, label: Tensor | None, batch: int, device: torch.device
    ) -> Tensor | None:
        """Join condition and label: (B, n, m, C), or None when the prior has neither."""
        config = self.config
        names, shapes = config.condition_levels, [(batch, *shape) for shape in config.condition_shapes]
        got = [tuple(codes.shape) for codes in condition or []]
        if got != shapes:
            wanted = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)) or "none"
            raise ValueError(f"the prior of level {config.level} is conditioned on: {wanted}; got {got or 'none'}")
        context = self.condition(condition) if self.condition is not None and condition is not None else None
        if not config.attributes:
            return context
        if label is None:
            label = torch.full((batch, len(self.labels)), -1, device=device)
        if tuple(label.shape) != (batch, len(self.labels)):
            raise ValueError(f"label must be ({batch}, {len(self.labels)}), got {tuple(label.shape)}")
        if self.training and config.label_dropout:
            label = label.masked_fill(torch.rand(label.shape, device=device) < config.label_dropout, -1)
        rows = []
        for (_, classes), table, column in zip(config.attributes, self.labels, label.T, strict=True):
            rows.append(table(column.masked_fill(column < 0, len(classes))))
        x = torch.stack(rows).sum(0)[:, None, None, :]
        return x.expand(-1, *config.grid, -1) if context is None else add(context, x)

    def _above(self, x: Tensor, position: Tensor, context: Tensor | None, past: Past) -> list[Tensor]:
        """Run the vertical stream over rows: what lies above -> the link (B, n, m, R) of every block."""
        v, links = add(self.input_v(x), position), []
        for block in self.blocks:
            assert isinstance(block, GatedBlock)
            v, link = self._run(block.above, v, context, past)
            links.append(link)
        return links

    def _within(self, x: Tensor, position: Tensor, links: list[Tensor], past: Past) -> Tensor:
        """Run the horizontal stream: what comes before (B, n, m, G E) and the links -> (B, n, m, C)."""
        h = add(self.input_h(x), position)
        for i, (block, link) in enumerate(zip(self.blocks, links, strict=True)):
            assert isinstance(block, GatedBlock)
            h = self._run(block.within, h, link, past)
            if str(i) in self.attention:
                attention = self.attention[str(i)]
                assert isinstance(attention, CausalAttention)
                h = self._run(attention.within, h, past)
        for block in self.output_blocks:
            h = h + block(h)
        return h

    def _run(self, layer: Callable[..., Any], *inputs: Any) -> Any:
        """Call a layer; with ``recompute`` its activations are made again in the backward pass instead of kept."""
        if self.config.recompute and torch.is_grad_enabled():
            return recomputed(layer, *inputs, use_reentrant=False)
        return layer(*inputs)
