"""The detail decoder: where it starts, what it refuses, its training, and the samples that it paints."""

import json
import re
import shutil

import pytest
import torch
from random_weights import random_weights
from tiny_runs import PRIOR_FLAGS, VQVAE_FLAGS, interrupted, stats
from torchvision.models import mobilenet_v2

from vqvae2 import Prior, checkpoint, metrics, sample
from vqvae2.adversary import FeatureDiscriminator
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, open_data
from vqvae2.detail import DetailConfig, DetailDecoder
from vqvae2.metrics import feature_maps, maps_distance, perceptual_distance, pretrained
from vqvae2.optim import TrainingConfig
from vqvae2.presets import PRESETS
from vqvae2.stages import evaluate, export, extract_codes, train_prior, train_vqvae
from vqvae2.stages import sample as sample_stage
from vqvae2.stages.detail import DetailSettings, DetailTask
from vqvae2.stages.sharpening import SharpeningConfig, SharpeningTask
from vqvae2.vqvae import VQVAE, VQVAEConfig

pytest_plugins = ["tiny_run_fixtures"]

SMALL = {"height": 32, "width": 32, "hidden_channels": 8, "residual_channels": 4}


@pytest.fixture
def network(tmp_path, monkeypatch):
    """MobileNetV2 of random weights, where torch keeps the pretrained one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return random_weights(tmp_path / "torch")


@pytest.mark.parametrize(
    ("settings", "drawn", "widths"),
    [
        ({"strides": (2, 4), "num_embeddings": (16, 12), "embedding_dim": (4, 6)}, 1, ()),
        (
            {"strides": (2, 2, 2), "num_embeddings": (8, 8, 8), "embedding_dim": (4, 5, 6), "joint_channels": 5},
            1,
            (6, 9, 1),
        ),
        ({"strides": (2, 2, 2), "num_embeddings": (8, 8, 8), "embedding_dim": (4, 5, 6)}, 2, ()),
        ({"strides": (2, 2, 2, 2), "num_embeddings": (8,) * 4, "embedding_dim": (4,) * 4}, 2, (8, 5, 3)),
        ({"strides": (4, 2), "num_embeddings": (8, 8), "embedding_dim": (4, 4), "upper_decoder": "upsample"}, 1, ()),
        ({"strides": (4, 2), "num_embeddings": (8, 8), "embedding_dim": (4, 4), "upper_decoder": "both"}, 1, ()),
    ],
)
def test_it_starts_as_the_decoding_without_the_finer_levels(started, tmp_path, settings, drawn, widths):
    model = started(VQVAEConfig(**SMALL, **settings))
    detail = DetailDecoder.of(model, drawn, widths=widths)
    if widths:
        assert tuple(painter[0].out_channels for painter in detail.painters) == widths
    codes = model.encode(torch.rand(2, 1, 32, 32) * 2 - 1)[:drawn]
    torch.testing.assert_close(detail.decode(codes), model.decode(codes))
    assert detail.levels == model.levels[:drawn]
    _, painted = detail(codes)
    assert [tuple(p.shape[1:]) for p in painted] == [
        (d, *shape) for d, shape in zip(model.config.embedding_dim, model.config.shapes, strict=True)
    ][drawn:]
    for layer in detail.to_vectors:  # at the start they are zero, and so are the gradients of what lies before them
        torch.nn.init.normal_(layer.weight, std=0.1)
    detail(codes)[0].square().sum().backward()
    trained = {name for name, p in detail.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all(any(name.startswith(f"painters.{i}.") for name in trained) for i in range(len(detail.painters)))
    assert all(p.grad is None for p in detail.embeddings.parameters())
    detail.save_pretrained(tmp_path / "detail")
    again = DetailDecoder.from_pretrained(tmp_path / "detail")
    assert again.config == detail.config
    assert torch.equal(again.decode(codes), detail.decode(codes))
    assert not torch.equal(again.decode(codes), model.decode(codes))


def test_it_refuses_other_levels():
    config = VQVAEConfig(**SMALL, num_embeddings=(8, 8), embedding_dim=(4, 4))
    with pytest.raises(ValueError, match="drawn_levels"):
        DetailConfig(config, drawn_levels=2)
    with pytest.raises(ValueError, match="num_layers"):
        DetailConfig(config, num_layers=0)
    for widths in ((8,), (8, 4, 2), (8, 0)):
        with pytest.raises(ValueError, match=r"need 2 widths >= 1, or none"):
            DetailConfig(config, widths=widths)
    detail = DetailDecoder(DetailConfig(config))
    with pytest.raises(ValueError, match="expected codes of shapes"):
        detail.decode([torch.zeros(1, 8, 8, dtype=torch.int64)])
    with pytest.raises(ValueError, match="expected codes of shapes"):
        detail.decode([torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.int64)])
    with pytest.raises(ValueError, match="detail_share"):
        DetailSettings(detail_share=1.5)
    with pytest.raises(ValueError, match="detail_levels"):
        DetailSettings(detail_levels=0)
    with pytest.raises(ValueError, match="detail_widths"):
        DetailSettings(detail_widths=(8, 0))


def test_the_limit_is_divided():
    training = TrainingConfig(max_steps=200, max_minutes=10, learning_rate=1e-3)
    assert DetailSettings().divide(training) == (training, None)
    before, own = DetailSettings(detail_share=0.25).divide(training)
    assert (before.max_steps, own.max_steps, own.max_minutes) == (150, 50, 10)
    assert (own.learning_rate, own.beta1, own.ema_decay) == (5e-4, 0.5, 0.995)
    assert DetailSettings(detail_share=1).divide(training)[0] is None
    brain = PRESETS["brain128"]
    before, own = DetailSettings(**brain.detail).divide(brain.vqvae_training)
    assert (before.max_steps, own.max_steps) == (5100, 2400)


def test_feature_maps_are_those_of_the_perceptual_distance(network):
    x, y = torch.rand(2, 2, 1, 64, 64) * 2 - 1
    maps = feature_maps(x)
    assert [m.shape[1] for m in maps] == [16, 24, 32, 96, 320]
    assert [m.shape[2] for m in maps] == [32, 16, 8, 4, 2]
    torch.testing.assert_close(maps_distance(feature_maps(y), maps), perceptual_distance(y, x))


def test_batch_norms_are_taken_into_the_convolutions_before_them():
    network = mobilenet_v2().features.eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    x = torch.rand(2, 3, 64, 64)
    before = network(x)
    after = pretrained._without_norms(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in after.modules())
    torch.testing.assert_close(after(x), before, rtol=1e-4, atol=1e-4)


def test_the_feature_discriminator_standardises_and_bounds():
    maps = [torch.randn(8, 3, 16, 16) * 5 + 2, torch.randn(8, 4, 8, 8), torch.randn(8, 5, 4, 4)]
    discriminator = FeatureDiscriminator([3, 4, 5], hidden=6)
    discriminator.standardise(maps)
    torch.testing.assert_close(discriminator.mean[:3], maps[0].mean((0, 2, 3)))
    scores = discriminator(maps)
    assert [tuple(s.shape) for s in scores] == [(8, 1, 8, 8), (8, 1, 4, 4), (8, 1, 4, 4)]
    before = [s.clone() for s in discriminator.eval()(maps)]
    larger = [m * 10 + 3 for m in maps]
    discriminator.standardise(larger)
    for a, b in zip(before, discriminator(larger), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("part", ["detail", "sharpening"])
def test_the_discriminator_sees_images_as_they_are_stored(network, started, part, changed):
    data = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))
    model = started(VQVAEConfig(**SMALL, num_embeddings=(16, 16), embedding_dim=(4, 4)))
    turned = AugmentedSet(data.splits["train"], AugmentationConfig(augment_rotate=6, augment_light=0.3), 0)
    train = turned if changed else None
    if part == "detail":
        task = DetailTask(model, data, DetailSettings(detail_share=0.5), "hash", train)
    else:
        task = SharpeningTask(model, data, SharpeningConfig(), None, train)
    y = (torch.rand(2, 1, 32, 32) * 3 - 1.5).requires_grad_()
    seen = task.rounded(y)
    batch = turned.at_epoch([0, 1], 0) if changed else data.splits["train"].__getitems__([0, 1])
    low, high = data.splits["train"].value_range
    steps = (seen.detach() + 1) * (high - low) / 2
    torch.testing.assert_close(steps, steps.round().clamp(0, high - low), atol=1e-3, rtol=0)
    seen.sum().backward()
    assert torch.equal(y.grad, (y.abs() <= 1).float())
    given = []
    if part == "detail":
        plain = metrics.feature_maps
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "feature_maps", lambda x: given.append(x.detach()) or plain(x))
            task.loss(batch)
    else:
        task.discriminator.register_forward_pre_hook(lambda _, x: given.append(x[0].detach()))
        task.loss(batch)
    assert len(given) >= 2
    for images in given:
        steps = (images + 1) * (high - low) / 2
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


def test_the_loss_trains_both_and_the_adversarial_gradient_waits(network, started):
    data = open_data(DataConfig(data="phantom", phantom_images=60, size="32x32"))
    model = started(VQVAEConfig(**SMALL, num_embeddings=(16, 16), embedding_dim=(4, 4)))
    task = DetailTask(model, data, DetailSettings(detail_share=0.5, detail_warmup=2), "hash")
    batch = data.splits["train"].__getitems__(range(4))
    seen = []
    for steps in (0, 2):
        task.steps = steps
        for module in task.modules().values():
            module.zero_grad()
        torch.manual_seed(0)
        loss, sums = task.loss(batch)
        loss.backward()
        torch.testing.assert_close(loss.detach(), sums["train/perceptual"][0] + sums["train/l1"][0])
        seen.append([p.grad.clone() for p in task.detail.decoders.parameters()])
        assert all(p.grad is not None for p in task.discriminator.parameters())
    assert any(not torch.allclose(a, b) for a, b in zip(*seen, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_run_paints_its_samples(tmp_path, call, refused, network, monkeypatch):
    run = tmp_path / "run"
    flags = [*VQVAE_FLAGS, "--run", run, "--max-steps", 12, "--detail-share", 0.5]
    real = train_vqvae.DetailTask
    monkeypatch.setattr(train_vqvae, "DetailTask", interrupted(real, 4))
    assert call(train_vqvae.main, *flags, "--save-minutes", 1e-6).code == 130
    monkeypatch.setattr(train_vqvae, "DetailTask", real)
    ended = call(train_vqvae.main, "--run", run, "--resume")
    assert ended.code == 0
    assert "6 steps for the VQ-VAE, then 6 steps for the detail decoder (--detail-share)" in ended.out
    assert re.search(r"resumed at step [1-4]\b", ended.out)
    assert "val/kid" in stats(run / "vqvae" / "detail")[-1]
    assert call(extract_codes.main, "--run", run, "--allow-collapse").code == 0
    assert call(train_prior.main, "--run", run, "--level", "top", *PRIOR_FLAGS).code == 0
    # One prior is enough.
    ended = call(sample_stage.main, "--run", run, "--num", 5, "--chunk-size", 2, "--seed", 3)
    assert ended.code == 0
    assert "16 top codes, the rest painted by the detail decoder" in ended.out
    about = json.loads((run / "samples" / "samples.json").read_text())
    assert about["levels"] == ["top"]
    assert about["detail_sha256"] == checkpoint.sha256_of(run / "vqvae" / "detail")
    assert "no prior of level bottom" in refused(sample_stage.main, "--run", run, "--levels", 2, "--overwrite")
    assert "nothing decodes 3 of 2 levels" in refused(sample_stage.main, "--run", run, "--levels", 3, "--overwrite")
    assert "--levels 0 is too small" in refused(sample_stage.main, "--run", run, "--levels", 0)
    assert call(evaluate.main, "--run", run).code == 0
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["samples"]["levels"] == ["top"]
    assert list(report["samples"]["nll"]) == ["top"]
    assert report["decoder_trained_by"] == ["MobileNetV2", "mobilenet_v2"]
    assert all("painted" in sets for sets in report["distances"].values())
    # What is exported needs no more.
    small = tmp_path / "small"
    assert "priors of top, " in call(export.main, "--run", run, "--out", small, "--weights", "fp32").out
    card = (small / "README.md").read_text()
    assert "the prior of top, exported" in card
    assert f"| KID of 5 samples (encoder) | {report['distances']['encoder']['samples']['kid']:.3f} |" in card
    made: dict = {"x": torch.zeros(1, 1, 32, 32)}
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0], made)
    assert made["out"].images.shape == (16, 1, 32, 32)
    assert call(sample_stage.main, "--run", small, "--num", 5, "--chunk-size", 2, "--seed", 3).code == 0
    assert (small / "samples" / "00004.png").read_bytes() == (run / "samples" / "00004.png").read_bytes()
    slices = ["--data", "phantom", "--out", tmp_path / "scored"]
    assert (
        "not measured: prior of level bottom, which was not exported"
        in call(evaluate.main, "--run", small, *slices, "--dry-run").out
    )
    told = refused(evaluate.main, "--run", small, *slices, "--anomaly", run / "samples" / "00000.png")
    assert "priors of all levels" in told
    assert "which was not exported" in told
    # By all levels: another set.
    assert call(train_prior.main, "--run", run, "--level", "bottom", *PRIOR_FLAGS).code == 0
    assert "with levels" in refused(sample_stage.main, "--run", run, "--num", 5, "--levels", 2)
    whole = call(sample_stage.main, "--run", run, "--num", 5, "--levels", 2, "--out", run / "samples-whole")
    assert whole.code == 0
    assert "detail_sha256" not in json.loads((run / "samples-whole" / "samples.json").read_text())
    assert call(evaluate.main, "--run", run).code == 0
    # Training the VQ-VAE further starts the detail decoder again.
    assert call(train_vqvae.main, "--run", run, "--resume").out.count("resumed at step 6") == 2
    kept = run.with_name("further")
    shutil.copytree(run, kept)
    ended = call(train_vqvae.main, "--run", kept, "--resume", "--max-steps", 16)
    assert ended.code == 0
    assert ended.out.count("resumed at step") == 1
    detail = DetailDecoder.from_pretrained(kept / "vqvae" / "detail")
    model = VQVAE.from_pretrained(kept / "vqvae")
    assert torch.equal(detail.embeddings[0].weight, model.codebooks[0].embedding)
    # What is exported samples alike.
    assert call(export.main, "--run", run, "--out", tmp_path / "out", "--weights", "fp32").code == 0
    ended = call(sample_stage.main, "--run", tmp_path / "out", "--num", 5, "--chunk-size", 2, "--seed", 3)
    assert ended.code == 0
    assert "DetailDecoder" in (tmp_path / "out" / "README.md").read_text()
    for name in ("00000.png", "00004.png"):
        assert (tmp_path / "out" / "samples" / name).read_bytes() == (run / "samples" / name).read_bytes()
    detail = DetailDecoder.from_pretrained(tmp_path / "out" / "vqvae" / "detail")
    prior = Prior.from_pretrained(tmp_path / "out" / "prior-top")
    assert sample(detail, [prior], 3).images.shape == (3, 1, 32, 32)
    # The VQ-VAE of another run does not fit.
    config = json.loads((run / "vqvae" / "detail" / "config.json").read_text())
    (run / "vqvae" / "detail" / "config.json").write_text(json.dumps(config | {"vqvae_sha256": "other"}))
    assert "trained for another VQ-VAE" in refused(sample_stage.main, "--run", run, "--overwrite")


def test_one_held_out_image_has_no_kid_but_a_detail_decoder(tmp_path, call, network, monkeypatch):
    rows = DetailTask._rows
    monkeypatch.setattr(DetailTask, "_rows", lambda *args: rows(*args) if args[1] == "train" else [0])
    flags = [*VQVAE_FLAGS, "--max-steps", 8, "--detail-share", 0.5]
    assert call(train_vqvae.main, "--run", tmp_path / "a", *flags).code == 0
    figures = stats(tmp_path / "a" / "vqvae" / "detail")[-1]
    assert "val/ssim" in figures
    assert "val/kid" not in figures


def test_a_detail_decoder_alone_leaves_the_vqvae_as_it_is(tmp_path, call, refused, network):
    assert call(train_vqvae.main, "--run", tmp_path / "a", *VQVAE_FLAGS, "--max-steps", 6).code == 0
    flags = ["--data", "phantom", "--phantom-images", 60, "--detail-share", 1, "--max-steps", 4]
    assert "Add --init RUN" in refused(train_vqvae.main, "--run", tmp_path / "b", *flags)
    assert call(train_vqvae.main, "--run", tmp_path / "b", "--init", tmp_path / "a", *flags).code == 0
    assert checkpoint.sha256_of(tmp_path / "a" / "vqvae") == checkpoint.sha256_of(tmp_path / "b" / "vqvae")
    assert checkpoint.has_model(tmp_path / "b" / "vqvae" / "detail")
    record = json.loads((tmp_path / "b" / "run.json").read_text())["train_vqvae"]
    assert record["outcome"]["steps"] == 0
    assert "bottom/perplexity_foreground" in record["outcome"]["best"]
    assert call(train_vqvae.main, "--run", tmp_path / "b", "--resume").code == 0
    one = [*VQVAE_FLAGS, "--strides", 4, "--num-embeddings", 16, "--embedding-dim", 4]
    assert "nothing to paint" in refused(train_vqvae.main, "--run", tmp_path / "c", *one, "--detail-share", 0.5)
    # From a run that has one it goes on, and waits for the new discriminator; of another shape it begins anew.
    again = call(train_vqvae.main, "--run", tmp_path / "e", "--init", tmp_path / "b", *flags)
    assert again.code == 0
    own = tmp_path / "e" / "vqvae" / "detail"
    assert f"from that in {own / 'start'}" in again.out
    of_b = checkpoint.load_tensors(tmp_path / "b" / "vqvae" / "detail")
    of_e = checkpoint.load_tensors(own)
    assert all(torch.equal(tensor, of_e[name]) for name, tensor in of_b.items())
    whole = [*flags[:-4], "--detail-share", 0.5, "--max-steps", 4]  # the VQ-VAE is trained before
    assert call(train_vqvae.main, "--run", tmp_path / "g", "--init", tmp_path / "b", *whole).code == 0
    own = tmp_path / "g" / "vqvae" / "detail"
    painting = {name for name in of_b if not name.startswith("embeddings.")}
    assert all(torch.equal(of_b[name], checkpoint.load_tensors(own)[name]) for name in painting)
    # Killed before its first state, and resumed where the other run is gone.
    shutil.rmtree(own / "state")
    (own / "model.safetensors").unlink()
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    assert call(train_vqvae.main, "--run", tmp_path / "g", "--resume").code == 0
    assert all(torch.equal(of_b[name], checkpoint.load_tensors(own)[name]) for name in painting)
    (tmp_path / "elsewhere").rename(tmp_path / "b")
    other = call(train_vqvae.main, "--run", tmp_path / "f", "--init", tmp_path / "b", *flags, "--detail-widths", 6, 5)
    assert other.code == 0
    assert "from that in" not in other.out
    two = [*VQVAE_FLAGS, "--detail-share", 0.5, "--detail-widths"]
    assert "Give 2 numbers" in refused(train_vqvae.main, "--run", tmp_path / "c", *two, 8, 4, 2)
    assert "--detail-widths must be >= 1" in refused(train_vqvae.main, "--run", tmp_path / "c", *two, 8, 0)
    assert call(train_vqvae.main, "--run", tmp_path / "d", *two, 8, 4, "--max-steps", 12).code == 0
    detail = DetailDecoder.from_pretrained(tmp_path / "d" / "vqvae" / "detail")
    assert detail.config.painter_widths == (8, 4)
