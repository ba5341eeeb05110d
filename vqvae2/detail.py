"""A decoder that paints whole images from the codes of the coarse levels alone.

The finer levels' codes say what a coarse code cannot, so they are hard to predict: drawn by their priors they make
texture that does not hang together. `DetailDecoder` invents that detail instead. It has the VQ-VAE's decoders, and in
place of the finer levels' codes vectors that a network paints from what is decoded so far. Trained against a
discriminator (`vqvae2.adversary.FeatureDiscriminator`) it draws one sharp image that fits the coarse codes, not the
mean of all of them, which is blurred.

What it adds is not drawn from a distribution: equal codes give equal images, and these have no likelihood of their own.

Shapes: B images, C channels, H x W pixels, h x w cells of a level, D dimensions of a code.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2 import checkpoint
from vqvae2.vqvae import VQVAE, VQVAEConfig

__all__ = ["DetailConfig", "DetailDecoder", "ImageDecoder"]


@dataclass(frozen=True)
class DetailConfig:
    """Everything that rebuilds a `DetailDecoder`."""

    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    """Of the VQ-VAE whose codes it decodes; a mapping, as JSON has it, becomes one."""
    drawn_levels: int = 1
    """Coarsest levels whose codes it is given, >= 1 and fewer than all."""
    num_layers: int = 3
    """Residual blocks of each level that paint the vectors."""
    widths: tuple[int, ...] = ()
    """Channels of these blocks at the last level that is drawn and at each finer one. Empty: as many as the VQ-VAE has
    hidden channels at the former, half as many at the others."""

    def __post_init__(self) -> None:
        if isinstance(self.vqvae, dict):
            object.__setattr__(self, "vqvae", checkpoint.config_from(VQVAEConfig, self.vqvae, "vqvae"))
        if not 1 <= self.drawn_levels < len(self.vqvae.strides):
            raise ValueError(f"drawn_levels must be >= 1 and < {len(self.vqvae.strides)}, got {self.drawn_levels}")
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be >= 1, got {self.num_layers}")
        painted = len(self.vqvae.strides) - self.drawn_levels + 1
        if self.widths and (len(self.widths) != painted or min(self.widths) < 1):
            raise ValueError(f"need {painted} widths >= 1, or none; got {self.widths}")

    @property
    def painter_widths(self) -> tuple[int, ...]:
        """Channels of the blocks at the last level that is drawn and at each finer one."""
        hidden = self.vqvae.by_level("hidden_channels")[self.drawn_levels - 1 :]
        return self.widths or (hidden[0], *(max(channels // 2, 1) for channels in hidden[1:]))

    # What sampling asks of a VQ-VAE's config, for the levels that are drawn.
    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that are drawn, top first."""
        return self.vqvae.levels[: self.drawn_levels]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Their code shapes (h, w)."""
        return self.vqvae.shapes[: self.drawn_levels]

    @property
    def num_embeddings(self) -> tuple[int, ...]:
        """Their codebook sizes."""
        return self.vqvae.num_embeddings[: self.drawn_levels]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.vqvae.channels

    @property
    def height(self) -> int:
        """Image height in pixels."""
        return self.vqvae.height

    @property
    def width(self) -> int:
        """Image width in pixels."""
        return self.vqvae.width


class DetailDecoder(checkpoint.Pretrained):
    """Paint images from the codes of the coarsest levels.

    Args:
        config: its settings.

    Example:
        >>> model = VQVAE(VQVAEConfig(height=32, width=32, hidden_channels=8, residual_channels=4)).eval()
        >>> detail = DetailDecoder.of(model)
        >>> codes = model.encode(torch.zeros(2, 1, 32, 32))
        >>> detail.levels, tuple(detail.decode(codes[:1]).shape)
        (('top',), (2, 1, 32, 32))
    """

    kind, config_type = "detail", DetailConfig

    def __init__(self, config: DetailConfig) -> None:
        super().__init__()
        self.config, ladder = config, config.vqvae
        count, drawn = len(ladder.strides), config.drawn_levels
        self.embeddings = nn.ModuleList(
            nn.Embedding(k, d) for k, d in zip(ladder.num_embeddings[:drawn], ladder.embedding_dim, strict=False)
        ).requires_grad_(False)
        self.decoders = VQVAE(ladder).decoders
        hidden, widths = ladder.by_level("hidden_channels"), config.painter_widths
        joint = [0, *(ladder.joint_channels or hidden[i] for i in range(1, count))]
        first = ladder.embedding_dim[drawn - 1] + joint[drawn - 1]
        inputs = [first, *(widths[i - drawn] + joint[i] for i in range(drawn, count))]
        self.painters = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, width, 3, padding=1), *(_Block(width) for _ in range(config.num_layers)))
            for given, width in zip(inputs, widths, strict=True)
        )
        self.to_vectors = nn.ModuleList(
            nn.Conv2d(width, d, 1) for width, d in zip(widths[1:], ladder.embedding_dim[drawn:], strict=True)
        )
        self.to(memory_format=torch.channels_last)

    @classmethod
    @torch.no_grad()
    def of(cls, model: VQVAE, drawn_levels: int = 1, num_layers: int = 3, widths: tuple[int, ...] = ()) -> Self:
        """Start from a trained VQ-VAE: it decodes as `VQVAE.decode` does without the finer levels."""
        made = cls(DetailConfig(model.config, drawn_levels, num_layers, widths))
        made.decoders.load_state_dict(model.decoders.state_dict())
        for own, codebook in zip(made.embeddings, model.codebooks, strict=False):
            own.load_state_dict({"weight": codebook.embedding})
        for layer, codebook in zip(made.to_vectors, model.codebooks[drawn_levels:], strict=True):
            start = {
                "weight": torch.zeros_like(layer.state_dict()["weight"]),
                "bias": codebook.mean_embedding().flatten(),
            }
            layer.load_state_dict(start)
        return made.to(model.device).eval()

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that are drawn, top first."""
        return self.config.levels

    def forward(self, codes: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Paint images.

        Args:
            codes: of the levels that are drawn, top first, (B, h, w) integers.

        Returns:
            ``(images, vectors)``: (B, C, H, W), not clamped; of each finer level (B, D, h, w).

        Raises:
            ValueError: other levels, or a shape that is not the config's.
        """
        found = [tuple(level.shape[1:]) for level in codes]
        if found != list(self.config.shapes):
            raise ValueError(f"expected codes of shapes {list(self.config.shapes)}, got {found}")
        drawn, painted = self.config.drawn_levels, []
        decoded: Tensor | None = None
        hidden = torch.empty(0)
        for i, decoder in enumerate(self.decoders):
            if i < drawn:
                vectors = self.embeddings[i](codes[i].long()).permute(0, 3, 1, 2)
            else:
                larger = F.interpolate(hidden, scale_factor=self.config.vqvae.strides[i - 1])
                assert decoded is not None
                hidden = self.painters[i - drawn + 1](torch.cat([larger, decoded], 1))
                vectors = self.to_vectors[i - drawn](F.leaky_relu(hidden, 0.2))
                painted.append(vectors)
            joined = vectors if decoded is None else torch.cat([vectors, decoded], 1)
            if i == drawn - 1:
                hidden = self.painters[0](joined)
            decoded = decoder(joined)
        assert decoded is not None
        return decoded, painted

    @torch.no_grad()
    def decode(self, codes: list[Tensor]) -> Tensor:
        """Paint images from codes as of `forward`: (B, C, H, W) in [-1, 1]."""
        return self(codes)[0].float().clamp(-1, 1)


class _Block(nn.Module):
    """Leaky ReLU, 3x3 convolution, leaky ReLU, 3x3 convolution, add: (B, F, h, w) -> the same; at the start nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


ImageDecoder = VQVAE | DetailDecoder
"""What makes images of the codes that are drawn."""
