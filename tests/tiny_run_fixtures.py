"""One finished run, and the calling of stages, for the tests of the command lines; loaded by them as a plugin."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_script
from tiny_runs import CHAIN, ROOT, Chain, Ended, Main

from vqvae2.budget import Part
from vqvae2.stages import train_vqvae


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """All stages as a user runs them: the scripts, each in a process of its own."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _chain(tmp_path_factory.mktemp("chain"))
    folder = tmp_path_factory.getbasetemp().parent / "chain"  # made by the first worker, for all
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _chain(folder)


def _chain(folder: Path) -> Chain:
    kept = folder / "ended.json"
    if not kept.exists():
        ended = {
            name: run_script(ROOT / script, "--run", "run", *flags, folder=folder)
            for name, (script, *flags) in CHAIN.items()
        }
        kept.write_text(json.dumps(ended))
    return Chain(folder / "run", {name: Ended(*how) for name, how in json.loads(kept.read_text()).items()})


@pytest.fixture
def run(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    shutil.copytree(chain.run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs count no multiply-adds, which takes seconds where models are large."""
    monkeypatch.setattr(train_vqvae, "budget", lambda *_: [Part("top", 1, None)])


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
