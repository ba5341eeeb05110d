"""Train small VQ-VAEs in float64 with everything that draws or gathers, in as many processes as there are.

Run by test_distributed.py, by torchrun: joined_training.py FOLDER. Writes a folder for each kind of codebook.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vqvae2 import distributed
from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.optim import TrainingConfig
from vqvae2.quantizer import Codebook
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE, VQVAEConfig


class Wide:
    """A split in float64."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        batch = self.images.__getitems__(rows)
        return {**batch, "image": batch["image"].double()}

    def at(self, rows: list[int]) -> Tensor:
        return self.images.at(rows).double()


def main(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    data: Any = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))
    data = replace(data, splits={name: Wide(images) for name, images in data.splits.items()})
    with distributed.process_group():
        for codebook in get_args(Codebook):
            train(data, codebook, folder / codebook)


def train(data: Any, codebook: Codebook, folder: Path) -> None:
    torch.manual_seed(0)
    model = VQVAE(
        VQVAEConfig(
            height=32,
            width=32,
            strides=(2, 4),
            num_embeddings=(24, 32),
            embedding_dim=(6, 5),
            hidden_channels=8,
            residual_channels=4,
            num_residual_layers=1,
            codebook=codebook,
            init_vectors=700,  # more than a batch holds: gathered over several, and over the processes
            revival_threshold=0.8,  # many codes are revived after every step
            level_dropout=0.4,
            ssim_weight=0.5,
            l1_weight=0.1,
        )
    )
    training = TrainingConfig(batch_size=8, accumulate=2, max_steps=20, evaluations=2, log_every=3, clip_norm=0.5)
    fit(VQVAETask(model, data), training, folder, device=torch.device("cpu"), say=lambda _line: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
