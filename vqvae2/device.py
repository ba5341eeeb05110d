"""Which device, which precision, and whether compiling pays."""

import contextlib
import ctypes
import functools
import shutil
import sys
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from vqvae2.errors import UserError

DeviceChoice = Literal["auto", "cpu", "cuda", "mps"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
CompileChoice = Literal["auto", "on", "off"]

__all__ = [
    "autocast",
    "compile_modules",
    "forbid_tf32",
    "keep_freed_memory",
    "random_state",
    "recorded",
    "records",
    "resolve_device",
    "resolve_precision",
    "set_random_state",
    "widest",
]


def resolve_device(choice: DeviceChoice) -> torch.device:
    """Pick a device: ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: the device asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[choice]:
        raise UserError("this device is not available here", f"--device {choice}", "Use --device auto")
    return torch.device(choice)


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> torch.dtype:
    """Pick the precision of matrix products: ``auto`` takes bfloat16 where the hardware multiplies it fast."""
    if choice != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        fast = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating type of a device: float64, but float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Run matrix products and convolutions in ``dtype``; nothing changes for fp32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def forbid_tf32() -> None:
    """Let float32 convolutions on CUDA compute in float32, not in TF32, the default: codes must not depend on it."""
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let this process keep memory that a training step frees for the next one.

    glibc hands what is free at the heap's end back to the kernel, which has to clear every page that is asked for anew:
    some 8% of a step on a CPU. Blocks of 32 MiB and more still go back. Elsewhere than on Linux with glibc nothing is
    done.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 32 * 2**20)


def records(device: torch.device) -> bool:
    """Tell whether work of many small steps is recorded and replayed there, which spares the time to launch each."""
    return device.type == "cuda"


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all recordings: libraries keep a workspace for every stream


def recorded(work: Callable[[], None], begin: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record work as a CUDA graph.

    Args:
        work: changes tensors in place; every call does the same to the same memory.
        begin: sets these tensors to where the work begins. It is called before the trial, and in the end.
        device: where the tensors are.

    Returns:
        What does the work once, and waits for it.
    """
    with torch.cuda.device(device):
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # a trial, in which libraries choose their ways and buffers are made
            begin()
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # By this thread alone: others may load data or watch over the processes meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
        begin()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()
            torch.cuda.current_stream().synchronize()

    return replay


def compile_modules(choice: CompileChoice, modules: list[nn.Module], against: str = "") -> str:
    """Compile modules in place by torch.compile, where that works and pays.

    Args:
        choice: ``auto`` compiles only where a compiler works and nothing speaks against it.
        modules: compiled each by itself; state-dict names do not change.
        against: why compiling would not pay; empty: it does.

    Returns:
        One line for the user: what was done and why.

    Raises:
        UserError: ``on``, and no compiler works.
    """
    if choice == "off":
        return "eager: --compile off"
    if not modules:
        return "eager: nothing to compile"
    if choice == "auto" and against:
        return f"eager: {against}"
    problem = _compiler_problem(next(modules[0].parameters()).device)
    if problem and choice == "on":
        raise UserError(f"torch.compile does not work here ({problem})", "--compile on", "Use --compile auto")
    if problem:
        return f"eager: torch.compile does not work here ({problem})"
    # Each of the modules is compiled by itself, but they share the code of their class, and so its limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(modules))
    for module in modules:
        module.compile()
    return f"compiled {len(modules)} modules; the first steps take up to a minute or two"


def _compiler_problem(device: torch.device) -> str:
    """Compile a small function on the device, run it forward and backward, and return what went wrong, or ""."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        return "no C++ compiler found"
    try:
        x = torch.ones(4, 4, device=device, requires_grad=True)
        torch.compile(lambda x: (x @ x).sin().sum())(x).backward()
    except Exception as error:  # whatever a broken toolchain raises, eager mode works
        return type(error).__name__
    return ""


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random number generators of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set them to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
