"""The README of exported models: what they are, what they were trained on, how good they are, how to use them.

It is made of what the folder holds and of the run's figures: it names no file, no person and no path.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vqvae2.version import __version__
from vqvae2.vqvae import VQVAEConfig

__all__ = ["model_card"]

_HEAD = """---
library_name: vqvae2
pipeline_tag: unconditional-image-generation
tags:
- vq-vae-2
- pixelsnail
- image-generation
# license: to be stated by whoever shares these weights, which are derived from the data below
---
"""
_MOST_CLASSES = 12

_Row = tuple[object, ...]


def model_card(
    name: str,
    config: VQVAEConfig,
    data: Mapping[str, Any],
    images: int,
    record: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    weights: str,
    programs: Mapping[str, Mapping[str, Any]],
    priors: Sequence[str],
    painted: int = 0,
) -> str:
    """Write the model card of exported models, in Markdown with a front matter as the Hugging Face Hub reads it.

    Args:
        name: of the folder.
        config: of the VQ-VAE.
        data: what the VQ-VAE's config.json says of the data, without paths.
        images: in the training split.
        record: the exported run.json.
        report: the run's report.json, where it is of these models; None: figures are those that the trainings kept.
        weights: how they are stored.
        programs: as of `vqvae2.programs.write_programs`.
        priors: levels whose priors are there.
        painted: levels from which a detail decoder paints samples; 0: there is none.
    """
    which = "each" if len(priors) == len(config.levels) else " and ".join(priors)
    parts = [
        _HEAD,
        f"# {name}",
        f"A VQ-VAE with {'one level' if len(config.levels) == 1 else f'{len(config.levels)} levels'} (VQ-VAE-2, Razavi "
        f"et al. 2019, arXiv 1906.00446) and the prior of {which}, exported by vqvae2 {__version__}.",
        "## Training",
        _training(config, data, images, record),
        "## Levels",
        _levels(config),
        *_figures(config, record, report),
        "## Use",
        _use(name, config, data, programs, painted),
        "## Limits",
        _limits(weights),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _training(config: VQVAEConfig, data: Mapping[str, Any], images: int, record: Mapping[str, Any]) -> str:
    colour = {1: "grey", 3: "colour"}.get(config.channels, f"{config.channels} channels")
    size = f"{config.height}x{config.width} pixels, {colour}"
    steps = {"VQ-VAE": record.get("train_vqvae", {}).get("outcome", {}).get("steps")}
    for level in config.levels:
        steps[f"prior of {level}"] = record.get(f"train_prior_{level}", {}).get("outcome", {}).get("steps")
    told = ", ".join(f"{part} {count:,}" for part, count in steps.items() if count)
    lines = [
        f"- Data: `{data.get('source', 'not known')}`, {images:,} training images of {size}. *Source, licence and "
        "preparation of the data, and who is in them, are to be stated by whoever shares these weights.*",
        f"- Preset `{record.get('preset', 'not known')}`" + (f"; steps: {told}." if told else "."),
    ]
    if record.get("train_vqvae", {}).get("imported"):
        lines.append(
            "- The VQ-VAE was imported from rosinality/vq-vae-2-pytorch; it may have been trained on other data."
        )
    for label, classes in data.get("attributes", {}).items():
        if label in data.get("numbers", ()):
            told = f"a number from {classes[0]} to {classes[-1]}"
        else:
            more = f" and {len(classes) - _MOST_CLASSES} more" if len(classes) > _MOST_CLASSES else ""
            told = ", ".join(f"`{value}`" for value in classes[:_MOST_CLASSES]) + more
        lines.append(f"- Label `{label}`: {told}.")
    return "\n".join(lines)


def _levels(config: VQVAEConfig) -> str:
    rows = [
        (level, f"{h}x{w}", k, d)
        for level, (h, w), k, d in zip(
            config.levels, config.shapes, config.num_embeddings, config.embedding_dim, strict=True
        )
    ]
    return _table(("Level", "Codes of an image", "Codebook", "Dimensions"), rows)


def _figures(config: VQVAEConfig, record: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    """The figures and their heading; none where nothing was measured."""
    if report is None:
        rows = _kept_figures(config, record)
        how = "On the validation images, when each training ended."
    else:
        rows = _reported_figures(report)
        split = report["split"]
        whom = "held out" if split["held_out"] else "**not held out: the model may have been trained on them**"
        people = f" of {split['subjects']:,} subjects" if split["subjects"] else ""
        how = f"On {split['images']:,} images{people} (split `{split['name']}`), {whom}."
    return ["## Figures", how, _table(("", "Measured", "Naive"), rows)] if rows else []


def _kept_figures(config: VQVAEConfig, record: Mapping[str, Any]) -> list[_Row]:
    best = record.get("train_vqvae", {}).get("outcome", {}).get("best", {})
    told = {
        "val/ssim_foreground": ("SSIM in the foreground", ".3f"),
        "val/ssim": ("SSIM over the frame", ".3f"),
        "val/psnr_db": ("PSNR (dB)", ".1f"),
    }
    rows: list[_Row] = [
        (words, format(best[key], digits), "") for key, (words, digits) in told.items() if best.get(key) is not None
    ]
    for level in config.levels:
        best = record.get(f"train_prior_{level}", {}).get("outcome", {}).get("best", {})
        if best.get("val/nll") is not None:
            rows.append(_nll(level, best["val/nll"], best.get("val/position_nll")))
    return rows


def _reported_figures(report: Mapping[str, Any]) -> list[_Row]:
    measured = report["reconstruction"]
    rows: list[_Row] = []
    naive = measured.get("mean_image") or {}
    for key, words, digits in (
        ("ssim_foreground", "SSIM in the foreground", ".3f"),
        ("ssim", "SSIM over the frame", ".3f"),
        ("psnr_db", "PSNR (dB)", ".1f"),
    ):
        if (value := measured.get(key, {}).get("mean")) is not None:
            other = naive.get(key, {}).get("mean")
            beside = "" if other is None else f"mean training image {other:{digits}}"
            rows.append((words, format(value, digits), beside))
    for level, figures in report["levels"].items():
        rows.append((f"Perplexity of {level}, of {figures['num_embeddings']}", f"{figures['perplexity']:.0f}", ""))
    rows += [
        _nll(level, figures["nll"], figures.get("position_nll"))
        for level, figures in report["levels"].items()
        if figures.get("nll") is not None
    ]
    if bits := report.get("bits_per_dim"):
        rows.append(
            ("Bits a dimension under the priors", f"{bits['prior']:.3f}", f"by position {bits['position_unigram']:.3f}")
        )
    for space, sets in report.get("distances", {}).items():
        samples, training = (sets.get(name) or {} for name in ("samples", "training_images"))
        if samples.get("kid") is not None:
            other = "" if training.get("kid") is None else f"training images {training['kid']:.3f}"
            rows.append((f"KID of {samples['count']} samples ({space})", f"{samples['kid']:.3f}", other))
    copies = report.get("samples", {}).get("memorisation", {})
    if copies.get("copied") is not None:
        rows.append((f"Of {copies['count']} samples, copies of training images", copies["copied"], ""))
    return rows


def _nll(level: str, nll: float, position_nll: float | None) -> _Row:
    naive = "" if position_nll is None else f"by position {position_nll:.3f}"
    return f"NLL of {level} (nats per code)", f"{nll:.3f}", naive


def _use(
    name: str, config: VQVAEConfig, data: Mapping[str, Any], programs: Mapping[str, Mapping[str, Any]], painted: int
) -> str:
    label = next(((label, classes[0]) for label, classes in data.get("attributes", {}).items() if classes), None)
    asked = ["--label", "=".join(label)] if label else []
    low, high = data.get("value_range", (0, 255))
    shape = f"(B, {config.channels}, {config.height}, {config.width})"
    decoder, imported, loaded = "model", "", ""
    if painted:
        decoder, imported = "detail", "\nfrom vqvae2.detail import DetailDecoder"
        whence = f"{painted} of the levels" if painted > 1 else f"the {config.levels[0]} level's codes"
        loaded = f"detail = DetailDecoder.from_pretrained({_quoted(f'{name}/vqvae/detail')})  # paints from {whence}\n"
    text = f"""
    {shlex.join(["vqvae2", "sample", "--run", name, "--num", "16", "--out", "samples", *asked])}
    {shlex.join(["vqvae2", "evaluate", "--run", name, "--data", "IMAGES", "--split", "all"])}
    {shlex.join(["vqvae2", "train-vqvae", "--run", "runs/mine", "--data", "IMAGES", "--init", name])}

```python
from vqvae2 import VQVAE, Prior, sample{imported}

model = VQVAE.from_pretrained({_quoted(f"{name}/vqvae")})
codes = model.encode(x)  # x {shape} in [-1, 1]: stored values {low:g} to {high:g}
y = model.decode(codes)
{loaded}priors = [Prior.from_pretrained(f{_quoted(name + "/prior-{level}")}) for level in {decoder}.levels]
out = sample({decoder}, priors, num=16, seed=0)  # out.images, out.codes, out.nll
```"""
    if programs:
        text += "\n\nPrograms that run without vqvae2, each checked against the model when it was written:\n"
        for kind, record in programs.items():
            files = " and ".join(f"`vqvae/{file}`" for file in record["sha256"])
            text += (
                f"\n- {files} ({'ONNX' if kind == 'onnx' else 'torch.export'}): "
                f"{', '.join(record['inputs']['encoder'])} -> {', '.join(record['outputs']['encoder'])} -> "
                f"{', '.join(record['outputs']['decoder'])}. {record['codes_that_differ']:,} of {record['codes']:,} "
                f"codes differ, images by at most {record['largest_difference']:.2g}."
            )
    return text


def _limits(weights: str) -> str:
    stored = {
        "fp32": "float32",
        "fp16": "half precision; figures were taken in float32",
        "int8": "half precision (VQ-VAE) and 8 bits (priors); figures were taken in float32",
    }
    return f"""
- It knows images like those that it was trained on: the same kind, view and preparation. Expect poor figures on others.
- Weights can memorise what they were trained on, and few copies among samples are no proof of privacy.
- It is research software: nothing that it draws or marks is for diagnosis.
- Weights are stored in {stored[weights]}."""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)
