"""What the optimiser decays, and its moments across groupings."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqvae2.optim import TrainingConfig, grouped_moments, load_moments, make_optimizer, moments, orthogonalized
from vqvae2.prior import Prior, PriorConfig
from vqvae2.quantizer import Codebook
from vqvae2.vqvae import VQVAE, VQVAEConfig

CPU = torch.device("cpu")


@pytest.fixture
def prior(tiny_prior_config: PriorConfig) -> Prior:
    torch.manual_seed(0)
    return Prior(replace(tiny_prior_config, attention_every=1))


def decayed(module: nn.Module) -> set[str]:
    """Names of the parameters that a step without gradients makes smaller."""
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(TrainingConfig(weight_decay=0.5, learning_rate=0.1), [module], CPU).step()
    return {name for name, parameter in module.named_parameters() if (parameter < 1).all()}


def test_a_prior_decays_what_multiplies_and_neither_vectors_nor_embeddings_nor_position_tables(prior):
    spared = {
        "embedding.weight",
        "condition.embeddings.0.weight",
        "labels.0.weight",
        "position_v",
        "position_h",
        "condition.position",
    }
    assert spared < {name for name, parameter in prior.named_parameters() if parameter.ndim >= 2}
    expected = {name for name, parameter in prior.named_parameters() if parameter.ndim >= 2} - spared
    assert len(expected) > 10
    assert decayed(prior) == expected


@pytest.mark.parametrize(("codebook", "learned"), [("ema", 0), ("gradient", 1), ("simvq", 2)])
def test_a_vqvae_decays_its_kernels_and_neither_its_vectors_nor_its_codebooks(
    tiny_config: VQVAEConfig, codebook: Codebook, learned: int
):
    model = VQVAE(replace(tiny_config, codebook=codebook))
    own = {name for name, _ in model.named_parameters() if name.startswith("quantizers.")}
    assert len(own) == 2 * learned
    expected = {name for name, _ in model.named_parameters() if name.endswith("weight")}
    assert decayed(model) == expected
    # What is not decayed is left to AdamW.
    orthogonal, others = (group["params"] for group in muon(model).param_groups)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[parameter] for parameter in orthogonal} == expected
    assert own < {names[parameter] for parameter in others} or not own


def test_a_parameter_that_is_not_trained_or_comes_twice_is_taken_once_or_not(prior):
    prior.embedding.weight.requires_grad_(False)
    optimizer = make_optimizer(TrainingConfig(), [prior, prior.blocks], CPU)
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len(set(taken)) == len(list(prior.parameters())) - 1


def test_moments_of_an_earlier_grouping_are_taken_over(prior):
    parameters = list(prior.parameters())
    earlier = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim >= 2]}, {"params": [p for p in parameters if p.ndim < 2]}]
    )
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, 1.0 + i)
    parameters[3].grad = None  # it has none
    earlier.step()
    optimizer = make_optimizer(TrainingConfig(learning_rate=0.5, weight_decay=0.25), [prior], CPU)
    load_moments(optimizer, parameters, grouped_moments(earlier.state_dict(), parameters))
    taken = moments(optimizer, parameters)
    for parameter, moment in zip(parameters, taken, strict=True):
        assert moment.keys() == earlier.state[parameter].keys()
        assert all(torch.equal(value, earlier.state[parameter][name]) for name, value in moment.items())
    assert taken[3] == {}
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.25), (0.5, 0.0)]


def test_orthogonalized_matrices_keep_their_singular_vectors_and_have_values_near_one():
    torch.manual_seed(0)
    x = torch.randn(3, 24, 40)
    made = orthogonalized(x).float()
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5
    assert values.max() < 1.35
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    inside = torch.diagonal(left.mT @ made @ right.mT, dim1=1, dim2=2)
    torch.testing.assert_close(inside, values.mean().expand_as(inside), atol=0.35, rtol=0)
    assert torch.equal(orthogonalized(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))
    assert orthogonalized(x, torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(orthogonalized(x, torch.bfloat16).float(), made, atol=0.1, rtol=0)


def muon(module: nn.Module, **settings: float) -> torch.optim.Optimizer:
    return make_optimizer(TrainingConfig(optimizer="muon", **settings), [module], CPU)  # type: ignore[arg-type]


def test_muon_steps_a_kernel_by_an_orthogonal_matrix_and_a_vector_as_adamw_does():
    torch.manual_seed(0)
    wide, tall = nn.Conv2d(4, 8, 3), nn.Linear(8, 72)  # 8 x 36, and 72 x 8, which is worked on lying
    both = nn.ModuleList([wide, tall])
    before = [parameter.detach().clone() for parameter in both.parameters()]
    for parameter in both.parameters():
        parameter.grad = torch.randn_like(parameter)
    bias_gradient = wide.bias.grad.clone()
    muon(both, learning_rate=1e-3, muon_learning_rate=0.01).step()
    for layer, start, longest in ((wide, before[0], 36), (tall, before[2], 72)):
        move = (start - layer.weight.detach()).flatten(1) / (0.01 * 0.2 * longest**0.5)
        values = torch.linalg.svdvals(move)
        assert values.min() > 0.5
        assert values.max() < 1.35
    # The first step of Adam is the rate times the sign.
    torch.testing.assert_close(before[1] - wide.bias.detach(), 1e-3 * bias_gradient.sign())


def test_muon_resumes_exactly_and_leaves_out_what_has_no_gradient(prior):
    parameters = list(prior.parameters())
    optimizer, unused = muon(prior, weight_decay=0.1), prior.output.weight

    def step(optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in (p for p in parameters if p is not unused):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    start = unused.detach().clone()
    step(optimizer, 0)
    kept = [parameter.detach().clone() for parameter in parameters]
    state = [{name: value.clone() for name, value in moment.items()} for moment in moments(optimizer, parameters)]
    step(optimizer, 1)
    straight = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    resumed = muon(prior, weight_decay=0.1)
    load_moments(resumed, parameters, state)
    step(resumed, 1)
    assert all(torch.equal(a, b) for a, b in zip(straight, parameters, strict=True))
    assert torch.equal(unused, start)


def test_a_state_of_another_optimizer_is_refused(prior):
    parameters = list(prior.parameters())
    for one, other in (("adamw", "muon"), ("muon", "adamw")):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = make_optimizer(TrainingConfig(optimizer=one), [prior], CPU)
        optimizer.step()
        with pytest.raises(ValueError, match="another optimizer"):
            load_moments(
                make_optimizer(TrainingConfig(optimizer=other), [prior], CPU),
                parameters,
                moments(optimizer, parameters),
            )


def test_muon_decays_what_adamw_decays(prior):
    made = []
    for optimizer in ("adamw", "muon"):
        for parameter in prior.parameters():
            nn.init.ones_(parameter)
            parameter.grad = torch.zeros_like(parameter)
        config = TrainingConfig(optimizer=optimizer, weight_decay=0.5, learning_rate=0.1, muon_learning_rate=0.1)
        make_optimizer(config, [prior], CPU).step()
        made.append({name for name, parameter in prior.named_parameters() if (parameter < 1).all()})
    assert made[0] == made[1]
