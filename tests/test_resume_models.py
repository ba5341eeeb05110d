"""Both trainings, interrupted anywhere and resumed, equal the uninterrupted ones to the bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plane import interrupt_at, stats
from test_resume import assert_same, final_state
from tiny_runs import Chain

from vqvae2 import CodeStore, Prior, PriorConfig
from vqvae2.data import DataConfig, ImageData, open_data
from vqvae2.interrupts import Interrupted
from vqvae2.optim import TrainingConfig
from vqvae2.stages.sharpening import SharpeningConfig, SharpeningTask
from vqvae2.stages.train_prior import PriorTask
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE, VQVAEConfig

pytest_plugins = ["tiny_run_fixtures"]

CONFIG = TrainingConfig(batch_size=8, optimizer="muon", max_steps=12, evaluations=3, log_every=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))


def vqvae_task(data: ImageData, **settings: Any) -> VQVAETask:
    config = VQVAEConfig(
        height=32,
        width=32,
        num_embeddings=(16, 16),
        embedding_dim=(4, 4),
        hidden_channels=8,
        residual_channels=4,
        init_vectors=1400,  # gathered over several batches: the first interruption falls amidst
        level_dropout=0.3,
        **settings,
    )
    return VQVAETask(VQVAE(config), data)


def interrupted_at(task: Any, step: int) -> Any:
    """Let a task be interrupted while it computes a batch's loss."""
    compute, interrupt, calls = task.loss, interrupt_at(step), [0]

    def loss(batch: dict) -> Any:
        calls[0] += 1
        interrupt(calls[0])
        return compute(batch)

    task.loss = loss
    return task


def lines(folder: Path) -> list[dict]:
    """The log without what the clock says."""
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in stats(folder)]


def check(make: Any, folder: Path, step: int, config: TrainingConfig = CONFIG) -> None:
    """Train once through and once interrupted, from other random states, and compare all that is left."""

    def run(task: Any, name: str, resume: bool = False) -> None:
        fit(task, config, folder / name, device=CPU, resume=resume, say=lambda _line: None)

    torch.manual_seed(0)
    run(make(folder / "whole"), "whole")
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        run(interrupted_at(make(folder / "cut"), step), "cut")
    torch.manual_seed(1)
    run(make(folder / "cut"), "cut", resume=True)
    assert_same(final_state(folder / "cut"), final_state(folder / "whole"))
    assert lines(folder / "cut") == lines(folder / "whole")


@pytest.mark.parametrize(
    ("step", "accumulate", "settings"),
    [
        *((step, accumulate, {}) for step, accumulate in [(1, 1), (6, 1), (8, 1), (3, 2), (12, 2)]),
        (6, 1, {"codebook": "gradient", "estimator": "rotation"}),
        (12, 2, {"codebook": "gradient", "revival_threshold": 0.8}),
        (1, 1, {"codebook": "simvq"}),
        (12, 2, {"codebook": "simvq", "estimator": "rotation"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_vqvae(data, tmp_path, step, accumulate, settings):
    check(lambda _folder: vqvae_task(data, **settings), tmp_path, step, replace(CONFIG, accumulate=accumulate))
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("step", [2, 7])
def test_a_sharpening(data, tmp_path, step):
    torch.manual_seed(3)
    model = VQVAE(replace(vqvae_task(data).model.config, init_vectors=0)).eval()
    config = SharpeningConfig(sharpen_share=0.5, code_noise=0.3, discriminator_warmup=4)

    def task(folder: Path) -> SharpeningTask:
        copy = VQVAE(model.config).eval()
        copy.load_state_dict(model.state_dict())
        return SharpeningTask(copy, data, config, folder / "model")

    check(task, tmp_path, step, config.divide(replace(CONFIG, max_steps=24))[1])


@pytest.mark.parametrize("step", [2, 7])
def test_a_prior(chain: Chain, tmp_path, step):
    store, model = CodeStore(chain.run / "codes"), VQVAE.from_pretrained(chain.run / "vqvae")
    trained = Prior.from_pretrained(chain.run / "prior-bottom").config
    settings = replace(trained, dropout=0.3, input_dropout=0.2, label_dropout=0.3, recompute=True)
    assert isinstance(settings, PriorConfig)
    check(lambda _folder: PriorTask(Prior(settings), model, store, {}), tmp_path, step, replace(CONFIG, ema_decay=0.9))
