"""Figures of sharpness on images whose blur, noise and invented texture are known, against SciPy and scikit-image."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

from vqvae2 import metrics


@pytest.fixture(scope="module")
def heads() -> torch.Tensor:
    """Six textured ellipses with a dark hole, on black; none reaches the frame."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :64]
    images = []
    for i in range(6):
        radius = np.hypot((rows - 24) / (14 + i), (columns - 32) / (20 + i))
        texture = 0.1 + 0.4 * ndimage.gaussian_filter(rng.normal(size=(48, 64)), 0.6)
        images.append(np.where((radius < 1) & (radius > 0.2), texture.clip(-0.8, 1), -1.0))
    return torch.from_numpy(np.stack(images)).float()[:, None]


def scored(y: torch.Tensor, x: torch.Tensor, background: float | None = -1.0) -> dict[str, float]:
    sharpness = metrics.Sharpness(x.shape[-2:], background)
    sharpness.update(y, x)
    return sharpness.figures()


def swapped(x: torch.Tensor) -> torch.Tensor:
    """Blurred images with the fine texture of each other."""
    blurred = metrics.gaussian_blur(x, 1.0)
    return torch.where(metrics.foreground(x)[:, None], blurred + (x - blurred).roll(1, dims=0), blurred)


def test_ssim_map_equals_scikit_image_to_the_border():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, 2, 19, 12, generator=generator, dtype=torch.float64)
    found = metrics.ssim_map(x, y)
    for a, b, own in zip(x, y, found, strict=True):
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        _, expected = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=2.0, **settings)
        np.testing.assert_allclose(own, expected.mean(0), atol=1e-10)
    torch.testing.assert_close(found[:, 5:-5, 5:-5].mean((1, 2)), metrics.ssim(x, y))


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 1.3, 3.0])
def test_gaussian_blur_equals_scipy(heads, sigma):
    for one, blurred in zip(heads[:, 0], metrics.gaussian_blur(heads, sigma)[:, 0], strict=True):
        np.testing.assert_allclose(blurred, ndimage.gaussian_filter(one.numpy(), sigma), atol=1e-6)


def test_foreground_is_the_largest_piece_with_its_holes_filled():
    image = torch.full((3, 1, 12, 14), -1.0)
    image[0, 0, 2:9, 3:11] = 0.5
    image[0, 0, 4:6, 5:8] = -1.0  # a hole
    image[0, 0, 10, 1:4] = 0.9  # a smaller piece
    image[0, 0, 9, 11] = 0.9  # connected by a corner alone
    image[1, 0, :, 5] = -0.91  # 4.5 % of the range: background
    image[2, 0, 0:4, 0:4] = -0.89  # 5.5 %, at the frame's corner
    image[2, 0, 1, 1] = -1.0
    expected = torch.zeros(3, 12, 14, dtype=torch.bool)
    expected[0, 2:9, 3:11] = True
    expected[2, 0:4, 0:4] = True
    assert torch.equal(metrics.foreground(image), expected)
    assert metrics.foreground(image, None).all()
    assert torch.equal(metrics.foreground(-image, 1.0), expected)  # on white
    assert metrics.foreground(image[:0]).shape == (0, 12, 14)


def test_foreground_equals_scipy_on_noise():
    images = torch.rand(8, 2, 20, 23, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images[images.mean(1, keepdim=True).expand_as(images) < 0] = -1
    for image, mask in zip(images, metrics.foreground(images), strict=True):
        pieces, _ = ndimage.label(image.mean(0).numpy() > -0.9)
        largest = max(range(1, pieces.max() + 1), key=lambda piece: (pieces == piece).sum())
        assert np.array_equal(mask, ndimage.binary_fill_holes(pieces == largest))


def test_a_background_is_found_on_black_white_and_grey_and_not_in_photographs(heads):
    assert metrics.background_value(heads) == pytest.approx(-1)
    assert metrics.background_value(-heads) == pytest.approx(1)
    noisy_air = torch.where(heads == -1, -0.3 + 0.02 * torch.randn(heads.shape), heads)
    assert metrics.background_value(noisy_air) == pytest.approx(-0.3, abs=0.02)
    assert metrics.background_value(torch.rand(4, 3, 32, 32) * 2 - 1) is None
    assert metrics.background_value(heads[:, :, 18:30, 16:48]) is None  # within the head
    assert metrics.background_value(heads[:0]) is None


def test_foreground_scores_are_averages_over_the_mask_alone(heads):
    y = heads + 0.2 * torch.randn(heads.shape, generator=torch.Generator().manual_seed(2))
    mask = metrics.foreground(heads)
    found = metrics.foreground_scores(y, heads, mask)
    for i in range(len(heads)):
        a, b, inside = heads[i, 0].double().numpy(), y[i, 0].double().numpy(), mask[i].numpy()
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        _, similarity = structural_similarity(a, b, data_range=2.0, **settings)
        assert float(found["ssim_foreground"][i]) == pytest.approx(similarity[inside].mean(), abs=1e-4)
        mse = np.square(a - b)[inside].mean()
        assert float(found["psnr_foreground_db"][i]) == pytest.approx(10 * math.log10(4 / mse), abs=1e-6)
    air = torch.where(mask[:, None], heads, torch.randn(heads.shape))
    assert metrics.foreground_scores(air, heads, mask)["psnr_foreground_db"].isinf().all()
    assert metrics.foreground_scores(y, heads, mask & False)["ssim_foreground"].isnan().all()


def test_images_without_foreground_do_not_count(heads):
    air = torch.full_like(heads[:2], -1.0)
    y = metrics.gaussian_blur(heads, 0.7)
    found, alone = scored(torch.cat([y, air]), torch.cat([heads, air])), scored(y, heads)
    assert found["ssim_foreground"] == pytest.approx(alone["ssim_foreground"])
    assert found["psnr_foreground_db"] == pytest.approx(alone["psnr_foreground_db"])
    assert scored(air, air) == {}


@pytest.mark.parametrize("windowed", [False, True])
def test_power_and_coherence_equal_a_loop_over_frequencies(heads, windowed):
    x, y = heads[..., :47, :], swapped(heads)[..., :47, :]
    for width in (64, 63):
        bands = metrics.Bands((47, width), windowed)
        for a, b in zip(x.split(4), y.split(4), strict=True):
            bands.update(b[..., :width], a[..., :width])
        found = bands.figures() | bands.pooled()
        prepared = []
        for images in (x[..., :width], y[..., :width]):
            images = images.double().numpy()[:, 0]
            images = images - images.mean((1, 2), keepdims=True)
            if windowed:
                images = images * np.outer(np.hanning(48)[:47], np.hanning(width + 1)[:width])
            prepared.append(np.fft.fft2(images))
        fx, fy = prepared
        for shortest, longest in metrics.BANDS:
            rings: dict[int, list[float]] = {}
            for i, v in enumerate(np.fft.fftfreq(47)):
                for j, u in enumerate(np.fft.fftfreq(width)):
                    frequency = np.float32(np.hypot(np.float32(u), np.float32(v)))
                    if 1 / longest < frequency <= 1 / shortest:
                        ring = rings.setdefault(round(float(frequency) * 47), [0.0, 0.0, 0.0])
                        ring[0] += (np.abs(fx[:, i, j]) ** 2).sum()
                        ring[1] += (np.abs(fy[:, i, j]) ** 2).sum()
                        ring[2] += (fx[:, i, j].conj() * fy[:, i, j]).real.sum()
            originals, made, common = np.array(list(rings.values())).T
            coherence = (originals * common / np.sqrt(originals * made)).sum() / originals.sum()
            name = f"{shortest}_{longest}"
            assert found[f"power_{name}"] == pytest.approx(made.sum() / originals.sum(), rel=1e-3)
            assert found[f"coherence_{name}"] == pytest.approx(coherence, abs=1e-3)
            pooled = common.sum() / math.sqrt(originals.sum() * made.sum())
            assert found[f"coherence_pooled_{name}"] == pytest.approx(pooled, abs=1e-3)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0])
def test_blur_loses_the_power_that_the_gaussian_takes_and_keeps_coherence(heads, sigma):
    found = scored(metrics.gaussian_blur(heads, sigma), heads)
    assert min(found[f"coherence_{band}"] for band in ("2_4", "4_8", "8_16")) > 0.97
    for shortest, longest in metrics.BANDS:
        # The transfer function exp(-2 pi^2 sigma^2 f^2), squared, at the band's ends.
        least, most = (math.exp(-4 * math.pi**2 * sigma**2 / wavelength**2) for wavelength in (shortest, longest))
        assert least < found[f"power_{shortest}_{longest}"] < most


def test_invented_texture_and_noise_have_power_and_no_coherence(heads):
    blurred, made = scored(metrics.gaussian_blur(heads, 1.0), heads), scored(swapped(heads), heads)
    assert made["power_2_4"] > 5 * blurred["power_2_4"]
    assert made["coherence_2_4"] < 0.5 < 0.97 < blurred["coherence_2_4"]
    x = torch.randn(16, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    found = scored(x + 0.5 * noise, x, None)
    for band in ("2_4", "4_8"):
        # White noise of a quarter of the power, in a white image.
        assert found[f"power_{band}"] == pytest.approx(1.25, rel=0.05)
        assert found[f"coherence_{band}"] == pytest.approx(1 / math.sqrt(1.25), rel=0.03)
    unrelated = scored(noise, x, None)
    assert abs(unrelated["coherence_2_4"]) < 0.02


@pytest.mark.parametrize("sigma", [0.45, 0.85, 1.6])
def test_blur_of_equal_score_finds_the_sigma(heads, sigma):
    scale = metrics.BlurScale((48, 64))
    mask = metrics.foreground(heads)
    for x, m in zip(heads.split(4), mask.split(4), strict=True):
        scale.update(x, m)
    sharpness = metrics.Sharpness((48, 64), -1.0, scale)
    sharpness.update(metrics.gaussian_blur(heads, sigma), heads, mask)
    assert sharpness.figures()["blur_px"] == pytest.approx(sigma, abs=0.02)
    assert scale.equal(1.0) == 0
    assert scale.equal(-1.0) == 4
    small = metrics.BlurScale((11, 12))
    small.update(heads[..., :11, :12], torch.ones(6, 11, 12, dtype=torch.bool))
    assert small.equal(-1.0) == 2.5  # a quarter of the image


def test_sums_over_batches_are_the_whole_set(heads):
    y = swapped(heads)
    whole, parts = (metrics.Sharpness((48, 64), -1.0) for _ in range(2))
    whole.update(y, heads)
    parts.update(y[:1], heads[:1])
    parts.update(y[1:], heads[1:])
    assert parts.figures() == pytest.approx(whole.figures(), abs=1e-6)


def test_sums_of_groups_are_those_of_their_images(heads):
    y, groups = swapped(heads), torch.tensor([1, 0, 1, 2, 2, 1])
    bands, alone = metrics.Bands((48, 64), groups=4), metrics.Bands((48, 64))
    bands.update(y, heads, groups)
    alone.update(y[groups == 1], heads[groups == 1])
    found = bands.figures_of(bands.sums)
    for name, value in alone.figures().items():
        assert float(found[name][1]) == pytest.approx(value)
        assert found[name][3].isnan()  # no image


def test_bands_without_a_frequency_or_without_power_are_left_out():
    x = torch.randn(2, 1, 11, 11, generator=torch.Generator().manual_seed(5))
    assert "power_8_16" in scored(x, x, None)  # 11 pixels a cycle
    flat = torch.zeros_like(x)
    assert not any(name.startswith("power") for name in scored(x, flat, None))
    assert scored(flat, x, None)["coherence_2_4"] == 0
