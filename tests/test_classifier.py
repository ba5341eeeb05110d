"""The classifier tells drawn classes apart, and its choice among samples is by class and exact."""

import json
from dataclasses import replace

import pytest
import torch

from vqvae2 import Prior
from vqvae2.classifier import Classifier, ClassifierConfig, probabilities, train_classifier
from vqvae2.errors import UserError
from vqvae2.report import accuracies
from vqvae2.stages.recognition import kept_share_figures
from vqvae2.stages.sample_folder import Rejection

CONFIG = ClassifierConfig("kind", ("dark", "bright"), 1)


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, brighter in the middle where the label is 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = 0.3 * torch.randn(count, 1, 32, 32, generator=generator) - 0.3
    images[:, :, 12:20, 12:20] += labels[:, None, None, None].float()
    return images.clamp(-1, 1), labels


def trained(steps: int = 20, **more) -> Classifier:
    images, labels = pictures(64, 0)
    return train_classifier(CONFIG, lambda rows: images[rows], labels, steps=steps, batch_size=16, **more)


def test_it_tells_classes_apart_that_it_has_not_seen_images_of_and_knows_how_sure_it_is():
    images, labels = pictures(40, 1)
    judged = probabilities(trained(40), lambda rows: images[rows], len(images), batch_size=16)
    assert judged.sum(1).allclose(torch.ones(40))
    found = accuracies(judged, labels, [str(i) for i in range(40)])
    assert found["accuracy"] > 0.9
    assert found["count"] == 40
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]


def test_it_judges_alike_in_any_mode_and_learns_nothing_by_it():
    images, model = pictures(40, 1)[0], trained(4)
    first = probabilities(model, lambda rows: images[rows], len(images))
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    assert torch.equal(probabilities(model, lambda rows: images[rows], len(images)), first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    one, same, other = trained(4), trained(4), trained(4, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_is_saved_with_what_it_tells(tmp_path):
    model = trained(2)
    model.save_pretrained(tmp_path, {"seed": 0})
    again = Classifier.from_pretrained(tmp_path)
    assert again.config == CONFIG
    x = pictures(4, 2)[0]
    assert torch.equal(again(x), model(x))
    # One of a version without these fields stays the ResNet-18 that it was.
    first = Classifier(replace(CONFIG, pooling=False, blocks=2))
    first.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["pooling"], record["blocks"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    older = Classifier.from_pretrained(tmp_path)
    assert older.config == first.config
    before, after = [], []
    for judge, sides in ((older, before), (again, after)):
        judge.net.layer1.register_forward_pre_hook(lambda _module, given, sides=sides: sides.append(given[0].shape[-1]))
        judge(x)
    assert (before, after) == ([16], [8])
    with pytest.raises(UserError, match="holds a classifier, not a prior"):
        Prior.from_pretrained(tmp_path)


def test_one_class_is_refused():
    images, labels = pictures(8, 0)
    with pytest.raises(ValueError, match="two classes"):
        train_classifier(CONFIG, lambda rows: images[rows], torch.zeros_like(labels))


def test_accuracies_by_hand():
    judged = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    found = accuracies(judged, torch.tensor([0, 1, 1, -1]), list("abcd"))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["by_class"] == [1.0, 0.5]
    assert found["count"] == 3
    assert found["interval"] is None
    assert found["calibration"] == pytest.approx((0.9 + 0.6 + 0.8) / 3 - 2 / 3)


@pytest.mark.parametrize("num", [1, 5, 10, 19, 20])
def test_rejection_keeps_the_surest_of_each_class_and_of_each_the_same_share(num):
    generator = torch.Generator().manual_seed(num)
    confidence = torch.rand(20, generator=generator)
    classes = torch.tensor([0] * 12 + [1] * 6 + [-1] * 2)
    rows = Rejection(None, 0, 0.5).rows(confidence, classes, num)  # type: ignore[arg-type]
    assert len(rows) == len(set(rows)) == num
    assert rows == sorted(rows)
    for k, size in ((0, 12), (1, 6), (-1, 2)):
        own = [i for i in rows if classes[i] == k]
        assert abs(len(own) - size * num / 20) < 1
        left = [i for i in range(20) if classes[i] == k and i not in own]
        assert not own or not left or min(confidence[own]) >= max(confidence[left])


def test_as_many_are_drawn_as_leave_enough():
    for num in (1, 7, 64):
        for share in (0.1, 0.5, 0.9):
            drawn = Rejection(None, 0, share).drawn(num)  # type: ignore[arg-type]
            assert drawn * (1 - share) >= num - 1e-9 > (drawn - 1) * (1 - share) - 1e-9


def test_precision_rises_where_the_surest_are_the_right_ones():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 3, generator=generator)
    good, bad = torch.randn(100, 3, generator=generator), 8 + torch.randn(100, 3, generator=generator)
    confidence = torch.cat([torch.ones(100), torch.zeros(100)])
    points = kept_share_figures(torch.cat([good, bad]), real, confidence, torch.arange(200) % 2)
    assert [point["share"] for point in points] == [1.0, 0.75, 0.5, 0.25]
    assert {point["compared"] for point in points} == {50}
    precision = [point["precision"] for point in points]
    assert precision[0] == pytest.approx(0.5, abs=0.1)
    assert precision[2] > 0.9
    assert points[2]["frechet"] < points[0]["frechet"]
    assert kept_share_figures(good[:20], real, confidence[:20], torch.zeros(20)) == []
