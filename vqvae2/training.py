"""The loop that every training shares: optimiser, schedule, precision, evaluation, checkpoints, logs.

What is trained is a `Task`, built by its stage; nothing here knows what a batch or a figure means.
"""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqvae2 import checkpoint, distributed, files
from vqvae2.batches import batch_length, load_batches
from vqvae2.device import CompileChoice, autocast, compile_modules
from vqvae2.errors import UserError
from vqvae2.logbook import Logbook
from vqvae2.optim import TrainingConfig, WeightAverage, learning_rate, make_optimizer

__all__ = ["Interrupted", "Outcome", "Task", "TrainingConfig", "fit"]

Sums = Mapping[str, tuple[Tensor, float]]


class Task(Protocol):
    """What `fit` trains."""

    unit: str
    """What a batch is counted in, for the throughput: ``images_per_second``."""
    rate_flag: str
    """The flag of its learning rate, for messages."""
    restarts: bool
    """Whether --resume begins it anew where it has no state yet."""
    score: str
    """The figure of `validate` that is to become small; empty where none tells good from bad: the latest is kept."""

    @property
    def dataset(self) -> Any:
        """Data as `batches.load_batches` takes them."""
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

    def after_step(self) -> None:
        """Update what is learned without gradients, after each step of the optimiser; every process calls it."""
        ...

    def validate(self) -> dict[str, float]:
        """Compute the figures of an evaluation, on subjects that are not trained on; the same in every process."""
        ...

    def preview(self) -> dict[str, np.ndarray]:
        """Draw pictures (H, W) or (H, W, 3) uint8 of the state of things."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as it stands."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a resume needs besides the modules: tensors, numbers, lists and dicts. Every process calls it."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned, in the main process of the earlier run."""
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


_MISFITS = (RuntimeError, ValueError, KeyError)  # what loading raises for a state of another model or version


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
        self.task, self.config, self.folder = task, config, folder
        self.device, self.precision = device, precision
        self.seed, self.num_workers, self.say = seed, num_workers, say
        self.modules = task.modules()
        self.parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        self.loss = self._shared_loss()
        self.optimizer = make_optimizer(config, self.parameters, device)
        self.average = WeightAverage(self.parameters, config.ema_decay)
        self.step, self.seconds_before, self.started = 0, 0.0, time.monotonic()
        self.elapsed = 0.0  # seconds of training by the main process's clock, as of the latest step
        self.best: dict[str, float] = {}
        self.best_step, self.best_score, self.stale = 0, math.inf, 0
        self.evaluated = 0  # step of the latest evaluation
        self.due = 0  # evaluations of a limited run that were due so far
        self.saved, self.saved_step = 0.0, -1  # seconds and step of the latest state
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}

    def _shared_loss(self) -> nn.Module:
        """The task's loss as a module, whose gradients are the means over all processes."""
        loss = _Loss(self.task, self.modules)
        if distributed.world_size() == 1:
            return loss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the name that follows is not there in older versions
            # Codebooks and the like see to themselves.
            return nn.parallel.DistributedDataParallel(loss, broadcast_buffers=False)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the limit that is used up; 0 without one. The same in every process."""
        steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        minutes = self.elapsed / 60 / self.config.max_minutes if self.config.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def _agree(self, interrupted: bool) -> bool:
        """Take the main process's time; tell whether any process was interrupted."""
        if distributed.world_size() == 1:
            self.elapsed = self.seconds
            return interrupted
        own = torch.tensor([self.seconds if distributed.is_main() else 0.0, interrupted], dtype=torch.float64)
        self.elapsed, count = distributed.all_reduce_sum(own).tolist()
        return count > 0

    def go(self, resume: bool, compile: CompileChoice) -> Outcome:
        config = self.config
        torch.manual_seed(self.seed)
        if resume:
            state = distributed.on_main(lambda: checkpoint.load_state(self.folder / "state"))
            way_out = "Resume with the settings it began with, or start again with --overwrite"
            with files.told_as("the saved state does not fit", self.folder, way_out, _MISFITS):
                self._load(state)
        elif distributed.rank():  # dropout differs between the processes
            torch.manual_seed(self.seed + 1_000_003 * distributed.rank())
        self.say(config.describe_limit())
        long_run = (config.max_minutes or 0) >= 10 or (config.max_steps or 0) >= 5000 or not config.limited
        self.say(compile_modules(compile, self.task.compilable(), long_run))
        self.logbook = Logbook(self.folder, self.step) if distributed.is_main() else None
        distributed.barrier()
        start = self.step * config.accumulate
        batches = load_batches(self.task.dataset, config.batch_size, self.seed, start, self.device, self.num_workers)
        reason = "reached its limit"
        bar = tqdm(
            total=100.0,
            unit="%",
            disable=distributed.quiet(),
            bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]{postfix}",
        )
        try:
            with _signals() as interrupted:
                self.window_start, self.window_items = time.monotonic(), 0
                self._agree(False)
                while self.progress < 1 and not self._out_of_patience:
                    self._train_step(batches)
                    stopping = self._agree(interrupted())
                    if self.step % config.log_every == 0:
                        self._log_window(bar)
                    if self._evaluation_due():
                        self._evaluate()
                    if stopping:
                        self._stop()
                    if self.elapsed >= self.saved + 60 * config.save_minutes:
                        self._save()
                if self._out_of_patience:
                    reason = f"stopped by patience: {self.stale} evaluations without improvement"
                if self.evaluated != self.step:
                    self._evaluate()
                    if self._agree(interrupted()):
                        self._stop()
        finally:
            batches.close()  # ends the loading processes, which would be waited for otherwise after an error
            bar.close()
            if self.logbook is not None:
                self.logbook.close()
        return Outcome(self.step, self.seconds, self.best_step, self.best, reason)

    @property
    def _out_of_patience(self) -> bool:
        return 0 < self.config.stop_after <= self.stale

    def _stop(self) -> NoReturn:
        if self.saved_step != self.step:
            self._save()
        raise Interrupted(f"stopped at step {self.step}; the state is saved")

    def _train_step(self, batches: Iterator[dict[str, Any]]) -> None:
        config = self.config
        for module in self.modules.values():
            module.train()
        rate = learning_rate(config, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for i in range(config.accumulate):
            batch = next(batches)
            with self._unsynced() if i + 1 < config.accumulate else nullcontext():
                with autocast(self.device, self.precision):
                    loss, sums = self.loss(batch)
                (loss / config.accumulate).backward()
            self._add({"train/loss": (loss.detach(), 1.0), **sums})
            self.window_items += batch_length(batch) * distributed.world_size()
        if config.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
            self._add({"train/gradient_norm": (norm.detach(), 1.0)})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        self.step += 1
        self.average.update(self.step)

    def _unsynced(self) -> AbstractContextManager[None]:
        """Leave the gradients to add up in each process by itself."""
        loss = self.loss
        return loss.no_sync() if isinstance(loss, nn.parallel.DistributedDataParallel) else nullcontext()

    def _add(self, sums: Sums) -> None:
        for name, (value, count) in sums.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
            self.counts[name] = self.counts.get(name, 0.0) + count

    def _gather_sums(self) -> dict[str, float]:
        """Make the window's sums and counts the main process's; return the means so far, in every process."""
        names = sorted(self.sums)
        own = [[float(self.sums[name]), self.counts[name]] for name in names]
        total = distributed.all_reduce_sum(torch.tensor(own, dtype=torch.float64)) if own else torch.zeros(0, 2)
        main = float(distributed.is_main())
        if distributed.world_size() > 1:
            for name, (value, count) in zip(names, total, strict=True):
                self.sums[name], self.counts[name] = value.to(self.sums[name]) * main, float(count) * main
        return {name: float(value / count) for name, (value, count) in zip(names, total, strict=True)}

    def _log_window(self, bar: Any) -> None:
        figures = self._gather_sums()
        self.sums, self.counts = {}, {}
        self._check_loss(figures["train/loss"])
        now = time.monotonic()
        figures[self.task.unit] = self.window_items / (now - self.window_start)
        figures["train/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        self.window_start, self.window_items = now, 0
        if self.logbook is None:
            return
        self.logbook.figures(self.step, self.seconds, figures)
        bar.update(100 * self.progress - bar.n)
        shown = {name.split("/")[-1]: f"{figures[name]:.4g}" for name in ("train/loss", self.task.unit)}
        bar.set_postfix(step=self.step, **shown)

    def _check_loss(self, value: float) -> None:
        self._refuse_non_finite("the loss", value)

    def _check_model(self) -> None:
        """Refuse to write a model that is broken: its loss so far, its weights and its codebooks."""
        self._check_loss(self._gather_sums().get("train/loss", 0.0))
        for module in self.modules.values():
            for name, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    self._refuse_non_finite(f"a value of {name}", float(tensor.sum()))

    def _refuse_non_finite(self, name: str, value: float) -> None:
        if math.isfinite(value):
            return
        kept = self.task.restarts or checkpoint.has_state(self.folder / "state")
        narrow = " or --precision fp32" if self.precision != torch.float32 else ""
        raise UserError(
            f"{name} is {value} at step {self.step}, most likely since the steps were too large",
            self.folder,
            f"{'The last good state is kept; g' if kept else 'G'}ive a lower {self.task.rate_flag}{narrow}, and "
            f"{'--resume' if kept else 'start again'}",
        )

    def _evaluation_due(self) -> bool:
        if not self.config.limited:
            return self.step % self.config.evaluate_every == 0
        # The last evaluation is the final one.
        count = self.config.evaluations
        due = int(self.progress * count)
        passed, self.due = self.due, max(due, self.due)
        return passed < due < count

    def _evaluate(self) -> None:
        for module in self.modules.values():
            module.eval()
        random_state = _random_state(self.device)
        before = time.monotonic()
        # Eager: other batch sizes, without gradients, would each be compiled again.
        eager = torch.compiler.set_stance("force_eager")
        with eager, self.average.applied(), torch.no_grad():
            with autocast(self.device, self.precision):
                figures = self.task.validate()
            for name in [self.task.score] if self.task.score else figures:
                self._refuse_non_finite(name, figures[name])
            self._check_model()
            score = figures[self.task.score] if self.task.score else -float(self.step)
            better = score < self.best_score
            if better:
                self.best_score, self.best_step, self.best, self.stale = score, self.step, figures, 0
            else:
                self.stale += 1
            distributed.on_main(lambda: self._publish(figures, better))
        _set_random_state(random_state, self.device)
        self.evaluated = self.step
        self._save()
        self.window_start += time.monotonic() - before

    def _publish(self, figures: dict[str, float], better: bool) -> None:
        """Write what an evaluation found, and the model if it is the best so far."""
        assert self.logbook is not None
        if better:
            self.task.save(self.folder)
        # Without autocast, which would cast all weights again for each of a sampler's many small steps.
        for name, picture in self.task.preview().items():
            self.logbook.picture(self.step, name, picture)
        self.logbook.figures(self.step, self.seconds, figures)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        tqdm.write(f"{'*' if better else ' '} step {self.step}  {self.seconds / 60:.1f} min  {shown}")

    def _state(self, random_states: dict[str, Tensor], task_state: dict[str, Any]) -> dict[str, Any]:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.values,
            "seconds": self.seconds,
            "sums": self.sums,
            "counts": self.counts,
            "evaluated": self.evaluated,
            "best": [self.best_step, dict(self.best), self.best_score, self.stale],
            "random": random_states,
            "task": task_state,
        }

    def _save(self) -> None:
        self._check_model()
        own = _random_state(self.device)
        random_states = {name: distributed.all_gather_rows(state[None]) for name, state in own.items()}
        state = _dicts(self._state(random_states, self.task.state()))
        distributed.on_main(lambda: checkpoint.save_state(self.folder / "state", self.step, state) and None)
        self.saved, self.saved_step = self.elapsed, self.step

    def _load(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        # The moments are the state's, the settings are the config's: a resume may change them.
        own = ("params", "lr")
        settings = [{k: v for k, v in group.items() if k not in own} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, chosen in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(chosen)
        if self.average.values:
            self.average.load(state["average"])
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.best_step, self.best, self.best_score, self.stale = state["best"]
        self.task.load_state(state["task"])
        main = float(distributed.is_main())
        self.sums = {name: value.to(self.device) * main for name, value in state["sums"].items()}
        self.counts = {name: count * main for name, count in state["counts"].items()}
        self.started = time.monotonic()
        self._agree(False)
        self.due = int(self.progress * self.config.evaluations)
        self.evaluated = state["evaluated"]
        self.saved, self.saved_step = self.elapsed, self.step
        rank = distributed.rank()
        if all(len(states) > rank for states in state["random"].values()):  # there were as many processes
            _set_random_state({name: states[rank].clone() for name, states in state["random"].items()}, self.device)
        else:
            torch.manual_seed(self.seed + 1_000_003 * rank + self.step)
        self.say(f"resumed at step {self.step}, {self.seconds / 60:.1f} minutes in")


class _Loss(nn.Module):
    """A task's loss as a module that holds what is trained, as DistributedDataParallel wants it."""

    def __init__(self, task: Task, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.task, self.parts = task, nn.ModuleDict(modules)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        return self.task.loss(batch)


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


def _dicts(value: Any) -> Any:
    """Turn mappings (an OrderedDict of tensors) into dicts, recursively."""
    if isinstance(value, Mapping):
        return {key: _dicts(item) for key, item in value.items()}
    return [_dicts(item) for item in value] if isinstance(value, list | tuple) else value
