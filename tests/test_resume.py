"""An interruption, a crash or a change of settings: what a resumed training takes up, to the bit."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from plane import SHORT, Plane, interrupt_at, saved_weight, stats, train, watched_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from vqvae2 import checkpoint, training
from vqvae2.errors import UserError
from vqvae2.interrupts import Interrupted


@pytest.fixture
def steps() -> Iterator[list[tuple[float, float]]]:
    with watched_steps() as seen:
        yield seen


def assert_same(a: object, b: object, where: str = "state") -> None:
    """Equal to the bit, at any depth."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    else:
        assert a == b, where


def final_state(folder: Path) -> dict[str, object]:
    state = checkpoint.load_state(folder / "state")
    del state["seconds"]
    return state


# Five batches an epoch, a line every 3 steps, evaluations at 4, 8 and 12: the middle of an epoch and of a window (7),
# the end of an epoch (5), the step of an evaluation (8), the last step (12).
@pytest.mark.parametrize("step", [1, 5, 7, 8, 12])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, step, number):
    config = replace(SHORT, ema_decay=0.9, accumulate=1 + step % 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = Plane(noise=0.3)
    expected = train(uninterrupted, whole, config)

    first = Plane(noise=0.3, at_call=interrupt_at(step * config.accumulate, number))
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"step {step};"):
        train(first, cut, config)
    assert signal.getsignal(number) is handler
    assert checkpoint.load_state(cut / "state")["step"] == step
    second = Plane(seed=5, noise=0.3)
    torch.manual_seed(99)
    outcome = train(second, cut, config, resume=True)

    assert first.rows + second.rows == uninterrupted.rows
    assert torch.equal(second.model.weight, uninterrupted.model.weight)
    assert_same(final_state(cut), final_state(whole))
    assert stats(cut) == stats(whole)
    assert torch.equal(saved_weight(cut), saved_weight(whole))
    assert replace(outcome, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_crash_goes_back_to_the_last_state_and_cuts_the_log(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(Plane(noise=0.3), whole)
    with pytest.raises(RuntimeError, match="power cut"):
        train(Plane(noise=0.3, at_call=crash_at(11)), cut)
    assert stats(cut)[-1]["step"] == 9  # a line of steps that the state does not know
    with open(cut / "stats.jsonl", "a") as file:
        file.write('{"step": 10, "train/lo')
    train(Plane(seed=5, noise=0.3), cut, resume=True)
    assert stats(cut) == stats(whole)
    assert_same(final_state(cut), final_state(whole))


def crash_at(step: int) -> Callable[[int], None]:
    def crash(call: int) -> None:
        if call == step:
            raise RuntimeError("power cut")

    return crash


def test_a_resumed_training_takes_its_settings_from_the_config(tmp_path, steps):
    with pytest.raises(Interrupted):
        train(Plane(at_call=interrupt_at(6)), tmp_path)
    changed = replace(SHORT, max_steps=24, learning_rate=0.01, weight_decay=0.9, beta1=0.5)
    groups: list[dict[str, object]] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: groups.extend(optimizer.param_groups))
    outcome = train(Plane(), tmp_path, changed, resume=True)
    handle.remove()
    assert outcome.steps == 24
    low = changed.final_learning_rate
    cosine = [low + (1 - low) * (1 + math.cos(math.pi * t / 24)) / 2 for t in range(6, 24)]
    np.testing.assert_allclose([rate for rate, _ in steps[6:]], 0.01 * np.array(cosine), rtol=1e-12)
    assert {group["weight_decay"] for group in groups} == {0.9, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.5, changed.beta2)}


def test_a_training_starts_its_log_anew_unless_it_is_resumed(tmp_path):
    train(Plane(), tmp_path)
    first = stats(tmp_path)
    train(Plane(), tmp_path)
    assert stats(tmp_path) == first


def test_resume_without_a_state_is_refused(tmp_path):
    with pytest.raises(UserError, match="no state"):
        train(Plane(), tmp_path, resume=True)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_minutes_are_counted_across_a_resume_and_the_schedule_fits_them(tmp_path, monkeypatch, steps):
    clock = Clock()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=clock.monotonic))

    def work(stop: int = 0) -> Callable[[int], None]:
        def call(number: int) -> None:
            clock.pass_by(7.5)  # eight steps a minute, and exact in binary
            interrupt_at(stop)(number)

        return call

    config = replace(SHORT, max_steps=None, max_minutes=1.0, warmup_steps=0)
    with pytest.raises(Interrupted):
        train(Plane(at_call=work(stop=3)), tmp_path, config)
    clock.pass_by(3600)  # nobody trains in this hour
    outcome = train(Plane(at_call=work()), tmp_path, config, resume=True)
    assert outcome.steps == 8
    assert outcome.seconds == 60
    low = config.final_learning_rate
    cosine = [low + (1 - low) * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(8)]
    np.testing.assert_allclose([rate for rate, _ in steps], 0.05 * np.array(cosine), rtol=1e-12)
    # Evaluations are spread over the time: after 1/3, 2/3 and all of it.
    lines = [line["step"] for line in stats(tmp_path) if "val/mse" in line]
    assert lines == [3, 6, 8]


def test_tensorboard_holds_the_figures_of_stats_jsonl(tmp_path):
    # Step 9 is logged before the crash and again after the resume from step 8.
    with pytest.raises(RuntimeError, match="power cut"):
        train(Plane(at_call=crash_at(11)), tmp_path)
    train(Plane(), tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    tags = {name for line in lines for name in line} - {"step", "seconds"}
    assert set(events.Tags()["scalars"]) == tags
    assert {"train/loss", "train/absolute", "train/learning_rate", Plane.unit, "selection/loss"} <= tags
    for tag in tags:
        told = [(line["step"], line[tag]) for line in lines if tag in line]
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in shown] == [step for step, _ in told]
        np.testing.assert_allclose([v for _, v in shown], [v for _, v in told], rtol=1e-5)
    assert set(events.Tags()["images"]) == {"pictures/grey", "colour"}
    (settings,) = events.Tensors("settings/text_summary")
    assert "| max_steps | 12 |" in settings.tensor_proto.string_val[0].decode()
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["colour.png", "pictures-grey.png"]
    used = events.Histograms("used")[-1].histogram_value
    assert used.bucket == [5, 3, 0]  # by rank
    assert (used.min, used.max, used.num, used.sum) == (1, 3, 8, 5 * 1 + 3 * 2)
    (compared,) = (tag for tag in events.summary_metadata if tag.endswith("experiment"))
    content = plugin_data_pb2.HParamsPluginData.FromString(events.summary_metadata[compared].plugin_data.content)
    assert [metric.name.tag for metric in content.experiment.metric_infos] == ["selection/loss"]
    assert "max_steps" in {info.name for info in content.experiment.hparam_infos}
