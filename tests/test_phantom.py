"""The phantom: its law, its looks in numbers, and the measurement that reads the law back from pictures."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from vqvae2.data import phantom
from vqvae2.data.phantom import render  # which keeps nothing, as the tests' own does


@pytest.fixture(scope="module")
def heads() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 slices: images (200, 64, 64) uint8, labels (200,), true ventricle shares (200,)."""
    drawn = [phantom.render(0, index) for index in range(200)]
    images, labels, truths = zip(*drawn, strict=True)
    return np.stack(images), np.array(labels), np.array([truth["ventricle_area"] for truth in truths])


def measured(images: np.ndarray) -> np.ndarray:
    return phantom.ventricle_area(images[:, None] / 127.5 - 1)


def difference(shares: np.ndarray, labels: np.ndarray) -> float:
    return float(shares[labels == 1].mean() - shares[labels == 0].mean())


def test_equal_arguments_draw_equal_pictures_and_others_do_not():
    first = render(3, 5)[0]
    np.testing.assert_array_equal(first, render(3, 5)[0])
    assert (first != render(4, 5)[0]).any()
    assert (first != render(3, 7)[0]).any()


def test_uniform_numbers_are_the_upper_53_bits_of_numpys_guaranteed_stream():
    draws = phantom._Draws(1, 2)
    raw = np.random.PCG64(np.random.SeedSequence([1, 2])).random_raw(3)
    assert [draws.one(0, 1) for _ in raw] == [(int(bits) >> 11) / 2**53 for bits in raw]


def test_noise_has_zero_mean_and_unit_variance():
    noise = phantom._Draws(0, 0).noise((200, 200))
    assert abs(noise.mean()) < 0.02  # four standard errors of 40,000 values
    assert abs(noise.std() - 1) < 0.02


def test_labels_are_balanced(heads):
    assert heads[1].mean() == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_true_shares_follow_the_stated_law(heads, label):
    _, labels, truth = heads
    centre, spread = phantom.VENTRICLE_SHARE[phantom.DIAGNOSES[label]]
    shares = truth[labels == label]
    # The outline is moved in steps far finer than a pixel's share of the brain, here 1 / 1,200.
    assert shares.min() >= centre - spread - 1e-4
    assert shares.max() <= centre + spread + 1e-4
    # z, a sum of two uniforms on [-1/2, 1/2], has variance 1/6: three standard errors of the mean.
    assert abs(shares.mean() - centre) < 3 * spread / np.sqrt(6 * len(shares))


def test_measured_difference_between_diagnoses_is_the_true_one_within_a_tenth(heads):
    images, labels, truth = heads
    assert difference(measured(images), labels) == pytest.approx(difference(truth, labels), rel=0.1)


def test_measured_shares_follow_the_true_ones_picture_by_picture(heads):
    images, _, truth = heads
    shares = measured(images)
    assert np.corrcoef(shares, truth)[0, 1] > 0.98
    assert np.abs(shares - truth).mean() < 0.01


@pytest.mark.parametrize("blur", [0.4, 0.6, 0.8])
def test_measurement_survives_the_blur_and_noise_of_a_decoder(heads, blur):
    images, labels, truth = heads
    rng = np.random.default_rng(0)
    soft = ndimage.gaussian_filter(images.astype(float), (0, blur, blur)) + rng.normal(0, 5, images.shape)
    assert difference(measured(np.clip(soft, 0, 255)), labels) == pytest.approx(difference(truth, labels), rel=0.1)


def test_measurement_survives_other_brightness_and_contrast(heads):
    images, labels, truth = heads
    shares = measured(images * 0.85)
    assert difference(shares, labels) == pytest.approx(difference(truth, labels), rel=0.1)


def test_measurement_takes_tensors_and_arrays_alike(heads):
    tensor = torch.from_numpy(heads[0][:4, None] / 127.5 - 1).float().requires_grad_()
    np.testing.assert_allclose(phantom.ventricle_area(tensor), measured(heads[0][:4]), atol=1e-5)


def test_pictures_without_a_head_measure_as_nan():
    rng = np.random.default_rng(0)
    black, line, white = np.full((3, 1, 64, 128), -1.0)
    line[0, 5], white[:] = 1, 1
    shares = phantom.ventricle_area(np.stack([black, line, white, rng.uniform(-1, 1, (1, 64, 128))]))
    assert np.isnan(shares[:2]).all()
    assert ((shares >= 0) & (shares <= 1) | np.isnan(shares)).all()


def test_two_fifths_of_the_4x4_blocks_are_constant_background_in_every_picture(heads):
    blocks = heads[0].reshape(200, 16, 4, 16, 4)
    highest, lowest = blocks.max((2, 4)), blocks.min((2, 4))
    assert ((highest == lowest) & (highest == 0)).mean((1, 2)).min() >= 0.4


def test_tissues_stand_in_the_order_of_a_t1_weighted_picture(heads):
    image = heads[0].astype(float).mean(0)  # ventricles are dark in the middle, white matter beside them is bright
    middle = image[26:38, 26:38].min()
    white = image[20:44, 18:46].max()
    assert middle < 0.6 * white
    assert heads[0].max() < 255  # nothing is clipped
    assert (heads[0][:, [0, -1]] == 0).all()
    assert (heads[0][:, :, [0, -1]] == 0).all()


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (128, 128)])
def test_other_sizes_keep_the_law(size):
    image, _, truth = phantom.render(0, 1, size)
    assert image.shape == size
    share = phantom.ventricle_area(image[None, None] / 127.5 - 1)[0]
    assert 0.08 - 1e-3 <= truth["ventricle_area"] <= 0.16 + 1e-3
    assert share == pytest.approx(truth["ventricle_area"], abs=0.03)


@pytest.mark.parametrize(("seed", "index", "size"), [(-1, 0, (64, 64)), (0, -1, (64, 64)), (0, 0, (31, 64))])
def test_wrong_arguments_are_refused(seed, index, size):
    with pytest.raises(ValueError, match="must be"):
        phantom.render(seed, index, size)


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        phantom.ventricle_area(np.zeros((2, 3, 64, 64)))
