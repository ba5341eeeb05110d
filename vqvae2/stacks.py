"""The convolution stacks of the VQ-VAE: residual blocks, encoders, decoders (Razavi et al. 2019, section 3.1).

Shapes: B images, C channels, H x W pixels, h x w cells, D dimensions, F hidden channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Decoder", "Encoder", "ResidualBlock", "Upsampler"]


class ResidualBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 1x1 convolution, add: (B, F, h, w) -> the same."""

    def __init__(self, channels: int, residual_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, residual_channels, 3, padding=1)
        self.project = nn.Conv2d(residual_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.relu(self.conv(F.relu(x)), inplace=True))


def _factors(stride: int) -> list[int]:
    """Prime factors of a stride, ascending: one strided convolution each."""
    factors, divisor = [], 2
    while stride > 1:
        while stride % divisor == 0:
            factors.append(divisor)
            stride //= divisor
        divisor += 1
    return factors


def _residual_stack(hidden: int, residual: int, layers: int) -> list[nn.Module]:
    return [*(ResidualBlock(hidden, residual) for _ in range(layers)), nn.ReLU(inplace=True)]


class Encoder(nn.Sequential):
    """Downsample by strided convolutions, then residual blocks: (B, C, H, W) -> (B, F, h, w).

    Args:
        in_channels: C.
        stride: H / h = W / w; each of its prime factors is one convolution.
        hidden: F.
        residual: channels inside a residual block.
        layers: residual blocks.
    """

    def __init__(self, in_channels: int, stride: int, hidden: int, residual: int, layers: int) -> None:
        stack: list[nn.Module] = []
        channels = in_channels
        factors = _factors(stride)
        for i, factor in enumerate(factors):
            out = hidden if i == len(factors) - 1 else hidden // 2
            stack += [nn.Conv2d(channels, out, factor + 2, stride=factor, padding=1), nn.ReLU(inplace=True)]
            channels = out
        stack += [nn.Conv2d(hidden, hidden, 3, padding=1), *_residual_stack(hidden, residual, layers)]
        super().__init__(*stack)


class Decoder(nn.Sequential):
    """Residual blocks, then upsample by transposed convolutions: (B, D, h, w) -> (B, C, H, W).

    Args:
        in_channels: D.
        out_channels: C.
        stride, hidden, residual, layers: as of `Encoder`.
        fine_layers: residual blocks before the last upsampling, as wide inside as outside.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        hidden: int,
        residual: int,
        layers: int,
        fine_layers: int = 0,
    ) -> None:
        stack = [nn.Conv2d(in_channels, hidden, 3, padding=1), *_residual_stack(hidden, residual, layers)]
        channels, factors = hidden, list(reversed(_factors(stride)))
        for i, factor in enumerate(factors):
            last = i == len(factors) - 1
            out = out_channels if last else hidden // 2
            if last and fine_layers:
                stack += _residual_stack(channels, channels, fine_layers)
            stack.append(nn.ConvTranspose2d(channels, out, factor + 2, stride=factor, padding=1))
            stack += [] if last else [nn.ReLU(inplace=True)]
            channels = out
        super().__init__(*stack)


class Upsampler(nn.Sequential):
    """Upsample by transposed convolutions alone: (B, D, h, w) -> (B, C, H, W).

    Args:
        in_channels: D.
        out_channels: C.
        stride: H / h = W / w; each of its prime factors is one convolution, with ReLU between two.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        stack: list[nn.Module] = []
        channels = in_channels
        for factor in reversed(_factors(stride)):
            stack += [nn.ReLU(inplace=True)] if stack else []
            stack.append(nn.ConvTranspose2d(channels, out_channels, factor + 2, stride=factor, padding=1))
            channels = out_channels
        super().__init__(*stack)
