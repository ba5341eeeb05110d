"""Codes chosen for error and bits: each is the cheapest, given those before it."""

from dataclasses import replace

import pytest
import torch
from tiny_priors import randomise, tiny_prior

from vqvae2.compression import unpack
from vqvae2.prior import Prior
from vqvae2.rate_distortion import choose_codes
from vqvae2.stages import compress, decompress
from vqvae2.vqvae import VQVAE, VQVAEConfig

pytest_plugins = ["tiny_run_fixtures"]


def models(normalize: str = "layer", mirrored: bool = False):
    """A VQ-VAE of two levels, its priors, images and labels, in float64."""
    torch.manual_seed(0)
    config = VQVAEConfig(
        height=16, width=16, strides=(2, 2), num_embeddings=(7, 7), embedding_dim=(4, 3), hidden_channels=8,
        residual_channels=4, rate_weight=0.5, normalize=normalize, init_vectors=0,
    )  # fmt: skip
    patch = {"patch": 2, "patch_channels": 8, "mirrored": True} if mirrored else {}
    top = tiny_prior((4, 4), labelled=True, **patch)
    bottom = tiny_prior((8, 8), ((4, 4),), labelled=True)
    bottom = randomise(Prior(replace(bottom.config, condition_num_embeddings=(7,))))
    label = torch.tensor([[0, -1], [1, 2], [-1, 0]])
    return randomise(VQVAE(config)), [top, bottom], 10 * torch.randn(3, 1, 16, 16).double(), label


@pytest.mark.parametrize("normalize", ["none", "layer"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_every_code_is_the_cheapest_given_those_before_it(normalize, mirrored):
    model, priors, images, label = models(normalize, mirrored)
    weights = (5.0, 0.8)
    codes = choose_codes(model, priors, images, label, weights)
    nearest = choose_codes(model, priors, images, label, (0, 0))
    for i, (weight, prior) in enumerate(zip(weights, priors, strict=True)):
        seen = []
        model.encode(images, coarser=codes, choose=lambda level, x, seen=seen: seen.append(x) or nearest[level])
        distances = (seen[i][..., None, :] - model.codebooks[i].embedding).square().sum(-1)
        log_p = prior.log_probabilities(codes[i], codes[:i], label).permute(0, 2, 3, 1)
        cost = distances - weight * log_p
        assert torch.equal(codes[i], cost.argmin(-1))
        assert not torch.equal(codes[i], distances.argmin(-1)), "the rate decides nothing: the test would show nothing"


def test_without_weight_codes_are_the_nearest():
    model, priors, images, label = models()
    plain = VQVAE(replace(model.config, rate_weight=0.0)).double().eval()
    plain.load_state_dict(model.state_dict())
    for chosen, nearest in zip(choose_codes(model, priors, images, label, (0, 0)), plain.encode(images), strict=True):
        assert torch.equal(chosen, nearest)


def test_a_larger_weight_takes_fewer_bits():
    model, priors, images, label = models()

    def nats(codes):
        return sum(
            -float(prior.log_probabilities(codes[i], codes[:i], label).gather(1, codes[i][:, None]).sum())
            for i, prior in enumerate(priors)
        )

    found = [nats(choose_codes(model, priors, images, label, (weight, weight))) for weight in (0, 0.5, 5)]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("weights", [(), (1,), (1, -1), (1, 1, 1)])
def test_weights_that_fit_no_levels_are_refused(weights):
    with pytest.raises(ValueError, match="rate_weight"):
        choose_codes(*models(), weights)


def test_files_of_cheaper_codes_are_smaller_and_can_be_read(run, tmp_path, call, refused):
    sizes = []
    for name, more in (("plain", []), ("cheap", ["--rate-weight", 3])):
        file = tmp_path / f"{name}.vq"
        told = call(compress.main, "--run", run, "--out", file, "--split", "val", "--chunk-size", 4, *more)
        assert told.code == 0, told.err
        assert ("of the run's codes" in told.out) == bool(more)
        _, streams = unpack(file.read_bytes(), file)
        sizes.append(sum(map(len, streams)))
    assert sizes[1] < sizes[0]
    assert call(decompress.main, "--run", run, "--file", file, "--out", tmp_path / "images").code == 0
    for bad in ([1, 1, 1], [-1]):
        told = refused(compress.main, "--run", run, "--out", tmp_path / "no.vq", "--rate-weight", *bad)
        assert "does not fit the run's 2 levels" in told
    assert not (tmp_path / "no.vq").exists()
