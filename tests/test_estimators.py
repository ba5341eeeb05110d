"""The gradient of quantised vectors against explicit matrices."""

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from vqvae2.estimators import rotated, straight_through
from vqvae2.quantizer import Codebook, QuantizerConfig, VectorQuantizer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def householder(normal_vector: Tensor) -> Tensor:
    """The matrix of the reflection in the hyperplane of a normal vector."""
    outer = torch.outer(normal_vector, normal_vector)
    return torch.eye(len(normal_vector), dtype=torch.float64) - 2 * outer / normal_vector.square().sum()


def rotation(x: Tensor, e: Tensor) -> Tensor:
    """Two reflections are a rotation: the first turns u to -u, the second -u to v."""
    u, v = x / x.norm(), e / e.norm()
    return householder(u + v) @ householder(u)


@pytest.mark.parametrize("d", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_jacobian_is_the_rotation_and_rescaling_that_carries_the_vector_onto_its_code(d, seed):
    x, e = normal(d, seed=seed), 3 * normal(d, seed=100 + seed)
    found = jacobian(lambda vector: rotated(vector, e), x)
    scale = e.norm() / x.norm()
    torch.testing.assert_close(found, scale * rotation(x, e), rtol=1e-12, atol=1e-12)
    turn = found / scale
    torch.testing.assert_close(turn @ turn.T, torch.eye(d, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.linalg.det(turn) == pytest.approx(1)
    torch.testing.assert_close(turn @ (x / x.norm()), e / e.norm(), rtol=0, atol=1e-12)


def test_values_are_the_codes_and_a_straight_gradient_is_the_identity():
    x, e = normal(4, 5, 3).requires_grad_(), normal(4, 5, 3, seed=1)
    for estimate in (straight_through, rotated):
        torch.testing.assert_close(estimate(x, e), e, rtol=0, atol=1e-14)
    weights = normal(4, 5, 3, seed=2)
    (straight_through(x, e) * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_vectors_without_a_direction_and_opposite_ones_have_gradients_of_bounded_length():
    x = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0], [3.0, 0.0, 4.0]], dtype=torch.float64, requires_grad=True)
    e = torch.tensor([[0.0, 2.0, 0.0], [-6.0, 0.0, -8.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    weights = normal(3, 3)
    vectors = rotated(x, e)
    torch.testing.assert_close(vectors, e, rtol=0, atol=1e-14)
    (vectors * weights).sum().backward()
    lengths = weights.norm(dim=1) * torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(x.grad.norm(dim=1), lengths, rtol=0, atol=1e-12)


@pytest.mark.parametrize("codebook", ["ema", "gradient", "simvq"])
def test_a_quantiser_passes_the_gradient_through_the_rotation_to_its_input_alone(codebook: Codebook):
    torch.manual_seed(0)
    config = QuantizerConfig(codebook=codebook, estimator="rotation", init_vectors=0)
    quantizer = VectorQuantizer(6, 3, config).double()
    x, weights = normal(10, 3).requires_grad_(), normal(10, 3, seed=1)
    out = quantizer(x)
    (out.vectors * weights).sum().backward()
    codes = quantizer.embedding.detach()[out.codes]
    torch.testing.assert_close(out.vectors, codes)
    for vector, e, weight, gradient in zip(x.detach(), codes, weights, x.grad, strict=True):
        torch.testing.assert_close(gradient, e.norm() / vector.norm() * rotation(vector, e).T @ weight)
    assert all(parameter.grad is None for parameter in quantizer.parameters())
