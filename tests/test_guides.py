"""A prior's guide, itself early in its training: kept by the training, used by sampling, exported with the models."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from plane import SHORT, Plane, saved_weight, train
from tiny_priors import tiny_prior

from vqvae2 import checkpoint, presets
from vqvae2.interrupts import Interrupted
from vqvae2.prior import Prior
from vqvae2.sampling import Sharpness
from vqvae2.stages import evaluate, export, sample

pytest_plugins = ["tiny_run_fixtures"]


def record(folder):
    return json.loads((folder / "samples.json").read_text())


def codes(folder):
    with np.load(folder / "codes.npz") as stored:
        return {name: stored[name] for name in stored.files}


class Guided(Plane):
    """A plane whose model is kept early in its training."""

    has_guide = True


def test_a_training_keeps_its_model_as_it_was_early(tmp_path):
    task = Guided()
    train(task, tmp_path, replace(SHORT, max_steps=10, guide_share=0.5))
    assert torch.equal(saved_weight(tmp_path / checkpoint.GUIDE), task.steps[4])
    assert not torch.equal(saved_weight(tmp_path), task.steps[4])
    train(Plane(), tmp_path / "without", SHORT)
    assert not (tmp_path / "without" / checkpoint.GUIDE).exists()


def test_the_guide_is_of_the_averaged_weights(tmp_path):
    config = replace(SHORT, max_steps=10, evaluations=2, ema_decay=0.6, guide_share=0.5)
    task = Guided()
    train(task, tmp_path, config)
    assert torch.equal(saved_weight(tmp_path / checkpoint.GUIDE), task.evaluated[0])


@pytest.mark.parametrize("stop", [2, 7])
def test_the_guide_is_the_same_after_an_interruption(tmp_path, stop):
    config = replace(SHORT, max_steps=10, guide_share=0.5)
    train(Guided(), tmp_path / "whole", config)

    def interrupt(call):
        if call == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(Guided(at_call=interrupt), tmp_path / "parts", config)
    assert (tmp_path / "parts" / checkpoint.GUIDE).exists() == (stop >= 5)
    train(Guided(), tmp_path / "parts", config, resume=True)
    for folder in (checkpoint.GUIDE, "."):
        assert torch.equal(saved_weight(tmp_path / "parts" / folder), saved_weight(tmp_path / "whole" / folder))


def test_priors_have_guides_by_which_samples_are_drawn(run, call):
    for level in ("top", "bottom"):
        prior, guide = (Prior.from_pretrained(run / f"prior-{level}" / part) for part in (".", "guide"))
        assert prior.config == guide.config
        assert not torch.equal(prior.output.weight, guide.output.weight)
    flags = ("--run", run, "--num", 4, "--chunk-size", 4)
    assert call(sample.main, *flags, "--out", run / "plain").code == 0
    told = call(sample.main, *flags, "--autoguidance", 1e6, 1, "--out", run / "guided")
    assert told.code == 0, told.err
    plain, guided = record(run / "plain"), record(run / "guided")
    assert (guided["autoguidance"], plain["autoguidance"]) == ([1e6, 1], [1, 1])
    assert guided["guide_sha256"] == {"top": checkpoint.sha256_of(run / "prior-top" / "guide")}
    assert "guide_sha256" not in plain
    assert not np.array_equal(codes(run / "plain")["top"], codes(run / "guided")["top"])


def test_samples_of_another_guide_are_not_taken_for_these(run, call, refused):
    flags = ("--run", run, "--num", 2, "--autoguidance", 2, "--out", run / "guided")
    assert call(sample.main, *flags).code == 0
    assert "with autoguidance 2.0, 2.0" in refused(sample.main, *flags[:4], "--out", run / "guided").replace("[", "")
    shutil.copy(run / "prior-top" / "model.safetensors", run / "prior-top" / "guide" / "model.safetensors")
    assert "made by other models" in refused(sample.main, *flags)


def test_a_missing_guide_is_told(run, refused, call):
    shutil.rmtree(run / "prior-top" / "guide")
    told = refused(sample.main, "--run", run, "--autoguidance", 2)
    assert "there is no guide of level top" in told
    assert "--autoguidance 1" in told
    assert call(sample.main, "--run", run, "--autoguidance", 1, 2, "--num", 1, "--out", run / "other").code == 0
    assert "--autoguidance -1 is out of range" in refused(sample.main, "--run", run, "--autoguidance", -1)
    assert "--min-p 2 is out of range" in refused(sample.main, "--run", run, "--min-p", 2)


def test_a_guide_of_another_prior_is_refused(run, refused):
    path = run / "prior-top" / "guide" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dropout": 0.5}))
    assert "not of the prior of level top" in refused(sample.main, "--run", run, "--autoguidance", 2)


def test_the_presets_settings_are_the_usual_ones(run, call, monkeypatch):
    name = json.loads((run / "run.json").read_text())["preset"]
    preset = replace(presets.PRESETS[name], sampling={"autoguidance": (3.0, 2.0), "min_p": (0.01, 0.02)})
    monkeypatch.setitem(presets.PRESETS, name, preset)
    flags = ("--run", run, "--num", 2)
    assert call(sample.main, *flags, "--out", run / "usual").code == 0
    assert call(sample.main, *flags, "--autoguidance", 1, "--out", run / "one").code == 0
    usual, one = record(run / "usual"), record(run / "one")
    assert (usual["autoguidance"], usual["min_p"]) == ([3, 2], [0.01, 0.02])
    assert (one["autoguidance"], one["min_p"]) == ([1, 1], [0, 0])
    shutil.rmtree(run / "samples")
    assert call(evaluate.main, "--run", run, "--num-samples", 2).code == 0
    assert record(run / "samples")["autoguidance"] == [3, 2]
    shutil.rmtree(run / "prior-bottom" / "guide")  # as in a run of an earlier version
    assert call(sample.main, *flags, "--out", run / "old").code == 0
    assert record(run / "old")["autoguidance"] == [1, 1]


def test_guided_samples_of_exported_models_are_the_same(run, call, tmp_path):
    out = tmp_path / "models"
    assert call(export.main, "--run", run, "--out", out, "--weights", "fp32").code == 0
    flags = ("--num", 3, "--chunk-size", 4, "--autoguidance", 2)
    for folder in (run, out):
        assert call(sample.main, "--run", folder, *flags, "--out", folder / "guided").code == 0
    ours, theirs = codes(run / "guided"), codes(out / "guided")
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    small = tmp_path / "small"
    assert call(export.main, "--run", run, "--out", small, "--weights", "fp16").code == 0
    assert call(sample.main, "--run", small, *flags).code == 0
    how = record(small / "samples")
    assert (how["autoguidance"], sorted(how["guide_sha256"])) == ([2, 2], ["bottom", "top"])


@pytest.mark.parametrize("name", [name for name, preset in presets.PRESETS.items() if preset.sampling])
def test_presets_settings_of_sampling_are_valid(name):
    preset = presets.PRESETS[name]
    assert set(preset.sampling) <= {"autoguidance", "min_p"}
    assert {len(values) for values in preset.sampling.values()} == {len(preset.priors)}
    settings = preset.sampling_for(len(preset.priors) + 1)
    prior = tiny_prior((4, 4))
    for guided, least in zip(settings["autoguidance"], settings["min_p"], strict=True):
        Sharpness(autoguidance=guided, min_p=least, guide=prior)


def test_labels_weigh_nothing_where_a_prior_never_saw_them_hidden(run, call, refused):
    """Its embedding for no label was never trained, so that there is nothing to weigh against."""
    config = json.loads((run / "prior-bottom" / "config.json").read_text())
    (run / "prior-bottom" / "config.json").write_text(json.dumps(config | {"label_dropout": 0.0}))
    flags = ("--run", run, "--num", 2, "--overwrite", "--label", "diagnosis=atrophy", "--guidance")
    assert "that of level bottom was trained with --label-dropout 0" in refused(sample.main, *flags, 2)
    told = call(sample.main, *flags, 2, 1)
    assert told.code == 0
    assert "guidance 2 / 1" in told.out
