"""Copy the models of a run into a small folder of their own, from which others sample, evaluate and train on."""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2 import checkpoint, files
from vqvae2.codes import CodeStore
from vqvae2.errors import UserError
from vqvae2.stages.common import RunFolder, check_fingerprints, refuse_torchrun
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sampled import MODELS
from vqvae2.version import __version__
from vqvae2.vqvae import level_names

_TENTHS = 10
_LEAST = 4096  # values of a tensor that is worth storing in fewer bits
_STAGES = (
    "model",
    "training",
    "augmentation",
    "sharpening",
    "copies",
    "outcome",
    "imported",
)  # of what a training says of itself


@dataclass(frozen=True)
class Arguments:
    """Copy the models of a run into a small folder of their own, from which others sample, evaluate and train on.

    The folder is a run folder without codes, data and states of training: sample.py and evaluate.py --data take it as
    --run, train_vqvae.py and train_prior.py as --init. It holds no image and no name, but the labels of the training
    images, counted; numbers are rounded to tenths of their range.
    """

    run: Path
    """Run folder with a VQ-VAE and the priors of all its levels."""
    out: Path
    """The folder; it must be empty or absent."""
    weights: Literal["fp32", "fp16", "int8"] = "fp16"
    """How weights are stored; int8: those of the priors in 8 bits with a scale for each row, the VQ-VAE's in fp16. The
    priors' guides are stored in 8 bits with fp16, too."""


_GROUPS = {"running": ("run", "out", "weights")}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    return run_stage(partial(CommandLine, "export", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    refuse_torchrun("export")
    run, out = RunFolder(arguments.run), RunFolder(arguments.out)
    record = run.read()
    if out.path.exists() and (not out.path.is_dir() or any(out.path.iterdir())):
        raise UserError("this folder holds other files", out.path, "Give --out a folder of its own")
    if not checkpoint.has_model(run.vqvae):
        raise UserError("there is no VQ-VAE yet", run.vqvae, "Train it first")
    config = checkpoint.load_config(run.vqvae, kind="vqvae")
    levels = level_names(len(config["strides"]))
    store = CodeStore(run.codes)
    check_fingerprints(run, store, [level for level in levels if checkpoint.has_model(run.prior(level))])
    hashes = {"vqvae": _copy(run.vqvae, out.vqvae, "fp32" if arguments.weights == "fp32" else "fp16")}
    for level in levels:
        hashes[level] = _copy(run.prior(level), out.prior(level), arguments.weights)
        if checkpoint.has_model(run.guide(level)):
            _copy(run.guide(level), out.guide(level), arguments.weights if arguments.weights == "fp32" else "int8")
    labels = Counter(map(tuple, _coarse(store.labels[store.indices("train")], store).tolist()))
    files.write_json(
        out.path / MODELS,
        {
            "format": checkpoint.FORMAT,
            "kind": "models",
            "version": __version__,
            "weights": arguments.weights,
            "sha256": hashes,
            "labels": [[list(row), count] for row, count in sorted(labels.items())],
        },
    )
    first = ("format", "version", "preset", "levels", "seed")
    kept: dict[str, Any] = {name: record[name] for name in first if name in record}
    for name, value in record.items():
        if isinstance(value, dict) and name.startswith("train_"):
            kept[name] = {part: value[part] for part in _STAGES if part in value}
    kept["train_vqvae"]["data"] = _without_paths(record["train_vqvae"]["data"])
    files.write_json(out.path / "run.json", kept)
    size = sum(path.stat().st_size for path in out.path.rglob("*") if path.is_file())
    print(f"wrote {out.path}: VQ-VAE and priors of {', '.join(levels)}, {size / 1e6:.1f} MB, {arguments.weights}")


def _copy(source: Path, target: Path, weights: str) -> str:
    """Copy a model; return the SHA-256 of its weights."""
    if not checkpoint.has_model(source):
        raise UserError("there is no model yet", source, "Train it first")
    config = {name: value for name, value in checkpoint.load_config(source).items() if name != "version"}
    if "data" in config:
        config["data"] = _without_paths(config["data"])
    tensors: dict[str, Tensor] = {}
    for name, tensor in checkpoint.load_tensors(source).items():
        tensors |= _stored(name, tensor, weights)
    return checkpoint.save_pretrained(target, config, tensors)


def _stored(name: str, tensor: Tensor, weights: str) -> dict[str, Tensor]:
    """Store a tensor in fewer bits; codebooks and what is small are left as they are."""
    large = tensor.is_floating_point() and tensor.ndim > 1 and tensor.numel() >= _LEAST
    if weights == "fp32" or not large or name.startswith("quantizers."):
        return {name: tensor}
    if weights == "fp16":
        return {name: tensor.to(torch.float16)}
    return checkpoint.in_eight_bits(name, tensor)


def _coarse(labels: NDArray[np.int64], store: CodeStore) -> NDArray[np.int64]:
    """Round numbers to tenths of their range, so that they do not tell one person from all others."""
    labels = labels.copy()
    for column, (name, values) in enumerate(store.attributes.items()):
        if name in store.data.get("numbers", ()):
            last = len(values) - 1
            rounded = np.rint(np.rint(labels[:, column] / last * _TENTHS) * last / _TENTHS).astype(np.int64)
            labels[:, column] = np.where(labels[:, column] < 0, -1, rounded)
    return labels


def _without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """Leave the last part of each path."""
    found: dict[str, Any] = json.loads(json.dumps(record))
    for name in ("source", "data", "labels", "data_root"):
        if isinstance(found.get(name), str) and "/" in found[name].replace("\\", "/"):
            found[name] = PurePath(found[name].replace("\\", "/")).name
    return found
