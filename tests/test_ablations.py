"""The ablations on models so small that their figures mean nothing: every row trains, and a second call goes on."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import picture, save

from vqvae2.presets import PRESETS

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import ablations

pytest_plugins = ["tiny_run_fixtures"]
SMALL = {"embedding_dim": 4, "channels": 8, "residual_channels": 8, "num_layers": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    demo = PRESETS["demo"]
    vqvae = replace(
        demo.vqvae,
        hidden_channels=8,
        residual_channels=4,
        num_embeddings=(16, 16),
        embedding_dim=(4, 4),
        init_vectors=128,
        rate_weight=(0.0, 0.5),
        foreground_weight=5.0,
    )
    priors = tuple(replace(prior, **SMALL) for prior in demo.priors)
    preset = replace(demo, size="32x32", vqvae=vqvae, priors=priors)
    monkeypatch.setattr(ablations, "PRESET", preset)
    monkeypatch.setattr(ablations, "WARM", 1)
    monkeypatch.setattr(ablations, "TIMED", 2)


def told(monkeypatch, *arguments: object) -> dict:
    """Run the script, and return what it has written."""
    monkeypatch.setattr("sys.argv", ["-", *map(str, arguments)])
    assert ablations.main() == 0
    return json.loads(Path(arguments[arguments.index("--json") + 1]).read_text())


def test_every_change_of_the_vqvae_is_trained_and_scored(monkeypatch, tmp_path):
    for i in range(24):
        save(tmp_path / "data" / f"p{i}_0.png", picture(i, (32, 32)))
    common = ["vqvae", "--data", tmp_path / "data", "--json", tmp_path / "out.json", "--steps", 2, "--compile", "off"]
    first = told(monkeypatch, *common, "--seeds", 0, "--rows", "as it is")
    found = told(monkeypatch, *common, "--seeds", 0)
    assert found["runs"]["as it is"] == first["runs"]["as it is"]
    assert list(found["runs"]) == list(ablations.VQVAE_ROWS)
    assert all(run["steps"] == 2 and run["bits"] >= 0 for (run,) in found["runs"].values())
    # Two steps are too few for some changes to show, such as for codes to die.
    assert len({run["inside"] for (run,) in found["runs"].values()}) > len(ablations.VQVAE_ROWS) / 2
    assert found["naive"]["mean image"]["inside"] < 1


def test_every_change_of_a_prior_is_trained_for_as_many_steps_as_fit_and_scored(monkeypatch, tmp_path, chain):
    common = ["prior", "--run", chain.run, "--json", tmp_path / "out.json", "--seconds", 0.2, "--seeds", 0, 1]
    found = told(monkeypatch, *common)
    assert list(found["runs"]) == list(ablations.PRIOR_ROWS)
    for runs in found["runs"].values():
        assert [run["seed"] for run in runs] == [0, 1]
        assert runs[0]["steps"] == runs[1]["steps"] >= 2
        assert runs[0]["nll"] != runs[1]["nll"]
    assert 0 < found["naive"]["position-wise unigram"]["nll"] < 4
