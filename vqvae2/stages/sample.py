"""Stage 4: sample images (Razavi et al. 2019, algorithm 2, last steps)."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vqvae2 import checkpoint, files
from vqvae2.classifier import Classifier
from vqvae2.codes import CodeStore
from vqvae2.errors import UserError
from vqvae2.prior import Prior
from vqvae2.sampling import Sharpness, draw_labels, label_rows, sharpness_by_level
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, check_fingerprints, locked, record_of
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.sample_folder import Rejection, check_out, draw_samples, hashes_of, image_path
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
    reject: float = 0.0
    """Share of the samples to leave out, in [0, 1): so many more are drawn, and of each class those are kept of which a
    classifier is surest (Razavi et al. 2019)."""
    classifier: Path | None = None
    """Folder of that classifier; default: the one in the run folder, which evaluate.py --classifier makes."""
    chunk_size: int = 16
    """Images sampled at once; sets of different chunk sizes differ by rounding."""
    out: Path | None = None
    """Folder of the images; default: samples in the run folder."""
    no_images: bool = False
    """Write the codes and a grid of the first images alone; evaluate.py decodes them as it goes."""
    overwrite: bool = False
    """Replace a set of other settings in that folder."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be sampled, and exit."""


_GROUPS = {
    "samples": ("num", "label", "temperature", "top_k", "top_p", "reject", "seed"),
    "running": ("run", "out", "no_images", "classifier", "overwrite", "dry_run", "device", "precision", "chunk_size"),
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
    rejection = _rejection(run, arguments, attributes, model.config.channels, device)
    drawn = arguments.num if rejection is None else rejection.drawn(arguments.num)
    label = labels_to_sample(run, attributes, wanted, drawn, arguments.compute.seed)
    sharpness = _sharpness(arguments, len(priors))
    precision = "bf16" if arguments.compute.precision == "bf16" else "fp32"
    how = describe(wanted, sharpness, arguments.compute.seed, arguments.chunk_size, device, precision)
    how["reject"] = arguments.reject
    if rejection is not None:
        how |= {"drawn": drawn, "classifier_sha256": checkpoint.sha256_of(_classifier_folder(run, arguments))}
    if not arguments.overwrite:
        _check_replaced(out, {**how, **hashes_of(model, run)}, arguments.num)
    if arguments.no_images and not arguments.overwrite and (out / image_path(0, arguments.num)).is_file():
        raise UserError("this folder holds images of samples", out, "Add --overwrite, or leave out --no-images")
    codes = " + ".join(f"{h * w:,} {level}" for level, (h, w) in zip(model.levels, model.config.shapes, strict=True))
    asked = ", ".join(f"{name}={value}" for name, value in wanted.items()) or "any"
    chosen = f", the surest of {drawn:,}" if rejection else ""
    print(f"{arguments.num:,} images of {codes} codes{chosen}, label {asked}, seed {arguments.compute.seed}")
    if arguments.dry_run:
        return
    if precision == "bf16":
        priors = [prior.to(torch.bfloat16) for prior in priors]
    with locked(out):
        record = {"num": arguments.num, **how, "arguments": record_of(line, {})}
        draw_samples(out, model, priors, label, sharpness, run, record, not arguments.no_images, rejection)
    images = "" if arguments.no_images else f"{arguments.num:,} images, "
    print(f"wrote {out}/grid.png, {images}codes.npz and samples.json")
    print(f"next: {command('evaluate', '--run', run.path)}")


def _classifier_folder(run: RunFolder, arguments: Arguments) -> Path:
    """The classifier's folder: the one that is named, else the only one in the run folder."""
    if arguments.classifier is not None:
        return arguments.classifier
    found = sorted(path.parent for path in run.path.glob("classifier-*/config.json"))
    if len(found) == 1:
        return found[0]
    way_out = f"Run {command('evaluate', '--run', run.path, '--classifier', 'ATTRIBUTE')}"
    if found:
        raise UserError(f"there are {len(found)} classifiers", run.path, f"Give --classifier {found[0]}, or another")
    raise UserError("there is no classifier by which to reject samples", run.path, way_out)


def _rejection(
    run: RunFolder,
    arguments: Arguments,
    attributes: tuple[tuple[str, tuple[str, ...]], ...],
    channels: int,
    device: torch.device,
) -> Rejection | None:
    if not 0 <= arguments.reject < 1:
        raise UserError(f"--reject {arguments.reject:g} is no share", how="Give 0 or more, and less than 1")
    if not arguments.reject:
        return None
    folder = _classifier_folder(run, arguments)
    classifier = Classifier.from_pretrained(folder, device)
    known = dict(attributes)
    name, classes = classifier.config.attribute, classifier.config.classes
    if known.get(name) != classes:
        raise UserError(
            f"the classifier is of {name} ({', '.join(classes)}), which is no label of the priors",
            folder,
            f"Their labels are {', '.join(known) or 'none'}",
        )
    if classifier.config.channels != channels:
        raise UserError(
            f"the classifier takes images of {classifier.config.channels} channels, the samples have {channels}", folder
        )
    return Rejection(classifier, list(known).index(name), arguments.reject)


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


_USUAL = {"reject": 0.0}  # what sets of earlier versions do not say


def _check_replaced(out: Path, how: dict, num: int) -> None:
    """Refuse to replace samples of other settings, or more of them. More samples of the same settings keep the first.

    Raises:
        UserError: names what differs.
    """
    path = out / "samples.json"
    if not path.is_file():
        return
    earlier, now = files.read_json(path), files.plain(how)
    differs = [name for name in now if earlier.get(name, _USUAL.get(name)) != now[name]]
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
