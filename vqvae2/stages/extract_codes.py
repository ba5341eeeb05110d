"""Stage 2: encode all images once and keep their codes (Razavi et al. 2019, algorithm 2, first step)."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vqvae2 import checkpoint, distributed
from vqvae2.codes import CodeStore, CodeWriter
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import autocast
from vqvae2.errors import UserError
from vqvae2.metrics import CodeCounts, constant_cells
from vqvae2.progress import Progress
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, initial_batches, locked, longer_training, record_of
from vqvae2.stages.data_report import check_subjects
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Stage 2: encode all images into the run's code store. After an interruption the same command continues."""

    run: Path
    """Run folder with a trained VQ-VAE."""
    batch_size: int = 16
    """Images that a process encodes at once."""
    copies: int = 0
    """Augmented copies of each training image to encode as well; the priors are trained on them too. Default: the
    preset's."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    overwrite: bool = False
    """Replace the codes in the run folder."""
    allow_collapse: bool = False
    """Extract even if a level's held-out perplexity, without constant cells, shows that its codebook has collapsed."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be written, and exit."""


_GROUPS = {
    "codes": ("copies", "augmentation", "allow_collapse"),
    "running": ("run", "overwrite", "dry_run", "batch_size", "device", "precision", "seed"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(partial(CommandLine, "extract-codes", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    folder = line.given.get("run")
    record = RunFolder(folder).read() if folder else {"train_vqvae": {}}
    kept = record["train_vqvae"]
    augmentation = checkpoint.config_from(AugmentationConfig, kept.get("augmentation", {}), folder)
    arguments = line.settings(augmentation=augmentation, copies=kept.get("copies", 0))
    if "copies" not in line.given and not arguments.augmentation.changes:
        arguments = replace(arguments, copies=0)
    if arguments.copies < 0:
        raise UserError(f"--copies {arguments.copies} is negative", how="Give 0 or more")
    if arguments.copies and not arguments.augmentation.changes:
        raise UserError(
            f"--copies {arguments.copies} would be exact copies", how="Add a change, such as --augment-shift 0.05"
        )
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} is too small", how="Give 1 or more")
    run = RunFolder(arguments.run)
    device, _ = arguments.compute.resolve()
    with locked(run.vqvae):  # a training in progress would change the model to which the codes belong
        _extract(line, run, arguments, device)


def _extract(line: CommandLine[Arguments], run: RunFolder, arguments: Arguments, device: torch.device) -> None:
    record = run.read()["train_vqvae"]
    model = VQVAE.from_pretrained(run.vqvae, device)
    config = model.config
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    data = open_data(checkpoint.config_from(DataConfig, record["data"], run.path), like=like)
    if not model.initialized:
        batches = initial_batches(config, record["training"]["batch_size"])
        raise UserError(
            f"training ended before the codebooks were initialised (after {batches} batches)",
            run.vqvae,
            f"Continue with {longer_training(run, 10 * batches)}",
        )
    seen = (data.channels, data.height, data.width)
    if seen != (config.channels, config.height, config.width):
        raise UserError(
            f"images are {seen}, but the VQ-VAE was trained on {(config.channels, config.height, config.width)}",
            data.name,
            "Train the VQ-VAE again on this data",
        )
    check_subjects(data, run.data_report)
    print(data.report())
    if arguments.dry_run:
        total = _count(data, arguments)
        print(f"would write the codes of {total:,} images to {run.codes}")
        return
    with locked(run.codes):
        counts = _write(model, data, run, arguments, device)
        settings = {"copies": arguments.copies, **asdict(arguments.augmentation)}
        run.write(extract_codes={"arguments": record_of(line, {}), **settings})
    distributed.on_main(lambda: _report(model, counts, run))


def _write(
    model: VQVAE, data: ImageData, run: RunFolder, arguments: Arguments, device: torch.device
) -> list[CodeCounts]:
    """Write the store; return how often each code occurs in the held-out images, by level.

    In a distributed run each process encodes its own batches, and the main one writes.
    """
    bf16 = arguments.compute.precision == "bf16"
    config, size = model.config, arguments.batch_size * distributed.world_size()
    counts = [CodeCounts(k) for k in config.num_embeddings]
    total = _count(data, arguments)
    writer: CodeWriter | None = None
    with ExitStack() as stack:

        def begin() -> int:
            nonlocal writer
            writer = stack.enter_context(_writer(model, data, run, arguments, _plan(data, arguments, device)))
            return len(writer)

        found = distributed.on_main(begin)
        if found:
            print(f"continuing after {found:,} images")
        progress = stack.enter_context(Progress(total, "encoding", "images"))
        # Held-out images first: a collapsed codebook is found before the long part begins.
        passes = [(split, 0) for split in sorted(data.splits, key=lambda name: name != "val")]
        for split, copy in passes + [("train", n + 1) for n in range(arguments.copies)]:
            images = data.splits[split]
            changed = AugmentedSet(images, arguments.augmentation, arguments.compute.seed)
            for start in range(0, len(images), size):
                rows = range(start, min(start + size, len(images)))
                found -= len(rows)
                # Whole batches, even if a part is stored already: rounding depends on the batch.
                if found < 0 or split == "val":
                    first = distributed.rank() * arguments.batch_size
                    own = list(rows[first : first + arguments.batch_size])
                    x = changed.unit(changed.at_epoch(own, copy)) if copy else images.at(own)
                    codes = _encode(model, x.to(device), counts if split == "val" else None, bf16)
                    distributed.on_main(lambda: _append(writer, codes, images, rows, split, copy))  # noqa: B023 - called at once
                progress(len(rows))
            if split == "val":
                for count in counts:
                    count.gather()
                distributed.on_main(lambda: _refuse_collapse(model, counts, run, arguments.allow_collapse))
    return counts


def _count(data: ImageData, arguments: Arguments) -> int:
    return sum(len(images) for images in data.splits.values()) + arguments.copies * len(data.splits["train"])


def _encode(model: VQVAE, x: Tensor, counts: list[CodeCounts] | None, bf16: bool) -> list[Tensor]:
    """Encode this process's batch; return the codes of all processes' batches by level, on the CPU."""
    # Codes must not depend on the hardware's default precision: bf16 only if it is asked for.
    with autocast(x.device, torch.bfloat16 if bf16 else torch.float32):
        codes = model.encode(x)
    for count, level in zip(counts or (), codes, strict=bool(counts)):
        count.update(level, ~constant_cells(x, level.shape[1:]))
    return [distributed.all_gather_rows(level.cpu()) for level in codes]


def _append(
    writer: CodeWriter | None, codes: list[Tensor], images: ImageSet, rows: range, split: str, copy: int
) -> None:
    """Write those of a batch that are not stored yet; augmented copies are a split of their own."""
    assert writer is not None
    split, tail = ("copies", f"#{copy}") if copy else (split, "")
    new = [i for i, row in enumerate(rows) if (split, images.keys[row] + tail) not in writer]
    chosen = [rows[i] for i in new]
    writer.append(
        [level[new] for level in codes],
        [images.keys[i] + tail for i in chosen],
        [images.subjects[i] for i in chosen],
        split,
        images.labels[chosen],
    )


def _writer(model: VQVAE, data: ImageData, run: RunFolder, arguments: Arguments, plan: str) -> CodeWriter:
    config = model.config
    return CodeWriter(
        run.codes,
        levels=config.levels,
        shapes=config.shapes,
        num_embeddings=config.num_embeddings,
        vqvae_sha256=checkpoint.sha256_of(run.vqvae),
        attributes=data.attributes,
        data=data.to_config(),
        overwrite=arguments.overwrite,
        plan=plan,
    )


def _plan(data: ImageData, arguments: Arguments, device: torch.device) -> str:
    """Hash everything that the codes depend on besides the weights: extraction continues only a store of equal hash."""
    settings = [
        arguments.batch_size,
        device.type,
        arguments.compute.precision == "bf16",
        arguments.copies,
        asdict(arguments.augmentation),
        arguments.compute.seed,
    ]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for split, images in sorted(data.splits.items()):
        digest.update(json.dumps([split, images.keys, images.subjects, images.labels.tolist()]).encode())
        digest.update(images.checksum.to_bytes(4, "little"))
    return digest.hexdigest()


def _report(model: VQVAE, counts: list[CodeCounts], run: RunFolder) -> None:
    store = CodeStore(run.codes)
    size = (run.codes / "data.mdb").stat().st_size
    bare = len(store) * store.bytes_per_image
    for name, count in zip(model.levels, counts, strict=True):
        print(
            f"{name:<10} held-out perplexity {count.perplexity:.0f} of {len(count.counts)}, "
            f"{count.perplexity_foreground:.0f} without constant cells; usage {count.usage:.0%}"
        )
    print(f"wrote {run.codes}: {len(store):,} images, {size / bare:.2f} x the bytes of the codes alone")
    print(f"next: {command('train-prior', '--run', run.path, '--level', model.levels[0])}")


def _refuse_collapse(model: VQVAE, counts: list[CodeCounts], run: RunFolder, allow: bool) -> None:
    for level, k, count in zip(model.levels, model.config.num_embeddings, counts, strict=True):
        if count.collapsed and not allow:
            raise UserError(
                f"the codebook of level {level} has collapsed: held-out perplexity without constant cells "
                f"{count.perplexity_foreground:.1f} of {k}, at least {count.least_perplexity:g} is needed",
                run.vqvae,
                f"Train longer with {longer_training(run)}, or add --allow-collapse",
            )
