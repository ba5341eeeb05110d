"""What the benchmarks share: command line, the peer's modules, timing in pairs, memory, stages run as a user would."""

import argparse
import atexit
import contextlib
import importlib
import json
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqvae2 import checkpoint

ROOT = Path(__file__).resolve().parent.parent
PEER = "checkout of rosinality/vq-vae-2-pytorch, imported from there"


def parse(doc: str | None, repeats: int, claims: Iterable[str]) -> argparse.Namespace:
    """Read ``--json``, ``--peer``, ``--only`` and ``--repeats``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--peer", type=Path, help=PEER)
    parser.add_argument("--only", nargs="*", default=[], choices=list(claims), help="claims; default: all")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed pairs (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.peer and not (arguments.peer / "pixelsnail.py").is_file():
        raise SystemExit(f"error: there is no pixelsnail.py: {arguments.peer}. Give a {PEER}.")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    return arguments


def peer_module(path: Path, name: str) -> types.ModuleType:
    """Import one of the peer's modules, and with it those that it imports."""
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_pairs(ours: Callable[[], object], peer: Callable[[], object] | None, repeats: int) -> dict[str, Any]:
    """Time both sides one after the other, again and again.

    Returns:
        ``ours_s`` and ``peer_s`` (medians), and ``ratio``, the median over the pairs; the two last None without a peer.
    """
    ours_s, peer_s = [], []
    for _ in range(repeats):
        ours_s.append(seconds(ours))
        if peer is not None:
            peer_s.append(seconds(peer))
    ratios = [other / own for own, other in zip(ours_s, peer_s, strict=False)]
    return {
        "ours_s": statistics.median(ours_s),
        "peer_s": statistics.median(peer_s) if peer_s else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "pairs": len(ours_s),
        "spread": [min(ratios), max(ratios)] if ratios else None,
    }


def apart(prepare: Callable[..., Iterator[object]], *arguments: Any) -> Callable[[], None]:
    """Let a training go on in a process of its own, so that two do not share what one of them changes.

    Args:
        prepare: returns the steps; a function of a module, as are its arguments.

    Returns:
        What makes one step and waits for it. Waiting, the process takes no time from others.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, prepare, arguments, multiprocessing.get_start_method())).start()
    theirs.close()
    atexit.register(ours.close)  # which ends the process

    def step() -> None:
        try:
            ours.send(None)
            ours.recv()
        except (EOFError, OSError):
            raise SystemExit(f"error: {prepare.__name__}{arguments} ran out of memory or failed") from None

    return step


def _serve(pipe: Any, prepare: Callable[..., Iterator[object]], arguments: tuple[Any, ...], method: str) -> None:
    multiprocessing.set_start_method(method, force=True)  # else those who load would be spawned too, which is slow
    steps = prepare(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            next(steps)
            pipe.send(None)


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Measure what one call needs in a fresh process, above what was there before it.

    Args:
        prepare: builds models and inputs, and returns the call; a function of a module, as are its arguments.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, prepare, arguments))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        raise SystemExit(f"error: {prepare.__name__}{arguments} ran out of memory or failed") from None
    finally:
        process.join()


def _measure(pipe: Any, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    call = prepare(*arguments)
    forget = Path("/proc/self/clear_refs")
    if forget.exists():  # Linux: the peak is counted anew from here
        forget.write_text("5")
    before = _peak()
    call()
    pipe.send(_peak() - before)


def _peak() -> int:
    """Most bytes of memory that this program held; on Linux not what its parent did, which getrusage counts in."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(script: str, run: Path, name: str, folder: Path, *flags: str, level: str | None = None) -> None:
    """Run a training unless it is complete; go on, with the settings it began with, where it was interrupted."""
    record = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    if "outcome" in record.get(name, {}):
        return
    which = ["--level", level] if level else []
    going_on = checkpoint.has_state(folder / "state")
    stage(script, run, *which, *(["--resume"] if going_on else [*flags, "--overwrite"]))


def stage(script: str, run: Path, *arguments: str) -> None:
    """Run one stage as a user would; stop here if it fails."""
    command = [sys.executable, str(ROOT / script), "--run", str(run), *arguments]
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    print(f"# {time.monotonic() - started:.0f} s", flush=True)
    if code:
        raise SystemExit(code)


def tell_sizes(ours: nn.Module, peer: nn.Module | None) -> dict[str, int]:
    """Print and return the number of parameters of both sides."""
    sides = {"ours": ours, **({"peer": peer} if peer else {})}
    counts = {side: sum(p.numel() for p in module.parameters()) for side, module in sides.items()}
    print("parameters:", ", ".join(f"{side} {number:,}" for side, number in counts.items()), flush=True)
    return counts


def stages_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make the parser of a benchmark that runs the stages on a folder of images."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images; see docs/data.md for the layouts")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--preset", default="brain128", help="settings (default: %(default)s)")
    return parser


def tell(claim: dict[str, Any]) -> None:
    """Print a claim on one line."""
    ratio = f"ratio {claim['ratio']:.2f} (bar {claim['bar']})" if claim["ratio"] is not None else "no peer given"
    print(f"{claim['name']}: {ratio}; {claim['told']}", flush=True)


def write(path: Path, claims: list[dict[str, Any]], **more: Any) -> int:
    """Write the claims as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"claims": claims, **more}, indent=2) + "\n")
    print(f"wrote {path}")
    return 0
