"""Whether samples follow their labels: chance and calibration against naive forms, and planted faults."""

import itertools

import numpy as np
import pytest
import torch
from test_report_page import good_report
from torch import Tensor

from vqvae2 import report
from vqvae2.classifier import ClassifierConfig, probabilities, train_classifier
from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.report.followed import class_followed, number_followed
from vqvae2.report.page import write_page


def judgement(named: list[int], classes: int, sure: float = 0.9) -> Tensor:
    """Probabilities that name these classes."""
    rest = (1 - sure) / (classes - 1)
    return torch.full((len(named), classes), rest).scatter(1, torch.tensor(named)[:, None], sure)


def alone(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def answer(judged: Tensor, asked: Tensor, real: dict) -> tuple[str, str]:
    """What the report says of samples that are judged so."""
    made = report.accuracies(judged, asked, alone(len(asked)))
    return class_followed({"attribute": "sex", "recognised": made, "held_out": real})


GOOD = {"accuracy": 0.8, "chance": 0.5, "over_chance": [0.2, 0.4]}
BLIND = {"accuracy": 0.52, "chance": 0.5, "over_chance": [-0.1, 0.14]}


def test_chance_is_the_mean_over_all_ways_to_shuffle_the_labels():
    asked, named = torch.tensor([0, 0, 1, 2, 1, -1]), [0, 1, 1, 2, 2, 0]
    found = report.accuracies(judgement(named, 3), asked, alone(6))
    ways = [np.mean(np.array(way) == named[:5]) for way in itertools.permutations([0, 0, 1, 2, 1])]
    assert found["chance"] == pytest.approx(np.mean(ways))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["probability"] == pytest.approx((3 * 0.9 + 2 * 0.05) / 5)


def test_the_interval_of_the_difference_is_that_of_a_bootstrap_over_people():
    draw = np.random.default_rng(1)
    asked, named = draw.integers(0, 3, 90), draw.integers(0, 3, 90)
    named = np.where(draw.random(90) < 0.4, asked, named)
    people = [f"p{i // 3}" for i in range(90)]
    found = report.accuracies(judgement(named.tolist(), 3), torch.from_numpy(asked), people)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.arange(3 * p, 3 * p + 3) for p in draw.integers(0, 30, 30)])
        a, n = asked[rows], named[rows]
        drawn.append(np.mean(a == n) - sum(np.mean(a == k) * np.mean(n == k) for k in range(3)))
    # Of 2,000 draws each, percentiles differ by a few thousandths.
    np.testing.assert_allclose(found["over_chance"], np.percentile(drawn, [2.5, 97.5]), atol=0.02)


def test_labels_at_random_are_seldom_taken_to_be_followed():
    generator = torch.Generator().manual_seed(0)
    given = []
    for _ in range(100):
        asked, named = torch.randint(0, 2, (2, 63), generator=generator)
        given.append(answer(judgement(named.tolist(), 2), asked, GOOD)[0])
    # 2.5 % on each side are expected, with a standard deviation of 1.6 %.
    assert given.count("yes") <= 7
    assert given.count("against") <= 7
    assert given.count("yes") + given.count("against") + given.count("no") == 100


@pytest.mark.parametrize(
    ("right", "real", "way", "told"),
    [
        (52, GOOD, "yes", "follow sex: 0.87 recognised, 0.50 by chance (interval of the difference 0.26 to 0.44)."),
        (31, GOOD, "no", "Whether samples follow sex cannot be told from chance: 0.52 recognised, 0.50 by chance"),
        (
            31,
            BLIND,
            "unknown",
            "unclear whether samples follow sex, as real images do not show it: 0.52 of held-out images recognised",
        ),
        (52, BLIND, "yes", "Samples follow sex: 0.87"),
        (8, GOOD, "against", "Samples go against sex: 0.13 recognised, 0.50 by chance"),
    ],
)
def test_the_answer_is_by_the_interval_of_the_difference(right, real, way, told):
    asked = torch.arange(60) % 2
    named = [int(k) if i < right else 1 - int(k) for i, k in enumerate(asked)]
    found = answer(judgement(named, 2), asked, real)
    assert found[0] == way
    assert told in found[1]


def test_four_samples_or_one_class_tell_nothing():
    asked = torch.arange(4) % 2
    found = answer(judgement(asked.tolist(), 2), asked, GOOD)
    assert found == ("unknown", "Too few samples to tell whether they follow sex: 1.00 recognised, 0.50 by chance.")
    asked = torch.zeros(40, dtype=torch.int64)
    way, told = answer(judgement([0] * 40, 2), asked, GOOD)
    assert way == "no"
    assert "1.00 recognised, 1.00 by chance" in told


def test_the_calibration_error_is_that_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    judged = (2 * torch.randn(300, 3, generator=generator)).softmax(1)
    truth = torch.randint(-1, 3, (300,), generator=generator)
    found = report.calibration_figures(judged, truth, torch.tensor([0.5, 0.3, 0.2]))
    p, t = judged[truth >= 0].double().numpy(), truth[truth >= 0].numpy()
    error, seen = 0.0, 0
    for low in range(10):
        own = [i for i in range(len(t)) if low / 10 < p[i].max() <= (low + 1) / 10]
        if own:
            accuracy = np.mean([p[i].argmax() == t[i] for i in own])
            error += len(own) / len(t) * abs(accuracy - np.mean([p[i].max() for i in own]))
            seen += 1
    assert found["error"] == pytest.approx(error)
    assert len(found["bins"]) == seen
    assert sum(one["count"] for one in found["bins"]) == len(t)
    assert found["naive"] == pytest.approx(abs(np.mean(t == 0) - 0.5))


def test_probabilities_that_are_right_have_the_expected_error_and_those_that_are_too_sure_more():
    generator = torch.Generator().manual_seed(0)
    judged = torch.randn(400, 2, generator=generator).softmax(1)
    frequencies = torch.tensor([0.5, 0.5])
    errors = []
    for _ in range(100):
        truth = torch.multinomial(judged, 1, generator=generator)[:, 0]
        errors.append(report.calibration_figures(judged, truth, frequencies)["error"])
    expected = report.calibration_figures(judged, truth, frequencies)["expected"]
    assert expected == pytest.approx(np.mean(errors), rel=0.15)
    sure = judged.log().mul(4).softmax(1)
    assert report.calibration_figures(sure, truth, frequencies)["error"] > 3 * expected


def test_images_without_a_label_have_no_figure():
    judged, nothing = judgement([0, 1], 2), torch.tensor([-1, -1])
    found = report.accuracies(judged, nothing, alone(2))
    assert found["count"] == 0
    assert np.isnan([found["accuracy"], found["chance"], found["probability"]]).all()
    assert found["over_chance"] is None
    assert np.isnan(report.calibration_figures(judged, nothing, torch.tensor([0.5, 0.5]))["error"])


@pytest.mark.parametrize(
    ("made", "real", "way", "told"),
    [
        ([0.3, 0.5], [0.4, 0.6], "yes", "Samples follow age: the age that they show rises by 0.40 for each 1 asked"),
        ([-0.1, 0.5], [0.4, 0.6], "no", "Whether samples follow age cannot be told from chance: the age that they"),
        ([-0.5, -0.1], [0.4, 0.6], "against", "Samples go against age"),
        ([-0.1, 0.5], [-0.2, 0.6], "unknown", "as real images do not show it: the age that reconstructions of"),
        (None, [0.4, 0.6], "unknown", "Too few samples"),
    ],
)
def test_numbers_are_answered_likewise(made, real, way, told):
    figures = {"samples": {"slope": 0.4, "interval": made}, "reconstructions": {"slope": 0.5, "interval": real}}
    found = number_followed("age", figures)
    assert found[0] == way
    assert told in found[1]


def test_the_answer_on_a_number_stands_on_the_page(tmp_path):
    side = {"slope": 0.5, "interval": [0.4, 0.6], "correlation": 0.7, "count": 64}
    whole = good_report()
    whole["samples"]["numbers"] = {"<age>": {**dict.fromkeys(("real", "reconstructions", "samples", "shuffled"), side)}}
    whole["samples"]["numbers"]["<age>"]["ratio"] = 1.0
    assert sum(line.startswith("Samples follow <age>: ") for line in report.summary(whole)) == 1
    assert report.warnings(whole) == []
    write_page(tmp_path / "index.html", whole, {})
    assert "<p>Samples follow &lt;age&gt;: the &lt;age&gt; that they" in (tmp_path / "index.html").read_text()


@pytest.fixture(scope="module")
def phantom() -> tuple[Tensor, Tensor, dict]:
    """Phantom images of people that a classifier has not seen: its judgement, their classes, and its accuracies."""
    splits = open_data(DataConfig(phantom_images=300, size="32x32"), ["train", "val", "test"]).splits
    config = ClassifierConfig("diagnosis", ("healthy", "atrophy"), 1)

    def of(images: ImageSet):
        return lambda rows: images.at(rows)

    train, val, test = splits["train"], splits["val"], splits["test"]
    classifier = train_classifier(
        config, of(train), torch.from_numpy(train.labels[:, 0]), steps=60, batch_size=16, seed=0
    )
    real = report.accuracies(
        probabilities(classifier, of(val), len(val)), torch.from_numpy(val.labels[:, 0]), val.subjects
    )
    return probabilities(classifier, of(test), len(test)), torch.from_numpy(test.labels[:, 0]), real


def test_planted_labels_move_the_figure_and_the_sentence(phantom, tmp_path):
    """Images of the phantom stand for samples: of their true class, half of them swapped, at random, all swapped."""
    judged, true, real = phantom
    generator = torch.Generator().manual_seed(0)
    swapped = torch.where(torch.arange(len(true)) % 4 < 2, 1 - true, true)
    random = true[torch.randperm(len(true), generator=generator)]
    sets = {"true": true, "half swapped": swapped, "at random": random, "all swapped": 1 - true}
    found = {name: report.accuracies(judged, labels, alone(len(true))) for name, labels in sets.items()}
    assert found["true"]["accuracy"] > 0.85
    assert abs(found["half swapped"]["accuracy"] - found["half swapped"]["chance"]) < 0.2
    for name, told in {
        "true": "Samples follow diagnosis: ",
        "half swapped": "Whether samples follow diagnosis cannot be told from chance: ",
        "at random": "Whether samples follow diagnosis cannot be told from chance: ",
        "all swapped": "Samples go against diagnosis: ",
    }.items():
        whole = good_report()
        whole["recognition"] |= {"recognised": found[name], "held_out": real}
        assert any(line.startswith(told) for line in report.summary(whole)), name
        assert any(line.startswith(told) for line in report.warnings(whole)) == (name != "true"), name
        write_page(tmp_path / "index.html", whole, {})
        assert f"<p>{told}" in (tmp_path / "index.html").read_text(), name
