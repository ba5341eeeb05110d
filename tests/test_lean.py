"""The passes written out for the CPU compute what PyTorch's own do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqvae2.lean import Dropout, RMSNorm, gate


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_rms_norm_and_its_gradients_are_those_of_pytorch():
    norm, x = RMSNorm(6).double(), drawn(2, 3, 4, 6)
    weight = drawn(6, seed=1)
    norm.weight = nn.Parameter(weight.detach())
    out, usual = norm(x), F.rms_norm(x, (6,), weight, 1e-6)
    torch.testing.assert_close(out, usual)
    along = drawn(2, 3, 4, 6, seed=2).detach()
    own = torch.autograd.grad(out, (x, norm.weight), along)
    torch.testing.assert_close(own, torch.autograd.grad(usual, (x, weight), along))


def test_rms_norm_of_nothing_but_zeros_is_zero_and_has_a_gradient():
    norm, x = RMSNorm(4), torch.zeros(2, 4, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert not out.detach().any()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_the_gate_and_its_gradients_are_those_of_pytorch():
    out, off = nn.Linear(5, 8).double(), Dropout(0.3).eval()
    residual, x = drawn(2, 3, 4), drawn(2, 3, 5, seed=1)
    wanted = residual + F.glu(out(F.silu(x)), -1)
    got = gate(residual, x, out, off)
    torch.testing.assert_close(got, wanted)
    along, inputs = drawn(2, 3, 4, seed=2).detach(), (residual, x, out.weight, out.bias)
    torch.testing.assert_close(torch.autograd.grad(got, inputs, along), torch.autograd.grad(wanted, inputs, along))


def test_the_gates_gradient_is_that_of_the_values_it_kept():
    out, dropout = nn.Linear(5, 8).double(), Dropout(0.5).train()
    residual, x = drawn(2, 3, 4), drawn(2, 3, 5, seed=1)

    def seeded(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return gate(*inputs, out, dropout)

    assert torch.autograd.gradcheck(seeded, (residual, x))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.999])
def test_dropout_keeps_the_mean_and_drops_its_share_to_a_256th(p):
    torch.manual_seed(0)
    out = Dropout(p).train()(torch.ones(64, 32, 65))
    share = min(max(round(256 * p), 1), 255) / 256
    # Six standard deviations of the share of 133,120 draws.
    assert abs(float((out == 0).float().mean()) - share) < 6 * (share * (1 - share) / out.numel()) ** 0.5
    torch.testing.assert_close(out.max(), torch.tensor(1 / (1 - share)))


def test_dropout_is_off_in_evaluation_and_its_draws_are_independent_in_training():
    x = torch.ones(512, 512)
    assert Dropout(0.5).eval()(x) is x
    torch.manual_seed(0)
    dropout = Dropout(0.5).train()
    signs = dropout(x) - 1, dropout(x) - 1
    for shift in (0, 1, 4, 8):  # the two draws, and neighbours of one, such as the bytes of a word
        other = signs[1] if shift == 0 else signs[0].roll(shift, 1)
        assert abs(float((signs[0] * other).mean())) < 0.012  # six standard deviations


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
def test_the_layers_keep_their_inputs_precision(compute):
    x = torch.randn(2, 3, 8).to(compute).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
        y = gate(x, RMSNorm(8)(x), nn.Linear(8, 16), Dropout(0.1))
    y.sum().backward()
    assert y.dtype == compute
    assert x.grad is not None
    assert x.grad.dtype == compute
