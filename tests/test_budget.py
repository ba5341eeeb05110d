"""Budgets: multiply-adds against closed forms and against a count of the whole model, time against a counting clock."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from costs_by_hand import detail_by_hand, prior_by_hand, vqvae_by_hand
from torch.utils.flop_counter import FlopCounterMode

from vqvae2 import VQVAE, Prior, PriorConfig, VQVAEConfig
from vqvae2 import budget as module
from vqvae2.budget import budget, table
from vqvae2.detail import DetailConfig
from vqvae2.presets import PRESETS


def counts(config: VQVAEConfig | PriorConfig | DetailConfig) -> dict[str, int]:
    return {part.name: part.multiply_adds for part in budget(config)}


TINY = VQVAEConfig(
    channels=3,
    height=16,
    width=32,
    strides=(2, 4),
    num_embeddings=(8, 12),
    embedding_dim=(4, 6),
    hidden_channels=(10, 8),
    residual_channels=(5, 3),
    num_residual_layers=(1, 2),
    joint_channels=7,
    num_fine_layers=1,
)


def test_upsampled_levels_cost_transposed_convolutions_alone():
    config = replace(TINY, upper_decoder="upsample")
    assert counts(config) == vqvae_by_hand(config)
    assert counts(TINY)["top"] - counts(config)["top"] == 8 * (9 * 4 * 10 + 9 * 10 * 5 + 5 * 10 + 16 * (10 - 4) * 7)


def test_levels_cost_their_convolutions_and_distances():
    # The top has 2x4 cells. Encoder: 4x4 and 3x3, residual 3x3 and 1x1; to 4 dimensions; 8 codes; decoder likewise.
    encoder = 8 * (16 * 8 * 10 + 9 * 10 * 10 + 9 * 10 * 5 + 5 * 10)
    decoder = 8 * (9 * 4 * 10 + 9 * 10 * 5 + 5 * 10 + 16 * 10 * 7)
    assert counts(TINY)["top"] == encoder + 8 * 10 * 4 + 8 * 8 * 4 + decoder == vqvae_by_hand(TINY)["top"]
    assert counts(TINY) == vqvae_by_hand(TINY)


@pytest.mark.parametrize(("drawn", "widths"), [(1, ()), (2, ()), (1, (12, 9, 7)), (2, (11, 3))])
def test_levels_of_a_detail_decoder_cost_their_decoders_and_painters(drawn, widths):
    ladder = replace(PRESETS["brain128"].vqvae, hidden_channels=(12, 10, 8), residual_channels=(6, 5, 4))
    config = DetailConfig(ladder, drawn, num_layers=2, widths=widths)
    assert counts(config) == detail_by_hand(config)
    if drawn == 1:  # the top's: convolutions of 3x3, two of each block, beside its decoder
        own = 256 * 9 * (64 * 12 + 2 * 2 * 12 * 12)
        assert counts(config)["top"] - own == 256 * (9 * 64 * 12 + 2 * (9 * 12 * 6 + 6 * 12) + 16 * 12 * 10)


TOP = {"condition_levels": (), "condition_shapes": (), "condition_num_embeddings": (), "attention_every": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attributes": ()},
        {"condition_channels": 10, "output_layers": 0},
        {"vertical_channels": 5, "kernel_size": 4, "attention_every": 1},
        TOP,
        {**TOP, "mirrored": True},
        {"recompute": True},
        {"patch": 2, "patch_channels": 5},
    ],
)
def test_parts_of_a_prior_cost_their_products(tiny_prior_config, changes):
    config = replace(tiny_prior_config, **changes)
    assert counts(config) == prior_by_hand(config)


def test_parts_add_up_to_the_whole_model(tiny_prior_config):
    # Without attention, which the counter misses where it is one fused operation.
    prior = Prior(replace(tiny_prior_config, attention_every=0))
    codes = torch.zeros(1, 4, 6, dtype=torch.int64), [torch.zeros(1, 2, 3, dtype=torch.int64)]
    for model, inputs in ((VQVAE(TINY), (torch.zeros(1, 3, 16, 32),)), (prior, codes)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(*inputs)
        assert sum(counts(model.config).values()) == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_and_its_budget_is_as_printed(name):
    preset = PRESETS[name]
    config = preset.vqvae
    codes = config.levels, config.shapes, config.num_embeddings, {"sex": ("F", "M")}
    priors = [preset.prior_for(i, *codes) for i in range(len(config.levels))]
    wanted = [preset.prior(i)[0] for i in range(len(config.levels))]
    assert [(prior.patch, prior.mirrored) for prior in priors] == [(prior.patch, prior.mirrored) for prior in wanted]
    assert len(preset.priors) == len(preset.prior_training) == len(config.levels)
    for settings, expected in [(config, vqvae_by_hand(config)), *((prior, prior_by_hand(prior)) for prior in priors)]:
        parts = budget(settings)
        assert [part[:2] for part in parts] == list(expected.items())
        head, *lines = table("model", parts).splitlines()
        units, whole = {"G": 1e9, "M": 1e6}, sum(expected.values())
        for line, (part, count) in zip((head, *lines), (("model:", whole), *expected.items()), strict=True):
            figure, unit = re.search(rf"{part} +([\d,.]+) ([GM])", line).groups()
            assert float(figure.replace(",", "")) == pytest.approx(count / units[unit], abs=0.00501)
            assert line is head or f" {count / whole:.1%}" in line


@pytest.mark.parametrize("kind", ["VQ-VAE", "prior"])
def test_timing_goes_through_every_part_and_backwards(kind, tiny_prior_config, monkeypatch):
    config = TINY if kind == "VQ-VAE" else replace(tiny_prior_config, recompute=True)
    clock, built, build = itertools.count(), [], module._build
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "_build", lambda config: built.append(build(config)) or built[-1])
    state = torch.get_rng_state()
    parts = budget(config, "cpu")
    # Each call reads the clock twice, so the seconds are the calls: four for a level.
    calls = (4, 4) if kind == "VQ-VAE" else (1, 1 + config.num_layers, 2 + config.num_layers, 3)
    assert tuple(part.seconds for part in parts) == calls
    without = {name for name, parameter in built[-1].named_parameters() if parameter.grad is None}
    assert without == (
        set() if kind == "VQ-VAE" else {"embedding.weight", "position_v", "position_h", "labels.0.weight"}
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert re.findall(r"time +([\d.]+)%", table(kind, parts)) == [f"{100 * n / sum(calls):.1f}" for n in calls]


def test_a_large_model_is_counted_and_not_timed():
    parts = budget(replace(TINY, height=4096, width=4096), "cpu")
    assert {part.seconds for part in parts} == {None}
    assert "not timed: too large" in table("VQ-VAE", parts)
