"""What a prior is told beside the codes before: labels, coarser levels, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_priors import tiny_inputs, tiny_prior
from torch import Tensor

from vqvae2.checkpoint import config_from
from vqvae2.errors import UserError
from vqvae2.prior import Prior, PriorConfig
from vqvae2.stages.sampled import parse_labels


def test_missing_labels_use_an_embedding_of_their_own():
    prior = tiny_prior(labelled=True)
    codes, _, label = tiny_inputs(prior.config, 3)
    assert label is not None
    missing = torch.full_like(label, -1)
    assert torch.equal(prior(codes), prior(codes, label=missing))
    partly = label.clone()
    partly[:, 0] = -1
    for given in (label, partly, missing):
        prior.zero_grad()
        logits = prior(codes, label=given)
        (logits * torch.randn_like(logits)).sum().backward()
        for table, column in zip(prior.labels, given.T, strict=True):
            rows = {table.num_embeddings - 1 if value < 0 else int(value) for value in column}
            assert set(table.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == rows
    others = {-1: prior(codes, label=missing)} | {c: prior(codes, label=torch.tensor([[c, -1]] * 3)) for c in (0, 1)}
    assert len({logits.sum().item() for logits in others.values()}) == 3


def test_label_dropout_hides_labels_in_training_only():
    prior = tiny_prior(labelled=True, dropout=0.0, label_dropout=1.0)
    codes, _, label = tiny_inputs(prior.config, 3)
    named, unnamed = prior(codes, label=label), prior(codes)
    assert not torch.equal(named, unnamed)
    assert torch.equal(prior.train()(codes, label=label), unnamed)
    always = tiny_prior(labelled=True, dropout=0.0, label_dropout=0.0).train()
    assert torch.equal(always(codes, label=label), named)

    half = tiny_prior((1, 1), labelled=True, dropout=0.0, label_dropout=0.5, num_layers=1).train()
    seen: list[Tensor] = []
    half.labels[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    torch.manual_seed(0)
    half(torch.zeros(2000, 1, 1, dtype=torch.int64), label=torch.zeros(2000, 2, dtype=torch.int64))
    # 2000 fair coins: five standard deviations are 112.
    assert abs(int((seen[0] == 2).sum()) - 1000) < 112


def test_dropout_and_hidden_codes_are_of_training_only():
    prior = tiny_prior(dropout=0.5, input_dropout=0.5, attention_dropout=0.5, attention_every=2)
    plain = tiny_prior(dropout=0.0, attention_every=2)
    codes, _, _ = tiny_inputs(prior.config, 2)
    assert torch.equal(prior(codes), plain(codes))
    prior.train()
    assert not torch.equal(prior(codes), prior(codes))


def test_hidden_input_codes_are_still_predicted():
    prior = tiny_prior((2, 8), dropout=0.0, input_dropout=0.999, num_layers=1).train()
    blank = tiny_prior((2, 8), dropout=0.0, num_layers=1)
    with torch.no_grad():
        blank.embedding.weight.zero_()
    codes, _, _ = tiny_inputs(prior.config, 1)
    torch.manual_seed(0)
    torch.testing.assert_close(prior(codes), blank(codes), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda codes, condition, label: (codes[:, :2], condition, label), ["(B, 4, 6)", "(3, 2, 6)"]),
        (lambda codes, condition, label: (codes, None, label), ["bottom", "top (3, 1, 1)", "middle (3, 2, 3)", "none"]),
        (lambda codes, condition, label: (codes, condition[:1], label), ["top", "middle", "[(3, 1, 1)]"]),
        (lambda codes, condition, label: (codes, condition[::-1], label), ["[(3, 2, 3), (3, 1, 1)]"]),
        (lambda codes, condition, label: (codes, [c[:1] for c in condition], label), ["[(1, 1, 1), (1, 2, 3)]"]),
        (lambda codes, condition, label: (codes, condition, label[:, :1]), ["(3, 2)", "(3, 1)"]),
        (lambda codes, condition, label: (codes, condition, label[:2]), ["(3, 2)", "(2, 2)"]),
        (lambda codes, condition, label: (codes, condition, label[0]), ["(3, 2)", "(2,)"]),
    ],
)
def test_what_does_not_fit_the_config_is_refused_by_name(change, named):
    prior = tiny_prior((4, 6), ((1, 1), (2, 3)), labelled=True)
    inputs = change(*tiny_inputs(prior.config, 3))
    with pytest.raises(ValueError) as error:
        prior(*inputs)
    assert all(part in str(error.value) for part in named), error.value


def test_a_condition_for_a_prior_without_one_is_refused():
    prior = tiny_prior()
    codes, _, _ = tiny_inputs(prior.config, 2)
    with pytest.raises(ValueError, match="level top is conditioned on: none; got "):
        prior(codes, condition=[codes])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kernel_size": 1}, "kernel_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"label_dropout": 1.5}, "label_dropout"),
        ({"channels": 0}, "channels"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 0, "attention_every": 1}, "num_heads"),
        ({"condition_layers": -1}, "condition_layers"),
        ({"channels": 10, "num_heads": 4, "attention_every": 1}, "num_heads"),
        ({"condition_levels": ("top",)}, "condition_shapes"),
        (
            {"condition_levels": ("top",), "condition_shapes": ((3, 3),), "condition_num_embeddings": (5,)},
            "3x3",
        ),
        (
            {
                "height": 12,
                "width": 12,
                "condition_levels": ("top", "middle"),
                "condition_shapes": ((4, 4), (6, 6)),
                "condition_num_embeddings": (5, 5),
            },
            "4x4",
        ),
    ],
)
def test_config_refuses_what_cannot_be_built(settings, named):
    with pytest.raises(ValueError, match=named):
        PriorConfig(**settings)


def test_condition_stack_gives_every_sub_cell_features_of_its_own():
    prior = tiny_prior((4, 12), ((2, 3),), condition_layers=0)
    stack = prior.condition
    assert stack is not None
    codes = torch.tensor([[[0, 1, 2], [3, 4, 0]]])
    features = stack([codes])
    assert features.shape == (1, 4, 12, 8)
    cells = features[0].flatten(0, 1)
    assert len({tuple(cell.tolist()) for cell in cells}) == 4 * 12
    # By hand: each cell's vector through the slice of the projection that belongs to the sub-cell, 2 rows of 4.
    weight = stack.unfold.weight.view(2, 4, 8, 8)
    bias = stack.unfold.bias.view(2, 4, 8)
    for row in range(4):
        for column in range(12):
            y, x = row // 2, column // 4
            vector = stack.inputs[0](stack.embeddings[0].weight[codes[0, y, x]]) + stack.position[y, x]
            by_hand = weight[row % 2, column % 4] @ vector + bias[row % 2, column % 4]
            by_hand = by_hand / (by_hand.square().mean() + 1e-6).sqrt() * stack.norm.weight
            torch.testing.assert_close(features[0, row, column], by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [True, False])
def test_a_prior_still_sees_its_own_codes_where_the_condition_stack_has_grown(norm):
    """Weights twenty times as large, as long trainings make them: without norms the condition drowns all else."""
    prior = tiny_prior((8, 8), ((4, 4),), condition_layers=4, condition_norm=norm).float()
    assert prior.condition is not None
    torch.manual_seed(0)
    with torch.no_grad():
        for block in prior.condition.blocks:
            for layer in (block[1], block[-1]):
                torch.nn.init.normal_(layer.weight, std=20 / layer.weight[0].numel() ** 0.5)
    codes, condition, labels = tiny_inputs(prior.config, 8)
    grown = prior.condition(condition).square().mean().sqrt()
    change = (prior(codes, condition, labels) - prior(codes.roll(1, 0), condition, labels)).abs().max()
    if norm:
        assert 0.5 < grown < 2
        assert change > 0.1
    else:
        assert grown > 1e8
        assert change < 1e-3


def test_a_prior_of_an_earlier_version_comes_back_without_norms(tmp_path):
    prior = tiny_prior((8, 8), ((4, 4),), condition_norm=False)
    prior.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["condition_norm"]
    path.write_text(json.dumps(record))
    found = Prior.from_pretrained(tmp_path)
    assert not found.config.condition_norm
    inputs = tiny_inputs(prior.config, 2)
    assert torch.equal(found.double()(*inputs), prior.float().double()(*inputs))
    assert config_from(PriorConfig, {}, tmp_path).condition_norm  # no record at all: the defaults


def test_condition_of_levels_that_are_not_adjacent_reaches_the_cells_below_it():
    # From 1x2 and 2x4 cells to 8x8: factors 4 and 2, and 8 and 4 from the top.
    prior = tiny_prior((8, 8), ((1, 2), (2, 4)), condition_layers=0)
    _, condition, _ = tiny_inputs(prior.config, 1)
    assert condition is not None
    assert prior.condition is not None
    before = prior.condition(condition)

    def changed(level: int, row: int, column: int) -> NDArray[np.bool_]:
        other = [codes.clone() for codes in condition]
        other[level][0, row, column] = (other[level][0, row, column] + 1) % prior.config.condition_num_embeddings[level]
        return (prior.condition(other) != before).any(-1)[0].numpy()

    top, middle = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    top[:, 4:] = True
    middle[4:, 2:4] = True
    assert np.array_equal(changed(0, 0, 1), top)
    assert np.array_equal(changed(1, 1, 1), middle)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("sex=F,age=60-70",), {"sex": "F", "age": "60-70"}),
        (("sex=F", "age=>=70"), {"sex": "F", "age": ">=70"}),
        (("group=AD, mild",), {"group": "AD, mild"}),
        (("group=AD, mild", "sex=M"), {"group": "AD, mild", "sex": "M"}),
        (("sex=none",), {"sex": "none"}),  # refused where classes are looked up
    ],
)
def test_labels_are_asked_for_by_attribute_and_class(given, told):
    attributes = (("sex", ("F", "M")), ("age", ("60-70", ">=70")), ("group", ("AD, mild", "NC")))
    assert parse_labels(given, attributes) == told


def test_a_class_alone_is_enough_where_there_is_one_attribute():
    ages = (("age", ("<60", ">=60", "a, b")),)
    for text in (">=60", "<60", "a, b"):
        assert parse_labels((text,), ages) == {"age": text}
    for text in ("F", ">=60", "sex"):
        with pytest.raises(UserError, match=r"names no attribute.*sex, age"):
            parse_labels((text,), (("sex", ("F",)), *ages))
