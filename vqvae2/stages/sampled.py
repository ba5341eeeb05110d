"""What samples are drawn with, in every stage that draws some: models, labels, and what they depend on."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vqvae2 import checkpoint, files
from vqvae2.codes import CodeStore
from vqvae2.detail import DetailDecoder, ImageDecoder
from vqvae2.errors import UserError
from vqvae2.labels import draw_labels, label_rows
from vqvae2.presets import PRESETS
from vqvae2.prior import Prior, PriorConfig
from vqvae2.sampling import SETTINGS, Sharpness, sharpness_by_level
from vqvae2.stages.commands import command
from vqvae2.stages.common import RunFolder, check_fingerprints
from vqvae2.stages.detail import load_detail
from vqvae2.vqvae import VQVAE

__all__ = [
    "MODELS",
    "check_exported",
    "describe",
    "drawn_levels",
    "exported",
    "guide_name",
    "labels_to_sample",
    "load_drawn",
    "load_guides",
    "load_models",
    "load_priors",
    "parse_labels",
    "usual_sampling",
    "usual_sharpness",
]

MODELS = "models.json"
"""What stands in a folder of exported models, in place of codes: hashes, and the labels of the training images."""


def exported(run: RunFolder) -> bool:
    """Tell whether a run folder holds models alone, as ``vqvae2 export`` writes it."""
    return (run.path / MODELS).is_file() and not (run.codes / "data.mdb").exists()


def guide_name(level: str) -> str:
    """Return what the guide of a level's prior is called among the hashes of exported models."""
    return f"guide-{level}"


def check_exported(run: RunFolder, levels: Sequence[str]) -> None:
    """Refuse models that were not exported together.

    Raises:
        UserError: names one that was replaced.
    """
    record = files.read_json(run.path / MODELS)
    checkpoint.check_format(record.get("format", 0), run.path / MODELS, record.get("version"))
    there = {"vqvae": run.vqvae, **{level: run.prior(level) for level in levels}}
    there |= {"detail": run.detail} if checkpoint.has_model(run.detail) else {}
    guides = {guide_name(level): run.guide(level) for level in levels if checkpoint.has_model(run.guide(level))}
    there |= {
        name: folder for name, folder in guides.items() if name in record["sha256"]
    }  # earlier versions named none
    for name, folder in there.items():
        if record["sha256"].get(name) != checkpoint.sha256_of(folder):
            raise UserError("these weights are not those that were exported", folder, "Export or download them again")


def load_models(run: RunFolder, device: torch.device) -> tuple[VQVAE, list[Prior]]:
    """Load the VQ-VAE and the priors of all its levels, top first.

    Raises:
        UserError: one is missing, or two do not belong together.
    """
    model = VQVAE.from_pretrained(run.vqvae, device)
    return model, load_priors(run, model.levels, device)


def load_drawn(run: RunFolder, device: torch.device, levels: int | None = None) -> tuple[ImageDecoder, list[Prior]]:
    """Load what samples are made with: the priors of the levels that are drawn, and what decodes their codes.

    Args:
        run: the run.
        device: of the models.
        levels: the coarsest levels that are drawn, as of `drawn_levels`.

    Raises:
        UserError: a model is missing, two do not belong together, or nothing decodes these levels.
    """
    wanted, every = drawn_levels(run, levels), len(checkpoint.load_config(run.vqvae, kind="vqvae")["strides"])
    if wanted == every:
        return load_models(run, device)
    detail = load_detail(run, device)
    if detail is None or detail.config.drawn_levels != wanted:
        there = f"{detail.config.drawn_levels} or " if detail else ""
        raise UserError(f"nothing decodes {wanted} of {every} levels", "--levels", f"Give {there}{every}")
    return detail, load_priors(run, detail.levels, device)


def drawn_levels(run: RunFolder, asked: int | None = None) -> int:
    """Return how many levels are drawn: as asked, else those of the detail decoder, else all."""
    if asked is not None:
        return asked
    if checkpoint.has_model(run.detail):
        return int(checkpoint.load_config(run.detail, kind=DetailDecoder.kind)["drawn_levels"])
    return len(checkpoint.load_config(run.vqvae, kind="vqvae")["strides"])


def load_priors(run: RunFolder, levels: Sequence[str], device: torch.device) -> list[Prior]:
    """Load the priors of some levels.

    Raises:
        UserError: one is missing, or two do not belong together.
    """
    for level in levels:
        if not checkpoint.has_model(run.prior(level)):
            train = f"Run {command('train-prior', '--run', run.path, '--level', level)}"
            how = "It was not exported: take a run that has it" if exported(run) else train
            raise UserError(f"there is no prior of level {level}", run.prior(level), how)
    if exported(run):
        check_exported(run, levels)
    else:
        check_fingerprints(run, CodeStore(run.codes), levels)
    return [Prior.from_pretrained(run.prior(level), device) for level in levels]


def load_guides(run: RunFolder, priors: Sequence[Prior], weights: Sequence[float]) -> list[Prior | None]:
    """Load the weaker priors of those levels whose weight is not 1.

    Raises:
        UserError: one is missing, or does not belong to its prior.
    """
    guides: list[Prior | None] = []
    for prior, weight in zip(priors, weights, strict=True):
        folder, level = run.guide(prior.config.level), prior.config.level
        if weight == 1:
            guides.append(None)
            continue
        if not checkpoint.has_model(folder):
            raise UserError(
                f"there is no guide of level {level}: an earlier version trained the prior, or exported it",
                folder,
                "Sample with --autoguidance 1, or train the prior again",
            )
        like = next(prior.parameters())
        guide = Prior.from_pretrained(folder, like.device).to(like.dtype)
        if replace(guide.config, recompute=prior.config.recompute) != prior.config:
            raise UserError(f"this guide is not of the prior of level {level}", folder, "Train the prior again")
        guides.append(guide)
    return guides


def usual_sampling(run: RunFolder, count: int) -> dict[str, tuple[float, ...]]:
    """Return the preset's settings of sampling ``count`` levels; none where a guide that they need is missing."""
    record = run.read()
    every = record.get("levels", ())
    levels, preset = every[:count], PRESETS.get(record["preset"])
    if preset is None or not levels:
        return {}
    settings = preset.sampling_for(count) if count == len(every) else dict(preset.painted_sampling)
    if any(len(values) != count for values in settings.values()):
        return {}
    weights = zip(levels, settings.get("autoguidance", ()), strict=False)
    guides = [checkpoint.has_model(run.guide(level)) for level, weight in weights if weight != 1]
    return settings if all(guides) else {}


def usual_sharpness(run: RunFolder, priors: Sequence[Prior]) -> list[Sharpness]:
    """Return how sample.py draws each level where nothing is asked for."""
    settings = usual_sampling(run, len(priors))
    weights = settings.get("autoguidance", (1.0,) * len(priors))
    guides = load_guides(run, priors, weights)
    return sharpness_by_level(len(priors), **(settings | {"autoguidance": weights}), guide=guides)


def labels_to_sample(run: RunFolder, config: PriorConfig, wanted: dict[str, str], num: int, seed: int) -> Tensor:
    """Return the labels of a set of samples, (num, A): those asked for, the others drawn from the training images."""
    rows = label_rows(config.attributes, wanted, num, config.numbers)
    if not config.attributes:
        return rows
    numbers = [column for column, (name, _) in enumerate(config.attributes) if name in config.numbers]
    return draw_labels(rows, _training_labels(run), seed, numbers)


def _training_labels(run: RunFolder) -> Tensor:
    """Labels of the training images, (N, A) int64."""
    if exported(run):
        return torch.tensor([row for row, count in files.read_json(run.path / MODELS)["labels"] for _ in range(count)])
    store = CodeStore(run.codes)
    return torch.from_numpy(store.labels[store.indices("train")])


def parse_labels(given: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    """Read ATTRIBUTE=CLASS (several may be joined by commas), or CLASS alone where there is one attribute. Numbers are
    read alike, whether or not a training image has them.

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
    run: RunFolder,
    priors: Sequence[Prior],
    label: dict[str, str],
    sharpness: list[Sharpness],
    seed: int,
    chunk_size: int,
) -> dict:
    """Return what samples depend on besides the weights of the models, for samples.json."""
    like = next(priors[0].parameters())
    guided = [prior.config.level for prior, how in zip(priors, sharpness, strict=True) if how.autoguidance != 1]
    guides = {"guide_sha256": {name: checkpoint.sha256_of(run.guide(name)) for name in guided}} if guided else {}
    return {
        "levels": [prior.config.level for prior in priors],
        "label": label,
        **{name: [getattr(level, name) for level in sharpness] for name in SETTINGS},
        "seed": seed,
        "chunk_size": chunk_size,
        "device": like.device.type,
        "precision": "bf16" if like.dtype == torch.bfloat16 else "fp32",
        **guides,
    }
