"""A run's classifier: what the report says by it, and the samples that are chosen by it."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import contents

from vqvae2.stages import evaluate, recognition, sample, sample_folder

pytest_plugins = ["tiny_run_fixtures"]


@pytest.fixture(scope="module")
def made(chain, tmp_path_factory):
    """A run with 44 samples of both classes, and a classifier that has hardly learnt anything."""
    run = shutil.copytree(chain.run, tmp_path_factory.mktemp("judged") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognition, "STEPS", 2)
        assert sample.main(["--run", str(run), "--chunk-size", "8", "--num", "44", "--overwrite"]) == 0
        assert evaluate.main(["--run", str(run), "--classifier", "diagnosis", "--against", str(chain.run)]) == 0
    return run


@pytest.fixture
def judged(made, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(made, tmp_path / "run")


def test_the_report_says_what_a_classifier_recognises(judged, call, monkeypatch):
    monkeypatch.setattr(recognition, "STEPS", 2)
    found = json.loads((judged / "report" / "report.json").read_text())
    told = found["recognition"]
    assert told["classes"] == ["healthy", "atrophy"]
    assert told["held_out"]["count"] == found["split"]["images"]
    assert told["recognised"]["count"] == 44
    assert told["score_count"] == 44
    assert 0 <= told["score"]["accuracy"] <= 1
    assert 0 <= told["real_score"]["accuracy"] <= 1
    doubts = [doubt.split(":")[0] for doubt in found["comparison"]["doubts"]]
    assert doubts == ["44 samples here, 5 there", "samples were drawn with another label"]
    page = (judged / "report" / "index.html").read_text()
    assert "Recognition of diagnosis" in page
    assert "Comparison" in page
    weights = (judged / "classifier-diagnosis" / "model.safetensors").read_bytes()
    assert call(evaluate.main, "--run", judged, "--classifier", "diagnosis").code == 0
    assert (judged / "classifier-diagnosis" / "model.safetensors").read_bytes() == weights  # taken, not trained again


def test_the_surest_samples_of_each_class_are_kept(judged, call):
    flags = ["--run", judged, "--chunk-size", 8, "--seed", 3]
    assert call(sample.main, *flags, "--num", 20, "--out", judged / "all").code == 0
    ended = call(sample.main, *flags, "--num", 10, "--reject", 0.5, "--out", judged / "chosen")
    assert ended.code == 0, ended.err
    assert "the surest of 20" in ended.out
    everything, chosen = (json.loads((judged / name / "samples.json").read_text()) for name in ("all", "chosen"))
    assert (chosen["num"], chosen["drawn"], chosen["reject"]) == (10, 20, 0.5)
    images = {path.read_bytes(): int(path.stem) for path in (judged / "all").glob("0*.png")}
    rows = [images[(judged / "chosen" / f"{i:05d}.png").read_bytes()] for i in range(10)]
    assert rows == sorted(rows)
    with np.load(judged / "all" / "codes.npz") as whole, np.load(judged / "chosen" / "codes.npz") as part:
        for level in whole.files:
            np.testing.assert_array_equal(part[level], whole[level][rows])
    assert chosen["labels"] == [everything["labels"][row] for row in rows]
    for k in (0, 1):
        drawn = sum(label == [k] for label in everything["labels"])
        assert abs(sum(label == [k] for label in chosen["labels"]) - drawn / 2) < 1
    before = contents(judged / "chosen")
    assert call(sample.main, *flags, "--num", 10, "--reject", 0.5, "--out", judged / "chosen").code == 0
    assert contents(judged / "chosen").keys() == before.keys()
    assert not list((judged / "chosen").glob(".unfinished-*"))


def test_a_rejection_that_was_interrupted_leaves_no_image_to_a_set_without(judged, call, refused, monkeypatch):
    flags = ["--run", judged, "--chunk-size", 8, "--seed", 3, "--num", 10]
    assert call(sample.main, *flags, "--out", judged / "all").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(sample_folder, "begin", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(sample.main, *flags, "--reject", 0.5, "--out", judged / "other").code != 0
    assert list((judged / "other").glob(".unfinished-*/chosen/*.png"))
    assert call(sample.main, *flags, "--out", judged / "other").code == 0
    for i in range(10):
        name = f"{i:05d}.png"
        assert (judged / "other" / name).read_bytes() == (judged / "all" / name).read_bytes()
    assert "--classifier is for --reject" in refused(sample.main, *flags, "--classifier", judged, "--out", judged / "x")


def test_sets_without_images_hold_the_same_codes(judged, call, refused, monkeypatch):
    flags = ["--run", judged, "--chunk-size", 8, "--num", 12]
    assert call(sample.main, *flags, "--out", judged / "with").code == 0
    assert call(sample.main, *flags, "--no-images", "--out", judged / "without").code == 0
    assert not list((judged / "without").glob("0*.png"))
    for name in ("codes.npz", "grid.png"):
        assert (judged / "with" / name).read_bytes() == (judged / "without" / name).read_bytes()
    assert "reject" in refused(sample.main, *flags, "--reject", 0.5, "--out", judged / "with")  # another set
    assert "holds images" in refused(sample.main, *flags, "--no-images", "--out", judged / "with")
    monkeypatch.setattr(sample_folder, "_FLAT", 12)
    larger = ["--run", judged, "--chunk-size", 8, "--num", 13]  # whose images lie in folders
    assert "holds images" in refused(sample.main, *larger, "--no-images", "--out", judged / "with")


def test_what_is_missing_is_told_in_one_line(judged, refused):
    shutil.copytree(judged / "classifier-diagnosis", judged / "classifier-other")
    assert "there are 2 classifiers" in refused(sample.main, "--run", judged, "--reject", 0.5)
    for name in ("diagnosis", "other"):
        shutil.rmtree(judged / f"classifier-{name}")
    assert "there is no classifier" in refused(sample.main, "--run", judged, "--reject", 0.5)
    assert "is no share" in refused(sample.main, "--run", judged, "--reject", 1)
    assert "there is no label age" in refused(evaluate.main, "--run", judged, "--classifier", "age")
    assert "no report of that run" in refused(evaluate.main, "--run", judged, "--against", judged / "vqvae")
