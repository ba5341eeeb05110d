"""The loop that every training shares: optimiser, schedule, precision, evaluation, checkpoints, logs.

It trains a `Task`, built by a stage, and knows nothing of models, batches or figures.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vqvae2 import checkpoint, distributed, files
from vqvae2.batches import batch_length, load_batches
from vqvae2.device import CompileChoice, autocast, compile_modules, random_state, set_random_state
from vqvae2.errors import UserError
from vqvae2.interrupts import Interrupted, signals
from vqvae2.logbook import Logbook
from vqvae2.optim import (
    TrainingConfig,
    WeightAverage,
    grouped_moments,
    learning_rate,
    load_moments,
    make_optimizer,
    moments,
)
from vqvae2.progress import Minutes, in_words
from vqvae2.task import Sums, Task, WindowMeans

__all__ = ["Outcome", "fit"]


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
    """Train a task until its limit is reached, its patience runs out or a signal stops it.

    Args:
        task: what is trained; its modules are on ``device``.
        config: how it is trained.
        folder: where model, stats.jsonl, TensorBoard events, figures/ and state/ are written.
        device: of the batches.
        precision: of matrix products; parameters keep their own.
        compile: whether to use torch.compile.
        seed: of the order of the batches and of the random numbers of the training.
        num_workers: processes that load batches; 0: this one loads them.
        resume: continue from the newest state in ``folder``.
        say: prints a line for the user.

    Returns:
        How it ended. The best model by ``task.score`` is in the folder.

    Raises:
        UserError: there is nothing to resume, the folder cannot be written, or the loss is not finite.
        Interrupted: SIGINT or SIGTERM was received; the state is saved.
    """
    return _Run(task, config, folder, device, precision, seed, num_workers, say).go(resume, compile)


_LEAST_MINUTES, _LEAST_STEPS = 10, 4000  # of a run in which compiling pays; a limit of either kind may end it earlier
_MISFITS = (RuntimeError, ValueError, KeyError)  # raised on loading a state of another model or version


class _Run:
    """A training in progress. `_state` returns all that is needed to resume it."""

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
        self.minutes = Minutes()
        self.modules = task.modules()
        self.parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        self.loss = self._shared_loss()
        self.optimizer = make_optimizer(config, self.modules.values(), device, precision)
        # Small gradients would be zero in float16.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.average = WeightAverage(self.parameters, config.ema_decay)
        self.step, self.seconds_before, self.started = 0, 0.0, time.monotonic()
        self.elapsed = 0.0  # seconds of training by the main process's clock, as of the latest step
        self.best: dict[str, float] = {}
        self.best_step, self.best_score, self.stale = 0, math.inf, 0
        self.evaluated = 0  # step of the latest evaluation
        self.due = 0  # evaluations of a limited run that were due so far
        self.saved, self.saved_step = 0.0, -1  # seconds and step of the latest state
        self.guided = not task.has_guide  # whether there is a guide, or need be none
        self.window = WindowMeans()

    def _shared_loss(self) -> nn.Module:
        """Wrap the task's loss in a module whose gradients are averaged over all processes."""
        loss = _Loss(self.task, self.modules)
        if distributed.world_size() == 1:
            return loss
        for buffer in loss.buffers():  # once; the weights are copied by what follows
            if buffer.is_floating_point():
                buffer.copy_(distributed.tensor_from_main(buffer))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older versions do not know the name that it advises
            # Codebooks synchronise their buffers themselves.
            return nn.parallel.DistributedDataParallel(loss, broadcast_buffers=False, gradient_as_bucket_view=True)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the limit used so far, in [0, 1]; 0 without a limit. The same in every process."""
        steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        minutes = self.elapsed / 60 / self.config.max_minutes if self.config.max_minutes else 0.0
        return min(1.0, max(steps, minutes))

    def _agree(self, interrupted: bool) -> bool:
        """Copy the main process's clock; return whether any process was interrupted."""
        if distributed.world_size() == 1:
            self.elapsed = self.seconds
            return interrupted
        own = torch.tensor([self.seconds if distributed.is_main() else 0.0, interrupted], dtype=torch.float64)
        self.elapsed, count = distributed.all_reduce_sum(own).tolist()
        return count > 0

    def go(self, resume: bool, compile: CompileChoice) -> Outcome:
        config = self.config
        torch.backends.cudnn.benchmark = self.device.type == "cuda"  # shapes stay the same
        torch.manual_seed(self.seed)
        if resume:
            state = distributed.on_main(lambda: checkpoint.load_state(self.folder / "state"))
            way_out = "Resume with the settings it began with, or start again with --overwrite"
            with files.told_as("the saved state does not fit", self.folder, way_out, _MISFITS):
                self._load(state)
        elif distributed.rank():  # dropout differs between the processes
            torch.manual_seed(self.seed + 1_000_003 * distributed.rank())
        self.say(config.describe_limit())
        self.say(compile_modules(compile, self.task.compilable(), self._against_compiling()))
        score = self.task.score
        self.say(f"* marks the lowest {score} so far: that model is kept" if score else "the latest model is kept")
        self.logbook = Logbook(self.folder, self.step) if distributed.is_main() else None
        if self.logbook is not None and not resume:
            configs = [config, *(getattr(module, "config", None) for module in self.task.modules().values())]
            known = [entry for entry in configs if is_dataclass(entry) and not isinstance(entry, type)]
            settings = {name: value for entry in known for name, value in asdict(entry).items()}
            self.logbook.settings(settings, [score] if score else [])
        distributed.barrier()
        start = self.step * config.accumulate
        batches = load_batches(self.task.dataset, config.batch_size, self.seed, start, self.device, self.num_workers)
        reason = "reached its limit"
        bar = tqdm(
            total=100.0,
            unit="%",
            disable=None if distributed.is_main() else True,  # none: only where there is a terminal
            bar_format="{l_bar}{bar}| [{elapsed}<{remaining}]{postfix}",
        )
        try:
            with signals() as interrupted:
                self.window_start, self.window_items = time.monotonic(), 0
                self._agree(False)
                while (self.progress < 1 or not self.step) and not self._out_of_patience:
                    self._train_step(batches)
                    stopping = self._agree(interrupted())
                    if self.step % config.log_every == 0:
                        self._log_window(bar)
                    if not self.guided and self._guide_due:
                        self._keep_guide()
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
            batches.close()  # ends the loading processes; after an error the interpreter would wait for them
            bar.close()
            if self.logbook is not None:
                self.logbook.close()
        self.say(f"{reason} at step {self.step:,} after {self.seconds / 60:.1f} minutes")
        self.say(f"kept the model of step {self.best_step:,}: {self.task.brief(self.best)}")
        return Outcome(self.step, self.seconds, self.best_step, self.best, reason)

    def _against_compiling(self) -> str:
        """Say why torch.compile, which itself takes a minute or two, would not pay; empty where it does."""
        if self.device.type == "cpu" and not self.task.compiled_pays_on_cpu:
            return "on a CPU torch.compile makes this model no faster"
        minutes, steps = self.config.max_minutes or math.inf, self.config.max_steps or math.inf
        if minutes < _LEAST_MINUTES or steps < _LEAST_STEPS:
            return f"torch.compile pays in runs of {_LEAST_MINUTES} minutes and {_LEAST_STEPS:,} steps or more"
        return ""

    @property
    def _guide_due(self) -> bool:
        """Whether the guide's share of the limit is over; without a limit, the steps to the first evaluation."""
        if self.config.limited:
            return self.progress >= self.config.guide_share
        return self.step >= self.config.evaluate_every

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
            group["lr"] = rate * group.get("lr_scale", 1.0)
        for i in range(config.accumulate):
            batch = next(batches)
            with self._unsynced() if i + 1 < config.accumulate else nullcontext():
                with autocast(self.device, self.precision):
                    loss, sums = self.loss(batch)
                self.scaler.scale(loss / config.accumulate).backward()
            self.window.add({"train/loss": (loss.detach(), 1.0), **sums})
            self.window_items += batch_length(batch) * distributed.world_size()
        self.scaler.unscale_(self.optimizer)
        if config.clip_norm:
            # Each module by itself: the gradient of one must not set the step of another.
            norms = [nn.utils.clip_grad_norm_(m.parameters(), config.clip_norm) for m in self.modules.values()]
            norm = norms[0].detach()
            if not self.scaler.is_enabled() or norm.isfinite():
                self.window.add({"train/gradient_norm": (norm, 1.0)})
        self.scaler.step(self.optimizer)  # passed over where a gradient is not finite
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        self.step += 1
        self.average.update(self.step)

    def _unsynced(self) -> AbstractContextManager[None]:
        """Accumulate gradients in each process without averaging them yet."""
        loss = self.loss
        return loss.no_sync() if isinstance(loss, nn.parallel.DistributedDataParallel) else nullcontext()

    def _log_window(self, bar: Any) -> None:
        figures = self.window.gather()
        self.window.reset()
        self._refuse_non_finite("the loss", figures["train/loss"])
        now = time.monotonic()
        figures[self.task.unit] = self.window_items / (now - self.window_start)
        figures["train/learning_rate"] = self.optimizer.param_groups[-1]["lr"]
        self.window_start, self.window_items = now, 0
        if self.logbook is None:
            return
        self.logbook.figures(self.step, self.seconds, figures)
        bar.update(100 * self.progress - bar.n)
        shown = {name.split("/")[-1]: f"{figures[name]:.4g}" for name in ("train/loss", self.task.unit)}
        bar.set_postfix(step=self.step, **shown)
        if bar.disable and self.minutes.passed():  # no terminal
            words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
            left = f", {in_words(self.seconds / self.progress - self.seconds)} left" if self.progress else ""
            self.say(f"  step {self.step:,}, {words}{left}")

    def _check_model(self) -> None:
        """Raise UserError if the loss, a weight or a codebook is not finite: such a model is never written."""
        self._refuse_non_finite("the loss", self.window.gather().get("train/loss", 0.0))
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
            f"{name} is {value} at step {self.step}; the learning rate is probably too high",
            self.folder,
            f"{'The last good state is kept. Add --resume and' if kept else 'Start again with'} a lower "
            f"{self.task.rate_flag}{' and --muon-learning-rate' * (self.config.optimizer == 'muon')}{narrow}",
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
        before_it = random_state(self.device)
        before = time.monotonic()
        # Eager: every other batch size, and running without gradients, would be compiled anew.
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
        set_random_state(before_it, self.device)
        self.evaluated = self.step
        self._save()
        self.window_start += time.monotonic() - before

    def _keep_guide(self) -> None:
        """Write the model as it is now, besides the best one."""
        self._check_model()
        with self.average.applied():
            distributed.on_main(lambda: self.task.save(self.folder / checkpoint.GUIDE))
        self.guided = True

    def _publish(self, figures: dict[str, float], better: bool) -> None:
        """Write an evaluation's figures and pictures, and the model if it is the best so far."""
        assert self.logbook is not None
        if better:
            self.task.save(self.folder)
        # Without autocast, which would cast all weights anew in each of a sampler's many small steps.
        for name, picture in self.task.preview().items():
            self.logbook.picture(self.step, name, picture)
        for name, counts in self.task.histograms().items():
            self.logbook.histogram(self.step, name, counts)
        self.logbook.figures(self.step, self.seconds, figures)
        mark = "*" if better and self.task.score else " "
        tqdm.write(f"{mark} step {self.step:,}  {self.seconds / 60:.1f} min  {self.task.brief(figures)}")

    def _state(self, random_states: dict[str, Tensor], task_state: dict[str, Any]) -> dict[str, Any]:
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "moments": moments(self.optimizer, self.parameters),
            "average": self.average.values,
            "scaler": self.scaler.state_dict(),
            "seconds": self.seconds,
            "sums": self.window.sums,
            "counts": self.window.counts,
            "evaluated": self.evaluated,
            "guided": self.guided,
            "best": [self.best_step, dict(self.best), self.best_score, self.stale],
            "random": random_states,
            "task": task_state,
        }

    def _save(self) -> None:
        self._check_model()
        own = random_state(self.device)
        random_states = {name: distributed.all_gather_rows(state[None]) for name, state in own.items()}
        state = _dicts(self._state(random_states, self.task.state()))
        distributed.on_main(lambda: checkpoint.save_state(self.folder / "state", self.step, state) and None)
        self.saved, self.saved_step = self.elapsed, self.step

    def _load(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        # The moments come from the state, the settings from the config, which may have changed.
        earlier = grouped_moments(state["optimizer"], self.parameters) if "optimizer" in state else None
        load_moments(self.optimizer, self.parameters, earlier or state["moments"])
        if self.average.values:
            self.average.load(state["average"])
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.best_step, self.best, self.best_score, self.stale = state["best"]
        self.task.load_state(state["task"])
        self.window.load(state["sums"], state["counts"], self.device)
        self.started = time.monotonic()
        self._agree(False)
        self.due = int(self.progress * self.config.evaluations)
        self.evaluated = state["evaluated"]
        self.saved, self.saved_step = self.elapsed, self.step
        self.guided = self.guided or state.get("guided", True)  # states of earlier versions: there is none
        rank = distributed.rank()
        if all(len(states) > rank for states in state["random"].values()):  # as many processes as before
            set_random_state({name: states[rank].clone() for name, states in state["random"].items()}, self.device)
        else:
            torch.manual_seed(self.seed + 1_000_003 * rank + self.step)
        self.say(f"resumed at step {self.step}, {self.seconds / 60:.1f} minutes in")


class _Loss(nn.Module):
    """A task's loss as a module that holds the trained modules, for DistributedDataParallel."""

    def __init__(self, task: Task, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.task, self.parts = task, nn.ModuleDict(modules)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        return self.task.loss(batch)


def _dicts(value: Any) -> Any:
    """Turn mappings, such as an OrderedDict of tensors, into dicts, recursively."""
    if isinstance(value, Mapping):
        return {key: _dicts(item) for key, item in value.items()}
    return [_dicts(item) for item in value] if isinstance(value, list | tuple) else value
