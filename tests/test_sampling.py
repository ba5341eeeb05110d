"""Samples follow the model's own distribution, and sample i is what it is whatever is made beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import chisquare
from tiny_priors import ATTRIBUTES, tiny_prior
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.labels import draw_labels, label_rows
from vqvae2.prior import Prior
from vqvae2.sampling import (
    Samples,
    Sharpness,
    check_priors,
    log_probabilities,
    sample,
    sample_chunk,
    sample_codes,
    sharpness_by_level,
)
from vqvae2.vqvae import VQVAE, VQVAEConfig

Models = tuple[VQVAE, list[Prior]]


def tiny_models(strides: tuple[int, ...] = (2, 2), labelled: bool = True) -> Models:
    """A VQ-VAE of 8x16 pixels with untrained codebooks, and a prior for each of its levels, in float32."""
    torch.manual_seed(0)
    count = len(strides)
    model = VQVAE(
        VQVAEConfig(
            height=8,
            width=16,
            strides=strides,
            num_embeddings=(5, 6, 7)[:count],
            embedding_dim=(4,) * count,
            hidden_channels=8,
            residual_channels=4,
            num_residual_layers=1,
        )
    ).eval()
    shapes, priors = model.config.shapes, []
    for i, level in enumerate(model.levels):
        prior = tiny_prior(shapes[i], shapes[:i], labelled, seed=i, attention_every=2 if i == 0 else 0)
        config = replace(prior.config, level=level, num_embeddings=model.config.num_embeddings[i])
        full = Prior(config).double().eval()
        # The tiny prior has 7 codes: keep as many of its rows as the level has.
        cut = {name: tensor for name, tensor in prior.state_dict().items() if name != "position_table"}
        for name in ("embedding.weight", "output.weight", "output.bias"):
            cut[name] = cut[name][: config.num_embeddings]
        full.load_state_dict(cut, strict=False)
        priors.append(full.float())
    return model, priors


@pytest.fixture(scope="module")
def models() -> Models:
    return tiny_models()


def equal(one: Samples, other: Samples, rows: slice = slice(None)) -> bool:
    """Whether the rows of one set are the other set, bit for bit."""
    pairs = [(one.images, other.images), (one.nll, other.nll), *zip(one.codes, other.codes, strict=True)]
    return all(torch.equal(a[rows], b) for a, b in pairs)


def full_form_nll(priors: list[Prior], samples: Samples) -> Tensor:
    """The mean NLL of the samples' codes by level, from the parallel form: (N, levels)."""
    columns = []
    for i, prior in enumerate(priors):
        logits = prior(samples.codes[i], samples.codes[:i], samples.label).double()
        columns.append(F.cross_entropy(logits, samples.codes[i], reduction="none").flatten(1).mean(1))
    return torch.stack(columns, 1).detach()


def test_samples_have_the_documented_shapes_and_ranges(models):
    model, priors = models
    out = sample(model, priors, num=5, chunk_size=4)
    assert out.images.shape == (5, 1, 8, 16)
    assert out.images.min() >= -1
    assert out.images.max() <= 1
    assert [tuple(codes.shape) for codes in out.codes] == [(5, 2, 4), (5, 4, 8)]
    assert [int(codes.max()) < k for codes, k in zip(out.codes, (5, 6), strict=True)] == [True, True]
    assert out.nll.shape == (5, 2)
    assert torch.equal(out.label, torch.full((5, 2), -1))
    # Decoded at once or in chunks: float32 convolutions may round differently by batch size.
    torch.testing.assert_close(out.images, model.decode(out.codes), rtol=0, atol=1e-5)


def test_sampling_is_reproduced_by_its_seed(models):
    model, priors = models
    torch.manual_seed(1)
    first = sample(model, priors, num=4, seed=3, chunk_size=4)
    torch.manual_seed(2)
    assert equal(sample(model, priors, num=4, seed=3, chunk_size=4), first)
    assert not equal(sample(model, priors, num=4, seed=4, chunk_size=4), first)


def test_samples_of_a_set_differ_from_each_other(models):
    codes = sample(*models, num=8, chunk_size=4).codes[1].flatten(1)
    assert len({tuple(row.tolist()) for row in codes}) == 8


def test_sampling_drops_nothing_and_leaves_every_part_in_its_mode():
    model, priors = tiny_models()
    settings = {"dropout": 0.5, "attention_dropout": 0.5, "input_dropout": 0.5, "label_dropout": 0.5}
    dropping = []
    for prior in priors:
        dropping.append(Prior(replace(prior.config, **settings)))
        dropping[-1].load_state_dict(prior.state_dict())
        dropping[-1].train().blocks[0].eval()
    label = {"diagnosis": "atrophy"}
    assert equal(sample(model.train(), dropping, 5, label), sample(model.eval(), priors, 5, label))
    for prior in dropping:
        resting = set(prior.blocks[0].modules())
        assert all(part.training != (part in resting) for part in prior.modules())


@pytest.mark.parametrize("num", [1, 3, 4, 6])
def test_sample_i_does_not_depend_on_how_many_are_made(models, num):
    many = sample(*models, num=9, seed=1, chunk_size=4)
    assert equal(many, sample(*models, num=num, seed=1, chunk_size=4), slice(num))


def test_sample_i_does_not_depend_on_the_labels_of_its_neighbours(models):
    model, priors = models
    one = sample(model, priors, num=4, label=torch.tensor([[0, 1], [1, 2], [-1, 0], [1, -1]]), chunk_size=4)
    other = sample(model, priors, num=4, label=torch.tensor([[1, 1], [1, 2], [0, 2], [0, 0]]), chunk_size=4)
    assert torch.equal(one.images[1], other.images[1])
    assert not torch.equal(one.images[0], other.images[0])


def test_a_chunk_alone_is_that_chunk_of_the_set(models):
    model, priors = models
    whole = sample(model, priors, num=8, chunk_size=4, seed=5)
    second = sample_chunk(model, priors, range(4, 8), torch.full((4, 2), -1), seed=5)
    assert equal(whole, second, slice(4, 8))


def test_samples_are_equal_across_chunk_sizes_in_float64():
    model, priors = tiny_models()
    model, priors = model.double(), [prior.double() for prior in priors]
    sets = [sample(model, priors, num=5, seed=2, chunk_size=size) for size in (1, 2, 5, 16)]
    for other in sets[1:]:
        assert all(torch.equal(a, b) for a, b in zip(sets[0].codes, other.codes, strict=True))
        torch.testing.assert_close(other.nll, sets[0].nll, rtol=0, atol=1e-12)
        # The images are returned in float32.
        torch.testing.assert_close(other.images, sets[0].images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strides", [(4,), (2, 2), (2, 2, 2)])
@pytest.mark.parametrize("labelled", [False, True])
def test_accumulated_nll_is_that_of_the_full_form(strides, labelled):
    model, priors = tiny_models(strides, labelled)
    label = {"sex": "other"} if labelled else None
    out = sample(model, priors, num=3, label=label, chunk_size=4)
    # float32 logits of order one, rounded at 1e-6 by either form.
    torch.testing.assert_close(out.nll, full_form_nll(priors, out), rtol=0, atol=1e-5)


def test_nll_is_the_priors_own_whatever_the_sharpness(models):
    model, priors = models
    out = sample(model, priors, num=4, temperature=0.7, top_k=(0, 3), top_p=(0.8, 1.0), chunk_size=4)
    torch.testing.assert_close(out.nll, full_form_nll(priors, out), rtol=0, atol=1e-5)
    assert (out.nll.mean(0) < sample(model, priors, num=4, chunk_size=4).nll.mean(0)).all()


def toy_prior(probabilities: list[float]) -> Prior:
    """A prior over one position whose codes have given probabilities."""
    prior = tiny_prior((1, 1))
    prior = Prior(replace(prior.config, num_embeddings=len(probabilities), position_logits=False)).double().eval()
    with torch.no_grad():
        prior.output.bias.copy_(torch.tensor(probabilities, dtype=torch.float64).log())
    return prior


def test_inverse_cdf_gives_each_code_its_share_of_the_unit_interval():
    shares = [0.125, 0.0, 0.5, 0.25, 0.125, 0.0]
    uniform = (torch.arange(4096, dtype=torch.float64)[:, None] + 0.5) / 4096
    codes, nll = sample_codes(toy_prior(shares), uniform)
    # An even grid over [0, 1) counts the shares themselves, to one at each edge.
    counts = np.bincount(codes.flatten().numpy(), minlength=6)
    assert np.abs(counts - 4096 * np.array(shares)).max() <= 1
    assert counts[1] == counts[5] == 0
    np.testing.assert_allclose(nll.numpy(), -np.log(np.array(shares)[codes.flatten().numpy()]), atol=1e-12)
    assert (codes.flatten().diff() >= 0).all()


def test_draws_follow_known_probabilities():
    shares = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    uniform = torch.from_numpy(np.random.default_rng(0).random((5000, 1)))
    codes, _ = sample_codes(toy_prior(shares.tolist()), uniform)
    counts = np.bincount(codes.flatten().numpy(), minlength=5)
    # A right sampler fails this for one seed in a thousand; the seed is fixed.
    assert chisquare(counts, 5000 * shares).pvalue > 1e-3


def test_draws_of_two_codes_follow_their_joint_distribution_under_the_full_form():
    prior = tiny_prior((1, 2))
    k, num = prior.config.num_embeddings, 6000
    pairs = torch.cartesian_prod(torch.arange(k), torch.arange(k))[:, None]  # (K K, 1, 2)
    log_p = prior(pairs).detach().log_softmax(1)
    joint = log_p.gather(1, pairs[:, None]).sum((1, 2, 3)).exp().numpy()
    np.testing.assert_allclose(joint.sum(), 1, atol=1e-12)
    codes, _ = sample_codes(prior, torch.from_numpy(np.random.default_rng(0).random((num, 2))))
    counts = np.bincount((codes[:, 0, 0] * k + codes[:, 0, 1]).numpy(), minlength=k * k)
    enough = joint * num >= 5  # the usual condition of the test
    seen = np.append(counts[enough], counts[~enough].sum())
    wanted = num * np.append(joint[enough], joint[~enough].sum())
    assert enough.sum() > 30
    assert chisquare(seen, wanted).pvalue > 1e-3


def sharpened(logits: NDArray[np.float64], sharpness: Sharpness) -> NDArray[np.float64]:
    """Probabilities of one position, by hand."""
    p = np.exp(logits / sharpness.temperature - np.max(logits / sharpness.temperature))
    p /= p.sum()
    order = np.argsort(-p)
    if sharpness.top_k:
        p[order[sharpness.top_k :]] = 0
        p /= p.sum()
    kept, total = [], 0.0
    for code in order:
        kept.append(code)
        total += p[code]
        if total >= sharpness.top_p:
            break
    out = np.zeros_like(p)
    out[kept] = p[kept] / p[kept].sum()
    return out


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 4, 11, 50])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
def test_sharpness_equals_a_direct_computation(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 2, (20, 11))
    sharpness = Sharpness(temperature, top_k, top_p)
    got = log_probabilities(torch.from_numpy(logits), sharpness).exp().numpy()
    np.testing.assert_allclose(got, np.stack([sharpened(row, sharpness) for row in logits]), atol=1e-12)
    assert (got > 0).any(1).all()


def test_the_default_sharpness_leaves_the_distribution_as_it_is():
    logits = torch.randn(5, 7, dtype=torch.float64)
    assert torch.equal(log_probabilities(logits, Sharpness()), logits.log_softmax(-1))


@pytest.mark.parametrize("sharpness", [Sharpness(top_k=3), Sharpness(top_p=0.6), Sharpness(0.8, 4, 0.9)])
def test_excluded_codes_are_never_drawn(sharpness):
    prior = tiny_prior((1, 1), seed=3)
    allowed = sharpened(prior(torch.zeros(1, 1, 1, dtype=torch.int64)).detach().numpy()[0, :, 0, 0], sharpness) > 0
    edges = [0.0, np.nextafter(0, 1), 0.5, np.nextafter(1, 0)]  # the least and the greatest draws there are
    uniform = np.append(edges, np.linspace(0, 1, 4000, endpoint=False))
    codes, _ = sample_codes(prior, torch.from_numpy(uniform)[:, None], sharpness=sharpness)
    assert np.array_equal(np.unique(codes.numpy()), np.flatnonzero(allowed))


def test_codes_of_probability_zero_are_never_drawn_at_the_edges():
    uniform = torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)[:, None]
    codes, _ = sample_codes(toy_prior([0.0, 0.3, 0.7, 0.0]), uniform)
    assert codes.flatten().tolist() == [1, 2]


def test_settings_are_taken_by_level(models):
    model, priors = models
    out = sample(model, priors, num=6, top_k=(1, 0), chunk_size=4)
    assert all(torch.equal(codes, out.codes[0][0]) for codes in out.codes[0])
    assert len({tuple(codes.flatten().tolist()) for codes in out.codes[1]}) == 6
    other = sample(model, priors, num=6, top_k=(0, 1), chunk_size=4)
    assert len({tuple(codes.flatten().tolist()) for codes in other.codes[0]}) == 6
    greedy = priors[1](other.codes[1], other.codes[:1], other.label).argmax(1)
    assert torch.equal(greedy, other.codes[1])
    one, each = Sharpness(0.5, 3, 0.9), [Sharpness(0.5, 3, 0.9), Sharpness(1.0, 3, 0.8)]
    assert sharpness_by_level(2, temperature=0.5, top_k=3, top_p=0.9) == [one, one]
    assert sharpness_by_level(2, temperature=(0.5, 1.0), top_k=[3], top_p=(0.9, 0.8)) == each


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": (1.0, 1.0, 1.0)},
        {"top_k": ()},
        {"num": 0},
        {"chunk_size": 0},
    ],
)
def test_settings_out_of_range_are_refused(models, settings):
    with pytest.raises(ValueError):
        sample(*models, **{"num": 2, **settings})


def test_labels_are_given_by_name(models):
    model, priors = models
    named = sample(model, priors, num=3, label={"diagnosis": "atrophy"}, chunk_size=4)
    assert named.label.tolist() == [[1, -1]] * 3
    assert equal(named, sample(model, priors, num=3, label=torch.tensor([1, -1]), chunk_size=4))
    assert equal(named, sample(model, priors, num=3, label=torch.tensor([[1, -1]] * 3), chunk_size=4))
    both = sample(model, priors, num=3, label={"sex": "male", "diagnosis": "healthy"}, chunk_size=4)
    assert both.label.tolist() == [[0, 1]] * 3
    assert not equal(named, both)


def test_unknown_labels_are_refused_with_those_that_exist(models):
    with pytest.raises(UserError, match="sick") as error:
        sample(*models, num=1, label={"diagnosis": "sick"})
    assert "healthy, atrophy" in str(error.value)
    with pytest.raises(UserError, match="age") as error:
        sample(*models, num=1, label={"age": "old"})
    assert "diagnosis, sex" in str(error.value)
    with pytest.raises(UserError, match="no labels"):
        label_rows((), {"sex": "male"}, 1)


@pytest.mark.parametrize(
    "label",
    [
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([2, 0]),  # diagnosis has two classes; its third embedding is that of missing labels
        torch.tensor([0, -2]),
    ],
)
def test_labels_of_another_shape_or_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match="label must be"):
        label_rows(ATTRIBUTES, label, 2)


def test_priors_of_other_levels_are_refused(models):
    model, (top, bottom) = models
    other_k = Prior(replace(bottom.config, num_embeddings=9))
    other_shape = Prior(replace(top.config, height=4))
    for priors in ([bottom, top], [top], [top, bottom, bottom], [top, other_k], [other_shape, bottom], []):
        with pytest.raises(ValueError, match="levels"):
            sample(model, priors, num=1)
    unconditioned = replace(bottom.config, condition_levels=(), condition_shapes=(), condition_num_embeddings=())
    with pytest.raises(ValueError, match="condition"):
        sample(model, [top, Prior(unconditioned).eval()], num=1)
    check_priors(model, [top, bottom])


def test_progress_counts_every_code(models):
    model, priors = models
    made: list[int] = []
    sample_chunk(model, priors, range(3), torch.full((3, 2), -1), progress=made.append)
    assert made == [3 * 4] * 2 + [3 * 8] * 4  # row by row, of both levels


def test_reloaded_models_give_the_same_samples(models, tmp_path):
    model, priors = models
    model.save_pretrained(tmp_path / "vqvae")
    for prior in priors:
        prior.save_pretrained(tmp_path / prior.config.level)
    loaded = [Prior.from_pretrained(tmp_path / level) for level in model.levels]
    again = sample(VQVAE.from_pretrained(tmp_path / "vqvae"), loaded, num=3, chunk_size=4)
    assert equal(again, sample(model, priors, num=3, chunk_size=4))


def test_labels_that_were_not_asked_for_are_drawn_as_training_images_have_them():
    known = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0], [1, -1]])
    drawn = draw_labels(torch.full((4000, 2), -1), known, seed=3)
    # Tolerances are four standard deviations.
    for row in known.unique(dim=0):
        share = float((drawn == row).all(1).double().mean())
        assert share == pytest.approx(float((known == row).all(1).double().mean()), abs=0.03)
    some = draw_labels(torch.tensor([[0, -1]]).expand(1000, 2), known, seed=3)
    assert (some[:, 0] == 0).all()
    assert float((some[:, 1] == 1).double().mean()) == pytest.approx(2 / 3, abs=0.06)
    assert torch.equal(draw_labels(torch.full((7, 2), -1), known, seed=3), drawn[:7])
    none_like_it = torch.tensor([[1, 1]])
    assert torch.equal(draw_labels(none_like_it, known, seed=0), none_like_it)


def test_guidance_of_one_is_no_guidance(models):
    model, priors = models
    label = {"diagnosis": "atrophy"}
    assert equal(sample(model, priors, 5, label, seed=2, guidance=1.0), sample(model, priors, 5, label, seed=2))


@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_guidance_draws_from_mixed_logits(models, weight):
    """Each code drawn is the one that the mixed logits of both full forms give for its random number."""
    model, priors = models
    label = torch.tensor([[1, 2]]).expand(4, -1)
    made = sample(model, priors, 4, label, seed=3, guidance=weight, chunk_size=4)
    for i, prior in enumerate(priors):
        with_it, without = (prior(made.codes[i], made.codes[:i], rows).double() for rows in (label, label * 0 - 1))
        cumulative = (without + weight * (with_it - without)).softmax(1).cumsum(1)
        uniform = np.stack([np.random.default_rng([3, row, i]).random(made.codes[i][0].numel()) for row in range(4)])
        expected = (cumulative <= torch.from_numpy(uniform).view(4, 1, *made.codes[i].shape[1:])).sum(1)
        assert float((expected == made.codes[i]).double().mean()) > 0.97  # the two forms round differently
        nll = F.cross_entropy(with_it, made.codes[i], reduction="none").flatten(1).mean(1)
        torch.testing.assert_close(made.nll[:, i], nll, atol=1e-4, rtol=1e-4)


def test_guidance_needs_a_label(models):
    with pytest.raises(ValueError, match="guidance"):
        Sharpness(guidance=-1.0)
    model, priors = tiny_models(labelled=False)
    with pytest.raises(ValueError, match="needs a label"):
        sample(model, priors, 2, guidance=2.0)


@pytest.fixture(scope="module")
def guides(models) -> list[Prior]:
    """The priors with other weights, as if early in their training."""
    weak = []
    for i, prior in enumerate(models[1]):
        torch.manual_seed(10 + i)
        other = Prior(prior.config).eval()
        other.load_state_dict({name: t + 0.3 * torch.randn_like(t) for name, t in prior.state_dict().items()})
        weak.append(other)
    return weak


@pytest.mark.parametrize(("weight", "label_weight", "min_p"), [(2.0, 1.0, 0.0), (1.5, 2.0, 0.2), (0.0, 1.0, 0.0)])
def test_autoguidance_draws_from_the_logits_of_prior_and_guide(models, guides, weight, label_weight, min_p):
    """Each code drawn is the one that the logits of the full forms, mixed by hand, give for its random number."""
    model, priors = models
    label = torch.tensor([[1, 2]]).expand(4, -1)
    settings = {"autoguidance": weight, "guides": guides, "guidance": label_weight, "min_p": min_p}
    made = sample(model, priors, 4, label, seed=3, chunk_size=4, **settings)
    for i, (prior, guide) in enumerate(zip(priors, guides, strict=True)):
        own, without = (prior(made.codes[i], made.codes[:i], rows).double() for rows in (label, label * 0 - 1))
        weak = guide(made.codes[i], made.codes[:i], label).double()
        p = (own + (weight - 1) * (own - weak) + (label_weight - 1) * (own - without)).softmax(1)
        p = torch.where(own.softmax(1) >= min_p * own.softmax(1).amax(1, keepdim=True), p, 0.0)
        cumulative = p.cumsum(1) / p.sum(1, keepdim=True)
        uniform = np.stack([np.random.default_rng([3, row, i]).random(made.codes[i][0].numel()) for row in range(4)])
        expected = (cumulative <= torch.from_numpy(uniform).view(4, 1, *made.codes[i].shape[1:])).sum(1)
        assert float((expected == made.codes[i]).double().mean()) > 0.97  # the two forms round differently
        nll = F.cross_entropy(own, made.codes[i], reduction="none").flatten(1).mean(1)
        torch.testing.assert_close(made.nll[:, i], nll, atol=1e-4, rtol=1e-4)


def test_autoguidance_of_one_is_no_guidance(models, guides):
    model, priors = models
    plain = sample(model, priors, 5, seed=2)
    assert equal(sample(model, priors, 5, seed=2, autoguidance=1.0, guides=guides), plain)
    assert equal(sample(model, priors, 5, seed=2, autoguidance=3.0, guides=priors), plain), "a guide of equal weights"
    assert not equal(sample(model, priors, 5, seed=2, autoguidance=3.0, guides=guides), plain)


def test_autoguidance_needs_a_guide_of_the_same_maps(models, guides):
    model, priors = models
    with pytest.raises(ValueError, match="needs a guide"):
        sample(model, priors, 2, autoguidance=2.0)
    with pytest.raises(ValueError, match="autoguidance >= 0"):
        Sharpness(autoguidance=-1.0, guide=priors[0])
    with pytest.raises(ValueError, match="guide needs 1 value or 2"):
        sample(model, priors, 2, autoguidance=2.0, guides=[*guides, guides[0]])
    with pytest.raises(ValueError, match="other maps"):
        sample(model, priors, 2, autoguidance=2.0, guides=guides[::-1])


def test_min_p_keeps_codes_by_their_share_of_the_most_probable(models):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = log_probabilities(logits, Sharpness(min_p=0.3)).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.5, 0.3, 0.15, 0.0]]).double() / 0.95)
    mixed = torch.tensor([[0.0, 0.0, 0.0, 9.0]])
    kept = log_probabilities(mixed, Sharpness(min_p=0.5), own=logits).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.5, 0.5, 0.0, 0.0]]).double())
    with pytest.raises(ValueError, match="min_p"):
        Sharpness(min_p=1.5)
    model, priors = models
    greedy = sample(model, priors, 2, seed=1, min_p=1.0)
    for level, prior in enumerate(priors):
        logits = prior(greedy.codes[level], greedy.codes[:level])
        assert float((logits.argmax(1) == greedy.codes[level]).double().mean()) > 0.97
