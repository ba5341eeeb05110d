"""Stage 2: encode all images once and keep their codes (Razavi et al. 2019, algorithm 2, first step)."""

import hashlib
import json
import zlib
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint, distributed
from vqvae2.codes import CodeStore, CodeWriter
from vqvae2.data import AugmentationConfig, AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import autocast, whole_float32
from vqvae2.errors import UserError
from vqvae2.metrics import CodeCounts, constant_cells, least_perplexity
from vqvae2.stages.common import Compute, RunFolder, locked, merged, option, parse
from vqvae2.stages.data_report import check_subjects
from vqvae2.stages.launch import run_stage
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Extract the codes of all images into the run's code store; the same command goes on with an interrupted one."""

    run: Path
    """Run folder with a trained VQ-VAE."""
    batch_size: int = 16
    """Images encoded at once by a process."""
    copies: int = 0
    """Encodings of each training image that are added, each of the image changed at random; the prior is trained on
    them too."""
    augmentation: Flat[AugmentationConfig] = field(default_factory=AugmentationConfig)
    """Ranges of the copies' changes; default: those of the VQ-VAE's training."""
    overwrite: bool = False
    """Replace the codes that the run folder holds."""
    allow_collapse: bool = False
    """Extract even where a level's held-out perplexity says that its codebook has collapsed."""
    compute: Flat[Compute] = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be written, and exit."""


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(_story, argv, prog, "extract_codes.py")


def _story(argv: list[str], prog: str) -> None:
    name = option(argv, "run")
    kept = RunFolder(Path(name)).read()["train_vqvae"].get("augmentation", {}) if name else {}
    default = Arguments(run=tyro.MISSING, augmentation=merged(AugmentationConfig(), kept, name))
    arguments = parse(Arguments, default, argv, prog, __doc__ or "")
    if arguments.copies < 0:
        raise UserError(f"--copies {arguments.copies} is negative", how="Give 0 or more")
    if arguments.copies and not arguments.augmentation.changes:
        raise UserError(
            f"--copies {arguments.copies} of unchanged images",
            "--augment-*",
            "Give ranges such as --augment-shift 0.05",
        )
    if arguments.batch_size < 1:
        raise UserError("a batch holds at least one image", f"--batch-size {arguments.batch_size}", "Give 1 or more")
    run = RunFolder(arguments.run)
    record = run.read()
    device, _ = arguments.compute.resolve()
    with locked(run.vqvae):  # a training under way would change what the codes are said to belong to
        _extract(run, record, arguments, device)


def _extract(run: RunFolder, record: dict[str, Any], arguments: Arguments, device: torch.device) -> None:
    model = VQVAE.from_pretrained(run.vqvae, device)
    config = model.config
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    data = open_data(merged(DataConfig(), record["train_vqvae"]["data"], run.path), like=like)
    if not model.initialized:
        raise UserError("the training was too short to start the codebooks", run.vqvae, "Train longer with --resume")
    whole_float32()
    seen = (data.channels, data.height, data.width)
    if seen != (config.channels, config.height, config.width):
        raise UserError(
            f"images are {seen}, the VQ-VAE was trained on {(config.channels, config.height, config.width)}",
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
        run.write(extract_codes={"copies": arguments.copies, **asdict(arguments.augmentation)})
    distributed.on_main(lambda: _tell(model, counts, run))


def _write(
    model: VQVAE, data: ImageData, run: RunFolder, arguments: Arguments, device: torch.device
) -> list[CodeCounts]:
    """Write the store; return how often each code occurs in the held-out images, by level.

    In a distributed run the processes encode a batch each, and the main one writes.
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
            print(f"going on after {found:,} images")
        bar = stack.enter_context(tqdm(total=total, unit="image", disable=distributed.quiet()))
        # Held-out images first: a collapsed codebook is told before the long part begins.
        passes = [(split, 0) for split in sorted(data.splits, key=lambda name: name != "val")]
        for split, copy in passes + [("train", n + 1) for n in range(arguments.copies)]:
            images = data.splits[split]
            changed = AugmentedSet(images, arguments.augmentation, arguments.compute.seed)
            for start in range(0, len(images), size):
                rows = range(start, min(start + size, len(images)))
                found -= len(rows)
                # Batches are encoded whole, whatever is there of them already: rounding depends on the batch.
                if found < 0 or split == "val":
                    first = distributed.rank() * arguments.batch_size
                    own = list(rows[first : first + arguments.batch_size])
                    batch = changed.at_epoch(own, copy) if copy else images.__getitems__(own)
                    codes = _encode(model, batch["image"].to(device), counts if split == "val" else None, bf16)
                    distributed.on_main(lambda: _append(writer, codes, images, rows, split, copy))  # noqa: B023 - called at once
                bar.update(len(rows))
            if split == "val":
                for count in counts:
                    count.gather()
                distributed.on_main(lambda: _refuse_collapse(model, counts, run, arguments.allow_collapse))
    return counts


def _count(data: ImageData, arguments: Arguments) -> int:
    return sum(len(images) for images in data.splits.values()) + arguments.copies * len(data.splits["train"])


def _encode(model: VQVAE, x: Tensor, counts: list[CodeCounts] | None, bf16: bool) -> list[Tensor]:
    """Encode a process's batch: the codes of all processes' batches, by level, on the CPU."""
    # Codes must not depend on the precision of the day: bf16 only where it is asked for.
    with autocast(x.device, torch.bfloat16 if bf16 else torch.float32):
        codes = model.encode(x)
    for count, level in zip(counts or (), codes, strict=bool(counts)):
        count.update(level, ~constant_cells(x, level.shape[1:]))
    return [distributed.all_gather_rows(level.cpu()) for level in codes]


def _append(
    writer: CodeWriter | None, codes: list[Tensor], images: ImageSet, rows: range, split: str, copy: int
) -> None:
    """Write what is not there yet of a batch; changed copies are a split of their own."""
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
    """Name everything that the codes depend on besides the weights: only their own beginning is gone on with."""
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
        digest.update(zlib.crc32(np.ascontiguousarray(images.images).data).to_bytes(4, "little"))
    return digest.hexdigest()


def _tell(model: VQVAE, counts: list[CodeCounts], run: RunFolder) -> None:
    store = CodeStore(run.codes)
    size = (run.codes / "data.mdb").stat().st_size
    bare = sum(level.nbytes for level in store.read())
    for name, count in zip(model.levels, counts, strict=True):
        print(
            f"{name:<10} held-out perplexity {count.perplexity:.0f} of {len(count.counts)}, "
            f"{count.perplexity_foreground:.0f} without constant cells; usage {count.usage:.0%}"
        )
    print(f"wrote {run.codes}: {len(store):,} images, {size / bare:.2f} x the bytes of the codes alone")
    print(f"next: python train_prior.py --run {run.path} --level {model.levels[0]}")


def _refuse_collapse(model: VQVAE, counts: list[CodeCounts], run: RunFolder, allow: bool) -> None:
    for level, k, count in zip(model.levels, model.config.num_embeddings, counts, strict=True):
        least = least_perplexity(k)
        if count.perplexity < least and not allow:
            raise UserError(
                f"the codebook of level {level} has collapsed: held-out perplexity {count.perplexity:.1f} of {k}, "
                f"at least {least:g} is needed",
                run.vqvae,
                "Train the VQ-VAE longer or with other settings, or add --allow-collapse",
            )
