"""Stage 4: make images (Razavi et al. 2019, algorithm 2, last steps)."""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes as Flat

from vqvae2 import checkpoint, distributed, files
from vqvae2.codes import CodeStore
from vqvae2.data import from_unit
from vqvae2.data.sources import WRITING
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, grid, png_bytes, to_picture
from vqvae2.prior import Prior
from vqvae2.sampling import KeptChunks, Samples, Sharpness, label_rows, sample_rows, sharpness_by_level
from vqvae2.stages.common import Compute, RunFolder, check_fingerprints, locked, parse
from vqvae2.stages.launch import run_stage
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Sample images from the priors."""

    run: Path
    """Run folder with a VQ-VAE and the priors of all its levels."""
    num: int = 64
    """Images."""
    label: tuple[str, ...] = ()
    """Class of each attribute wanted, as ATTRIBUTE=CLASS; CLASS alone where there is one attribute."""
    temperature: tuple[float, ...] = (1.0,)
    """Temperature > 0; one value, or one for each level, top first."""
    top_k: tuple[int, ...] = (0,)
    """Draw among the k most probable codes, 0: all; one value, or one for each level."""
    top_p: tuple[float, ...] = (1.0,)
    """Draw among the fewest codes that reach probability p, in (0, 1]; one value, or one for each level."""
    chunk_size: int = 16
    """Images made at once; sets of different chunk sizes differ by rounding."""
    out: Path | None = None
    """Folder of the images; default: samples in the run folder."""
    compute: Flat[Compute] = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be made, and exit."""


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    """Run the stage; return its exit code. An interrupted set is gone on with by the same command."""
    return run_stage(_story, argv, prog, "sample.py")


def _story(argv: list[str], prog: str) -> None:
    arguments = parse(Arguments, Arguments(run=tyro.MISSING), argv, prog, __doc__ or "")
    if arguments.num < 1 or arguments.chunk_size < 1:
        raise UserError("nothing to sample", f"--num {arguments.num} --chunk-size {arguments.chunk_size}", "Give >= 1")
    run = RunFolder(arguments.run)
    run.read()
    device, _ = arguments.compute.resolve()
    out = arguments.out or run.path / "samples"
    check_out(out)
    model, priors = load_models(run, device)
    attributes = priors[0].config.attributes
    wanted = parse_labels(arguments.label, attributes)
    label = label_rows(attributes, wanted, arguments.num)
    try:
        sharpness = sharpness_by_level(arguments.temperature, arguments.top_k, arguments.top_p, len(priors))
    except ValueError as error:
        raise UserError(str(error), "--temperature, --top-k, --top-p", "See --help") from error
    codes = " + ".join(f"{h * w:,} {level}" for level, (h, w) in zip(model.levels, model.config.shapes, strict=True))
    print(f"{arguments.num} images of {codes} codes, label {wanted or 'any'}, seed {arguments.compute.seed}")
    if arguments.dry_run:
        return
    precision = "bf16" if arguments.compute.precision == "bf16" else "fp32"
    how = describe(wanted, sharpness, arguments.compute.seed, arguments.chunk_size, device, precision)
    if precision == "bf16":
        priors = [prior.to(torch.bfloat16) for prior in priors]
    with locked(out):
        kept = ChunkFolder(out, {**how, **_hashes(model, run)})
        samples = draw(model, priors, label, arguments.compute.seed, sharpness, arguments.chunk_size, kept)
        distributed.on_main(lambda: write_samples(out, samples, model, run, {"num": arguments.num, **how}))
        distributed.on_main(kept.remove)
    print(f"wrote {out}/grid.png, {arguments.num} images, codes.npz and samples.json")
    print(f"next: python evaluate.py --run {run.path}")


def load_models(run: RunFolder, device: torch.device) -> tuple[VQVAE, list[Prior]]:
    """Load the VQ-VAE and the priors of all its levels, top first.

    Raises:
        UserError: one is missing, or two do not belong together.
    """
    model = VQVAE.from_pretrained(run.vqvae, device)
    for level in model.levels:
        if not checkpoint.has_model(run.prior(level)):
            raise UserError(
                f"there is no prior of level {level}",
                run.prior(level),
                f"Run train_prior.py --run {run.path} --level {level}",
            )
    check_fingerprints(run, CodeStore(run.codes), model.levels)
    return model, [Prior.from_pretrained(run.prior(level), device) for level in model.levels]


def check_out(out: Path) -> None:
    """Raise UserError for a folder that holds images of another making, which samples would be mixed with."""
    if out.is_dir() and not any((out / own).is_file() for own in ("samples.json", WRITING)):
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others:
            raise UserError(
                f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own"
            )


def parse_labels(given: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    """Read ATTRIBUTE=CLASS (several may be joined by commas), or CLASS alone where there is one attribute.

    Raises:
        UserError: CLASS alone, and there is not exactly one attribute.
    """
    known = dict(attributes)
    wanted: dict[str, str] = {}
    for text in given:
        # A class may hold commas and equals signs itself, as ">=60" does: the whole is looked up first.
        for part in [text] if _known_label(text.strip(), known) else text.split(","):
            name, value = _known_label(part.strip(), known) or _other_label(part.strip(), known)
            wanted[name] = value
    return wanted


def _known_label(text: str, known: dict[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """Attribute and class where the text names just these, CLASS alone where there is one attribute; else None."""
    if len(known) == 1 and text in next(iter(known.values())):
        return next(iter(known)), text
    name, _, value = text.partition("=")
    return (name, value) if value in known.get(name, ()) else None


def _other_label(text: str, known: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    """Attribute and class where the class is none of the attribute's, which is refused where classes are looked up."""
    name, equals, value = text.partition("=")
    if len(known) != 1 and not (equals and name in known):
        names = ", ".join(known) or "none"
        raise UserError("which attribute is meant", f"--label {text}", f"Give ATTRIBUTE=CLASS of: {names}")
    return (name, value) if equals else (next(iter(known)), text)


def describe(
    label: dict[str, str],
    sharpness: list[Sharpness],
    seed: int,
    chunk_size: int,
    device: torch.device,
    precision: str = "fp32",
) -> dict:
    """Record what samples depend on besides the weights, as samples.json keeps it."""
    return {
        "label": label,
        "temperature": [level.temperature for level in sharpness],
        "top_k": [level.top_k for level in sharpness],
        "top_p": [level.top_p for level in sharpness],
        "seed": seed,
        "chunk_size": chunk_size,
        "device": device.type,
        "precision": precision,
    }


class ChunkFolder:
    """The finished chunks of a set that is being sampled, beside its images-to-be.

    Args:
        out: folder of the set.
        how: everything that the samples depend on; chunks of another making are not found.
    """

    def __init__(self, out: Path, how: dict) -> None:
        key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
        self.out, self.folder = out, out / f".unfinished-{key}"

    def get(self, first: int) -> tuple[list[Tensor], Tensor] | None:
        """Return codes and NLL of the chunk that starts with sample ``first``, if it is there."""
        path = self.folder / f"{first:08d}.safetensors"
        if not path.is_file():
            return None
        tensors = safetensors.torch.load_file(path)
        nll = tensors.pop("nll")
        return [tensors[name] for name in sorted(tensors)], nll

    def put(self, first: int, codes: list[Tensor], nll: Tensor) -> None:
        """Keep a chunk."""
        files.make_folder(self.folder)
        tensors = {f"{i:03d}": level.contiguous() for i, level in enumerate(codes)}
        blob = safetensors.torch.save({**tensors, "nll": nll})
        files.write_atomic(self.folder / f"{first:08d}.safetensors", blob)

    def remove(self) -> None:
        """Remove all unfinished sets of the folder: the images are written."""
        for folder in self.out.glob(".unfinished-*"):
            shutil.rmtree(folder)


def draw(
    model: VQVAE,
    priors: list[Prior],
    label: Tensor,
    seed: int,
    sharpness: list[Sharpness],
    chunk_size: int,
    kept: KeptChunks | None = None,
) -> Samples:
    """Sample a set in chunks of one size, with a progress bar; the arguments are those of `sampling.sample_rows`."""
    chunks = -(-len(label) // (chunk_size * distributed.world_size()))  # of the main process
    total = chunks * chunk_size * sum(h * w for h, w in model.config.shapes)
    with tqdm(total=total, unit="code", unit_scale=True, disable=distributed.quiet()) as bar:
        samples = sample_rows(model, priors, label, seed, sharpness, chunk_size, bar.update, kept)
    codes = [level.cpu() for level in samples.codes]
    return Samples(samples.images.cpu(), codes, samples.nll.cpu(), samples.label)


def write_samples(out: Path, samples: Samples, model: VQVAE, run: RunFolder, how: dict) -> None:
    """Write images in the data's own value range, a grid, the codes, and how they were made."""
    check_out(out)  # so that all images there are ours to remove
    files.make_folder(out)
    files.write_atomic(out / WRITING, b"")  # by which the folder is known for ours if the writing breaks off
    with files.told_as("cannot replace the samples", out, "Choose another folder"):
        (out / "samples.json").unlink(missing_ok=True)  # it never stands beside images of another set
        for old in out.glob("[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
    data = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    pixels = from_unit(samples.images, tuple(data["value_range"]))
    for i, image in enumerate(pixels):
        files.write_atomic(out / f"{i:05d}.png", png_bytes(channels_last(image)))
    shown = [to_picture(image) for image in samples.images[:64]]
    files.write_atomic(out / "grid.png", png_bytes(grid(shown)))
    arrays = {level: codes.numpy().astype(np.int32) for level, codes in zip(model.levels, samples.codes, strict=True)}
    files.write_atomic(out / "codes.npz", lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    nll = {
        level: [round(float(v), 6) for v in column] for level, column in zip(model.levels, samples.nll.T, strict=True)
    }
    record = {
        "version": __version__,
        **how,
        "levels": list(model.levels),
        **_hashes(model, run),
        "nll_nats_per_code": nll,
        "labels": samples.label.tolist(),
    }
    files.write_json(out / "samples.json", record)
    (out / WRITING).unlink()


def _hashes(model: VQVAE, run: RunFolder) -> dict:
    """Name the weights that samples are made with."""
    return {
        "vqvae_sha256": checkpoint.sha256_of(run.vqvae),
        "prior_sha256": {level: checkpoint.sha256_of(run.prior(level)) for level in model.levels},
    }
