"""Read a file that `vqvae2 compress` wrote, and write its images."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from vqvae2 import files
from vqvae2.compression import Header, decode_codes, other_machine, unpack
from vqvae2.data import from_unit
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, png_bytes
from vqvae2.prior import Prior
from vqvae2.progress import Progress
from vqvae2.residuals import ResidualModel
from vqvae2.stages.common import RunFolder, png_names, refuse_torchrun
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.output_folder import UNFINISHED, all_or_nothing
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.sampled import load_models
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Read a file that `vqvae2 compress` wrote, and write its images as PNG under their own names."""

    run: Path
    """Run folder with the models with which it was written."""
    file: Path
    """The compressed file."""
    out: Path
    """Folder of the images; it must be empty or absent."""


_GROUPS = {"running": ("run", "file", "out")}


def main(argv: list[str] | None = None) -> int:
    """Run the tool; return its exit code."""
    return run_stage(partial(CommandLine, "decompress", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    refuse_torchrun("decompression")
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(path.name != UNFINISHED for path in out.iterdir())):
        raise UserError("this folder holds other files", out, "Give --out a folder of its own")
    with files.told_as("cannot read the file", arguments.file):
        content = arguments.file.read_bytes()
    header, streams = unpack(content, arguments.file)
    run = RunFolder(arguments.run)
    model, priors = load_models(run, torch.device("cpu"))
    if header.hashes != hashes_of(model, run):
        raise UserError(
            f"the file was not written with the models in {run.path}", arguments.file, "Give the --run that wrote it"
        )
    for key in header.keys:
        if ".." in Path(key).parts:
            raise UserError("a name in the file leads out of the folder", key, "Do not trust this file")
    positions = sum(h * w for h, w in header.shapes)
    total, done = len(header.chunks) * header.chunk_size * positions, 0
    # Images move into place when all chunks can be trusted.
    with all_or_nothing(out) as unfinished, Progress(total, "reading codes", "codes") as progress:
        paths = [unfinished / name for name in png_names(header.keys)]
        for pixels in read_images(model, priors, header, streams, run.value_range, progress):
            for path, image in zip(paths[done : done + len(pixels)], pixels, strict=True):
                files.make_folder(path.parent)
                files.write_atomic(path, png_bytes(channels_last(image)))
            done += len(pixels)
    kind = "as reconstructed" if header.losses is None else "as they were"
    print(f"wrote {out}: {done:,} images, {kind}")


@torch.no_grad()
def read_images(
    model: VQVAE,
    priors: Sequence[Prior],
    header: Header,
    streams: Sequence[bytes],
    value_range: tuple[float, float],
    progress: Callable[[int], object] | None = None,
) -> Iterator[NDArray[Any]]:
    """Read the images of a file chunk by chunk, (n, C, H, W) stored values.

    Args:
        model, priors: with which it was written.
        header, streams: of the file.
        value_range: stored values of black and white.
        progress: called with the number of codes read, after each row.

    Raises:
        UserError: this machine does not reproduce what the file was written with.
    """
    losses = header.losses
    residuals = ResidualModel(**losses["model"]) if losses else None
    for number, codes in enumerate(decode_codes(priors, header, streams, progress)):
        pixels = from_unit(model.decode(codes), value_range)
        if losses and residuals:
            try:
                pixels = residuals.decode(streams[len(header.chunks) + number], pixels, value_range)
            except (ValueError, AssertionError) as error:  # the coder, of a stream that cannot be
                raise other_machine(header) from error
            if zlib.crc32(pixels.tobytes()) != losses["chunks"][number][1]:
                raise other_machine(header)
        yield pixels
