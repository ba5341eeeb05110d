"""Measures of heads against pictures whose measures are known, and against the phantom's law."""

import numpy as np
import pytest
import torch

from vqvae2.data import DataConfig, open_data
from vqvae2.report import anatomy_figures


def heads(count: int, size: int = 64, seed: int = 0, lopsided: float = 0.0, fluid: float = 0.3) -> torch.Tensor:
    """Discs on black: a bright ring, grey matter, a white core, and a dark middle of a given radius."""
    draw = np.random.default_rng(seed)
    place = (np.arange(size) + 0.5) / size * 2 - 1
    images = np.full((count, 1, size, size), -1.0)
    for image in images:
        radius = draw.uniform(0.7, 0.8)
        away = np.hypot(place[:, None], place) / radius
        picture = image[0]
        picture[away < 1] = 0.0
        picture[away < 0.75] = 0.7
        picture[away < fluid * draw.uniform(0.9, 1.1)] = -0.6
        picture[(away < 0.75) & (np.broadcast_to(place, picture.shape) > 0)] -= lopsided
        picture[away < 1] += draw.normal(0, 0.05, int((away < 1).sum()))
    return torch.from_numpy(images).float().clamp(-1, 1)


def test_equal_sets_measure_alike_and_each_change_moves_its_own_measure():
    real, train = heads(60), heads(60, seed=1)
    same = anatomy_figures(heads(60, seed=2), real, train, -1.0)
    assert same is not None
    # Two sets of 60 of one distribution are some 0.2 standard deviations apart.
    assert all(figures["distance"] < 0.5 and figures["train_distance"] < 0.5 for figures in same.values())
    assert same["area"]["real"] == pytest.approx(np.pi * 0.75**2 / 4, rel=0.05)
    assert same["symmetry"]["real"] > 0.95
    low, high = same["dark"]["intervals"]["real"]
    assert low < same["dark"]["real"] < high
    people = [f"p{i % 4}" for i in range(60)]
    few = anatomy_figures(heads(60, seed=2), real, train, -1.0, {"real": people, "train": people})
    assert few["dark"]["intervals"] == {"samples": same["dark"]["intervals"]["samples"], "real": None, "train": None}
    # The rim left out, a disc of 0.8 of the radius is left, of which the fluid fills (0.3 / 0.8)^2.
    assert same["dark"]["real"] == pytest.approx((0.3 / 0.8) ** 2, rel=0.15)
    wet = anatomy_figures(heads(60, seed=2, fluid=0.45), real, train, -1.0)
    assert wet["dark"]["distance"] > 3
    assert wet["area"]["distance"] < 0.5
    crooked = anatomy_figures(heads(60, seed=2, lopsided=0.3), real, train, -1.0)
    assert crooked["symmetry"]["distance"] > 3
    assert crooked["symmetry"]["samples"] < crooked["symmetry"]["real"]


def test_more_fluid_is_seen_in_the_phantoms_of_larger_ventricles():
    data = open_data(DataConfig(phantom_images=240, size="64x64")).splits["train"]
    images, labels = data.at(range(len(data))), data.labels[:, 0]
    healthy, atrophy = (images[np.flatnonzero(labels == k)] for k in (0, 1))
    found = anatomy_figures(atrophy, healthy, images, -1.0)
    assert found["dark"]["samples"] > found["dark"]["real"]
    assert found["dark"]["distance"] > 2 * found["symmetry"]["distance"]


def test_colour_frames_without_a_background_and_empty_frames_are_not_measured():
    images = heads(4)
    assert anatomy_figures(images, images, images, None) is None
    assert anatomy_figures(images.expand(-1, 3, -1, -1), images, images, -1.0) is None
    black = torch.full((4, 1, 64, 64), -1.0)
    assert anatomy_figures(images, images, black, -1.0) is None
    assert anatomy_figures(black, heads(4), heads(4, seed=1), -1.0) is None
