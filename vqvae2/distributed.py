"""Rank, world size and the few collectives that the project needs, over torch.distributed.

In a single process all of it works too and moves nothing. Every process must make the same calls in the same
order.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from vqvae2.errors import UserError


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
    total = _movable(tensor.detach().clone())
    dist.all_reduce(total)
    return total.to(tensor.device)


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
    own = _movable(tensor.detach())
    lengths = own.new_zeros(world_size(), dtype=torch.int64)
    lengths[rank()] = len(own)
    dist.all_reduce(lengths)
    sizes = lengths.tolist()
    # Collectives want equal shapes: padded to the longest, cut again on arrival.
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(tensor.device)


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Join the processes that torchrun started, for the length of a ``with`` block.

    Does nothing where the environment names one process only, or where a group exists already.

    Args:
        backend: ``"nccl"`` (each process takes the GPU of its local rank) or ``"gloo"``.

    Raises:
        UserError: several processes are announced, but the group cannot be formed.
    """
    if _active() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield
        return
    try:
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes could not be joined ({error})", f"backend {backend}", "Start them with torchrun"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def _movable(tensor: Tensor) -> Tensor:
    """The tensor where the backend can reach it: NCCL moves nothing that lies on the host."""
    if dist.get_backend() == "nccl" and tensor.device.type == "cpu":
        tensor = tensor.cuda()
    return tensor.contiguous()
