"""Models of earlier versions: what their folders hold is rebuilt to the same tensors and the same outputs."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqvae2 import VQVAE, Prior, PriorConfig, VQVAEConfig, checkpoint

# Written by the version before widths by level, losses of the foreground and the entropy-constrained choice.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "format-1.json").read_text())


def values(model: nn.Module) -> dict[str, Tensor]:
    """The weights that the recorded outputs were made with."""
    made = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) + len(name)).view(tensor.shape) * 0.3
            made[name] = (wave.float().abs() + 1 if name.endswith("cluster_size") else wave).to(tensor.dtype)
        else:
            made[name] = torch.full_like(tensor, 5)
    return made


def stored(folder: Path, kind: str, config: type, model: type) -> nn.Module:
    """Write a folder as that version did, and load it as today's."""
    fields = GOLDEN[kind]
    today = model(checkpoint.config_from(config, fields, folder))
    assert {name: list(tensor.shape) for name, tensor in today.state_dict().items()} == GOLDEN[f"{kind}_tensors"]
    checkpoint.save_pretrained(folder, {**fields, "kind": kind}, values(today))
    return model.from_pretrained(folder)


def test_models_of_an_earlier_version_give_the_outputs_that_it_gave(tmp_path):
    vqvae = stored(tmp_path / "vqvae", "vqvae", VQVAEConfig, VQVAE)
    prior = stored(tmp_path / "prior", "prior", PriorConfig, Prior)
    x = torch.sin(torch.arange(512.0)).view(2, 1, 16, 16)
    with torch.no_grad():
        codes = vqvae.encode(x)
        image = vqvae.decode(codes).double()
        logits = prior(codes[1], [codes[0]], torch.tensor([[0], [-1]])).double()
    sums = [int((level.flatten() * torch.arange(level.numel())).sum()) for level in codes]
    assert sums == GOLDEN["codes"]
    # Rounding differs between machines and forms of a convolution.
    assert [image.sum().item(), image.square().sum().item()] == pytest.approx(GOLDEN["image"], rel=1e-4)
    assert [logits.sum().item(), logits.square().sum().item()] == pytest.approx(GOLDEN["logits"], rel=1e-4)
