"""How a training is repeated or gone on with: the command that is stored, and the one that an interruption names."""

from dataclasses import asdict

import pytest
from tiny_runs import VQVAE_FLAGS

from vqvae2 import checkpoint
from vqvae2.interrupts import Interrupted
from vqvae2.stages import train_vqvae
from vqvae2.stages.commands import flags_of
from vqvae2.stages.common import RunFolder, record_of
from vqvae2.stages.flags import CommandLine


@pytest.mark.parametrize(
    ("begun", "resumed"),
    [
        ("--max-minutes 5", "--max-steps 100"),
        ("--max-steps 9", "--max-minutes 2"),
        ("--max-steps 9 --max-minutes 2", "--max-steps 20"),
        ("--max-steps 9", "--max-steps 20 --max-minutes 3"),
        ("--max-steps 9 --max-minutes 2", "--learning-rate 0.1"),
    ],
)
def test_the_stored_command_of_a_resumed_training_has_its_limits(tmp_path, begun, resumed):
    run = RunFolder(tmp_path / "run")

    def read(flags: list[str]) -> tuple[CommandLine, train_vqvae.Arguments]:
        argv = ["--run", str(run.path), *flags]
        line = CommandLine("train-vqvae", train_vqvae.Arguments, {}, argv, fixed=train_vqvae._NO_FLAGS)
        return line, train_vqvae._settings(line)

    line, first = read(["--data", "phantom", *begun.split()])
    kept = {name: asdict(getattr(first, name)) for name in line.sections} | {"arguments": record_of(line, {})}
    run.write(preset=first.preset, train_vqvae=kept)
    line, second = read(["--resume", *resumed.split()])
    _, repeated = read(flags_of(record_of(line, kept)))
    limits = second.training.max_steps, second.training.max_minutes
    assert (repeated.training.max_steps, repeated.training.max_minutes) == limits


@pytest.mark.parametrize("deleted", [False, True])
def test_an_interrupted_overwrite_is_resumed_only_once_the_earlier_training_is_deleted(
    tmp_path, monkeypatch, capsys, deleted
):
    run = RunFolder(tmp_path / "run")
    checkpoint.save_state(run.vqvae / "state", 3, {})

    def interrupt(*_args: object, **_settings: object) -> None:
        if deleted:
            assert not checkpoint.has_state(run.vqvae / "state")
            checkpoint.save_state(run.vqvae / "state", 1, {})
        raise Interrupted("stopped")

    monkeypatch.setattr(train_vqvae, "fit" if deleted else "open_data", interrupt)
    flags = ["--run", str(run.path), *VQVAE_FLAGS, "--overwrite"]
    assert train_vqvae.main(flags) == 130
    told = capsys.readouterr().err.strip()
    same = " ".join(flags)
    assert told.endswith(f"train-vqvae --run {run.path} --resume" if deleted else f"train-vqvae {same}"), told
