"""Grids of pictures, and the previews of trainings that are made of them."""

import json

import numpy as np
import pytest
from PIL import Image

from vqvae2.pictures import grid

pytest_plugins = ["tiny_run_fixtures"]


def test_pictures_lie_in_rows_with_a_gap():
    pictures = [np.full((3, 4), value, np.uint8) for value in (50, 100, 150)]
    sheet = grid(pictures, 2, gap=1)
    assert sheet.shape == (2 * 4 + 1, 2 * 5 + 1)
    assert (sheet[1:4, 6:10] == 100).all()
    assert (sheet[5:8, 1:5] == 150).all()
    assert grid([pictures[0], np.zeros((3, 4, 3), np.uint8)]).shape[2] == 3


def test_rows_have_their_titles_above_them():
    pictures = [np.zeros((8, 30), np.uint8) for _ in range(4)]
    sheet = grid(pictures, 2, titles=["one", "two"])
    assert sheet.shape == (2 * (8 + 2 + 14) + 2, 2 * 32 + 2)
    for row in range(2):
        top = row * 24 + 2
        assert sheet[top : top + 14].max() > 200, "the words"
        assert (sheet[top + 14 : top + 22, 2:32] == 0).all(), "the picture below them"


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_prior_shows_samples_of_each_class(chain, level):
    figures = chain.run / f"prior-{level}" / "figures"
    with Image.open(figures / "samples.png") as sheet, Image.open(figures / "samples_by_class.png") as by_class:
        assert sheet.height == 2 * (32 + 2 + 14) + 2
        assert by_class.size == (2 * 34 + 2, 2 * (32 + 2 + 14) + 2), "two of each diagnosis"
        rows = np.asarray(by_class)[2:].reshape(2, -1)
    classes = json.loads((chain.run / f"prior-{level}" / "config.json").read_text())["attributes"][0][1]
    assert len(classes) == 2
    assert (rows[0] != rows[1]).any()
