"""Stage 1: train the VQ-VAE on images (Razavi et al. 2019, algorithm 1)."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint, distributed
from vqvae2.batches import check_divides
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import CompileChoice
from vqvae2.errors import UserError
from vqvae2.metrics import least_perplexity
from vqvae2.presets import PRESETS
from vqvae2.stages.common import (
    Compute,
    RunFolder,
    check_resumed,
    is_trained,
    locked,
    memory_in_words,
    merged,
    option,
    parse,
    prepare_folder,
    tell_outcome,
    with_config_file,
)
from vqvae2.stages.data_report import check_subjects, write_data_report
from vqvae2.stages.launch import run_stage
from vqvae2.stages.vqvae_tasks import SharpeningConfig, SharpeningTask, VQVAETask
from vqvae2.training import Outcome, TrainingConfig, fit
from vqvae2.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class Arguments:
    """Train the hierarchical VQ-VAE."""

    run: Path
    """Run folder, made if absent."""
    data: Flat[DataConfig] = field(default_factory=DataConfig)
    model: Flat[VQVAEConfig] = field(default_factory=VQVAEConfig)
    training: Flat[TrainingConfig] = field(default_factory=TrainingConfig)
    augmentation: Flat[AugmentationConfig] = field(default_factory=AugmentationConfig)
    sharpening: Flat[SharpeningConfig] = field(default_factory=SharpeningConfig)
    compute: Flat[Compute] = field(default_factory=Compute)
    preset: str = "default"
    """Settings by name: default, brain128, demo, imagenet256, ffhq1024 or cifar10; later stages find it in the run
    folder."""
    config: Path | None = None
    """JSON file with settings by name, for those that one flag cannot say; flags override it."""
    compile: CompileChoice = "auto"
    """torch.compile; auto takes it where a compiler works and the run is long."""
    resume: bool = False
    """Go on from the saved state, with the settings of the run."""
    overwrite: bool = False
    """Start again, removing the VQ-VAE that the run folder holds."""
    dry_run: bool = False
    """Write the data report with its sheet of images, print it with the model's size, code shapes and a memory
    estimate, and exit."""


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(_story, argv, prog, "train_vqvae.py")


def _story(argv: list[str], prog: str) -> None:
    arguments = _arguments(argv, prog)
    run = RunFolder(arguments.run)
    device, precision = arguments.compute.resolve()
    source = Path(arguments.data.data).expanduser()
    if source.is_dir() and source.resolve() in (run.path.resolve(), run.data_report.resolve()):
        raise UserError("the run folder is the data's own", run.path, "Give --run a folder of its own")
    like = (
        checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
        if arguments.resume and checkpoint.has_model(run.vqvae)
        else None
    )
    data = open_data(arguments.data, like=like)
    print(data.report())
    if min(data.height, data.width) < 11:
        raise UserError(f"images of {data.height}x{data.width} are too small for SSIM", data.name, "Give 11x11 or more")
    if data.channels == 3 and data.value_range[1] > 255:
        raise UserError("16-bit colour could not be written as PNG", data.name, "Train with --channels 1")
    if arguments.training.ema_decay:
        raise UserError("the codebooks follow the online encoder, not its average", "--ema-decay", "Leave it out")
    for split in ("train", "selection", "val"):
        if split not in data.splits or not len(data.splits[split]):
            raise UserError(f"the split {split} is empty", arguments.data.data, "Give images of more subjects")
    _check(arguments, min(data.height, data.width))
    config = replace(arguments.model, channels=data.channels, height=data.height, width=data.width)
    torch.manual_seed(arguments.compute.seed)
    model = VQVAE(config)
    _describe(model, arguments.training, data.splits["train"])
    if arguments.dry_run:
        under_way = (run.vqvae / "stats.jsonl").exists()
        if not (under_way or is_trained(run.vqvae)):  # else the report is the one of that training
            distributed.on_main(lambda: write_data_report(data, run.data_report))
        print(arguments.training.describe_limit())
        return
    with locked(run.vqvae):
        _work(model, data, arguments, run, device, precision)


def _check(arguments: Arguments, side: int) -> None:
    """Raise UserError for settings that would fail only after the training has begun."""
    training = arguments.training
    check_divides(training.batch_size)
    if not arguments.sharpening.sharpen_share:
        return
    if side < 16:
        raise UserError("images under 16x16 cannot be sharpened", "--sharpen-share", "Give 0, or larger images")
    try:
        arguments.sharpening.divide(training)
    except ValueError as error:
        raise UserError(
            f"the limit cannot be divided ({error})", "--sharpen-share", "Give a longer limit, or 0"
        ) from None


def _work(
    model: VQVAE, data: ImageData, arguments: Arguments, run: RunFolder, device: torch.device, precision: torch.dtype
) -> None:
    """Train, and tell what came of it."""
    config = model.config
    prepare_folder(run.vqvae, arguments.resume, arguments.overwrite)
    if arguments.resume:
        check_resumed(run.read()["train_vqvae"]["model"], config, run)
        check_subjects(data, run.data_report)
    else:
        distributed.on_main(lambda: write_data_report(data, run.data_report))
    run.write(
        preset=arguments.preset,
        levels=config.levels,
        seed=arguments.compute.seed,
        data={**asdict(arguments.data), **data.to_config()},
        train_vqvae={
            "data": asdict(arguments.data),
            "model": asdict(config),
            "training": asdict(arguments.training),
            "augmentation": asdict(arguments.augmentation),
            "sharpening": asdict(arguments.sharpening),
            "compute": asdict(arguments.compute),
            "compile": arguments.compile,
        },
    )
    model.to(device)
    outcome = _train(model, data, arguments, run, device, precision)
    tell_outcome(outcome, run, "train_vqvae", run.vqvae)
    for level, k in zip(config.levels, config.num_embeddings, strict=True):
        if outcome.best[f"{level}/perplexity"] < least_perplexity(k):
            print(f"warning: the codebook of level {level} has collapsed; its codes carry almost nothing")
    if not VQVAE.from_pretrained(run.vqvae).initialized:
        print("warning: the training was too short to start the codebooks; they are random, and cannot be extracted")
    print(f"next: python extract_codes.py --run {run.path}")


def _train(
    model: VQVAE,
    data: ImageData,
    arguments: Arguments,
    run: RunFolder,
    device: torch.device,
    precision: torch.dtype,
) -> Outcome:
    """Train the VQ-VAE, then sharpen its decoder where that is asked for; each part resumes from its own state."""
    compute, sharpening = arguments.compute, arguments.sharpening
    settings: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "compile": arguments.compile,
        "seed": compute.seed,
        "num_workers": compute.num_workers,
    }
    train = None
    if arguments.augmentation.changes:
        train = AugmentedSet(data.splits["train"], arguments.augmentation, compute.seed)
    if not sharpening.sharpen_share:
        return fit(VQVAETask(model, data, train), arguments.training, run.vqvae, resume=arguments.resume, **settings)
    first, second = sharpening.divide(arguments.training)
    folder = run.vqvae / "sharpening"
    start = folder / "start"  # the VQ-VAE as it was before, since the run's own is written over
    if not (arguments.resume and checkpoint.has_model(start)):
        fit(VQVAETask(model, data, train), first, run.vqvae, resume=arguments.resume, **settings)
        best = VQVAE.from_pretrained(run.vqvae, device)
        if not best.initialized:
            raise UserError("the training was too short to start the codebooks", run.vqvae, "Give a longer limit")
        distributed.on_main(lambda: best.save_pretrained(start, data.to_config()))
    else:
        best = VQVAE.from_pretrained(start, device)
    under_way = arguments.resume and checkpoint.has_state(folder / "state")
    print(f"sharpening the decoder of the image against a patch discriminator; its figures go to {folder}")
    return fit(SharpeningTask(best, data, sharpening, run.vqvae, train), second, folder, resume=under_way, **settings)


def _arguments(argv: list[str], prog: str) -> Arguments:
    """Read the command line over the preset, or over the settings of the run that is resumed."""
    name, run = option(argv, "preset") or "default", option(argv, "run")
    configs: dict[str, Any] = {}
    compile: CompileChoice = "auto"
    if "--resume" in argv and run:
        record = RunFolder(Path(run)).read()
        name = record["preset"]
        kept = record["train_vqvae"]
        if (option(argv, "preset") or name) != name:
            raise UserError(
                f"a resumed training keeps its preset, {name}", "--preset", "Leave it out, or give --overwrite"
            )
        configs = {
            "data": merged(DataConfig(), kept["data"], run),
            "model": merged(VQVAEConfig(), kept["model"], run),
            "training": merged(TrainingConfig(), kept["training"], run),
            "augmentation": merged(AugmentationConfig(), kept.get("augmentation", {}), run),
            "sharpening": merged(SharpeningConfig(), kept.get("sharpening", {}), run),
            "compute": merged(Compute(), kept.get("compute", {}), run),
        }
        compile = kept.get("compile", "auto")
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}", "--preset", f"Choose one of {', '.join(PRESETS)}")
    if not configs:
        chosen = PRESETS[name]
        data = DataConfig(size=chosen.size, fit=chosen.fit, phantom_images=chosen.phantom_images)
        configs = {
            "data": data,
            "model": chosen.vqvae,
            "training": chosen.vqvae_training,
            "augmentation": AugmentationConfig(),
            "sharpening": SharpeningConfig(sharpen_share=chosen.sharpen_share),
        }
    # The size is the data's: strides are not to be held against another.
    configs["model"] = replace(configs["model"], height=0, width=0)
    default = Arguments(run=tyro.MISSING, preset=name, compile=compile, **with_config_file(configs, argv))
    return parse(Arguments, default, argv, prog, __doc__ or "")


def _describe(model: VQVAE, training: TrainingConfig, images: ImageSet) -> None:
    """Print what a dry run promises: size, code shapes, bits and memory."""
    config = model.config
    parameters = sum(p.numel() for p in model.parameters())
    codes = "  ".join(
        f"{level} {h}x{w} of {k}"
        for level, (h, w), k in zip(config.levels, config.shapes, config.num_embeddings, strict=True)
    )
    bits = sum(h * w * np.log2(k) for (h, w), k in zip(config.shapes, config.num_embeddings, strict=True))
    # Activations: some forty maps of hidden channels at the finest code resolution, kept for the backward pass.
    h, w = config.shapes[-1]
    activations = training.batch_size * 40 * config.by_level("hidden_channels")[-1] * h * w * 4
    print(f"model      {parameters:,} parameters, hidden {config.hidden_channels}, residual {config.residual_channels}")
    print(f"codes      {codes}; {bits / (config.height * config.width):.2f} bits a pixel before entropy coding")
    total = parameters * 16 + activations + images.images.nbytes
    print(f"memory     about {memory_in_words(total)}: weights and optimiser, activations, images")
