"""Commands named in messages have the form in which the user called the program."""

import sys

import pytest

from vqvae2.stages.commands import command


@pytest.fixture
def called(monkeypatch):
    """A function: lets this process look as if it had been started by some words."""

    def called(words: str, script: str, processes: int = 1, machines: int = 1) -> None:
        before, _, after = words.partition(" -- ")
        monkeypatch.setattr(sys, "orig_argv", [*before.split(), *after.split()])
        monkeypatch.setattr(sys, "argv", [script, *after.split()])
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("GROUP_WORLD_SIZE", str(machines))

    return called


@pytest.mark.parametrize(
    ("words", "script", "processes", "machines", "expected"),
    [
        ("python train_vqvae.py -- --run x", "train_vqvae.py", 1, 1, "python train_prior.py --run x"),
        (
            ".venv/bin/python -u ../tools/sample.py -- --run x",
            "../tools/sample.py",
            1,
            1,
            ".venv/bin/python -u ../tools/train_prior.py --run x",
        ),
        ("python -m vqvae2 -- sample --run x", "/a/vqvae2/__main__.py", 1, 1, "python -m vqvae2 train-prior --run x"),
        ("/v/bin/python /v/bin/vqvae2 -- sample", "/v/bin/vqvae2", 1, 1, "/v/bin/vqvae2 train-prior --run x"),
        ("python -m pytest -- tests", "/a/pytest/__main__.py", 1, 1, "python -m vqvae2 train-prior --run x"),
        ("python notebook.py --", "notebook.py", 1, 1, "python -m vqvae2 train-prior --run x"),
        (
            "/v/python -u sample.py -- --run x",
            "sample.py",
            2,
            1,
            "torchrun --nproc-per-node 2 -- train_prior.py --run x",
        ),
        (
            "/v/python -u -m vqvae2 -- sample",
            "/a/vqvae2/__main__.py",
            4,
            1,
            "torchrun --nproc-per-node 4 -m -- vqvae2 train-prior --run x",
        ),
        ("/v/python -u sample.py -- --run x", "sample.py", 8, 2, "torchrun ... -- train_prior.py --run x"),
    ],
)
def test_a_command_has_the_form_of_the_present_one(called, words, script, processes, machines, expected):
    called(words, script, processes, machines)
    assert command("train-prior", "--run", "x") == expected


def test_an_installed_program_found_by_its_name_is_written_so(called, tmp_path, monkeypatch):
    program = tmp_path / "vqvae2"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    called(f"python {program} -- sample --run x", str(program))
    assert command("evaluate", "--run", "my runs") == "vqvae2 evaluate --run 'my runs'"
