"""Programs compute what the model does: in onnxruntime and in torch.export, for batches of any size."""

import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from vqvae2 import programs
from vqvae2.errors import UserError
from vqvae2.programs import check_programs, write_programs
from vqvae2.vqvae import VQVAE, VQVAEConfig

SMALL = {"hidden_channels": 8, "residual_channels": 4, "num_residual_layers": 0, "init_vectors": 64}
# Every way of joining levels, odd and even kernels, colour, both choices of codes.
CONFIGS = {
    "one level": VQVAEConfig(
        channels=3, height=25, width=50, strides=(5,), num_embeddings=(9,), embedding_dim=(5,),
        **{**SMALL, "num_residual_layers": 1},
    ),
    "two levels, both": VQVAEConfig(
        height=24, width=36, strides=(3, 4), num_embeddings=(8, 12), embedding_dim=(4, 6), upper_decoder="both",
        normalize="layer", rate_weight=(0.0, 1.0), joint_channels=5, **SMALL,
    ),
    "three levels, stack": VQVAEConfig(
        height=24, width=12, strides=(2, 2, 3), num_embeddings=(8, 9, 10), embedding_dim=(4, 5, 6), num_fine_layers=1,
        rate_weight=(0.0, 0.0, 0.1), **SMALL,
    ),
    "four levels, upsample": VQVAEConfig(
        height=32, width=16, strides=(2,) * 4, num_embeddings=(8, 9, 10, 11), embedding_dim=(4, 5, 6, 7),
        upper_decoder="upsample", normalize="layer", **SMALL,
    ),
}  # fmt: skip


def random_images(config: VQVAEConfig, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, config.channels, config.height, config.width, generator=generator) * 2 - 1


def lively(config: VQVAEConfig) -> VQVAE:
    """An untrained model whose signals keep their size through all layers, so that its codes are far apart."""
    torch.manual_seed(0)
    model = VQVAE(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6**0.5 if parameter.ndim > 1 else 0)  # from torch's variance, 1 / (3 fan-in), to He's
    for batch in range(8, 64):
        if not model.initialized:
            model(random_images(config, batch))
            model.update_codebooks()
    assert model.initialized
    return model.eval()


def in_onnxruntime(path: Path, gives: list[str], given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    arrays = session.run(gives, {name: tensor.numpy() for name, tensor in given.items()})
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_programs_compute_what_the_model_does(config, tmp_path):
    model = lively(config)
    found = write_programs(model, tmp_path, ["onnx", "torch"])
    names = [f"codes_{level}" for level in config.levels]
    encode, decode = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    for batch in (1, 5):  # traced with 2
        images = random_images(config, batch)
        codes = model.encode(images)
        for others in (in_onnxruntime(tmp_path / "encoder.onnx", names, {"image": images}), encode(images)):
            for own, other in zip(codes, others, strict=True):
                assert other.dtype == torch.int64
                assert own.shape == other.shape
                assert (own != other).float().mean() <= 0.02  # near ties, and what follows from them
        given = dict(zip(names, codes, strict=True))
        (image,) = in_onnxruntime(tmp_path / "decoder.onnx", ["image"], given)
        for other in (image, decode(codes)):
            torch.testing.assert_close(other, model.decode(codes), rtol=0, atol=1e-5)  # ten times float32's rounding
    assert all(len(level.unique()) > 3 for level in codes), "few codes show little"
    for kind, record in found.items():
        assert record["codes"] >= 4096
        assert record["images"] > 2
        assert record["inputs"] == {"encoder": ["image"], "decoder": names}
        assert record["outputs"] == {"encoder": names, "decoder": ["image"]}
        assert set(record["sha256"]) == {f"{name}{programs.SUFFIXES[kind]}" for name in ("encoder", "decoder")}
    # Each holds what it computes with, and no path of this machine.
    held = {name: set(torch.export.load(tmp_path / f"{name}.pt2").state_dict) for name in ("encoder", "decoder")}
    assert not any(name.startswith(("model.encoders", "model.to_code")) for name in held["decoder"])
    assert not any(name.startswith(f"model.decoders.{len(names) - 1}.") for name in held["encoder"])
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                content = b"".join(map(archive.read, archive.namelist()))
        for place in (Path(programs.__file__).parent, Path(torch.__file__).parent):
            assert str(place).encode() not in content


@pytest.fixture
def rated() -> tuple[VQVAE, VQVAE]:
    """A model, and the same weights with the nearest codes."""
    model = lively(CONFIGS["two levels, both"])
    nearest = VQVAE(replace(model.config, rate_weight=0.0)).eval()
    nearest.load_state_dict(model.state_dict())
    return model, nearest


def test_a_check_sees_other_codes_and_other_images(rated):
    model, nearest = rated
    assert check_programs(model, model.encode, model.decode).passed
    other = check_programs(model, nearest.encode, model.decode)
    assert other.codes_that_differ > 0.01 * other.codes
    assert not other.passed
    for wrong in (2e-4, float("nan")):
        other = check_programs(model, model.encode, lambda codes, wrong=wrong: model.decode(codes) + wrong)
        assert other.codes_that_differ == 0
        assert not other.passed


def test_a_code_that_falls_otherwise_counts_once(rated):
    _, model = rated
    with torch.no_grad():
        model.to_code[1].weight[:, -model.config.joint_channels :] *= 100  # much follows from the coarser codes

    def encode(images):
        coarser = model.encode(images)
        coarser[0][0] = (coarser[0][0] + 1) % model.config.num_embeddings[0]
        return [coarser[0], model.encode(images, coarser=coarser)[1]]

    images = random_images(model.config, 1)
    assert not torch.equal(encode(images)[1], model.encode(images)[1]), "nothing follows from it: nothing is shown"
    assert check_programs(model, encode, model.decode).codes_that_differ == math.prod(model.config.shapes[0])


def test_a_missing_package_is_told_with_the_command_that_installs_it(tiny_vqvae, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    programs.require(["torch"])
    with pytest.raises(UserError, match=r"need the package onnxruntime\. Run pip install onnx onnxscript onnxruntime"):
        write_programs(tiny_vqvae, tmp_path, ["onnx"])
