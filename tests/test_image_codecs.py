"""What the benchmark says of codecs: mosaics cut apart as they were laid out, rates as files have them."""

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae2.data import DataConfig, open_data
from vqvae2.metrics import image_scores

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import image_codecs
import real_slices


def test_mosaics_are_laid_out_in_raster_order_and_cut_apart_again():
    slices = np.random.default_rng(0).integers(0, 256, (32, 3, 5)).astype(np.uint8)
    made = image_codecs.mosaics(slices, 4)
    assert made.shape == (2, 12, 20)
    for i, one in enumerate(slices):
        row, column = i % 16 // 4, i % 4
        assert np.array_equal(made[i // 16, 3 * row : 3 * row + 3, 5 * column : 5 * column + 5], one)
    assert np.array_equal(image_codecs.cut(made, 4), slices)


def test_files_without_loss_are_weighed_and_compared():
    slices = np.random.default_rng(0).integers(0, 4, (17, 24, 16)).astype(np.uint8) * 60
    found = image_codecs.lossless(slices)
    assert {"PNG", "PNG mosaic", "WEBP", "JPEG2000 mosaic"} <= found.keys()
    assert all(bits > 2 for bits in found.values())  # two bits of noise
    file = io.BytesIO()
    Image.fromarray(image_codecs.mosaics(slices[:16], 4)[0]).save(file, "PNG", optimize=True)
    assert found["PNG mosaic"] == 8 * len(file.getvalue()) / slices[:16].size
    assert image_codecs.LOSSLESS["JPEG2000"]["irreversible"] is False


def test_a_curve_has_the_bytes_of_the_files_and_the_scores_of_what_they_hold(monkeypatch):
    monkeypatch.setattr(image_codecs, "CODECS", {"JPEG": {"optimize": True}})
    images = open_data(DataConfig(phantom_images=200, size="32x32"), ["test"]).splits["test"]
    images = image_codecs.some(images, 18)
    found = image_codecs.curves(images, -1.0, (30, 80))
    assert found.keys() == {"JPEG", "JPEG mosaic"}
    size, scores = 0, []
    for pixels, x in zip(images.images[:, 0], images.at(range(18)), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=80, optimize=True)
        size += len(file.getvalue())
        y = np.asarray(Image.open(file)) / 127.5 - 1
        scores.append(image_scores(x.new_tensor(y)[None, None], x[None])["ssim"][0])
    coarse, fine = found["JPEG"]
    assert fine["bits_per_pixel"] == pytest.approx(8 * size / images.images.size)
    assert fine["ssim"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert coarse["ssim_foreground"] < fine["ssim_foreground"]
    # One header for 16 small slices.
    assert found["JPEG mosaic"][1]["bits_per_pixel"] < 0.75 * fine["bits_per_pixel"]


def test_a_rate_is_interpolated_in_its_logarithm_and_never_beyond_the_curve():
    curve = [{"bits_per_pixel": r, "ssim_foreground": s} for r, s in ((1.0, 0.9), (0.25, 0.8), (4.0, 0.95))]
    assert image_codecs.rate_at(curve, 0.85) == pytest.approx(0.5)
    assert image_codecs.rate_at(curve, 0.925) == pytest.approx(2.0)
    assert math.isnan(image_codecs.rate_at(curve, 0.96))
    assert math.isnan(image_codecs.rate_at(curve, 0.7))


@pytest.mark.parametrize(
    ("measured", "over", "word"),
    [(0.95, True, "moonshot"), (0.85, True, "bar"), (0.7, True, "no"), (0.85, False, "bar"), (None, True, "")],
)
def test_a_claim_is_held_against_bar_and_moonshot_by_its_direction(measured, over, word):
    bar, moonshot = (0.8, 0.9) if over else (0.9, 0.8)
    assert real_slices.met({"measured": measured, "bar": bar, "moonshot": moonshot, "over": over}) == word
    assert real_slices.met({"measured": measured, "bar": None, "moonshot": None, "over": over}) == ""
