"""Inference over maps of codes, against the law of priors so small that all maps can be listed."""

import itertools
import math

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
    top = PriorConfig(height=2, width=2, num_embeddings=2, attention_every=1, mirrored=True, **small)
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
                    parameter.normal_(0, 0.3)
            prior.output.weight.normal_(0, 0.5)
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
    """Total variation between the frequencies of rows and the exact conditional, and between the latter and a
    uniform."""
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
    rows, found = _run(priors, codes, known, 1000, particles=4, sweeps=8)
    distance, naive = _distance(rows, law, codes, known)
    assert distance < 0.08 < naive / 4
    forced, _ = _run(priors, codes, known, 1000, particles=1)
    assert _distance(forced, law, codes, known)[0] > 1.5 * distance  # which leaves out the codes that come later
    assert 0 < found.accepted[-1] < 1


def test_what_comes_last_is_exact_with_one_particle(priors, law):
    codes, known = _case((8, 9, 10, 11))
    rows, found = _run(priors, codes, known, 1500, particles=1, sweeps=1)
    assert _distance(rows, law, codes, known)[0] < 0.07
    assert found.accepted == [1.0]


def test_the_evidence_is_the_probability_of_what_is_known(priors, law):
    codes, known = _case(FREE["middle"])
    everything, log_p = law
    exact = float(log_p[(everything[:, known] == codes[known]).all(1)].logsumexp(0))
    _, found = _run(priors, codes, known, 2000, particles=8)
    # An unbiased estimate, of the probability itself.
    assert float(found.log_evidence.logsumexp(0)) - math.log(2000) == pytest.approx(exact, abs=0.1)
    everywhere = torch.ones(12, dtype=torch.bool)
    _, found = _run(priors, codes, everywhere, 1, particles=2)
    row = int((codes * 2 ** torch.arange(11, -1, -1)).sum())
    assert float(found.log_evidence) == pytest.approx(float(log_p[row]), abs=1e-4)
    assert float(found.effective) == pytest.approx(2)


def test_a_row_is_what_it_is_whatever_is_made_beside_it(priors):
    """Rows with holes of several kinds, whose particles are selected at different times, together and alone."""
    cases = [_case(free) for free in (*FREE.values(), *FREE.values())]
    codes = [torch.stack([case[0] for case in cases]), torch.stack([case[1] for case in cases])]

    def made(rows, **settings):
        both = ([x[rows, :4].view(-1, 2, 2), x[rows, 4:].view(-1, 4, 2)] for x in codes)
        return complete(priors, *both, particles=3, sweeps=2, numbers=rows, **settings).codes

    together, other = made(list(range(8)), seed=5), made(list(range(8)), seed=6)
    for row in range(8):
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, made([row], seed=5), strict=True)), row
    assert not all(torch.equal(a, b) for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("wrong", [{"particles": 0}, {"sweeps": -1}])
def test_settings_out_of_range(priors, wrong):
    with pytest.raises(ValueError, match="need particles"):
        _run(priors, *_case((0,)), 1, **wrong)


def test_improbable_codes_are_redrawn_and_no_others(priors):
    torch.manual_seed(1)
    codes = [torch.randint(2, (64, 2, 2)), torch.randint(2, (64, 4, 2))]
    for level, same in zip(codes, restore(priors, codes, (50.0, 50.0)), strict=True):
        assert torch.equal(level, same)
    threshold = 1.2
    restored = restore(priors, codes, (threshold, threshold), seed=3)
    kept = torch.cat([(a == b).flatten() for a, b in zip(codes, restored, strict=True)])
    assert 0.4 < float(kept.float().mean()) < 1
    # The first code that was replaced was an improbable one.
    (nll, _), _ = surprise(priors, codes)
    changed = (codes[0] != restored[0]).flatten(1)
    for row in changed.any(1).nonzero()[:, 0].tolist():
        first = int(changed[row].int().argmax())
        assert float(nll.flatten(1)[row, first]) > threshold
    before, after = (sum(float(nll.sum()) for nll, _ in surprise(priors, both)) for both in (codes, restored))
    assert after < before
    # A row's draws follow from its number, not from its place.
    turned = [level.flip(0) for level in codes]
    again = restore(priors, turned, (threshold, threshold), seed=3, numbers=range(63, -1, -1))
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(restored, again, strict=True))
    other = restore(priors, turned, (threshold, threshold), seed=3)
    assert not all(torch.equal(a, b.flip(0)) for a, b in zip(restored, other, strict=True))
