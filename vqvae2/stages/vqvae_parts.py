"""The parts of a VQ-VAE's training, which share its limit: the VQ-VAE, its decoder alone, the detail decoder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from vqvae2 import distributed
from vqvae2.errors import UserError
from vqvae2.optim import TrainingConfig
from vqvae2.stages.detail import DetailSettings
from vqvae2.stages.sharpening import SharpeningConfig, features_missing

__all__ = ["Parts", "divided", "in_words", "without_optional"]


class Parts(NamedTuple):
    """How each part is trained; None: there is no such part."""

    vqvae: TrainingConfig | None
    sharpening: TrainingConfig | None
    detail: TrainingConfig | None


def divided(training: TrainingConfig, sharpening: SharpeningConfig, detail: DetailSettings) -> Parts:
    """Divide a training's limit: the detail decoder takes its share of the whole, sharpening its own of the rest.

    In a short run each part is evaluated once.

    Raises:
        UserError: there is nothing to divide, or too little.
    """
    of_sharpening, flag = None, "--detail-share"
    try:
        first, of_detail = detail.divide(training)
        flag = "--sharpen-share"
        if first is not None and sharpening.sharpen_share:
            first, of_sharpening = sharpening.divide(first)
    except ValueError as error:
        raise UserError(f"the limit cannot be shared ({error})", flag, "Give a longer limit, or 0") from None
    if first is not None and first is not training and training.max_steps and training.evaluations <= 2:
        first = replace(first, evaluations=1)
    return Parts(first, of_sharpening, of_detail)


def in_words(parts: Parts) -> str:
    """Say how long each part is; empty where the VQ-VAE is all."""
    if parts.sharpening is None and parts.detail is None:
        return ""
    names = "the VQ-VAE", "its decoder alone (--sharpen-share)", "the detail decoder (--detail-share)"
    amounts = ((f"{p.max_steps} steps" if p.max_steps else f"{p.max_minutes:g} minutes") if p else "" for p in parts)
    return ", then ".join(f"{amount} for {name}" for amount, name in zip(amounts, names, strict=True) if amount)


def without_optional(
    sharpening: SharpeningConfig,
    detail: DetailSettings,
    training: TrainingConfig,
    changed: Mapping[str, Any],
) -> dict[str, Any]:
    """Leave out later parts that the preset has, that nobody asked for, and that cannot be run; say why.

    Args:
        sharpening, detail, training: the preset's.
        changed: the settings given by the user.

    Returns:
        The settings to change, by section.
    """
    optional: dict[str, Any] = {}
    if detail.detail_share and "detail_share" not in changed:
        optional["detail"] = DetailSettings()
        if changed.get("sharpen_share") == 1:  # nothing but the decoder
            return optional
    if sharpening.sharpen_share and not {"perceptual_weight", "sharpen_share"} & changed.keys():
        optional["sharpening"] = SharpeningConfig()
    if not optional:
        return {}
    limits = {name: changed[name] for name in ("max_steps", "max_minutes") if name in changed}
    own = sharpening if "sharpening" in optional else SharpeningConfig()
    try:
        first = divided(replace(training, **limits), own, detail if "detail" in optional else DetailSettings()).vqvae
    except UserError:
        print(
            "note       the preset's later parts, of the decoder alone, are left out: the limit is too short for them"
        )
        return optional
    needs = [*["sharpen the decoder"] * bool(own.perceptual_weight), *["paint detail"] * ("detail" in optional)]
    if not needs or not (missing := distributed.on_main(features_missing)):
        return {}
    print(f"note       the preset's later parts, which {' and '.join(needs)}, are left out: {missing}")
    steps = training.max_steps if first is None or "max_steps" in changed else first.max_steps
    return {**optional, "training": replace(training, max_steps=steps)}
