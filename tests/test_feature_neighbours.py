"""How near samples and held-out images are to training images in a network's features."""

import numpy as np
import pytest
import torch
from test_report_page import plain_report

from vqvae2 import report
from vqvae2.data import ImageSet


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def as_set(x: torch.Tensor) -> ImageSet:
    stored = ((x + 1) * 127.5).round().to(torch.uint8).numpy()
    names = [str(i) for i in range(len(x))]
    return ImageSet(stored, names, names, np.zeros((len(x), 0), np.int64), (0.0, 255.0), [])


def mean_and_spread(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)


def neighbours(train: ImageSet, *sets: torch.Tensor) -> dict:
    return report.feature_neighbours(report.training_features(train, mean_and_spread), *map(mean_and_spread, sets))


def test_distances_equal_those_by_loops_over_all_pairs():
    train, real, decoded, samples = as_set(images(300, 0)), images(40, 1), images(40, 2), images(20, 3)
    found = neighbours(train, real, decoded, samples)
    known = mean_and_spread(train.at(list(range(300))))

    def near(x):
        return torch.stack([(known - own).square().sum(1).sqrt().min() for own in mean_and_spread(x)])

    assert found["median"] == pytest.approx(float(near(samples).median()), rel=1e-4)
    assert found["real_median"] == pytest.approx(float(near(real).median()), rel=1e-4)
    assert found["decoded_median"] == pytest.approx(float(near(decoded).median()), rel=1e-4)
    share = float((near(samples) < near(decoded).quantile(0.01)).double().mean())
    assert found["closer_share"] == pytest.approx(share)
    assert (found["count"], found["real_count"], found["train_count"]) == (20, 40, 300)


def test_training_images_at_another_place_are_near_in_features_and_far_in_pixels():
    train, held_out = as_set(images(100, 0)), images(100, 1)
    moved = train.at(list(range(50))).roll(2, 3)
    found = neighbours(train, held_out, held_out, moved)
    assert found["closer_share"] == 1
    assert found["median"] < 1e-3 < found["real_median"]
    other = neighbours(train, held_out, held_out, images(50, 2))
    assert other["closer_share"] < 0.1


def test_what_is_near_in_features_is_said_in_verdict_warnings_and_page(tmp_path):
    found = plain_report()
    near = {"space": "MobileNetV2", "count": 64, "real_count": 320, "train_count": 1440, "closer_share": 0.01}
    found["samples"]["feature_neighbours"] = near | {"median": 2.0, "real_median": 3.0, "decoded_median": 3.1}
    assert report.verdict(found)[2]["band"] == "good"
    assert "1% in MobileNetV2" in report.verdict(found)[2]["reason"]
    before = report.warnings(found)
    found["samples"]["feature_neighbours"]["closer_share"] = 0.4
    assert report.verdict(found)[2]["band"] == "weak"
    (added,) = set(report.warnings(found)) - set(before)
    assert "40% of the samples lie closer" in added
    found |= {"summary": [], "warnings": []}
    report.write_page(tmp_path / "index.html", found, {})
    assert "beside 1,440 training images" in (tmp_path / "index.html").read_text()
