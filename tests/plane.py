"""A task for the training loop that a linear model learns in a moment."""

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset

from vqvae2 import checkpoint, training
from vqvae2.optim import TrainingConfig
from vqvae2.training import Outcome, fit

ITEMS = 20


class Points(Dataset[dict[str, Tensor]]):
    """Points on a plane in double precision."""

    def __init__(self) -> None:
        self.x = torch.randn(ITEMS, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        self.y = self.x @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) + 0.5

    def __len__(self) -> int:
        return ITEMS

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"x": self.x[rows], "y": self.y[rows], "row": torch.tensor(rows)}


class Plane:
    """Fit the plane by a linear model.

    Args:
        seed: of the weights.
        noise: random draws of this size join the inputs, so that the random state matters.
        scores: what the evaluations return, in this order; by default the mean squared error.
        at_call: called with the number of the loss to be computed, from 1.
    """

    unit = "points_per_second"
    rate_flag, restarts, compiled_pays_on_cpu = "--learning-rate", False, True
    has_guide = False
    score = "selection/loss"

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.0,
        scores: list[float] | None = None,
        at_call: Callable[[int], None] = lambda call: None,
    ) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(3, 1, dtype=torch.float64)
        self.dataset = Points()
        self.noise, self.scores, self.at_call = noise, scores, at_call
        self.rows: list[list[int]] = []
        self.before: list[Tensor] = []  # weights before each loss
        self.evaluated: list[Tensor] = []  # weights at each evaluation
        self.factor = 1.0
        self.resumed_from = 0
        self.steps: list[Tensor] = []  # weights after each step

    def modules(self) -> dict[str, nn.Module]:
        return {"plane": self.model}

    def compilable(self) -> list[nn.Module]:
        return [self.model]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, training.Sums]:
        assert self.model.training
        self.at_call(len(self.rows) + 1)
        self.rows.append(batch["row"].tolist())
        self.before.append(self.model.weight.detach().clone())
        x = batch["x"] + self.noise * torch.randn_like(batch["x"])
        error = (self.model(x).squeeze(1) - batch["y"]) * self.factor
        return error.square().mean(), {"train/absolute": (error.detach().abs().sum(), float(len(error)))}

    def after_step(self) -> None:
        self.steps.append(self.model.weight.detach().clone())

    def validate(self) -> dict[str, float]:
        assert not self.model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)  # an evaluation may draw: the training must not notice
        self.evaluated.append(self.model.weight.clone())
        error = (self.model(self.dataset.x).squeeze(1) - self.dataset.y).square().mean().item()
        return {"selection/loss": self.scores[len(self.evaluated) - 1] if self.scores else error, "val/mse": error}

    def brief(self, figures: dict[str, float]) -> str:
        return f"loss {figures['selection/loss']:.4g}"

    def preview(self) -> dict[str, np.ndarray]:
        return {"pictures/grey": np.zeros((2, 3), np.uint8), "colour": np.zeros((2, 3, 3), np.uint8)}

    def histograms(self) -> dict[str, list[int]]:
        return {"used": [0, 5, 3]}

    def save(self, folder: Path) -> None:
        checkpoint.save_pretrained(folder, {"kind": "plane"}, self.model.state_dict())

    def state(self) -> dict[str, Any]:
        return {"losses": self.resumed_from + len(self.rows)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.resumed_from = state["losses"]


SHORT = TrainingConfig(
    batch_size=4, learning_rate=0.05, warmup_steps=3, max_steps=12, evaluations=3, log_every=3, weight_decay=0.1
)


def train(task: Plane, folder: Path, config: TrainingConfig = SHORT, **options: object) -> Outcome:
    return fit(task, config, folder, device=torch.device("cpu"), **{"say": lambda line: None, **options})


def stats(folder: Path) -> list[dict[str, float]]:
    """The lines of stats.jsonl without what depends on the time."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", Plane.unit)} for line in lines]


def saved_weight(folder: Path) -> Tensor:
    return safetensors.torch.load_file(folder / "model.safetensors")["weight"]


def interrupt_at(step: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    return lambda call: os.kill(os.getpid(), number) if call == step else None


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


@contextmanager
def watched_steps() -> Iterator[list[tuple[float, float]]]:
    """Learning rate and gradient norm of every optimiser step that is made in the block."""
    seen: list[tuple[float, float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        seen.append((optimizer.param_groups[0]["lr"], norm))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
