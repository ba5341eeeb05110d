"""Batches without end: each epoch in an order of its own, from any batch on."""

import signal
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset, Sampler

from vqvae2 import distributed
from vqvae2.errors import UserError

__all__ = ["EpochBatches", "as_it_is", "batch_length", "check_divides", "ignore_signals", "load_batches"]


def check_divides(batch_size: int, length: int) -> None:
    """Raise UserError unless a batch divides among the processes, and there is an item for each of them."""
    if length < distributed.world_size():
        raise UserError(f"there are {length} training items for {distributed.world_size()} processes", how="Run fewer")
    if batch_size % distributed.world_size():
        raise UserError(
            f"a batch of {batch_size} does not divide among {distributed.world_size()} processes",
            "--batch-size",
            "Give a multiple of their number: it counts the items of all processes",
        )


class EpochBatches(Sampler[list[int]]):
    """Endless batches of indices: each epoch a permutation by (seed, epoch), from any batch on.

    Args:
        length: items of the data set, >= 1.
        batch_size: items of a batch; an epoch's last, smaller batch is dropped unless it is the only one. Fewer where
            there are not so many: as many as divide among the processes.
        seed: of the permutations.
        start: batches that are skipped.
        numbered: yield ``epoch * length + index`` instead of the index, for data that differ between epochs.

    In a distributed run every process draws the same batches and yields its own contiguous part of each, so that the
    batches do not depend on the number of processes.

    Raises:
        UserError: a batch does not divide among the processes, or there are fewer items than processes.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0, numbered: bool = False) -> None:
        self.length, self.seed, self.start, self.numbered = length, seed, start, numbered
        check_divides(batch_size, length)
        self.batch_size = min(batch_size, length // distributed.world_size() * distributed.world_size())
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.start, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = (torch.randperm(self.length, generator=generator) + epoch * self.length * self.numbered).tolist()
            for i in range(first, self.batches_per_epoch):
                yield list(distributed.own_part(order[i * self.batch_size : (i + 1) * self.batch_size]))
            epoch, first = epoch + 1, 0


class _ByEpoch(Dataset[dict[str, Any]]):
    """Data that differ between epochs, asked for by numbers that tell epoch and index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        epoch = numbers[0] // len(self.dataset)  # a batch lies in one epoch
        return self.dataset.at_epoch([number % len(self.dataset) for number in numbers], epoch)


def load_batches(
    dataset: Any, batch_size: int, seed: int, start: int, device: torch.device, num_workers: int = 0
) -> Generator[dict[str, Any], None, None]:
    """Load batches without end and move them to a device.

    Args:
        dataset: its ``__getitems__(indices)`` returns one batch, a dict of tensors or lists of them; where it has
            ``at_epoch(indices, epoch)`` that is called instead.
        batch_size, seed, start: as of `EpochBatches`.
        device: where the tensors go.
        num_workers: processes that load; 0 loads in this one.
    """
    by_epoch = hasattr(dataset, "at_epoch")
    loader = DataLoader(
        _ByEpoch(dataset) if by_epoch else dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, seed, start, numbered=by_epoch),
        num_workers=num_workers,
        collate_fn=as_it_is,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
        # A generator of its own: loading must not move the training's random state.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        yield tree_map_only(Tensor, lambda value: value.to(device, non_blocking=True), batch)


def batch_length(batch: Mapping[str, Any]) -> int:
    """Count the items of a batch, by its first tensor."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def ignore_signals(_worker: int) -> None:
    """Let a loading process ignore SIGINT and SIGTERM; the main process ends it."""
    # Whoever ends a job signals all of its processes; a worker that dies of it would break the step under way.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def as_it_is(batch: Any) -> Any:
    """Return what was loaded unchanged: it is a batch already."""
    return batch
