"""How a stage runs as a process, or as several: exit codes, signals, and how mistakes are told."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from vqvae2 import checkpoint, distributed
from vqvae2.device import keep_freed_memory
from vqvae2.errors import UserError
from vqvae2.stages.common import RunFolder, option
from vqvae2.training import Interrupted
from vqvae2.version import __version__

__all__ = ["run_stage"]


def run_stage(story: Callable[[list[str], str], None], argv: list[str] | None, prog: str | None, name: str) -> int:
    """Run a stage and turn what ends it into an exit code.

    Under torchrun each of the processes runs the story; the main one alone prints.

    Args:
        story: the stage, called with its arguments and the name it was called by.
        argv: arguments; None takes the process's.
        prog: name shown in --help.
        name: file name of the stage's script.

    Returns:
        0; 2 after a mistake of the user's, told in one line on stderr; 130 after an interruption.
    """
    argv = sys.argv[1:] if argv is None else argv
    code = _run(story, argv, prog, name)
    if distributed.announced() > 1:
        # All is written. The threads of the process group may abort an interpreter that takes its time to end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(story: Callable[[list[str], str], None], argv: list[str], prog: str | None, name: str) -> int:
    """Run a stage; return its exit code."""
    if "--version" in argv:
        print(f"vqvae2 {__version__}")
        return 0
    keep_freed_memory()
    try:
        with distributed.process_group(), _output(), _terminated_as_interrupted():
            story(argv, prog or name)
    except UserError as error:
        if distributed.announced_rank():
            # Where the main process fails likewise torchrun ends this one meanwhile, and the mistake is told once.
            time.sleep(3)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except distributed.Elsewhere:
        time.sleep(3)  # torchrun ends the main process, which tells why, as soon as one has ended
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        if distributed.announced_rank():
            time.sleep(3)
        else:
            print(f"{str(error) or 'interrupted'}. Go on with: {_command(name, argv)}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if not distributed.lost(error):
            raise
        time.sleep(6)  # who failed first tells why
        print(f"error: another process is gone ({str(error).splitlines()[0]})", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _command(name: str, argv: list[str]) -> str:
    """Write the command that goes on: a training with a state is resumed, all else finds what is there."""
    start = ["torchrun", "...", "--"] if distributed.announced() > 1 else ["python"]
    run, level = option(argv, "run"), option(argv, "level")
    if name.startswith("train") and run:
        folder = RunFolder(Path(run)).prior(level) if level else RunFolder(Path(run)).vqvae
        if checkpoint.has_state(folder / "state"):
            argv = ["--run", run, *(["--level", level] if level else []), "--resume"]
    return shlex.join([*start, name, *argv])


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Keep what the other processes print from the screen."""
    if distributed.is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, with which clusters end a job, do what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
