"""Stage 1: train the VQ-VAE on images (Razavi et al. 2019, algorithm 1)."""

from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqvae2 import checkpoint, distributed, metrics
from vqvae2.batches import check_divides
from vqvae2.budget import budget, table
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.detail import DetailConfig
from vqvae2.device import CompileChoice
from vqvae2.errors import UserError
from vqvae2.optim import TrainingConfig
from vqvae2.presets import PRESETS
from vqvae2.stages.commands import command
from vqvae2.stages.common import (
    Compute,
    RunFolder,
    check_resumed,
    initial_batches,
    is_trained,
    keep_outcome,
    limited,
    locked,
    longer_training,
    memory_in_words,
    prepare_folder,
    record_of,
    resumed,
    start_from,
)
from vqvae2.stages.data_report import check_subjects, write_data_report
from vqvae2.stages.detail import DetailSettings, DetailTask, is_begun, keep_start, shape_of, start_of
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sharpening import SharpeningConfig, SharpeningTask, trained_by_features
from vqvae2.stages.vqvae_parts import Parts, divided, in_words, without_optional
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import Outcome, fit
from vqvae2.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class Arguments:
    """Stage 1: train the VQ-VAE on images (Razavi et al. 2019, algorithm 1)."""

    run: Path
    """Run folder, which all stages share; created if needed."""
    data: DataConfig = field(default_factory=DataConfig)
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    sharpening: SharpeningConfig = field(default_factory=SharpeningConfig)
    detail: DetailSettings = field(default_factory=DetailSettings)
    compute: Compute = field(default_factory=Compute)
    preset: str = "default"
    """Settings by name: default, brain128, brain128-long, brain256, demo, imagenet256, ffhq1024 or cifar10. Later
    stages read it from the run folder."""
    init: Path | None = None
    """Run folder, or folder of exported models, whose VQ-VAE the training starts from, with its architecture, image
    size and preset."""
    config: Path | None = None
    """JSON file with settings by name, such as {"num_embeddings": [512, 256]}; flags override it."""
    compile: CompileChoice = "auto"
    """Whether to use torch.compile; auto: in long runs, if a compiler works."""
    resume: bool = False
    """Continue from the saved state, with the settings of the run."""
    overwrite: bool = False
    """Start again; the VQ-VAE in the run folder is deleted."""
    dry_run: bool = False
    """Write the data report and its contact sheet, print it with the model's size, code shapes, a memory estimate and
    the budget of the VQ-VAE's levels, of the preset's priors and of the detail decoder (multiply-adds, time), and
    exit."""


_GROUPS = {
    "data": ("data", "size", "fit", "labels", "subject_pattern", "layout", "channels", "augmentation"),
    "model": ("preset", "init", "num_embeddings", "embedding_dim", "strides", "hidden_channels", "model"),
    "training": (
        *("max_minutes", "max_steps", "batch_size", "learning_rate", "evaluations", "patience"),
        *("sharpen_share", "detail_share", "training", "sharpening", "detail"),
    ),
    "running": ("run", "resume", "overwrite", "dry_run", "device", "seed", "config"),
}
_NOT_OF_LABELS = tuple(entry.name for entry in fields(DataConfig) if entry.name not in ("bins", "numbers"))
_NO_FLAGS = ("model.channels", "model.height", "model.width", "training.guide_share")


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(
        partial(CommandLine, "train-vqvae", Arguments, _GROUPS, fixed=_NO_FLAGS, required=["data"]), _story, argv
    )


def _story(line: CommandLine[Arguments]) -> None:
    arguments = _settings(line)
    run = RunFolder(arguments.run)
    device, precision = arguments.compute.resolve(training=True)
    check_places(arguments.data, run)
    like = (
        checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
        if arguments.resume and checkpoint.has_model(run.vqvae)
        else None
    )
    data = open_data(arguments.data, like=like)
    print(data.report())
    check_images(data)
    if arguments.training.ema_decay:
        raise UserError(
            "the VQ-VAE cannot use averaged weights: its codebooks follow the online encoder",
            "--ema-decay",
            "Leave it out",
        )
    for split in ("train", "selection", "val"):
        if split not in data.splits or not len(data.splits[split]):
            raise UserError(f"the split {split} is empty", arguments.data.data, "Give images of more subjects")
    check_divides(arguments.training.batch_size, len(data.splits["train"]))
    _check(arguments, min(data.height, data.width))
    config = replace(arguments.model, channels=data.channels, height=data.height, width=data.width)
    torch.manual_seed(arguments.compute.seed)
    model = VQVAE(config)
    if arguments.init is not None:
        start_from(model, RunFolder(arguments.init).vqvae)
    _describe(model, arguments.training, data.splits["train"])
    if arguments.dry_run:
        under_way = any((part / "stats.jsonl").exists() for part in (run.vqvae, run.vqvae / "sharpening", run.detail))
        if not (under_way or is_trained(run.vqvae)):  # else the report is that training's
            distributed.on_main(lambda: write_data_report(data, run.data_report))
        print(table("VQ-VAE", budget(config, device, precision)))
        codes = config.levels, config.shapes, config.num_embeddings, data.attributes, data.numbers
        preset = PRESETS[arguments.preset].for_slices(arguments.data.slice_axis)
        for index, level in enumerate(config.levels):
            prior = preset.prior_for(index, *codes)
            print(table(f"prior of {level}", budget(prior, device, precision)))
        if arguments.detail.detail_share:
            detail = DetailConfig(config, arguments.detail.detail_levels, widths=arguments.detail.detail_widths)
            print(table("detail decoder", budget(detail, device, precision)))
        print(arguments.training.describe_limit())
        if told := in_words(_parts(arguments)):
            print(told)
        return
    with locked(run.vqvae):
        _work(line, model, data, arguments, device, precision)


def check_places(data: DataConfig, run: RunFolder) -> None:
    """Refuse a run folder that is the folder of the images."""
    source = Path(data.data).expanduser()
    if source.is_dir() and source.resolve() in (run.path.resolve(), run.data_report.resolve()):
        raise UserError("--run and --data are the same folder", run.path, "Give another --run")


def check_images(data: ImageData) -> None:
    """Refuse images that later stages cannot score or write."""
    if min(data.height, data.width) < 11:
        raise UserError(f"images of {data.height}x{data.width} are too small for SSIM", data.name, "Give 11x11 or more")
    if data.channels == 3 and data.value_range[1] > 255:
        raise UserError("PNG cannot hold samples in 16-bit colour", data.name, "Train with --channels 1")


def _check(arguments: Arguments, side: int) -> None:
    """Raise UserError for settings that would otherwise fail only after training has begun."""
    if arguments.sharpening.sharpen_share:
        if side < 16 and arguments.sharpening.adversarial_weight:
            raise UserError(
                "images under 16x16 are too small for the patch discriminator",
                "--sharpen-share",
                "Give 0, --adversarial-weight 0, or larger images",
            )
        started = checkpoint.has_model(RunFolder(arguments.run).vqvae / "sharpening" / "start")
        if arguments.sharpening.sharpen_share == 1 and arguments.init is None and not (arguments.resume and started):
            raise UserError(
                "--sharpen-share 1 trains nothing but the decoder, and there is no VQ-VAE yet",
                how="Add --init RUN, or give a smaller share",
            )
    if arguments.detail.detail_share:
        levels, trained = arguments.detail.detail_levels, checkpoint.has_model(RunFolder(arguments.run).vqvae)
        if levels >= len(arguments.model.strides):
            raise UserError(
                f"a detail decoder of {levels} of {len(arguments.model.strides)} levels has nothing to paint",
                "--detail-levels",
                "Give fewer, or --detail-share 0",
            )
        widths, wanted = arguments.detail.detail_widths, len(arguments.model.strides) - levels + 1
        if widths and len(widths) != wanted:
            raise UserError(
                f"a detail decoder that is given {levels} of {len(arguments.model.strides)} levels paints at {wanted}, "
                f"but there are {len(widths)} widths",
                "--detail-widths",
                f"Give {wanted} numbers",
            )
        if arguments.detail.detail_share == 1 and arguments.init is None and not (arguments.resume and trained):
            raise UserError(
                "--detail-share 1 trains nothing but the detail decoder, and there is no VQ-VAE yet",
                how="Add --init RUN, or give a smaller share",
            )
    if arguments.detail.detail_share or (arguments.sharpening.sharpen_share and arguments.sharpening.perceptual_weight):
        metrics.check_features()
    _parts(arguments)


def _parts(arguments: Arguments) -> Parts:
    return divided(arguments.training, arguments.sharpening, arguments.detail)


def _work(
    line: CommandLine[Arguments],
    model: VQVAE,
    data: ImageData,
    arguments: Arguments,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    """Train, and report the result."""
    config, run = model.config, RunFolder(arguments.run)
    prepare_folder(run.vqvae, line)
    kept = run.read()["train_vqvae"] if arguments.resume else {}
    if arguments.resume:
        check_resumed(kept["model"], config, run)
        check_resumed(kept["data"], arguments.data, run, free=_NOT_OF_LABELS)
        check_subjects(data, run.data_report)
        before = bool(kept.get("init_trained_by_features"))
    else:
        distributed.on_main(lambda: write_data_report(data, run.data_report))
        before = arguments.init is not None and trained_by_features(RunFolder(arguments.init).read())
    carried = {name: kept[name] for name in ("trained_by_features", "before_sharpening") if name in kept}
    run.write(
        preset=arguments.preset,
        levels=config.levels,
        seed=arguments.compute.seed,
        data={**asdict(arguments.data), **data.to_config()},
        train_vqvae={
            "arguments": record_of(line, kept),
            "data": asdict(arguments.data),
            "model": asdict(config),
            "training": asdict(arguments.training),
            "augmentation": asdict(arguments.augmentation),
            "copies": kept.get("copies", 0) if kept else PRESETS[arguments.preset].copies,
            "sharpening": asdict(arguments.sharpening),
            "detail": asdict(arguments.detail),
            **({"init_trained_by_features": True} if before else {}),
            **(carried if kept else {"trained_by_features": False}),
            "compute": asdict(arguments.compute),
            "compile": arguments.compile,
        },
    )
    model.to(device)
    outcome = _train(model, data, arguments, run, device, precision)
    keep_outcome(outcome, run, "train_vqvae", run.vqvae)
    print(f"next: {_next(arguments, outcome, run)}")


def _next(arguments: Arguments, outcome: Outcome, run: RunFolder) -> str:
    """Return the next command: extraction, or a longer training if extraction would be refused."""
    model = VQVAE.from_pretrained(run.vqvae)
    if not model.initialized:
        batches = initial_batches(model.config, arguments.training.batch_size)
        print(f"warning: training ended before the codebooks were initialised (after {batches} batches)")
        return longer_training(run, 10 * batches)
    sizes = zip(model.levels, model.config.num_embeddings, strict=True)
    figures = outcome.best
    collapsed = [
        level
        for level, k in sizes  # evaluations of earlier versions do not tell the least perplexity
        if figures[f"{level}/perplexity_foreground"]
        < figures.get(f"{level}/least_perplexity", metrics.least_perplexity(k))
    ]
    for level in collapsed:
        print(f"warning: the codebook of level {level} has collapsed: extract-codes will refuse it")
    return longer_training(run) if collapsed else command("extract-codes", "--run", run.path)


def _train(
    model: VQVAE,
    data: ImageData,
    arguments: Arguments,
    run: RunFolder,
    device: torch.device,
    precision: torch.dtype,
) -> Outcome:
    """Train the VQ-VAE, then its decoder and a detail decoder if asked for; each part resumes from its own state."""
    first, second, third = parts = _parts(arguments)
    if told := in_words(parts):
        print(told)
    settings: dict[str, Any] = {
        "device": device,
        "precision": precision,
        "compile": arguments.compile,
        "seed": arguments.compute.seed,
        "num_workers": arguments.compute.workers(decoding=data.splits["train"].on_demand),
    }
    if third is not None and not arguments.resume:
        keep_start(run, arguments.init, arguments.detail)
    train = AugmentedSet(data.splits["train"], arguments.augmentation, arguments.compute.seed)
    changing = train if arguments.augmentation.changes else None
    if second is not None:
        outcome = _sharpen(model, data, arguments, run, train, first, second, settings)
    elif first is not None:
        outcome = fit(VQVAETask(model, data, train), first, run.vqvae, resume=arguments.resume, **settings)
    else:
        if not arguments.resume:
            distributed.on_main(lambda: model.save_pretrained(run.vqvae, data.to_config()))
        untrained = VQVAETask(VQVAE.from_pretrained(run.vqvae, device), data)
        outcome = Outcome(0, 0.0, 0, untrained.validate(), "was not trained")
    if third is None:
        return outcome
    best = VQVAE.from_pretrained(run.vqvae, device)
    _check_initialized(best, third, run, "--detail-share 0")
    start = start_of(run) if checkpoint.has_model(start_of(run)) else None
    told = f", from that in {start}" if start else ""
    of_levels = " and ".join(best.levels[: arguments.detail.detail_levels])
    print(f"training a detail decoder of {of_levels}, {run.detail}{told}")
    of = distributed.on_main(lambda: checkpoint.sha256_of(run.vqvae))
    resume = arguments.resume and distributed.on_main(lambda: is_begun(run, of))
    fit(DetailTask(best, data, arguments.detail, of, changing, start), third, run.detail, resume=resume, **settings)
    return outcome


def _check_initialized(model: VQVAE, training: TrainingConfig, run: RunFolder, without: str) -> None:
    if not model.initialized:
        batches = initial_batches(model.config, training.batch_size)
        raise UserError(
            f"training ended before the codebooks were initialised (after {batches} batches)",
            run.vqvae,
            f"Give a longer limit, or {without}",
        )


def _sharpen(
    model: VQVAE,
    data: ImageData,
    arguments: Arguments,
    run: RunFolder,
    train: AugmentedSet,
    first: TrainingConfig | None,
    second: TrainingConfig,
    settings: dict[str, Any],
) -> Outcome:
    """Train the VQ-VAE, then its decoder alone."""
    sharpening, device = arguments.sharpening, settings["device"]
    folder = run.vqvae / "sharpening"
    start = folder / "start"  # the VQ-VAE before sharpening, which overwrites the run's own
    if not (arguments.resume and checkpoint.has_model(start)):
        if first is None:
            best = model.eval()
        else:
            ended = fit(VQVAETask(model, data, train), first, run.vqvae, resume=arguments.resume, **settings)
            run.write(train_vqvae={**run.read()["train_vqvae"], "before_sharpening": asdict(ended)})
            best = VQVAE.from_pretrained(run.vqvae, device)
        _check_initialized(best, second, run, "--sharpen-share 0")
        distributed.on_main(lambda: best.save_pretrained(start, data.to_config()))
    else:
        best = VQVAE.from_pretrained(start, device)
    resume = arguments.resume and checkpoint.has_state(folder / "state")
    by = ["by MobileNetV2's features"] if sharpening.perceptual_weight else []
    by += ["against a patch discriminator" if sharpening.adversarial_weight else "without a discriminator"]
    print(f"training the image decoder alone, {', '.join(by)}; figures go to {folder}")
    changing = train if arguments.augmentation.changes else None
    task = SharpeningTask(best, data, sharpening, run.vqvae, changing)
    outcome = fit(task, second, folder, resume=resume, **settings)
    if sharpening.perceptual_weight:
        run.write(train_vqvae={**run.read()["train_vqvae"], "trained_by_features": True})
    before = run.read()["train_vqvae"].get("before_sharpening", {"steps": 0, "seconds": 0.0})
    return replace(
        outcome,
        steps=before["steps"] + outcome.steps,
        best_step=before["steps"] + outcome.best_step,
        seconds=before["seconds"] + outcome.seconds,
    )


def _columns(labels: str | None) -> str:
    """The columns of --labels, whose table may have been moved."""
    return (labels or "").rpartition(":")[2]


def _settings(line: CommandLine[Arguments]) -> Arguments:
    """Return the settings: the command line over those of the run that is resumed, else over the preset's."""
    record = RunFolder(line.given["run"]).read() if line.given.get("resume") and "run" in line.given else None
    init = None if record else line.given.get("init")
    started = None if init is None else RunFolder(init).read("Give --init a run folder, or exported models")
    given = record or started
    name = given["preset"] if given else line.given.get("preset", "default")
    if line.given.get("preset", name) != name:
        if init is not None:
            raise UserError(f"{init} has preset {name}", "--preset", "Leave it out: --init brings its own")
        raise UserError(f"the training began with --preset {name}", how="Leave --preset out, or add --overwrite")
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}", "--preset", f"Choose one of {', '.join(PRESETS)}")
    chosen = PRESETS[name].for_slices(line.changed.get("slice_axis", "axial"))
    configs: dict[str, Any] = {
        "data": DataConfig(size=chosen.size, fit=chosen.fit, phantom_images=chosen.phantom_images),
        "model": chosen.vqvae,
        "training": chosen.vqvae_training,
        "augmentation": chosen.augmentation,
        "sharpening": SharpeningConfig(**chosen.sharpening),
        "detail": DetailSettings(**chosen.detail),
        "compute": Compute(),
    }
    if init is not None:
        stored = checkpoint.load_config(RunFolder(init).vqvae, kind="vqvae")
        size = f"{stored['height']}x{stored['width']}"
        configs["model"] = checkpoint.config_from(VQVAEConfig, stored, init)
        configs["data"] = replace(configs["data"], size=size, channels=stored["channels"], fit=stored["data"]["fit"])
        configs["detail"] = replace(configs["detail"], **shape_of(RunFolder(init)))
    kept = record["train_vqvae"] if record else {}
    if kept:
        configs = resumed(configs, kept, line.given["run"])
        began, now = (_columns(labels) for labels in (configs["data"].labels, line.given.get("labels")))
        if now and now != began:
            raise UserError(
                f"the training began {f'with labels {began}' if began else 'without labels'}, now they are {now}",
                line.given["run"],
                "Leave --labels out, or start again with --overwrite",
            )
    # Strides are checked against the data's size, not the preset's.
    configs["model"] = replace(configs["model"], height=0, width=0)
    usual = None if "evaluations" in kept.get("arguments", {}) else chosen.vqvae_training.evaluations
    configs["training"] = limited(configs["training"], line.changed, usual)
    if line.changed.get("detail_levels", configs["detail"].detail_levels) != configs["detail"].detail_levels:
        configs["detail"] = replace(configs["detail"], detail_widths=())  # there are as many as levels that are painted
    for section, share, part in (
        ("sharpening", "sharpen_share", "the training of the decoder alone"),
        ("detail", "detail_share", "the detail decoder"),
    ):
        if not line.help and not line.changed.get(share, getattr(configs[section], share)):
            line.refuse_alone(share, [entry.name for entry in fields(configs[section]) if entry.name != share], part)
    if not (record or line.help):
        configs |= without_optional(configs["sharpening"], configs["detail"], configs["training"], line.changed)
    return line.settings(**configs, preset=name, compile=kept.get("compile", "auto"))


def _describe(model: VQVAE, training: TrainingConfig, images: ImageSet) -> None:
    """Print the model's size, code shapes, bits and an estimate of the memory."""
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
    held = images.images.nbytes if isinstance(images.images, np.ndarray) else 0  # mapped files need none
    total = parameters * 16 + activations + held
    print(f"memory     about {memory_in_words(total)}: weights and optimiser, activations, images")
