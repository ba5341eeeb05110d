"""The settings of a prior.

Shapes: h x w cells of a level, n x m positions of G cells (1 without patches), K codes, E embedding dimensions, C
channels, R residual channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

__all__ = ["PriorConfig"]


@dataclass(frozen=True)
class PriorConfig:
    """Everything that rebuilds a Prior."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"condition_norm": False}
    """What holds for a stored config that was written before a setting existed, where that is not its default."""

    level: str = "top"
    """Name of the level. Taken from the code store by train_prior."""
    height: int = 16
    """Cells of the level, vertically. Taken from the code store by train_prior."""
    width: int = 16
    """Cells of the level, horizontally. Taken from the code store by train_prior."""
    num_embeddings: int = 512
    """Codes K of the level. Taken from the code store by train_prior."""
    condition_levels: tuple[str, ...] = ()
    """Coarser levels that the prior is conditioned on, top first. Taken from the code store by train_prior."""
    condition_shapes: tuple[tuple[int, int], ...] = ()
    """Their shapes (h, w). Taken from the code store by train_prior."""
    condition_num_embeddings: tuple[int, ...] = ()
    """Their K. Taken from the code store by train_prior."""
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Label attributes and the names of their classes. Taken from the code store by train_prior."""
    numbers: tuple[str, ...] = ()
    """Attributes whose classes are values of a number, in even steps. Taken from the code store by train_prior."""
    embedding_dim: int = 64
    """Dimension E of the codes' embedding."""
    channels: int = 128
    """Hidden units C of both streams."""
    residual_channels: int = 128
    """Residual units R inside a gated block."""
    vertical_channels: int = 0
    """Residual units of the vertical stream, which sampling runs a row at a time, so they cost little; 0: R."""
    num_layers: int = 8
    """Gated blocks."""
    kernel_size: int = 5
    """Causal kernel k >= 2: k//2 + 1 rows of k columns above, k//2 + 1 positions to the left."""
    attention_every: int = 0
    """Causal attention after every n-th gated block; 0: none."""
    num_heads: int = 8
    """Attention heads; they divide the channels."""
    patch: int = 1
    """Side p, in codes, of a patch, which the streams treat as one position: a fine level takes p^2 times fewer steps.
    It divides the height and the width (with mirrored, half of the width)."""
    mirrored: bool = False
    """Draw each code together with the one at its mirror image, from both borders inwards, so that left and right
    agree. For the top level of nearly symmetric images, such as axial slices of heads; the width must be even."""
    patch_channels: int = 64
    """Channels of the head that predicts the codes of a position one after the other, where it holds several."""
    output_layers: int = 0
    """1x1 residual blocks before the logits."""
    condition_layers: int = 4
    """Residual blocks of the stack over the coarser levels."""
    condition_channels: int = 0
    """Channels of the condition stack, cheap to widen because it works at the coarser resolution; 0: C."""
    condition_norm: bool = True
    """Normalise the input of each block of the condition stack, and its result; off in priors of earlier versions."""
    dropout: float = 0.1
    """Dropout in each gated block, in [0, 1)."""
    attention_dropout: float = 0.0
    """Dropout of the attention weights, in [0, 1)."""
    input_dropout: float = 0.0
    """Share of the input codes that training hides from the network, against overfitting, in [0, 1)."""
    label_dropout: float = 0.1
    """Share of the labels that training hides, so that sampling without a label is defined, in [0, 1]."""

    position_logits: bool = True
    """Add to the logits a fixed table of the training log-frequency of each code at each position (a position-wise
    unigram)."""
    codebook_embeddings: bool = True
    """Initialise the code embeddings from the VQ-VAE's codebooks if embedding_dim equals theirs, else at random."""
    recompute: bool = False
    """Activation checkpointing: store only each layer's input and recompute the rest in the backward pass."""

    def __post_init__(self) -> None:
        for name in (
            *("height", "width", "num_embeddings", "embedding_dim", "channels", "residual_channels", "num_layers"),
            *("num_heads", "patch", "patch_channels"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("attention_every", "output_layers", "condition_layers", "condition_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.kernel_size < 2:
            raise ValueError(f"kernel_size must be >= 2, got {self.kernel_size}: a smaller one never looks aside")
        if not len(self.condition_levels) == len(self.condition_shapes) == len(self.condition_num_embeddings):
            raise ValueError("condition_levels, condition_shapes and condition_num_embeddings must match in number")
        if self.mirrored and self.condition_levels:
            raise ValueError("mirrored is for the top alone: these codes are drawn given coarser ones")
        if self.mirrored and self.width % 2:
            raise ValueError(f"mirrored needs an even number of columns, got {self.height}x{self.width} codes")
        width, half = (self.width // 2, " (mirrored: half of the width)") if self.mirrored else (self.width, "")
        if self.height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide {self.height}x{width} codes{half}, got {self.patch}")
        finer = (*self.condition_shapes[-1:], self.grid)
        for height, width in self.condition_shapes:
            for rows, columns in finer:
                if rows % height or columns % width:
                    raise ValueError(f"condition of {height}x{width} cells does not divide {rows}x{columns}")
        if self.attention_every and self.channels % self.num_heads:
            raise ValueError(f"num_heads must divide channels, got {self.num_heads} and {self.channels}")
        for name in ("dropout", "attention_dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be in [0, 1], got {self.label_dropout}")

    @property
    def shape(self) -> tuple[int, int]:
        """Cells of the level (h, w)."""
        return self.height, self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of the streams (n, m), of `codes_per_position` cells each."""
        return self.height // self.patch, self.width // self.patch // (2 if self.mirrored else 1)

    @property
    def codes_per_position(self) -> int:
        """Codes G that a position holds."""
        rows, columns = self.grid
        return self.height * self.width // (rows * columns)

    def for_level(
        self,
        index: int,
        levels: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        num_embeddings: Sequence[int],
        attributes: Mapping[str, Sequence[str]],
        numbers: Sequence[str] = (),
    ) -> "PriorConfig":
        """Fill in what follows from the codes: those of level ``index``, given all coarser ones and the labels.

        Args:
            index: of the level, 0 the top.
            levels, shapes, num_embeddings: names, (h, w) and K of all levels, top first.
            attributes: of the labels, with the names of their classes.
            numbers: those of them that are numbers.
        """
        return replace(
            self,
            level=levels[index],
            height=shapes[index][0],
            width=shapes[index][1],
            num_embeddings=num_embeddings[index],
            condition_levels=tuple(levels[:index]),
            condition_shapes=tuple(shapes[:index]),
            condition_num_embeddings=tuple(num_embeddings[:index]),
            attributes=tuple((name, tuple(classes)) for name, classes in attributes.items()),
            numbers=tuple(numbers),
        )
