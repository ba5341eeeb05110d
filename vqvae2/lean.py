"""RMS norm, dropout and gate of the causal layers, with few passes over memory.

Narrow layers over large maps are bound by memory: a matrix product over 32,768 positions of 64 channels takes a quarter
of a millisecond on two cores, as does each addition. On a CPU the backward passes are therefore written out here; they
compute what autograd would, in half the passes; in bfloat16 a norm's scale is rounded three times. Elsewhere, and
under torch.compile, the layers are the usual ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Dropout", "RMSNorm", "gate"]


def _written_out(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class RMSNorm(nn.RMSNorm):
    """RMS norm that stays in its input's precision: (..., C) -> the same.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square, and multiply by the weight."""
        if _written_out(x):
            y: Tensor = _RMSNorm.apply(x, self.weight)
            return y
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = (length.square() / x.shape[-1] + 1e-6).rsqrt().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale, weight)
        return y * weight.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        y, scale, weight = ctx.saved_tensors
        narrow = weight.to(y.dtype)
        product = (gradient * y).flatten(0, -2)
        along = (product @ (narrow[:, None] / len(weight))).view_as(scale)
        x = (gradient * narrow).addcmul_(y, along, value=-1).mul_(scale)
        return x, product.sum(0).to(weight.dtype)


class Dropout(nn.Dropout):
    """Dropout that draws one byte for each value on a CPU: a tenth of the time of PyTorch's, which draws four.

    There p is rounded to a multiple of 1/256, but not to 0 or 1, and values are scaled by what is kept of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to the same."""
        if x.device.type != "cpu":
            return super().forward(x)
        kept = self.kept(x)
        return x if kept is None else x * kept

    def kept(self, x: Tensor) -> Tensor | None:
        """Draw the factors of a tensor: 0, or what makes up for it; None where nothing is dropped."""
        if not self.training or not self.p:
            return None
        dropped = min(max(round(256 * self.p), 1), 255)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        values = words.view(torch.uint8)[: x.numel()].view(x.shape)
        kept = torch.ge(values, dropped, out=torch.empty_like(x, memory_format=torch.contiguous_format))
        return kept.mul_(256 / (256 - dropped))


def gate(residual: Tensor, x: Tensor, out: nn.Linear, dropout: Dropout) -> Tensor:
    """Add a gated linear unit of a projection: residual + GLU(out(dropout(SiLU(x)))).

    Args:
        residual: (..., C).
        x: (..., R).
        out: R -> 2 C.
        dropout: of the activations.
    """
    if _written_out(x):
        y: Tensor = _Gate.apply(residual, x, out.weight, out.bias, dropout.kept(x))
        return y
    return residual + F.glu(out(dropout(F.silu(x))), -1)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None) -> Tensor:
        active = F.silu(x)
        if kept is not None:
            active.mul_(kept)
        (weight_a, weight_b), (bias_a, bias_b) = weight.to(x.dtype).chunk(2), bias.to(x.dtype).chunk(2)
        a = F.linear(active, weight_a, bias_a)
        b = F.linear(active, weight_b, bias_b).sigmoid_()
        ctx.save_for_backward(x, weight, kept, active, a, b)
        return torch.addcmul(residual, a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept, active, a, b = ctx.saved_tensors
        weight_a, weight_b = weight.to(x.dtype).chunk(2)
        of_a = (gradient * b).flatten(0, -2)
        of_b = torch.ops.aten.sigmoid_backward(gradient * a, b).flatten(0, -2)
        of_x = (of_a @ weight_a).addmm_(of_b, weight_b).view_as(x)
        if kept is not None:
            of_x.mul_(kept)
        of_x = torch.ops.aten.silu_backward(of_x, x)
        rows = active.flatten(0, -2)
        of_weight = torch.cat([of_a.T @ rows, of_b.T @ rows]).to(weight.dtype)
        of_bias = torch.cat([of_a.sum(0), of_b.sum(0)]).to(weight.dtype)
        return gradient, of_x, of_weight, of_bias, None
