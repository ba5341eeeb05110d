"""Stage 4: sample images (Razavi et al. 2019, algorithm 2, last steps)."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from vqvae2 import checkpoint, distributed, files
from vqvae2.codes import CodeStore
from vqvae2.data import from_unit
from vqvae2.data.sources import WRITING
from vqvae2.errors import UserError
from vqvae2.pictures import channels_last, grid, png_bytes, to_picture
from vqvae2.prior import Prior
from vqvae2.sampling import KeptChunks, Samples, Sharpness, draw_labels, label_rows, sample_rows, sharpness_by_level
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, check_fingerprints, locked, record_of
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE


@dataclass(frozen=True)
class Arguments:
    """Stage 4: sample images from the priors (Razavi et al. 2019, algorithm 2, last steps).

    After an interruption the same command continues.
    """

    run: Path
    """Run folder with a VQ-VAE and the priors of all its levels."""
    num: int = 64
    """Number of images."""
    label: tuple[str, ...] = ()
    """Class of an attribute, as ATTRIBUTE=CLASS, such as sex=F; CLASS alone if there is one attribute. Several may be
    given. Attributes that are not given are drawn jointly from the labels of the training images."""
    temperature: tuple[float, ...] = (1.0,)
    """Logits are divided by it, > 0; one value, or one for each level, top first."""
    top_k: tuple[int, ...] = (0,)
    """Sample from the k most probable codes, 0: from all; one value, or one for each level."""
    top_p: tuple[float, ...] = (1.0,)
    """Sample from the fewest codes whose probability reaches p, in (0, 1]; one value, or one for each level."""
    chunk_size: int = 16
    """Images sampled at once; sets of different chunk sizes differ by rounding."""
    out: Path | None = None
    """Folder of the images; default: samples in the run folder."""
    overwrite: bool = False
    """Replace a set of other settings in that folder."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be sampled, and exit."""


_GROUPS = {
    "samples": ("num", "label", "temperature", "top_k", "top_p", "seed"),
    "running": ("run", "out", "overwrite", "dry_run", "device", "precision", "chunk_size"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(partial(CommandLine, "sample", Arguments, _GROUPS), _story, argv)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = line.settings()
    for flag, value in (("--num", arguments.num), ("--chunk-size", arguments.chunk_size)):
        if value < 1:
            raise UserError(f"{flag} {value} is too small", how="Give 1 or more")
    run = RunFolder(arguments.run)
    run.read()
    device, _ = arguments.compute.resolve()
    out = arguments.out or run.path / "samples"
    check_out(out)
    model, priors = load_models(run, device)
    attributes = priors[0].config.attributes
    wanted = parse_labels(arguments.label, attributes)
    label = labels_to_sample(run, attributes, wanted, arguments.num, arguments.compute.seed)
    sharpness = _sharpness(arguments, len(priors))
    precision = "bf16" if arguments.compute.precision == "bf16" else "fp32"
    how = describe(wanted, sharpness, arguments.compute.seed, arguments.chunk_size, device, precision)
    if not arguments.overwrite:
        _check_replaced(out, {**how, **_hashes(model, run)}, arguments.num)
    codes = " + ".join(f"{h * w:,} {level}" for level, (h, w) in zip(model.levels, model.config.shapes, strict=True))
    asked = ", ".join(f"{name}={value}" for name, value in wanted.items()) or "any"
    print(f"{arguments.num:,} images of {codes} codes, label {asked}, seed {arguments.compute.seed}")
    if arguments.dry_run:
        return
    if precision == "bf16":
        priors = [prior.to(torch.bfloat16) for prior in priors]
    with locked(out):
        kept = ChunkFolder(out, {**how, **_hashes(model, run)})
        samples = draw(model, priors, label, arguments.compute.seed, sharpness, arguments.chunk_size, kept)
        record = {"num": arguments.num, **how, "arguments": record_of(line, {})}
        distributed.on_main(lambda: write_samples(out, samples, model, run, record))
        distributed.on_main(kept.remove)
    print(f"wrote {out}/grid.png, {arguments.num:,} images, codes.npz and samples.json")
    print(f"next: {command('evaluate', '--run', run.path)}")


def labels_to_sample(
    run: RunFolder, attributes: tuple[tuple[str, tuple[str, ...]], ...], wanted: dict[str, str], num: int, seed: int
) -> Tensor:
    """Return the labels of a set of samples, (num, A): those asked for, the others drawn from the training images."""
    rows = label_rows(attributes, wanted, num)
    if not attributes:
        return rows
    store = CodeStore(run.codes)
    return draw_labels(rows, torch.from_numpy(store.labels[store.indices("train")]), seed)


def _sharpness(arguments: Arguments, levels: int) -> list[Sharpness]:
    """Return temperature, top-k and top-p of every level."""
    for flag, values, fits, needed in (
        ("--temperature", arguments.temperature, lambda value: value > 0, "> 0"),
        ("--top-k", arguments.top_k, lambda value: value >= 0, ">= 0"),
        ("--top-p", arguments.top_p, lambda value: 0 < value <= 1, "in (0, 1]"),
    ):
        text = f"{flag} {' '.join(f'{value:g}' for value in values)}"
        if len(values) not in (1, levels):
            raise UserError(f"{text}: {len(values)} values for {levels} levels", how=f"Give 1 or {levels} values")
        if not all(map(fits, values)):
            raise UserError(f"{text} is out of range", how=f"Give values {needed}")
    return sharpness_by_level(arguments.temperature, arguments.top_k, arguments.top_p, levels)


def _check_replaced(out: Path, how: dict, num: int) -> None:
    """Refuse to replace samples of other settings, or more of them. More samples of the same settings keep the first.

    Raises:
        UserError: names what differs.
    """
    path = out / "samples.json"
    if not path.is_file():
        return
    earlier, now = files.read_json(path), files.plain(how)
    differs = [name for name in now if earlier.get(name) != now[name]]
    if differs:
        name = differs[0]
        models = name.endswith("sha256")
        what = "made by other models" if models else f"with {name} {_shown(earlier.get(name))}, not {_shown(now[name])}"
    elif len(earlier["labels"]) > num:
        what = f"of {len(earlier['labels']):,} images, not {num:,}"
    else:
        return
    raise UserError(f"this folder holds samples {what}", out, "Add --overwrite, or --out with another folder")


def _shown(value: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) or "any" if isinstance(value, dict) else str(value)


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
                f"Run {command('train-prior', '--run', run.path, '--level', level)}",
            )
    check_fingerprints(run, CodeStore(run.codes), model.levels)
    return model, [Prior.from_pretrained(run.prior(level), device) for level in model.levels]


def check_out(out: Path) -> None:
    """Raise UserError for a folder that holds files other than samples."""
    if out.is_dir() and not any((out / own).is_file() for own in ("samples.json", WRITING)):
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others:
            raise UserError(
                f"this folder holds other files, such as {others[0]}", out, "Give --out a folder of its own"
            )


def parse_labels(given: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    """Read ATTRIBUTE=CLASS (several may be joined by commas), or CLASS alone where there is one attribute.

    Raises:
        UserError: CLASS alone, and there is not exactly one attribute; or two classes of one attribute.
    """
    known = dict(attributes)
    wanted: dict[str, str] = {}
    for text in given:
        # A class may contain commas and equals signs, such as ">=60": first look up the whole text.
        for part in [text] if _known_label(text.strip(), known) else text.split(","):
            name, value = _known_label(part.strip(), known) or _other_label(part.strip(), known)
            if wanted.get(name, value) != value:
                raise UserError(f"{name} cannot be both {wanted[name]} and {value}", "--label", "Give one class")
            wanted[name] = value
    return wanted


def _known_label(text: str, known: dict[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """Return attribute and class if the text names a class that exists, else None."""
    if len(known) == 1 and text in next(iter(known.values())):
        return next(iter(known)), text
    name, _, value = text.partition("=")
    return (name, value) if value in known.get(name, ()) else None


def _other_label(text: str, known: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    """Return attribute and class of a text that names an unknown class; `label_rows` refuses it."""
    name, equals, value = text.partition("=")
    if len(known) != 1 and not (equals and name in known):
        names = ", ".join(known) or "none"
        raise UserError(f"--label {text} names no attribute", how=f"Give ATTRIBUTE=CLASS; attributes are {names}")
    return (name, value) if equals else (next(iter(known)), text)


def describe(
    label: dict[str, str],
    sharpness: list[Sharpness],
    seed: int,
    chunk_size: int,
    device: torch.device,
    precision: str = "fp32",
) -> dict:
    """Return what samples depend on besides the weights, for samples.json."""
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
    """The finished chunks of a set that is being sampled, kept on disk so that an interrupted run can continue.

    Args:
        out: folder of the set.
        how: everything that the samples depend on; chunks of other settings are not found.
    """

    def __init__(self, out: Path, how: dict) -> None:
        key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
        self.out, self.folder = out, out / f".unfinished-{key}"

    def get(self, first: int) -> tuple[list[Tensor], Tensor] | None:
        """Return codes and NLL of the chunk that starts with sample ``first``, if it exists."""
        path = self.folder / f"{first:08d}.safetensors"
        if not path.is_file():
            return None
        tensors = safetensors.torch.load_file(path)
        nll = tensors.pop("nll")
        return [tensors[name] for name in sorted(tensors)], nll

    def put(self, first: int, codes: list[Tensor], nll: Tensor) -> None:
        """Write a chunk."""
        files.make_folder(self.folder)
        tensors = {f"{i:03d}": level.contiguous() for i, level in enumerate(codes)}
        blob = safetensors.torch.save({**tensors, "nll": nll})
        files.write_atomic(self.folder / f"{first:08d}.safetensors", blob)

    def remove(self) -> None:
        """Remove the chunks, once the images are written."""
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
    """Write images in the data's own value range, a grid, the codes, and samples.json."""
    check_out(out)  # all images in it are samples, so they may be removed
    files.make_folder(out)
    files.write_atomic(out / WRITING, b"")  # marks the folder as one of samples if writing is interrupted
    with files.told_as("cannot replace the samples", out, "Choose another folder"):
        (out / "samples.json").unlink(missing_ok=True)  # never beside images of another set
        for old in out.iterdir():
            if re.fullmatch(r"\d{5,}\.png", old.name):
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
    """Return the SHA-256 of all weights that samples depend on."""
    return {
        "vqvae_sha256": checkpoint.sha256_of(run.vqvae),
        "prior_sha256": {level: checkpoint.sha256_of(run.prior(level)) for level in model.levels},
    }
