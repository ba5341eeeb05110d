"""Anomaly maps: what was painted into an image stands out, and tables and pictures say so."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2 import VQVAE, Prior
from vqvae2.anomaly import (
    FEATURES,
    Usual,
    anomaly_map,
    anomaly_parts,
    features,
    improbable,
    redraw_blocks,
    residual_map,
    restore_images,
)
from vqvae2.data import DataConfig, open_data
from vqvae2.stages import evaluate, export

pytest_plugins = ["tiny_run_fixtures"]


@pytest.mark.parametrize("kind", ["bright", "rough", "smooth"])
def test_a_patch_unlike_the_draws_stands_out(kind):
    generator = torch.Generator().manual_seed(0)
    drawn = 0.2 * torch.randn(1, 5, 1, 48, 48, generator=generator)
    image = 0.2 * torch.randn(1, 1, 48, 48, generator=generator)
    usual = Usual(torch.zeros(3), torch.ones(3))
    patch = image[..., 18:30, 18:30]
    image[..., 18:30, 18:30] = {"bright": patch + 0.8, "rough": 3 * patch, "smooth": 0 * patch}[kind]
    parts = anomaly_parts(image, drawn, [])
    assert parts.shape == (1, len(FEATURES), 48, 48)
    score = anomaly_map(parts, usual)
    assert score.shape == (1, 48, 48)
    inside, outside = score[0, 20:28, 20:28], torch.cat([score[0, :12].flatten(), score[0, 36:].flatten()])
    assert float(inside.mean()) > float(outside.quantile(0.99))
    # A smooth patch has less texture than the draws, a rough one more.
    sign = {"bright": 0, "rough": 1, "smooth": -1}[kind]
    assert float(parts[0, 2, 22:26, 22:26].mean()) * sign >= 0


def test_improbable_codes_stand_out_and_probable_ones_do_not():
    images, drawn = torch.zeros(2, 1, 32, 32), torch.zeros(2, 2, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    normal = 2 + 0.3 * torch.randn(2, 8, 8, generator=generator)
    usual = Usual.of(anomaly_parts(images, drawn, [normal]), torch.ones(2, 32, 32, dtype=torch.bool))
    assert (usual.mean[:3] == 0).all()
    level = normal.clone()
    level[0, 2:4, 2:4], level[1, 2:4, 2:4] = 6.0, 0.0
    found = anomaly_map(anomaly_parts(images, drawn, [level]), usual)
    assert float(found[0, 10:14, 10:14].min()) > 3
    assert float(found[1, 10:14, 10:14].max()) < 0.5


def test_features_are_finite_where_nothing_is():
    assert features(torch.full((1, 3, 16, 16), -1.0)).isfinite().all()
    parts = anomaly_parts(torch.zeros(1, 1, 16, 16), torch.zeros(1, 2, 1, 16, 16), [torch.zeros(1, 4, 4)])
    usual = Usual.of(parts, torch.ones(1, 16, 16, dtype=torch.bool))
    assert anomaly_map(parts, usual).isfinite().all()


@pytest.fixture
def slices(tmp_path):
    """Three held-out slices of the phantom, the second with a white square in the head."""
    val = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"), ["val"]).splits["val"]
    folder = tmp_path / "slices"
    (folder / "a").mkdir(parents=True)
    for i in range(3):
        pixels = np.array(val.images[i][0])
        if i == 1:
            pixels[13:19, 13:19] = 255
        Image.fromarray(pixels).save(folder / "a" / f"{i}.png")
    return folder


def test_a_code_is_improbable_by_those_of_the_foreground():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :4] = True  # the upper row of cells
    nll = torch.tensor([[[1.0, 3.0], [50.0, 90.0]]])
    assert improbable([nll], masks, 0.5) == [2.0]
    assert improbable([nll], torch.zeros_like(masks)) == [float("inf")]


def test_residuals_lie_where_the_restorations_differ():
    images, restored = torch.zeros(1, 2, 16, 16), torch.zeros(1, 3, 2, 16, 16)
    restored[:, 0, :, 8, 8] = 3.0  # in one of three draws
    found = residual_map(images, restored)
    assert found.sum() == pytest.approx(1.0, abs=1e-3)
    assert found.argmax() == 8 * 16 + 8


def test_images_are_scored_against_normal_ones(run, slices, tmp_path, call, refused):
    out = tmp_path / "maps"
    flags = ("--run", run, "--anomaly", slices, "--draws", 2, "--false-positives", 0.05)
    told = call(evaluate.main, *flags, "--out", out)
    assert told.code == 0, told.err
    rows = list(csv.DictReader((out / "scores.csv").open()))
    assert sorted(row["file"] for row in rows) == [f"a/{i}.png" for i in range(3)]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    with np.load(out / "maps.npz") as kept:
        assert kept["maps"].shape == (3, 32, 32)
        assert (kept["maps"] >= 0).all()
        residuals, keys, masks = kept["residuals"], kept["keys"].tolist(), kept["foreground"]
    assert residuals.shape == (3, 32, 32)
    assert Image.open(out / "pictures" / "a" / "1.png").width > 6 * 32
    about = json.loads((out / "anomaly.json").read_text())
    assert about["threshold"] > 0
    assert about["residual_threshold"] > 0
    assert list(about["improbable"]) == ["top", "bottom"]
    for row in rows:
        i = keys.index(row["file"])
        above = (residuals[i] > about["residual_threshold"])[masks[i]]
        assert float(row["share_by_residual"]) == pytest.approx(above.mean(), abs=0.01)
    assert len(about["normal_scores"]) == about["normal"]["images"]
    assert sorted(path.name for path in (out / "pictures" / "a").iterdir()) == ["0.png", "1.png", "2.png"]
    assert "written already" in refused(evaluate.main, *flags, "--out", out)
    # The normal maps are kept: a second call finds the same threshold.
    (out / "anomaly.json").rename(tmp_path / "first.json")
    (out / "anomaly.json").write_text("{}")
    one = call(
        evaluate.main,
        "--run",
        run,
        "--anomaly",
        slices / "a" / "1.png",
        "--draws",
        2,
        "--out",
        out,
        "--overwrite",
        "--false-positives",
        0.05,
    )
    assert one.code == 0, one.err
    again = json.loads((out / "anomaly.json").read_text())
    assert all(again[name] == about[name] for name in ("threshold", "residual_threshold", "improbable"))


def test_maps_are_written_where_the_run_cannot_keep_those_of_the_normal_images(run, slices, tmp_path, call):
    """Models that were passed on keep nothing of somebody's images; nor does a folder that takes no file."""
    (run / "anomaly-normal.npz").mkdir()
    flags = ("--anomaly", slices / "a" / "1.png", "--draws", 2)
    assert call(evaluate.main, "--run", run, *flags, "--out", tmp_path / "maps").code == 0
    assert (tmp_path / "maps" / "anomaly.json").is_file()
    models = tmp_path / "models"
    assert call(export.main, "--run", run, "--out", models, "--weights", "fp32").code == 0
    flags += ("--data", slices, "--split", "all", "--out", tmp_path / "more")
    assert call(evaluate.main, "--run", models, *flags).code == 0
    assert (tmp_path / "more" / "anomaly.json").is_file()
    assert not (models / "anomaly-normal.npz").exists()


@pytest.mark.parametrize("damage", ["empty", "bytes turned over"])
def test_what_is_kept_of_the_normal_images_is_looked_at_anew_where_it_is_damaged(run, slices, tmp_path, call, damage):
    flags = ("--run", run, "--anomaly", slices / "a" / "1.png", "--draws", 2, "--out", tmp_path / "maps", "--overwrite")
    assert call(evaluate.main, *flags).code == 0
    first, kept = (tmp_path / "maps" / "scores.csv").read_text(), run / "anomaly-normal.npz"
    content = bytearray(kept.read_bytes())
    content[200:400] = bytes(255 - byte for byte in content[200:400])
    kept.write_bytes(b"" if damage == "empty" else content)
    told = call(evaluate.main, *flags)
    assert told.code == 0, told.err
    assert (tmp_path / "maps" / "scores.csv").read_text() == first


def test_other_normal_images_of_the_same_names_are_looked_at_anew(run, slices, tmp_path, call, refused):
    """Nothing of another call is left beside the maps, and images without a foreground are told in one line."""
    for name, gain in (("dim", 0.5), ("bright", 1.0), ("black", 0.0)):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.asarray(Image.open(slices / "a" / f"{i}.png")) * gain
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    found = {}
    for name in ("dim", "bright"):
        flags = ("--run", run, "--anomaly", slices, "--draws", 2, "--data", tmp_path / name, "--split", "all")
        assert call(evaluate.main, *flags, "--out", tmp_path / "maps", "--overwrite").code == 0
        found[name] = json.loads((tmp_path / "maps" / "anomaly.json").read_text())["threshold"]
    assert found["dim"] != found["bright"]
    flags = ("--run", run, "--anomaly", slices, "--draws", 2, "--data", tmp_path / "black", "--split", "all")
    assert "nothing but background" in refused(evaluate.main, *flags, "--out", tmp_path / "none")
    (slices / "a" / "2.png").unlink()
    assert (
        call(
            evaluate.main, "--run", run, "--anomaly", slices, "--draws", 2, "--out", tmp_path / "maps", "--overwrite"
        ).code
        == 0
    )
    assert sorted(path.name for path in (tmp_path / "maps" / "pictures" / "a").iterdir()) == ["0.png", "1.png"]


def test_files_that_the_run_leaves_out_are_left_out(run, slices, call):
    record = json.loads((run / "run.json").read_text())
    record["train_vqvae"]["data"]["exclude"] = ["1.png"]
    (run / "run.json").write_text(json.dumps(record))
    told = call(evaluate.main, "--run", run, "--anomaly", slices, "--draws", 2, "--dry-run")
    assert told.code == 0, told.err
    assert f"2 images of {slices}" in told.out
    assert "skipped    '1 files': --exclude 1.png" in told.out


def test_cells_may_be_as_large_as_a_narrow_image():
    assert (
        anomaly_parts(torch.zeros(1, 1, 48, 16), torch.zeros(1, 2, 1, 48, 16), [torch.zeros(1, 3, 1)]).isfinite().all()
    )


def test_draws_of_an_image_do_not_depend_on_those_beside_it(run):
    """Alone and last of three. In float64, in which rounding decides no code."""
    model = VQVAE.from_pretrained(run / "vqvae").double().eval()
    priors = [Prior.from_pretrained(run / f"prior-{level}").double().eval() for level in model.levels]
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    made, alone = redraw_blocks(model, priors, images, draws=2), redraw_blocks(model, priors, images[2:], draws=2)
    torch.testing.assert_close(made[2:], alone, rtol=0, atol=1e-6)
    assert not torch.equal(made[0], made[2])
    assert not torch.equal(alone[0, 0], alone[0, 1])
    codes, limits = model.encode(images), [0.5] * len(priors)
    made = restore_images(model, priors, codes, limits, draws=2)
    alone = restore_images(model, priors, [level[2:] for level in codes], limits, draws=2)
    torch.testing.assert_close(made[2:], alone, rtol=0, atol=1e-6)
    assert not torch.equal(alone[0, 0], alone[0, 1])


def test_nothing_is_restored_where_nothing_is_improbable(run):
    model = VQVAE.from_pretrained(run / "vqvae").eval()
    priors = [Prior.from_pretrained(run / f"prior-{level}").eval() for level in model.levels]
    codes = model.encode(torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    done: list[int] = []
    made = restore_images(model, priors, codes, [float("inf")] * len(priors), draws=2, progress=done.append)
    assert made.shape == (3, 2, 1, 32, 32)
    torch.testing.assert_close(made, model.decode(codes)[:, None].expand_as(made))
    assert sum(done) == 2 * sum(level.numel() for level in codes)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--anomaly", "nowhere"), "there are no such images"),
        (("--anomaly", ".", "--draws", "1"), "--draws 1 is too few"),
        (("--anomaly", ".", "--false-positives", "1"), "is no share"),
        (("--anomaly", ".", "--batch-size", "4"), "does not go with --anomaly"),
        (("--draws", "3"), "--draws is for anomalies"),
    ],
)
def test_bad_input_of_anomalies(run, refused, flags, line):
    assert line in refused(evaluate.main, "--run", run, *flags)
