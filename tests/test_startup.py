"""A codebook is alive from the first steps on, where the usual start collapses on mostly constant pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.metrics import perplexity
from vqvae2.quantizer import Quantized
from vqvae2.vqvae import VQVAE, VQVAEConfig


class RandomStart(nn.Module):
    """The start that collapses: a random codebook, counts of zero, and sums equal to the codebook.

    A code that is not hit has a count near zero under a sum that is not, so it jumps far away and is never hit again.
    """

    initialized = True

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(num_embeddings, embedding_dim))
        self.register_buffer("cluster_size", torch.zeros(num_embeddings))
        self.register_buffer("embed_avg", self.embed.clone())

    @property
    def embedding(self) -> Tensor:
        return self.embed

    def forward(self, x: Tensor) -> Quantized:
        flat = x.detach().flatten(0, -2)
        codes = torch.cdist(flat, self.embed).argmin(1)
        vectors = self.embed[codes].view_as(x)
        if self.training:
            hits = F.one_hot(codes, len(self.embed)).float()
            self.cluster_size.mul_(0.99).add_(hits.sum(0), alpha=0.01)
            self.embed_avg.mul_(0.99).add_(hits.T @ flat, alpha=0.01)
            total = self.cluster_size.sum()
            smoothed = (self.cluster_size + 1e-5) / (total + len(self.embed) * 1e-5) * total
            self.embed.copy_(self.embed_avg / smoothed[:, None])
        loss = 0.25 * F.mse_loss(x, vectors)
        return Quantized(x + (vectors - x).detach(), codes.view(x.shape[:-1]), loss)

    def update(self) -> None:
        """All is done in the forward pass."""


def code_counts_after_training(model: VQVAE, images: Tensor, steps: int = 50) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        loss, _, _ = model.loss(images[torch.randperm(len(images), generator=generator)[:16]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_codebooks()
    codes = model.eval().encode(images)
    return [
        torch.bincount(level.flatten(), minlength=k)
        for level, k in zip(codes, model.config.num_embeddings, strict=True)
    ]


def test_codebooks_are_alive_after_fifty_steps_where_the_random_start_collapses(phantom_images):
    config = VQVAEConfig(
        height=64,
        width=64,
        embedding_dim=(16, 16),
        hidden_channels=16,
        residual_channels=8,
        num_residual_layers=1,
    )
    torch.manual_seed(0)
    model = VQVAE(config)
    torch.manual_seed(0)
    collapsing = VQVAE(config)
    collapsing.quantizers = nn.ModuleList(
        RandomStart(k, d) for k, d in zip(config.num_embeddings, config.embedding_dim, strict=True)
    )
    for counts in code_counts_after_training(model, phantom_images):
        assert (counts > 0).sum() >= 64
    for counts in code_counts_after_training(collapsing, phantom_images):
        assert perplexity(counts) < 10
