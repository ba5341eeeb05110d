"""Weights of a MobileNetV2 that has learnt nothing, where torch keeps the pretrained ones."""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from vqvae2.metrics.pretrained import WEIGHTS


def random_weights(torch_home: Path) -> nn.Module:
    """Write them, and return the network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = mobilenet_v2().eval()
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / WEIGHTS)
    return network
