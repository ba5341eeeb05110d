"""The settings of a VQ-VAE, and the loss that they state.

Shapes: B images, C channels, H x W pixels, h x w cells.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.metrics import ssim, ssim_map
from vqvae2.metrics.images import MARGIN
from vqvae2.quantizer import QuantizerConfig

__all__ = ["VQVAEConfig", "level_names"]

UpperDecoder = Literal["stack", "upsample", "both"]

_BY_LEVEL = ("hidden_channels", "residual_channels", "num_residual_layers", "rate_weight")
_BRIGHT = -0.9  # 5% of the range of images in [-1, 1]


def level_names(count: int) -> tuple[str, ...]:
    """Name levels top first.

    Example:
        >>> level_names(2), level_names(3)
        (('top', 'bottom'), ('top', 'middle', 'bottom'))
    """
    if count < 1:
        raise ValueError(f"a hierarchy has at least 1 level, got {count}")
    if count <= 3:
        return {1: ("top",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}[count]
    return ("top", *(f"middle{i}" for i in range(1, count - 1)), "bottom")


@dataclass(frozen=True)
class VQVAEConfig(QuantizerConfig):
    """Everything that rebuilds a VQVAE, and its objective."""

    channels: int = 1
    """Channels of an image: 1 grey, 3 colour, or more. Taken from the data by train_vqvae."""
    height: int = 128
    """Image height in pixels; with width, 0 until the data is known. Taken from the data by train_vqvae."""
    width: int = 128
    """Image width in pixels, likewise. Taken from the data by train_vqvae."""
    strides: tuple[int, ...] = (2, 4)
    """Downsampling of each level against the next finer one (the last: against the image), top first, each >= 2."""
    num_embeddings: tuple[int, ...] = (512, 512)
    """Codebook size K of each level, top first."""
    embedding_dim: tuple[int, ...] = (64, 64)
    """Code dimension D of each level, top first."""
    hidden_channels: int | tuple[int, ...] = 128
    """Hidden units: channels of the stacks, one number for all levels or one for each, top first."""
    residual_channels: int | tuple[int, ...] = 64
    """Residual units: channels inside a residual block, one number for all levels or one for each, top first."""
    joint_channels: int = 0
    """Channels of the decoded upper levels where they join a finer one; 0: that level's hidden_channels."""
    upper_decoder: UpperDecoder = "stack"
    """How upper levels join a finer one: `stack` decodes them by residual blocks of their own, as most
    reimplementations do; `upsample` takes their codes' vectors through transposed convolutions alone, as the paper's
    D(e_top, e_bottom); `both` uses `stack` to find the finer codes and `upsample` to decode the image, as imported
    models do."""
    num_residual_layers: int | tuple[int, ...] = 2
    """Residual blocks of each encoder and decoder, one number for all levels or one for each, top first."""
    num_fine_layers: int = 0
    """Extra residual blocks (none in the paper) in the image's decoder before its last upsampling, >= 0."""
    rate_weight: float | tuple[float, ...] = 0.0
    """lambda of the entropy-constrained choice of codes, which trades error for bits, >= 0; 0: the nearest code. One
    number for all levels or one for each, top first."""
    level_dropout: float = 0.0
    """Share of training images decoded from upper levels alone, which keeps the top useful, in [0, 1)."""
    mse_weight: float = 1.0
    """Weight of the mean squared error, the paper's loss, >= 0."""
    l1_weight: float = 0.0
    """Weight of the mean absolute error, >= 0."""
    ssim_weight: float = 0.0
    """Weight of 1 - SSIM (Wang et al. 2004; as a loss: Zhao et al. 2016), >= 0."""
    spectrum_weight: float = 0.0
    """Weight of the mean absolute error of the Fourier amplitudes (Tudosiu et al. 2022, arXiv 2209.03177), >= 0."""
    foreground_weight: float = 1.0
    """Weight in the reconstruction loss of a pixel above 5% of the range, relative to a darker one, >= 1; for images
    on a black background."""

    def __post_init__(self) -> None:
        levels = len(self.strides)
        if not (levels and levels == len(self.num_embeddings) == len(self.embedding_dim)):
            raise ValueError(
                "strides, num_embeddings and embedding_dim must name the same number of levels, got "
                f"{self.strides}, {self.num_embeddings}, {self.embedding_dim}"
            )
        if min(self.strides) < 2:
            raise ValueError(f"strides must be >= 2, got {self.strides}")
        for name in _BY_LEVEL:
            if len(self.by_level(name)) != levels:
                raise ValueError(
                    f"{name} must be one number or one for each of {levels} levels, got {getattr(self, name)}"
                )
        super().__post_init__()
        if min(*self.num_embeddings, *self.embedding_dim) < 1:
            raise ValueError(
                f"num_embeddings and embedding_dim must be >= 1, got {self.num_embeddings}, {self.embedding_dim}"
            )
        if min(self.by_level("rate_weight")) < 0:
            raise ValueError(f"rate_weight must be >= 0, got {self.rate_weight}")
        if (
            min(self.channels, *(n // 2 for n in self.by_level("hidden_channels")), *self.by_level("residual_channels"))
            < 1
        ):
            raise ValueError("channels and residual_channels must be >= 1, and hidden_channels >= 2")
        if min(*self.by_level("num_residual_layers"), self.num_fine_layers, self.joint_channels) < 0:
            raise ValueError("num_residual_layers, num_fine_layers and joint_channels must be >= 0")
        if not 0 <= self.level_dropout < 1:
            raise ValueError(f"level_dropout must be in [0, 1), got {self.level_dropout}")
        weights = (self.mse_weight, self.l1_weight, self.ssim_weight, self.spectrum_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise ValueError(
                "mse_weight, l1_weight, ssim_weight and spectrum_weight must be >= 0, and one of them > 0, got "
                f"{', '.join(f'{weight:g}' for weight in weights)}"
            )
        if self.upper_decoder not in get_args(UpperDecoder):
            raise ValueError(f"upper_decoder must be stack, upsample or both, got {self.upper_decoder}")
        if self.foreground_weight < 1:
            raise ValueError(f"foreground_weight must be >= 1, got {self.foreground_weight}")
        if (self.height, self.width) != (0, 0):
            self.check_size(self.height, self.width)

    def by_level(self, name: str) -> tuple[Any, ...]:
        """Return a setting such as ``hidden_channels`` for each level, top first, where one number stands for all."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.strides)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, top first."""
        return level_names(len(self.strides))

    @property
    def total_strides(self) -> tuple[int, ...]:
        """Pixels under one cell along each side, by level, top first."""
        totals, product = [], 1
        for stride in reversed(self.strides):
            product *= stride
            totals.append(product)
        return tuple(reversed(totals))

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Code shapes (h, w) by level, top first."""
        return tuple((self.height // s, self.width // s) for s in self.total_strides)

    def check_size(self, height: int, width: int) -> None:
        """Raise UserError, naming the nearest sizes that work, unless the strides divide height and width."""
        stride = self.total_strides[0]
        if height > 0 and width > 0 and height % stride == 0 and width % stride == 0:
            return
        low = [max(stride, n // stride * stride) for n in (height, width)]
        high = [-(-max(n, 1) // stride) * stride for n in (height, width)]
        raise UserError(
            f"images of {height}x{width} do not divide into cells of {stride}x{stride} pixels",
            f"strides {self.strides}",
            f"Use --size {low[0]}x{low[1]} or --size {high[0]}x{high[1]}",
        )

    def reconstruction_loss(self, y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the errors of reconstructions y of images x, both (B, C, H, W).

        Returns:
            ``(loss, terms)``: the loss, a mean over images; and its terms by name, over the whole frame and unweighted.
        """
        maps = {"mse": (y - x).square()}
        if self.l1_weight:
            maps["l1"] = (y - x).abs()
        if self.ssim_weight and self.foreground_weight > 1:
            maps["ssim"] = ssim_map(y, x)[:, None]
        terms = {name: errors.mean() for name, errors in maps.items()}
        if self.ssim_weight:  # over the windows that lie inside the frame; the map has more
            inner = slice(MARGIN, -MARGIN)
            terms["ssim"] = maps["ssim"][..., inner, inner].mean() if "ssim" in maps else ssim(y, x).mean()
        weighted = terms
        if self.foreground_weight > 1:
            weight = 1 + (self.foreground_weight - 1) * (x.amax(1, keepdim=True) > _BRIGHT).to(x.dtype)
            weight = weight / weight.mean((1, 2, 3), keepdim=True)  # each image counts as much as the others
            weighted = {name: (weight * errors).mean() for name, errors in maps.items()}
        loss = self.mse_weight * weighted["mse"]
        if self.l1_weight:
            loss = loss + self.l1_weight * weighted["l1"]
        if self.ssim_weight:
            loss = loss + self.ssim_weight * (1 - weighted["ssim"])
        if self.spectrum_weight:
            amplitudes = [torch.fft.rfft2(images.float(), norm="ortho").abs() for images in (y, x)]
            terms = {**terms, "spectrum": F.l1_loss(*amplitudes)}
            loss = loss + self.spectrum_weight * terms["spectrum"]
        return loss, terms
