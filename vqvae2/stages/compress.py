"""Write the codes of images into one small file, by the probabilities of the priors."""

import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vqvae2 import files, report
from vqvae2.compression import Header, decode_codes, encode_codes, made_by, pack, unpack
from vqvae2.data import ImageSet, from_unit
from vqvae2.errors import UserError
from vqvae2.metrics import foreground, foreground_scores
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.rate_distortion import choose_codes
from vqvae2.residuals import ResidualModel
from vqvae2.stages.commands import command
from vqvae2.stages.common import RunFolder, refuse_torchrun
from vqvae2.stages.decompress import read_images
from vqvae2.stages.evaluated import open_evaluated
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.sampled import load_models
from vqvae2.stages.unlike import training_nats, unlike
from vqvae2.vqvae import VQVAE

_CPU = torch.device("cpu")
_BATCH = 32  # images encoded together
_LEARNED_PIXELS = 2**23  # from which the law of what reconstructions lose is learned


@dataclass(frozen=True)
class Arguments:
    """Write the codes of images into one small file, by the probabilities of the priors; `vqvae2 decompress` reads it.

    The file holds codes: images come back as the VQ-VAE reconstructs them, or, with --lossless, as they were. Reading
    it takes the run's models, and a machine that computes as this one does. It is read back once as a check before it
    is saved.
    """

    run: Path
    """Run folder with a VQ-VAE and the priors of all its levels."""
    out: Path
    """The file."""
    data: str | None = None
    """A folder of other images than the run's own."""
    split: Literal["train", "selection", "val", "test", "all"] | None = None
    """Split to compress; all: every image, in any folder. Default: all of --data, else test if it exists, else val."""
    chunk_size: int = 16
    """Images that are coded together; larger is faster, and each chunk costs 16 bytes."""
    lossless: bool = False
    """Keep what reconstructions lose, too: images come back pixel for pixel, as the run sees them, in its size."""
    rate_weight: tuple[float, ...] = ()
    """Fewer bytes for more error: lambda of each level, top first, or one for all. A code costs its squared distance
    and lambda times what its prior makes it cost, in nats. 0 takes the nearest code. Default: the codes of the run."""
    overwrite: bool = False
    """Replace the file."""


_GROUPS = {"images": ("data", "split"), "running": ("run", "out", "chunk_size", "lossless", "rate_weight", "overwrite")}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    return run_stage(partial(CommandLine, "compress", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    refuse_torchrun("compression")
    if arguments.chunk_size < 1:
        raise UserError(f"--chunk-size {arguments.chunk_size} is too small", how="Give 1 or more")
    if arguments.out.is_dir():
        raise UserError("this is a folder", arguments.out, "Give --out a file")
    if arguments.out.exists() and not arguments.overwrite:
        raise UserError("this file exists already", arguments.out, "Add --overwrite, or give another --out")
    run = RunFolder(arguments.run)
    record = run.read()
    model, priors = load_models(run, _CPU)
    weights = _weights(arguments.rate_weight, len(priors))
    split = "all" if arguments.data is not None and arguments.split is None else arguments.split
    evaluated = open_evaluated(run, record, arguments.data, split)
    images = evaluated.images
    attributes = len(priors[0].config.attributes)
    label = evaluated.labels() if evaluated.own else torch.full((len(images), attributes), -1)
    codes = _encode(model, images)
    if weights is not None:
        dear, codes = codes, _choose(model, priors, images, label, weights)
        _compare(model, images, codes, dear)
    positions = sum(level[0].numel() for level in codes)
    chunks = -(-len(images) // arguments.chunk_size)
    work = chunks * arguments.chunk_size * positions
    started = time.monotonic()
    with Progress(work, "writing codes", "codes") as progress:
        streams, checksums = encode_codes(priors, codes, label, arguments.chunk_size, progress)
    losses, more = _losses(model, codes, images, arguments.chunk_size) if arguments.lossless else (None, [])
    header = Header(
        hashes=hashes_of(model, run),
        shapes=[list(level.shape[1:]) for level in codes],
        keys=images.keys,
        labels=label.tolist(),
        chunk_size=arguments.chunk_size,
        chunks=[[len(stream), checksum] for stream, checksum in zip(streams, checksums, strict=True)],
        threads=torch.get_num_threads(),
        made_by=made_by(),
        losses=losses,
    )
    content = pack(header, [*streams, *more])
    seconds = time.monotonic() - started
    with Progress(work, "reading it back", "codes") as progress:
        found = unpack(content, arguments.out)
        back: Iterator[Any] = decode_codes(priors, *found, progress)
        if arguments.lossless:
            back = read_images(model, priors, *found, images.value_range, progress)
        for _ in back:
            pass
    files.make_folder(arguments.out.parent)
    files.write_atomic(arguments.out, content)
    lost = sum(map(len, more))
    nats = np.stack([report.score_codes(prior, codes[: i + 1], label).nll for i, prior in enumerate(priors)], 1)
    each = [level[0].numel() for level in codes]
    _tell(arguments.out, content, lost, streams, float((nats * each).sum()), images, seconds)
    usual = None if evaluated.own else training_nats(run, priors)
    count, words = (0, "") if usual is None else unlike(nats, usual, model.levels)
    if count:
        of = f"{count:,} of {len(images):,} images"
        print(f"note: {of} are unlike the training images, so they cost more and come back worse: {words}")
    if losses:
        print(f"lossless: what the reconstructions lose takes {lost:,} of the bytes ({lost / len(content):.0%})")
    print(f"next: {command('decompress', '--run', run.path, '--file', arguments.out, '--out', 'FOLDER')}")


def _weights(given: tuple[float, ...], levels: int) -> list[float] | None:
    weights = list(given) * levels if len(given) == 1 else list(given)
    if weights and (len(weights) != levels or min(weights) < 0):
        told = " ".join(f"{weight:g}" for weight in given)
        raise UserError(
            f"--rate-weight {told} does not fit the run's {levels} levels", how=f"Give one or {levels} numbers >= 0"
        )
    return weights or None


def _encode(model: VQVAE, images: ImageSet) -> list[torch.Tensor]:
    """Encode images to the codes of the run."""
    parts = []
    with Progress(len(images), "encoding", "images") as progress:
        for x in images.in_parts(_BATCH):
            parts.append(model.encode(x))
            progress(len(x))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _choose(
    model: VQVAE, priors: list[Prior], images: ImageSet, label: torch.Tensor, weights: list[float]
) -> list[torch.Tensor]:
    """Encode images to codes that are cheaper than the run's."""
    parts, positions = [], sum(math.prod(prior.config.shape) for prior in priors)
    with Progress(len(images) * positions, "choosing", "codes") as progress:
        for rows, x in zip(label.split(_BATCH), images.in_parts(_BATCH), strict=True):
            parts.append(choose_codes(model, priors, x, rows, weights, progress))
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def _compare(model: VQVAE, images: ImageSet, codes: list[torch.Tensor], dear: list[torch.Tensor]) -> None:
    """Print how well images come back from codes, beside those of the run."""
    background, scores = report.background_of(images), []
    for start, x in zip(range(0, len(images), _BATCH), images.in_parts(_BATCH), strict=True):
        mask, rows = foreground(x, background), slice(start, start + _BATCH)
        made = [model.decode([level[rows] for level in kind]) for kind in (codes, dear)]
        scores.append(torch.stack([foreground_scores(y, x, mask)["ssim_foreground"] for y in made]))
    own, of_run = torch.cat(scores, 1).nanmean(1).tolist()
    where = "" if background is None else " in the foreground"
    print(f"SSIM{where} {own:.4f}, of the run's codes {of_run:.4f}")


@torch.no_grad()
def _losses(model: VQVAE, codes: list[torch.Tensor], images: ImageSet, size: int) -> tuple[dict[str, Any], list[bytes]]:
    """Write what the reconstructions lose, in chunks of a size: what the header says of it, and each chunk's bytes.

    The law is learned from all images or, of many, from chunks spread over them.
    """
    value_range = images.value_range
    chunks = [slice(first, min(first + size, len(images))) for first in range(0, len(images), size)]

    def both(chunk: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        # Chunk by chunk, as they are read: in batches of other sizes a value near the middle may be rounded otherwise.
        return images.images[chunk], from_unit(model.decode([level[chunk] for level in codes]), value_range)

    count = max(1, _LEARNED_PIXELS // (size * math.prod(images.images.shape[1:])))
    some = {i: both(chunks[i]) for i in report.spread_out(len(chunks), count)}
    stored, made = (np.concatenate(parts) for parts in zip(*some.values(), strict=True))
    tried = []
    for residuals in ResidualModel.fit(stored, made, value_range):
        tried.append((residuals, {i: residuals.encode(*pair, value_range) for i, pair in some.items()}))
    residuals, streams = min(tried, key=lambda one: sum(map(len, one[1].values())))
    written, told = [], []
    for i, chunk in enumerate(chunks):
        stored, made = some[i] if i in some else both(chunk)
        written.append(streams[i] if i in streams else residuals.encode(stored, made, value_range))
        told.append([len(written[-1]), zlib.crc32(stored.astype(made.dtype).tobytes())])  # of the type that is read
    return {"model": residuals.settings(), "chunks": told}, written


def _tell(
    out: Path, content: bytes, lost: int, streams: list[bytes], nats: float, images: ImageSet, seconds: float
) -> None:
    """Print the size beside what the priors promise; ``lost`` bytes of a lossless file are beyond that promise."""
    promised, coded, told = nats / math.log(2) / 8, sum(map(len, streams)), len(content) - lost
    count, pixels = len(images), math.prod(images.images.shape[2:])
    print(
        f"wrote {out}: {count:,} images in {len(content):,} bytes, {8 * len(content) / count / pixels:.3f} bits a pixel"
    )
    print(
        f"NLL under the priors {promised:,.0f} bytes; codes {coded:,} ({coded / promised:.4f} times that), with names "
        f"and labels {told:,} ({told / promised:.4f} times); {seconds:.0f} s"
    )
