"""The quantiser against NumPy: nearest codes, gradients, moving averages, start and revival of the codebook."""

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import clustering
from vqvae2.clustering import affine_of, kmeans, nearest_codes
from vqvae2.quantizer import Quantized, QuantizerConfig, VectorQuantizer

Array = NDArray[np.float64]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(k: int, d: int, seed: int = 0, **settings: float) -> VectorQuantizer:
    """A quantiser in double precision with a random codebook, and without revival unless asked for."""
    torch.manual_seed(seed)
    rate = settings.pop("rate_weight", 0.0)
    config = QuantizerConfig(**{"init_vectors": 0, "revival_threshold": 0.0, **settings})
    return VectorQuantizer(k, d, config, rate).double()


def step(quantizer: VectorQuantizer, *batches: Tensor) -> Quantized:
    """One step of a training: passes over its micro-batches, and an update."""
    outs = [quantizer(x) for x in batches]
    quantizer.update()
    return outs[-1]


def brute_force(x: Tensor, codebook: Tensor) -> tuple[NDArray[np.int64], Array]:
    distances = ((x.numpy()[:, None] - codebook.numpy()[None]) ** 2).sum(-1)
    return distances.argmin(1), distances.min(1)


class Recurrence:
    """The moving averages written out in NumPy."""

    def __init__(self, codebook: Tensor, decay: float, epsilon: float) -> None:
        self.e: Array = codebook.numpy().copy()
        self.m = self.e.copy()
        self.n = np.ones(len(self.e))
        self.decay, self.epsilon, self.t = decay, epsilon, 0

    def update(self, x: Array) -> None:
        codes = ((x[:, None] - self.e[None]) ** 2).sum(-1).argmin(1)
        gamma = min(self.decay, max((1 + self.t) / (10 + self.t), 1 - len(x) / (4 * len(self.e))))
        for i in range(len(self.e)):
            assigned = x[codes == i]
            self.n[i] = gamma * self.n[i] + (1 - gamma) * len(assigned)
            self.m[i] = gamma * self.m[i] + (1 - gamma) * assigned.sum(0)
        total = self.n.sum()
        smoothed = (self.n + self.epsilon) / (total + len(self.n) * self.epsilon) * total
        self.e = self.m / smoothed[:, None]
        self.t += 1


def test_nearest_codes_and_errors_equal_brute_force():
    x, codebook = normal(60, 7), normal(13, 7, seed=1)
    codes, errors = nearest_codes(x, codebook)
    expected_codes, expected_errors = brute_force(x, codebook)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-12)

    quantizer = plain(13, 7).eval()
    quantizer.embedding.copy_(codebook)
    out = quantizer(x.view(3, 4, 5, 7))
    np.testing.assert_array_equal(out.codes.flatten(), expected_codes)
    assert out.codes.dtype == torch.int64
    torch.testing.assert_close(out.vectors.view(60, 7), codebook[torch.from_numpy(expected_codes)])


@pytest.mark.parametrize("chunk", [1, 7, 59, 60, 1000])
def test_chunked_equals_unchunked(chunk):
    x, codebook = normal(60, 7), normal(13, 7, seed=1)
    codes, errors = nearest_codes(x, codebook)
    chunked_codes, chunked_errors = nearest_codes(x, codebook, chunk)
    assert torch.equal(chunked_codes, codes)
    torch.testing.assert_close(chunked_errors, errors)


def test_distances_are_never_held_all_at_once(monkeypatch):
    x, codebook = normal(60, 7), normal(13, 7, seed=1)
    sizes, addmm = [], torch.addmm

    def spy(*args: Tensor, **kwargs: float) -> Tensor:
        out = addmm(*args, **kwargs)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", spy)
    monkeypatch.setattr(clustering, "_CPU_ELEMENTS", 100)
    codes, _ = nearest_codes(x, codebook)
    np.testing.assert_array_equal(codes, brute_force(x, codebook)[0])
    assert max(sizes) <= 100
    assert sum(sizes) == 60 * 13


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_gradient_is_straight_through_plus_commitment(beta):
    quantizer = plain(6, 3, commitment_cost=beta).eval()
    x = normal(4, 5, 3, seed=2).requires_grad_()
    out = quantizer(x)
    nearest = quantizer.embedding[out.codes]
    torch.testing.assert_close(out.loss, beta * ((x - nearest) ** 2).mean())

    weights = normal(4, 5, 3, seed=3)
    ((out.vectors * weights).sum() + out.loss).backward()
    # Identity for what comes from above, 2 beta (x - e) / (number of elements) for the commitment, no parameter.
    torch.testing.assert_close(x.grad, weights + beta * 2 * (x.detach() - nearest) / x.numel())
    assert not any(True for _ in quantizer.parameters())


@pytest.mark.parametrize("count", [40, 12, 4])
def test_codebook_follows_the_recurrence_written_by_hand(count):
    # A strong epsilon, so that the smoothing shows; a decay that the ramp (1 + t) / (10 + t) passes at t = 13. The
    # least window is under the ramp's for 40 vectors, over it at first for 12, and over the decay's for 4.
    quantizer = plain(5, 3, decay=0.6, epsilon=0.3)
    expected = Recurrence(quantizer.embedding, decay=0.6, epsilon=0.3)
    for t in range(18):
        x = normal(count, 3, seed=10 + t) + t / 10
        step(quantizer, x.view(4, -1, 3))
        expected.update(x.numpy())
        np.testing.assert_allclose(quantizer.cluster_size, expected.n, rtol=1e-10)
        np.testing.assert_allclose(quantizer.embedding_sum, expected.m, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(quantizer.embedding, expected.e, rtol=1e-9, atol=1e-12)
    assert int(quantizer.updates) == 18


def test_codebook_moves_in_training_mode_only():
    quantizer = plain(5, 3).eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(normal(40, 3))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    step(quantizer.train(), normal(40, 3))
    assert not any(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_a_pass_without_gradients_or_in_evaluation_mode_leaves_nothing_to_update():
    quantizer = plain(5, 3)
    before = copy.deepcopy(quantizer.state_dict())
    with torch.no_grad():
        quantizer(normal(40, 3))
    quantizer.eval()(normal(40, 3))
    quantizer.train().update()
    assert quantizer.pending == []
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("init_vectors", [0, 100])
def test_micro_batches_move_the_codebook_as_one_large_batch_does(init_vectors):
    # Of unequal sizes. Half of the codes are revived in a step, by draws over all micro-batches.
    def quantizer() -> VectorQuantizer:
        return plain(24, 3, init_vectors=init_vectors, revival_threshold=0.5)

    large, small = quantizer(), quantizer()
    for t in range(6):
        x = normal(60, 3, seed=t)
        step(large, x)
        step(small, *x.split([7, 30, 23]))
        assert all(torch.equal(value, small.state_dict()[name]) for name, value in large.state_dict().items())
    assert int(large.updates) == (6 if init_vectors == 0 else 4)


@pytest.mark.parametrize(
    "setting",
    [
        {"decay": 0.3},
        {"commitment_cost": 1.0},
        {"epsilon": 0.5},
        {"revival_threshold": 0.5},
        {"init_vectors": 0},
        {"init_vectors": 40},
        {"normalize": "layer"},
    ],
    ids=lambda setting: "-".join(map(str, *setting.items())),
)
def test_every_setting_changes_the_result(setting):
    def train(**settings: float) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        quantizer = VectorQuantizer(16, 3, QuantizerConfig(**{"init_vectors": 80, **settings}))
        losses = [step(quantizer, normal(40, 3, seed=t, dtype=torch.float32)).loss for t in range(12)]
        return quantizer.embedding, losses[-1]

    (embedding, loss), (other_embedding, other_loss) = train(), train(**setting)
    assert not torch.equal(loss, other_loss)
    if "commitment_cost" not in setting:
        assert not torch.equal(embedding, other_embedding)


def test_start_finds_every_cluster():
    centres = 20 * normal(12, 4)
    x = centres.repeat(40, 1) + 0.1 * normal(480, 4, seed=1)
    quantizer = VectorQuantizer(12, 4, QuantizerConfig(init_vectors=480)).double()
    step(quantizer, x.view(48, 10, 4))
    assert quantizer.initialized
    nearest, errors = brute_force(quantizer.embedding, centres)
    # One code for each cluster, at its mean: the mean of 40 vectors of spread 0.1 lies within a few hundredths.
    assert sorted(nearest) == list(range(12))
    assert errors.max() < 0.1**2
    torch.testing.assert_close(quantizer.cluster_size, torch.full((12,), 40.0, dtype=torch.float64))

    centres_again, counts = kmeans(x, 12)
    torch.testing.assert_close(kmeans(x, 12)[0], centres_again, rtol=0, atol=0)
    assert counts.tolist() == [40] * 12


def test_an_affine_map_gives_standard_normal_vectors_the_mean_and_covariance_of_others():
    x = normal(100, 4) @ normal(4, 4, seed=1) + 3
    x[:, 3] = x[:, 0] - x[:, 1]  # three directions alone, and numbers below 0 among the rounded variances
    root, mean = affine_of(x)
    np.testing.assert_allclose(mean, x.numpy().mean(0), rtol=1e-12)
    # The covariance of z W is W^T W.
    np.testing.assert_allclose(root.T @ root, np.cov(x.numpy().T, bias=True), atol=1e-12)


def test_start_is_gathered_over_several_batches_which_pass_through():
    quantizer = VectorQuantizer(16, 3, QuantizerConfig(init_vectors=100)).double()
    for t in range(3):
        assert not quantizer.initialized
        x = normal(4, 10, 3, seed=t).requires_grad_()
        out = step(quantizer, x)
        assert torch.equal(out.vectors, x)
        assert out.loss == 0
        assert torch.equal(out.codes, torch.zeros(4, 10, dtype=torch.int64))
        out.vectors.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
    assert quantizer.initialized
    assert len(quantizer.embedding.unique(dim=0)) == 16
    out = quantizer(normal(4, 10, 3, seed=3))
    assert out.loss > 0
    assert len(out.codes.unique()) > 8


def test_start_gathers_at_least_as_many_vectors_as_there_are_codes():
    quantizer = VectorQuantizer(32, 3, QuantizerConfig(init_vectors=1))
    step(quantizer, normal(31, 3, dtype=torch.float32))
    assert not quantizer.initialized
    step(quantizer, normal(1, 3, seed=1, dtype=torch.float32))
    assert quantizer.initialized
    with pytest.raises(ValueError, match="32"):
        kmeans(normal(31, 3), 32)


def test_small_batches_keep_the_start():
    """32 vectors for 128 codes: with the ramp alone the error rose from 5.0 to 13.1 at the second update."""
    centres, count = 3 * normal(128, 5), 0

    def draw(vectors: int) -> Tensor:
        nonlocal count
        count += 1
        pick = torch.randint(128, (vectors,), generator=torch.Generator().manual_seed(count))
        return centres[pick] + normal(vectors, 5, seed=1000 + count)

    def error() -> float:
        return brute_force(held_out, quantizer.embedding)[1].mean()

    held_out = draw(1000)
    quantizer = VectorQuantizer(128, 5, QuantizerConfig(init_vectors=4096)).double()
    while not quantizer.initialized:
        step(quantizer, draw(32))
    start = error()
    assert start < 5.5  # the clusters' own centres: 5
    for _ in range(60):
        step(quantizer, draw(32))
        assert error() < 1.1 * start


def one_dimensional(k: int, **settings: float) -> VectorQuantizer:
    """Code 0 at the origin, the others dead, where no input ever comes."""
    quantizer = plain(k, 1, **{"revival_threshold": 0.05, **settings})
    quantizer.embedding.copy_(torch.cat([torch.zeros(1, 1), torch.full((k - 1, 1), 1e3)]))
    quantizer.embedding_sum.copy_(quantizer.embedding)
    quantizer.cluster_size[1:] = 0
    return quantizer


def test_a_dead_code_moves_to_an_input_drawn_in_proportion_to_its_error():
    # Errors 0, 1 and 4: integers, so that the distances are exact.
    x = torch.cat([torch.zeros(98, 1), torch.ones(1, 1), torch.full((1, 1), -2.0)]).double()
    quantizer, count, moved = one_dimensional(2), 400, []
    for t in range(count):
        other = copy.deepcopy(quantizer)
        other.updates.fill_(t)
        other.load_state_dict(other.state_dict())
        step(other, x)
        moved.append(float(other.embedding[1]))
        torch.testing.assert_close(other.embedding_sum[1], other.embedding[1] * other.cluster_size[1])
    assert set(moved) == {1.0, -2.0}
    share = moved.count(-2.0) / count
    assert abs(share - 4 / 5) < 4 * (0.8 * 0.2 / count) ** 0.5  # four standard deviations


@pytest.mark.parametrize("count", [500, 60, 41, 30])
def test_no_two_dead_codes_move_to_the_same_input(count):
    quantizer = one_dimensional(41)
    x = normal(count, 1)
    step(quantizer, x)
    revived = quantizer.embedding[1:][torch.isin(quantizer.embedding[1:], x)]
    assert len(revived) == len(revived.unique()) == min(count, 40), "of too few inputs the other codes wait"


def test_inputs_without_an_error_are_taken_only_when_no_other_is_left():
    quantizer = one_dimensional(5)
    step(quantizer, torch.cat([torch.zeros(50, 1), torch.tensor([[1.0], [-1.0], [2.0]])]).double())
    assert sorted(quantizer.embedding[1:, 0].tolist()) == [-1.0, 0.0, 1.0, 2.0]


def test_dead_codes_move_to_current_inputs_and_live_ones_stay():
    x = normal(50, 3) + 5
    quantizer, without = (plain(20, 3, revival_threshold=threshold) for threshold in (0.05, 0.0))
    old = normal(10, 3, seed=1)
    for q in (quantizer, without):
        q.embedding.copy_(torch.cat([normal(10, 3, seed=2) + 5, old - 100]))
        q.embedding_sum.copy_(q.embedding)
        q.cluster_size[10:] = 0
        step(q, x)
    is_input = (quantizer.embedding[:, None] == x[None]).all(-1).any(1)
    dead = without.cluster_size < 0.05 * without.cluster_size.mean()
    assert dead[10:].all()
    assert torch.equal(is_input, dead)
    assert torch.equal(quantizer.embedding[~dead], without.embedding[~dead])
    assert torch.equal(quantizer.cluster_size[~dead], without.cluster_size[~dead])
    assert (without.embedding[10:] < -50).all()


def test_a_revived_code_is_used_at_the_next_call():
    quantizer = one_dimensional(2)
    x = torch.cat([torch.zeros(30, 1), torch.full((30, 1), 8.0)]).double()
    assert (step(quantizer, x).codes == 0).all()
    assert quantizer(x).codes.unique().tolist() == [0, 1]


def test_draws_do_not_depend_on_the_global_random_state_and_survive_a_restart():
    def batches(start: int) -> list[Tensor]:
        return [normal(30, 3, seed=t) * (1 + t % 3) for t in range(start, 12)]

    torch.manual_seed(0)
    first = VectorQuantizer(24, 3, QuantizerConfig(init_vectors=60, revival_threshold=0.5)).double()
    second = copy.deepcopy(first)
    for x in batches(0):
        step(first, x)
    for t, x in enumerate(batches(0)):
        torch.manual_seed(100 + t)
        step(second, x)
        if t == 6:
            state = copy.deepcopy(second.state_dict())
    resumed = VectorQuantizer(24, 3, QuantizerConfig(init_vectors=60, revival_threshold=0.5)).double()
    resumed.load_state_dict(state)
    for x in batches(7):
        step(resumed, x)
    for other in (second, resumed):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_statistics_stay_in_single_precision_under_bfloat16():
    torch.manual_seed(0)
    wide = VectorQuantizer(8, 4, QuantizerConfig(init_vectors=0))
    narrow = copy.deepcopy(wide)
    for t in range(5):
        # More vectors than bfloat16 can count: its integers end at 256.
        x = normal(2000, 4, seed=t, dtype=torch.bfloat16)
        nearest, _ = brute_force(x.double(), narrow.embedding.double())
        expected = step(wide, x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = step(narrow, x)
        assert out.vectors.dtype == torch.bfloat16
        assert out.loss.dtype == torch.float32
        assert torch.equal(out.codes, expected.codes)
        # fp32 may decide a near-tie otherwise; bfloat16 distances would decide one in fifty so.
        assert (out.codes.numpy() == nearest).mean() > 0.998
    for name, value in narrow.state_dict().items():
        assert torch.equal(value, wide.state_dict()[name])
        assert value.dtype == (torch.int64 if name == "updates" else torch.float32)


def test_statistics_of_a_double_model_are_double():
    quantizer = VectorQuantizer(8, 4, QuantizerConfig(init_vectors=50)).double()
    for t in range(3):
        out = step(quantizer, normal(50, 4, seed=t))
    assert out.vectors.dtype == out.loss.dtype == torch.float64
    for name in ("embedding", "cluster_size", "embedding_sum"):
        assert getattr(quantizer, name).dtype == torch.float64


def test_state_dict_carries_whether_the_codebook_is_initialized():
    fresh, trained = (VectorQuantizer(8, 4, QuantizerConfig(init_vectors=20)) for _ in range(2))
    start = copy.deepcopy(fresh.state_dict())
    for t in range(3):
        step(trained, normal(20, 4, seed=t, dtype=torch.float32))
    fresh.load_state_dict(trained.state_dict())
    assert fresh.initialized
    x = normal(20, 4, seed=3, dtype=torch.float32)
    a, b = step(fresh, x), step(trained, x)  # in training mode: the update after it agrees as well
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(fresh.embedding, trained.embedding)
    assert int(fresh.updates) == 3

    fresh.load_state_dict(start)
    assert not fresh.initialized


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("init_vectors", [0, 20])
def test_empty_batch_is_quantised_to_nothing(training, init_vectors):
    quantizer = VectorQuantizer(8, 4, QuantizerConfig(init_vectors=init_vectors)).train(training)
    before = copy.deepcopy(quantizer.state_dict())
    x = torch.zeros(0, 3, 4, requires_grad=True)
    out = quantizer(x)
    assert out.vectors.shape == (0, 3, 4)
    assert out.codes.shape == (0, 3)
    assert out.loss == 0
    (out.vectors.sum() + out.loss).backward()
    quantizer.update()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_wrong_dimension_is_refused():
    with pytest.raises(ValueError, match=r"4 dimensions.*\(2, 5\)"):
        VectorQuantizer(8, 4)(torch.zeros(2, 5))


@pytest.mark.parametrize(
    "setting",
    [
        {"decay": 1.0},
        {"decay": -0.1},
        {"commitment_cost": -1.0},
        {"epsilon": 0.0},
        {"init_vectors": -1},
        {"revival_threshold": -0.1},
        {"normalize": "batch"},
        {"codebook": "kmeans"},
        {"estimator": "gumbel"},
    ],
    ids=lambda setting: "-".join(map(str, *setting.items())),
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=str(*setting.values())):
        QuantizerConfig(**setting)


@pytest.mark.parametrize("setting", [{"num_embeddings": 0}, {"embedding_dim": 0}, {"rate_weight": -1.0}])
def test_sizes_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=str(*setting.values())):
        VectorQuantizer(**{"num_embeddings": 8, "embedding_dim": 4, **setting})


def test_layer_normalisation_is_that_of_numpy():
    quantizer = plain(8, 5, normalize="layer").eval()
    x = normal(30, 5) * 3 + 2
    mean, variance = x.numpy().mean(1, keepdims=True), x.numpy().var(1, keepdims=True)
    normed = torch.from_numpy((x.numpy() - mean) / np.sqrt(variance + 1e-5))
    out = quantizer(x)
    codes, errors = brute_force(normed, quantizer.embedding)
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.loss, 0.25 * errors.mean() / 5, rtol=1e-10)
    # Brightness and contrast of a vector do not count (but for the 1e-5 under the root).
    assert torch.equal(quantizer(x * 7 + 11).codes, out.codes)
    assert not torch.equal(plain(8, 5).eval()(x).codes, out.codes)


def test_mean_embedding_is_weighted_by_usage():
    quantizer = plain(6, 3)
    step(quantizer, normal(50, 3))
    weights = quantizer.cluster_size.numpy()
    expected = np.average(quantizer.embedding.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(quantizer.mean_embedding(), expected, rtol=1e-12)
    codes = torch.tensor([[0, 5], [3, 3]])
    assert torch.equal(quantizer.lookup(codes), quantizer.embedding[codes])


def test_the_entropy_constrained_choice_weighs_error_against_information():
    codebook, x = normal(6, 3), normal(50, 3, seed=1)
    cost = torch.linspace(0, 2, 6)
    codes, errors = nearest_codes(x, codebook, chunk=7, cost=cost)
    distances = ((x[:, None] - codebook) ** 2).sum(2)
    assert torch.equal(codes, (distances + cost).argmin(1))
    torch.testing.assert_close(errors, distances[torch.arange(50), codes])


def test_a_rate_weight_lowers_the_entropy_of_the_codes_and_0_changes_nothing():
    x = normal(4096, 2, dtype=torch.float32)
    entropies = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(16, 2, QuantizerConfig(init_vectors=256), weight).train()
        for part in x.split(256) * 4:
            quantizer(part)
            quantizer.update()
        codes = quantizer.eval()(x).codes
        share = torch.bincount(codes, minlength=16) / len(x)
        entropies.append(-(share * share.clamp_min(1e-12).log()).sum().item())
        information = -(quantizer.cluster_size / quantizer.cluster_size.sum()).clamp_min(1e-3 / 16).log()
        distances = torch.cdist(x, quantizer.embedding).square()
        assert torch.equal(codes, (distances + weight * information).argmin(1))
    assert entropies[1] < entropies[0] - 0.1


@pytest.mark.parametrize("init_vectors", [0, 8])
def test_a_loop_that_never_updates_the_codebook_is_told_so(init_vectors):
    quantizer = plain(4, 2, init_vectors=init_vectors)
    step(quantizer, *normal(1000, 3, 2))  # so many batches may be accumulated
    for x in normal(1000, 3, 2):
        quantizer(x)
    with pytest.raises(RuntimeError, match=r"1,000 .* update_codebooks\(\)"):
        quantizer(normal(3, 2))
