"""Atomic files and JSON."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import one_line

from vqvae2 import files
from vqvae2.errors import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    scales: tuple[tuple[float, ...], ...] = ((1.0, 2.0), (3.0,))
    kind: str = "vqvae"


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path):
    path = tmp_path / "run.json"
    files.write_atomic(path, b"old")

    def half(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError) as error:
        files.write_atomic(path, half)
    one_line(error, "No space left on device", str(path))
    with pytest.raises(UserError, match="cannot write"):
        files.write_atomic(tmp_path / "absent" / "file", b"")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]
    files.write_atomic(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"


def test_json_takes_what_the_stages_hold_and_stays_valid(tmp_path):
    path = tmp_path / "report.json"
    files.write_json(
        path,
        {
            "config": Config(2),
            "path": Path("runs/brain"),
            "nan": float("nan"),
            "array": np.array([1.0, np.inf], dtype=np.float32),
            "count": np.int64(3),
            "tensor": torch.tensor([1, 2]),
            "name": "Hirn – Gehirn",
        },
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == files.read_json(path)
    assert read == {
        "config": {"width": 2, "scales": [[1.0, 2.0], [3.0]], "kind": "vqvae"},
        "path": "runs/brain",
        "nan": None,
        "array": [1.0, None],
        "count": 3,
        "tensor": [1, 2],
        "name": "Hirn – Gehirn",
    }
    with pytest.raises(TypeError):
        files.write_json(path, {"object": object()})
    assert read == files.read_json(path)
