"""Micro-batches make the training that one large batch makes, its codebooks and their draws included."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from joined_training import Wide
from tiny_runs import stats
from torch import Tensor

from vqvae2 import checkpoint
from vqvae2.data import DataConfig, ImageData, open_data
from vqvae2.optim import TrainingConfig
from vqvae2.quantizer import Codebook
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE, VQVAEConfig


class Part(Wide):
    """As many images of a split as divide into batches of 8: the last images of an epoch are not left out."""

    def __len__(self) -> int:
        return len(self.images) // 8 * 8


@pytest.fixture(scope="module")
def data() -> ImageData:
    data: Any = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))
    splits = {name: Wide(images) for name, images in data.splits.items()}
    return replace(data, splits={**splits, "train": Part(data.splits["train"])})


def trained(
    data: ImageData, folder: Path, codebook: Codebook, batch_size: int, accumulate: int
) -> tuple[dict[str, Tensor], list[dict]]:
    torch.manual_seed(0)
    model = VQVAE(
        VQVAEConfig(
            height=32,
            width=32,
            num_embeddings=(24, 32),
            embedding_dim=(6, 5),
            hidden_channels=8,
            residual_channels=4,
            num_residual_layers=1,
            codebook=codebook,
            init_vectors=300,  # gathered over several steps
            revival_threshold=0.8,  # many codes are revived after every step
            level_dropout=0.4,
        )
    ).double()
    training = TrainingConfig(
        batch_size=batch_size, accumulate=accumulate, max_steps=20, evaluations=2, log_every=5, clip_norm=0.5
    )
    fit(VQVAETask(model, data), training, folder, device=torch.device("cpu"), say=lambda _line: None)
    return checkpoint.load_state(folder / "state")["modules"]["vqvae"], stats(folder)


@pytest.mark.parametrize("codebook", ["ema", "gradient", "simvq"])
def test_accumulated_batches_train_the_same_parameters_and_codebooks_as_large_ones(data, tmp_path, codebook):
    large, lines = trained(data, tmp_path / "large", codebook, 8, 1)
    small, others = trained(data, tmp_path / "small", codebook, 4, 2)
    assert int(large["quantizers.0.updates"]) > 10
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=0, atol=1e-10, msg=name)
    for line, other in zip(lines, others, strict=True):
        for name in line.keys() - {"seconds", "images_per_second"}:
            assert other[name] == pytest.approx(line[name], rel=2e-5, abs=1e-9), name
