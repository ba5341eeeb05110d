"""Images that a run was not trained for are named, with the figure that shows it."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.stages import anomaly, compress, evaluate
from vqvae2.stages.common import RunFolder
from vqvae2.stages.sampled import load_models
from vqvae2.stages.unlike import nats_per_code, training_nats, unlike

pytest_plugins = ["tiny_run_fixtures"]


@pytest.fixture
def noise(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / "noise" / f"{i}.png")
    return tmp_path / "noise"


def test_nats_are_averaged_over_the_codes_of_each_level():
    maps = [torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0.0, 0.0, 0.0, 4.0]]])]
    assert nats_per_code(maps).tolist() == [[2, 1]]
    known = [torch.tensor([[[True, False]]]), torch.tensor([[[False, False, True, True]]])]
    assert nats_per_code(maps, known).tolist() == [[1, 2]]
    known[0][:] = False
    assert np.isnan(nats_per_code(maps, known)).tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("nats", "count"),
    [([1.5, 5.5], 0), ([2.24, 6.2], 0), ([2.26, 5.0], 1), ([1.5, 6.3], 1), ([math.nan, 6.3], 1), ([0.1, 0.1], 0)],
)
def test_a_quarter_of_the_usual_range_is_left_in_each_level(nats, count):
    found, words = unlike(np.array([nats, [1.0, 5.0]]), [(1.0, 2.0), (5.0, 6.0)], ["top", "bottom"])
    assert found == count
    if count:
        stands_out = "top" if nats[0] > 2 else "bottom"
        assert f"of level {stands_out}, usual are" in words


def test_the_usual_range_is_that_of_training_images(run):
    _, priors = load_models(RunFolder(run), torch.device("cpu"))
    usual = training_nats(RunFolder(run), priors)
    assert all(0 < low < high < 2 * math.log(16) for low, high in usual)
    known = [torch.zeros(1, *prior.config.shape, dtype=torch.bool) for prior in priors]
    known[0][0, 0, 0] = True
    one = training_nats(RunFolder(run), priors, known)
    assert one[0] != usual[0]
    assert np.isnan(one[1]).all()
    (run / "models.json").write_text("{}")
    (run / "codes" / "data.mdb").unlink()
    assert training_nats(RunFolder(run), priors) is None


def test_compression_says_so(run, noise, call, monkeypatch, tmp_path):
    flags = ("--run", run, "--data", noise)
    monkeypatch.setattr(compress, "training_nats", lambda *_: [(0.1, 0.2), (8.0, 9.0)])
    told = call(compress.main, *flags, "--out", tmp_path / "a.vq")
    assert told.code == 0, told.err
    note = r"note: 3 of 3 images are unlike .*: up to [\d.]+ nats a code of level top, usual are 0.10 to 0.20"
    assert re.search(note, told.out)
    monkeypatch.setattr(compress, "training_nats", lambda *_: [(8.0, 9.0), (8.0, 9.0)])
    assert "unlike" not in call(compress.main, *flags, "--out", tmp_path / "b.vq").out
    monkeypatch.setattr(compress, "training_nats", lambda *_: pytest.fail("the run's own images are like its images"))
    assert call(compress.main, "--run", run, "--out", tmp_path / "c.vq").code == 0


def test_anomaly_maps_say_so(run, noise, call, monkeypatch):
    flags = ("--run", run, "--anomaly", noise, "--draws", 2, "--overwrite")
    monkeypatch.setattr(anomaly, "unlike", lambda nats, *_: (len(nats), "up to 9 nats a code"))
    told = call(evaluate.main, *flags)
    assert told.code == 0, told.err
    assert "note: 3 of 3 images are unlike the normal ones, so maps may mean little: up to 9 nats a code" in told.out
    about = json.loads(next(run.rglob("anomaly.json")).read_text())
    assert list(about["nats_per_code"]) == ["0.png", "1.png", "2.png"]
    assert all(low <= high for low, high in about["normal_nats_per_code"].values())
    monkeypatch.setattr(anomaly, "unlike", lambda *_: (0, ""))
    monkeypatch.setattr(anomaly, "_MOST", 1.0)
    assert "note" not in call(evaluate.main, *flags).out
    monkeypatch.setattr(anomaly, "_MOST", -1.0)
    assert "note: in 3 of 3 images more than" in call(evaluate.main, *flags).out
