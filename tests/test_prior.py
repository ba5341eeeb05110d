"""The prior sees exactly what comes earlier, and its two forms are one distribution."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_priors import ATTRIBUTES, tiny_inputs, tiny_prior
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vqvae2 import checkpoint
from vqvae2.causal import ColumnConv, RowConv
from vqvae2.errors import UserError
from vqvae2.prior import Prior, PriorConfig
from vqvae2.stages import train_prior

REACH = {2: 1, 3: 1, 4: 2, 5: 2}  # cells to one side, by kernel size
COARSER = {  # shapes of the coarser levels, for two and for three levels
    (4, 4): [((2, 2),), ((1, 1), (2, 2))],
    (3, 6): [((3, 2),), ((1, 1), (3, 2))],
    (1, 6): [((1, 2),), ((1, 1), (1, 2))],
    (6, 1): [((3, 1),), ((1, 1), (3, 1))],
}
Support = NDArray[np.bool_]
BARE = {"level": "top", "height": 4, "width": 6, "num_embeddings": 12, "embedding_dim": 6, "channels": 8}
BARE |= {"residual_channels": 8, "num_layers": 2, "attention_every": 2, "num_heads": 2, "dropout": 0.0}


def test_a_prior_of_labels_starts_from_one_without_any(tmp_path):
    """It says what that says until the labels are learned."""
    other = Prior(PriorConfig(**BARE)).eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)
    other.save_pretrained(tmp_path)
    prior = Prior(PriorConfig(**BARE, attributes=(("diagnosis", ("healthy", "atrophy")),))).eval()
    train_prior._start(prior, tmp_path)
    codes, label = torch.randint(12, (3, 4, 6)), torch.tensor([[0], [1], [-1]])
    with torch.no_grad():
        torch.testing.assert_close(prior(codes, label=label), other(codes))
    assert any(name.startswith("blocks.0.condition_") for name in prior.state_dict())


def replay(prior: Prior, codes: Tensor, condition: list[Tensor] | None, label: Tensor | None) -> Tensor:
    """Run the incremental form along given codes: (B, K, h, w) logits."""
    logits = torch.zeros(len(codes), prior.config.num_embeddings, *prior.config.shape, dtype=torch.float64)

    def draw(here: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        row, column = divmod(int(position[0]), prior.config.width)
        logits[:, :, row, column] = here
        return codes[:, row, column], position

    made, positions = prior.generate(draw, numbered(codes.shape), condition, label)
    assert torch.equal(made, codes)
    assert torch.equal(positions, numbered(codes.shape).sum((1, 2)))
    return logits


def numbered(shape: Sequence[int]) -> Tensor:
    """Number the positions of (B, h, w) maps in raster order."""
    return torch.arange(shape[1] * shape[2], dtype=torch.float64).view(1, *shape[1:]).expand(*shape)


def expected_support(
    shape: tuple[int, int],
    reach: int,
    layers: int,
    attention: list[int],
    context: Support | None = None,
) -> Support:
    """Propagate by hand which sources reach the logits of each position: (P, sources).

    The sources are the P codes, then those of ``context`` (P, S), which every layer adds at its own position.
    """
    height, width = shape
    positions = height * width
    extra = 0 if context is None else context.shape[1]
    aside = np.zeros((height, width, positions + extra), bool)
    if context is not None:
        aside[:, :, positions:] = context.reshape(height, width, -1)
    v, h = np.zeros_like(aside), np.zeros_like(aside)
    for row in range(height):
        for column in range(width):
            here = row * width + column
            if row > 0:
                v[row, column, here - width] = True
            if here > 0:
                h[row, column, here - 1] = True
    for layer in range(layers):
        new_v, new_h = np.zeros_like(v), np.zeros_like(h)
        for row in range(height):
            for column in range(width):
                above = slice(max(0, row - reach), row + 1)
                window = slice(max(0, column - reach), column + reach + 1)
                new_v[row, column] = v[above, window].any((0, 1)) | aside[row, column]
                left = slice(max(0, column - reach), column + 1)
                new_h[row, column] = h[row, left].any(0) | new_v[row, column] | aside[row, column]
        v, h = new_v, new_h
        if layer in attention:
            h = np.logical_or.accumulate(h.reshape(positions, -1)).reshape(h.shape)
    return h.reshape(positions, -1)


def expected_context(config: PriorConfig) -> Support:
    """Which cells of the coarser levels (all, top first), and which label attributes, each position is told of."""
    height, width = config.shape
    columns = []
    finest = config.condition_shapes[-1] if config.condition_shapes else (1, 1)
    for rows, cells in config.condition_shapes:
        grid = np.zeros((*finest, rows * cells), bool)
        for y in range(finest[0]):
            for x in range(finest[1]):
                grid[y, x, (y * rows // finest[0]) * cells + x * cells // finest[1]] = True
        for _ in range(config.condition_layers):  # 3x3 convolutions
            padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
            grid = np.any([padded[y : y + finest[0], x : x + finest[1]] for y in range(3) for x in range(3)], axis=0)
        columns.append(grid.repeat(height // finest[0], 0).repeat(width // finest[1], 1).reshape(height * width, -1))
    columns.append(np.ones((height * width, len(config.attributes)), bool))
    return np.concatenate(columns, 1)


def measured_support(prior: Prior) -> Support:
    """Ask the gradient of the logits of every position, each of a map of its own, which sources they depend on."""
    height, width = prior.config.shape
    positions = height * width
    leaves: list[Tensor] = []

    def watch(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        leaf = output.detach().clone().requires_grad_()
        leaves.append(leaf)
        return leaf

    conditions = list(prior.condition.embeddings) if prior.condition is not None else []
    watched = [prior.embedding, *conditions, *prior.labels]
    hooks = [module.register_forward_hook(watch) for module in watched]
    codes, condition, label = tiny_inputs(prior.config, positions)
    logits = prior(codes, condition, label).flatten(2)
    for hook in hooks:
        hook.remove()
    own = logits[torch.arange(positions), :, torch.arange(positions)]
    # A weighted sum: the logits of a plain one could cancel.
    (own * torch.randn(own.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).sum().backward()
    # In the order of the calls: condition and label before the codes.
    by_call = [(leaf.grad != 0).any(-1).numpy() for leaf in leaves if leaf.grad is not None]
    assert len(by_call) == len(watched)
    grids = [by_call[-1], *by_call[: len(conditions)]]
    columns = [grid.reshape(positions, -1) for grid in grids]
    columns += [attribute[:, None] for attribute in by_call[len(conditions) : -1]]
    return np.concatenate(columns, 1)


@pytest.mark.parametrize("attention", [0, 1, 2])
@pytest.mark.parametrize("kernel", REACH)
@pytest.mark.parametrize("shape", COARSER)
def test_prior_has_the_exact_support_of_its_layers(shape, kernel, attention):
    after = [i for i in range(2) if attention and (i + 1) % attention == 0]
    for condition_shapes in [(), *COARSER[shape]]:
        for labelled in (False, True):
            prior = tiny_prior(shape, condition_shapes, labelled, kernel_size=kernel, attention_every=attention)
            told = expected_context(prior.config)
            wanted = expected_support(shape, REACH[kernel], 2, after, told)
            assert np.array_equal(measured_support(prior), wanted), (condition_shapes, labelled)


@pytest.mark.parametrize("shape", COARSER)
def test_with_attention_every_earlier_code_is_seen_and_no_other(shape):
    earlier = np.tril(np.ones((shape[0] * shape[1],) * 2, bool), -1)
    # The smallest kernel and a single layer: all but the neighbours comes through the attention.
    prior = tiny_prior(shape, kernel_size=2, num_layers=1, attention_every=1)
    assert np.array_equal(measured_support(prior), earlier)


def test_enough_layers_see_every_earlier_code_without_attention():
    # 3 steps sideways and up reach every cell of a 4x4 map; the first layer at the last column sees the code above it.
    prior = tiny_prior((4, 4), kernel_size=3, num_layers=4)
    assert np.array_equal(measured_support(prior), np.tril(np.ones((16, 16), bool), -1))
    first = measured_support(tiny_prior((4, 4), kernel_size=3, num_layers=1))
    assert first[7, 3]


@pytest.mark.parametrize("context", ["none", "label", "two levels", "three levels and label"])
@pytest.mark.parametrize("attention", [0, 2])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("shape", COARSER)
def test_full_form_equals_incremental_form_at_every_position(shape, kernel, attention, context):
    coarser = {"two levels": COARSER[shape][0], "three levels and label": COARSER[shape][1]}.get(context, ())
    prior = tiny_prior(shape, coarser, "label" in context, kernel_size=kernel, attention_every=attention)
    codes, condition, label = tiny_inputs(prior.config, 3)
    with torch.no_grad():
        for batch in (1, 3):
            first = [c[:batch] for c in condition] if condition else None
            inputs = codes[:batch], first, None if label is None else label[:batch]
            full = prior.double()(*inputs)
            assert full.std(1).min() > 0.01
            torch.testing.assert_close(replay(prior, *inputs), full, rtol=0, atol=1e-10)
            single = prior.float()(*inputs).double()
            assert (replay(prior, *inputs) - single).abs().max() <= 1e-4 * single.abs().max()


def test_every_weight_of_the_convolutions_gets_gradient():
    prior = tiny_prior((8, 8), ((4, 4),), labelled=True, kernel_size=5)
    codes, condition, label = tiny_inputs(prior.config, 2)
    logits = prior(codes, condition, label)
    (logits * torch.randn_like(logits)).sum().backward()
    assert prior.condition is not None
    layers = [module for module in prior.modules() if isinstance(module, RowConv | ColumnConv)]
    assert len(layers) == 2 * 2
    for layer in (*layers, *prior.condition.blocks):
        assert all(p.grad is not None and (p.grad != 0).all() for p in layer.parameters())


class Work(TorchDispatchMode):
    """Counts operations, the numbers they read and write, and their multiplications; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = np.zeros(3, np.int64)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            tensors = [t for t in (*args, out) if isinstance(t, Tensor)]
            if func in (torch.ops.aten.index_select.default, torch.ops.aten.index_copy_.default):
                index, part = args[2], out if func is torch.ops.aten.index_select.default else args[3]
                tensors = [index, part, part]  # what is not selected is not touched
            flops = flop_registry.get(func._overloadpacket, lambda *_args, **_more: 0)
            self.count += (1, sum(t.numel() for t in tensors), flops(*args, **(kwargs or {}), out_val=out))
        return out


def work_by_position(prior: Prior) -> NDArray[np.int64]:
    """Count the work up to each draw since the one before it: (h, w, 3)."""
    height, width = prior.config.shape
    _, condition, label = tiny_inputs(prior.config, 1)
    code, log_p = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    counts = []

    def draw(_logits: Tensor, _position: Tensor) -> tuple[Tensor, Tensor]:
        counts.append(work.count.copy())
        return code, log_p

    with Work() as work:
        prior.generate(draw, numbered((1, height, width)), condition, label)
    return np.diff(np.stack(counts), axis=0, prepend=0).reshape(height, width, 3)


def test_work_of_a_position_does_not_grow_with_the_position_beyond_attention(monkeypatch):
    lengths = []

    def attention(query: Tensor, key: Tensor, value: Tensor, **_more: object) -> Tensor:
        lengths.append((query.shape[2], key.shape[2], value.shape[2]))
        return query.clone()

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    prior = tiny_prior((64, 5), ((32, 5),), labelled=True, attention_every=2)
    work = work_by_position(prior)
    # Attention: one query, and the keys of the positions so far.
    assert lengths == [(1, position + 1, position + 1) for position in range(64 * 5)]
    assert work[1, 1].min() > 0
    # The first position of a row carries the row's own work, the first row the making of the buffers.
    assert (work[1:, 1:] == work[1, 1]).all()
    assert (work[1:, 0] == work[1, 0]).all()
    smaller = work_by_position(tiny_prior((8, 5), ((4, 5),), labelled=True, attention_every=2))
    assert np.array_equal(smaller[1:], work[1:8])


def test_without_attention_every_row_costs_the_same():
    short, tall = work_by_position(tiny_prior((9, 4))), work_by_position(tiny_prior((17, 4)))
    assert (tall[1:] == tall[1]).all()
    assert np.array_equal(short[1:], tall[1:9])


@pytest.mark.parametrize("condition_shapes", [(), ((2, 3),), ((1, 3), (2, 3))])
def test_a_saved_prior_comes_back_with_equal_output(tmp_path, condition_shapes):
    prior = tiny_prior((4, 6), condition_shapes, labelled=True, attention_every=2).float()
    digest = prior.save_pretrained(tmp_path, {"codes": "f" * 64})
    loaded = Prior.from_pretrained(tmp_path)
    assert loaded.config == prior.config
    assert loaded.config.attributes == ATTRIBUTES
    assert not loaded.training
    inputs = tiny_inputs(prior.config, 3)
    assert torch.equal(loaded(*inputs), prior(*inputs))
    assert digest == checkpoint.sha256_of(tmp_path)
    assert checkpoint.load_config(tmp_path, kind="prior")["codes"] == "f" * 64


def test_weights_of_another_prior_are_refused(tmp_path):
    tiny_prior().float().save_pretrained(tmp_path / "one")
    tiny_prior(num_layers=3).float().save_pretrained(tmp_path / "other")
    (tmp_path / "one" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="do not fit"):
        Prior.from_pretrained(tmp_path / "one")


def test_a_fresh_prior_is_uniform_and_learns_the_order_of_codes():
    config = PriorConfig(
        height=4,
        width=4,
        num_embeddings=5,
        embedding_dim=8,
        channels=16,
        residual_channels=16,
        num_layers=2,
        num_heads=2,
    )
    torch.manual_seed(0)
    prior = Prior(replace(config, dropout=0.0, attention_every=2))
    codes = (torch.arange(16).view(1, 4, 4) + torch.arange(5).view(5, 1, 1)) % 5  # each code is the one before it + 1

    def nll() -> Tensor:
        return nn.functional.cross_entropy(prior(codes), codes)

    torch.testing.assert_close(nll(), torch.tensor(5.0).log())
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nll()
        loss.backward()
        optimizer.step()
    # All but the first code of the 16 follow from the one before: log(5) / 16 is what remains.
    assert nll().item() < 1.5 * np.log(5) / 16


def test_a_started_prior_is_the_position_wise_unigram_in_both_forms():
    config = tiny_prior((3, 4), labelled=True, attention_every=2).config
    prior = Prior(replace(config, position_logits=True)).eval()
    log_p = torch.randn(12, 7).log_softmax(-1)
    prior.start_from(position_log_p=log_p)
    codes, condition, label = tiny_inputs(config, 2)
    logits = prior(codes, condition, label)
    expected = log_p.T.reshape(1, 7, 3, 4).expand(2, -1, -1, -1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(replay(prior, codes, condition, label), expected.double(), rtol=0, atol=0)
    without = Prior(replace(config, position_logits=False))
    without.start_from(position_log_p=log_p)
    assert not without.eval()(codes, condition, label).any()


def test_embeddings_start_from_the_codebooks_standardised():
    config = tiny_prior((4, 4), ((2, 2),)).config
    codebooks = [torch.randn(5, 3) * 7 + 2, torch.randn(7, 4)]
    prior = Prior(replace(config, codebook_embeddings=True))
    assert prior.condition is not None
    before = prior.embedding.weight.clone()
    prior.start_from(codebooks)
    codebook = codebooks[0].numpy()
    wanted = (codebook - codebook.mean(0)) / codebook.std(ddof=1)
    np.testing.assert_allclose(prior.condition.embeddings[0].weight.detach().numpy(), wanted, atol=1e-5)
    assert torch.equal(prior.embedding.weight, before)  # 4 dimensions are not the embedding's 3


def test_every_parameter_is_used_by_the_forward_pass():
    prior = tiny_prior((4, 4), ((2, 2),), labelled=True, attention_every=1)
    codes, condition, label = tiny_inputs(prior.config, 4)
    prior(codes, condition, label).square().sum().backward()
    unused = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_codes_are_drawn_without_dropout_and_the_modes_are_restored():
    """Also without the dropout of labels and of codes, whatever the mode of the prior or of its parts."""
    dropped = {"dropout": 0.5, "attention_dropout": 0.5, "input_dropout": 0.5, "label_dropout": 1.0}
    prior = tiny_prior((3, 4), ((1, 2),), labelled=True, attention_every=2, **dropped)
    codes, condition, label = tiny_inputs(prior.config, 3)
    uniform = torch.zeros(3, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        predicted = prior.eval()(codes, condition, label).log_softmax(1)

    def draw(logits: Tensor, _uniform: Tensor) -> tuple[Tensor, Tensor]:
        return logits.argmax(-1), logits.log_softmax(-1).amax(-1)

    expected = prior.generate(draw, uniform, condition, label)
    prior.train()
    prior.labels.eval()
    modes = [part.training for part in prior.modules()]
    for _ in range(3):
        assert all(map(torch.equal, prior.generate(draw, uniform, condition, label), expected))
        assert torch.equal(prior.log_probabilities(codes, condition, label), predicted)
    assert [part.training for part in prior.modules()] == modes
