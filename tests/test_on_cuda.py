"""What CUDA would be asked for, found without it: on which device tensors are made, and where the host would wait."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqvae2 import distributed, quantizer
from vqvae2.adversary import FeatureDiscriminator, PatchDiscriminator, discriminator_loss
from vqvae2.classifier import Classifier, ClassifierConfig
from vqvae2.detail import DetailConfig, DetailDecoder
from vqvae2.optim import TrainingConfig, make_optimizer
from vqvae2.prior import Prior, PriorConfig
from vqvae2.vqvae import VQVAE, VQVAEConfig

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.is_nonzero, aten.bincount}
TRAINING = TrainingConfig(optimizer="muon")


class NoWaiting(TorchDispatchMode):
    """Fails where the host would ask the device for a number or a size."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.overloadpacket not in WAITING, f"{func}: the host waits for the device"
        if func.overloadpacket in (aten.index, aten.index_put_):
            masks = [i for i in tree_leaves(args[1]) if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask: the host waits for the number of its elements"
        return func(*args, **(kwargs or {}))


def train(modules: list[nn.Module], loss: Callable[[], Tensor], device: torch.device) -> Iterator[None]:
    """Steps as `fit` makes them."""
    optimizer = make_optimizer(TRAINING, modules, device)
    while True:
        loss().backward()
        for module in modules:
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def vqvae_steps(model: VQVAE, x: Tensor) -> Iterator[None]:
    for _ in train([model], lambda: model.loss(x)[0], x.device):
        model.update_codebooks()
        yield


def prior_loss() -> tuple[Prior, Callable[[], Tensor]]:
    """A conditional prior with labels, and its loss."""
    prior = Prior(
        PriorConfig(
            level="bottom", height=4, width=4, num_embeddings=7, embedding_dim=3, channels=8, residual_channels=6,
            num_layers=2, attention_every=2, num_heads=2, output_layers=1, condition_layers=1, dropout=0.1,
            condition_levels=("top",), condition_shapes=((2, 2),), condition_num_embeddings=(5,),
            attributes=(("sex", ("f", "m")),),
        )
    ).train()  # fmt: skip
    codes, top = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 2, 2, dtype=torch.int64)
    label = torch.zeros(2, 1, dtype=torch.int64)
    return prior, lambda: nn.functional.cross_entropy(prior(codes, condition=[top], label=label), codes)


@pytest.mark.parametrize("codebook", ["ema", "gradient", "simvq"])
def test_a_step_of_the_vqvae_never_waits_for_the_device(tiny_config, started, codebook):
    model = started(replace(tiny_config, codebook=codebook, estimator="rotation")).train()
    steps = vqvae_steps(model, torch.rand(8, 1, 16, 16) * 2 - 1)
    next(steps)  # the first makes the optimiser's state
    with NoWaiting():
        next(steps)


@pytest.mark.parametrize("codebook", ["ema", "gradient", "simvq"])
def test_an_update_among_processes_is_one_collective_and_never_waits(tiny_config, started, codebook, monkeypatch):
    model = started(replace(tiny_config, codebook=codebook)).train()
    calls = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather", lambda own: calls.append(own.shape) or torch.stack([own, own]))
    for name in ("all_reduce_sum", "all_gather_rows", "tensor_from_main", "from_main"):
        monkeypatch.setattr(distributed, name, None)
    model.loss(torch.rand(8, 1, 16, 16) * 2 - 1)
    with NoWaiting():
        model.update_codebooks()
    assert len(calls) == len(model.codebooks)


def test_a_step_of_a_prior_never_waits_for_the_device():
    prior, loss = prior_loss()
    steps = train([prior], loss, torch.device("cpu"))
    next(steps)
    with NoWaiting():
        next(steps)


def test_waiting_is_noticed():
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(3).sum().item()
    with NoWaiting(), pytest.raises(AssertionError, match="mask"):
        torch.ones(3)[torch.tensor([True, False, True])]


class _NoDraws:
    """A generator of a device that is not there."""

    def __init__(self, device: object = None) -> None:
        """Takes any device."""

    def manual_seed(self, _seed: int) -> None:
        """Returns None, which stands for the default generator."""


@pytest.fixture
def cuda(monkeypatch) -> Iterator[None]:
    """CUDA tensors without values; there is no backward pass without the device."""
    monkeypatch.setattr(quantizer.torch, "Generator", _NoDraws)
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)  # parameters without values cannot be moved
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize(("rate_weight", "codebook"), [(0.0, "ema"), (0.1, "ema"), (0.1, "gradient"), (0.1, "simvq")])
@pytest.mark.usefixtures("cuda")
def test_every_tensor_of_the_vqvae_is_made_where_it_is_used(rate_weight, codebook):
    config = VQVAEConfig(
        height=16, width=16, strides=(2, 2, 2), num_embeddings=(8, 8, 8), embedding_dim=(4, 4, 4), hidden_channels=8,
        residual_channels=4, ssim_weight=1.0, spectrum_weight=0.1, l1_weight=0.1, foreground_weight=5.0,
        level_dropout=0.4, rate_weight=rate_weight, normalize="layer", codebook=codebook,
        estimator="straight_through" if codebook == "ema" else "rotation",
    )  # fmt: skip
    with torch.device("cuda"):
        model, x = VQVAE(config).train(), torch.empty(8, 1, 16, 16)
    for codebook in model.codebooks:
        codebook._updates = 5
    loss, terms, _ = model.loss(x)
    assert {term.device.type for term in (loss, *terms.values())} == {"cuda"}
    model.update_codebooks()
    model.eval()
    codes = model.encode(x)
    assert {level.device.type for level in codes} == {"cuda"}
    assert model.decode(codes).device.type == model.decode(codes[:1]).device.type == "cuda"


@pytest.mark.usefixtures("cuda")
def test_every_tensor_of_a_prior_is_made_where_it_is_used():
    with torch.device("cuda"):
        _, loss = prior_loss()
    assert loss().device.type == "cuda"


@pytest.mark.usefixtures("cuda")
def test_every_tensor_of_the_discriminator_and_the_classifier_is_made_where_it_is_used():
    with torch.device("cuda"):
        real, made = torch.empty(4, 1, 32, 32), torch.empty(4, 1, 32, 32)
        judge, classifier = PatchDiscriminator(1), Classifier(ClassifierConfig("kind", ("a", "b"), 1))
    assert discriminator_loss(judge(real), judge(made)).device.type == "cuda"
    assert classifier(real).device.type == "cuda"


@pytest.mark.usefixtures("cuda")
def test_every_tensor_of_the_detail_decoder_and_its_discriminator_is_made_where_it_is_used():
    config = VQVAEConfig(
        height=16, width=16, num_embeddings=(8, 8), embedding_dim=(4, 4), hidden_channels=8, residual_channels=4
    )
    with torch.device("cuda"):
        detail, judge = DetailDecoder(DetailConfig(config)), FeatureDiscriminator([3, 4])
        codes = [torch.zeros(2, *config.shapes[0], dtype=torch.int64)]
        maps = [torch.empty(2, 3, 8, 8), torch.empty(2, 4, 4, 4)]
    image, painted = detail(codes)
    assert {made.device.type for made in (image, *painted, detail.decode(codes))} == {"cuda"}
    judge.standardise(maps)
    assert {scores.device.type for scores in judge(maps)} == {"cuda"}


@pytest.mark.usefixtures("cuda")
def test_every_tensor_of_a_sampled_row_is_made_where_it_is_used(monkeypatch):
    monkeypatch.setattr("vqvae2.prior.records", lambda device: False)  # a recording needs the device
    with torch.device("cuda"):
        prior, _ = prior_loss()
        top, label = torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64)
    codes, nll = prior.eval().generate(
        lambda logits, noise: (logits.argmax(-1), noise.double()), torch.empty(2, 4, 4, device="cuda"), [top], label
    )
    assert codes.device.type == nll.device.type == "cuda"


@pytest.mark.usefixtures("cuda")
def test_a_tensor_on_the_host_is_noticed():
    x = torch.empty(3, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        x + torch.empty(3)
