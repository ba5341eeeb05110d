"""The flags of a run of tiny models on a tiny phantom, for the tests of the command lines."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from vqvae2.errors import UserError

ROOT = Path(__file__).parents[1]
VQVAE_FLAGS = shlex.split(
    "--data phantom --phantom-images 60 --size 32x32 --hidden-channels 8 --residual-channels 4 "
    "--num-residual-layers 1 --num-embeddings 16 16 --embedding-dim 4 4 --init-vectors 128 --batch-size 8 "
    "--max-steps 3 --evaluations 1 --log-every 1"
)
PRIOR_FLAGS = shlex.split(
    "--embedding-dim 4 --channels 8 --residual-channels 8 --num-layers 2 --attention-every 2 --num-heads 2 "
    "--condition-layers 1 --batch-size 8 --max-steps 3 --evaluations 1 --log-every 1"
)
CHAIN = {
    "train_vqvae": ["train_vqvae.py", *VQVAE_FLAGS],
    "extract_codes": ["extract_codes.py", "--allow-collapse"],
    "train_prior top": ["train_prior.py", "--level", "top", *PRIOR_FLAGS],
    "train_prior bottom": ["train_prior.py", "--level", "bottom", *PRIOR_FLAGS],
    "sample": ["sample.py", "--num", "5", "--chunk-size", "2", "--label", "diagnosis=atrophy", "--seed", "7"],
    "evaluate": ["evaluate.py"],
}

Main = Callable[[list[str]], int]


class Ended(NamedTuple):
    """How a stage ended."""

    code: int
    out: str
    err: str


class Chain(NamedTuple):
    """A finished run, and how each of its stages ended."""

    run: Path
    stages: dict[str, Ended]


def interrupted(task: type, steps: int) -> type:
    """A task as it is, but for an interrupt after so many steps."""

    class Interrupted(task):  # type: ignore[misc, valid-type]
        def after_step(self) -> None:
            super().after_step()
            if self.steps == steps:
                raise KeyboardInterrupt

    return Interrupted


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder with its size and time of change."""
    entries = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): (s.st_size, s.st_mtime_ns) for path, s in entries.items()}


def stats(folder: Path) -> list[dict]:
    """The lines of a training's log."""
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def one_line(error: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    """Check that an error is told in one line that names the parts."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text
