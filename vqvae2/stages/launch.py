"""How a stage runs as a process, or as several: exit codes, signals, and how errors are reported."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from vqvae2 import distributed
from vqvae2.device import keep_freed_memory
from vqvae2.errors import UserError
from vqvae2.interrupts import Interrupted
from vqvae2.stages.commands import command, flags_of
from vqvae2.stages.common import RunFolder, is_resumable
from vqvae2.stages.flags import CommandLine
from vqvae2.version import __version__

__all__ = ["run_stage"]


def run_stage(
    read: Callable[[list[str]], CommandLine], story: Callable[[CommandLine], None], argv: Sequence[str] | None
) -> int:
    """Run a stage and turn what ends it into an exit code.

    Under torchrun every process runs the story; only the main one prints.

    Args:
        read: reads the stage's command line.
        story: what the stage does.
        argv: arguments; None takes the process's.

    Returns:
        0; 2 after a user error, which is printed as one line on stderr; 130 after an interruption.
    """
    code = _run(read, story, list(sys.argv[1:] if argv is None else argv))
    if distributed.announced() > 1:
        # Everything is written. The threads of the process group may abort an interpreter that is slow to exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(read: Callable[[list[str]], CommandLine], story: Callable[[CommandLine], None], argv: list[str]) -> int:
    """Run a stage; return its exit code."""
    if "--version" in argv:
        print(f"vqvae2 {__version__}")
        return 0
    keep_freed_memory()
    line: CommandLine | None = None
    try:
        with distributed.process_group(), _output(), _terminated_as_interrupted():
            try:
                line = read(argv)
                story(line)
            except (Exception, KeyboardInterrupt) as error:
                raise SystemExit(_report(error, line)) from error
    except SystemExit as end:
        return int(end.code or 0)
    except (UserError, RuntimeError, KeyboardInterrupt) as error:  # before the processes were joined, or after the end
        return _report(error, line)
    return 0


def _report(error: BaseException, line: CommandLine | None) -> int:
    """Report what ended a stage, once for all processes; return the exit code."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, distributed.Elsewhere):
        distributed.report_once(None)
        return 2
    code, text = 2, f"error: {error}"
    if isinstance(error, Interrupted | KeyboardInterrupt):
        _ignore_signals()  # after Ctrl-C torchrun sends another
        code, text = 130, f"{str(error) or 'interrupted'}." + (f" Continue with: {_continuation(line)}" if line else "")
    elif distributed.lost(error):
        text = f"error: lost the connection to another process ({str(error).splitlines()[0]})"
    elif not isinstance(error, UserError):
        if distributed.announced() == 1:
            raise error
        code, text = 1, "".join(traceback.format_exception(error)).rstrip()
    distributed.report_once(lambda: print(text, file=sys.stderr, flush=True))
    return code


def _continuation(line: CommandLine) -> str:
    """Write the command that continues: --resume for a training that has a state of its own, else the same command."""
    earlier = "overwrite" in line.given and not line.prepared  # a state there is that of the training to be deleted
    if line.stage.startswith("train") and "run" in line.given and not earlier:
        run, level = RunFolder(line.given["run"]), line.given.get("level")
        if is_resumable(run.prior(level) if level else run.vqvae):
            where = {name: value for name, value in line.given.items() if name in ("run", "level")}
            return command(line.stage, *flags_of({**where, "resume": True}))
    return command(line.stage, *flags_of(line.given))


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Hide what the other processes print."""
    if distributed.is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _ignore_signals() -> None:
    """Let the processes of a group report in peace; each ends right after."""
    if distributed.announced() > 1 and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, with which clusters end a job, as Ctrl-C."""

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
