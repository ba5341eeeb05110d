"""Every figure against scikit-image, a naive loop or a closed form."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqvae2 import metrics


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 19, 26, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    strength = torch.tensor([0.05, 0.3, 2.0], dtype=torch.float64).view(3, 1, 1, 1)
    return x, x + strength * noise


def reference_ssim(x: torch.Tensor, y: torch.Tensor, data_range: float) -> list[float]:
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=data_range, **settings)
        for a, b in zip(x, y, strict=True)
    ]


@pytest.mark.parametrize("data_range", [2.0, 1.0, 255.0])
def test_ssim_equals_scikit_image(images, data_range):
    x, y = images
    np.testing.assert_allclose(metrics.ssim(x, y, data_range), reference_ssim(x, y, data_range), atol=1e-10)


def test_ssim_in_single_precision_stays_close_to_double_even_on_flat_images(images):
    x, y = images
    for a, b in [(x, y), (torch.full_like(x, -1.0), torch.full_like(x, -0.999))]:
        # fp32 loses about 1e-7 in mean of squares minus square of mean, against a constant C2 of 0.0036.
        np.testing.assert_allclose(metrics.ssim(a.float(), b.float()), metrics.ssim(a, b), atol=1e-4)


def test_ssim_of_equal_images_is_one_and_of_the_smallest_image_is_defined(images):
    x, _ = images
    torch.testing.assert_close(metrics.ssim(x, x), torch.ones(3, dtype=torch.float64))
    small = x[:, :, :11, :11]
    np.testing.assert_allclose(metrics.ssim(small, -small), reference_ssim(small, -small, 2.0), atol=1e-10)


def test_ssim_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 1, 12, 13, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.rand(1, 1, 12, 13, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(metrics.ssim, (x, y), fast_mode=True)


def test_ssim_ignores_a_surrounding_autocast(images):
    x, y = (t.float() for t in images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = metrics.ssim(x, y)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, metrics.ssim(x, y))
    assert metrics.ssim(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("a", "b"), [((1, 1, 16, 16), (1, 1, 16, 17)), ((1, 1, 10, 16), (1, 1, 10, 16))])
def test_ssim_refuses_unequal_and_too_small_images(a, b):
    with pytest.raises(ValueError, match="ssim"):
        metrics.ssim(torch.zeros(a), torch.zeros(b))


def test_image_scores_equal_closed_form_and_scikit_image(images):
    x, y = images
    scores = metrics.image_scores(x, y)
    assert {key: value.shape for key, value in scores.items()} == {"mse": (3,), "psnr_db": (3,), "ssim": (3,)}
    for i in range(3):
        a, b = x[i].numpy(), y[i].numpy()
        assert scores["mse"][i] == pytest.approx(np.square(a - b).sum() / a.size)
        assert scores["psnr_db"][i] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2.0))
    np.testing.assert_allclose(scores["ssim"], metrics.ssim(x, y), atol=1e-10)
    constant = metrics.image_scores(torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.2))
    assert constant["psnr_db"][0] == pytest.approx(20.0, abs=1e-5)  # 10 log10(4 / 0.04)
    assert metrics.image_scores(x, x)["psnr_db"][0] == math.inf


def test_perplexity_of_m_equal_codes_is_m_and_usage_their_share():
    for m in (1, 3, 8):
        counts = torch.tensor([5] * m + [0] * (8 - m))
        assert metrics.perplexity(counts) == pytest.approx(m)
        assert metrics.usage(counts) == m / 8
    assert metrics.perplexity([1, 3]) == pytest.approx(math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))
    assert math.isnan(metrics.perplexity([0, 0]))


def test_code_counts_equal_a_loop_over_a_window_of_batches():
    generator = torch.Generator().manual_seed(2)
    counts = metrics.CodeCounts(7)
    everywhere, foreground = np.zeros(7, int), np.zeros(7, int)
    for size in (4, 1, 0):
        codes = torch.randint(0, 6, (size, 3, 5), generator=generator)
        mask = torch.rand(codes.shape, generator=generator) < 0.4
        counts.update(codes, mask)
        for code, seen in zip(codes.flatten().tolist(), mask.flatten().tolist(), strict=True):
            everywhere[code] += 1
            foreground[code] += seen
    assert counts.counts.tolist() == everywhere.tolist()
    assert counts.counts_foreground.tolist() == foreground.tolist()
    assert counts.perplexity == metrics.perplexity(everywhere)
    assert counts.perplexity_foreground == metrics.perplexity(foreground)
    assert counts.usage == 6 / 7
    counts.reset()
    counts.update(torch.zeros(1, 2, 2, dtype=torch.int32))
    assert counts.counts_foreground.tolist() == [4, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="mask"):
        counts.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 3, dtype=torch.bool))


def test_a_codebook_collapses_by_what_it_says_of_the_foreground():
    air, tissue = torch.arange(8).repeat(4).view(1, 4, 8), torch.zeros(1, 4, 8, dtype=torch.int64)
    for codes, collapsed in ((torch.cat([air, tissue]), True), (torch.cat([tissue, air]), False)):
        counts = metrics.CodeCounts(8)
        counts.update(codes, torch.tensor([False, True]).view(2, 1, 1).expand_as(codes))
        assert counts.collapsed == collapsed
        assert counts.perplexity > 4 - collapsed


def test_few_cells_are_no_collapse_and_none_tells_nothing():
    counts = metrics.CodeCounts(1024)
    assert math.isnan(counts.perplexity_foreground)
    assert not counts.collapsed
    counts.update(torch.arange(16).view(1, 4, 4))  # of K / 50 = 20.48 codes 16 cells can have no more than 16
    assert counts.least_perplexity == 4
    assert not counts.collapsed
    counts.update(torch.zeros(20, 4, 4, dtype=torch.int64))
    assert counts.least_perplexity == 1024 / 50
    assert counts.collapsed


def test_constant_cells_equal_a_loop_over_blocks():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 2, (2, 3, 6, 8), generator=generator).float()
    images[0, :, :2, 2:4] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)  # a colour, but a constant one
    images[1, :, 4:, :2] = 0.0
    images[1, 2, 5, 1] = 1e-3  # constant but for one channel of one pixel
    cells = metrics.constant_cells(images, (3, 4))
    for b in range(2):
        for i in range(3):
            for j in range(4):
                block = images[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert cells[b, i, j] == all(len(set(channel.flatten().tolist())) == 1 for channel in block)
    assert cells[0, 0, 1]
    assert not cells[1, 2, 0]
    with pytest.raises(ValueError, match="4x4"):
        metrics.constant_cells(images, (4, 4))


@pytest.fixture
def code_maps() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out codes of which each position has favourites of its own; code 4 never occurs."""
    rng = np.random.default_rng(4)
    favourite = np.array([[0, 1, 2], [3, 0, 1]])
    draw = [np.where(rng.random((n, 2, 3)) < 0.6, favourite, rng.integers(0, 4, (n, 2, 3))) for n in (12, 9)]
    return draw[0].astype(np.uint16), draw[1].astype(np.uint16)


def naive_unigram(codes: list[int], smoothing: float, k: int = 5) -> list[float]:
    return [(codes.count(code) + smoothing) / (len(codes) + k * smoothing) for code in range(k)]


def test_unigram_nll_equals_a_loop_and_log_k_for_equally_frequent_codes(code_maps):
    train, held_out = code_maps
    table = naive_unigram(train.flatten().tolist(), 0.5)
    expected = np.mean([-math.log(table[code]) for code in held_out.flatten().tolist()])
    assert metrics.unigram_nll(train, held_out, 5, smoothing=0.5) == pytest.approx(expected)
    assert metrics.unigram_nll(np.arange(6).reshape(1, 2, 3), held_out, 6) == pytest.approx(math.log(6))


def test_positionwise_nll_equals_a_loop_over_positions(code_maps):
    train, held_out = code_maps
    unigram = naive_unigram(train.flatten().tolist(), 1.0)
    terms = []
    for image in held_out:
        for i in range(2):
            for j in range(3):
                seen = train[:, i, j].tolist().count(image[i, j])
                terms.append(-math.log((seen + 3.0 * unigram[image[i, j]]) / (12 + 3.0)))
    got = metrics.positionwise_unigram_nll(torch.from_numpy(train.astype(np.int64)), held_out, 5, strength=3.0)
    assert got == pytest.approx(np.mean(terms))


def test_positionwise_table_is_a_distribution_at_each_position_and_tends_to_the_unigram(code_maps):
    train, held_out = code_maps
    table = metrics.positionwise_log_table(train, 5)
    assert table.shape == (6, 5)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1.0)
    far = metrics.positionwise_unigram_nll(train, held_out, 5, strength=1e12)
    assert far == pytest.approx(metrics.unigram_nll(train, held_out, 5))


def test_strength_has_the_highest_leave_one_out_likelihood_of_a_naive_loop(code_maps):
    train, _ = code_maps
    grid = (0.25, 1.0, 4.0, 16.0, 64.0)
    likelihoods = []
    for strength in grid:
        total = 0.0
        for n in range(len(train)):
            for i in range(2):
                for j in range(3):
                    code = int(train[n, i, j])
                    everywhere = train.flatten().tolist()
                    everywhere.remove(code)
                    here = [int(train[m, i, j]) for m in range(len(train)) if m != n]
                    prior = strength * naive_unigram(everywhere, 1.0)[code]
                    total += math.log((here.count(code) + prior) / (len(here) + strength))
        likelihoods.append(total)
    assert metrics.best_strength(train, 5, grid=grid) == grid[int(np.argmax(likelihoods))]
    assert 0 < int(np.argmax(likelihoods)) < len(grid) - 1  # a choice between, not an end of the grid


def test_positionwise_beats_unigram_where_positions_differ_and_not_where_they_do_not(code_maps):
    train, held_out = code_maps
    unigram = metrics.unigram_nll(train, held_out, 5)
    assert metrics.positionwise_unigram_nll(train, held_out, 5) < unigram - 0.1
    rng = np.random.default_rng(5)
    train, held_out = rng.integers(0, 5, (10, 4, 4)), rng.integers(0, 5, (400, 4, 4))
    unigram = metrics.unigram_nll(train, held_out, 5)
    # Ten maps of pure noise: the chosen smoothing keeps the table from believing its counts.
    assert metrics.positionwise_unigram_nll(train, held_out, 5) < unigram + 0.02
    with pytest.raises(ValueError, match="maps"):
        metrics.positionwise_unigram_nll(train, held_out[:, :2], 5)


def test_nearest_equals_a_loop_in_any_chunk_size_and_finds_exact_copies():
    generator = torch.Generator().manual_seed(6)
    references = torch.rand(11, 1, 4, 4, generator=generator) * 2 - 1
    queries = torch.cat([torch.rand(5, 1, 4, 4, generator=generator) * 2 - 1, references[[7, 2]]])
    expected = [[math.dist(q.flatten().tolist(), r.flatten().tolist()) for r in references] for q in queries]
    for chunk in (1, 3, 100):
        index, distance = metrics.nearest(queries, references, chunk)
        assert index.tolist() == np.argmin(expected, axis=1).tolist()
        np.testing.assert_allclose(distance, np.min(expected, axis=1), rtol=1e-5)
        assert index[5:].tolist() == [7, 2]
        assert distance[5:].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="nearest"):
        metrics.nearest(queries, references[:0])
