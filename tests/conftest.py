"""Configurations and data so small that a test of a whole model takes a moment."""

import functools
import io
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import Tensor

from vqvae2 import files
from vqvae2.data import DataConfig, open_data, phantom
from vqvae2.prior import PriorConfig
from vqvae2.report import figures
from vqvae2.vqvae import VQVAE, VQVAEConfig

# No example fails for being slow: the machine may be busy with other work.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

DRAWN = ("test_browser", "test_report", "test_report_page")


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide pretrained weights and decoded images that this machine may have, from the stages' processes too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TORCH_HOME", "VQVAE2_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        # A sixteenth of the dots, and labels that may overlap, are drawn in half the time.
        patch.setattr(figures, "_DPI", 40)
        patch.setattr(figures, "_LAYOUT", None)
        patch.setattr(phantom, "render", functools.cache(phantom.render))  # hundreds of tests draw the same heads
        patch.setattr(os, "fsync", lambda _: None)  # no test takes the power away
        yield


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest, own_folders: None) -> Iterator[None]:
    """Leave figures undrawn, a blank picture each, but in the tests that look at reports: it takes half of a report."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in DRAWN:
            patch.setattr(figures, "save", lambda figure, path: files.write_atomic(path, blank()))
        yield


@functools.cache
def blank() -> bytes:
    """One white dot as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny_config() -> VQVAEConfig:
    """Two levels of 2x2 and 8x8 cells; every number differs between the levels, so that no swap goes unseen."""
    return VQVAEConfig(
        channels=1,
        height=16,
        width=16,
        strides=(4, 2),
        num_embeddings=(8, 12),
        embedding_dim=(4, 6),
        hidden_channels=8,
        residual_channels=4,
        num_residual_layers=1,
        init_vectors=32,
    )


@pytest.fixture
def started() -> Callable[..., VQVAE]:
    """A function: config -> untrained model in evaluation mode whose codebooks hold their k-means start."""

    def start(config: VQVAEConfig, seed: int = 0) -> VQVAE:
        torch.manual_seed(seed)
        model = VQVAE(config)
        while not all(quantizer.initialized for quantizer in model.quantizers):
            with torch.enable_grad():  # without, there is no training pass
                model(torch.rand(8, config.channels, config.height, config.width) * 2 - 1)
            model.update_codebooks()
        return model.eval()

    return start


@pytest.fixture
def tiny_vqvae(tiny_config: VQVAEConfig, started: Callable[..., VQVAE]) -> VQVAE:
    """An untrained two-level model in evaluation mode that uses many of its codes."""
    return started(tiny_config)


@pytest.fixture
def tiny_prior_config() -> PriorConfig:
    """A prior over 4x6 cells of 12 codes, given 2x3 cells of 8 and one attribute, without dropout."""
    return PriorConfig(
        level="bottom",
        height=4,
        width=6,
        num_embeddings=12,
        condition_levels=("top",),
        condition_shapes=((2, 3),),
        condition_num_embeddings=(8,),
        attributes=(("diagnosis", ("healthy", "atrophy")),),
        embedding_dim=6,
        channels=8,
        residual_channels=8,
        num_layers=2,
        kernel_size=3,
        attention_every=2,
        num_heads=2,
        output_layers=1,
        condition_layers=1,
        dropout=0.0,
        label_dropout=0.0,
    )


@pytest.fixture(scope="session")
def phantom_images() -> Tensor:
    """Training images of the phantom, (96 or so, 1, 64, 64) in [-1, 1]."""
    images = open_data(DataConfig(phantom_images=120), splits=["train"]).splits["train"]
    return images.at(range(len(images)))
