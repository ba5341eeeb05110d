"""All stages on a device without double precision, where some kernels are missing: a stand-in for Apple's MPS."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from fake_mps import MPS, OnMPS, fake_mps
from tiny_runs import CHAIN

from vqvae2.device import random_state, set_random_state
from vqvae2.quantizer import QuantizerConfig, VectorQuantizer
from vqvae2.stages import common

pytest_plugins = ["tiny_run_fixtures"]


def test_the_state_of_its_random_numbers_is_kept(mps):
    kept = random_state(mps)
    torch.mps.set_rng_state(torch.Generator().manual_seed(5).get_state())
    assert not torch.equal(torch.mps.get_rng_state(), kept["mps"])
    set_random_state(kept, mps)
    assert torch.equal(torch.mps.get_rng_state(), kept["mps"])


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setattr(common, "resolve_device", lambda choice: MPS)
    with fake_mps() as device:
        yield device


def test_the_stand_in_computes_and_refuses_what_the_device_refuses(mps):
    x = torch.rand(3, 4).to(mps)
    assert isinstance(x, OnMPS)
    assert x.device == mps
    torch.testing.assert_close((x + 1).cpu(), x.cpu() + 1)
    for refused in (lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64, device=mps)):
        with pytest.raises(TypeError, match="float64"):
            refused()
    with pytest.raises(NotImplementedError, match="pdist"):
        torch.pdist(x)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.zeros(3, 4)


@pytest.mark.parametrize("codebook", ["gradient", "simvq"])
def test_a_learned_codebook_starts_and_moves_on_it(mps, codebook):
    quantizer = VectorQuantizer(8, 4, QuantizerConfig(codebook=codebook, estimator="rotation", init_vectors=20))
    quantizer = quantizer.to(mps)
    for _ in range(3):
        out = quantizer(torch.rand(5, 4, 4).to(mps))
        quantizer.update()
    assert quantizer.num_updates == 2
    assert isinstance(out.vectors, OnMPS)


def test_every_stage_runs_on_it(mps, tmp_path: Path, call):
    for script, *flags in CHAIN.values():
        stage = import_module(f"vqvae2.stages.{script.removesuffix('.py')}")
        few = ["--num", 2] if script == "sample.py" else []  # each operation goes through Python here
        ended = call(stage.main, "--run", tmp_path / "run", *flags, *few)
        assert ended.code == 0, (script, ended)
