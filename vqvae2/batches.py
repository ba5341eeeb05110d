"""Batches without end: each epoch in an order of its own, from any batch on."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ["EpochBatches", "batch_length", "load_batches"]


class EpochBatches(Sampler[list[int]]):
    """Endless batches of indices: each epoch a permutation by (seed, epoch), from any batch on.

    Args:
        length: items of the data set, >= 1.
        batch_size: items of a batch; an epoch's last, smaller batch is dropped unless it is the only one.
        seed: of the permutations.
        start: batches that are skipped.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.batch_size = min(batch_size, length)
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = divmod(self.start, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.length, generator=generator).tolist()
            for i in range(first, self.batches_per_epoch):
                yield order[i * self.batch_size : (i + 1) * self.batch_size]
            epoch, first = epoch + 1, 0


def load_batches(
    dataset: Dataset[Any], sampler: Sampler[list[int]], device: torch.device, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Load batches and move them to a device.

    Args:
        dataset: its ``__getitems__(indices)`` returns one batch, a dict of tensors or lists of them.
        sampler: of the batches' indices.
        device: where the tensors go.
        num_workers: processes that load; 0 loads in this one.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_identity,
        pin_memory=device.type == "cuda",
        # A generator of its own: loading must not move the training's random state.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        yield _to(batch, device)


def batch_length(batch: Mapping[str, Any]) -> int:
    """Count the items of a batch, by its first tensor."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    return [_to(v, device) for v in batch] if isinstance(batch, list) else batch.to(device, non_blocking=True)


def _identity(batch: Any) -> Any:
    return batch
