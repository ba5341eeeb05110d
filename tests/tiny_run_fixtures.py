"""One finished run, and the calling of stages, for the tests of the command lines; loaded by them as a plugin."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import CHAIN, ROOT, Chain, Ended, Main


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """All stages as a user runs them: the scripts, each in a process of its own."""
    folder = tmp_path_factory.mktemp("chain")
    ended = {}
    for name, (script, *flags) in CHAIN.items():
        done = subprocess.run(
            [sys.executable, ROOT / script, "--run", "run", *flags], cwd=folder, capture_output=True, text=True
        )
        ended[name] = Ended(done.returncode, done.stdout, done.stderr)
    return Chain(folder / "run", ended)


@pytest.fixture
def run(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(chain.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """A function: calls a stage's main in this process."""

    def call(main: Main, *argv: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(call: Callable[..., Ended]) -> Callable[..., str]:
    """A function: calls a stage that must end with code 2 and one line, and returns the line."""

    def refused(main: Main, *argv: object) -> str:
        ended = call(main, *argv)
        assert ended.code == 2, ended
        assert ended.err.startswith("error: "), ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert ended.err.endswith((".\n", "?\n")), ended.err
        return ended.err

    return refused
