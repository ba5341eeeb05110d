"""Sharpening the decoder: the discriminator, the joined gradient, and what it leaves as it is."""

import json
from dataclasses import replace

import pytest
import torch
from random_weights import random_weights
from tiny_runs import VQVAE_FLAGS, interrupted, stats
from torch import nn
from torchvision.transforms.functional import normalize

from vqvae2 import CodeStore, checkpoint
from vqvae2.adversary import PatchDiscriminator, adversarial_gradient, discriminator_loss, gradient_penalty
from vqvae2.data import DataConfig, open_data
from vqvae2.metrics import perceptual_distance
from vqvae2.optim import TrainingConfig
from vqvae2.presets import PRESETS
from vqvae2.stages import evaluate, extract_codes, train_vqvae
from vqvae2.stages.detail import DetailSettings
from vqvae2.stages.sharpening import SharpeningConfig, SharpeningTask, trained_by_features
from vqvae2.vqvae import VQVAE, VQVAEConfig

pytest_plugins = ["tiny_run_fixtures"]


@pytest.fixture
def tiny_images(started):
    """The phantom at 32x32, and a model whose codebooks are started."""
    data = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))
    config = VQVAEConfig(
        height=32, width=32, num_embeddings=(16, 16), embedding_dim=(4, 4), hidden_channels=8, residual_channels=4
    )
    return data, started(config)


def test_scores_are_of_patches():
    discriminator = PatchDiscriminator(3, hidden=4)
    x = torch.randn(2, 3, 64, 96, requires_grad=True)
    scores = discriminator(x)
    assert scores.shape == (2, 1, 7, 11)
    (gradient,) = torch.autograd.grad(scores[0, 0, 3, 5], x)
    rows, columns = gradient[0].abs().sum(0).nonzero().T
    # 46 by the convolutions, one more on each side by the mean that texture is taken against.
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == 48
    assert not gradient[1].any()


def test_the_joined_gradient_is_the_two_in_the_stated_proportion():
    y = torch.randn(2, 1, 16, 16, requires_grad=True)
    target = torch.randn(2, 1, 16, 16)
    scorer = nn.Conv2d(1, 1, 3)
    scores = scorer(y)
    joined = adversarial_gradient((y - target).square().mean(), scores, y, 0.5)
    own = 2 * (y - target).detach() / y.numel()
    other = torch.autograd.grad(-scores.mean(), y)[0]
    torch.testing.assert_close(joined, own + 0.5 * own.norm() / other.norm() * other)
    assert scorer.weight.grad is None


def test_hinge_loss_and_penalty():
    assert discriminator_loss(torch.full((2,), 3.0), torch.full((2,), -3.0)) == 0
    assert discriminator_loss(torch.zeros(2), torch.zeros(2)) == 2
    scale = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(scale.weight, 3.0)
    penalty = gradient_penalty(scale, torch.randn(4, 1, 5, 5))
    assert penalty.item() == pytest.approx(9 / 25, rel=1e-5)  # 25 pixels, each with the gradient 3 / 25
    penalty.backward()
    assert scale.weight.grad is not None


def test_a_limit_is_divided():
    first, second = SharpeningConfig(sharpen_share=0.25).divide(TrainingConfig(max_steps=100, max_minutes=8))
    assert (first.max_steps, first.max_minutes, second.max_steps, second.max_minutes) == (75, 6, 25, 8)
    first, second = SharpeningConfig(sharpen_share=0.25).divide(TrainingConfig(max_minutes=8))
    assert (first.max_minutes, second.max_steps, second.max_minutes) == (6, None, 2)
    by_muon = TrainingConfig(max_steps=100, optimizer="muon")  # the decoder's part has a rate of its own
    assert [part.optimizer for part in SharpeningConfig(sharpen_share=0.25).divide(by_muon)] == ["muon", "adamw"]
    first, second = SharpeningConfig(sharpen_share=1).divide(TrainingConfig(max_steps=100))
    assert (first, second.max_steps) == (None, 100)
    for name, steps in (("brain128", (4800, 300)), ("brain128-long", (6000, 375)), ("brain256", (9600, 600))):
        preset = PRESETS[name]
        before, _ = DetailSettings(**preset.detail).divide(preset.vqvae_training)
        first, second = SharpeningConfig(**preset.sharpening).divide(before)
        assert (first.max_steps, second.max_steps) == steps
        assert second.max_minutes == before.max_minutes  # no slow machine cuts it short
    with pytest.raises(ValueError, match="limit"):
        SharpeningConfig(sharpen_share=0.25).divide(TrainingConfig())


def test_sharpening_changes_the_image_s_decoder_alone_and_so_no_code(tmp_path, call):
    # On a GPU two trainings of equal steps differ by rounding.
    flags = [*VQVAE_FLAGS, "--max-steps", "20", "--num-fine-layers", "1", "--device", "cpu"]
    assert call(train_vqvae.main, "--run", tmp_path / "a", *flags, "--sharpen-share", 0.5).code == 0
    assert call(train_vqvae.main, "--run", tmp_path / "b", *flags, "--max-steps", 10).code == 0
    sharp, plain = (checkpoint.load_tensors(tmp_path / name / "vqvae") for name in "ab")
    changed = {name for name, value in sharp.items() if not torch.equal(value, plain[name])}
    assert changed
    assert all(name.startswith("decoders.1.") for name in changed), changed
    images = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32")).splits["val"]
    x = images.at([0, 1])
    models = [VQVAE.from_pretrained(tmp_path / name / "vqvae") for name in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*(model.encode(x) for model in models), strict=True))
    assert any("train/discriminator" in line for line in stats(tmp_path / "a" / "vqvae" / "sharpening"))
    record = json.loads((tmp_path / "a" / "run.json").read_text())["train_vqvae"]
    assert record["outcome"]["steps"] == 20
    assert record["before_sharpening"]["steps"] == 10
    assert call(extract_codes.main, "--run", tmp_path / "a", "--allow-collapse").code == 0
    assert len(CodeStore(tmp_path / "a" / "codes"))


def test_sharpening_is_resumed_where_it_stopped(tmp_path, call, monkeypatch):
    flags = ["--run", tmp_path / "run", *VQVAE_FLAGS, "--max-steps", 8, "--sharpen-share", 0.5]
    real = train_vqvae.SharpeningTask

    class Broken(real):  # type: ignore[misc, valid-type]
        def save(self, folder):
            raise KeyboardInterrupt

    monkeypatch.setattr(train_vqvae, "SharpeningTask", Broken)
    assert call(train_vqvae.main, *flags).code == 130
    monkeypatch.setattr(train_vqvae, "SharpeningTask", real)
    assert call(train_vqvae.main, "--run", tmp_path / "run", "--resume").code == 0
    assert checkpoint.load_state(tmp_path / "run" / "vqvae" / "state")["step"] == 4
    assert checkpoint.load_state(tmp_path / "run" / "vqvae" / "sharpening" / "state")["step"] == 4


def test_settings_out_of_range_are_refused(tmp_path, call, refused):
    assert "--sharpen-share must be in" in refused(
        train_vqvae.main, "--run", tmp_path / "a", "--data", "phantom", "--sharpen-share", 1.1
    )
    nothing = [*VQVAE_FLAGS, "--max-steps", 4, "--sharpen-share", 1]
    assert "Add --init RUN" in refused(train_vqvae.main, "--run", tmp_path / "a", *nothing)
    negative = ["--sharpen-share", 0.5, "--perceptual-weight", -1]
    assert "--perceptual-weight must be >= 0" in refused(
        train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, *negative
    )
    for name, flags in (
        ("--code-noise", ("--code-noise", 0.3)),
        ("--detail-widths", ("--detail-widths", 4, 4)),
        ("--perceptual-weight", ("--sharpen-share", 0, "--perceptual-weight", 1)),
    ):
        assert f"{name} is for the" in refused(train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, *flags)
    for part in ("sharpen", "detail"):
        flags = (f"--{part}-share", 0.5, f"--{part}-learning-rate", 0)
        assert "learning-rate must be > 0" in refused(train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, *flags)
    assert "--seed" in refused(train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, "--seed", 10**14)
    short = [*VQVAE_FLAGS, "--max-steps", 1]
    assert "longer limit" in refused(train_vqvae.main, "--run", tmp_path / "a", *short, "--sharpen-share", 0.3)
    unlimited = ["--data", "phantom", "--phantom-images", 60]
    assert "limit" in refused(train_vqvae.main, "--run", tmp_path / "a", *unlimited, "--sharpen-share", 0.5)
    assert replace(SharpeningConfig(), adversarial_weight=0).adversarial_weight == 0


def test_without_an_adversary_the_decoder_learns_from_near_codes_alone(tmp_path, call):
    flags = [*VQVAE_FLAGS, "--max-steps", "8", "--sharpen-share", 0.5, "--adversarial-weight", 0, "--code-noise", 0.5]
    assert call(train_vqvae.main, "--run", tmp_path / "a", *flags).code == 0
    lines = stats(tmp_path / "a" / "vqvae" / "sharpening")
    assert any("train/mse" in line for line in lines)
    assert not any("train/discriminator" in line for line in lines)
    state = checkpoint.load_state(tmp_path / "a" / "vqvae" / "sharpening" / "state")
    assert list(state["modules"]) == ["decoder"]


def test_the_discriminator_learns_before_the_decoder_is_to_deceive_it(tiny_images):
    data, model = tiny_images
    task = SharpeningTask(model, data, SharpeningConfig(discriminator_warmup=2), None)
    batch = data.splits["train"].__getitems__(range(4))
    decoder = list(model.decoders[-1].parameters())
    own = model.config.reconstruction_loss(
        model.decoders[-1](model.decoder_input(model.encode(batch["image"]))), batch["image"]
    )[0]
    alone = torch.autograd.grad(own, decoder)
    for step in (1, 2, 3):
        loss, _ = task.loss(batch)
        told = torch.autograd.grad(loss, [*decoder, *task.discriminator.parameters()], allow_unused=True)
        same = all(torch.allclose(a, b, atol=1e-7) for a, b in zip(told, alone, strict=False))
        assert same == (step <= 2)
        assert any(gradient.abs().sum() > 0 for gradient in told[len(decoder) :])
        task.after_step()


def test_codes_of_images_that_do_not_change_are_made_once(tiny_images, monkeypatch):
    data, model = tiny_images
    task = SharpeningTask(model, data, SharpeningConfig(adversarial_weight=0), None)
    monkeypatch.setattr(model, "encode", None)
    loss, _ = task.loss(data.splits["train"].__getitems__([3, 0, 2]))
    assert loss.item() > 0


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A MobileNetV2 of random weights, in place of torchvision's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return random_weights(tmp_path / "torch")


def test_the_perceptual_distance_is_of_unit_features_at_five_resolutions(network):
    generator = torch.Generator().manual_seed(3)
    x, y = (torch.rand(2, 1, 64, 64, generator=generator) * 2 - 1 for _ in range(2))

    def maps(images):
        found, x = [], normalize(((images + 1) / 2).repeat(1, 3, 1, 1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        for block in network.features[:18]:
            before, x = x, block(x)
            if found and x.shape[2:] == before.shape[2:]:
                found[-1] = x
            else:
                found.append(x)
        return found

    assert [m.shape[2] for m in maps(x)] == [32, 16, 8, 4, 2]
    expected = torch.zeros(2)
    for a, b in zip(maps(y), maps(x), strict=True):
        expected += 2 * (1 - nn.functional.cosine_similarity(a, b, dim=1, eps=1e-20)).mean((1, 2)) / 5
    torch.testing.assert_close(perceptual_distance(y, x), expected, atol=1e-5, rtol=1e-4)
    in_colour = perceptual_distance(*(images.expand(-1, 3, -1, -1) for images in (y, x)))
    torch.testing.assert_close(in_colour, expected, atol=1e-5, rtol=1e-4)
    assert perceptual_distance(x, x).abs().max() == 0
    leaf = y.clone().requires_grad_()
    perceptual_distance(leaf, x).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_the_perceptual_term_joins_the_loss_of_the_decoder(tiny_images, network):
    data, model = tiny_images
    batch = data.splits["train"].__getitems__(range(4))
    losses = [
        SharpeningTask(model, data, SharpeningConfig(adversarial_weight=0, perceptual_weight=w), None).loss(batch)
        for w in (0, 3)
    ]
    made = model.decoders[-1](model.decoder_input(model.encode(batch["image"])))
    distance = perceptual_distance(made, batch["image"]).mean()
    torch.testing.assert_close(losses[1][0] - losses[0][0], 3 * distance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses[1][1]["train/perceptual"][0], distance.detach(), atol=1e-5, rtol=1e-4)


def test_the_decoder_of_another_run_is_sharpened_alone(tmp_path, call, network, monkeypatch):
    flags = ["--data", "phantom", "--phantom-images", 60, "--device", "cpu"]
    assert call(train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, "--max-steps", 6).code == 0
    flags += ["--run", tmp_path / "b", "--init", tmp_path / "a", "--sharpen-share", 1, "--max-steps", 6]
    flags += ["--save-minutes", 1e-6, "--log-every", 1, "--perceptual-weight", 0.2, "--adversarial-weight", 0]
    real = train_vqvae.SharpeningTask

    monkeypatch.setattr(train_vqvae, "SharpeningTask", interrupted(real, 4))
    ended = call(train_vqvae.main, *flags)
    assert ended.code == 130
    assert "--resume" in ended.err
    monkeypatch.setattr(train_vqvae, "SharpeningTask", real)
    assert "--resume" in call(train_vqvae.main, *flags).err  # there is a training already
    assert call(train_vqvae.main, "--run", tmp_path / "b", "--resume").code == 0
    sharp, plain = (checkpoint.load_tensors(tmp_path / name / "vqvae") for name in "ba")
    changed = {name for name, value in sharp.items() if not torch.equal(value, plain[name])}
    assert changed
    assert all(name.startswith("decoders.1.") for name in changed), changed
    lines = stats(tmp_path / "b" / "vqvae" / "sharpening")
    assert any("train/perceptual" in line for line in lines)
    record = json.loads((tmp_path / "b" / "run.json").read_text())["train_vqvae"]
    assert record["outcome"]["steps"] == 6
    for name, by in (("a", None), ("b", ["MobileNetV2", "mobilenet_v2"])):
        assert call(evaluate.main, "--run", tmp_path / name).code == 0
        found = json.loads((tmp_path / name / "report" / "report.json").read_text())
        assert found.get("decoder_trained_by") == by
    # What begins from it is said to be trained by these features, too.
    begun = ["--run", tmp_path / "c", "--data", "phantom", "--phantom-images", 60, "--init", tmp_path / "b"]
    assert call(train_vqvae.main, *begun, "--sharpen-share", 0, "--max-steps", 2).code == 0
    assert call(train_vqvae.main, "--run", tmp_path / "c", "--resume", "--max-steps", 3).code == 0
    alone = [
        *begun[:1],
        tmp_path / "d",
        *begun[2:],
        "--detail-share",
        1,
        "--max-steps",
        2,
    ]  # of which nothing is sharpened
    alone[alone.index(tmp_path / "b")] = tmp_path / "a"
    assert call(train_vqvae.main, *alone).code == 0
    records = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in "abcd"}
    assert not trained_by_features(records.pop("d"))
    del records["b"]["train_vqvae"]["outcome"]  # a resumed run has none until it ends
    assert {name: trained_by_features(record) for name, record in records.items()} == {"a": False, "b": True, "c": True}
    ordinary = call(train_vqvae.main, "--run", tmp_path / "a", "--resume", "--sharpen-share", 1, "--max-steps", 8)
    assert "there is no VQ-VAE yet" in ordinary.err


@pytest.mark.usefixtures("no_budget")
def test_a_preset_does_without_weights_that_are_not_there_and_says_so(tmp_path, call, refused, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "none"))
    flags = [*VQVAE_FLAGS, "--preset", "brain128", "--max-steps", 40, "--dry-run", "--run", tmp_path / "a"]
    flags += ["--strides", 2, 2, "--rate-weight", 0, "--num-embeddings", 8, 8, "--detail-widths", 8, 8]
    ended = call(train_vqvae.main, *flags)
    assert ended.code == 0
    assert "which sharpen the decoder and paint detail, are left out: MobileNetV2's weights are not there" in ended.out
    assert "for its decoder alone" not in ended.out
    assert "weights are not there" in refused(train_vqvae.main, *flags, "--perceptual-weight", 1)
    assert "left out" not in call(train_vqvae.main, *flags, "--sharpen-share", 0, "--detail-share", 0).out
    without = call(train_vqvae.main, *flags, "--sharpen-share", 0)
    assert without.code == 0
    assert "which paint detail, are left out" in without.out
    assert "later parts" not in call(train_vqvae.main, *flags, "--help").out
    whole = ["--data", "phantom", "--phantom-images", 60, "--size", "32x32", "--preset", "brain128", "--dry-run"]
    assert "ends after 4800 steps" in call(train_vqvae.main, *whole, "--run", tmp_path / "a").out.replace(",", "")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "some"))
    random_weights(tmp_path / "some")
    told = call(train_vqvae.main, *flags)
    assert "2 steps for its decoder alone" in told.out
    assert "13 steps for the detail decoder" in told.out
    assert call(train_vqvae.main, *VQVAE_FLAGS, "--run", tmp_path / "first", "--max-steps", 2).code == 0
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    (tmp_path / "first" / "run.json").write_text(json.dumps(record | {"preset": "brain128"}))
    alone = ["--data", "phantom", "--phantom-images", 60, "--init", tmp_path / "first", "--run", tmp_path / "b"]
    told = call(train_vqvae.main, *alone, "--sharpen-share", 1, "--max-steps", 40, "--dry-run")
    assert told.code == 0
    assert told.out.splitlines()[-1] == "40 steps for its decoder alone (--sharpen-share)"
