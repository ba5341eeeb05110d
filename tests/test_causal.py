"""Every causal layer sees exactly what it should, in both of its forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_priors import randomise
from torch import Tensor, nn

from vqvae2.causal import (
    Cache,
    CausalAttention,
    ColumnConv,
    GatedBlock,
    Padding,
    Past,
    RowConv,
    shift_down,
    shift_previous,
)

SHAPES = [(4, 4), (3, 5), (5, 3), (1, 6), (6, 1)]
REACH = {2: 1, 3: 1, 4: 2, 5: 2}  # cells to one side, by kernel size
CHANNELS = 4

Support = NDArray[np.bool_]  # (P, P): whether the output at a position (row) depends on the input at another (column)


def measured(function: Callable[[Tensor], Tensor], shape: tuple[int, int], channels: int = CHANNELS) -> Support:
    """Ask the gradient of every output position, each of an input of its own, which input positions it depends on."""
    height, width = shape
    positions = height * width
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(positions, height, width, channels, generator=generator, dtype=torch.float64).requires_grad_()
    y = function(x).flatten(1, 2)  # (P, P, R)
    own = y[torch.arange(positions), torch.arange(positions)]
    # A weighted sum: the channels of a plain one could cancel.
    (own * torch.randn(own.shape, generator=generator, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    return (x.grad != 0).any(-1).flatten(1).numpy()


def expected(shape: tuple[int, int], sees: Callable[[int, int, int, int], bool]) -> Support:
    """Write the support out: whether (row, column) sees (other row, other column)."""
    cells = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    return np.array([[sees(*here, *there) for there in cells] for here in cells])


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_down_shows_the_position_above_alone(shape):
    assert np.array_equal(measured(shift_down, shape), expected(shape, lambda r, c, r2, c2: (r2, c2) == (r - 1, c)))
    x = torch.randn(2, *shape, 3)
    assert torch.equal(shift_down(x)[:, 1:], x[:, :-1])
    assert not shift_down(x)[:, 0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_previous_shows_the_position_before_in_raster_order_alone(shape):
    width = shape[1]
    before = expected(shape, lambda r, c, r2, c2: r2 * width + c2 == r * width + c - 1)
    assert np.array_equal(measured(shift_previous, shape), before)
    x = torch.randn(2, *shape, 3)
    assert torch.equal(shift_previous(x).flatten(1, 2)[:, 1:], x.flatten(1, 2)[:, :-1])
    assert not shift_previous(x)[:, 0, 0].any()


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", SHAPES)
def test_row_conv_sees_its_rows_up_to_its_own_and_nothing_else(shape, kernel):
    layer, reach = randomise(RowConv(CHANNELS, 3, kernel)), REACH[kernel]
    wanted = expected(shape, lambda r, c, r2, c2: r - reach <= r2 <= r and abs(c2 - c) <= reach)
    assert np.array_equal(measured(lambda x: layer(x, Padding()), shape), wanted)


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", SHAPES)
def test_column_conv_sees_its_row_up_to_its_own_position_and_nothing_else(shape, kernel):
    layer, reach = randomise(ColumnConv(CHANNELS, 3, kernel)), REACH[kernel]
    wanted = expected(shape, lambda r, c, r2, c2: r2 == r and c - reach <= c2 <= c)
    assert np.array_equal(measured(lambda x: layer(x, Padding()), shape), wanted)


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_block_has_the_exact_support_in_both_streams(shape, kernel):
    block, reach = randomise(GatedBlock(CHANNELS, 3, kernel, condition_channels=2)), REACH[kernel]
    positions = shape[0] * shape[1]
    v, h, condition = (torch.randn(positions, *shape, n, dtype=torch.float64) for n in (CHANNELS, CHANNELS, 2))

    def above(v: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return block.above(v, condition, Padding())

    def both(v: Tensor, h: Tensor, condition: Tensor) -> Tensor:
        return block.within(h, above(v, condition)[1], Padding())

    over_rows = expected(shape, lambda r, c, r2, c2: r - reach <= r2 <= r and abs(c2 - c) <= reach)
    over_columns = expected(shape, lambda r, c, r2, c2: r2 == r and c - reach <= c2 <= c)
    own = np.eye(positions, dtype=bool)
    assert np.array_equal(measured(lambda x: above(x, condition)[0], shape), over_rows)
    assert np.array_equal(measured(lambda x: above(v, x)[0], shape, 2), own)
    assert np.array_equal(measured(lambda x: both(v, x, condition), shape), over_columns)
    # What the horizontal stream takes from the vertical one is the new v at its own position, after the convolution.
    assert np.array_equal(measured(lambda x: both(x, h, condition), shape), over_rows)
    assert np.array_equal(measured(lambda x: both(v, h, x), shape, 2), own)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_sees_every_position_up_to_its_own_and_none_later(shape):
    layer = randomise(CausalAttention(CHANNELS, 2))
    assert isinstance(layer, CausalAttention)
    width = shape[1]
    wanted = expected(shape, lambda r, c, r2, c2: r2 * width + c2 <= r * width + c)
    assert np.array_equal(measured(lambda x: layer.within(x, Padding()), shape), wanted)


def test_attention_is_the_softmax_over_earlier_positions_written_out():
    layer = randomise(CausalAttention(6, 3))
    assert isinstance(layer, CausalAttention)
    h = torch.randn(1, 2, 3, 6, dtype=torch.float64)
    x = h[0].flatten(0, 1).numpy()
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer.norm.weight.detach().numpy()
    query, key, value = (normed @ layer.qkv.weight.detach().numpy().T).reshape(6, 3, 3, 2).transpose(1, 2, 0, 3)
    heads = np.zeros((6, 3, 2))
    for position in range(6):
        for head in range(3):
            scores = key[head, : position + 1] @ query[head, position] / np.sqrt(2)
            weights = np.exp(scores) / np.exp(scores).sum()
            heads[position, head] = weights @ value[head, : position + 1]
    out = heads.reshape(6, 6) @ layer.out.weight.detach().numpy().T + layer.out.bias.detach().numpy()
    np.testing.assert_allclose(layer.within(h, Padding()).detach().flatten(1, 2)[0].numpy(), x + out, atol=1e-12)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="10 and 4"):
        CausalAttention(10, 4)


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("kind", [RowConv, ColumnConv])
def test_convolutions_have_no_masked_taps(kind, kernel):
    layer, reach = kind(CHANNELS, 3, kernel).double(), REACH[kernel]
    seen = expected((7, 7), lambda r, c, r2, c2: r - reach <= r2 <= r and abs(c2 - c) <= reach)
    if kind is ColumnConv:
        seen = expected((7, 7), lambda r, c, r2, c2: r2 == r and c - reach <= c2 <= c)
    # As many weights as cells seen from the middle of the map: none is there to be multiplied by zero.
    weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim > 1)
    assert weights == seen[3 * 7 + 3].sum() * CHANNELS * 3
    y = layer(torch.randn(1, 7, 7, CHANNELS, dtype=torch.float64), Padding())
    (y * torch.randn_like(y)).sum().backward()
    assert all((parameter.grad != 0).all() for parameter in layer.parameters())


def by_rows(function: Callable[[Tensor, Past], Tensor], x: Tensor) -> Tensor:
    """Run the incremental form of the vertical stream."""
    past = Cache(*x.shape[1:3])
    rows = []
    for past.row in range(x.shape[1]):
        rows.append(function(x[:, past.row : past.row + 1], past).clone())
    return torch.cat(rows, 1)


def by_positions(function: Callable[[Tensor, Past], Tensor], x: Tensor) -> Tensor:
    """Run the incremental form of the horizontal stream."""
    past = Cache(*x.shape[1:3])
    cells = []
    for past.row in range(x.shape[1]):
        for past.column in range(x.shape[2]):
            here = x[:, past.row : past.row + 1, past.column : past.column + 1]
            cells.append(function(here, past).clone())
    return torch.cat(cells, 2).view(*x.shape[:3], -1)


@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_each_layer_is_the_same_in_both_forms(shape, kernel):
    rows, columns = randomise(RowConv(CHANNELS, 3, kernel)), randomise(ColumnConv(CHANNELS, 3, kernel))
    attention, block = randomise(CausalAttention(CHANNELS, 2)), randomise(GatedBlock(CHANNELS, 3, kernel))
    assert isinstance(attention, CausalAttention)
    assert isinstance(block, GatedBlock)
    x = torch.randn(2, *shape, CHANNELS, dtype=torch.float64)
    forms: list[tuple[Callable, Callable[[Tensor, Past], Tensor]]] = [
        (by_rows, rows),
        (by_rows, lambda x, past: block.above(x, None, past)[0]),
        (by_rows, lambda x, past: block.above(x, None, past)[1]),
        (by_positions, columns),
        (by_positions, attention.within),
        (by_positions, lambda x, past: block.within(x, x[..., :3], past)),
    ]
    for incremental, function in forms:
        # Sums of a few dozen products of order one: float64 rounds them at 1e-15.
        torch.testing.assert_close(incremental(function, x), function(x, Padding()), rtol=0, atol=1e-13)


@torch.no_grad()
def test_layers_that_share_a_cache_do_not_share_its_memory():
    first, second = (randomise(ColumnConv(CHANNELS, CHANNELS, 3), seed) for seed in (0, 1))
    x = torch.randn(1, 2, 4, CHANNELS, dtype=torch.float64)

    def both(x: Tensor, past: Past) -> Tensor:
        return second(first(x, past), past)

    torch.testing.assert_close(by_positions(both, x), both(x, Padding()), rtol=0, atol=1e-13)


@torch.no_grad()
def test_buffers_are_made_once_and_kept():
    layers: list[nn.Module] = [randomise(RowConv(CHANNELS, 3, 5)), randomise(ColumnConv(CHANNELS, 3, 5))]
    attention = randomise(CausalAttention(CHANNELS, 2))
    assert isinstance(attention, CausalAttention)
    past = Cache(4, 5)
    x = torch.randn(2, 4, 5, CHANNELS, dtype=torch.float64)
    places = set()
    for past.row in range(4):
        layers[0](x[:, past.row : past.row + 1], past)
        for past.column in range(5):
            here = x[:, past.row : past.row + 1, past.column : past.column + 1]
            layers[1](here, past)
            attention.within(here, past)
        places.add(tuple(b.data_ptr() for buffers in past._buffers.values() for b in buffers))
    assert len(places) == 1
    held = sum(b.numel() for buffers in past._buffers.values() for b in buffers)
    # Rows: 3 of 5 columns; columns: 2 + 5; attention: key and value of every position.
    assert held == 2 * CHANNELS * (3 * 5 + (2 + 5) + 2 * 4 * 5)
