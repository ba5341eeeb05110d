"""Whether compiling is probed where the training runs, and what float32 means to every stage."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny_runs import CHAIN
from torch import Tensor, nn

from vqvae2.device import compile_modules
from vqvae2.errors import UserError

pytest_plugins = ["tiny_run_fixtures"]


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: object, _gradient: Tensor) -> Tensor:
        raise NotImplementedError("no kernel")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Inputs of what is compiled; nothing is."""
    seen: list[Tensor] = []

    def compile(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: seen.append(x) or function(x)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    return seen


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_compiler_is_probed_on_the_modules_device_forward_and_backward(probed, device, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert compile_modules("auto", [nn.Linear(2, 2, device=device)] * 2).startswith("compiled 2 modules")
    assert [x.device.type for x in probed] == [device]
    assert probed[0].grad is not None
    assert probed[0].grad.shape == probed[0].shape


def test_where_a_backward_pass_cannot_be_compiled_the_run_is_eager_with_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: function(FailingBackward.apply(x)))
    line = compile_modules("auto", [nn.Linear(2, 2)])
    assert line == "eager: torch.compile does not work here (NotImplementedError)"
    with pytest.raises(UserError, match="NotImplementedError"):
        compile_modules("on", [nn.Linear(2, 2)])


def test_auto_alone_heeds_what_speaks_against_compiling(probed):
    assert compile_modules("auto", [nn.Linear(2, 2)], "it is too short") == "eager: it is too short"
    assert compile_modules("on", [nn.Linear(2, 2)], "it is too short").startswith("compiled")


def test_a_model_of_which_nothing_is_compiled_is_eager(probed):
    for choice in ("on", "auto"):
        assert compile_modules(choice, []) == "eager: nothing to compile"


def test_only_a_cpu_needs_a_cpp_compiler(probed, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compile_modules("auto", [nn.Linear(2, 2)]).endswith("(no C++ compiler found)")
    assert compile_modules("auto", [nn.Linear(2, 2, device="meta")]).startswith("compiled")


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", CHAIN)
def test_no_stage_computes_float32_in_tf32(run: Path, call, tf32_allowed, name):
    script, *flags = CHAIN[name]
    stage = import_module(f"vqvae2.stages.{script.removesuffix('.py')}")
    assert call(stage.main, "--run", run, *flags, "--dry-run").code == 0
    assert not torch.backends.cudnn.allow_tf32
