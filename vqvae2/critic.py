"""A critic of samples: how much an image looks like a reconstruction of a real one rather than like a sample.

`sample.py --best-of` draws several candidates for each image and keeps the one that the critic prefers, a form of
discriminator rejection sampling (Azadi et al. 2019, arXiv 1810.06758). The critic is linear in the features of a
network that has seen photographs, so that some sixty samples are enough to train it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.metrics import features

__all__ = ["Critic", "CriticConfig", "train_critic"]

_RIDGE = 1.0


@dataclass(frozen=True)
class CriticConfig:
    """What it looks at."""

    dimensions: int = 1280
    """Number of features, d."""
    features: str = "MobileNetV2"
    """Of which network: those of `metrics.features`."""


class Critic(checkpoint.Pretrained):
    """Ridge regression from standardised features to 1 for reconstructions of real images and -1 for samples.

    Args:
        config: what it looks at.
    """

    kind, config_type = "critic", CriticConfig
    mean: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("mean", "scale", "weight"):
            self.register_buffer(name, torch.zeros(config.dimensions))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> scores (N,) float32 on the CPU, higher for more real ones.

        Raises:
            UserError: the network's weights are not in torch's cache.
        """
        return self.score(features(images))

    def score(self, found: Tensor) -> Tensor:
        """Features (N, d) -> scores (N,)."""
        return ((found - self.mean.cpu()) * self.scale.cpu()) @ self.weight.cpu()


@torch.no_grad()
def train_critic(made: Tensor, real: Tensor) -> Critic:
    """Train a critic; both sets weigh the same, whatever their sizes.

    Args:
        made: (M, d) features of samples, M > 1.
        real: (R, d) of reconstructions of training images, R > 1.

    Returns:
        The critic, in evaluation mode.
    """
    both = torch.cat([made, real]).double()
    mean, deviation = both.mean(0), both.std(0)
    scale = torch.where(deviation > 1e-3 * deviation.max(), 1 / deviation, 0)
    x = (both - mean) * scale
    target = torch.cat([-torch.ones(len(made)), torch.ones(len(real))]).double()
    share = torch.where(target > 0, len(both) / (2 * len(real)), len(both) / (2 * len(made))).sqrt()
    # In the space of images, which are fewer than the features.
    rows = x * share[:, None]
    kernel = rows @ rows.T
    kernel.diagonal().add_(_RIDGE * len(both))
    critic = Critic(CriticConfig(made.shape[1])).eval()
    critic.mean.copy_(mean)
    critic.scale.copy_(scale)
    critic.weight.copy_(rows.T @ torch.linalg.solve(kernel, target * share))
    return critic
