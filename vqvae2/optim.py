"""How a model is trained: the settings, the optimisers, the schedule and the moving average of the weights."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Muon", "TrainingConfig", "WeightAverage", "learning_rate", "make_optimizer"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; what it is stands in the model's own config."""

    batch_size: int = 16
    """Items of a batch, over all processes of a distributed run."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    """Optimiser; adamw decouples the weight decay, muon orthogonalises the steps of matrices and kernels and leaves the
    rest to adamw."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    muon_learning_rate: float = 0.01
    """Peak learning rate of the parameters that muon updates."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_learning_rate: float = 0.01
    """Final learning rate of the cosine, as a share of the peak, in [0, 1]. Without a limit there is no decay."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.99
    """Adam's decay of the second moment."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels, >= 0; vectors, embeddings, codebooks and position tables are never
    decayed."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is evaluated and kept, in [0, 1); 0 turns it off."""
    max_steps: int | None = None
    """Limit in optimiser steps."""
    max_minutes: float | None = None
    """Limit in minutes of training, evaluations included, summed over resumes; the schedule is fitted to it."""
    evaluations: int = 20
    """Evaluations of a run that has a limit, spread evenly over it."""
    evaluate_every: int = 500
    """Steps between evaluations of a run without a limit."""
    patience: int = 0
    """Evaluations without improvement before the training stops; 0: never with a limit, 10 without one."""
    guide_share: float = 0.2
    """Share of the limit at which a copy of a prior is kept as its guide, which autoguidance steers away from, in
    (0, 1]; without a limit it is kept at the first evaluation."""
    save_minutes: float = 10
    """Minutes between two saved states, besides that of each evaluation, > 0."""
    log_every: int = 25
    """Steps between two lines of train figures."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.evaluations, self.evaluate_every, self.log_every) < 1:
            raise ValueError("batch_size, accumulate, evaluations, evaluate_every and log_every must be >= 1")
        for name in ("learning_rate", "muon_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if (self.max_steps is not None and self.max_steps < 1) or (
            self.max_minutes is not None and self.max_minutes <= 0
        ):
            raise ValueError("max_steps must be >= 1 and max_minutes > 0")
        if self.save_minutes <= 0:
            raise ValueError(f"save_minutes must be > 0, got {self.save_minutes}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 < self.guide_share <= 1:
            raise ValueError(f"guide_share must be in (0, 1], got {self.guide_share}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate must be in [0, 1], got {self.final_learning_rate}")

    @property
    def limited(self) -> bool:
        """Whether the run ends at a given step or time."""
        return self.max_steps is not None or self.max_minutes is not None

    @property
    def stop_after(self) -> int:
        """Evaluations without improvement before the training stops; 0: never."""
        return self.patience or (0 if self.limited else 10)

    def describe_limit(self) -> str:
        """Say in one line when the training ends."""
        limits = [f"{self.max_steps} steps"] if self.max_steps else []
        limits += [f"{self.max_minutes:g} minutes"] if self.max_minutes else []
        patience = f"{self.stop_after} evaluations without improvement on the selection subjects"
        limits += (
            [patience + f" (one every {self.evaluate_every} steps)" * (not self.limited)] if self.stop_after else []
        )
        return "ends after " + " or ".join(limits)


def split_parameters(modules: Iterable[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trained parameters of modules by what they do.

    Returns:
        ``(weights, others)``: what multiplies its input (matrices, kernels), and what is added or looked up: vectors
        (biases, norms), embeddings, and position tables and codebooks, which are recognised by their names.
    """
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for part in dict.fromkeys(part for module in modules for part in module.modules()):
        for name, parameter in part.named_parameters(recurse=False):
            table = isinstance(part, nn.Embedding) or name.startswith(("position", "embedding"))
            if parameter.requires_grad:
                (others if table or parameter.ndim < 2 else weights).append(parameter)
    return weights, others


class Muon(torch.optim.AdamW):
    """Momentum whose steps are orthogonalised, for matrices and kernels; AdamW for all else.

    A matrix (a kernel is taken as one: its first dimension by all others) moves by the orthogonal matrix nearest to its
    momentum, so that rare directions are learnt as fast as common ones. Its steps are scaled to the size of AdamW's.

    ``torch.optim.Muon`` takes matrices alone, one after the other; here those of one shape are worked on together.

    Args:
        matrices: parameters of two or more dimensions.
        others: all other parameters.
        lr: learning rate of the others.
        muon_lr: of the matrices.
        betas, weight_decay, fused: as of ``torch.optim.AdamW``; only matrices are decayed.
        precision: in which matrices are orthogonalised; bfloat16 suffices where the hardware multiplies it fast.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); the steps' size after Liu et al. 2025
    (arXiv 2502.16982, section 2.2).
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        muon_lr: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        fused: bool = False,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.precision = precision
        groups = [
            {"params": list(matrices), "weight_decay": weight_decay, "lr_scale": muon_lr / lr, "lr": muon_lr},
            {"params": list(others), "weight_decay": 0.0, "lr_scale": 1.0},
        ]
        super().__init__(groups, lr=lr, betas=betas, fused=fused)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step. The gradients of the matrices are used up."""
        group = self.param_groups[0]
        alike: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows, columns = parameter.flatten(1).shape
                alike.setdefault((min(rows, columns), max(rows, columns)), []).append(parameter)
        for (short, long), matrices in alike.items():
            momenta = []
            for parameter in matrices:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW looks for one when it is loaded
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momenta.append(state["momentum_buffer"])
            steps = [parameter.grad for parameter in matrices if parameter.grad is not None]  # all have one
            torch._foreach_lerp_(momenta, steps, 1 - _MUON_MOMENTUM)
            torch._foreach_lerp_(steps, momenta, _MUON_MOMENTUM)  # Nesterov's
            lying = [step.flatten(1) if len(step) == short else step.flatten(1).T for step in steps]
            made = orthogonalized(torch.stack(lying), self.precision).to(steps[0].dtype)
            moves = [
                (move if len(step) == short else move.T).reshape(step.shape)
                for move, step in zip(made, steps, strict=True)
            ]
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, moves, alpha=-group["lr"] * 0.2 * long**0.5)
            for parameter in matrices:  # AdamW passes over what has no gradient
                parameter.grad = None
        super().step()


_MUON_MOMENTUM = 0.95


def orthogonalized(x: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Bring the singular values of matrices near to 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024 leave them between about 0.7 and 1.2.

    Args:
        x: (N, rows, columns), no more rows than columns.
        precision: of the computation; float64 stays as it is.

    Returns:
        (N, rows, columns) in that precision.
    """
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    x = x if x.dtype == torch.float64 else x.to(precision)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


def make_optimizer(
    config: TrainingConfig,
    modules: Iterable[nn.Module],
    device: torch.device,
    precision: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """Build the optimiser of modules; only what multiplies its input is decayed (`split_parameters`).

    Args:
        config: the settings.
        modules: what is trained.
        device: where it is.
        precision: of the training's matrix products, which muon takes over.
    """
    weights, others = split_parameters(modules)
    # Scaled gradients: a fused step looks for those that are not finite itself, Muon's does not.
    fused = device.type in ("cuda", "cpu") and precision != torch.float16
    betas = config.beta1, config.beta2
    if config.optimizer == "muon":
        rates = config.learning_rate, config.muon_learning_rate
        half = torch.float32 if precision == torch.float16 else precision
        return Muon(weights, others, *rates, betas, config.weight_decay, fused, half)
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr=config.learning_rate, betas=betas, fused=fused)


def moments(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> list[dict[str, Tensor]]:
    """Return what the optimiser keeps of each parameter, however it groups them."""
    return [optimizer.state.get(parameter, {}) for parameter in parameters]


def load_moments(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], saved: Sequence[dict[str, Tensor]]
) -> None:
    """Take over what `moments` returned; the optimiser keeps its own settings."""
    by_parameter = dict(zip(parameters, saved, strict=True))
    for i, group in enumerate(optimizer.param_groups):
        name = "momentum_buffer" if isinstance(optimizer, Muon) and i == 0 else "exp_avg"
        if any(by_parameter[parameter] and name not in by_parameter[parameter] for parameter in group["params"]):
            raise ValueError("the training began with another optimizer")
    packed = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    packed["state"] = {i: by_parameter[parameter] for i, parameter in enumerate(order) if by_parameter[parameter]}
    optimizer.load_state_dict(packed)


def grouped_moments(state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> list[dict[str, Tensor]]:
    """Return the moments by parameter from an optimiser's state dict of earlier versions: matrices, then vectors."""
    order = sorted(parameters, key=lambda parameter: parameter.ndim < 2)
    by_parameter = {parameter: state["state"].get(i, {}) for i, parameter in enumerate(order)}
    return [by_parameter[parameter] for parameter in parameters]


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Compute the rate of a step: linear warm-up times a cosine over the run's limit.

    Args:
        config: the settings; without a limit there is no cosine.
        step: steps made before, >= 0.
        progress: share of the limit that is used up, in [0, 1].
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    low = config.final_learning_rate
    cosine = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2 if config.limited else 1.0
    return config.learning_rate * warm * cosine


class WeightAverage:
    """Exponential moving average of parameters (Polyak and Juditsky 1992).

    The decay of step t is at most (1 + t) / (10 + t), so that the first steps do not weigh for ever.

    Args:
        parameters: that are followed.
        decay: in [0, 1); 0: there is no average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay, self.parameters = decay, list(parameters)
        self.values: list[Tensor] = [p.detach().clone() for p in parameters] if decay else []

    def update(self, step: int) -> None:
        """Follow the parameters after ``step`` steps."""
        if self.values:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def load(self, values: Sequence[Tensor]) -> None:
        """Take over saved values; where an average was not kept before, it starts from the parameters as they are."""
        for value, source in zip(self.values, values or self.parameters, strict=True):
            value.copy_(source)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their average for a while."""
        online = [p.detach().clone() for p in self.parameters] if self.values else []
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=False):
                parameter.copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, online, strict=False):
                    parameter.copy_(value)
