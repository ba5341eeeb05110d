"""Rank, world size and the few collectives that the project needs, over torch.distributed.

In a single process all of it works too and moves nothing. Every process must make the same calls in the same
order.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from vqvae2.errors import UserError

T = TypeVar("T")
S = TypeVar("S", bound=Sequence[Any])


_KEPT = 30.0  # seconds
_store: Any = None  # shared by the processes of the group, as long as it exists


class Elsewhere(Exception):  # noqa: N818 - reported by the process where it happened
    """The main process failed, and reports why."""


def rank() -> int:
    """Return this process's number, from 0; 0 where there is no process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Return the number of processes; 1 where there is no process group."""
    return dist.get_world_size() if _active() else 1


def is_main() -> bool:
    """Tell whether this is the process that writes and prints."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes; no gradient passes.

    Args:
        tensor: of the same shape and dtype in every process, left as it is.

    Returns:
        The sum, the same bits in every process; in a single process the tensor itself.
    """
    if world_size() == 1:
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_gather(tensor: Tensor) -> Tensor:
    """Stack the tensors of all processes in the order of their ranks, in one collective; no gradient passes.

    Args:
        tensor: of the same shape and dtype in every process.

    Returns:
        (processes, ...), the same bits in every process.
    """
    own = tensor.detach().contiguous()
    if world_size() == 1:
        return own[None]
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.stack(parts)


def all_gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes in the order of their ranks; no gradient passes.

    Args:
        tensor: (n, ...); n may be 0 and may differ between processes, the rest of the shape and the dtype may
            not.

    Returns:
        (sum of n, ...), the same in every process; in a single process the tensor itself.
    """
    if world_size() == 1:
        return tensor
    own = tensor.detach().contiguous()
    lengths = torch.zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(own)
    dist.all_reduce(lengths)
    sizes = lengths.tolist()
    # Collectives want equal shapes: padded to the longest, cut again on arrival.
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    return torch.cat([part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)])


def from_main(value: T) -> T:
    """Return the main process's value, of any type that pickles, in every process."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def tensor_from_main(tensor: Tensor) -> Tensor:
    """Return the main process's tensor, of equal shape and type, in every process."""
    return all_reduce_sum(tensor if is_main() else torch.zeros_like(tensor))


def on_main(call: Callable[[], T]) -> T:
    """Let the main process make a call while the others wait, and return what it returned.

    Raises:
        Elsewhere: in the other processes, when the call raised; in the main one what it raised.
    """
    if world_size() == 1:
        return call()
    if not is_main():
        done, value = from_main((False, None))
        if not done:
            raise Elsewhere
        return value  # type: ignore[return-value]
    try:
        value = call()
    except BaseException:
        with suppress(RuntimeError):  # the others may be gone
            from_main((False, None))
        raise
    return from_main((True, value))[1]


def own_part(items: S) -> S:
    """Cut out this process's share: contiguous, in the order of the ranks, of sizes that differ by one at most.

    Example:
        >>> own_part([1, 2, 3])
        [1, 2, 3]
    """
    low, high = (len(items) * n // world_size() for n in (rank(), rank() + 1))
    return items[low:high]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def report_once(report: Callable[[], object] | None) -> None:
    """Let the first process of the group that fails say why; the others wait until it has.

    torchrun ends all processes as soon as one has ended: nobody may end before the reason is printed.

    Args:
        report: prints the reason; None in a process that knows of a failure elsewhere only.
    """
    try:
        if _store is not None and (report is None or _store.add("reporting", 1) > 1):
            _store.wait(["reported"], timedelta(minutes=1))
            return
    except (RuntimeError, ValueError):  # the store is gone, or whoever was to report was killed
        if report is None:
            return
    if report is not None:
        report()
    with suppress(RuntimeError, AttributeError):
        _store.set("reported", "")


def lost(error: BaseException) -> bool:
    """Tell whether an error says that another process of the group is gone."""
    if announced() <= 1 or not dist.is_available() or isinstance(error, UserError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def announced() -> int:
    """Return the number of processes that the environment announces, as torchrun does; 1 without."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_device(device: torch.device) -> torch.device:
    """Choose this process's own GPU, by its rank on its machine; other devices stay as they are.

    Raises:
        UserError: there are fewer GPUs than processes on this machine.
    """
    if device.type != "cuda" or announced() <= 1:
        return device
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise UserError(
            f"process {local} of this machine has no GPU: there are {count}", "torchrun", f"--nproc-per-node {count}"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def process_group(timeout: timedelta = timedelta(hours=1)) -> Iterator[None]:
    """Join the processes that torchrun started, for the length of a ``with`` block.

    Tensors on the host move by gloo, those on a GPU by NCCL. Does nothing where the environment names one process
    only, or where a group exists already.

    Args:
        timeout: after which a process that waits for another gives up.

    Raises:
        UserError: several processes are announced, but the group cannot be formed.
    """
    if _active() or announced() <= 1:
        yield
        return
    global _store
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        _store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore("group", _store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes could not be joined ({error})", f"backend {backend}", "Start them with torchrun"
        ) from error
    together = False
    try:
        yield
        dist.barrier()  # nobody leaves while another still listens to him
        together = True
    finally:
        dist.destroy_process_group()
        if not together and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun serves it
            _keep_store(_store, number, count)
        _store = None


def _keep_store(store: Any, number: int, count: int) -> None:
    """Keep the store, which the main process serves, until the others have asked it who reports the failure."""
    with suppress(RuntimeError):  # it is gone
        left, until = store.add("left", 1), time.monotonic() + _KEPT
        while number == 0 and left < count and time.monotonic() < until:
            time.sleep(0.05)
            left = store.add("left", 0)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
