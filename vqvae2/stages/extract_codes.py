"""Stage 2: encode all images once and keep their codes (Razavi et al. 2019, algorithm 2, first step)."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint
from vqvae2.codes import CodeStore, CodeWriter
from vqvae2.data import DataConfig, open_data
from vqvae2.device import autocast
from vqvae2.errors import UserError
from vqvae2.metrics import CodeCounts, constant_cells, least_perplexity
from vqvae2.stages.common import Compute, RunFolder, merged, parse, run_stage
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Extract the codes of all images into the run's code store."""

    run: Path
    """Run folder with a trained VQ-VAE."""
    batch_size: int = 64
    """Images encoded at once."""
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
    arguments = parse(Arguments, Arguments(run=tyro.MISSING), argv, prog, __doc__ or "")
    if arguments.batch_size < 1:
        raise UserError("a batch holds at least one image", f"--batch-size {arguments.batch_size}", "Give 1 or more")
    run = RunFolder(arguments.run)
    record = run.read()
    device, _ = arguments.compute.resolve()
    model = VQVAE.from_pretrained(run.vqvae, device)
    config = model.config
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    data = open_data(merged(DataConfig(), record["train_vqvae"]["data"], run.path), like=like)
    if not model.initialized:
        raise UserError("the training was too short to start the codebooks", run.vqvae, "Train longer with --resume")
    # Codes must not depend on the precision of the day; convolutions on CUDA would take TF32.
    torch.backends.cudnn.allow_tf32 = False
    seen = (data.channels, data.height, data.width)
    if seen != (config.channels, config.height, config.width):
        raise UserError(
            f"images are {seen}, the VQ-VAE was trained on {(config.channels, config.height, config.width)}",
            data.name,
            "Train the VQ-VAE again on this data",
        )
    total = sum(len(images) for images in data.splits.values())
    print(data.report())
    if arguments.dry_run:
        print(f"would write the codes of {total:,} images to {run.codes}")
        return
    counts = [CodeCounts(k) for k in config.num_embeddings]
    with (
        CodeWriter(
            run.codes,
            levels=config.levels,
            shapes=config.shapes,
            num_embeddings=config.num_embeddings,
            vqvae_sha256=checkpoint.sha256_of(run.vqvae),
            attributes=data.attributes,
            data=data.to_config(),
            overwrite=arguments.overwrite,
        ) as writer,
        tqdm(total=total, unit="image", disable=None) as bar,
    ):
        # Held-out images first: a collapsed codebook is told before the long part begins.
        for split in sorted(data.splits, key=lambda name: name != "val"):
            images = data.splits[split]
            for start in range(0, len(images), arguments.batch_size):
                rows = range(start, min(start + arguments.batch_size, len(images)))
                x = images.__getitems__(list(rows))["image"].to(device)
                with autocast(device, torch.float32):
                    codes = model.encode(x)
                if split == "val":
                    for count, level in zip(counts, codes, strict=True):
                        count.update(level, ~constant_cells(x, level.shape[1:]))
                writer.append(
                    codes,
                    [images.keys[i] for i in rows],
                    [images.subjects[i] for i in rows],
                    split,
                    images.labels[rows.start : rows.stop],
                )
                bar.update(len(rows))
            if split == "val":
                _refuse_collapse(config.levels, config.num_embeddings, counts, run, arguments.allow_collapse)
    store = CodeStore(run.codes)
    size = (run.codes / "data.mdb").stat().st_size
    bare = sum(level.nbytes for level in store.read())
    for name, count in zip(config.levels, counts, strict=True):
        print(
            f"{name:<10} held-out perplexity {count.perplexity:.0f} of {len(count.counts)}, "
            f"{count.perplexity_foreground:.0f} without constant cells; usage {count.usage:.0%}"
        )
    print(f"wrote {run.codes}: {len(store):,} images, {size / bare:.2f} x the bytes of the codes alone")
    print(f"next: python train_prior.py --run {run.path} --level {config.levels[0]}")


def _refuse_collapse(
    levels: tuple[str, ...], sizes: tuple[int, ...], counts: list[CodeCounts], run: RunFolder, allow: bool
) -> None:
    for level, k, count in zip(levels, sizes, counts, strict=True):
        least = least_perplexity(k)
        if count.perplexity < least and not allow:
            raise UserError(
                f"the codebook of level {level} has collapsed: held-out perplexity {count.perplexity:.1f} of {k}, "
                f"at least {least:g} is needed",
                run.vqvae,
                "Train the VQ-VAE longer or with other settings, or add --allow-collapse",
            )
