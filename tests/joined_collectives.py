"""Make every collective call once and write what came of it; run by test_distributed.py in three processes."""

import json
from pathlib import Path

import torch

from vqvae2 import distributed
from vqvae2.batches import EpochBatches
from vqvae2.errors import UserError


def main() -> None:
    with distributed.process_group():
        rank = distributed.rank()
        seen: dict[str, object] = {"part": list(distributed.own_part(range(7)))}
        seen["rows"] = distributed.all_gather_rows(torch.full((rank, 2), rank)).tolist()
        seen["sum"] = distributed.all_reduce_sum(torch.tensor([rank, 1])).tolist()
        seen["main"] = distributed.on_main(lambda: {"rank": distributed.rank()})
        try:
            distributed.on_main(fail)
        except (ValueError, distributed.Elsewhere) as error:
            seen["failure"] = type(error).__name__
        try:
            EpochBatches(100, 8, 0)
        except UserError as error:
            seen["batch"] = str(error)
        Path(f"{rank}.json").write_text(json.dumps(seen))


def fail() -> None:
    raise ValueError("on purpose")


if __name__ == "__main__":
    main()
