"""A patch discriminator, which tells reconstructions from images by their texture, and its losses.

After the paper's training a decoder is sharp where the codes tell it what to draw and smooth elsewhere, since the mean
of all textures has the least squared error. Trained on against a discriminator of patches (Isola et al. 2017, arXiv
1611.07004; for VQ-VAEs Esser et al. 2021, arXiv 2012.09841) it draws a likely texture instead of the mean one.

`FeatureDiscriminator` sees images through a network that was trained on photographs, and so tells soon what is wrong.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "FeatureDiscriminator",
    "PatchDiscriminator",
    "adversarial_gradient",
    "discriminator_loss",
    "gradient_penalty",
]


class PatchDiscriminator(nn.Module):
    """Score overlapping patches of 46 x 46 pixels: (B, C, H, W) -> (B, 1, H / 8 - 1, W / 8 - 1), high for real.

    It sees an image twice: as it is, and what a 3x3 mean takes away from it, where texture lies.

    Args:
        channels: C.
        hidden: channels of the first convolution; the two others have two and three times as many.
    """

    def __init__(self, channels: int, hidden: int = 48) -> None:
        super().__init__()
        widths = (2 * channels, hidden, 2 * hidden, 3 * hidden)
        stack: list[nn.Module] = []
        for before, after in pairwise(widths):
            stack += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):  # torch's own start is so small that all patches score alike
                nn.init.kaiming_normal_(module.weight, 0.2)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Score the patches of images (B, C, H, W) in [-1, 1]."""
        texture = 4 * (x - F.avg_pool2d(x, 3, stride=1, padding=1))
        return self.layers(torch.cat([x, texture], 1))


class FeatureDiscriminator(nn.Module):
    """Score images by maps of a pretrained network's features, a head for each map; scores are high for real.

    Args:
        channels: features of each map, finest first.
        hidden: channels of the heads.

    Source: Sauer et al., "Projected GANs converge faster", 2021, arXiv 2111.01007; without the random projections.
    """

    def __init__(self, channels: Sequence[int], hidden: int = 48) -> None:
        super().__init__()
        bounded = nn.utils.parametrizations.spectral_norm
        self.heads = nn.ModuleList(
            nn.Sequential(
                # The two finest maps are large.
                bounded(nn.Conv2d(given, hidden, 3, stride=2 if i < 2 else 1, padding=1)),
                nn.LeakyReLU(0.2),
                bounded(nn.Conv2d(hidden, hidden, 3, padding=1)),
                nn.LeakyReLU(0.2),
                bounded(nn.Conv2d(hidden, 1, 3, padding=1)),
            )
            for i, given in enumerate(channels)
        )
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(sum(channels)))
        self.register_buffer("deviation", torch.ones(sum(channels)))
        self.channels = tuple(channels)

    @torch.no_grad()
    def standardise(self, maps: Sequence[Tensor]) -> None:
        """Take mean and deviation of the features from maps (N, F, h, w) of real images."""
        self.mean.copy_(torch.cat([level.mean((0, 2, 3)) for level in maps]))
        self.deviation.copy_(torch.cat([level.std((0, 2, 3)) for level in maps]) + 1e-3)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Score maps (B, F, h, w), finest first: (B, 1, h', w') each."""
        parts = zip(self.heads, maps, self.mean.split(self.channels), self.deviation.split(self.channels), strict=True)
        return [head((x - mean[:, None, None]) / deviation[:, None, None]) for head, x, mean, deviation in parts]


def adversarial_gradient(reconstruction: Tensor, scores: Tensor, y: Tensor, weight: float) -> Tensor:
    """Join two gradients with respect to the images: of the reconstruction loss and of deceiving the discriminator.

    Args:
        reconstruction: scalar, computed from ``y``.
        scores: the discriminator's, of ``y``; they are to become high. Its graph is kept.
        y: (B, C, H, W), a leaf that requires a gradient.
        weight: norm of the second gradient as a share of the first one's, whatever the discriminator's scale (after
            Esser et al. 2021, who balance at the last layer's weights).

    Returns:
        (B, C, H, W), to be sent back through the decoder.
    """
    (own,) = torch.autograd.grad(reconstruction, y, retain_graph=True)  # both may have a part in common
    # The sum, whose gradient is not too small for float16; its scale does not matter.
    (other,) = torch.autograd.grad(-scores.float().sum(), y, retain_graph=True)
    return own + weight * own.norm() / other.norm().clamp_min(1e-12) * other


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of patch scores (Lim and Ye 2017, arXiv 1705.02894): 2 where nothing is told apart, 0 at best."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()


def gradient_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """R1: mean over images of the squared gradient of their mean score (Mescheder et al. 2018, arXiv 1801.04406)."""
    images = images.detach().requires_grad_()
    scores = discriminator(images).float().mean((1, 2, 3))
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
