"""Stage 3: train the prior of one level on the codes (Razavi et al. 2019, algorithm 2, second step).

Defaults are those of the run's preset; --help shows them where --run and --level are given with it.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.data import Subset
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint, distributed
from vqvae2.batches import check_divides
from vqvae2.codes import CodeStore
from vqvae2.device import CompileChoice
from vqvae2.errors import UserError
from vqvae2.metrics import positionwise_log_table, positionwise_unigram_nll, unigram_nll
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.presets import PRESETS
from vqvae2.prior import Prior, PriorConfig
from vqvae2.sampling import sample_codes
from vqvae2.stages.common import (
    Compute,
    RunFolder,
    check_fingerprints,
    check_resumed,
    locked,
    memory_in_words,
    merged,
    option,
    parse,
    prepare_folder,
    tell_outcome,
    with_config_file,
)
from vqvae2.stages.launch import run_stage
from vqvae2.training import Sums, TrainingConfig, fit
from vqvae2.vqvae import VQVAE

_EVALUATED = 512  # images of a split that an evaluation during training looks at; evaluate.py looks at all
_SHOWN = 8


@dataclass(frozen=True)
class Arguments:
    """Train the prior of one level."""

    run: Path
    """Run folder with extracted codes."""
    level: str
    """Level of the prior: top, bottom, or what lies between."""
    model: Flat[PriorConfig] = field(default_factory=PriorConfig)
    training: Flat[TrainingConfig] = field(default_factory=TrainingConfig)
    compute: Flat[Compute] = field(default_factory=Compute)
    config: Path | None = None
    """JSON file with settings by name; flags override it."""
    compile: CompileChoice = "auto"
    """torch.compile; auto takes it where a compiler works and the run is long."""
    resume: bool = False
    """Go on from the saved state, with the settings of the run."""
    overwrite: bool = False
    """Start again, removing the prior that the run folder holds."""
    dry_run: bool = False
    """Print the codes' report, the model's size and a memory estimate, and exit."""


class PriorTask:
    """What `fit` trains in this stage."""

    unit = "images_per_second"
    rate_flag, restarts = "--learning-rate", False
    score = "selection/nll"

    def __init__(self, prior: Prior, model: VQVAE, store: CodeStore, origin: dict[str, Any]) -> None:
        self.prior, self.model, self.store, self.origin = prior, model, store, origin
        self.index = store.levels.index(prior.config.level)
        self.device = next(prior.parameters()).device
        train = store.indices("train")
        self.dataset = Subset(store, train + store.indices("copies"))
        codes, k = store.read(train)[self.index], prior.config.num_embeddings
        # A resumed training replaces these by what it had learned.
        table = torch.from_numpy(positionwise_log_table(codes, k))
        prior.start_from([quantizer.embedding for quantizer in model.codebooks[: self.index + 1]], table)
        self.splits = {split: self._some(split) for split in ("selection", "val")}
        held_out = store.read(self.splits["val"])[self.index]
        self.baselines = {
            "val/unigram_nll": unigram_nll(codes, held_out, k),
            "val/position_nll": positionwise_unigram_nll(codes, held_out, k),
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

    def validate(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for split, indices in self.splits.items():
            sums, own = torch.zeros(2, dtype=torch.float64), distributed.own_part(indices)
            for start in range(0, len(own), 32):
                batch = own[start : start + 32]
                logits, target = self._predict(self.store.__getitems__(batch))
                nll, right = F.cross_entropy(logits.float(), target), (logits.argmax(1) == target).float().mean()
                sums += torch.tensor([float(nll), float(right)], dtype=torch.float64) * (len(batch) / len(indices))
            figures[f"{split}/nll"], figures[f"{split}/accuracy"] = distributed.all_reduce_sum(sums).tolist()
        return {
            **figures,
            **self.baselines,
            "val/gain": self.baselines["val/position_nll"] - figures["val/nll"],
        }

    def preview(self) -> dict[str, Picture]:
        """Sample this level, given held-out codes of the coarser ones, and decode as far as it goes."""
        batch = self.store.__getitems__(self.splits["val"][:: max(1, len(self.splits["val"]) // _SHOWN)][:_SHOWN])
        coarser = [level.to(self.device) for level in batch["codes"][: self.index]]
        positions = self.prior.config.height * self.prior.config.width
        uniform = torch.rand(
            len(batch["label"]), positions, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        codes, _ = sample_codes(self.prior, uniform.to(self.device), coarser, batch["label"].to(self.device))
        images = self.model.decode([*coarser, codes])
        k, size = self.prior.config.num_embeddings, (self.model.config.height, self.model.config.width)
        pictures = [to_picture(image) for image in images] + [code_map(level, k, size) for level in codes]
        return {"samples": grid(pictures, len(images))}

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

    def _some(self, split: str) -> list[int]:
        indices = self.store.indices(split)
        return indices[:: -(-len(indices) // _EVALUATED)]


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(_story, argv, prog, "train_prior.py")


def _story(argv: list[str], prog: str) -> None:
    name = option(argv, "run")
    store = CodeStore(RunFolder(Path(name)).codes) if name and RunFolder(Path(name)).read() else None
    arguments = _arguments(argv, prog, store)
    assert store is not None
    run, index = RunFolder(arguments.run), _level_index(store, arguments.level)
    device, precision = arguments.compute.resolve()
    check_fingerprints(run, store)
    config = replace(
        arguments.model,
        level=arguments.level,
        height=store.shapes[index][0],
        width=store.shapes[index][1],
        num_embeddings=store.num_embeddings[index],
        condition_levels=tuple(store.levels[:index]),
        condition_shapes=tuple(store.shapes[:index]),
        condition_num_embeddings=tuple(store.num_embeddings[:index]),
        attributes=tuple((name, tuple(classes)) for name, classes in store.attributes.items()),
    )
    for split in ("train", "selection", "val"):
        if not store.indices(split):
            raise UserError(f"the split {split} is empty", run.codes, "Give images of more subjects and extract again")
    check_divides(arguments.training.batch_size)
    torch.manual_seed(arguments.compute.seed)
    prior = Prior(config)
    _describe(prior, arguments.training, store)
    if arguments.dry_run:
        print(arguments.training.describe_limit())
        return
    with locked(run.prior(arguments.level)):
        _work(prior, store, arguments, run, device, precision)


def _work(
    prior: Prior, store: CodeStore, arguments: Arguments, run: RunFolder, device: torch.device, precision: torch.dtype
) -> None:
    """Train, and tell what came of it."""
    config, folder = prior.config, run.prior(arguments.level)
    prepare_folder(folder, arguments.resume, arguments.overwrite)
    stage = f"train_prior_{arguments.level}"
    if arguments.resume and stage in run.read():
        check_resumed(run.read()[stage]["model"], config, run, free=("recompute",))
    settings = {
        "model": asdict(config),
        "training": asdict(arguments.training),
        "compute": asdict(arguments.compute),
        "compile": arguments.compile,
    }
    run.write(**{stage: settings})
    outcome = fit(
        PriorTask(prior.to(device), VQVAE.from_pretrained(run.vqvae, device), store, {"codes": store.fingerprint}),
        arguments.training,
        folder,
        device=device,
        precision=precision,
        compile=arguments.compile,
        seed=arguments.compute.seed,
        num_workers=arguments.compute.num_workers,
        resume=arguments.resume,
    )
    tell_outcome(outcome, run, stage, folder)
    gain = outcome.best["val/gain"]
    print(f"held-out NLL {outcome.best['val/nll']:.3f} nats per code, {gain:.3f} below the position-wise unigram")
    if gain <= 0:
        print("warning: the prior is no better than a table of counts for each position")
    missing = [level for level in store.levels if not checkpoint.has_model(run.prior(level))]
    follow = (
        f"train_prior.py --run {run.path} --level {missing[0]}" if missing else f"sample.py --run {run.path} --num 64"
    )
    print(f"next: python {follow}")


def _level_index(store: CodeStore, level: str) -> int:
    if level not in store.levels:
        raise UserError(f"there is no level {level}", "--level", f"Levels are {', '.join(store.levels)}")
    return list(store.levels).index(level)


def _arguments(argv: list[str], prog: str, store: CodeStore | None) -> Arguments:
    """Read the command line over the run's preset, or over the settings of the prior that is resumed."""
    run, level = option(argv, "run"), option(argv, "level")
    compile: CompileChoice = "auto"
    configs: dict[str, Any] = {"model": PriorConfig(), "training": TrainingConfig()}
    if run and level and store is not None:
        index = _level_index(store, level)
        record = RunFolder(Path(run)).read()
        kept = record.get(f"train_prior_{level}")
        if "--resume" in argv and kept:
            configs = {key: merged(config, kept[key], run) for key, config in configs.items()}
            configs["compute"] = merged(Compute(), kept.get("compute", {}), run)
            compile = kept.get("compile", "auto")
        else:
            chosen = PRESETS[record["preset"]]
            configs = {
                "model": chosen.priors[min(index, len(chosen.priors) - 1)],
                "training": chosen.prior_training[min(index, len(chosen.prior_training) - 1)],
            }
    configs = with_config_file(configs, argv)
    default = Arguments(run=tyro.MISSING, level=tyro.MISSING, compile=compile, **configs)
    return parse(Arguments, default, argv, prog, __doc__ or "")


def _describe(prior: Prior, training: TrainingConfig, store: CodeStore) -> None:
    """Print what a dry run promises."""
    config = prior.config
    parameters = sum(p.numel() for p in prior.parameters())
    counts = "  ".join(f"{split} {len(store.indices(split)):,}" for split in dict.fromkeys(store.splits))
    labels = ", ".join(f"{name} ({len(classes)})" for name, classes in config.attributes) or "none"
    print(f"codes      {config.level} {config.height}x{config.width} of {config.num_embeddings}; images: {counts}")
    print(f"condition  levels: {', '.join(config.condition_levels) or 'none'}; labels: {labels}")
    print(f"model      {parameters:,} parameters, {config.num_layers} gated blocks of {config.channels} channels")
    # Kept for the backward pass: some 14 maps of C or R channels a block.
    cells = training.batch_size * config.height * config.width
    activations = cells * config.num_layers * 14 * (config.channels + config.residual_channels) * 2
    print(f"memory     about {memory_in_words(parameters * 20 + activations)}: weights and optimiser, activations")
