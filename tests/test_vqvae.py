"""The hierarchy: shapes of every kind, what depends on what, the objective, and a codebook that does not collapse."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.metrics import image_scores
from vqvae2.vqvae import VQVAE, VQVAEConfig, level_names


def images_for(config: VQVAEConfig, count: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, config.channels, config.height, config.width, generator=generator) * 2 - 1


def small(strides: tuple[int, ...], **settings: object) -> VQVAEConfig:
    """A tiny config whose K and D differ from level to level."""
    levels = range(len(strides))
    defaults = {
        "strides": strides,
        "num_embeddings": tuple(6 + 3 * i for i in levels),
        "embedding_dim": tuple(3 + i for i in levels),
        "hidden_channels": 8,
        "residual_channels": 4,
        "num_residual_layers": 1,
        "init_vectors": 16,
    }
    return VQVAEConfig(**{**defaults, **settings})


@pytest.mark.parametrize(
    ("strides", "channels", "height", "width"),
    [
        ((4,), 1, 16, 12),
        ((2, 4), 3, 16, 24),
        ((2, 2, 4), 5, 16, 32),
        ((2, 2, 2, 2), 1, 32, 16),
        ((2,), 3, 8, 6),
        ((3,), 1, 9, 15),
        ((5,), 1, 15, 20),
        ((3, 5), 3, 15, 30),
        ((5, 2), 1, 20, 10),
        ((2, 6), 1, 24, 12),
    ],
)
def test_any_hierarchy_has_the_promised_shapes_and_trains_every_level(started, strides, channels, height, width):
    # No commitment loss: what reaches an encoder has come through the codes.
    config = small(strides, channels=channels, height=height, width=width, commitment_cost=0.0)
    model = started(config)
    images = images_for(config)
    cell, shapes = 1, []
    for stride in reversed(strides):
        cell *= stride
        shapes.insert(0, (height // cell, width // cell))
    assert config.shapes == tuple(shapes)
    assert model.levels == level_names(len(strides))

    codes = model.encode(images)
    assert [tuple(level.shape) for level in codes] == [(4, *shape) for shape in shapes]
    for level, k, d, quantizer in zip(
        codes, config.num_embeddings, config.embedding_dim, model.quantizers, strict=True
    ):
        assert level.dtype == torch.int64
        assert 0 <= level.min() <= level.max() < k
        assert quantizer.embedding.shape == (k, d)
    decoded = model.decode(codes)
    assert decoded.shape == images.shape
    assert -1 <= decoded.min() <= decoded.max() <= 1

    loss, _, out = model.train().loss(images)
    assert out.images.shape == images.shape
    loss.backward()
    for part in ("encoders", "to_code", "decoders"):
        for level, module in zip(model.levels, getattr(model, part), strict=True):
            gradients = [parameter.grad for parameter in module.parameters()]
            assert None not in gradients, f"{part} {level}"
            # Some of so few units may be dead for these images.
            assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0, f"{part} {level}"


def test_levels_are_named_top_first():
    assert level_names(1) == ("top",)
    assert level_names(2) == ("top", "bottom")
    assert level_names(3) == ("top", "middle", "bottom")
    assert level_names(4) == ("top", "middle1", "middle2", "bottom")
    with pytest.raises(ValueError):
        level_names(0)


@pytest.mark.parametrize(
    ("strides", "height", "width"),
    [((2, 4), 50, 70), ((2, 4), 3, 64), ((3, 5), 100, 44), ((2, 2, 4), 33, 33), ((4,), 0, 7)],
)
def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_do(strides, height, width):
    with pytest.raises(UserError) as error:
        small(strides, height=height, width=width)
    text = str(error.value)
    assert "\n" not in text
    assert f"{height}x{width}" in text
    named = [(int(h), int(w)) for h, w in re.findall(r"--size (\d+)x(\d+)", text)]
    assert len(named) == 2
    cell = int(np.prod(strides))
    multiples = range(cell, 200, cell)
    for axis, length in enumerate((height, width)):
        below = max((m for m in multiples if m <= length), default=cell)
        above = min(m for m in multiples if m >= length)
        assert [size[axis] for size in named] == [below, above]
    for h, w in named:
        assert VQVAE(small(strides, height=h, width=w)).eval()(torch.zeros(1, 1, h, w)).images.shape[2:] == (h, w)


def test_encode_and_decode_are_the_two_halves_of_the_evaluating_forward_pass(tiny_vqvae):
    images = images_for(tiny_vqvae.config)
    with torch.no_grad():
        out = tiny_vqvae(images)
    codes = tiny_vqvae.encode(images)
    assert all(len(level.unique()) > 2 for level in codes)
    assert all(torch.equal(a, b) for a, b in zip(codes, out.codes, strict=True))
    for count in range(1, len(codes) + 1):
        coarse = tiny_vqvae.encode(images, levels=count)
        assert len(coarse) == count
        assert all(torch.equal(a, b) for a, b in zip(coarse, codes, strict=False))
    torch.testing.assert_close(tiny_vqvae.decode(codes), out.images.clamp(-1, 1))
    # Codes come from a store as small integers.
    narrow = [level.to(torch.uint8) for level in codes]
    assert torch.equal(tiny_vqvae.decode(narrow), tiny_vqvae.decode(codes))


@pytest.mark.parametrize("init_vectors", [32, 10_000])
def test_encoding_and_evaluating_never_change_a_model_whatever_its_mode(tiny_config, init_vectors):
    torch.manual_seed(0)
    model = VQVAE(replace(tiny_config, init_vectors=init_vectors))
    images = images_for(tiny_config)
    model(images)
    model.update_codebooks()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = model.eval().encode(images)
    model(images)
    assert all(torch.equal(a, b) for a, b in zip(model.train().encode(images), codes, strict=True))
    model.decode(codes)
    model.update_codebooks()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("strides", [(4, 2), (2, 2, 2)])
def test_absent_levels_take_their_usage_weighted_mean_code(started, strides):
    model = started(small(strides, height=16, width=16))
    codes = model.encode(images_for(model.config))
    partial = model.decode(codes[:1])
    assert partial.shape == (4, 1, 16, 16)
    assert not torch.equal(partial, model.decode(codes))
    # The same by a real code: the first code of each lower level becomes its mean.
    zeros = [torch.zeros_like(level) for level in codes[1:]]
    for quantizer in model.quantizers[1:]:
        sizes = quantizer.cluster_size.numpy()
        quantizer.embedding[0] = torch.from_numpy(np.average(quantizer.embedding.numpy(), axis=0, weights=sizes))
    torch.testing.assert_close(partial, model.decode([codes[0], *zeros]))


def disturb(*modules: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for module in modules:
        for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
            tensor.data += torch.randn(tensor.shape, generator=generator)


def test_bottom_codes_depend_on_the_decoded_top(started, tiny_config):
    images = images_for(tiny_config)
    top, bottom = started(tiny_config).encode(images)
    for part in ("decoders", "quantizers"):
        model = started(tiny_config)
        disturb(getattr(model, part)[0])
        changed_top, changed_bottom = model.encode(images)
        assert not torch.equal(changed_bottom, bottom), part
        assert part == "quantizers" or torch.equal(changed_top, top)


def test_top_codes_never_depend_on_the_bottom_codes(started, tiny_config):
    images = images_for(tiny_config)
    top, bottom = started(tiny_config).encode(images)
    model = started(tiny_config)
    disturb(model.to_code[1], model.quantizers[1], model.decoders[1])
    changed_top, changed_bottom = model.encode(images)
    assert torch.equal(changed_top, top)
    assert not torch.equal(changed_bottom, bottom)


def frozen_codebooks(model: VQVAE) -> VQVAE:
    model.train()
    for quantizer in model.quantizers:
        quantizer.eval()
    return model


@pytest.mark.parametrize("strides", [(4, 2), (2, 2, 2)])
def test_level_dropout_decodes_a_share_of_the_training_images_from_upper_levels(started, strides):
    model = started(small(strides, height=16, width=16, level_dropout=0.4))
    images = images_for(model.config, 200)
    codes = model.encode(images)
    by_levels = [model.decode(codes[:n]) for n in range(1, len(strides) + 1)]
    frozen_codebooks(model)
    with torch.no_grad():
        out = model(images).images.clamp(-1, 1)
    matches = torch.stack([torch.isclose(out, y, atol=1e-5).flatten(1).all(1) for y in by_levels])
    assert (matches.sum(0) == 1).all()
    shares = matches.double().mean(1)
    expected = [0.4 / (len(strides) - 1)] * (len(strides) - 1) + [0.6]
    # Four standard deviations of a share of 200 draws.
    for share, p in zip(shares.tolist(), expected, strict=True):
        assert abs(share - p) < 4 * (p * (1 - p) / 200) ** 0.5


def test_level_dropout_is_for_training_only_and_waits_for_the_codebooks(started, tiny_config):
    dropping = replace(tiny_config, level_dropout=0.9)
    images = images_for(tiny_config)
    with torch.no_grad():
        assert torch.equal(started(dropping)(images).images, started(tiny_config)(images).images)
        unready = []
        for config in (dropping, tiny_config):
            torch.manual_seed(0)
            unready.append(VQVAE(replace(config, init_vectors=10_000))(images).images)
    assert torch.equal(*unready)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.5, 2.0, 0.0), (0.0, 0.0, 3.0), (1.0, 0.2, 0.2)], ids=str)
def test_loss_is_the_weighted_sum_of_its_terms(started, tiny_config, weights):
    mse, l1, ssim = weights
    config = replace(tiny_config, mse_weight=mse, l1_weight=l1, ssim_weight=ssim, commitment_cost=0.7)
    model = started(config)
    images = images_for(config)
    with torch.no_grad():
        loss, terms, out = model.loss(images)
    y = out.images
    scores = image_scores(images, y)
    commitment = sum(
        0.7 * F.mse_loss(x, quantizer.lookup(codes)).item()
        for x, quantizer, codes in zip(unquantised(model, images), model.quantizers, out.codes, strict=True)
    )
    expected = mse * scores["mse"].mean() + l1 * (images - y).abs().mean().item() + commitment
    expected += ssim * (1 - scores["ssim"].mean())
    # fp32 sums over 1,024 pixels.
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert terms["mse"].item() == pytest.approx(scores["mse"].mean(), rel=1e-5)
    assert terms["commitment"].item() == pytest.approx(commitment, rel=1e-5)


def unquantised(model: VQVAE, images: Tensor) -> list[Tensor]:
    """What enters each level's quantiser."""
    seen: list[Tensor] = []
    handles = [q.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for q in model.quantizers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_bfloat16_changes_no_statistic_and_gives_a_single_precision_loss(started, tiny_config):
    model = started(tiny_config).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, _ = model.loss(images_for(tiny_config))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(q.embedding.dtype == q.cluster_size.dtype == torch.float32 for q in model.quantizers)


def test_the_loss_of_a_double_model_is_double(started, tiny_config):
    model = started(replace(tiny_config, ssim_weight=0.5)).double()
    images = images_for(tiny_config).double()
    loss, terms, out = model.loss(images)
    scores = image_scores(images, out.images)
    assert terms["mse"].item() == pytest.approx(scores["mse"].mean(), rel=1e-12)
    assert terms["ssim"].item() == pytest.approx(scores["ssim"].mean(), rel=1e-10)
    assert loss.dtype == torch.float64


def test_a_saved_model_comes_back_equal(started, tiny_config, tmp_path):
    model = started(replace(tiny_config, normalize="layer", level_dropout=0.25, decay=0.9))
    digest = model.save_pretrained(tmp_path, {"value_range": [0, 255]})
    loaded = VQVAE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    images = images_for(tiny_config)
    assert all(torch.equal(a, b) for a, b in zip(loaded.encode(images), model.encode(images), strict=True))
    assert torch.equal(loaded(images).images, model(images).images)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["data"] == {"value_range": [0, 255]}
    assert len(digest) == 64
    # Training goes on where it was: the codebook counts as initialised.
    torch.manual_seed(0)
    expected = model.train()(images).images
    torch.manual_seed(0)
    assert torch.equal(loaded.train()(images).images, expected)


@pytest.mark.parametrize(
    "field",
    [
        {"decay": 2.0},
        {"commitment_cost": -1.0},
        {"epsilon": 0.0},
        {"init_vectors": -1},
        {"revival_threshold": -1.0},
        {"normalize": "batch"},
        {"num_embeddings": [8]},
        {"num_embeddings": [0, 12]},
        {"embedding_dim": [4, 0]},
        {"strides": [1, 4]},
        {"strides": [3, 2]},
        {"strides": "42"},
        {"strides": []},
        {"hidden_channels": "8"},
        {"hidden_channels": 1},
        {"channels": None},
        {"level_dropout": 1.0},
        {"mse_weight": 0.0},
        {"ssim_weight": -1.0},
        {"hidden_channels": 12},
        {"kind": "prior"},
        {"format": 99},
    ],
    ids=lambda field: "-".join(map(str, *field.items())),
)
def test_a_config_with_a_wrong_field_is_refused_in_one_line(tiny_vqvae, tmp_path, field):
    tiny_vqvae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    with pytest.raises(UserError) as error:
        VQVAE.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value) or "strides" in str(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 16, 8), (2, 1, 32, 32), (1, 16, 16)])
def test_images_of_another_shape_are_refused(tiny_vqvae, shape):
    for call in (tiny_vqvae, tiny_vqvae.encode):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            call(torch.zeros(shape))


def test_codes_of_another_shape_are_refused(tiny_vqvae):
    top, bottom = (torch.zeros(2, *shape, dtype=torch.int64) for shape in tiny_vqvae.config.shapes)
    for codes, told in (
        ([], "1 to 2 levels, got 0"),
        ([top, bottom, bottom], "got 3"),
        ([bottom], "level top"),
        ([top, top], "level bottom"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny_vqvae.decode(codes)


@pytest.mark.parametrize("upper", ["stack", "upsample", "both"])
def test_upper_levels_join_with_as_many_channels_as_told(tmp_path, upper):
    settings = {"height": 32, "width": 32, "strides": (2, 2, 2), "num_embeddings": (8,) * 3, "embedding_dim": (4,) * 3}
    small = {"hidden_channels": 8, "residual_channels": 4, "joint_channels": 3, "init_vectors": 0}
    model = VQVAE(VQVAEConfig(**settings, **small, upper_decoder=upper)).eval()
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    codes = model.encode(images)
    assert [tuple(model.decoder_input(codes[:k]).shape) for k in (1, 3)] == [(2, 4 + 3, 16, 16)] * 2
    assert model.decode(codes).shape == images.shape
    model.save_pretrained(tmp_path)
    assert torch.equal(VQVAE.from_pretrained(tmp_path).decode(codes), model.decode(codes))
    model.train().loss(images)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match=">= 0"):
        VQVAEConfig(**settings, joint_channels=-1)


def test_upsampled_levels_join_by_one_transposed_convolution():
    """D(e_top, e_bottom) as in the paper: what the image's decoder sees is e_bottom beside an upsampled e_top."""
    settings = {"height": 16, "width": 16, "strides": (2, 4), "num_embeddings": (8, 8), "embedding_dim": (4, 5)}
    model = VQVAE(VQVAEConfig(**settings, hidden_channels=8, joint_channels=6, upper_decoder="upsample")).eval()
    codes = [torch.randint(8, (3, 2, 2)), torch.randint(8, (3, 4, 4))]
    vectors = [book.lookup(level).permute(0, 3, 1, 2) for book, level in zip(model.codebooks, codes, strict=True)]
    (layer,) = model.decoders[0]
    assert isinstance(layer, torch.nn.ConvTranspose2d)
    weight, bias = layer.weight, layer.bias
    upsampled = torch.nn.functional.conv_transpose2d(vectors[0], weight, bias, stride=2, padding=1)
    torch.testing.assert_close(model.decoder_input(codes), torch.cat([vectors[1], upsampled], 1))
    with pytest.raises(ValueError, match="stack, upsample or both"):
        VQVAEConfig(**settings, upper_decoder="other")
