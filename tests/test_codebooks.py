"""Codebooks that an optimiser learns, `gradient` and `simvq`, against gradients written by hand."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_runs import one_line
from torch import Tensor

from vqvae2.clustering import kmeans
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.quantizer import Codebook, Quantized, QuantizerConfig, VectorQuantizer
from vqvae2.stages.common import start_from
from vqvae2.stages.export import _copy
from vqvae2.vqvae import VQVAE

LEARNED: tuple[Codebook, ...] = ("gradient", "simvq")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiser(codebook: Codebook, k: int, d: int, rate: float = 0.0, **settings: float) -> VectorQuantizer:
    """A quantiser in double precision with a random codebook, and without revival unless asked for."""
    torch.manual_seed(0)
    how = {"init_vectors": 0, "revival_threshold": 0.0, **settings}
    quantizer = VectorQuantizer(k, d, QuantizerConfig(codebook=codebook, **how), rate).double()  # type: ignore[arg-type]
    quantizer.update()  # what was computed in single precision is computed again
    return quantizer


def descend(quantizer: VectorQuantizer, x: Tensor, rate: float = 0.5) -> Quantized:
    """One step of gradient descent on the quantiser's own loss, and the update after it."""
    out = quantizer(x)
    if out.loss.requires_grad:
        out.loss.backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            assert parameter.grad is not None
            parameter -= rate * parameter.grad
            parameter.grad = None
    quantizer.update()
    return out


def codebook_gradient(x: Tensor, codes: Tensor, codebook: Tensor) -> NDArray[np.float64]:
    """Of mean((x - e)^2): 2 (e_i - x) / (number of elements), over the vectors that chose code i."""
    gradient = np.zeros(codebook.shape)
    for vector, code in zip(x.numpy(), codes.numpy(), strict=True):
        gradient[code] += 2 * (codebook[code].numpy() - vector) / x.numel()
    return gradient


@pytest.mark.parametrize("codebook", LEARNED)
@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_the_loss_is_the_codebook_loss_plus_commitment(codebook, beta):
    quantizer = quantiser(codebook, 6, 3, commitment_cost=beta)
    x, weights = normal(40, 3).requires_grad_(), normal(40, 3, seed=1)
    out = quantizer(x)
    vectors = quantizer.embedding.detach()[out.codes]
    torch.testing.assert_close(out.loss, (1 + beta) * ((x - vectors) ** 2).mean())
    ((out.vectors * weights).sum() + out.loss).backward()
    torch.testing.assert_close(x.grad, weights + beta * 2 * (x.detach() - vectors) / x.numel())


def test_the_codebook_moves_by_the_gradient_written_by_hand_and_by_nothing_else():
    quantizer = quantiser("gradient", 6, 3)
    assert [name for name, _ in quantizer.named_parameters()] == ["embedding"]
    x = normal(40, 3)
    before = quantizer.embedding.detach().clone()
    out = quantizer(x)
    # What comes from the decoder, also by way of the mean code, does not reach the codebook.
    (out.vectors.sum() + quantizer.mean_embedding().sum() + quantizer.lookup(out.codes).sum() + out.loss).backward()
    expected = codebook_gradient(x, out.codes, before)
    np.testing.assert_allclose(quantizer.embedding.grad, expected, atol=1e-15)
    assert (expected != 0).any()
    quantizer.update()
    assert torch.equal(quantizer.embedding, before)


def test_the_gradient_reaches_the_map_alone_and_moves_all_codes_by_it():
    quantizer = quantiser("simvq", 12, 3)
    assert {name for name, _ in quantizer.named_parameters()} == {"embedding_map", "embedding_shift"}
    x, before = normal(4, 3), copy.deepcopy(quantizer.state_dict())
    out = quantizer(x)
    out.loss.backward()
    of_codes = codebook_gradient(x, out.codes, before["embedding"])
    of_map, of_shift = before["frozen"].numpy().T @ of_codes, of_codes.sum(0)
    np.testing.assert_allclose(quantizer.embedding_map.grad, of_map, atol=1e-15)
    np.testing.assert_allclose(quantizer.embedding_shift.grad, of_shift, atol=1e-15)

    quantizer.zero_grad()
    quantizer.pending.clear()
    descend(quantizer, x)
    assert torch.equal(quantizer.frozen, before["frozen"])
    moved = before["frozen"].numpy() @ (before["embedding_map"].numpy() - 0.5 * of_map) - 0.5 * of_shift
    np.testing.assert_allclose(quantizer.embedding, moved, rtol=1e-12)
    assert (quantizer.embedding != before["embedding"]).any(1).all()


@pytest.mark.parametrize("codebook", LEARNED)
def test_counts_follow_as_those_of_moving_averages_do(codebook):
    one, other = quantiser(codebook, 8, 3), quantiser("ema", 8, 3)
    for t in range(5):
        x = normal(50, 3, seed=t)
        codes = descend(one, x).codes
        other(x)
        other.pending[0] = other.pending[0]._replace(codes=codes)  # as if it had the other's codebook
        other.update()
        torch.testing.assert_close(one.cluster_size, other.cluster_size)
    assert one.num_updates == 5


@pytest.mark.parametrize("codebook", LEARNED)
def test_every_parameter_has_a_gradient_before_the_start_and_of_an_empty_batch(codebook):
    quantizer = quantiser(codebook, 8, 3, init_vectors=20)
    for count in (12, 0, 12):
        out = descend(quantizer, normal(count, 3))
        assert out.loss == 0
    assert quantizer.initialized
    descend(quantizer, normal(0, 3))


def test_a_gradient_codebook_starts_from_k_means():
    quantizer, x = quantiser("gradient", 8, 3, init_vectors=60), normal(60, 3) + 5
    descend(quantizer, x)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantizer.embedding.detach(), kmeans(x[order], 8)[0])
    assert quantizer.cluster_size.sum() == pytest.approx(60)


def test_a_simvq_codebook_starts_with_the_mean_and_covariance_of_the_data():
    quantizer, x = quantiser("simvq", 2000, 3, init_vectors=1), normal(2000, 3) @ normal(3, 3, seed=1) + 5
    frozen = quantizer.frozen.clone()
    descend(quantizer, x)
    # The frozen vectors are of variance 1 / D: to 3 %, the standard deviation of that of 2,000 normal numbers.
    np.testing.assert_allclose(3 * np.cov(frozen.numpy().T), np.eye(3), atol=0.15)
    root, mean = (parameter.detach().numpy() for parameter in (quantizer.embedding_map, quantizer.embedding_shift))
    np.testing.assert_allclose(root.T @ root / 3, np.cov(x.numpy().T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(quantizer.embedding, frozen.numpy() @ root + mean, rtol=1e-12)
    assert quantizer.cluster_size.sum() >= 2000


def test_a_dead_code_of_a_gradient_codebook_is_revived_and_one_of_simvq_is_not():
    x = normal(50, 3)
    for codebook in LEARNED:
        quantizer = quantiser(codebook, 20, 3, revival_threshold=0.05)
        quantizer.cluster_size[10:] = 0
        still = quantiser(codebook, 20, 3, revival_threshold=0.0)
        still.cluster_size[10:] = 0
        for q in (quantizer, still):
            descend(q, x)
        is_input = (quantizer.embedding.detach()[:, None] == x[None]).all(-1).any(1)
        dead = still.cluster_size < 0.05 * still.cluster_size.mean()
        assert dead.any()
        assert torch.equal(is_input, dead if codebook == "gradient" else torch.zeros_like(dead))
        assert torch.equal(quantizer.embedding[~is_input], still.embedding[~is_input])


@pytest.mark.parametrize("codebook", ["ema", *LEARNED])
def test_a_codebook_follows_the_data_and_the_choice_weighs_information(codebook):
    quantizer = quantiser(codebook, 16, 2, rate=0.3, init_vectors=256)
    for t in range(40):
        descend(quantizer, normal(256, 2, seed=t) + 3)
    x = normal(1000, 2, seed=100) + 3
    quantizer.eval()
    codes, embedding = quantizer(x).codes, quantizer.embedding.detach()
    information = -(quantizer.cluster_size / quantizer.cluster_size.sum()).clamp_min(1e-3 / 16).log()
    distances = torch.cdist(x, embedding).square()
    assert torch.equal(codes, (distances + 0.3 * information).argmin(1))
    # One code at the mean would leave 2.
    assert distances.min(1).values.mean() < 0.5


@pytest.mark.parametrize("codebook", LEARNED)
def test_a_saved_or_exported_model_and_a_prior_have_the_codes_that_were_trained(
    tiny_config, tiny_prior_config, tmp_path: Path, codebook
):
    torch.manual_seed(0)
    model = VQVAE(replace(tiny_config, codebook=codebook))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        model.loss(torch.rand(8, 1, 16, 16) * 2 - 1)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_codebooks()
    model.eval()
    model.save_pretrained(tmp_path / "saved")
    _copy(tmp_path / "saved", tmp_path / "exported", "int8")
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    for folder in ("saved", "exported"):
        other = VQVAE.from_pretrained(tmp_path / folder)
        assert other.config == model.config
        for name, value in model.quantizers.state_dict().items():
            assert torch.equal(value, other.quantizers.state_dict()[name]), name
    out, codes = model(images), model.encode(images)
    torch.testing.assert_close(model.decode(codes), out.images.clamp(-1, 1))
    for quantizer in model.codebooks:
        effective = quantizer.embedding
        if codebook == "simvq":
            effective = quantizer.frozen @ quantizer.embedding_map + quantizer.embedding_shift
        torch.testing.assert_close(quantizer.lookup(torch.arange(len(effective))), effective)

    prior = Prior(tiny_prior_config)  # of 12 codes of 6 dimensions, as the bottom has
    prior.start_from([quantizer.embedding for quantizer in model.codebooks])
    bottom = model.codebooks[1].embedding.detach().numpy()
    expected = (bottom - bottom.mean(0)) / bottom.std(ddof=1)
    np.testing.assert_allclose(prior.embedding.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert prior.embedding.weight.is_leaf


@pytest.mark.parametrize("before", ["ema", "simvq"])
def test_a_gradient_codebook_may_start_from_one_of_another_kind_and_no_other_may(
    tiny_config, started, tmp_path: Path, before
):
    trained = started(replace(tiny_config, codebook=before))
    trained.save_pretrained(tmp_path)
    model = VQVAE(replace(tiny_config, codebook="gradient"))
    start_from(model, tmp_path)
    assert model.initialized
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    for one, other in zip(model.encode(images), trained.encode(images), strict=True):
        assert torch.equal(one, other)
    for after in {"ema", "simvq"} - {before}:
        with pytest.raises(UserError) as error:
            start_from(VQVAE(replace(tiny_config, codebook=after)), tmp_path)
        one_line(error, "--init has another architecture", "quantizers.0.")
