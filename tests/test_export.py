"""Exported models: small, without paths, from which others sample, evaluate and train on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2 import checkpoint
from vqvae2.data import DataConfig, open_data
from vqvae2.prior import Prior
from vqvae2.stages import evaluate, export, extract_codes, sample, train_prior, train_vqvae
from vqvae2.vqvae import VQVAE

pytest_plugins = ["tiny_run_fixtures"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def models(run, tmp_path, call):
    """A function: the run's models, exported with weights of a kind."""

    def exported(weights="fp32"):
        out = tmp_path / f"models-{weights}"
        told = call(export.main, "--run", run, "--out", out, "--weights", weights)
        assert told.code == 0, told.err
        return out

    return exported


def test_eight_bits_come_back_within_half_a_step():
    torch.manual_seed(0)
    weight = torch.randn(64, 80) * torch.logspace(-3, 2, 64)[:, None]
    stored = checkpoint.in_eight_bits("a", weight)
    assert {tensor.dtype for tensor in stored.values()} == {torch.int8, torch.float32}
    back = stored["a"].float() * stored["a::scale"]
    assert ((back - weight).abs().amax(1) <= weight.abs().amax(1) / 254 * 1.001).all()
    assert torch.equal(checkpoint.in_eight_bits("a", torch.zeros(2, 3))["a"], torch.zeros(2, 3, dtype=torch.int8))


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
def test_models_are_the_runs_own(run, models, weights):
    out = models(weights)
    for folder, kind in (("vqvae", VQVAE), ("prior-top", Prior), ("prior-bottom", Prior)):
        own, other = kind.from_pretrained(run / folder).state_dict(), kind.from_pretrained(out / folder).state_dict()
        for name, tensor in own.items():
            exact = weights == "fp32" or name.startswith("quantizers.")
            largest = float(tensor.abs().max())
            close = {"rtol": 0, "atol": 0 if exact else 1e-3 * largest if weights == "fp16" else largest / 254 * 1.01}
            torch.testing.assert_close(other[name].to(tensor), tensor, **close)
    text = "".join(path.read_text() for path in out.rglob("*.json"))
    assert str(run.parent) not in text
    assert sum(count for _, count in json.loads((out / "models.json").read_text())["labels"]) > 0


def test_samples_of_exported_models_are_the_same(run, models, tmp_path, call):
    out = models()
    for folder in (run, out):
        shutil.rmtree(folder / "samples", ignore_errors=True)
        assert call(sample.main, "--run", folder, "--num", 3, "--seed", 4, "--chunk-size", 4).code == 0
    names = [path.name for path in (run / "samples").glob("0*.png")]
    assert len(names) == 3
    for name in names:
        ours, theirs = (np.asarray(Image.open(folder / "samples" / name)) for folder in (run, out))
        np.testing.assert_array_equal(ours, theirs)


def test_exported_models_score_other_images(models, tmp_path, call, refused):
    out = models("int8")
    val = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"), ["val"]).splits["val"]
    (tmp_path / "slices").mkdir()
    for i in range(3):
        Image.fromarray(np.array(val.images[i][0])).save(tmp_path / "slices" / f"{i}.png")
    told = call(evaluate.main, "--run", out, "--data", tmp_path / "slices", "--split", "all")
    assert told.code == 0, told.err
    assert "SSIM" in told.out
    told = call(
        evaluate.main, "--run", out, "--data", tmp_path / "slices", "--split", "all",
        "--anomaly", tmp_path / "slices" / "0.png", "--draws", 2,
    )  # fmt: skip
    assert told.code == 0, told.err
    told = call(evaluate.main, "--run", out, "--data", "phantom", "--out", tmp_path / "report")
    assert told.code == 0, told.err
    missing = json.loads((tmp_path / "report" / "report.json").read_text())["missing"]
    assert any("exported models have none" in line for line in missing)
    assert "other files" in refused(export.main, "--run", out, "--out", out)
    (out / "prior-top" / "model.safetensors").write_bytes((out / "vqvae" / "model.safetensors").read_bytes())
    assert "not those that were exported" in refused(sample.main, "--run", out)


def test_the_shipped_models_draw_slices(tmp_path, call):
    told = call(
        sample.main, "--run", ROOT / "weights" / "ixi128", "--num", 1, "--chunk-size", 1, "--out", tmp_path / "out"
    )
    assert told.code == 0, told.err
    about = json.loads((tmp_path / "out" / "samples.json").read_text())
    for level, most in (("top", 3.0), ("middle", 2.6), ("bottom", 1.8)):
        assert 0.1 < about["nll_nats_per_code"][level][0] < most
    pixels = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    assert pixels.shape == (128, 128)
    assert pixels[:4].max() < 64 < pixels[40:90, 40:90].mean()  # air above, a head in the middle


def test_a_training_starts_from_exported_models(models, tmp_path, call, refused):
    init, run = models("fp16"), tmp_path / "next"
    data = ("--data", "phantom", "--phantom-images", 60)
    quick = ("--max-steps", 1, "--batch-size", 4)
    told = call(train_vqvae.main, "--run", run, "--init", init, *data, *quick, "--learning-rate", 1e-12)
    assert told.code == 0, told.err
    first, second = (VQVAE.from_pretrained(folder / "vqvae") for folder in (init, run))
    torch.testing.assert_close(first.encoders[0].state_dict(), second.encoders[0].state_dict(), atol=1e-3, rtol=0)
    assert (second.config.height, second.config.width) == (32, 32)
    assert call(extract_codes.main, "--run", run).code == 0
    told = call(train_prior.main, "--run", run, "--level", "top", "--init", init, *quick, "--learning-rate", 1e-12)
    assert told.code == 0, told.err
    first, second = (Prior.from_pretrained(folder / "prior-top") for folder in (init, run))
    torch.testing.assert_close(first.blocks.state_dict(), second.blocks.state_dict(), atol=1e-3, rtol=0)
    line = refused(train_vqvae.main, "--run", tmp_path / "a", "--init", init, *data, "--hidden-channels", 12)
    assert "--init has another architecture" in line
    line = refused(train_vqvae.main, "--run", tmp_path / "a", "--init", init, *data, "--preset", "cifar10")
    assert "Leave it out" in line
    assert "not a run folder" in refused(train_vqvae.main, "--run", tmp_path / "a", "--init", tmp_path, *data)
