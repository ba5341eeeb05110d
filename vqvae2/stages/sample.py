"""Stage 4: sample images (Razavi et al. 2019, algorithm 2, last steps)."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from vqvae2 import checkpoint, files
from vqvae2.classifier import Classifier
from vqvae2.detail import DetailDecoder
from vqvae2.errors import UserError
from vqvae2.labels import label_rows
from vqvae2.prior import Prior
from vqvae2.sampling import SETTINGS, Sharpness, sharpness_by_level
from vqvae2.stages.commands import command
from vqvae2.stages.common import Compute, RunFolder, locked, record_of, refuse_torchrun
from vqvae2.stages.complete import complete_image, open_completion
from vqvae2.stages.flags import CommandLine
from vqvae2.stages.launch import run_stage
from vqvae2.stages.output_folder import check_own
from vqvae2.stages.sample_folder import NEUTRAL, Rejection, check_out, draw_samples, hashes_of, image_path
from vqvae2.stages.sampled import (
    describe,
    drawn_levels,
    exported,
    labels_to_sample,
    load_drawn,
    load_guides,
    load_models,
    parse_labels,
    usual_sampling,
)
from vqvae2.stages.sweep import draw_sweep, places_to_sweep


@dataclass(frozen=True)
class Arguments:
    """Stage 4: sample images from the priors (Razavi et al. 2019, algorithm 2, last steps).

    After an interruption the same command continues.
    """

    run: Path
    """Run folder with a VQ-VAE and the priors of the levels that are drawn."""
    levels: int | None = None
    """Coarsest levels that are drawn; the detail decoder paints what finer ones would hold. Default: those of the run's
    detail decoder, where it has one, else all."""
    num: int | None = None
    """Number of images; default: 64, of completions 8, of each class of a sweep 4."""
    label: tuple[str, ...] = ()
    """Class or number of an attribute, as ATTRIBUTE=CLASS, such as sex=F or age=63.5; CLASS alone if there is one
    attribute. Several may be given. Attributes that are not given are drawn jointly from the labels of the training
    images."""
    temperature: tuple[float, ...] = (1.0,)
    """Logits are divided by it, > 0; one value, or one for each level, top first."""
    top_k: tuple[int, ...] = (0,)
    """Sample from the k most probable codes, 0: from all; one value, or one for each level."""
    top_p: tuple[float, ...] = (1.0,)
    """Sample from the fewest codes whose probability reaches p, in (0, 1]; one value, or one for each level."""
    min_p: tuple[float, ...] = (0.0,)
    """Sample from the codes whose probability is at least this share of the most probable one's, in [0, 1]; one value,
    or one for each level. Default: the preset's for levels with autoguidance, else 0."""
    guidance: tuple[float, ...] = (1.0,)
    """Weight of the labels (classifier-free guidance): above 1 samples show their label more and vary less, at twice
    the time; one value, or one for each level."""
    autoguidance: tuple[float, ...] = (1.0,)
    """Weight of each prior against its guide, the same prior early in its training: above 1 samples are more like real
    images and vary less, at twice the time; 1: the prior's own distribution; one value, or one for each level.
    Default: the preset's, else 1."""
    sweep: str | None = None
    """A label: the same samples once for each of its classes, side by side in a grid, in a folder sweep-LABEL. Of a
    number LABEL=START:STOP:STEP, such as age=20:80:5; without a range eight values."""
    complete: Path | None = None
    """An image of which a part is missing: draw that part --num times, given the rest."""
    mask: Path | None = None
    """A picture of the image's size, white where the image is missing."""
    keep_box: str | None = None
    """In place of a mask the part that is kept, as Y0,X0,Y1,X1 in pixels; all else is drawn."""
    particles: int = 16
    """Attempts side by side for each completion, chosen by how well they fit what is kept."""
    sweeps: int = 2
    """Times each completion is redrawn, and accepted or not by the Metropolis-Hastings rule."""
    reject: float = 0.0
    """Share of the samples to leave out, in [0, 1): so many more are drawn, and of each class those are kept of which a
    classifier is surest (Razavi et al. 2019)."""
    classifier: Path | None = None
    """Folder of the --reject classifier; default: the one in the run folder, which an evaluation with --classifier
    makes."""
    chunk_size: int = 16
    """Images sampled at once; sets of different chunk sizes differ by rounding."""
    out: Path | None = None
    """Folder of the images; default: samples in the run folder."""
    no_images: bool = False
    """Write the codes and a grid of the first images alone; the evaluation decodes them as it goes."""
    overwrite: bool = False
    """Replace a set of other settings in that folder."""
    compute: Compute = field(default_factory=Compute)
    dry_run: bool = False
    """Print what would be sampled, and exit."""


_GROUPS = {
    "samples": (
        *("num", "levels", "label", "guidance", "autoguidance", "sweep", "temperature", "top_k", "top_p", "min_p"),
        *("reject", "seed"),
    ),
    "completion": ("complete", "mask", "keep_box", "particles", "sweeps"),
    "running": ("run", "out", "no_images", "classifier", "overwrite", "dry_run", "device", "precision", "chunk_size"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; return its exit code."""
    return run_stage(partial(CommandLine, "sample", Arguments, _GROUPS), _story, argv)


def _settings(line: CommandLine[Arguments]) -> Arguments:
    """Return the settings: the command line over the preset's, whose min-p is for levels that are guided."""
    usual = {}
    if "run" in line.given and checkpoint.has_model(RunFolder(line.given["run"]).vqvae):
        run = RunFolder(line.given["run"])
        usual = usual_sampling(run, drawn_levels(run, line.given.get("levels")))
    weights = line.given.get("autoguidance", ())
    if "min_p" in usual and weights:
        each = weights if len(weights) == len(usual["min_p"]) else weights[:1] * len(usual["min_p"])
        usual["min_p"] = tuple(p if weight != 1 else 0.0 for p, weight in zip(usual["min_p"], each, strict=True))
    return line.settings(**usual)


def _story(line: CommandLine[Arguments]) -> None:
    arguments = _settings(line)
    for flag, value in (
        ("--num", arguments.num),
        ("--levels", arguments.levels),
        ("--chunk-size", arguments.chunk_size),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} is too small", how="Give 1 or more")
    run = RunFolder(arguments.run)
    run.read()
    device, _ = arguments.compute.resolve()
    if arguments.complete is not None:
        refuse_torchrun("--complete")
        line.refuse_beside("complete", (*_DISTRIBUTION, *_OF_SAMPLES))
        _complete(line, arguments, run, device)
        return
    if arguments.sweep is not None:
        refuse_torchrun("--sweep")
        line.refuse_beside("sweep", (*_OF_COMPLETIONS, *_OF_SAMPLES))
        _sweep(line, arguments, run, device)
        return
    line.refuse_alone("complete", _OF_COMPLETIONS, "completions")
    if not arguments.reject:
        line.refuse_alone("reject", ("classifier",), "--reject")
    num = arguments.num or 64
    out = arguments.out or run.path / "samples"
    check_out(out)
    model, priors = load_drawn(run, device, arguments.levels)
    attributes = priors[0].config.attributes
    wanted = parse_labels(arguments.label, attributes)
    rejection = _rejection(run, arguments, attributes, model.config.channels, device)
    drawn = num if rejection is None else rejection.drawn(num)
    label = labels_to_sample(run, priors[0].config, wanted, drawn, arguments.compute.seed)
    priors = _in(arguments, priors)
    sharpness = _sharpness(arguments, run, priors)
    how = describe(run, priors, wanted, sharpness, arguments.compute.seed, arguments.chunk_size)
    how["reject"] = arguments.reject
    if rejection is not None:
        how |= {"drawn": drawn, "classifier_sha256": checkpoint.sha256_of(_classifier_folder(run, arguments))}
    if not arguments.overwrite:
        _check_replaced(out, {**how, **hashes_of(model, run)}, num)
    there = any((out / image_path(0, size)).is_file() for size in (1, sys.maxsize))  # of a small set, or a large one
    if arguments.no_images and not arguments.overwrite and there:
        raise UserError("this folder holds images of samples", out, "Add --overwrite, or leave out --no-images")
    codes = " + ".join(f"{h * w:,} {level}" for level, (h, w) in zip(model.levels, model.config.shapes, strict=True))
    asked = ", ".join(f"{name}={value}" for name, value in wanted.items()) or "any"
    chosen = f", the surest of {drawn:,}" if rejection else ""
    guided = "".join(
        f", {name} {' / '.join(f'{getattr(level, name):g}' for level in sharpness)}"
        for name in ("guidance", "autoguidance", "temperature")
        if any(getattr(level, name) != 1 for level in sharpness)
    )
    painted = ", the rest painted by the detail decoder" if isinstance(model, DetailDecoder) else ""
    print(f"{num:,} images of {codes} codes{painted}{chosen}, label {asked}, seed {arguments.compute.seed}{guided}")
    if arguments.dry_run:
        return
    with locked(out):
        record = {"num": num, **how, "arguments": record_of(line, {})}
        images = not arguments.no_images
        draw_samples(out, model, priors, label, sharpness, run, record, images, rejection, arguments.overwrite)
    print(f"wrote {out}/grid.png, {f'{num:,} images, ' if images else ''}codes.npz and samples.json")
    data = ("--data", "DATA") if exported(run) else ()  # models that were passed on come without
    print(f"next: {command('evaluate', '--run', run.path, *data)}")


_OF_COMPLETIONS = ("mask", "keep_box", "particles", "sweeps")
_OF_SAMPLES = ("reject", "classifier", "no_images")
_DISTRIBUTION = ("sweep", "levels", "guidance", "autoguidance", "temperature", "top_k", "top_p", "min_p", "chunk_size")


def _complete(line: CommandLine[Arguments], arguments: Arguments, run: RunFolder, device: torch.device) -> None:
    """Complete an image."""
    if arguments.complete is None or arguments.particles < 1 or arguments.sweeps < 0:
        raise UserError("--particles is below 1, or --sweeps below 0", how="Leave them out, or give more")
    like = checkpoint.load_config(run.vqvae, kind="vqvae")["data"]
    completion = open_completion(like, arguments.complete, arguments.mask, arguments.keep_box)
    model, priors = load_models(run, device)
    attributes, num = priors[0].config.attributes, arguments.num or 8
    wanted = parse_labels(arguments.label, attributes)
    label = label_rows(attributes, wanted, num, priors[0].config.numbers)
    out = arguments.out or run.path / "completions" / arguments.complete.stem
    check_own(out, "completion.json", arguments.overwrite)
    asked = ", ".join(f"{name}={value}" for name, value in wanted.items()) or "unknown"
    if len(wanted) < len(attributes) and not all(prior.config.label_dropout for prior in priors):
        print("note: a prior was trained with --label-dropout 0, and so without unknown labels; give all with --label")
    missing = float(completion.hole.float().mean())
    print(f"{num} completions of {arguments.complete}, {missing:.0%} of it missing, label {asked}")
    if arguments.dry_run:
        return
    settings = (arguments.particles, arguments.sweeps, arguments.compute.seed)
    record = {"label": wanted, "particles": settings[0], "sweeps": settings[1], "seed": settings[2]}
    record["arguments"] = record_of(line, {})
    with locked(out):
        complete_image(out, run, model, _in(arguments, priors), completion, label, *settings, record)


def _sweep(line: CommandLine[Arguments], arguments: Arguments, run: RunFolder, device: torch.device) -> None:
    """Draw the same samples for each class of a label, or for some values of a number."""
    model, priors = load_drawn(run, device, arguments.levels)
    attributes = priors[0].config.attributes
    name, places = places_to_sweep(arguments.sweep or "", priors[0].config)
    wanted = parse_labels(arguments.label, attributes)
    if name in wanted:
        raise UserError(f"--label fixes {name}, which is swept", how="Leave one of them out")
    num, seed = arguments.num or 4, arguments.compute.seed
    out = arguments.out or run.path / f"sweep-{name}"
    check_own(out, "sweep.json", arguments.overwrite)
    priors = _in(arguments, priors)
    sharpness = _sharpness(arguments, run, priors)
    what = "values" if name in priors[0].config.numbers else "classes"
    shown = ", ".join(dict(attributes)[name][place] for place in places)
    print(f"{num} samples for each of {len(places)} {what} of {name}: {shown}")
    if arguments.dry_run:
        return
    label = labels_to_sample(run, priors[0].config, wanted, num, seed)
    size = arguments.chunk_size
    record = {**describe(run, priors, wanted, sharpness, seed, size), "arguments": record_of(line, {})}
    with locked(out):
        draw_sweep(out, run, model, priors, name, places, label, sharpness, seed, size, record)


def _in(arguments: Arguments, priors: list[Prior]) -> list[Prior]:
    """The priors in the wanted precision."""
    return [prior.to(torch.bfloat16) for prior in priors] if arguments.compute.precision == "bf16" else priors


def _classifier_folder(run: RunFolder, arguments: Arguments) -> Path:
    """The classifier's folder: the one that is named, else the only one in the run folder."""
    if arguments.classifier is not None:
        return arguments.classifier
    found = sorted(path.parent for path in run.path.glob("classifier-*/config.json"))
    if len(found) == 1:
        return found[0]
    way_out = f"Run {command('evaluate', '--run', run.path, '--classifier', 'ATTRIBUTE')}"
    if exported(run):
        way_out = "Give --classifier FOLDER, that of the run which these models were exported from"
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


def _sharpness(arguments: Arguments, run: RunFolder, priors: list[Prior]) -> list[Sharpness]:
    """Return how each level is drawn, with the guides that it needs."""
    levels = len(priors)
    if not priors[0].config.attributes and set(arguments.guidance) != {1.0}:
        raise UserError("--guidance weighs labels, and the priors have none", how="Leave it out")
    for flag, values, fits, needed in (
        ("--temperature", arguments.temperature, lambda value: value > 0, "> 0"),
        ("--top-k", arguments.top_k, lambda value: value >= 0, ">= 0"),
        ("--top-p", arguments.top_p, lambda value: 0 < value <= 1, "in (0, 1]"),
        ("--min-p", arguments.min_p, lambda value: 0 <= value <= 1, "in [0, 1]"),
        ("--guidance", arguments.guidance, lambda value: value >= 0, ">= 0"),
        ("--autoguidance", arguments.autoguidance, lambda value: value >= 0, ">= 0"),
    ):
        text = f"{flag} {' '.join(f'{value:g}' for value in values)}"
        if len(values) not in (1, levels):
            raise UserError(f"{text}: {len(values)} values for {levels} levels", how=f"Give 1 or {levels} values")
        if not all(map(fits, values)):
            raise UserError(f"{text} is out of range", how=f"Give values {needed}")
    labelled, weights = (
        values if len(values) > 1 else values * levels for values in (arguments.guidance, arguments.autoguidance)
    )
    for prior, weight in zip(priors, labelled, strict=True):
        if weight != 1 and not prior.config.label_dropout:
            raise UserError(
                f"--guidance needs a prior that knows what it draws without labels; that of level {prior.config.level} "
                "was trained with --label-dropout 0",
                how="Leave it out, or train the prior again with --label-dropout 0.1",
            )
    guides = load_guides(run, priors, weights)
    return sharpness_by_level(levels, **{name: getattr(arguments, name) for name in SETTINGS}, guide=guides)


def _check_replaced(out: Path, how: dict, num: int) -> None:
    """Refuse to replace samples of other settings, or more of them. More samples of the same settings keep the first.

    Raises:
        UserError: names what differs.
    """
    path = out / "samples.json"
    if not path.is_file():
        return
    earlier, now = files.read_json(path), files.plain(how)
    ones = [1.0] * len(how["guidance"])
    # What sets of earlier versions do not say.
    usual = {"reject": 0.0, "guidance": ones, **{name: [value] * len(ones) for name, value in NEUTRAL.items()}}
    differs = [name for name in now if earlier.get(name, usual.get(name)) != now[name]]
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
