"""Copy the models of a run into a small folder of their own, from which others sample, evaluate and train on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
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
from vqvae2.programs import Kind, require, write_programs
from vqvae2.stages.common import RunFolder, check_fingerprints, refuse_torchrun
from vqvae2.stages.detail import load_detail
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.model_card import model_card
from vqvae2.stages.output_folder import all_or_nothing
from vqvae2.stages.sampled import MODELS, check_exported, drawn_levels, exported, guide_name
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE, VQVAEConfig, level_names

_TENTHS = 10
_LEAST = 4096  # values of a tensor that is worth storing in fewer bits
# Of what a training says of itself.
_STAGES = (
    *("model", "training", "augmentation", "sharpening", "detail", "copies", "outcome", "imported"),
    "init_trained_by_features",
)
_README = "README.md"
_MAY_LIE_THERE = (_README, "LICENSE", "LICENSE.txt", "LICENSE.md")  # as in a new repository of a hub


@dataclass(frozen=True)
class Arguments:
    """Copy the models of a run into a small folder of their own, from which others sample, evaluate and train on.

    The folder is a run folder without codes, data and states of training: sampling takes it as --run, as does an
    evaluation with --data, and trainings take it as --init. It holds no image and no name, but the labels of the
    training images, counted; numbers are rounded to tenths of their range. A model card, README.md, is written where
    there is none.
    """

    run: Path
    """Run folder with a VQ-VAE and the priors of the levels that samples need, or a folder of exported models."""
    out: Path
    """The folder; it must be empty or absent, but for README.md, LICENSE and hidden files, which stay as they are."""
    weights: Literal["fp32", "fp16", "int8"] = "fp16"
    """How weights are stored; int8: those of the priors in 8 bits with a scale for each row, the VQ-VAE's in fp16. The
    priors' guides are stored in 8 bits with fp16, too."""
    programs: tuple[Kind, ...] = ()
    """Also write the VQ-VAE's encoder and decoder as programs that run without this package, in float32, into vqvae/:
    onnx: encoder.onnx and decoder.onnx; torch: encoder.pt2 and decoder.pt2, for torch.export.load. Each is checked
    against the exported model."""


_GROUPS = {"running": ("run", "out", "weights", "programs")}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    return run_stage(partial(CommandLine, "export", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    refuse_torchrun("export")
    run, out = RunFolder(arguments.run), arguments.out
    record = run.read()
    kinds = tuple(dict.fromkeys(arguments.programs))
    require(kinds)
    _check_out(out)
    if not checkpoint.has_model(run.vqvae):
        raise UserError("there is no VQ-VAE yet", run.vqvae, "Train it first")
    load_detail(run, torch.device("cpu"))  # refuses one of another VQ-VAE
    config = checkpoint.load_config(run.vqvae, kind="vqvae")
    levels = level_names(len(config["strides"]))
    drawn = levels[: drawn_levels(run)]  # samples need these priors; the others may not have been trained
    priors = [level for level in levels if level in drawn or checkpoint.has_model(run.prior(level))]
    labels = _labels(run, priors)
    with all_or_nothing(out, last="run.json") as folder:  # what makes it a run
        made = RunFolder(folder)
        vqvae_weights = "fp32" if arguments.weights == "fp32" else "fp16"
        hashes = {"vqvae": _copy(run.vqvae, made.vqvae, vqvae_weights)}
        for level in priors:
            hashes[level] = _copy(run.prior(level), made.prior(level), arguments.weights)
            if checkpoint.has_model(run.guide(level)):
                guide_weights = "fp32" if arguments.weights == "fp32" else "int8"
                hashes[guide_name(level)] = _copy(run.guide(level), made.guide(level), guide_weights)
        if checkpoint.has_model(run.detail):
            hashes["detail"] = _copy(run.detail, made.detail, vqvae_weights, vqvae_sha256=hashes["vqvae"])
        model = VQVAE.from_pretrained(made.vqvae)
        programs = write_programs(model, made.vqvae, kinds)
        files.write_json(
            made.path / MODELS,
            {
                "format": checkpoint.FORMAT,
                "kind": "models",
                "version": __version__,
                "weights": arguments.weights,
                "sha256": hashes,
                "programs": programs,
                "labels": labels,
            },
        )
        kept = _kept(record)
        files.write_json(made.path / "run.json", kept)
        if exported(run) and (run.path / _README).is_file() and not (out / _README).exists():
            print(f"README.md is that of {run.path.name}: look at what it says of weights and programs")
        if not (out / _README).exists():
            card = _card(run, out, made, model.config, labels, kept, arguments.weights, programs, priors)
            files.write_atomic(made.path / _README, card)
        size = sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
    for kind, found in programs.items():
        print(f"{kind:<10} {_checked(found)}")
    print(f"wrote {out}: VQ-VAE and priors of {', '.join(priors)}, {size / 1e6:.1f} MB, {arguments.weights}")


def _check_out(out: Path) -> None:
    """Raise UserError for a folder that holds what may be another's."""
    if not out.exists():
        return
    there = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    if others := [name for name in there if not (name.startswith(".") or name in _MAY_LIE_THERE)]:
        raise UserError(f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own")


def _labels(run: RunFolder, levels: Sequence[str]) -> list[list[Any]]:
    """The labels of the training images, each combination with its number; models must belong together.

    Raises:
        UserError: two do not belong together.
    """
    if exported(run):
        check_exported(run, levels)
        found: list[list[Any]] = files.read_json(run.path / MODELS)["labels"]
        return found
    store = CodeStore(run.codes)
    check_fingerprints(run, store, [level for level in levels if checkpoint.has_model(run.prior(level))])
    labels = Counter(map(tuple, _coarse(store.labels[store.indices("train")], store).tolist()))
    return [[list(row), count] for row, count in sorted(labels.items())]


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """What others may know of run.json."""
    first = ("format", "version", "preset", "levels", "seed")
    kept: dict[str, Any] = {name: record[name] for name in first if name in record}
    for name, value in record.items():
        if isinstance(value, dict) and name.startswith("train_"):
            kept[name] = {part: value[part] for part in _STAGES if part in value}
    kept["train_vqvae"]["data"] = _without_paths(record["train_vqvae"]["data"])
    return kept


def _card(
    run: RunFolder,
    out: Path,
    made: RunFolder,
    config: VQVAEConfig,
    labels: Sequence[Sequence[Any]],
    kept: Mapping[str, Any],
    weights: str,
    programs: Mapping[str, Mapping[str, Any]],
    priors: Sequence[str],
) -> bytes:
    """The model card; that of models that had been exported before says what only their owner knows, and is kept."""
    if exported(run) and (run.path / _README).is_file():
        return (run.path / _README).read_bytes()
    data = checkpoint.load_config(made.vqvae)["data"]
    images = sum(count for _, count in labels)
    painted = drawn_levels(made) if checkpoint.has_model(made.detail) else 0
    report = _report(run, priors)
    name = out.resolve().name
    return model_card(name, config, data, images, kept, report, weights, programs, priors, painted).encode()


def _report(run: RunFolder, priors: Sequence[str]) -> dict[str, Any] | None:
    """The run's report, where it is of the present models."""
    path = run.path / "report" / "report.json"
    if not path.is_file():
        return None
    report: dict[str, Any] = files.read_json(path)
    hashes = report.get("hashes", {})
    same = hashes.get("vqvae_sha256") == checkpoint.sha256_of(run.vqvae)
    same &= hashes.get("prior_sha256") == {level: checkpoint.sha256_of(run.prior(level)) for level in priors}
    painted = checkpoint.has_model(run.detail)
    same &= hashes.get("detail_sha256") == (checkpoint.sha256_of(run.detail) if painted else None)
    return report if same else None


def _checked(found: Mapping[str, Any]) -> str:
    """Say in one line how programs compare with the model."""
    return (
        f"{', '.join(found['sha256'])}: {found['codes_that_differ']:,} of {found['codes']:,} codes differ from the "
        f"model's, images by at most {found['largest_difference']:.2g} ({found['images']} images)"
    )


def _copy(source: Path, target: Path, weights: str, **origin: str) -> str:
    """Copy a model, with other values of its config's origin; return the SHA-256 of its weights."""
    if not checkpoint.has_model(source):
        raise UserError("there is no model yet", source, "Train it first")
    config = {name: value for name, value in checkpoint.load_config(source).items() if name != "version"} | origin
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
