"""The critic, and the samples that are chosen by it."""

import json
import shutil

import numpy as np
import pytest
import torch
from random_weights import random_weights

from vqvae2.critic import Critic, train_critic
from vqvae2.stages import evaluate, export, sample
from vqvae2.stages.choosing import BestOf

pytest_plugins = ["tiny_run_fixtures"]


def two_sets(made: int, real: int, dimensions: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([3.0, 0, 0, 0, 0])[:dimensions]
    return torch.randn(made, dimensions, generator=generator), torch.randn(real, dimensions, generator=generator) + shift


@pytest.mark.parametrize("sizes", [(40, 40), (10, 200)])
def test_a_critic_is_the_ridge_regression_of_both_sets_weighed_alike(sizes):
    made, real = two_sets(*sizes)
    critic = train_critic(made, real)
    both = torch.cat([made, real]).double()
    x = (both - both.mean(0)) / both.std(0)
    y = torch.cat([-torch.ones(len(made)), torch.ones(len(real))]).double()
    weights = torch.cat([torch.full((len(made),), 0.5 / len(made)), torch.full((len(real),), 0.5 / len(real))]).double()
    normal = x.T @ (x * weights[:, None]) + torch.eye(5)  # the penalty is of the mean error
    direct = torch.linalg.solve(normal, x.T @ (y * weights))
    torch.testing.assert_close(critic.weight, direct.float())
    assert int(critic.weight.abs().argmax()) == 0
    assert (critic.score(made)[:, None] < critic.score(real)).float().mean() > 0.9


def test_a_feature_that_never_varies_says_nothing():
    made, real = two_sets(20, 20)
    made[:, 4] = real[:, 4] = 7
    critic = train_critic(made, real)
    assert critic.scale[4] == 0
    assert torch.isfinite(critic.score(real + 1)).all()


def test_of_the_candidates_of_each_image_the_best_is_kept():
    choice = BestOf(Critic(train_critic(*two_sets(4, 4)).config), 3)
    scores = torch.tensor([0.0, 2, 1, 5, 4, 3, -1, -2, -1])
    assert choice.drawn(3) == 9
    assert choice.rows(scores, torch.zeros(9, 0), 3) == [1, 3, 6]
    assert choice.rows(torch.cat([scores, scores]), torch.zeros(18, 0), 2) == [1, 3]


@pytest.fixture(scope="module")
def criticised(chain, tmp_path_factory):
    """A run with 40 samples and a critic."""
    place = tmp_path_factory.mktemp("critic")
    run = shutil.copytree(chain.run, place / "run")
    random_weights(place / "torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(place / "torch"))
        assert sample.main(["--run", str(run), "--chunk-size", "8", "--num", "40", "--overwrite"]) == 0
        assert evaluate.main(["--run", str(run), "--critic"]) == 0
        yield run


FLAGS = ["--chunk-size", 8, "--seed", 3]


def chosen(folder):
    record = json.loads((folder / "samples.json").read_text())
    return record, {path.stem: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


def test_the_best_of_several_candidates_is_each_sample_and_more_samples_keep_the_first(criticised, call):
    found = json.loads((criticised / "report" / "report.json").read_text())["critic"]
    assert found["samples"] == 40
    assert 0 <= found["right"] <= 1
    for num in (4, 6):
        out = criticised / f"best-{num}"
        ended = call(sample.main, "--run", criticised, *FLAGS, "--num", num, "--best-of", 3, "--out", out)
        assert ended.code == 0, ended.err
        assert "each the best of 3" in ended.out
    few, more = (chosen(criticised / f"best-{num}") for num in (4, 6))
    assert (more[0]["best_of"], more[0]["drawn"], more[0]["num"]) == (3, 18, 6)
    assert {name: more[1][name] for name in few[1]} == few[1]
    assert more[0]["labels"][:4] == few[0]["labels"]
    with np.load(criticised / "best-6" / "codes.npz") as codes:
        assert {len(codes[level]) for level in codes.files} == {6}


def test_candidates_of_an_image_are_drawn_for_the_same_labels(criticised, call):
    plain, best = criticised / "plain", criticised / "best"
    assert call(sample.main, "--run", criticised, *FLAGS, "--num", 6, "--out", plain).code == 0
    assert call(sample.main, "--run", criticised, *FLAGS, "--num", 6, "--best-of", 2, "--out", best).code == 0
    assert chosen(plain)[0]["labels"] == chosen(best)[0]["labels"]


def test_a_report_of_chosen_samples_says_so(criticised, call, tmp_path):
    run = shutil.copytree(criticised, tmp_path / "run")
    flags = [*FLAGS, "--num", 40, "--best-of", 2, "--overwrite"]
    assert call(sample.main, "--run", run, *flags).code == 0
    ended = call(evaluate.main, "--run", run, "--against", criticised)
    assert ended.code == 0, ended.err
    assert "samples were chosen by a critic in these features" in ended.out
    assert "each sample is the best of 2 here, of 1 there" in ended.out
    page = (run / "report" / "index.html").read_text()
    assert "the best of 2 candidates" in page
    assert "They are flattered" in page


def test_exported_models_keep_their_critic(criticised, call, tmp_path):
    assert call(export.main, "--run", criticised, "--out", tmp_path / "models").code == 0
    ended = call(sample.main, "--run", tmp_path / "models", "--num", 2, "--best-of", 2, "--out", tmp_path / "some")
    assert ended.code == 0, ended.err


def test_what_cannot_be_chosen_is_refused(criticised, chain, call, refused, tmp_path, monkeypatch):
    assert "there is no critic" in refused(sample.main, "--run", chain.run, "--best-of", 2, "--out", tmp_path / "a")
    assert "too few" in refused(sample.main, "--run", criticised, "--best-of", 0)
    assert "both choose" in refused(sample.main, "--run", criticised, "--best-of", 2, "--reject", 0.5)
    again = ["--run", criticised, *FLAGS, "--num", 4, "--out", criticised / "once"]
    assert call(sample.main, *again).code == 0
    assert "best_of" in refused(sample.main, *again, "--best-of", 2)
    other = shutil.copytree(criticised, tmp_path / "other")
    record = json.loads((other / "critic" / "config.json").read_text())
    (other / "critic" / "config.json").write_text(json.dumps(record | {"models": {"vqvae_sha256": "0"}}))
    assert "other models" in refused(sample.main, "--run", other, "--best-of", 2, "--out", tmp_path / "b")
    few = shutil.copytree(chain.run, tmp_path / "few")
    assert "needs 32 samples, there are 5" in refused(evaluate.main, "--run", few, "--critic")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nowhere"))
    assert "mobilenet" in refused(sample.main, "--run", criticised, "--best-of", 2, "--out", tmp_path / "c").lower()
