"""What `training.fit` trains: the interface of a task, which a stage builds, and the means of what it reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vqvae2 import distributed

__all__ = ["Sums", "Task", "WindowMeans"]

Sums = Mapping[str, tuple[Tensor, float]]
"""By name a sum and a count, whose ratio is logged."""


class Task(Protocol):
    """What `fit` trains."""

    unit: str
    """What a batch is counted in, for the throughput: ``images_per_second``."""
    rate_flag: str
    """The flag of its learning rate, for messages."""
    restarts: bool
    """Whether --resume starts it from the beginning when it has no state yet."""
    score: str
    """The figure of `validate` by which the best model is chosen, lower is better; empty: the latest model is kept."""
    compiled_pays_on_cpu: bool
    """Whether torch.compile makes its steps faster on a CPU, too."""
    has_guide: bool
    """Whether the model, as it is early in the training, is written as a weak guide of sampling, too."""

    @property
    def dataset(self) -> Any:
        """Training data for `batches.load_batches`."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Return by name the modules that are trained and saved in the state."""
        ...

    def compilable(self) -> list[nn.Module]:
        """Return the modules that torch.compile may compile."""
        ...

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        """Return the loss of a batch (a scalar), and by name the sums and counts whose ratios are logged."""
        ...

    def after_step(self) -> None:
        """Update what is learned without gradients, after each step of the optimiser; every process calls it."""
        ...

    def validate(self) -> dict[str, float]:
        """Return the figures of an evaluation on subjects that are not trained on; the same in every process."""
        ...

    def brief(self, figures: dict[str, float]) -> str:
        """Write the most telling figures of `validate` in a few words, for the terminal."""
        ...

    def preview(self) -> dict[str, np.ndarray]:
        """Draw pictures (H, W) or (H, W, 3) uint8 of what the model does now."""
        ...

    def histograms(self) -> Mapping[str, Sequence[int]]:
        """Return how often each of some things occurred in the last evaluation, such as codes, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model with its present weights."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what resuming needs besides the modules: tensors, numbers, lists, dicts. Every process calls it."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a dictionary that `state` returned in the main process of the earlier run."""
        ...


class WindowMeans:
    """Running sums of what a task reports, from one line of figures to the next; means are taken over all processes.

    Attributes:
        sums: by name.
        counts: that they are divided by.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def add(self, sums: Sums) -> None:
        """Add a batch's."""
        for name, (value, count) in sums.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
            self.counts[name] = self.counts.get(name, 0.0) + count

    def gather(self) -> dict[str, float]:
        """Move all sums and counts to the main process; return the means in every process."""
        names = sorted(self.sums)
        own = [[float(self.sums[name]), self.counts[name]] for name in names]
        total = distributed.all_reduce_sum(torch.tensor(own, dtype=torch.float64)) if own else torch.zeros(0, 2)
        main = float(distributed.is_main())
        if distributed.world_size() > 1:
            for name, (value, count) in zip(names, total, strict=True):
                self.sums[name], self.counts[name] = value.to(self.sums[name]) * main, float(count) * main
        return {name: float(value / count) for name, (value, count) in zip(names, total, strict=True)}

    def reset(self) -> None:
        """Start again from nothing."""
        self.sums, self.counts = {}, {}

    def load(self, sums: Mapping[str, Tensor], counts: Mapping[str, float], device: torch.device) -> None:
        """Restore the sums and counts of a saved training; the main process holds them all."""
        main = float(distributed.is_main())
        self.sums = {name: value.to(device) * main for name, value in sums.items()}
        self.counts = {name: count * main for name, count in counts.items()}
