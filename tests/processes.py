"""Python processes of their own that do not import the package again: they are forked from one that has.

A stage's own process takes some four seconds to import torch before it does anything. What the tests start here is as
separate as that, with its own files, signals and exit status; only the imports are shared.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from tiny_runs import Ended

_FORKED = multiprocessing.get_context("forkserver")
_STAGES = ("train_vqvae", "extract_codes", "train_prior", "sample", "evaluate")
_LATE = ("torch._dynamo", "torch.utils.tensorboard", "matplotlib.backends.backend_agg", "lmdb")  # imported where used
_FORKED.set_forkserver_preload([*(f"vqvae2.stages.{stage}" for stage in _STAGES), *_LATE])
_DEADLOCK = 1800  # seconds; no machine is so slow


class Started:
    """A process that was started, and the files that take what it prints.

    Args:
        function: what it does, a function of a module.
        arguments: for it.
        folder: in which it works.
        environment: of the process; by default this one's.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = tempfile.TemporaryDirectory()
        printed = [os.path.join(self.folder.name, name) for name in ("out", "err")]
        place = os.fspath(folder or Path.cwd()), dict(environment or os.environ), *printed
        self.process: BaseProcess = _FORKED.Process(target=_begin, args=(*place, function, *arguments))
        self.process.start()

    @property
    def pid(self) -> int:
        """Its number; it leads a group of processes of its own."""
        assert self.process.pid
        return self.process.pid

    def wait(self, seconds: float = _DEADLOCK) -> Ended:
        """Wait for its end; of a process that was killed by a signal the status is negative."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it did not end"
        return Ended(self.process.exitcode, self._read("out"), self._read("err"))

    def _read(self, name: str) -> str:
        path = Path(self.folder.name, name)
        return path.read_text() if path.exists() else ""  # killed before it began


def start_script(script: Path, *argv: object, **place: Any) -> Started:
    """Start a script as ``python SCRIPT ARGV`` does; ``place`` as of `Started`."""
    return Started(_script, os.fspath(script), [str(argument) for argument in argv], **place)


def run_script(script: Path, *argv: object, **place: Any) -> Ended:
    """Run a script to its end; arguments as of `start_script`."""
    return start_script(script, *argv, **place).wait()


def joined(processes: int, script: Path, *argv: object, folder: Path) -> list[Ended]:
    """Run a script in several processes that are joined as torchrun joins them, on the CPU: how each rank ended.

    As under torchrun, when one fails the others are told to end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    ranks = [
        start_script(script, *argv, folder=folder, environment={**common, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(processes)
    ]
    alive = {rank.process.sentinel: rank.process for rank in ranks}
    while alive:
        for sentinel in connection.wait(alive):
            ended = alive.pop(sentinel)
            ended.join()
            if ended.exitcode:
                for other in alive.values():
                    other.terminate()
    return [rank.wait() for rank in ranks]


def _begin(
    folder: str, environment: dict[str, str], out: str, err: str, function: Callable[..., object], *arguments: object
) -> None:
    """Begin as a process of one's own: in a folder, with an environment, printing into two files."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    if "OMP_NUM_THREADS" in environment:  # which torch has read already
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    function(*arguments)


def _script(script: str, argv: list[str]) -> None:
    sys.argv = [script, *argv]
    sys.orig_argv = [sys.executable, *sys.argv]
    runpy.run_path(script, run_name="__main__")
