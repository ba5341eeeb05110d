"""A stage that fails in one process of two or in both, started by torchrun; the argument says where."""

import sys
from dataclasses import dataclass
from functools import partial

import torch

from vqvae2 import distributed
from vqvae2.errors import UserError
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage


@dataclass(frozen=True)
class Arguments:
    """No flags."""


def _fail() -> None:
    raise UserError("broken", f"process {distributed.rank()}", "Give another")


def _story(_line: CommandLine[Arguments]) -> None:
    fails = sys.argv[1]
    if fails == "elsewhere":
        distributed.on_main(_fail)
    if fails == "bug" and distributed.rank() == 1:
        print(1 // 0)
    if fails in ("both", str(distributed.rank())):
        _fail()
    distributed.all_reduce_sum(torch.ones(1))


if __name__ == "__main__":
    raise SystemExit(run_stage(partial(CommandLine, "sample", Arguments, {"running": ()}), _story, []))
