"""A classifier of images by a label, which judges samples: a ResNet-10 on images of at most 64 pixels.

With it `sample.py --reject` keeps the samples that show their class best, and `evaluate.py --classifier` measures
whether samples are recognised as their class, and the classification accuracy score: how well a classifier trained on
samples alone knows real images (Ravuri and Vinyals 2019, arXiv 1905.10887).

Shapes: N images, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2 import checkpoint
from vqvae2.data import AugmentationConfig
from vqvae2.data.augmentation import augment
from vqvae2.device import autocast

__all__ = ["BATCH_SIZE", "Classifier", "ClassifierConfig", "probabilities", "train_classifier"]

BATCH_SIZE = 32
"""Images of a training step."""

_SIDE = 64
_CHANGES = AugmentationConfig(augment_shift=0.06, augment_rotate=8, augment_scale=0.1, augment_light=0.2)


@dataclass(frozen=True)
class ClassifierConfig:
    """What is told apart."""

    attribute: str
    """Name of the label."""
    classes: tuple[str, ...]
    """Names of its classes, in the order of the labels."""
    channels: int
    """Channels of an image."""
    pooling: bool = True
    """Halve the maps before the first block, as torchvision's ResNet-18 does: a third of the time."""
    blocks: int = 1
    """Residual blocks of each of the four stages: 1 is ResNet-10; 2 is ResNet-18, which takes twice the time."""

    BEFORE: ClassVar[Mapping[str, Any]] = {"pooling": False, "blocks": 2}


class Classifier(checkpoint.Pretrained):
    """A ResNet of basic blocks (He et al. 2015, arXiv 1512.03385) with a first convolution of 3x3.

    Args:
        config: what is told apart.
    """

    kind, config_type = "classifier", ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        from torchvision.models.resnet import BasicBlock, ResNet  # here: it takes a second that others need not pay

        super().__init__()
        self.config = config
        self.net = ResNet(BasicBlock, [config.blocks] * 4, num_classes=len(config.classes))
        self.net.conv1 = nn.Conv2d(config.channels, 64, 3, stride=2, padding=1, bias=False)
        if not config.pooling:
            self.net.maxpool = nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> logits (N, K)."""
        height, width = images.shape[2:]
        if max(height, width) > _SIDE:
            images = F.adaptive_avg_pool2d(images, (min(height, _SIDE), min(width, _SIDE)))
        logits: Tensor = self.net(images)
        return logits


def train_classifier(
    config: ClassifierConfig,
    images: Any,
    labels: Tensor,
    *,
    steps: int = 400,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    progress: Callable[[int], object] | None = None,
) -> Classifier:
    """Train a classifier on images that are shifted, turned, scaled and lit otherwise each time.

    Args:
        config: what is told apart.
        images: M images by ``images(rows)`` -> (B, C, H, W) in [-1, 1].
        labels: (M,) int64 in [0, K), -1 where missing; such images are left out.
        steps: of AdamW, at 1e-3 with a warm-up and a cosine.
        batch_size: B; fewer where there are fewer images.
        seed: of weights, order and changes.
        device: of the training.
        precision: of its matrix products.
        progress: called with the number of steps made.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: fewer than two classes have an image.
    """
    rows = (labels >= 0).nonzero()[:, 0]
    if len(labels[rows].unique()) < 2:
        raise ValueError("a classifier needs images of two classes at least")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(config)
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    warm = min(20, steps // 4 + 1)
    rate = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
        ],
        [warm],
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < min(batch_size, len(rows)):
            order = torch.cat([order, rows[torch.randperm(len(rows), generator=generator)]])
        batch, order = order[:batch_size], order[batch_size:]
        x = augment(images(batch.tolist()), _CHANGES, seed, step, batch.tolist()).to(device)
        with autocast(device, precision):
            loss = F.cross_entropy(model(x), labels[batch].to(device), label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        if progress is not None:
            progress(1)
    return model.eval()


@torch.inference_mode()
def probabilities(classifier: Classifier, images: Any, count: int, batch_size: int = 64) -> Tensor:
    """Let a classifier judge images.

    Args:
        classifier: in any mode; it judges in evaluation mode.
        images: images by ``images(rows)`` -> (B, C, H, W) in [-1, 1].
        count: N.
        batch_size: images judged at once.

    Returns:
        (N, K) probabilities, float32, on the CPU.
    """
    device = classifier.device
    parts = [torch.zeros(0, len(classifier.config.classes))]
    with classifier.in_evaluation_mode():
        for start in range(0, count, batch_size):
            x = images(list(range(start, min(start + batch_size, count))))
            parts.append(classifier(x.to(device)).float().softmax(1).cpu())
    return torch.cat(parts)
