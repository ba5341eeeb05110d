"""What the optimiser decays, and its moments across groupings."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vqvae2.optim import TrainingConfig, grouped_moments, load_moments, make_optimizer, moments
from vqvae2.prior import Prior, PriorConfig
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


def test_a_vqvae_decays_its_kernels_and_not_its_vectors(tiny_config: VQVAEConfig):
    model = VQVAE(tiny_config)
    assert decayed(model) == {name for name, parameter in model.named_parameters() if name.endswith("weight")}


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
