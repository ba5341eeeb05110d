"""Stage 3: train the prior of one level on the codes (Razavi et al. 2019, algorithm 2, second step)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from vqvae2 import checkpoint, distributed
from vqvae2.batches import check_divides
from vqvae2.budget import budget, table
from vqvae2.codes import CodeStore
from vqvae2.device import CompileChoice
from vqvae2.errors import UserError
from vqvae2.metrics import naive_log_tables, table_nll
from vqvae2.optim import TrainingConfig
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.presets import PRESETS
from vqvae2.prior import Prior, PriorConfig
from vqvae2.report import reliance, score_codes, spread_out
from vqvae2.sampling import sample_codes
from vqvae2.stages.commands import command
from vqvae2.stages.common import (
    Compute,
    RunFolder,
    check_fingerprints,
    check_resumed,
    keep_outcome,
    limited,
    locked,
    memory_in_words,
    prepare_folder,
    record_of,
    resumed,
    start_from,
)
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.task import Sums
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE

_EVALUATED = 512  # images of a split that an evaluation during training looks at; evaluate.py looks at all
_SHOWN = 8
_CLASSES = 4


@dataclass(frozen=True)
class Arguments:
    """Stage 3: train the prior of one level on the codes (Razavi et al. 2019, algorithm 2, second step).

    Defaults come from the run's preset; --help shows them if --run and --level are given with it.
    """

    run: Path
    """Run folder with extracted codes."""
    level: str
    """Level of the prior: top, bottom, or one in between."""
    model: PriorConfig = field(default_factory=PriorConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    compute: Compute = field(default_factory=Compute)
    init: Path | None = None
    """Run folder, or folder of exported models, whose prior of this level the training starts from, with its
    architecture. Its VQ-VAE must be the one that this run's started from."""
    config: Path | None = None
    """JSON file with settings by name; flags override it."""
    compile: CompileChoice = "auto"
    """Whether to use torch.compile; auto: in long runs on a GPU, if a compiler works."""
    resume: bool = False
    """Continue from the saved state, with the settings of the run."""
    overwrite: bool = False
    """Start again; the level's prior in the run folder is deleted."""
    dry_run: bool = False
    """Print the codes' report, the model's size, a memory estimate and the budget of its parts (multiply-adds, time),
    and exit."""


_GROUPS = {
    "data": ("level",),
    "model": ("init", "channels", "residual_channels", "num_layers", "attention_every", "dropout", "model"),
    "training": ("max_minutes", "max_steps", "batch_size", "learning_rate", "evaluations", "patience", "training"),
    "running": ("run", "resume", "overwrite", "dry_run", "device", "seed", "config"),
}
_FROM_CODES = [f"model.{name}" for name in ("level", "height", "width", "num_embeddings", "attributes", "numbers")]
_FROM_CODES += [f"model.condition_{name}" for name in ("levels", "shapes", "num_embeddings")]


class PriorTask:
    """What `fit` trains in this stage."""

    unit = "images_per_second"
    rate_flag, restarts = "--learning-rate", False
    compiled_pays_on_cpu = False  # a light prior's step of 64x64 codes: 397 ms eager, 441 ms compiled
    score = "selection/nll"
    has_guide = True

    def __init__(
        self, prior: Prior, model: VQVAE, store: CodeStore, origin: dict[str, Any], fresh: bool = True
    ) -> None:
        self.prior, self.model, self.store, self.origin = prior, model, store, origin
        self.index = store.levels.index(prior.config.level)
        self.device = prior.device
        train = store.indices("train")
        self.dataset = Subset(store, train + store.indices("copies"))
        self.splits = {split: self._some(split, _EVALUATED) for split in ("selection", "val")}
        table, self.baselines = distributed.on_main(lambda: self._naive(train))
        if fresh:  # a resumed training replaces these by its state
            prior.start_from(
                [quantizer.embedding for quantizer in model.codebooks[: self.index + 1]], torch.from_numpy(table)
            )

    def _naive(self, train: list[int]) -> tuple[NDArray[np.float64], dict[str, float]]:
        """The table of the training codes by position, and what tables of counts reach on held-out codes."""
        codes, k = self.store.level(self.prior.config.level, train), self.prior.config.num_embeddings
        (everywhere, table), held_out = naive_log_tables(codes, k), self.splits["val"]["codes"][self.index]
        return table, {
            "val/unigram_nll": table_nll(everywhere, held_out),
            "val/position_nll": table_nll(table, held_out),
        }

    def modules(self) -> dict[str, nn.Module]:
        return {"prior": self.prior}

    def compilable(self) -> list[nn.Module]:
        return [self.prior]

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, Sums]:
        logits, target = self._predict(batch)
        loss = F.cross_entropy(logits, target)
        right = (logits.detach().argmax(1) == target).float().mean()
        return loss, {"train/nll": (loss, 1.0), "train/accuracy": (right, 1.0)}

    def after_step(self) -> None:
        """Everything in a prior is learned by gradients."""

    def validate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for split, batch in self.splits.items():
            found = score_codes(self.prior, batch["codes"][: self.index + 1], batch["label"])
            figures |= {f"{split}/nll": float(found.nll.mean()), f"{split}/accuracy": found.accuracy}
        val = self.splits["val"]
        drawn_on = reliance(self.prior, val["codes"][: self.index + 1], val["label"])
        figures |= {f"val/reliance_{name}": rise for name, rise in drawn_on.items()}
        gain = self.baselines["val/position_nll"] - figures["val/nll"]
        return {**figures, **self.baselines, "val/gain": gain}

    def brief(self, figures: dict[str, float]) -> str:
        table = f"(position-wise unigram {figures['val/position_nll']:.3f})"
        told = f"NLL {figures['val/nll']:.3f} nats per code {table}  accuracy {figures['val/accuracy']:.1%}"
        drawn_on = figures.get("val/reliance_own")  # None where val is a single image
        return told if drawn_on is None else f"{told}  own codes {drawn_on:+.3f}"

    def preview(self) -> dict[str, Picture]:
        """Sample this level, given held-out codes of the coarser ones, and decode levels up to this one.

        Where there are labels, also the first of them once for each class of the first attribute, up to four.
        """
        batch, config = self._some("val", _SHOWN), self.prior.config
        coarser = [level.to(self.device) for level in batch["codes"][: self.index]]
        codes, images = self._drawn(coarser, batch["label"])
        size = (self.model.config.height, self.model.config.width)
        pictures = [to_picture(image) for image in images]
        pictures += [code_map(level, config.num_embeddings, size) for level in codes]
        shown = {"samples": grid(pictures, len(images), titles=[f"samples of {config.level}", "their codes"])}
        if config.attributes:
            name, classes = config.attributes[0]
            chosen, each = spread_out(len(classes), _CLASSES), min(len(images), _SHOWN // _CLASSES)
            label = batch["label"][:each].repeat(len(chosen), 1)
            label[:, 0] = torch.tensor(chosen).repeat_interleave(each)
            _, images = self._drawn([level[:each].repeat(len(chosen), 1, 1) for level in coarser], label)
            titles = [f"{name} {classes[k]}" for k in chosen]
            shown["samples_by_class"] = grid([to_picture(image) for image in images], each, titles=titles)
        return shown

    def _drawn(self, coarser: list[Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of this level by one seed, and the images of them and the coarser ones."""
        positions = self.prior.config.height * self.prior.config.width
        uniform = torch.rand(len(label), positions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        codes, _ = sample_codes(self.prior, uniform, coarser, label.to(self.device))
        return codes, self.model.decode([*coarser, codes])

    def histograms(self) -> dict[str, list[int]]:
        """Nothing of a prior's evaluation is counted."""
        return {}

    def save(self, folder: Path) -> None:
        self.prior.save_pretrained(folder, self.origin)

    def state(self) -> dict[str, Any]:
        return {"codes": self.store.fingerprint}

    def load_state(self, state: dict[str, Any]) -> None:
        if state.get("codes", self.store.fingerprint) != self.store.fingerprint:
            raise UserError(
                "this training began with other codes than the run holds now",
                f"--level {self.prior.config.level}",
                "Start again with --overwrite",
            )

    def _predict(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the logits (B h w, K) and the codes (B h w): in this form the loss runs along memory."""
        codes = [level.to(self.device) for level in batch["codes"][: self.index + 1]]
        logits = self.prior(codes[-1], condition=codes[:-1], label=batch["label"].to(self.device))
        return logits.permute(0, 2, 3, 1).flatten(0, 2), codes[-1].long().flatten()

    def _some(self, split: str, count: int) -> dict[str, Any]:
        """Read the codes and labels of some images of a split, evenly spaced."""
        indices = self.store.indices(split)
        return self.store.__getitems__([indices[i] for i in spread_out(len(indices), count)])


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(partial(CommandLine, "train-prior", Arguments, _GROUPS, fixed=_FROM_CODES), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = _settings(line)
    run = RunFolder(arguments.run)
    store = CodeStore(run.codes)
    index = _level_index(store, arguments.level)
    device, precision = arguments.compute.resolve(training=True)
    check_fingerprints(run, store)
    config = arguments.model.for_level(index, *_codes(store))
    for split in ("train", "selection", "val"):
        if not store.indices(split):
            raise UserError(f"the split {split} is empty", run.codes, "Train and extract with images of more subjects")
    check_divides(arguments.training.batch_size, len(store.indices("train")) + len(store.indices("copies")))
    torch.manual_seed(arguments.compute.seed)
    prior = Prior(config)
    if arguments.init is not None:
        _start(prior, RunFolder(arguments.init).prior(arguments.level))
    _describe(prior, arguments.training, store)
    if arguments.dry_run:
        print(table(f"prior of {config.level}", budget(config, device, precision)))
        print(arguments.training.describe_limit())
        return
    with locked(run.prior(arguments.level)):
        _work(line, prior, store, arguments, device, precision)


def _work(
    line: CommandLine[Arguments],
    prior: Prior,
    store: CodeStore,
    arguments: Arguments,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Train, and report the result."""
    config, run = prior.config, RunFolder(arguments.run)
    folder = run.prior(arguments.level)
    prepare_folder(folder, line)
    stage = f"train_prior_{arguments.level}"
    kept = run.read().get(stage, {})
    if arguments.resume and kept:
        check_resumed(kept["model"], config, run, free=("recompute",))
    settings = {
        "arguments": record_of(line, kept),
        "model": asdict(config),
        "training": asdict(arguments.training),
        "compute": asdict(arguments.compute),
        "compile": arguments.compile,
    }
    run.write(**{stage: settings})
    model, origin = VQVAE.from_pretrained(run.vqvae, device), {"codes": store.fingerprint}
    outcome = fit(
        PriorTask(prior.to(device), model, store, origin, fresh=arguments.init is None),
        arguments.training,
        folder,
        device=device,
        precision=precision,
        compile=arguments.compile,
        seed=arguments.compute.seed,
        num_workers=arguments.compute.workers(decoding=False),
        resume=arguments.resume,
    )
    keep_outcome(outcome, run, stage, folder)
    if outcome.best["val/gain"] <= 0:
        print("warning: the prior is no better than a table of counts for each position: train it longer")
    missing = [level for level in store.levels if not checkpoint.has_model(run.prior(level))]
    following = ["train-prior", "--run", run.path, "--level", missing[0]] if missing else ["sample", "--run", run.path]
    print(f"next: {command(*map(str, following))}")


def _level_index(store: CodeStore, level: str) -> int:
    if level not in store.levels:
        raise UserError(f"there is no level {level}", "--level", f"Levels are {', '.join(store.levels)}")
    return list(store.levels).index(level)


def _settings(line: CommandLine[Arguments]) -> Arguments:
    """Return the settings: the command line over those of the prior that is resumed, else over the run's preset."""
    if not {"run", "level"} <= line.given.keys():  # --help alone
        return line.settings()
    run, level = RunFolder(line.given["run"]), line.given["level"]
    record = run.read()
    store = CodeStore(run.codes)
    if record["preset"] not in PRESETS:
        raise UserError(
            f"this version has no preset {record['preset']}", run.path, "Use the version that began the run"
        )
    index, axis = _level_index(store, level), record["train_vqvae"]["data"].get("slice_axis", "axial")
    preset = PRESETS[record["preset"]].for_slices(axis)
    model = preset.prior_for(index, *_codes(store))
    _, training = preset.prior(index)
    configs: dict[str, Any] = {"model": model, "training": training, "compute": Compute()}
    if (init := line.given.get("init")) is not None:
        there = RunFolder(init).prior(level)
        if not checkpoint.has_model(there):
            raise UserError(f"there is no prior of level {level} to start from", there, "Give --init another run")
        own = {name: value for name, value in asdict(model).items() if f"model.{name}" in _FROM_CODES}
        configs["model"] = checkpoint.config_from(PriorConfig, {**checkpoint.load_config(there), **own}, there)
    usual = configs["training"].evaluations
    kept = record.get(f"train_prior_{level}", {}) if line.given.get("resume") else {}
    if kept:
        configs = resumed(configs, kept, run.path)
        usual = None if "evaluations" in kept.get("arguments", {}) else usual
    configs["training"] = limited(configs["training"], line.changed, usual)
    return line.settings(**configs, compile=kept.get("compile", "auto"))


def _start(prior: Prior, folder: Path) -> None:
    """Fill a prior with the weights of another one; labels that it did not have change nothing at first."""
    fresh = _new_labels(prior.config, checkpoint.load_config(folder))
    start_from(prior, folder, fresh)
    for name, parameter in prior.named_parameters():
        if name.startswith("blocks.") and name.startswith(tuple(fresh)):
            nn.init.zeros_(parameter)


def _new_labels(config: PriorConfig, other: Mapping[str, Any]) -> list[str]:
    """Prefixes of the tensors of those labels that another prior lacks, or has with other classes or another range."""
    known = [(name, tuple(classes), name in other.get("numbers", ())) for name, classes in other["attributes"]]
    own = [(name, classes, name in config.numbers) for name, classes in config.attributes]
    told = other["attributes"] or other["condition_levels"]  # else its blocks take no condition at all
    blocks = [] if told else [f"blocks.{i}.condition_" for i in range(config.num_layers)]
    return [*blocks, *(f"labels.{i}." for i, label in enumerate(own) if label not in known[i : i + 1])]


def _codes(store: CodeStore) -> tuple[Any, ...]:
    """What a prior's settings take from the codes, see `PriorConfig.for_level`."""
    return store.levels, store.shapes, store.num_embeddings, store.attributes, store.data.get("numbers", ())


def _describe(prior: Prior, training: TrainingConfig, store: CodeStore) -> None:
    """Print the codes, the model's size and an estimate of the memory."""
    config = prior.config
    parameters = sum(p.numel() for p in prior.parameters())
    counts = "  ".join(f"{split} {len(store.indices(split)):,}" for split in dict.fromkeys(store.splits))
    kinds = [(name, "a number" if name in config.numbers else len(classes)) for name, classes in config.attributes]
    labels = ", ".join(f"{name} ({kind})" for name, kind in kinds) or "none"
    print(f"codes      {config.level} {config.height}x{config.width} of {config.num_embeddings}; images: {counts}")
    print(f"condition  levels: {', '.join(config.condition_levels) or 'none'}; labels: {labels}")
    print(f"model      {parameters:,} parameters, {config.num_layers} gated blocks of {config.channels} channels")
    # Kept for the backward pass: some 14 maps of C or R channels a block.
    rows, columns = config.grid
    cells = training.batch_size * rows * columns
    activations = cells * config.num_layers * 14 * (config.channels + config.residual_channels) * 2
    print(f"memory     about {memory_in_words(parameters * 20 + activations)}: weights and optimiser, activations")
