"""Images come back from what their reconstructions lost, pixel for pixel, in about as many bits as it holds."""

import json

import numpy as np
import pytest

from vqvae2.residuals import ResidualModel


def noisy(shape, seed, spread, high=255):
    """Reconstructions (N, C, H, W), and images that lie around them by Gaussian noise."""
    rng = np.random.default_rng(seed)
    made = rng.integers(high // 4, 3 * high // 4, shape)
    images = np.clip(np.rint(made + rng.normal(0, spread, shape)), 0, high)
    kind = np.uint8 if high < 256 else np.uint16
    return images.astype(kind), made.astype(kind)


@pytest.mark.parametrize(
    ("shape", "high"), [((3, 1, 16, 16), 255), ((2, 3, 7, 9), 255), ((1, 1, 1, 1), 255), ((2, 1, 5, 2), 4095)]
)
def test_images_come_back(shape, high):
    images, made = noisy(shape, 0, high / 20, high)
    images.flat[0], images.flat[-1] = 0, high  # far from what was made
    for model in ResidualModel.fit(images, made, (0, high)):
        again = ResidualModel(**json.loads(json.dumps(model.settings())))
        found = again.decode(model.encode(images, made, (0, high)), made, (0, high))
        assert found.dtype == images.dtype
        np.testing.assert_array_equal(found, images)


def test_noise_costs_its_entropy_and_no_more():
    images, made = noisy((8, 1, 64, 64), 1, 6.0)
    sizes = {
        model.name: len(model.encode(images, made, (0, 255))) for model in ResidualModel.fit(images, made, (0, 255))
    }
    entropy = images.size * 0.5 * np.log2(2 * np.pi * np.e * 6.0**2) / 8
    assert 0.998 * entropy < sizes["QuantizedGaussian"] < 1.01 * entropy < sizes["QuantizedLaplace"]


def test_what_is_lost_around_a_pixel_tells_of_it():
    """Losses that are alike over 8x8 pixels cost less than the same ones shuffled, and air costs nothing."""
    rng = np.random.default_rng(2)
    lost = rng.integers(-20, 21, (4, 1, 8, 8)).repeat(8, 2).repeat(8, 3) + rng.integers(-1, 2, (4, 1, 64, 64))
    made = np.full(lost.shape, 100, np.uint8)
    shuffled = rng.permutation(lost.ravel()).reshape(lost.shape)
    air = np.zeros_like(made)
    sizes = []
    for images, given in ((made + lost, made), (made + shuffled, made), (air, air)):
        pixels = images.astype(np.uint8)
        models = ResidualModel.fit(pixels, given, (0, 255))
        sizes.append(min(len(model.encode(pixels, given, (0, 255))) for model in models))
    assert sizes[0] < 0.75 * sizes[1]
    assert sizes[2] < made.size / 200


def test_other_reconstructions_give_other_images():
    images, made = noisy((2, 1, 16, 16), 3, 4.0)
    model, *_ = ResidualModel.fit(images, made, (0, 255))
    stream = model.encode(images, made, (0, 255))
    assert not np.array_equal(model.decode(stream, made[::-1].copy(), (0, 255)), images)
