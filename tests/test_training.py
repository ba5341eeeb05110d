"""The loop on a toy: what is learned, when it ends, what is kept and what is told."""

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from plane import SHORT, Plane, flat, interrupt_at, saved_weight, stats, train, watched_steps
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from vqvae2 import checkpoint, training
from vqvae2.batches import EpochBatches
from vqvae2.errors import UserError
from vqvae2.interrupts import Interrupted
from vqvae2.optim import TrainingConfig


@pytest.fixture
def steps() -> Iterator[list[tuple[float, float]]]:
    with watched_steps() as seen:
        yield seen


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_loss_falls(tmp_path, optimizer):
    rates = {"learning_rate": 0.2, "muon_learning_rate": 0.5}
    config = replace(SHORT, optimizer=optimizer, max_steps=150, weight_decay=0.0, clip_norm=0, **rates)
    task = Plane()
    outcome = train(task, tmp_path, config)
    lines = [line for line in stats(tmp_path) if "train/loss" in line]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"] / 100
    assert outcome.best["val/mse"] < 0.01
    assert outcome.steps == 150
    torch.testing.assert_close(saved_weight(tmp_path), torch.tensor([[1.0, -2.0, 3.0]]).double(), atol=0.1, rtol=0)


def test_learning_rate_warms_up_and_follows_the_cosine(tmp_path, steps):
    config = replace(SHORT, max_steps=20, warmup_steps=5, learning_rate=0.3, final_learning_rate=0.1, log_every=1)
    train(Plane(), tmp_path, config)
    expected = [0.3 * min(1, (t + 1) / 5) * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 20)) / 2) for t in range(20)]
    np.testing.assert_allclose([rate for rate, _ in steps], expected, rtol=1e-12)
    logged = [line["train/learning_rate"] for line in stats(tmp_path) if "train/learning_rate" in line]
    np.testing.assert_allclose(logged, expected, rtol=1e-5)  # stats.jsonl keeps six digits


def test_learning_rate_without_a_limit_stays_at_its_peak(tmp_path, steps):
    config = replace(SHORT, max_steps=None, patience=2, evaluate_every=5)
    train(Plane(scores=[1.0, 2.0, 3.0]), tmp_path, config)
    np.testing.assert_allclose([rate for rate, _ in steps], [0.05 / 3, 0.1 / 3] + [0.05] * 13, rtol=1e-12)


def test_gradients_are_clipped_to_the_norm_and_logged_unclipped(tmp_path, steps):
    config = replace(SHORT, clip_norm=0.5, log_every=1)
    train(Plane(), tmp_path / "clipped", config)
    clipped = [norm for _, norm in steps]
    logged = [line["train/gradient_norm"] for line in stats(tmp_path / "clipped") if "train/loss" in line]
    assert min(logged) > 0.5
    np.testing.assert_allclose(clipped, 0.5, rtol=1e-4)  # torch adds 1e-6 to the norm that it divides by
    steps.clear()
    train(Plane(), tmp_path / "free", replace(config, clip_norm=0.0))
    assert max(norm for _, norm in steps) > 0.5


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    # Epochs of 20 divide by 4 and by 2 x 2, so both see the same items.
    large, small = Plane(), Plane()
    train(large, tmp_path / "large", replace(SHORT, batch_size=4))
    train(small, tmp_path / "small", replace(SHORT, batch_size=2, accumulate=2))
    assert flat(large.rows) == flat(small.rows)
    assert len(small.steps) == len(large.steps) == 12  # what follows a step follows it once
    torch.testing.assert_close(small.steps, large.steps, rtol=1e-10, atol=1e-12)
    for a, b in zip(stats(tmp_path / "large"), stats(tmp_path / "small"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_weight_decay_spares_vectors(tmp_path):
    config = replace(SHORT, weight_decay=0.5)
    decayed, free = Plane(), Plane()
    train(decayed, tmp_path / "decayed", replace(config, max_steps=1))
    train(free, tmp_path / "free", replace(config, max_steps=1, weight_decay=0.0))
    rate = 0.05 / 3
    torch.testing.assert_close(decayed.model.weight, free.model.weight - rate * 0.5 * free.before[0])
    assert torch.equal(decayed.model.bias, free.model.bias)


def test_moving_average_of_the_weights_is_evaluated_and_kept_and_never_trained_on(tmp_path):
    averaged, online = Plane(), Plane()
    config = replace(SHORT, ema_decay=0.4, evaluations=12)
    train(averaged, tmp_path / "averaged", config)
    train(online, tmp_path / "online", replace(config, ema_decay=0.0))
    assert torch.equal(averaged.model.weight, online.model.weight)
    weights = [*online.before[1:], online.model.weight.detach()]
    average, expected = online.before[0], []
    for t, weight in enumerate(weights, start=1):
        decay = min(0.4, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * weight
        expected.append(average)
    assert len(averaged.evaluated) == 12
    for weight, by_hand in zip(averaged.evaluated, expected, strict=True):
        torch.testing.assert_close(weight, by_hand)
    assert not torch.equal(saved_weight(tmp_path / "averaged"), saved_weight(tmp_path / "online"))
    best = int(np.argmin([line["selection/loss"] for line in stats(tmp_path / "averaged") if "val/mse" in line]))
    assert torch.equal(saved_weight(tmp_path / "averaged"), averaged.evaluated[best])


def test_the_best_model_by_the_score_is_kept(tmp_path):
    task = Plane(scores=[3.0, 1.0, 2.0])
    outcome = train(task, tmp_path)
    assert outcome.best_step == 8
    assert outcome.best["selection/loss"] == 1.0
    assert torch.equal(saved_weight(tmp_path), task.evaluated[1])
    assert not torch.equal(task.evaluated[1], task.evaluated[2])
    assert [line["step"] for line in stats(tmp_path) if "val/mse" in line] == [4, 8, 12]


@pytest.mark.parametrize(("patience", "last"), [(3, 10), (0, 24)])
def test_patience_ends_a_training_without_a_limit(tmp_path, patience, last):
    scores = [5.0, 4.0] + [4.0] * 20  # the second is the best; an equal one is no improvement
    config = replace(SHORT, max_steps=None, patience=patience, evaluate_every=2)
    said: list[str] = []
    outcome = train(Plane(scores=scores), tmp_path, config, say=said.append)
    assert outcome.steps == last  # ten evaluations where nothing is said
    assert outcome.best_step == 4
    assert "patience" in outcome.reason
    assert f"{patience or 10} evaluations without improvement" in said[0]


def test_evaluations_leave_no_trace_in_the_training(tmp_path):
    seldom, often = Plane(noise=0.3), Plane(noise=0.3)
    train(seldom, tmp_path / "seldom", replace(SHORT, ema_decay=0.9, evaluations=1))
    train(often, tmp_path / "often", replace(SHORT, ema_decay=0.9, evaluations=12))
    assert len(often.evaluated) == 12
    assert torch.equal(often.model.weight, seldom.model.weight)


def test_patience_is_off_by_default_where_there_is_a_limit(tmp_path):
    assert train(Plane(scores=[float(i) for i in range(12)]), tmp_path, replace(SHORT, evaluations=12)).steps == 12
    config = replace(SHORT, evaluations=12, patience=2)
    assert train(Plane(scores=[float(i) for i in range(12)]), tmp_path / "b", config).steps == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stop", ["log", "evaluation", "interrupt"])
def test_a_loss_that_is_not_finite_ends_in_one_line_and_leaves_a_good_state(tmp_path, value, stop):
    log_every = {"log": 1, "evaluation": 100, "interrupt": 100}[stop]

    def break_at(call: int) -> None:
        if call == 6:
            task.factor = value
            if stop == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)

    task = Plane(at_call=break_at)
    with pytest.raises(UserError, match="learning-rate") as error:
        train(task, tmp_path, replace(SHORT, log_every=log_every))
    assert "\n" not in str(error.value)
    state = checkpoint.load_state(tmp_path / "state")
    assert state["step"] == 4
    assert torch.isfinite(state["modules"]["plane"]["weight"]).all()
    assert torch.isfinite(saved_weight(tmp_path)).all()


def test_a_score_that_is_not_finite_is_never_kept(tmp_path):
    with pytest.raises(UserError, match="selection/loss is nan at step 8"):
        train(Plane(scores=[1.0, math.nan, 0.5]), tmp_path)
    assert checkpoint.load_state(tmp_path / "state")["step"] == 4


@pytest.mark.parametrize("stop", ["evaluation", "interrupt", "time"])
def test_weights_that_are_not_finite_are_never_written_though_the_loss_was(tmp_path, stop):
    """A finite loss with an infinite gradient breaks the weights, and the loss before that step does not tell."""

    def break_at(call: int) -> None:
        task.model.weight.register_hook(lambda gradient: gradient * (math.inf if call >= 8 else 1))
        if stop == "interrupt" and call == 8:
            os.kill(os.getpid(), signal.SIGINT)

    task = Plane(at_call=break_at, scores=[3.0, 2.0, 1.0])
    with pytest.raises(UserError, match=r"of weight is nan at step 8.*The last good state is kept"):
        train(task, tmp_path, replace(SHORT, log_every=100, save_minutes=1e-9 if stop == "time" else 10))
    state = checkpoint.load_state(tmp_path / "state")
    assert state["step"] == (7 if stop == "time" else 4)
    assert torch.isfinite(state["modules"]["plane"]["weight"]).all()
    assert torch.isfinite(saved_weight(tmp_path)).all()


def test_where_no_figure_chooses_the_latest_model_is_kept_but_no_broken_one(tmp_path):
    def break_at(call: int) -> None:
        if call == 8:
            task.model.weight.data.fill_(math.nan)

    task = Plane(at_call=break_at)
    task.score = ""
    with pytest.raises(UserError, match="is nan at step 8"):
        train(task, tmp_path, replace(SHORT, log_every=100))
    assert torch.equal(saved_weight(tmp_path), task.evaluated[0])


def test_before_the_first_state_the_way_out_is_to_start_again(tmp_path):
    task = Plane()
    task.factor = math.inf
    with pytest.raises(UserError, match=r"Start again with a lower --learning-rate\.$"):
        train(task, tmp_path, replace(SHORT, log_every=1))


def test_states_are_saved_between_evaluations_and_change_nothing(tmp_path):
    often, seldom = Plane(noise=0.3), Plane(noise=0.3)
    seen: list[int] = []
    often.at_call = lambda call: seen.append(len(list((tmp_path / "often" / "state").glob("*.pt"))))
    train(often, tmp_path / "often", replace(SHORT, save_minutes=1e-9))
    train(seldom, tmp_path / "seldom", SHORT)
    assert seen[1:4] == [1, 2, 2]
    assert torch.equal(often.model.weight, seldom.model.weight)
    assert stats(tmp_path / "often") == stats(tmp_path / "seldom")


def test_an_error_leaves_no_loading_process_behind(tmp_path):
    """They ignore the signals that end a job, and an interpreter that ends waits for its children."""

    def fail(call: int) -> None:
        if call == 3:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(Plane(at_call=fail), tmp_path, num_workers=1)
    assert multiprocessing.active_children() == []


def test_before_the_first_state_of_a_part_that_restarts_nothing_is_lost(tmp_path):
    task = Plane()
    task.rate_flag, task.restarts, task.factor = "--sharpen-learning-rate", True, math.inf
    with pytest.raises(UserError, match=r"Add --resume and a lower --sharpen-learning-rate\.$"):
        train(task, tmp_path, replace(SHORT, log_every=1))


def test_a_training_that_patience_ended_stays_ended_when_it_is_resumed(tmp_path):
    config = replace(SHORT, evaluations=12, patience=2)
    first = train(Plane(scores=[1.0, 2.0, 3.0, 4.0]), tmp_path, config)
    again = Plane(scores=[0.5])
    outcome = train(again, tmp_path, config, resume=True)
    assert (first.steps, outcome.steps, again.rows) == (3, 3, [])
    assert outcome.reason == first.reason
    assert train(Plane(), tmp_path, replace(config, patience=0), resume=True).steps == 12


def test_a_limit_that_is_over_at_once_leaves_one_step(tmp_path):
    outcome = train(Plane(), tmp_path, replace(SHORT, max_steps=None, max_minutes=1e-9))
    assert outcome.steps == 1
    assert outcome.best


def test_an_interruption_of_the_last_evaluation_is_told(tmp_path):
    task = Plane()
    validate = task.validate

    def interrupted() -> dict[str, float]:
        if len(task.evaluated) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate()

    task.validate = interrupted
    with pytest.raises(Interrupted, match="step 12; the state is saved"):
        train(task, tmp_path)
    again = Plane()
    assert train(again, tmp_path, resume=True).steps == 12
    assert again.rows == []


@pytest.mark.parametrize("call", ["add_image", "add_scalar", "close"])
def test_a_disk_that_is_full_for_tensorboard_ends_in_one_line(tmp_path, monkeypatch, call):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, call, full)
    if call == "close":  # nothing else is wrong: the model is whole
        assert train(Plane(), tmp_path).steps == 12
        return
    with pytest.raises(UserError, match=r"cannot write .No space left on device"):
        train(Plane(), tmp_path)


@pytest.mark.parametrize(("length", "batch_size"), [(20, 4), (21, 4), (7, 7), (5, 1), (3, 8)])
def test_epochs_see_every_item_once_and_differ(length, batch_size):
    size = min(length, batch_size)
    count = length // size
    batches = list(islice(EpochBatches(length, batch_size, seed=3), 3 * count))
    assert {len(batch) for batch in batches} == {size}
    epochs = [flat(batches[e * count : (e + 1) * count]) for e in range(3)]
    for epoch in epochs:
        # All but the last incomplete batch, none of them twice.
        assert len(set(epoch)) == len(epoch) == count * size
        assert set(epoch) <= set(range(length))
    assert epochs[0] != epochs[1] or length < 5
    for start in range(2 * count):
        again = islice(EpochBatches(length, batch_size, seed=3, start=start), 3 * count - start)
        assert list(again) == batches[start:]
    if length >= 20:
        assert list(islice(EpochBatches(length, batch_size, seed=4), 3 * count)) != batches


def test_logged_figures_are_sums_over_their_counts(tmp_path):
    task = Plane()
    train(task, tmp_path, replace(SHORT, max_steps=3, evaluations=1, learning_rate=1e-30))
    rows = flat(task.rows)
    error = task.dataset.x[rows] @ task.before[0].T + task.model.bias.detach() - task.dataset.y[rows, None]
    line = stats(tmp_path)[0]
    assert line["train/loss"] == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert line["train/absolute"] == pytest.approx(error.abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0},
        {"accumulate": 0},
        {"evaluations": 0},
        {"log_every": 0},
        {"learning_rate": 0.0},
        {"max_steps": 0},
        {"max_minutes": 0.0},
        {"ema_decay": 1.0},
        {"save_minutes": 0.0},
    ],
    ids=lambda setting: "-".join(map(str, *setting.items())),
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TrainingConfig(**setting)


def test_the_limit_is_told_beforehand():
    assert TrainingConfig(max_steps=5, max_minutes=2.5).describe_limit() == "ends after 5 steps or 2.5 minutes"
    assert "one every 500 steps" in TrainingConfig().describe_limit()


def test_each_module_is_clipped_by_itself(tmp_path):
    class Two(Plane):
        """A second module whose gradients are a million times as large."""

        def modules(self):
            return {"plane": self.model, "loud": self.loud}

        def loss(self, batch):
            loss, sums = super().loss(batch)
            return loss + 1e6 * self.loud.weight.square().sum(), sums

    task, alone = Two(), Plane()
    task.loud = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    config = replace(SHORT, clip_norm=0.01)
    train(task, tmp_path / "two", config)
    train(alone, tmp_path / "one", config)
    assert torch.equal(task.model.weight, alone.model.weight)


@pytest.mark.parametrize(
    ("limits", "pays", "told"),
    [
        ({"max_minutes": 10.0}, True, ""),
        ({"max_minutes": 9.0}, True, "torch.compile pays in runs of 10 minutes and 4,000 steps or more"),
        ({"max_steps": 5000}, True, ""),
        ({"max_steps": 3999}, True, "torch.compile pays in runs of 10 minutes and 4,000 steps or more"),
        ({"max_steps": 5000, "max_minutes": 9.0}, True, "torch.compile pays in runs of"),
        ({"max_steps": 5000, "max_minutes": 10.0}, True, ""),
        ({}, True, ""),
        ({"max_minutes": 600.0}, False, "on a CPU torch.compile makes this model no faster"),
        ({}, False, "on a CPU torch.compile makes this model no faster"),
    ],
)
def test_a_run_is_compiled_where_it_is_long_and_its_model_gains(tmp_path, monkeypatch, limits, pays, told):
    seen: list[str] = []

    def compile_modules(choice: str, modules: list[nn.Module], against: str) -> str:
        seen.append(against)
        raise InterruptedError

    monkeypatch.setattr(training, "compile_modules", compile_modules)
    task = Plane()
    task.compiled_pays_on_cpu = pays
    with pytest.raises(InterruptedError):
        train(task, tmp_path, replace(SHORT, **{"max_steps": None, **limits}), compile="auto")
    assert seen[0].startswith(told)
    assert bool(seen[0]) == bool(told)


def test_gradients_are_scaled_in_float16_and_steps_passed_over_where_they_overflow(tmp_path):
    """In float64, where the task computes, the scale is taken off again without rounding."""
    whole, scaled = Plane(), Plane()
    train(whole, tmp_path / "whole")
    train(scaled, tmp_path / "scaled", precision=torch.float16)
    torch.testing.assert_close(torch.stack(scaled.steps), torch.stack(whole.steps), rtol=1e-12, atol=0)

    def overflow(call):
        task.factor = 1e153 if call == 5 else 1.0  # the loss is finite, its scaled gradient is not

    task = Plane(at_call=overflow)
    train(task, tmp_path / "passed", precision=torch.float16)
    assert torch.equal(task.steps[4], task.steps[3])
    assert not torch.equal(task.steps[5], task.steps[4])
    assert all(math.isfinite(line.get("train/gradient_norm", 0.0)) for line in stats(tmp_path / "passed"))
    task = Plane(at_call=lambda call: (overflow(call), interrupt_at(7)(call)))
    with pytest.raises(Interrupted):
        train(task, tmp_path / "parts", precision=torch.float16)
    train(Plane(), tmp_path / "parts", precision=torch.float16, resume=True)
    assert torch.equal(saved_weight(tmp_path / "parts"), saved_weight(tmp_path / "passed"))
