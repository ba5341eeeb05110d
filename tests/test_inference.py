"""Inference over maps of codes, against the law of priors so small that all maps can be listed."""

import itertools

import numpy as np
import pytest
import torch

from vqvae2.inference import complete, restore, surprise
from vqvae2.prior import Prior, PriorConfig

SHAPES, CODES = ((2, 2), (4, 2)), (2, 2)


@pytest.fixture(scope="module")
def priors():
    """Two levels of four and eight cells, whose codes depend strongly on each other."""
    torch.manual_seed(0)
    small = {"channels": 16, "residual_channels": 16, "num_layers": 2, "num_heads": 2, "kernel_size": 3}
    top = PriorConfig(height=2, width=2, num_embeddings=2, attention_every=1, **small)
    bottom = PriorConfig(
        level="bottom",
        height=4,
        width=2,
        num_embeddings=2,
        condition_levels=("top",),
        condition_shapes=((2, 2),),
        condition_num_embeddings=(2,),
        **small,
    )
    made = [Prior(config).eval() for config in (top, bottom)]
    with torch.no_grad():
        for prior in made:
            for name, parameter in prior.named_parameters():
                if name.endswith("weight") and parameter.ndim > 1:
                    parameter.normal_(0, 0.5)
            prior.output.weight.normal_(0, 0.7)
    return made


@pytest.fixture(scope="module")
def law(priors):
    """All 4,096 pairs of maps, and their log-probabilities."""
    rows = torch.tensor(list(itertools.product(range(2), repeat=12)))
    codes = [rows[:, :4].view(-1, 2, 2), rows[:, 4:].view(-1, 4, 2)]
    log_p = -sum(nll.double().sum((1, 2)) for nll, _ in surprise(priors, codes))
    assert float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-5)
    return rows, log_p


def _case(free):
    known = torch.ones(12, dtype=torch.bool)
    known[list(free)] = False
    codes = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1])
    return codes, known


def _run(priors, codes, known, count, **settings):
    def both(x):
        return [x[:4].view(1, 2, 2).expand(count, -1, -1), x[4:].view(1, 4, 2).expand(count, -1, -1)]

    found = complete(priors, both(codes), both(known), **settings)
    return torch.cat([level.flatten(1) for level in found.codes], 1), found


def _distance(rows, law, codes, known):
    """Total variation between the frequencies of rows and the exact conditional, and between the latter and a uniform."""
    everything, log_p = law
    fitting = (everything[:, known] == codes[known]).all(1)
    exact = torch.where(fitting, log_p, -torch.inf).softmax(0)
    assert (rows[:, known] == codes[known]).all()
    places = (rows * 2 ** torch.arange(11, -1, -1)).sum(1)
    found = torch.bincount(places, minlength=len(exact)).double() / len(rows)
    naive = fitting.double() / fitting.sum()
    return float((found - exact).abs().sum() / 2), float((naive - exact).abs().sum() / 2)


FREE = {"beginning": (0, 1, 4, 5), "top": (0, 1, 2, 3), "middle": (2, 6, 7, 8), "scattered": (0, 5, 10)}


@pytest.mark.parametrize("free", FREE.values(), ids=FREE)
def test_completions_follow_the_exact_conditional(priors, law, free):
    codes, known = _case(free)
    rows, found = _run(priors, codes, known, 4000, particles=4, sweeps=6)
    distance, naive = _distance(rows, law, codes, known)
    assert distance < 0.045 < naive / 2  # 4,000 draws of 16 outcomes are 0.02 away
    forced, _ = _run(priors, codes, known, 4000, particles=1)
    assert _distance(forced, law, codes, known)[0] > 1.5 * distance  # codes after the unknown ones left out
    assert 0.2 < found.accepted[-1] < 1
