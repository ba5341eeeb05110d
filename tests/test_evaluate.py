"""The stage that measures a run: its numbers against the models', its files, and what it refuses."""

import csv
import json
import re
import shlex
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import random_weights
from tiny_runs import CHAIN, ROOT, contents

from vqvae2 import VQVAE, CodeStore, Prior, VQVAEConfig
from vqvae2.data import DataConfig, from_unit, load_images, open_data
from vqvae2.metrics import (
    features,
    foreground,
    foreground_scores,
    frechet_distance,
    gaussian_blur,
    kernel_distance,
    positionwise_unigram_nll,
    unigram_nll,
)
from vqvae2.report import background_of, verdict
from vqvae2.stages import compared, evaluate, sample
from vqvae2.stages.evaluated import Evaluated

pytest_plugins = ["tiny_run_fixtures"]


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def slices(tmp_path):
    """A folder of five phantom slices of another population, one of them in a folder of its own."""
    data = open_data(DataConfig(phantom_images=30, size="32x32", split_seed=5), ["val"]).splits["val"]
    folder = tmp_path / "slices"
    (folder / "more").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(data.images[i % len(data), 0]).save(folder / ("more" if i == 2 else "") / f"case{i}_k07.png")
    return folder


def test_a_finished_run_is_measured_in_every_part(chain):
    found = report_of(chain.run / "report")
    for name in ("count", "subjects", "mse", "psnr_db", "ssim", "worst", "mean_image", "upper", "ssim_foreground"):
        assert name in found["reconstruction"]
    assert found["split"] == {
        "name": "test",
        "data": "phantom",
        "own": True,
        "images": found["reconstruction"]["count"],
        "subjects": found["reconstruction"]["subjects"],
        "held_out": True,
        "shared_subjects": 0,
        "identical_images": 0,
    }
    for level in ("top", "bottom"):
        figures = found["levels"][level]
        assert figures["gain"] == pytest.approx(figures["position_nll"] - figures["nll"])
        assert figures["nll_bits"] == pytest.approx(figures["nll"] / np.log(2))
        assert 1 <= figures["perplexity"] <= 16
    assert found["samples"]["count"] == 5
    assert len(found["samples"]["memorisation"]["nearest"]) == 5
    assert len(found["samples"]["nll_by_sample"]["top"]) == 5
    assert found["phantom"]["labels"]["atrophy"]["samples"] == 5
    assert [line.partition(":")[0] for line in found["missing"]] == [
        "distances in MobileNetV2's features, which tell best whether images look real"
    ]
    assert "--label diagnosis=atrophy" in found["commands"][-2]
    text = (chain.run / "report" / "index.html").read_text()
    shown = {path.name for path in (chain.run / "report" / "figures").iterdir()}
    inside = {b64decode(source) for source in re.findall(r'src="data:image/png;base64,([^"]+)"', text)}
    assert inside == {(chain.run / "report" / "figures" / name).read_bytes() for name in shown}
    assert len(shown) == 13
    assert found["hashes"]["vqvae_sha256"] in text
    for line in found["warnings"]:
        assert f"warning: {line}" in chain.stages["evaluate"].out


def test_the_figures_are_those_of_the_models_and_the_store(chain):
    found = report_of(chain.run / "report")
    store, model = CodeStore(chain.run / "codes"), VQVAE.from_pretrained(chain.run / "vqvae")
    test, train = store.indices("test"), store.indices("train")
    codes, train_codes = store.read(test), store.read(train)
    for i, level in enumerate(model.levels):
        figures = found["levels"][level]
        assert figures["position_nll"] == pytest.approx(positionwise_unigram_nll(train_codes[i], codes[i], 16))
        assert figures["unigram_nll"] == pytest.approx(unigram_nll(train_codes[i], codes[i], 16))
        prior = Prior.from_pretrained(chain.run / f"prior-{level}")
        batch = store.__getitems__(test)
        with torch.no_grad():
            logits = prior(batch["codes"][i], condition=batch["codes"][:i], label=batch["label"])
        nll = torch.nn.functional.cross_entropy(logits.double(), batch["codes"][i])
        assert figures["nll"] == pytest.approx(float(nll), rel=1e-5)
    bits = sum(found["levels"][level]["nll_bits"] * cells for level, cells in (("top", 16), ("bottom", 64)))
    assert found["bits_per_dim"]["prior"] == pytest.approx(bits / 32**2)
    with open(chain.run / "report" / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [store.keys[i] for i in test]
    assert np.mean([float(row["ssim"]) for row in rows]) == pytest.approx(found["reconstruction"]["ssim"]["mean"])
    images = (
        open_data(DataConfig(phantom_images=60, size="32x32"), ["test"]).splits["test"].__getitems__(range(len(test)))
    )
    error = (model.decode(model.encode(images["image"])) - images["image"]).square().mean()
    assert found["reconstruction"]["mse"]["mean"] == pytest.approx(float(error), rel=1e-5)


def test_a_vqvae_alone_is_measured_and_the_rest_says_what_to_run(run, call):
    for name in ("codes", "prior-top", "prior-bottom", "samples", "report"):
        shutil.rmtree(run / name)
    ended = call(evaluate.main, "--run", run)
    assert ended.code == 0, ended.err
    found = report_of(run / "report")
    assert found["missing"][0] == f"priors, which need codes: python -m vqvae2 extract-codes --run {run}"
    assert not {"samples", "phantom", "bits_per_dim"} & set(found)
    assert "nll" not in found["levels"]["top"]
    assert "extract-codes" in (run / "report" / "index.html").read_text()
    assert not (run / "samples").exists()


def test_samples_are_drawn_where_there_are_none_as_sample_draws_them(run, call):
    shutil.rmtree(run / "samples")
    assert call(evaluate.main, "--run", run, "--num-samples", "3").code == 0
    assert report_of(run / "report")["samples"]["count"] == 3
    assert call(sample.main, "--run", run, "--num", "3", "--seed", "0", "--out", run / "again").code == 0
    assert (run / "again" / "codes.npz").read_bytes() == (run / "samples" / "codes.npz").read_bytes()


def test_samples_of_a_large_set_are_named_by_their_numbers(run, call, monkeypatch):
    monkeypatch.setattr(compared, "_MOST_SAMPLES", 3)
    assert call(evaluate.main, "--run", run).code == 0
    found = report_of(run / "report")["samples"]
    assert (found["count"], found["judged"]) == (5, 3)
    assert [one["sample"] for one in found["memorisation"]["nearest"]] == [0, 2, 4]


def test_every_folder_of_samples_counts_for_its_label(run, call):
    shutil.rmtree(run / "samples")
    for label in ("healthy", "atrophy"):
        out = run / f"samples-{label}"
        assert call(sample.main, "--run", run, "--num", "4", "--label", f"diagnosis={label}", "--out", out).code == 0
    assert call(evaluate.main, "--run", run, "--num-samples", "0").code == 0
    assert report_of(run / "report")["missing"][0] == f"samples: python -m vqvae2 sample --run {run}"
    labels = report_of(run / "report")["phantom"]["labels"]
    assert [labels[name]["samples"] for name in ("healthy", "atrophy")] == [4, 4]
    assert labels["healthy"]["true_mean"] < labels["atrophy"]["true_mean"]
    assert "ventricle_difference_ratio" in report_of(run / "report")["phantom"]


def test_a_folder_of_ones_own_is_reconstructed_under_its_names_in_its_values(run, slices, tmp_path, call):
    before = contents(run)
    out = tmp_path / "out"
    ended = call(
        evaluate.main, "--run", run, "--data", slices, "--split", "all", "--save-reconstructions", "--out", out
    )
    assert ended.code == 0, ended.err
    assert contents(run) == before
    found = report_of(out)
    assert (found["split"]["name"], found["split"]["images"]) == ("all", 3)
    assert "samples" not in found
    assert "nll" in found["levels"]["top"]
    model = VQVAE.from_pretrained(run / "vqvae")
    images = load_images(slices, found["data"])
    made = from_unit(model.decode(model.encode(images.at(range(3)))), images.value_range)
    for key, pixels in zip(images.keys, made, strict=True):
        assert np.abs(np.asarray(Image.open(out / "reconstructions" / key)).astype(int) - pixels[0]).max() <= 1
    assert len(list((out / "reconstructions").rglob("*.png"))) == 3
    next(slices.rglob("*.png")).unlink()
    again = call(
        evaluate.main, "--run", run, "--data", slices, "--split", "all", "--save-reconstructions", "--out", out
    )
    assert again.code == 0, again.err
    assert len(list((out / "reconstructions").rglob("*.png"))) == 2


def test_sets_are_compared_in_features_where_the_weights_are(run, tmp_path, monkeypatch, call):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights(tmp_path / "torch")
    (tmp_path / "my_network.py").write_text("def rows(images):\n    return images.mean(3).flatten(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    ended = call(evaluate.main, "--run", run, "--features", "my_network:rows")
    assert ended.code == 0, ended.err
    found = report_of(run / "report")
    assert found["missing"] == []
    model, data = VQVAE.from_pretrained(run / "vqvae"), open_data(DataConfig(phantom_images=60, size="32x32"))
    test, train = (data.splits[name].at(range(len(data.splits[name]))) for name in ("test", "train"))
    with np.load(run / "samples" / "codes.npz") as arrays:
        samples = model.decode([torch.from_numpy(arrays[level].astype(np.int64)) for level in model.levels]).detach()
    sets = {
        "reconstructions": model.decode(model.encode(test)).detach(),
        "samples": samples,
        "training_images": train,
        "blurred_0.5": gaussian_blur(test, 0.5),
        "blurred_1.0": gaussian_blur(test, 1.0),
    }

    def raw(images):
        with torch.no_grad():
            return torch.cat([level.mean((2, 3)) for level in model.features(images)], 1)

    def encoded(images):
        deviation = raw(test).std(0)
        kept = deviation > 1e-3 * deviation.max()
        return torch.where(kept, (raw(images) - raw(test).mean(0)) / deviation, 0)

    def rows(images):
        return images.mean(3).flatten(1)

    for space, features_of in (("MobileNetV2", features), ("encoder", encoded), ("my_network:rows", rows)):
        distances = found["distances"][space]
        assert distances.keys() == sets.keys()
        for name, images in sets.items():
            paired = name not in ("samples", "training_images")
            value, _ = kernel_distance(features_of(images), features_of(test), paired=paired)
            assert ("coverage" in distances[name]) == (not paired)
            assert distances[name]["kid"] == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert distances[name]["count"] == len(images)
    assert found["verdict"] == verdict(found)
    assert all(line["reason"] in ended.out for line in found["verdict"])
    page = (run / "report" / "index.html").read_text()
    assert "real beside real" in page
    assert "Distances in my_network:rows&#x27;s features" in page


def test_frechet_distance_in_named_features_is_over_all_samples_and_images(run, tmp_path, monkeypatch, call):
    (tmp_path / "own_rows.py").write_text("def rows(images):\n    return images.mean(3).flatten(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compared, "COMPARED", 4)
    ended = call(evaluate.main, "--run", run, "--features", "own_rows:rows")
    assert ended.code == 0, ended.err
    found = report_of(run / "report")["distances"]
    model, data = VQVAE.from_pretrained(run / "vqvae"), open_data(DataConfig(phantom_images=60, size="32x32"))
    test = data.splits["test"].at(range(len(data.splits["test"])))
    with np.load(run / "samples" / "codes.npz") as arrays:
        codes = [torch.from_numpy(arrays[level].astype(np.int64)) for level in model.levels]
    made = model.decode(codes).detach()
    own = found["own_rows:rows"]["samples"]
    assert (own["compared"], own["samples_of_all"], own["real_of_all"]) == (4, len(made), len(test))
    distance = frechet_distance(*(images.mean(3).flatten(1) for images in (test, made)))
    assert own["frechet_of_all"] == pytest.approx(distance, rel=1e-4)
    assert "frechet_of_all" not in found["encoder"]["samples"]
    told = f"{distance:.2f} over all {len(made)} samples and all {len(test)} scored images"
    assert told in ended.out
    assert f"Over all {len(made)} samples" in (run / "report" / "index.html").read_text()


def test_features_that_there_are_not_are_told_before_the_work(run, refused):
    before = contents(run)
    assert "torchvision has no classifier resnet" in refused(evaluate.main, "--run", run, "--features", "resnet")
    assert contents(run) == before


def test_images_of_another_kind_are_told_from_overfitting(run, tmp_path, call):
    """Noise stands for another kind of image; held-out phantoms of another seed for the same kind."""
    random = np.random.default_rng(0)
    same = open_data(DataConfig(phantom_images=80, size="32x32", split_seed=5), ["val"]).splits["val"]
    for name, images in (("noise", random.integers(0, 256, (6, 32, 32), np.uint8)), ("phantoms", same.images[:, 0])):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"case{i}_k07.png")
        out = tmp_path / f"report-{name}"
        ended = call(evaluate.main, "--run", run, "--data", tmp_path / name, "--split", "all", "--out", out)
        assert ended.code == 0, ended.err
        found, text = report_of(out), (out / "index.html").read_text()
        assert found["own"]["count"] == 7
        assert set(found["own"]["nll"]) == {"top", "bottom"}
        assert found["own"]["ssim_foreground"]["mean"] != found["own"]["ssim"]["mean"]  # not of the whole frame
        assert f"<title>run on {tmp_path / name}" in text
        assert "own val images" in ended.out
        told = [line for line in found["warnings"] if line.startswith("These images are unlike the training images")]
        assert len(told) == (name == "noise")
        assert "overfits" not in ended.out
        assert "train it longer" not in ended.out
        assert any("Compared with 7 of the run's own val images: MSE" in line for line in found["summary"])
    own = open_data(DataConfig(phantom_images=60, size="32x32"), ["val"]).splits["val"]
    model = VQVAE.from_pretrained(run / "vqvae")
    x = own.at(range(len(own)))
    error = (model.decode(model.encode(x)) - x).square().mean()
    assert found["own"]["mse"]["mean"] == pytest.approx(float(error), rel=1e-5)


def test_samples_of_other_models_are_kept_and_named(run, call):
    how = json.loads((run / "samples" / "samples.json").read_text())
    how["prior_sha256"]["top"] = "0" * 64
    (run / "samples" / "samples.json").write_text(json.dumps(how))
    before = contents(run / "samples")
    assert call(evaluate.main, "--run", run).code == 0
    assert contents(run / "samples") == before
    told = f"samples, which other models made: python -m vqvae2 sample --run {run} --overwrite"
    assert report_of(run / "report")["missing"][0] == told


def test_the_report_repeats_what_was_typed(chain):
    commands = report_of(chain.run / "report")["commands"]
    typed = [[*flags] for _, *flags in CHAIN.values()]
    assert [shlex.split(line)[4:] for line in commands] == typed
    assert [shlex.split(line)[1:4] for line in commands] == [
        [str(ROOT / script), "--run", "run"] for script, *_ in CHAIN.values()
    ]


def test_a_split_that_was_trained_on_is_measured_with_a_warning(run, call):
    ended = call(evaluate.main, "--run", run, "--split", "train")
    assert ended.code == 0, ended.err
    found = report_of(run / "report")
    assert found["split"]["name"] == "train"
    assert not found["split"]["held_out"]
    assert "not held-out figures" in ended.out
    assert "samples" not in found


def test_a_dry_run_writes_nothing(run, call):
    shutil.rmtree(run / "report")
    before = contents(run)
    ended = call(evaluate.main, "--run", run, "--dry-run")
    assert ended.code == 0
    assert "split test of phantom" in ended.out
    assert contents(run) == before


def test_mistakes_are_told_in_one_line(run, slices, tmp_path, call, refused):
    assert "this is not a run folder" in refused(evaluate.main, "--run", tmp_path / "absent")
    assert "out of range" in refused(evaluate.main, "--run", run, "--num-samples", "-1")
    assert "there is no such folder" in refused(evaluate.main, "--run", run, "--data", tmp_path / "absent")
    assert "holds other files, such as case0_k07.png" in refused(evaluate.main, "--run", run, "--out", slices)
    inside = refused(evaluate.main, "--run", run, "--data", slices, "--split", "all", "--out", slices / "report")
    assert "among the images" in inside
    assert call(evaluate.main, "--run", run, "--split", "bad").code == 2
    (run / "samples" / "codes.npz").write_bytes(b"no archive")
    assert "the samples are damaged" in refused(evaluate.main, "--run", run)
    shutil.rmtree(run / "vqvae")
    assert "there is no VQ-VAE yet" in refused(evaluate.main, "--run", run)


def test_parts_that_do_not_belong_together_are_refused(run, refused):
    config = json.loads((run / "prior-top" / "config.json").read_text())
    (run / "prior-top" / "config.json").write_text(json.dumps({**config, "codes": "0" * 64}))
    assert "not trained on the codes in" in refused(evaluate.main, "--run", run)
    model = VQVAE.from_pretrained(run / "vqvae")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(run / "vqvae", json.loads((run / "vqvae" / "config.json").read_text())["data"])
    assert "not made by the VQ-VAE in" in refused(evaluate.main, "--run", run)


def test_own_images_are_scored_in_the_foreground_that_the_training_images_tell(started):
    splits = open_data(DataConfig(phantom_images=40, size="32x32"), ["train", "val"]).splits
    config = VQVAEConfig(height=32, width=32, hidden_channels=8, residual_channels=4, init_vectors=64)
    model, val = started(config), splits["val"]
    models = evaluate.Models(model, None, {}, {}, [])
    evaluated = Evaluated(val, "all", "elsewhere", False, {}, splits["train"], val)
    background = evaluate.background_of(evaluated)
    found = evaluate._own_figures(models, val, background, evaluate.Arguments(Path("run")))
    x = val.at(range(len(val)))
    mask = foreground(x, background_of(splits["train"]))
    assert 0.1 < float(mask.double().mean()) < 0.9
    expected = foreground_scores(model.decode(model.encode(x)), x, mask)
    for name in ("ssim_foreground", "psnr_foreground_db"):
        assert found[name]["mean"] == pytest.approx(float(expected[name].mean()), rel=1e-5)
