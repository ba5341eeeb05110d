"""Exported models: small, without paths, from which others sample, evaluate and train on."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2 import checkpoint, programs
from vqvae2.data import DataConfig, from_unit, open_data
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
        told = call(sample.main, "--run", folder, "--num", 3, "--seed", 4, "--chunk-size", 4)
        assert told.code == 0
        assert ("--data DATA" in told.out.splitlines()[-1]) == (folder == out)  # they come without
    names = [path.name for path in (run / "samples").glob("0*.png")]
    assert len(names) == 3
    for name in names:
        ours, theirs = (np.asarray(Image.open(folder / "samples" / name)) for folder in (run, out))
        np.testing.assert_array_equal(ours, theirs)


def test_exported_models_score_other_images(models, tmp_path, call, refused, monkeypatch):
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
    # A folder that happens to be called as the training's was is not the training's.
    record = json.loads((out / "run.json").read_text())
    record["train_vqvae"]["data"]["data"] = "slices"
    (out / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    told = call(evaluate.main, "--run", out, "--data", "slices", "--split", "all", "--out", "own")
    assert told.code == 0, told.err
    assert not json.loads((tmp_path / "own" / "report.json").read_text())["split"]["own"]
    assert "come without data" in refused(evaluate.main, "--run", out)
    weights = out / "prior-top" / "guide" / "model.safetensors"
    guide = weights.read_bytes()
    weights.write_bytes((out / "vqvae" / "model.safetensors").read_bytes())
    assert "not those that were exported" in refused(sample.main, "--run", out, "--autoguidance", 2)
    weights.write_bytes(guide)
    (out / "prior-top" / "model.safetensors").write_bytes((out / "vqvae" / "model.safetensors").read_bytes())
    assert "not those that were exported" in refused(sample.main, "--run", out)


def test_the_shipped_models_draw_slices(tmp_path, call):
    for level in ("top", "middle", "bottom"):
        assert Prior.from_pretrained(ROOT / "weights" / "ixi128" / f"prior-{level}" / "guide").config.level == level
    told = call(
        sample.main, "--run", ROOT / "weights" / "ixi128", "--num", 1, "--chunk-size", 1, "--out", tmp_path / "out"
    )
    assert told.code == 0, told.err
    how = ["--run", ROOT / "weights" / "ixi128", "--num", 1, "--chunk-size", 1, "--levels", 3, "--autoguidance", 1]
    whole = call(sample.main, *how, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    for name, levels in (("out", ("top",)), ("whole", ("top", "middle", "bottom"))):
        about = json.loads((tmp_path / name / "samples.json").read_text())
        assert about["levels"] == list(levels)
        for level, most in zip(levels, (3.0, 2.6, 1.8), strict=False):
            assert 0.1 < about["nll_nats_per_code"][level][0] < most
        pixels = np.asarray(Image.open(tmp_path / name / "00000.png"))
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


def test_programs_are_exported_checked_and_used_without_this_package(run, tmp_path, call, monkeypatch):
    out = tmp_path / "models"
    told = call(export.main, "--run", run, "--out", out, "--programs", "onnx", "torch")
    assert told.code == 0, told.err
    records = json.loads((out / "models.json").read_text())["programs"]
    for kind, suffix in programs.SUFFIXES.items():
        names = [f"encoder{suffix}", f"decoder{suffix}"]
        assert re.search(
            rf"^{kind} +{', '.join(names)}: \d+ of 4,\d{{3}} codes differ from the model's", told.out, re.M
        )
        record = records[kind]
        assert record["codes_that_differ"] <= programs.CODES_SHARE * record["codes"]
        assert record["largest_difference"] <= programs.IMAGE_DIFFERENCE
        hashes = {name: hashlib.sha256((out / "vqvae" / name).read_bytes()).hexdigest() for name in names}
        assert record["sha256"] == hashes
        assert " and ".join(f"`vqvae/{name}`" for name in names) in (out / "README.md").read_text()
    # The page's own examples, from a file to a file.
    val = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"), ["val"]).splits["val"]
    Image.fromarray(np.array(val.images[0][0])).save(tmp_path / "slice.png")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "elsewhere.md").read_text(), re.S)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for example in examples:
        exec(example, found)
    model = VQVAE.from_pretrained(out / "vqvae")
    codes = model.encode(val[0]["image"][None])
    theirs = [torch.from_numpy(level) for level in found["codes"]]
    assert sum(int((a != b).sum()) for a, b in zip(codes, theirs, strict=True)) <= 1  # of 80: a near tie
    drawn = from_unit(model.decode(theirs), val.value_range)[0, 0]
    np.testing.assert_allclose(np.asarray(Image.open("back.png")), drawn, atol=1)  # a half may be rounded either way
    torch.testing.assert_close(found["y"], model.decode(codes), rtol=0, atol=1e-5)
    assert call(sample.main, "--run", out, "--num", 1).code == 0


def test_a_failed_check_leaves_nothing(run, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(programs, "IMAGE_DIFFERENCE", -1.0)
    out = tmp_path / "models"
    line = refused(export.main, "--run", run, "--out", out, "--programs", "torch")
    assert "the torch programs do not compute what the model does" in line
    assert not out.exists()


def test_a_missing_package_or_model_is_told_before_anything_is_written(run, tmp_path, refused, monkeypatch):
    out = tmp_path / "models"
    out.mkdir()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused(export.main, "--run", run, "--out", out, "--programs", "onnx")
    assert "need the package onnxruntime. Run pip install onnx onnxscript onnxruntime" in line
    shutil.rmtree(run / "prior-bottom")
    assert "there is no model yet" in refused(export.main, "--run", run, "--out", out)
    assert not list(out.iterdir())


def test_what_lies_in_a_new_repository_stays(run, tmp_path, call, refused):
    out = tmp_path / "models"
    (out / ".git").mkdir(parents=True)
    (out / ".git" / "HEAD").write_text("ref")
    (out / "README.md").write_text("mine")
    (out / "notes.txt").write_text("mine too")
    assert "other files, such as notes.txt" in refused(export.main, "--run", run, "--out", out)
    (out / "notes.txt").unlink()
    assert call(export.main, "--run", run, "--out", out).code == 0
    assert (out / "README.md").read_text() == "mine"
    assert {path.name for path in out.iterdir()} == {
        ".git", "README.md", "models.json", "run.json", "vqvae", "prior-top", "prior-bottom",
    }  # fmt: skip


def test_exported_models_are_exported_again(models, tmp_path, call):
    first, second = models("int8"), tmp_path / "again"
    (first / "README.md").write_text("a card with a licence")
    assert call(export.main, "--run", first, "--out", second, "--weights", "int8").code == 0
    assert (second / "README.md").read_text() == "a card with a licence"
    assert (second / "run.json").read_bytes() == (first / "run.json").read_bytes()
    labels = [json.loads((folder / "models.json").read_text())["labels"] for folder in (first, second)]
    assert labels[0] == labels[1]
    for level in ("top", "bottom"):
        before, after = (checkpoint.load_tensors(folder / f"prior-{level}") for folder in (first, second))
        torch.testing.assert_close(after, before, rtol=1e-6, atol=0)  # of 8 bits, to the same 8 bits


def test_the_card_has_the_figures_of_these_models_and_no_names(run, models):
    report = json.loads((run / "report" / "report.json").read_text())
    out = models("fp16")
    card = (out / "README.md").read_text()
    head = card.split("---\n")[1].splitlines()
    assert head[0] == "library_name: vqvae2"
    assert head[-1].startswith("# license:")
    assert f"| SSIM over the frame | {report['reconstruction']['ssim']['mean']:.3f} |" in card
    assert f"| NLL of bottom (nats per code) | {report['levels']['bottom']['nll']:.3f} |" in card
    assert "| bottom | 8x8 | 16 | 4 |" in card
    assert "--label diagnosis=healthy" in card
    people = {row.split(",")[0] for row in (run / "data-report" / "subjects.csv").read_text().splitlines()[1:]}
    assert len(people) > 20
    for private in (*people, str(run.parent), str(Path.home())):
        assert private not in card
    # A report of other models says nothing of these.
    report["hashes"]["prior_sha256"]["top"] = "0" * 64
    (run / "report" / "report.json").write_text(json.dumps(report))
    shutil.rmtree(out)
    card = (models("fp16") / "README.md").read_text()
    best = json.loads((run / "run.json").read_text())["train_vqvae"]["outcome"]["best"]
    assert "when each training ended" in card
    assert f"| SSIM over the frame | {best['val/ssim']:.3f} |" in card


def test_the_card_s_own_example_runs(models, tmp_path, monkeypatch):
    out = models("fp16")
    (example,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    found = {"x": torch.zeros(2, 1, 32, 32)}
    exec(example, found)
    assert found["y"].shape == (2, 1, 32, 32)
    assert found["out"].images.shape == (16, 1, 32, 32)
