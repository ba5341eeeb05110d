"""A prior over patches of codes sees every earlier code and no later one, in both of its forms."""

import numpy as np
import pytest
import torch
from tiny_priors import tiny_inputs, tiny_prior
from torch import Tensor

from vqvae2.patches import fold, unfold
from vqvae2.prior import Prior

CASES = [
    ((4, 4), 2, ((2, 2),)),
    ((4, 6), 2, ((1, 1), (2, 3))),
    ((2, 6), 2, ()),
    ((6, 3), 3, ((2, 1),)),
    ((2, 2), 2, ()),
]


def order(shape: tuple[int, int], patch: int) -> dict[tuple[int, int], int]:
    """Number the cells in the order in which their codes are made."""
    cells = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    cells.sort(key=lambda cell: (cell[0] // patch, cell[1] // patch, cell[0] % patch, cell[1] % patch))
    return {cell: i for i, cell in enumerate(cells)}


def test_fold_puts_the_codes_of_a_patch_side_by_side():
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    folded = fold(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    for i, (y, z) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(folded[:, 1, 2, 3 * i : 3 * i + 3], x[:, 2 + y, 4 + z])
    assert torch.equal(unfold(folded, 2), x)
    assert fold(x, 1) is x


@pytest.mark.parametrize(("shape", "patch", "condition"), CASES)
def test_with_attention_every_code_made_earlier_is_seen_and_no_other(shape, patch, condition):
    prior = tiny_prior(shape, condition, patch=patch, patch_channels=5, attention_every=1)
    codes, coarser, label = tiny_inputs(prior.config, 1)
    positions = shape[0] * shape[1]
    changed = codes.repeat(positions, 1, 1)
    for i in range(positions):  # the i-th map differs from the first in its i-th code
        changed[i, i // shape[1], i % shape[1]] = (changed[i, i // shape[1], i % shape[1]] + 1) % 7
    many = None if coarser is None else [level.repeat(positions, 1, 1) for level in coarser]
    logits, other = prior(codes, coarser, label), prior(changed, many, label)
    moved = (other - logits).abs().amax(1).flatten(1) > 1e-12  # (changed code, position)
    numbers = order(shape, patch)
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
@pytest.mark.parametrize(("shape", "patch", "condition"), CASES)
def test_both_forms_agree_and_follow_the_order_of_the_patches(shape, patch, condition, attention, labelled):
    prior = tiny_prior(shape, condition, labelled, patch=patch, patch_channels=5, attention_every=attention)
    codes, coarser, label = tiny_inputs(prior.config, 3)
    logits, seen = replay(prior, codes, coarser, label)
    torch.testing.assert_close(logits, prior(codes, coarser, label), rtol=0, atol=1e-9)
    numbers = order(shape, patch)
    assert seen == [row * shape[1] + column for row, column in sorted(numbers, key=numbers.__getitem__)]


def test_a_patch_that_does_not_divide_the_map_is_refused():
    with pytest.raises(ValueError, match="patch must divide 3x4"):
        tiny_prior((3, 4), patch=2)
    with pytest.raises(ValueError, match="does not divide"):
        tiny_prior((4, 4), ((4, 4),), patch=2)
