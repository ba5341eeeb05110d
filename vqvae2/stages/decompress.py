"""Read a file that `vqvae2 compress` wrote, and write its images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vqvae2 import checkpoint, files
from vqvae2.compression import decode_codes, unpack
from vqvae2.data import from_unit
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, png_bytes
from vqvae2.progress import Progress
from vqvae2.stages.common import RunFolder, refuse_torchrun
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sample_folder import hashes_of
from vqvae2.stages.sampled import load_models


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
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise UserError("this folder holds other files", arguments.out, "Give --out a folder of its own")
    with files.told_as("cannot read the file", arguments.file):
        content = arguments.file.read_bytes()
    header, streams = unpack(content, arguments.file)
    run = RunFolder(arguments.run)
    model, priors = load_models(run, torch.device("cpu"))
    if header.hashes != hashes_of(model, run):
        raise UserError(
            f"the file was not written with the models in {run.path}", arguments.file, "Give the --run that wrote it"
        )
    low, high = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]["value_range"]
    positions = sum(h * w for h, w in header.shapes)
    total, done = len(streams) * header.chunk_size * positions, 0
    with Progress(total, "reading codes", "codes") as progress, torch.no_grad():
        for codes in decode_codes(priors, header, streams, progress):
            pixels = from_unit(model.decode(codes), (low, high))
            for key, image in zip(header.keys[done : done + len(pixels)], pixels, strict=True):
                path = arguments.out / Path(key.lstrip("/")).with_suffix(".png")
                if ".." in path.parts:
                    raise UserError("a name in the file leads out of the folder", key, "Do not trust this file")
                files.make_folder(path.parent)
                files.write_atomic(path, png_bytes(channels_last(image)))
            done += len(pixels)
    print(f"wrote {arguments.out}: {done:,} images")
