"""A row that is recorded once and replayed makes the same codes.

CUDA graphs keep the operations of one run and the addresses of their tensors, and no Python runs again. `Tape` does the
same on any device: it keeps each operation with its tensors, runs them again on what these hold by then, and writes the
results to where they were.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_priors import tiny_inputs, tiny_prior
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae2 import prior as prior_module
from vqvae2.prior import Prior
from vqvae2.sampling import Sharpness, sample_codes

aten = torch.ops.aten
# What a capture cannot hold: numbers and sizes that the device must first be asked for.
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.is_nonzero}
SHAPES = [((4, 4), ()), ((3, 5), ()), ((1, 6), ()), ((6, 1), ()), ((4, 6), ((2, 3),)), ((4, 4), ((1, 1), (2, 2)))]


class Tape(TorchDispatchMode):
    """Keep every operation of a block, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.overloadpacket not in WAITING, "the host waits for the device"
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for was, now in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(was, Tensor) and was.data_ptr() != now.data_ptr():  # else a view, or changed in place
                    was.copy_(now)


@pytest.fixture
def tapes(monkeypatch) -> list[Tape]:
    """Let priors record on the CPU; returns the tapes as they are made."""
    made: list[Tape] = []

    def recorded(work: Callable[[], None], begin: Callable[[], None], _device: torch.device) -> Callable[[], None]:
        work()
        begin()
        with Tape() as tape:
            work()
        begin()
        made.append(tape)
        return tape.replay

    monkeypatch.setattr(prior_module, "records", lambda device: True)
    monkeypatch.setattr(prior_module, "_LEAST_ROWS", 1)
    monkeypatch.setattr(prior_module, "recorded", recorded)
    return made


def sampled(prior: Prior, batch: int, sharpness: Sharpness | None = None) -> tuple[Tensor, Tensor]:
    _, condition, label = tiny_inputs(prior.config, batch)
    height, width = prior.config.shape
    uniform = torch.rand(batch, height * width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sample_codes(prior, uniform, condition, label, sharpness)


def replayed(prior: Prior, tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The codes of three maps whose rows are recorded once and replayed; they are those without a recording."""
    codes, nll = sampled(prior, 3)
    assert len(tapes) == 1
    monkeypatch.setattr(prior_module, "records", lambda device: False)
    plain_codes, plain_nll = sampled(prior, 3)
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(nll, plain_nll, rtol=0, atol=1e-12)
    return codes


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("attention_every", [0, 2])
@pytest.mark.parametrize(("shape", "condition_shapes"), SHAPES)
@torch.no_grad()
def test_a_replayed_row_makes_the_same_codes(tapes, monkeypatch, shape, condition_shapes, attention_every, labelled):
    prior = tiny_prior(shape, condition_shapes, labelled=labelled, attention_every=attention_every)
    assert len(replayed(prior, tapes, monkeypatch).unique()) > 1


@pytest.mark.parametrize(("condition", "mirrored"), [(((4, 3),), False), ((), True)])
@torch.no_grad()
def test_a_replayed_row_of_patches_makes_the_same_codes(tapes, monkeypatch, condition, mirrored):
    settings = {"attention_every": 2, "patch": 2, "patch_channels": 5, "mirrored": mirrored}
    replayed(tiny_prior((8, 8 if mirrored else 6), condition, labelled=True, **settings), tapes, monkeypatch)


@torch.no_grad()
def test_sharpened_draws_can_be_recorded(tapes, monkeypatch):
    prior, sharpness = tiny_prior((4, 4)), Sharpness(temperature=0.7, top_k=4, top_p=0.9)
    codes, nll = sampled(prior, 2, sharpness)
    monkeypatch.setattr(prior_module, "records", lambda device: False)
    plain_codes, plain_nll = sampled(prior, 2, sharpness)
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(nll, plain_nll, rtol=0, atol=1e-12)


@pytest.mark.parametrize("patch", [{}, {"patch": 2, "patch_channels": 5}])
@torch.no_grad()
def test_guided_draws_can_be_recorded(tapes, monkeypatch, patch):
    """Three priors side by side: with the label, without it, and the guide."""
    prior, guide = (tiny_prior((4, 4), labelled=True, attention_every=2, seed=seed, **patch) for seed in (0, 1))
    sharpness = Sharpness(guidance=2.0, autoguidance=1.5, guide=guide, min_p=0.1)
    codes, nll = sampled(prior, 2, sharpness)
    assert len(tapes) == 1
    monkeypatch.setattr(prior_module, "records", lambda device: False)
    plain_codes, plain_nll = sampled(prior, 2, sharpness)
    assert torch.equal(codes, plain_codes)
    assert not torch.equal(codes, sampled(prior, 2)[0])
    torch.testing.assert_close(nll, plain_nll, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_a_cuda_graph_makes_the_codes_of_the_processor():
    prior = tiny_prior((4, 6), ((2, 3),), labelled=True, attention_every=2)
    plain_codes, plain_nll = sampled(prior, 3)
    _, condition, label = tiny_inputs(prior.config, 3)
    uniform = torch.rand(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior.cuda()
    codes, nll = sample_codes(prior, uniform.cuda(), [level.cuda() for level in condition or []], label.cuda())
    assert torch.equal(codes.cpu(), plain_codes)
    torch.testing.assert_close(nll.cpu(), plain_nll, rtol=0, atol=1e-12)
