"""Checkpoints of rosinality/vq-vae-2-pytorch: the arithmetic of its VQ-VAE, written out here, gives the same result."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae2 import __main__
from vqvae2.errors import UserError
from vqvae2.imported import read_rosinality, vqvae_of_rosinality
from vqvae2.stages import extract_codes, import_rosinality, train_prior

pytest_plugins = ["tiny_run_fixtures"]

CHANNELS, HIDDEN, RESIDUAL, DIMS, CODES = 3, 12, 5, 6, 20


def checkpoint(layers: int = 2) -> dict[str, Tensor]:
    """A state dict with the names and shapes of that project, of random values."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def conv(name: str, out: int, into: int, side: int, transposed: bool = False) -> None:
        shape = (into, out, side, side) if transposed else (out, into, side, side)
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / (into * side**2 / 2) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(out, generator=generator) / 10

    def residual(name: str, first: int) -> int:
        for i in range(first, first + layers):
            conv(f"{name}.{i}.conv.1", RESIDUAL, HIDDEN, 3)
            conv(f"{name}.{i}.conv.3", HIDDEN, RESIDUAL, 1)
        return first + layers + 1  # a ReLU ends the stack

    conv("enc_b.blocks.0", HIDDEN // 2, CHANNELS, 4)
    conv("enc_b.blocks.2", HIDDEN, HIDDEN // 2, 4)
    conv("enc_b.blocks.4", HIDDEN, HIDDEN, 3)
    residual("enc_b.blocks", 5)
    conv("enc_t.blocks.0", HIDDEN // 2, HIDDEN, 4)
    conv("enc_t.blocks.2", HIDDEN, HIDDEN // 2, 3)
    residual("enc_t.blocks", 3)
    conv("quantize_conv_t", DIMS, HIDDEN, 1)
    conv("quantize_conv_b", DIMS, DIMS + HIDDEN, 1)
    tensors["quantize_conv_t.weight"] *= 4  # as far apart as the codes are
    conv("dec_t.blocks.0", HIDDEN, DIMS, 3)
    conv(f"dec_t.blocks.{residual('dec_t.blocks', 1)}", DIMS, HIDDEN, 4, transposed=True)
    conv("upsample_t", DIMS, DIMS, 4, transposed=True)
    conv("dec.blocks.0", HIDDEN, 2 * DIMS, 3)
    end = residual("dec.blocks", 1)
    conv(f"dec.blocks.{end}", HIDDEN // 2, HIDDEN, 4, transposed=True)
    conv(f"dec.blocks.{end + 2}", CHANNELS, HIDDEN // 2, 4, transposed=True)
    for level in "tb":
        tensors[f"quantize_{level}.embed"] = torch.randn(DIMS, CODES, generator=generator)
        tensors[f"quantize_{level}.embed_avg"] = torch.randn(DIMS, CODES, generator=generator)
        tensors[f"quantize_{level}.cluster_size"] = torch.rand(CODES, generator=generator) + 1
    return tensors


def theirs(t: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the top and the bottom, and the reconstruction."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride, padding)

    def up(name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, t[f"{name}.weight"], t[f"{name}.bias"], stride=2, padding=1)

    def residual(name: str, x: Tensor, first: int) -> tuple[Tensor, int]:
        i = first
        while f"{name}.{i}.conv.1.weight" in t:
            x = x + conv(f"{name}.{i}.conv.3", conv(f"{name}.{i}.conv.1", x.relu()).relu(), padding=0)
            i += 1
        return x.relu(), i + 1

    def quantize(level: str, x: Tensor) -> tuple[Tensor, Tensor]:
        book = t[f"quantize_{level}.embed"]
        codes = ((x[:, :, None] - book[None, :, :, None, None]) ** 2).sum(1).argmin(1)
        return codes, book[:, codes].movedim(0, 1)

    bottom = conv("enc_b.blocks.4", conv("enc_b.blocks.2", conv("enc_b.blocks.0", x, 2).relu(), 2).relu())
    bottom, _ = residual("enc_b.blocks", bottom, 5)
    top, _ = residual("enc_t.blocks", conv("enc_t.blocks.2", conv("enc_t.blocks.0", bottom, 2).relu()), 3)
    top_codes, top = quantize("t", conv("quantize_conv_t", top, padding=0))
    decoded, end = residual("dec_t.blocks", conv("dec_t.blocks.0", top), 1)
    decoded = up(f"dec_t.blocks.{end}", decoded)
    bottom_codes, bottom = quantize("b", conv("quantize_conv_b", torch.cat([decoded, bottom], 1), padding=0))
    image = conv("dec.blocks.0", torch.cat([up("upsample_t", top), bottom], 1))
    image, end = residual("dec.blocks", image, 1)
    return top_codes, bottom_codes, up(f"dec.blocks.{end + 2}", up(f"dec.blocks.{end}", image).relu())


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_codes_and_images_are_those_of_its_own_arithmetic(layers):
    tensors = checkpoint(layers)
    x = torch.rand(2, CHANNELS, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    top, bottom, image = theirs(tensors, x)
    model = vqvae_of_rosinality(tensors, 32, 48)
    codes = model.encode(x)
    assert torch.equal(codes[0], top)
    assert torch.equal(codes[1], bottom)
    assert min(len(level.unique()) for level in codes) > 5, "few codes show little"
    torch.testing.assert_close(model(x).images, image, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.decode(codes), image.clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(checkpoint()))
def test_every_tensor_is_needed(name):
    tensors = checkpoint()
    del tensors[name]
    with pytest.raises(UserError, match=r"lacks|this is no VQ-VAE of rosinality|has shape"):
        vqvae_of_rosinality(tensors, 32, 32, "file")


def test_what_is_left_over_or_of_another_shape_is_told():
    with pytest.raises(UserError, match=r"parts that ours lacks, such as more"):
        vqvae_of_rosinality({**checkpoint(), "more": torch.zeros(1)}, 32, 32, "file")
    tensors = checkpoint()
    tensors["upsample_t.weight"] = torch.zeros(DIMS, DIMS, 3, 3)
    with pytest.raises(UserError, match=r"upsample_t.weight has shape \(6, 6, 3, 3\), not \(6, 6, 4, 4\)"):
        vqvae_of_rosinality(tensors, 32, 32, "file")
    with pytest.raises(UserError, match="do not divide"):
        vqvae_of_rosinality(checkpoint(), 30, 32, "file")


def test_an_imported_model_goes_on_through_the_stages(tmp_path, call, refused):
    file, run = tmp_path / "vqvae_001.pt", tmp_path / "run"
    torch.save({f"module.{name}": tensor for name, tensor in checkpoint().items()}, file)
    flags = ("--run", run, "--checkpoint", file, "--data", "phantom", "--phantom-images", 60, "--size", "32x32")
    told = call(import_rosinality.main, *flags)
    assert told.code == 0, told.err
    assert "extract-codes --run" in told.out
    assert call(extract_codes.main, "--run", run, "--allow-collapse").code == 0
    assert call(train_prior.main, "--run", run, "--level", "top", "--max-steps", 2, "--batch-size", 8).code == 0
    assert "there is a VQ-VAE already" in refused(import_rosinality.main, *flags)
    assert "takes images of 3 channels" in refused(
        import_rosinality.main, *flags[2:], "--run", tmp_path / "other", "--channels", 1
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"model": {"horizontal.conv.conv.weight_v": torch.zeros(1)}}, "this is a PixelSNAIL of rosinality"),
        ({"model": {}, "args": argparse.Namespace(lr=1)}, "this is a PixelSNAIL of rosinality"),
        ({"enc_b.blocks.0.weight": torch.zeros(1)}, "this is no VQ-VAE of rosinality"),
        ([1, 2], "no checkpoint of tensors by name"),
        (b"not a checkpoint", "no checkpoint of PyTorch with tensors alone, or it is damaged"),
        (None, "there is no such file"),
    ],
)
def test_other_files_are_refused(tmp_path, refused, content, line):
    file = tmp_path / "file.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    flags = ("--run", tmp_path / "run", "--checkpoint", file, "--data", "phantom")
    assert line in refused(import_rosinality.main, *flags)
    assert not (tmp_path / "run").exists()


def test_nothing_that_a_checkpoint_holds_is_run(tmp_path):
    file, mark = tmp_path / "file.pt", tmp_path / "mark"

    class Harmful:
        def __reduce__(self):
            return mark.touch, ()

    torch.save({"weight": Harmful()}, file)
    with pytest.raises(UserError, match="with tensors alone"):
        read_rosinality(file)
    assert not mark.exists()


@pytest.mark.parametrize("given", [["x.pt"], ["--checkpoint", "x.pt"]])
def test_its_command_reads_as_it_is_said(monkeypatch, given):
    taken: list[list[str]] = []
    monkeypatch.setattr(import_rosinality, "main", lambda argv: taken.append(argv) or 0)
    assert __main__.main(["import", "rosinality", *given, "--run", "a"]) == 0
    assert taken == [["--checkpoint", "x.pt", "--run", "a"]]


def test_other_projects_are_not_known(capsys):
    assert __main__.main(["import", "other"]) == 2
    assert "there is no stage import-other" in capsys.readouterr().err
