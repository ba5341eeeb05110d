"""The presets against the tables of docs/paper-to-code.md, which say what they set and what comes of it."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from costs_by_hand import prior_by_hand, vqvae_by_hand
from tiny_priors import randomise
from torch import nn

from vqvae2 import VQVAE, Prior, PriorConfig
from vqvae2.presets import PRESETS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "paper-to-code.md"
REACHES = sorted({(prior.num_layers, prior.kernel_size) for preset in PRESETS.values() for prior in preset.priors})


def table(first: str) -> list[list[str]]:
    """Rows of the page's table whose head begins with this word, the head first."""
    lines = re.search(rf"^\| {re.escape(first)} \|.*\n(\|.*\n)+", PAGE.read_text(), re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


@functools.cache
def built(name: str) -> tuple[VQVAE, list[Prior]]:
    """All models of a preset, without labels: shapes and no content."""
    preset = PRESETS[name]
    config = preset.vqvae
    codes = config.levels, config.shapes, config.num_embeddings, {}
    with torch.device("meta"):
        return VQVAE(config).eval(), [Prior(preset.prior_for(i, *codes)).eval() for i in range(len(config.levels))]


def parameters(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def millions(costs: dict[str, int]) -> str:
    return f"{sum(costs.values()) / 1e6:,.1f}"


def sizes(name: str) -> list[list[str]]:
    """What the table of sizes has to say of a preset, from its models; test_budget holds the costs to budget.py."""
    vqvae, priors = built(name)
    config = vqvae.config
    with torch.device("meta"):
        image = torch.empty(1, config.channels, config.height, config.width)
        codes = [torch.empty(1, *x.shape[2:], dtype=torch.int64) for x in vqvae.features(image)]
        assert vqvae.decode(codes).shape == image.shape
    maps = [f"{level.shape[1]}x{level.shape[2]} of {k}" for level, k in zip(codes, config.num_embeddings, strict=True)]
    bits = sum(level.numel() * (k - 1).bit_length() for level, k in zip(codes, config.num_embeddings, strict=True))
    ratio = f"{8 * image.numel() / bits:.1f}"
    found = [["VQ-VAE", "", ratio, parameters(vqvae), millions(vqvae_by_hand(config)), "", ""]]
    for i, (prior, level) in enumerate(zip(priors, maps, strict=True)):
        with torch.device("meta"):
            logits = prior(codes[i], codes[:i])
        assert logits.shape == (1, config.num_embeddings[i], *codes[i].shape[1:])
        patches = f", in {prior.config.patch}x{prior.config.patch}" * (prior.config.patch > 1)
        patches += ", mirrored" * prior.config.mirrored
        reach = 1 + sum(block.rows.reach for block in prior.blocks)
        after = ", ".join(str(int(block) + 1) for block in prior.attention) or "–"
        found.append(
            [
                prior.config.level,
                level + patches,
                "",
                parameters(prior),
                millions(prior_by_hand(prior.config)),
                str(reach),
                after,
            ]
        )
    return [[f"`{name}`", *row] for row in found]


@pytest.mark.parametrize("name", PRESETS)
def test_the_models_of_a_preset_have_the_sizes_that_the_page_gives(name):
    assert [row for row in table("Preset") if row[0] == f"`{name}`"] == sizes(name)


def test_the_page_gives_sizes_of_all_presets_and_of_no_other():
    assert list(dict.fromkeys(row[0].strip("`") for row in table("Preset")[1:])) == list(PRESETS)


@pytest.mark.parametrize(("layers", "kernel"), REACHES)
def test_a_stack_without_attention_sees_as_far_as_the_page_says(layers, kernel):
    """By the gradient of one position's logits: rows above and codes to the left up to the reach, less aside."""
    reach = 1 + layers * (kernel // 2)
    row = column = reach + 1
    config = PriorConfig(
        height=row + 1,
        width=2 * reach + 3,
        num_embeddings=5,
        embedding_dim=2,
        channels=4,
        residual_channels=3,
        num_layers=layers,
        kernel_size=kernel,
        position_logits=False,
    )
    prior, seen = randomise(Prior(config)), []
    prior.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output) or output.retain_grad())
    codes = torch.randint(0, 5, (1, *config.shape), generator=torch.Generator().manual_seed(0))
    prior(codes)[0, :, row, column].mul(torch.arange(1, 6)).sum().backward()
    wanted = torch.zeros(config.shape, dtype=torch.bool)
    wanted[row - reach : row, column - reach + 1 : column + reach] = True
    wanted[row, column - reach : column] = True
    assert torch.equal(seen[0].grad[0].ne(0).any(-1), wanted)


def number(cell: str) -> float:
    """A number such as 0.25, 2,207,444 or 1.6M."""
    factor = {"M": 1e6, "k": 1e3}.get(cell[-1], 1)
    return round(float(cell.replace(",", "").rstrip("Mk")) * factor, 6)


def wanted(cell: str) -> list[Any]:
    """What a cell of a table of settings says, for each level."""
    cell = cell.rstrip("*")
    sides = [tuple(map(int, part.split("x"))) for part in cell.split(", ") if "x" in part]
    return sides or [number(cell)]


@pytest.mark.parametrize(("column", "name"), [(2, "imagenet256"), (3, "ffhq1024")])
def test_the_papers_settings_of_the_first_stage_are_those_of_the_presets(column, name):
    preset, (model, _) = PRESETS[name], built(name)
    head, *rows = table("Stage 1")
    assert head[column].rstrip("*") == f"`{name}`"
    assert len(rows) == 12
    for _, setting, *cells in rows:
        match setting.strip("`"):
            case "stacks.Encoder":
                convolutions = [m for m in model.encoders.modules() if isinstance(m, nn.Conv2d) and m.stride == (1, 1)]
                found = {m.kernel_size[0] for m in convolutions} - {1}
            case "stacks.Upsampler":
                found = {m.kernel_size[0] for m in model.modules() if isinstance(m, nn.ConvTranspose2d)}
            case field:
                value = getattr(preset.vqvae, field, None)
                value = getattr(preset.vqvae_training, field) if value is None else value
                found = set(value) if isinstance(value, tuple) else {value}
        assert found == set(wanted(cells[column - 2])), setting


LEVELS = [("imagenet256", 0), ("imagenet256", 1), ("ffhq1024", 0), ("ffhq1024", 1), ("ffhq1024", 2)]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_the_papers_settings_of_the_priors_are_those_of_the_presets(name, level):
    prior = built(name)[1][level]
    training = PRESETS[name].prior_training[level]
    head, *rows = table("Prior")
    column = 2 + LEVELS.index((name, level))
    assert head[column].rstrip("*").endswith(prior.config.level)
    assert len(rows) == 13
    for _, setting, *cells in rows:
        field, cell = setting.strip("`"), cells[column - 2]
        if cell == "–":  # there is no such part
            assert not (prior.condition if field == "condition_layers" else prior.attention), setting
        elif field == "causal.CausalAttention":
            assert [len(prior.attention)] == wanted(cell)
        else:
            settings = prior.config if hasattr(prior.config, field) else training
            assert [getattr(settings, field)] == wanted(cell), setting
