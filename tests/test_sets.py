"""Distances between sets of features: naive sums over pairs, a known expectation, torchvision's own forward pass."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from random_weights import WEIGHTS, random_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision import models
from torchvision.transforms.functional import normalize

from vqvae2.errors import UserError
from vqvae2.metrics import (
    features,
    frechet_distance,
    kernel_distance,
    named_features,
    nearest,
    neighbourhoods,
    neighbours,
)
from vqvae2.metrics.pretrained import INCEPTION_WEIGHTS


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def test_kernel_distance_equals_sums_over_pairs_and_jackknife_by_loops():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 5)), rng.normal(0.3, 1.5, size=(8, 5))

    def naive(x, y):
        within = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        across = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        return within + across - 2 * np.mean([kernel(a, b) for a in x for b in y])

    value, error = kernel_distance(torch.from_numpy(x), torch.from_numpy(y), groups=4)
    assert value == pytest.approx(naive(x, y))
    left = [naive(x[np.arange(11) * 4 // 11 != g], y[np.arange(8) // 2 != g]) for g in range(4)]
    assert error == pytest.approx(math.sqrt(3 / 4 * np.sum((left - np.mean(left)) ** 2)))
    assert math.isnan(kernel_distance(torch.from_numpy(x), torch.from_numpy(y), groups=5)[1])


def test_kernel_distance_has_no_bias_and_an_honest_standard_error():
    generator = torch.Generator().manual_seed(1)
    draws = [
        [torch.randn(n, 3, generator=generator) + shift for n, shift in ((40, 0.0), (60, 0.0), (60, 0.5))]
        for _ in range(200)
    ]
    d, shift = 3, 0.5  # the distance of the distributions themselves, by as many pairs as it takes
    far = torch.randn(400_000, 2, d, generator=generator, dtype=torch.float64)

    def expected(a: float, b: float) -> float:
        return float(((((far[:, 0] + a) * (far[:, 1] + b)).sum(1) / d + 1) ** 3).mean())

    true = {0.0: 0.0, shift: expected(0, 0) + expected(shift, shift) - 2 * expected(0, shift)}
    for column, distance in ((1, 0.0), (2, true[shift])):
        found = torch.tensor([kernel_distance(x[0], x[column]) for x in draws], dtype=torch.float64)
        values, errors = found.unbind(1)
        assert abs(float(values.mean()) - distance) < 4 * float(values.std()) / math.sqrt(len(draws))
        # Of equal distributions the first-order term of the variance is zero, and the jackknife doubles the second.
        ratio = float(errors.square().mean().sqrt() / values.std())
        assert 0.8 < ratio < 1.3 if column == 2 else 1.2 < ratio < 1.7


def test_the_frechet_distance_equals_its_formula_with_a_matrix_root():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    for n, m in ((40, 60), (4, 3)):  # with few rows the covariances are singular
        x, y = rng.normal(size=(n, 5)), rng.normal(0.4, 1.0, size=(m, 5)) @ mix
        a, b = np.cov(x.T), np.cov(y.T)
        root = np.real(scipy.linalg.sqrtm(a @ b + 1e-14 * np.eye(5)))
        formula = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)
        assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(formula, abs=1e-5)


def test_the_frechet_distance_of_a_shift_is_its_square_and_of_a_scale_that_of_the_deviations():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x -= x.mean(0)
    assert frechet_distance(x, x + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * float(x.var(0).sum()))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_distances_equal_torch_fidelitys_of_the_same_features(seed):
    rng = np.random.default_rng(seed)
    real = torch.from_numpy(rng.normal(size=(200, 12)))
    made = torch.from_numpy(rng.normal(0.3, 1.2, size=(200, 12)) @ (np.eye(12) + 0.1 * rng.normal(size=(12, 12))))
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (made, real)), verbose=False)
    assert frechet_distance(real, made) == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    kid = kid_features_to_metric(made, real, kid_subsets=1, kid_subset_size=200, verbose=False)
    assert kernel_distance(made, real)[0] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-6)
    shares = prc_features_to_metric(made, real, prc_neighborhood=3, verbose=False)
    found = neighbourhoods(real, made, k=3)
    assert 0.05 < found.precision < 0.95
    assert (found.precision, found.recall) == pytest.approx((shares["precision"], shares["recall"]), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbourhoods_equal_loops(k):
    rng = np.random.default_rng(3)
    real, made = rng.normal(size=(12, 2)), rng.normal(0.7, 0.6, size=(12, 2))

    def reach(rows):
        return [sorted(np.linalg.norm(a - b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    reach_real, reach_made = reach(real), reach(made)
    found = neighbourhoods(torch.from_numpy(real), torch.from_numpy(made), k)
    inside = [[np.linalg.norm(a - b) <= r for b, r in zip(real, reach_real, strict=True)] for a in made]
    back = [any(np.linalg.norm(a - b) <= r for b, r in zip(made, reach_made, strict=True)) for a in real]
    assert found.precision == np.mean([any(row) for row in inside])
    assert found.recall == np.mean(back)
    assert found.density == pytest.approx(np.sum(inside) / (k * 12))
    assert found.coverage == np.mean(np.any(inside, 0))
    both = np.concatenate([real, made])
    nearest = [min((np.linalg.norm(a - b), j) for j, b in enumerate(both) if j != i)[1] for i, a in enumerate(both)]
    assert found.two_sample == np.mean([(i < 12) == (j < 12) for i, j in enumerate(nearest)])


def test_neighbourhoods_tell_alike_apart_copied_and_missing_sets():
    generator = torch.Generator().manual_seed(0)
    real, alike = torch.randn(2, 200, 4, generator=generator)
    found = neighbourhoods(real, alike)
    assert min(found.precision, found.recall, found.coverage) > 0.85
    assert abs(found.density - 1) < 0.15
    assert abs(found.two_sample - 0.5) < 0.08
    apart = neighbourhoods(real, alike + 30)
    assert (apart.precision, apart.recall, apart.density, apart.coverage, apart.two_sample) == (0, 0, 0, 0, 1)
    assert neighbourhoods(real, real.clone()).two_sample == 0
    half = torch.cat([2 * alike[:, :1].abs(), alike[:, 1:]], 1)
    missing = neighbourhoods(real, half)
    assert missing.coverage < found.coverage - 0.1
    assert missing.recall < found.recall - 0.1


def test_neighbourhoods_refuse_sets_of_other_sizes_or_too_few():
    for x, y in (((5, 2), (6, 2)), ((3, 2), (3, 2)), ((5, 2), (5, 3))):
        with pytest.raises(ValueError, match="neighbourhoods"):
            neighbourhoods(torch.zeros(x), torch.zeros(y))


def test_pairs_that_belong_together_can_be_left_out():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(20, 5))
    x = y + 0.1 * rng.normal(size=(20, 5))
    others = [(i, j) for i in range(20) for j in range(20) if i != j]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) - 2 * kernel(x[i], y[j]) for i, j in others) / len(others)
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y), paired=True)[0] == pytest.approx(expected)
    assert kernel_distance(torch.from_numpy(x), torch.from_numpy(y))[0] < expected
    with pytest.raises(ValueError, match="pairs"):
        kernel_distance(torch.zeros(5, 2), torch.zeros(6, 2), paired=True)


@pytest.mark.parametrize(("x", "y"), [((3, 4), (3, 5)), ((1, 4), (3, 4)), ((3, 4, 1), (3, 4, 1))])
def test_kernel_distance_refuses_other_shapes(x, y):
    with pytest.raises(ValueError, match="kernel_distance"):
        kernel_distance(torch.zeros(x), torch.zeros(y))


def test_features_are_the_pooled_ones_that_torchvision_classifies(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = random_weights(tmp_path)
    images = torch.rand(3, 1, 40, 36, generator=torch.Generator().manual_seed(2)) * 2 - 1
    network.classifier = torch.nn.Identity()
    rgb = normalize(((images + 1) / 2).repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    state = torch.get_rng_state()
    found = features(images, chunk=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, network(rgb), atol=1e-5, rtol=1e-4)
    assert features(images[:0]).shape == (0, 1280)


@pytest.mark.parametrize(("name", "dims"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("vit_b_32", 768)])
def test_features_of_any_classifier_of_torchvision(tmp_path, monkeypatch, name, dims):
    """What its last linear layer takes: with that layer's weights it gives the classifier's logits."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"{name}'s weights are not there.*get_model"):
        named_features(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.get_model(name).eval()
    path = tmp_path / "hub" / "checkpoints" / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(2)) * 2 - 1
    rgb = normalize(((images + 1) / 2).repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    state = torch.get_rng_state()
    found = named_features(name)(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == (2, dims)
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        torch.testing.assert_close(last(found), network(rgb), atol=1e-4, rtol=1e-3)


def test_features_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "def means(images):\n    return images.mean((2, 3)).numpy()\n\ndef wrong(images):\n    return images\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = torch.rand(70, 1, 4, 4)
    torch.testing.assert_close(named_features("own_network:means")(images), images.mean((2, 3)))
    with pytest.raises(UserError, match=r"returned \(32, 1, 4, 4\) for 32 images"):
        named_features("own_network:wrong")(images)
    for name in ("own_network:absent", "no_such_module:f", "own_network:"):
        with pytest.raises(UserError, match="cannot be imported"):
            named_features(name)
    with pytest.raises(UserError, match="torchvision has no classifier resnet5000"):
        named_features("resnet5000")


def test_inceptions_features_are_those_of_torch_fidelity(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="Inception's weights are not there"):
        named_features("inception")
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)  # 90 MB of weights less to write
    path = tmp_path / "hub" / "checkpoints" / INCEPTION_WEIGHTS
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    torch.manual_seed(0)
    compute = named_features("inception")
    torch.manual_seed(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    whole = ((images + 1) * 127.5).round().byte().repeat(1, 3, 1, 1)
    torch.testing.assert_close(compute(images), network(whole)[0])


def test_missing_and_damaged_weights_are_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"are not there.*Download them: python -c"):
        features(torch.zeros(1, 1, 32, 32))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        features(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("bytes_are_fast", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("summed", [1 << 16, 10])
def test_the_nearest_is_exact_in_integers_and_in_floats(monkeypatch, bytes_are_fast, kind, summed):
    monkeypatch.setattr(neighbours, "_multiplies_bytes", lambda: bytes_are_fast)
    monkeypatch.setattr(neighbours, "_SUMMED", summed)
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (700, 1, 8, 8)).astype(kind)
    references[600] = references[17]  # the first of equals is taken
    references[0], references[1] = 0, 255
    queries = np.concatenate([references[[17, 3, 99, 0, 1]], rng.integers(0, 256, (20, 1, 8, 8)).astype(kind)])
    queries[1, 0, 0, 0] += kind(1)
    index, distance = nearest(queries, references, chunk=9)
    exact = np.sqrt(np.square(queries[:, None].astype(np.float64) - references[None]).sum((2, 3, 4)))
    assert index.tolist() == exact.argmin(1).tolist()
    np.testing.assert_allclose(distance, exact.min(1), rtol=1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_the_nearest_of_queries_that_are_no_integers_is_exact(kind):
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (700, 1, 8, 8)).astype(kind)
    references[600] = references[17]  # the first of equals is taken
    references[601:680] = references[3]
    references[601:680, 0, 0, 0] += np.arange(79).astype(kind) % 3
    queries = np.concatenate([references[[17, 3, 99]], rng.integers(0, 256, (20, 1, 8, 8)).astype(kind)])
    queries = queries.astype(np.float32) + rng.normal(0, 0.01, queries.shape).astype(np.float32)
    index, distance = nearest(torch.from_numpy(queries), references, chunk=64)
    exact = np.sqrt(np.square(queries[:, None] - references[None].astype(np.float64)).sum((2, 3, 4)))
    assert index.tolist() == exact.argmin(1).tolist()
    np.testing.assert_allclose(distance, exact.min(1), rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_gpu_finds_the_nearest_that_the_processor_finds(kind):
    references = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8)).astype(kind)
    queries = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (20, 1, 8, 8)).astype(kind))
    index, distance = nearest(queries.cuda(), references, chunk=64)
    known_index, known_distance = nearest(queries, references)
    assert torch.equal(index, known_index)
    torch.testing.assert_close(distance, known_distance)


def test_sums_of_products_of_bytes_do_not_overflow(monkeypatch):
    monkeypatch.setattr(neighbours, "_multiplies_bytes", lambda: True)
    far, near = np.zeros((1, 200_000), np.uint8), np.full((1, 200_000), 1, np.uint8)
    index, distance = nearest(np.zeros((1, 200_000), np.uint8), np.concatenate([near, far, near]))
    assert (index.tolist(), distance.tolist()) == ([1], [0])
