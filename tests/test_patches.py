"""A prior over positions of several codes sees every earlier code and no later one, in both of its forms."""

import numpy as np
import pytest
import torch
from tiny_priors import tiny_inputs, tiny_prior
from torch import Tensor

from vqvae2.patches import fold, unfold
from vqvae2.prior import Prior

CASES = [
    ((4, 4), 2, False, ((2, 2),)),
    ((4, 6), 2, False, ((1, 1), (2, 3))),
    ((2, 6), 2, False, ()),
    ((6, 3), 3, False, ((2, 1),)),
    ((2, 2), 2, False, ()),
    ((3, 6), 1, True, ()),
    ((4, 8), 2, True, ()),
    ((2, 2), 1, True, ()),
]


def order(shape: tuple[int, int], patch: int, mirrored: bool) -> dict[tuple[int, int], int]:
    """Number the cells in the order in which their codes are made."""

    def key(cell: tuple[int, int]) -> tuple[int, ...]:
        (row, column), right = cell, mirrored and 2 * cell[1] >= shape[1]
        column = shape[1] - 1 - column if right else column
        return row // patch, column // patch, right, row % patch, column % patch

    cells = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    return {cell: i for i, cell in enumerate(sorted(cells, key=key))}


def test_fold_puts_the_codes_of_a_patch_side_by_side():
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    folded = fold(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    for i, (y, z) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(folded[:, 1, 2, 3 * i : 3 * i + 3], x[:, 2 + y, 4 + z])
    assert torch.equal(unfold(folded, 2), x)
    assert fold(x, 1) is x


@pytest.mark.parametrize("patch", [1, 2])
def test_a_mirrored_position_holds_a_patch_and_its_mirror_image(patch):
    x = torch.arange(2 * 4 * 8 * 3).view(2, 4, 8, 3)
    folded = fold(x, patch, mirrored=True)
    assert folded.shape == (2, 4 // patch, 4 // patch, 2 * patch**2 * 3)
    left, right = folded.chunk(2, -1)
    assert torch.equal(left, fold(x[:, :, :4], patch))
    assert torch.equal(right, fold(x.flip(2)[:, :, :4], patch))
    assert torch.equal(unfold(folded, patch, mirrored=True), x)


@pytest.mark.parametrize(("shape", "patch", "mirrored", "condition"), CASES)
def test_with_attention_every_code_made_earlier_is_seen_and_no_other(shape, patch, mirrored, condition):
    prior = tiny_prior(shape, condition, patch=patch, mirrored=mirrored, patch_channels=5, attention_every=1)
    codes, coarser, label = tiny_inputs(prior.config, 1)
    positions = shape[0] * shape[1]
    changed = codes.repeat(positions, 1, 1)
    for i in range(positions):  # the i-th map differs from the first in its i-th code
        changed[i, i // shape[1], i % shape[1]] = (changed[i, i // shape[1], i % shape[1]] + 1) % 7
    many = None if coarser is None else [level.repeat(positions, 1, 1) for level in coarser]
    logits, other = prior(codes, coarser, label), prior(changed, many, label)
    moved = (other - logits).abs().amax(1).flatten(1) > 1e-12  # (changed code, position)
    numbers = order(shape, patch, mirrored)
    made = np.array([numbers[i // shape[1], i % shape[1]] for i in range(positions)])
    assert np.array_equal(moved.numpy(), made[:, None] < made[None, :])


def replay(prior: Prior, codes: Tensor, coarser: list[Tensor] | None, label: Tensor | None) -> tuple[Tensor, list[int]]:
    """Run the incremental form along given codes: (B, K, h, w) logits, and the cells in their order."""
    logits, seen = torch.zeros(len(codes), 7, *prior.config.shape, dtype=torch.float64), []

    def draw(here: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(int(position[0]))
        row, column = divmod(seen[-1], prior.config.width)
        logits[:, :, row, column] = here
        return codes[:, row, column], position

    numbered = torch.arange(codes[0].numel(), dtype=torch.float64).view(codes[:1].shape).expand(codes.shape)
    made, _ = prior.generate(draw, numbered, coarser, label)
    assert torch.equal(made, codes)
    return logits, seen


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("attention", [0, 2])
@pytest.mark.parametrize(("shape", "patch", "mirrored", "condition"), CASES)
def test_both_forms_agree_and_follow_the_order_of_the_positions(shape, patch, mirrored, condition, attention, labelled):
    settings = {"patch": patch, "mirrored": mirrored, "patch_channels": 5, "attention_every": attention}
    prior = tiny_prior(shape, condition, labelled, **settings)
    codes, coarser, label = tiny_inputs(prior.config, 3)
    logits, seen = replay(prior, codes, coarser, label)
    torch.testing.assert_close(logits, prior(codes, coarser, label), rtol=0, atol=1e-9)
    numbers = order(shape, patch, mirrored)
    assert seen == [row * shape[1] + column for row, column in sorted(numbers, key=numbers.__getitem__)]


def test_a_patch_that_does_not_divide_the_map_is_refused():
    with pytest.raises(ValueError, match="patch must divide 3x4"):
        tiny_prior((3, 4), patch=2)
    with pytest.raises(ValueError, match="does not divide"):
        tiny_prior((4, 4), ((4, 4),), patch=2)


def test_a_map_that_cannot_be_mirrored_is_refused():
    with pytest.raises(ValueError, match="mirrored needs an even number of columns, got 3x5 codes"):
        tiny_prior((3, 5), mirrored=True)
    with pytest.raises(ValueError, match="mirrored is for the top alone"):
        tiny_prior((4, 4), ((2, 2),), mirrored=True)
    with pytest.raises(ValueError, match=r"patch must divide 4x3 codes \(mirrored: half of the width\), got 2"):
        tiny_prior((4, 6), patch=2, mirrored=True)
