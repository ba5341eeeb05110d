"""Regions copied from training images are found, and nothing is found in images of other people."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.metrics import region_nearest
from vqvae2.report import region_figures


def smooth(count: int, side: int, seed: int, channels: int = 1) -> Tensor:
    """Images of smooth noise."""
    noise = torch.randn(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic")


def test_each_region_has_the_reference_that_a_naive_loop_finds():
    queries, references = smooth(3, 32, 0, channels=2), smooth(40, 32, 1, channels=2)
    found = region_nearest(queries, references, reach=0, candidates=40, chunk=7)
    assert found.size == (8, 8)
    assert found.places[:2] == [(0, 0), (0, 4)]
    assert found.places[-1] == (24, 24)
    for p, (y, x) in enumerate(found.places):
        own, others = (images.mean(1)[:, y : y + 8, x : x + 8].flatten(1).numpy() for images in (queries, references))
        naive = np.corrcoef(own, others)[:3, 3:]
        there = ~found.correlation[:, p].isnan().numpy()
        np.testing.assert_allclose(found.correlation[there, p], naive.max(1)[there], atol=1e-5)
        assert found.index[there, p].tolist() == naive.argmax(1)[there].tolist()
    assert float(found.correlation.isnan().double().mean()) < 0.5


def test_a_copied_square_is_found_where_it_lies_shifted_and_in_another_light():
    queries, references = smooth(2, 64, 0), smooth(300, 64, 1)
    queries[1, :, 20:48, 30:58] = 0.5 * references[250, :, 22:50, 28:56] + 1
    found = region_nearest(queries, references)
    place = found.places.index((24, 40))
    assert float(found.correlation[1, place]) == pytest.approx(1, abs=1e-5)
    assert int(found.index[1, place]) == 250
    assert float(found.correlation[0].max()) < 0.98


def test_a_region_without_texture_has_no_correlation():
    queries = smooth(1, 32, 0)
    queries[..., :16] = 0.3
    found = region_nearest(queries, smooth(5, 32, 1))
    flat = torch.tensor([x + 8 <= 16 for _, x in found.places])
    assert found.correlation[0, flat].isnan().all()
    assert found.correlation[0, ~flat].isfinite().all()


def test_what_cannot_be_compared_is_refused():
    for queries, references in ((smooth(2, 32, 0), smooth(2, 16, 0)), (smooth(2, 32, 0)[:0], smooth(2, 32, 0))):
        with pytest.raises(ValueError, match="regions need images of one shape"):
            region_nearest(queries, references)
    with pytest.raises(ValueError, match="too small"):
        region_nearest(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@pytest.fixture(scope="module")
def phantom() -> dict[str, ImageSet]:
    return open_data(DataConfig(data="phantom", phantom_images=400, size="64x64")).splits


@pytest.mark.parametrize("mirrored", [False, True])
def test_planted_regions_are_counted_and_other_people_have_none(phantom, mirrored):
    """The phantom's grey values are smooth: each slice gets a texture of its own, as tissue has."""
    images = {name: phantom[name].at(range(len(phantom[name]))) for name in ("train", "val", "test")}
    for seed, name in enumerate(images):
        head = images[name] > -0.9
        images[name] = torch.where(head, images[name] + 0.3 * smooth(len(head), 64, seed), images[name]).clamp(-1, 1)
    pixels = ((images["train"] + 1) * 127.5).round().byte().numpy()
    keys = [str(i) for i in range(len(pixels))]
    train = ImageSet(pixels, keys, keys, np.zeros((len(keys), 0), np.int64), (0, 255))
    real, other = images["val"], images["test"]
    again = real + 0.02 * smooth(len(real), 64, 9)
    clean = region_figures(other, real, again, train)
    assert (clean["copied"], clean["count"]) == (0, len(other))
    planted = other.clone()
    source = images["train"].flip(-1) if mirrored else images["train"]
    planted[:5, :, 20:44, 20:44] = source[10:15, :, 20:44, 20:44]
    found = region_figures(planted, real, again, train)
    assert found["copied"] == 5
    assert {(one["sample"], one["key"]) for one in found["nearest"]} == {(i, str(10 + i)) for i in range(5)}
    for one in found["nearest"]:
        assert one["mirrored"] == mirrored
        assert 20 - 2 <= one["y"] <= one["y"] + one["height"] <= 44 + 2
        assert 20 - 2 <= one["x"] <= one["x"] + one["width"] <= 44 + 2
