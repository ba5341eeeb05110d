"""The last part of a VQ-VAE's training, in which its image decoder is trained on alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2 import metrics
from vqvae2.adversary import PatchDiscriminator, adversarial_gradient, discriminator_loss, gradient_penalty
from vqvae2.data import AugmentedSet, ImageData, ImageSet
from vqvae2.errors import UserError
from vqvae2.optim import TrainingConfig
from vqvae2.stages.vqvae_tasks import VQVAETask, images_of
from vqvae2.task import Sums
from vqvae2.vqvae import VQVAE

__all__ = ["SharpeningConfig", "SharpeningTask", "divide", "features_missing", "trained_by_features"]


@dataclass(frozen=True)
class SharpeningConfig:
    """How the image's decoder is trained on alone: on near codes, by a network's features, against a discriminator."""

    sharpen_share: float = 0.0
    """Share of the training's limit (minutes or steps) spent on the image's decoder alone, in [0, 1]; 0: none; 1, with
    --init: nothing else is trained."""
    code_noise: float = 0.0
    """Share of the codes that this part of the training replaces by neighbouring ones, in [0, 1], to make the decoder
    robust to small sampling errors of the priors."""
    perceptual_weight: float = 0.0
    """Weight of the distance between image and reconstruction in MobileNetV2's features, >= 0. Above 0 it takes
    torchvision's weights, from torch's cache."""
    adversarial_weight: float = 0.5
    """Norm of the adversarial gradient relative to the reconstruction gradient's, >= 0; 0: no
    discriminator."""
    discriminator_warmup: int = 200
    """Steps before the decoder receives the adversarial gradient, >= 0."""
    penalty_weight: float = 1.0
    """Weight of the discriminator's gradient penalty (R1), >= 0."""
    sharpen_learning_rate: float = 5e-4
    """Peak learning rate of decoder and discriminator."""

    def __post_init__(self) -> None:
        if not 0 <= self.sharpen_share <= 1:
            raise ValueError(f"sharpen_share must be in [0, 1], got {self.sharpen_share}")
        for name in ("perceptual_weight", "adversarial_weight", "penalty_weight", "discriminator_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.sharpen_learning_rate <= 0:
            raise ValueError(f"sharpen_learning_rate must be > 0, got {self.sharpen_learning_rate}")
        if not 0 <= self.code_noise <= 1:
            raise ValueError(f"code_noise must be in [0, 1], got {self.code_noise}")

    def divide(self, training: TrainingConfig) -> tuple[TrainingConfig | None, TrainingConfig]:
        """Divide a training's limit as `divide` does: settings of the VQ-VAE's part and of its own."""
        return divide(training, self.sharpen_share, self.sharpen_learning_rate)


class SharpeningTask(VQVAETask):
    """What `fit` trains after the VQ-VAE: the image's decoder and perhaps a discriminator, on codes that do not change.

    Args:
        model: a trained VQ-VAE, in evaluation mode.
        data: its images.
        config: how.
        folder: receives the model.
        train: the training images, where they come changed.
    """

    rate_flag, restarts = "--sharpen-learning-rate", True
    score = ""  # what it is after has no figure: the latest is kept

    def __init__(
        self,
        model: VQVAE,
        data: ImageData,
        config: SharpeningConfig,
        folder: Path,
        train: AugmentedSet | None = None,
    ) -> None:
        super().__init__(model, data, train)
        self.config, self.folder, self.steps = config, folder, 0
        self.discriminator = None
        if config.adversarial_weight:
            self.discriminator = PatchDiscriminator(model.config.channels).to(self.device)
            self.discriminator.to(memory_format=torch.channels_last)
        self.neighbours = model.nearest_neighbours()
        self.codes = None if train is not None else self._encoded(data.splits["train"])

    def modules(self) -> dict[str, nn.Module]:
        decoder = {"decoder": self.model.decoders[-1]}
        return decoder if self.discriminator is None else {**decoder, "discriminator": self.discriminator}

    def compilable(self) -> list[nn.Module]:
        return [self.model.decoders[-1]]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        images = images_of(self.dataset, batch, self.device).contiguous(memory_format=torch.channels_last)
        rows = batch["index"].cpu()
        codes = [level[rows].to(self.device) for level in self.codes] if self.codes else self.model.encode(images)
        near = self.model.near_codes(codes, self.config.code_noise, neighbours=self.neighbours)
        made = self.model.decoders[-1](self.model.decoder_input(near))
        if self.discriminator is None:
            loss, terms = self._reconstruction_loss(made.float(), images)
            return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in terms.items()}
        weight = self.config.adversarial_weight * (self.steps >= self.config.discriminator_warmup)
        y = made.detach().float().requires_grad_()
        reconstruction, terms = self._reconstruction_loss(y, images)
        scores = self.discriminator(self.rounded(y))
        gradient = adversarial_gradient(reconstruction, scores, y, weight)
        real = self.rounded(images)  # those that were turned or re-lit are not, as the made ones are
        told = discriminator_loss(self.discriminator(real), scores)
        # A few images are enough, and their second derivatives cost as much as all the rest.
        penalty = gradient_penalty(self.discriminator, real[: -(-len(images) // 4)])
        own = told + self.config.penalty_weight * penalty
        # The gradient with respect to the images is at hand; the value that is logged is the reconstruction loss.
        pushed = (made.float() * gradient).sum()
        loss = own + pushed + (reconstruction - own - pushed).detach()
        sums = {**terms, "discriminator": told, "penalty": penalty}
        return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in sums.items()}

    def _reconstruction_loss(self, y: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self.model.config.reconstruction_loss(y, x)
        if self.config.perceptual_weight:
            terms = {**terms, "perceptual": metrics.perceptual_distance(y, x).mean()}
            loss = loss + self.config.perceptual_weight * terms["perceptual"]
        return loss, terms

    def _encoded(self, images: ImageSet) -> list[Tensor]:
        """Encode the training images, whose codes do not change any more: (N, h, w) of each level, top first."""
        encoded = (self.model.encode(x.to(self.device)) for x in images.in_parts(32))
        parts = [[level.to(torch.int32).cpu() for level in codes] for codes in encoded]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def after_step(self) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.steps = state.get("steps", self.config.discriminator_warmup)

    def save(self, folder: Path) -> None:
        super().save(self.folder)


def divide(
    training: TrainingConfig, share: float, learning_rate: float
) -> tuple[TrainingConfig | None, TrainingConfig]:
    """Divide a training's limit, the second part for a decoder alone, at its own rate; None: there is no first.

    Beside a limit in steps, minutes are an upper bound, which the second part has for itself.

    Raises:
        ValueError: there is nothing to divide, or too little.
    """
    if not training.limited:
        raise ValueError("a share is of a limit, and there is none")

    def part(share: float, minutes: float | None) -> TrainingConfig:
        steps = training.max_steps and round(training.max_steps * share)
        return replace(training, max_steps=steps, max_minutes=minutes)

    minutes = training.max_minutes
    first = part(1 - share, minutes and minutes * (1 - share)) if share < 1 else None
    second = part(share, minutes if training.max_steps else minutes and minutes * share)
    return first, replace(
        second,
        optimizer="adam" if training.optimizer == "adam" else "adamw",
        learning_rate=learning_rate,
        beta1=0.5,
        weight_decay=0.0,
        ema_decay=0.995,
        evaluations=1,
        patience=0,
    )


def trained_by_features(record: Mapping[str, Any]) -> bool:
    """Tell by a run.json whether MobileNetV2 trained the decoder of the image, here or in the run of ``--init``."""
    trained = record["train_vqvae"]
    own = trained.get("sharpening", {})
    before = trained.get("outcome") and own.get("sharpen_share") and own.get("perceptual_weight")  # earlier versions
    return bool(trained.get("trained_by_features", before) or trained.get("init_trained_by_features"))


def features_missing() -> str:
    """Say why the perceptual distance cannot be computed; empty if it can."""
    try:
        metrics.check_features()
    except UserError as error:
        return str(error)
    return ""
