"""Stage 1: train the VQ-VAE on images (Razavi et al. 2019, algorithm 1)."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint
from vqvae2.data import DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import CompileChoice
from vqvae2.errors import UserError
from vqvae2.metrics import CodeCounts, constant_cells, least_perplexity, ssim
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.presets import PRESETS
from vqvae2.stages.common import (
    Compute,
    RunFolder,
    check_resumed,
    memory_in_words,
    merged,
    option,
    parse,
    prepare_folder,
    run_stage,
    tell_outcome,
    with_config_file,
)
from vqvae2.training import Sums, TrainingConfig, fit
from vqvae2.vqvae import VQVAE, VQVAEConfig

_EVALUATED = 256  # images of a split that an evaluation during training looks at; evaluate.py looks at all
_SHOWN = 8


@dataclass(frozen=True)
class Arguments:
    """Train the hierarchical VQ-VAE."""

    run: Path
    """Run folder, made if absent."""
    data: Flat[DataConfig] = field(default_factory=DataConfig)
    model: Flat[VQVAEConfig] = field(default_factory=VQVAEConfig)
    training: Flat[TrainingConfig] = field(default_factory=TrainingConfig)
    compute: Flat[Compute] = field(default_factory=Compute)
    preset: str = "default"
    """Settings by name; given here once, and kept for the later stages."""
    config: Path | None = None
    """JSON file with settings by name, for those that one flag cannot say; flags override it."""
    compile: CompileChoice = "auto"
    """torch.compile; auto takes it where a compiler works and the run is long."""
    resume: bool = False
    """Go on from the saved state, with the settings of the run."""
    overwrite: bool = False
    """Start again, removing the VQ-VAE that the run folder holds."""
    dry_run: bool = False
    """Print the data report, the model's size, code shapes and a memory estimate, and exit."""


class VQVAETask:
    """What `fit` trains in this stage."""

    unit = "images_per_second"
    score = "selection/loss"

    def __init__(self, model: VQVAE, data: ImageData) -> None:
        self.model, self.data = model, data
        self.dataset = data.splits["train"]
        self.device = next(model.parameters()).device
        self.window = [CodeCounts(k) for k in model.config.num_embeddings]

    def modules(self) -> dict[str, nn.Module]:
        return {"vqvae": self.model}

    def compilable(self) -> list[nn.Module]:
        return [*self.model.encoders, *self.model.decoders]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        images = batch["image"].to(self.device)
        ready = self.model.initialized
        loss, terms, out = self.model.loss(images)
        if ready:  # before that, codes are zeros that mean nothing
            for counts, codes in zip(self.window, out.codes, strict=True):
                counts.update(codes, ~constant_cells(images, codes.shape[1:]))
        return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in terms.items()}

    def validate(self) -> dict[str, float]:
        levels = self.model.levels
        figures = {"selection/loss": self._scores("selection")["loss"]}
        held_out = self._scores("val")
        figures |= {f"val/{name}": held_out[name] for name in ("mse", "psnr_db", "ssim")}
        for i, level in enumerate(levels):
            figures |= {name: value for name, value in held_out.items() if name.startswith(f"{level}/")}
            if self.window[i].counts.any():
                figures |= _code_figures(f"train/{level}", self.window[i])
            self.window[i].reset()
        for i, level in enumerate(levels[:-1]):
            figures[f"{level}/ssim_alone"] = held_out[f"ssim_{i + 1}"]
        return figures

    def preview(self) -> dict[str, Picture]:
        images = self._some("val", _SHOWN)
        codes = self.model.encode(images)
        rows = [images, self.model.decode(codes)]
        rows += [self.model.decode(codes[: i + 1]) for i in range(len(codes) - 1)]
        rows.insert(2, (rows[1] - rows[0]).abs() * 2 - 1)
        size = (images.shape[2], images.shape[3])
        maps = [
            code_map(level[i], k, size)
            for level, k in zip(codes, self.model.config.num_embeddings, strict=True)
            for i in range(len(images))
        ]
        pictures = [to_picture(image) for row in rows for image in row]
        return {"reconstructions": grid(pictures, len(images)), "code_maps": grid(maps, len(images))}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, self.data.to_config())

    def _some(self, split: str, count: int) -> Tensor:
        images = self.data.splits[split]
        rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
        return images.__getitems__(rows.tolist())["image"].to(self.device)

    def _scores(self, split: str) -> dict[str, float]:
        """Reconstruction errors and code statistics of a split."""
        model, config = self.model, self.model.config
        sums: dict[str, float] = {}
        counts = [CodeCounts(k) for k in config.num_embeddings]
        images = self._some(split, _EVALUATED)
        for x in images.split(32):
            codes = model.encode(x)
            for count, level in zip(counts, codes, strict=True):
                count.update(level, ~constant_cells(x, level.shape[1:]))
            y = model.decode(codes)
            mse = (y - x).square().mean((1, 2, 3))
            batch = {
                "mse": mse,
                "l1": (y - x).abs().mean((1, 2, 3)),
                "psnr_db": 10 * torch.log10(4 / mse.clamp_min(1e-12)),
                "ssim": ssim(y, x),
            }
            for i in range(1, len(codes)):
                batch[f"ssim_{i}"] = ssim(model.decode(codes[:i]), x)
            for name, values in batch.items():
                sums[name] = sums.get(name, 0.0) + float(values.sum())
        scores = {name: value / len(images) for name, value in sums.items()}
        scores["loss"] = (
            config.mse_weight * scores["mse"]
            + config.l1_weight * scores["l1"]
            + config.ssim_weight * (1 - scores["ssim"])
        )
        for name, count in zip(model.levels, counts, strict=True):
            scores |= _code_figures(name, count)
        return scores


def _code_figures(prefix: str, counts: CodeCounts) -> dict[str, float]:
    return {
        f"{prefix}/perplexity": counts.perplexity,
        f"{prefix}/perplexity_foreground": counts.perplexity_foreground,
        f"{prefix}/usage": counts.usage,
    }


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(_story, argv, prog, "train_vqvae.py")


def _story(argv: list[str], prog: str) -> None:
    arguments = _arguments(argv, prog)
    run = RunFolder(arguments.run)
    device, precision = arguments.compute.resolve()
    source = Path(arguments.data.data).expanduser()
    if source.is_dir() and source.resolve() == run.path.resolve():
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
    config = replace(arguments.model, channels=data.channels, height=data.height, width=data.width)
    torch.manual_seed(arguments.compute.seed)
    model = VQVAE(config)
    _describe(model, arguments.training, data.splits["train"])
    if arguments.dry_run:
        print(arguments.training.describe_limit())
        return
    prepare_folder(run.vqvae, arguments.resume, arguments.overwrite)
    if arguments.resume:
        check_resumed(run.read()["train_vqvae"]["model"], config, run)
    run.write(
        preset=arguments.preset,
        levels=config.levels,
        seed=arguments.compute.seed,
        data={**asdict(arguments.data), **data.to_config()},
        train_vqvae={
            "data": asdict(arguments.data),
            "model": asdict(config),
            "training": asdict(arguments.training),
            "compute": asdict(arguments.compute),
            "compile": arguments.compile,
        },
    )
    model.to(device).to(memory_format=torch.channels_last)
    outcome = fit(
        VQVAETask(model, data),
        arguments.training,
        run.vqvae,
        device=device,
        precision=precision,
        compile=arguments.compile,
        seed=arguments.compute.seed,
        num_workers=arguments.compute.num_workers,
        resume=arguments.resume,
    )
    tell_outcome(outcome, run, "train_vqvae", run.vqvae)
    for level, k in zip(config.levels, config.num_embeddings, strict=True):
        if outcome.best[f"{level}/perplexity"] < least_perplexity(k):
            print(f"warning: the codebook of level {level} has collapsed; its codes carry almost nothing")
    if not model.initialized:
        print("warning: the training was too short to start the codebooks; they are random, and cannot be extracted")
    print(f"next: python extract_codes.py --run {run.path}")


def _arguments(argv: list[str], prog: str) -> Arguments:
    """Read the command line over the preset, or over the settings of the run that is resumed."""
    name, run = option(argv, "preset") or "default", option(argv, "run")
    configs: dict[str, Any] = {}
    compile: CompileChoice = "auto"
    if "--resume" in argv and run:
        record = RunFolder(Path(run)).read()
        name = record["preset"]
        kept = record["train_vqvae"]
        if option(argv, "preset"):
            raise UserError("a resumed training keeps its preset", "--preset", "Leave it out, or give --overwrite")
        configs = {
            "data": merged(DataConfig(), kept["data"], run),
            "model": merged(VQVAEConfig(), kept["model"], run),
            "training": merged(TrainingConfig(), kept["training"], run),
            "compute": merged(Compute(), kept.get("compute", {}), run),
        }
        compile = kept.get("compile", "auto")
    if name not in PRESETS:
        raise UserError(f"there is no preset {name}", "--preset", f"Choose one of {', '.join(PRESETS)}")
    if not configs:
        chosen = PRESETS[name]
        data = DataConfig(size=chosen.size, phantom_images=chosen.phantom_images)
        configs = {"data": data, "model": chosen.vqvae, "training": chosen.vqvae_training}
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
    activations = training.batch_size * 40 * config.hidden_channels * h * w * 4
    print(f"model      {parameters:,} parameters, hidden {config.hidden_channels}, residual {config.residual_channels}")
    print(f"codes      {codes}; {bits / (config.height * config.width):.2f} bits a pixel before entropy coding")
    total = parameters * 16 + activations + images.images.nbytes
    print(f"memory     about {memory_in_words(total)}: weights and optimiser, activations, images")
