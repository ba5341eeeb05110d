"""Many files read at once: by threads, and, where there are very many, by processes."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vqvae2.batches import as_it_is, ignore_signals
from vqvae2.data.decoding import UnreadableError
from vqvae2.progress import Progress

__all__ = ["cores", "processes_pay", "read_all", "read_by_processes"]

_AT_ONCE = 16  # files that a process reads before it hands them over

S = TypeVar("S")
T = TypeVar("T")


def processes_pay() -> bool:
    """Tell whether processes read files faster than threads: where there are cores for them, and they can be forked.

    Any other start of a process would run the user's script again.
    """
    way = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if cores() < 2 or way != "fork":
        return False
    try:
        multiprocessing.Lock()  # such as their queues need; some containers have none
    except OSError:
        return False
    return True


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_all(
    paths: Sequence[S], read: Callable[[S], T], doing: str, unit: str, threads: int
) -> Iterator[tuple[int, T | UnreadableError]]:
    """Read files, or groups of files, in a pool of threads, at most 16, with a progress bar.

    Yields:
        (index, result or why not), in order.
    """

    def one(path: S) -> T | UnreadableError:
        try:
            return read(path)
        except UnreadableError as reason:
            return reason

    progress = Progress(len(paths), doing, unit, everywhere=True)  # one process of the machine reads for all
    pool = ThreadPoolExecutor(min(16, threads))
    try:
        # A few at a time: what is read waits in memory until it is asked for.
        ahead = 4 * min(16, threads)
        waiting = deque(pool.submit(one, path) for path in paths[:ahead])
        for index in range(len(paths)):
            result = waiting.popleft().result()
            if index + ahead < len(paths):
                waiting.append(pool.submit(one, paths[index + ahead]))
            progress()
            yield index, result
    finally:
        progress.close()
        pool.shutdown(cancel_futures=True)


class _Chunks(Dataset[Any]):
    """Parts of the files, read one after the other."""

    def __init__(self, paths: Sequence[Any], read: Callable[[int, Sequence[Any]], Any], size: int) -> None:
        self.paths, self.read, self.size = paths, read, size

    def __len__(self) -> int:
        return -(-len(self.paths) // self.size)

    def __getitem__(self, number: int) -> Any:
        first = number * self.size
        return self.read(first, self.paths[first : first + self.size])


def read_by_processes(
    paths: Sequence[S], read: Callable[[int, Sequence[S]], T], doing: str, unit: str, size: int = _AT_ONCE
) -> Iterator[tuple[int, T]]:
    """Read files in processes, as many as there are cores, with a progress bar.

    Threads of Python decode images hardly faster than one of them does.

    Args:
        paths: of the files.
        read: reads ``size`` files, given the number of the first and their paths; a function of a module, or made of
            one by `functools.partial`. What it returns is pickled, unless it is a tensor, which is shared.
        doing, unit: for the bar.
        size: files read at once.

    Yields:
        (index of the first file, what was read), in order.
    """
    with Progress(len(paths), doing, unit, everywhere=True) as progress:
        loader = DataLoader(
            _Chunks(paths, read, size),
            batch_size=None,
            num_workers=min(16, cores()),
            collate_fn=as_it_is,
            worker_init_fn=ignore_signals,
            generator=torch.Generator().manual_seed(0),  # the training's random state stays as it is
        )
        for number, found in enumerate(loader):
            first = number * size
            progress(min(size, len(paths) - first))
            yield first, found
