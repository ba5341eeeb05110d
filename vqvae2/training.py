"""The loop that every training shares: optimiser, schedule, precision, evaluation, checkpoints, logs.

What is trained is a `Task`, built by its stage; nothing here knows what a batch or a figure means.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vqvae2 import checkpoint
from vqvae2.device import CompileChoice, autocast, compile_modules
from vqvae2.errors import UserError

__all__ = ["EpochBatches", "Interrupted", "Outcome", "Task", "TrainingConfig", "fit"]

Sums = Mapping[str, tuple[Tensor, float]]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; what it is stands in the model's own config."""

    batch_size: int = 16
    """Items of a batch."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Optimiser; adamw decouples the weight decay."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_learning_rate: float = 0.01
    """Share of the peak at the end of the cosine, in [0, 1]. Without a limit the rate stays at its peak."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.99
    """Adam's decay of the second moment."""
    weight_decay: float = 0.0
    """Weight decay of matrices and kernels, >= 0; vectors are never decayed."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 turns clipping off."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is evaluated and kept, in [0, 1); 0 turns it off."""
    max_steps: int | None = None
    """Limit in optimiser steps."""
    max_minutes: float | None = None
    """Limit in minutes of training, evaluations included and saved across resumes; the schedule fits itself to it."""
    evaluations: int = 20
    """Evaluations of a run that has a limit, spread evenly over it."""
    evaluate_every: int = 500
    """Steps between evaluations of a run without a limit."""
    patience: int = 0
    """Evaluations without improvement before the training stops; 0: never with a limit, 10 without one."""
    log_every: int = 25
    """Steps between two lines of train figures."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.accumulate, self.evaluations, self.evaluate_every, self.log_every) < 1:
            raise ValueError("batch_size, accumulate, evaluations, evaluate_every and log_every must be >= 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if (self.max_steps is not None and self.max_steps < 1) or (
            self.max_minutes is not None and self.max_minutes <= 0
        ):
            raise ValueError("max_steps must be >= 1 and max_minutes > 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")

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


class Task(Protocol):
    """What `fit` trains."""

    unit: str
    """What a batch is counted in, for the throughput: ``images_per_second``."""
    score: str
    """The figure of `validate` that is to become small."""

    @property
    def dataset(self) -> Dataset[Any]:
        """Data whose ``__getitems__(indices)`` returns one batch, a dict of tensors or lists of them."""
        ...

    def modules(self) -> dict[str, nn.Module]:
        """Name the modules that are trained and kept in the state."""
        ...

    def compilable(self) -> list[nn.Module]:
        """Name the modules that torch.compile may take."""
        ...

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        """Compute the loss of a batch (a scalar), and sums with their counts to log."""
        ...

    def validate(self) -> dict[str, float]:
        """Compute the figures of an evaluation, on subjects that are not trained on."""
        ...

    def preview(self) -> dict[str, np.ndarray]:
        """Draw pictures (H, W) or (H, W, 3) uint8 of the state of things."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as it stands."""
        ...


class Interrupted(Exception):  # noqa: N818 - no error
    """The user stopped the training; its state is saved."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended: steps, seconds, the best evaluation and why it stopped."""

    steps: int
    seconds: float
    best_step: int
    best: dict[str, float]
    reason: str


class EpochBatches(Sampler[list[int]]):
    """Endless batches of indices: each epoch a permutation by (seed, epoch), from any batch on.

    Args:
        length: items of the data set, >= 1.
        batch_size: items of a batch; an epoch's last, smaller batch is dropped unless it is the only one.
        seed: of the permutations.
        start: batches that are skipped.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.batch_size = min(batch_size, length)
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.start, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
            for i in range(first, self.batches_per_epoch):
                yield order[i * self.batch_size : (i + 1) * self.batch_size]
            epoch, first = epoch + 1, 0


def fit(
    task: Task,
    config: TrainingConfig,
    folder: Path,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    compile: CompileChoice = "off",
    seed: int = 0,
    num_workers: int = 0,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train a task until its limit, its patience or the user ends it.

    Args:
        task: what is trained; its modules are on ``device``.
        config: how.
        folder: receives model, stats.jsonl, TensorBoard events, figures/ and state/.
        device: of the batches.
        precision: of matrix products; parameters stay as they are.
        compile: whether to use torch.compile.
        seed: of the order of the batches and of the draws of the training.
        num_workers: processes that load batches; 0 loads in this one.
        resume: go on from the newest state in ``folder``.
        say: prints a line for the user.

    Returns:
        How it ended. The folder holds the best model by ``task.score``.

    Raises:
        UserError: nothing to resume, an unwritable folder, or a loss that is not finite.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    return _Run(task, config, folder, device, precision, seed, num_workers, say).go(resume, compile)


class _Run:
    """One training under way. The state that a resume needs is what `_state` returns."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        folder: Path,
        device: torch.device,
        precision: torch.dtype,
        seed: int,
        num_workers: int,
        say: Callable[[str], None],
    ) -> None:
        self.task, self.config, self.folder, self.device, self.precision = (
            task,
            config,
            folder,
            device,
            precision,
        )
        self.seed, self.num_workers, self.say = seed, num_workers, say
        self.modules = task.modules()
        self.parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        self.optimizer = _optimizer(config, self.parameters, device)
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_decay else []
        self.step, self.seconds_before, self.started = 0, 0.0, time.monotonic()
        self.best: dict[str, float] = {}
        self.best_step, self.best_score, self.stale = 0, math.inf, 0
        self.evaluated = 0  # step of the latest evaluation
        self.due = 0  # evaluations of a limited run that were due so far
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the limit that is used up; 0 without one."""
        steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        minutes = self.seconds / 60 / self.config.max_minutes if self.config.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def go(self, resume: bool, compile: CompileChoice) -> Outcome:
        config = self.config
        checkpoint.make_folder(self.folder / "figures")
        torch.manual_seed(self.seed)
        if resume:
            self._load(checkpoint.load_state(self.folder / "state"))
        self._cut_log()
        self.say(config.describe_limit())
        long_run = (config.max_minutes or 0) >= 10 or (config.max_steps or 0) >= 5000 or not config.limited
        self.say(compile_modules(compile, self.task.compilable(), long_run))
        self.writer = SummaryWriter(str(self.folder), purge_step=self.step + 1 if resume else None)
        batches = self._batches()
        reason = "reached its limit"
        bar = tqdm(total=100.0, unit="%", disable=None, bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]{postfix}")
        try:
            with _signals() as interrupted:
                self.window_start, self.window_items = time.monotonic(), 0
                while self.progress < 1:
                    self._train_step(batches)
                    if self.step % config.log_every == 0:
                        self._log_window(bar)
                    if self._evaluation_due():
                        self._evaluate()
                        if config.stop_after and self.stale >= config.stop_after:
                            reason = f"stopped by patience: {self.stale} evaluations without improvement"
                            break
                    if interrupted():
                        self._save()
                        raise Interrupted(f"stopped at step {self.step}; the state is saved")
                if self.evaluated != self.step:
                    self._evaluate()
        finally:
            bar.close()
            self.writer.close()
        return Outcome(self.step, self.seconds, self.best_step, self.best, reason)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        config = self.config
        length = len(self.task.dataset)  # type: ignore[arg-type]
        sampler = EpochBatches(length, config.batch_size, self.seed, self.step * config.accumulate)
        loader = DataLoader(
            self.task.dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_identity,
            pin_memory=self.device.type == "cuda",
            # A generator of its own: loading must not move the training's random state.
            generator=torch.Generator().manual_seed(self.seed),
        )
        for batch in loader:
            yield _to(batch, self.device)

    def _train_step(self, batches: Iterator[dict[str, Tensor]]) -> None:
        config = self.config
        for module in self.modules.values():
            module.train()
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for _ in range(config.accumulate):
            batch = next(batches)
            with autocast(self.device, self.precision):
                loss, sums = self.task.loss(batch)
            (loss / config.accumulate).backward()
            self._add({"train/loss": (loss.detach(), 1.0), **sums})
            self.window_items += len(next(iter(batch.values())))
        if config.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
            self._add({"train/gradient_norm": (norm.detach(), 1.0)})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            # Ramps up, so that the first steps do not weigh for ever.
            decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        low = config.final_learning_rate
        cosine = low + (1 - low) * (1 + math.cos(math.pi * self.progress)) / 2 if config.limited else 1.0
        return config.learning_rate * warm * cosine

    def _add(self, sums: Sums) -> None:
        for name, (value, count) in sums.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
            self.counts[name] = self.counts.get(name, 0.0) + count

    def _log_window(self, bar: Any) -> None:
        figures = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        self._refuse_non_finite("the loss", figures["train/loss"])
        now = time.monotonic()
        figures[self.task.unit] = self.window_items / (now - self.window_start)
        figures["train/learning_rate"] = self._learning_rate()
        self.window_start, self.window_items = now, 0
        self._log(figures)
        bar.update(100 * self.progress - bar.n)
        shown = {name.split("/")[-1]: f"{figures[name]:.4g}" for name in ("train/loss", self.task.unit)}
        bar.set_postfix(step=self.step, **shown)

    def _refuse_non_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at step {self.step}",
                self.folder,
                "The last good state is kept; lower --learning-rate or use --precision fp32, then --resume",
            )

    def _log(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, self.step)
        record = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            **{k: _digits(v) for k, v in figures.items()},
        }
        with open(self.folder / "stats.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def _evaluation_due(self) -> bool:
        if not self.config.limited:
            return self.step % self.config.evaluate_every == 0
        # The last evaluation is the final one.
        count = self.config.evaluations
        due = int(self.progress * count)
        passed, self.due = self.due, max(due, self.due)
        return passed < due < count

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the modules hold their moving average for a while."""
        if not self.average:
            yield
            return
        online = [p.detach().clone() for p in self.parameters]
        _copy(self.parameters, self.average)
        try:
            yield
        finally:
            _copy(self.parameters, online)

    def _evaluate(self) -> None:
        for module in self.modules.values():
            module.eval()
        random_state = _random_state(self.device)
        before = time.monotonic()
        # Eager: other batch sizes, without gradients, would each be compiled again.
        eager = torch.compiler.set_stance("force_eager")
        with eager, self._averaged(), torch.no_grad(), autocast(self.device, self.precision):
            figures = self.task.validate()
            score = figures[self.task.score]
            self._refuse_non_finite(self.task.score, score)
            better = score < self.best_score
            if better:
                self.best_score, self.best_step, self.best, self.stale = score, self.step, figures, 0
                self.task.save(self.folder)
            else:
                self.stale += 1
            for name, picture in self.task.preview().items():
                self.writer.add_image(name, picture, self.step, dataformats="HWC" if picture.ndim == 3 else "HW")
                _write_png(self.folder / "figures" / f"{name.replace('/', '-')}.png", picture)
        _set_random_state(random_state, self.device)
        self._log(figures)
        self.evaluated = self.step
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        mark = "*" if better else " "
        tqdm.write(f"{mark} step {self.step}  {self.seconds / 60:.1f} min  {shown}")
        self._save()
        self.window_start += time.monotonic() - before

    def _state(self) -> dict[str, Any]:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "best": [self.best_step, dict(self.best), self.best_score, self.stale],
            "random": _random_state(self.device),
        }

    def _save(self) -> None:
        checkpoint.save_state(self.folder / "state", self.step, _plain(self._state()))

    def _load(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        _copy(self.average, state["average"])
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.best_step, self.best, self.best_score, self.stale = state["best"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.counts = state["counts"]
        self.started = time.monotonic()
        self.due = int(self.progress * self.config.evaluations)
        self.evaluated = self.step
        _set_random_state(state["random"], self.device)
        self.say(f"resumed at step {self.step}, {self.seconds / 60:.1f} minutes in")

    def _cut_log(self) -> None:
        """Keep the lines of stats.jsonl up to the step that the training starts from."""
        path = self.folder / "stats.jsonl"
        if path.exists():
            lines = path.read_text().splitlines()
            kept = (
                [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
                if self.step
                else []
            )
            checkpoint.write_atomic(path, "".join(line + "\n" for line in kept).encode())


def _optimizer(config: TrainingConfig, parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    fused = device.type in ("cuda", "cpu")
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question that the loop asks between two steps; a second SIGINT stops at once."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@torch.no_grad()
def _copy(targets: list[Any], sources: list[Any]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _plain(value: Any) -> Any:
    """Turn mappings (an OrderedDict of tensors) into dicts, recursively."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    return [_to(v, device) for v in batch] if isinstance(batch, list) else batch.to(device, non_blocking=True)


def _identity(batch: Any) -> Any:
    return batch


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _write_png(path: Path, picture: np.ndarray) -> None:
    from torchvision.io import encode_png

    pixels = torch.from_numpy(np.ascontiguousarray(picture))
    chw = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    checkpoint.write_atomic(path, encode_png(chw.contiguous()).numpy().tobytes())
