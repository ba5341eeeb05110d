"""The training of a decoder that paints images from the coarse levels alone, after that of the VQ-VAE."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae2 import checkpoint, distributed, metrics
from vqvae2.adversary import FeatureDiscriminator, adversarial_gradient, discriminator_loss
from vqvae2.data import AugmentedSet, ImageData
from vqvae2.detail import DetailDecoder
from vqvae2.errors import UserError
from vqvae2.optim import TrainingConfig
from vqvae2.pictures import Picture, grid, to_picture
from vqvae2.stages.common import RunFolder, start_from
from vqvae2.stages.sharpening import divide
from vqvae2.stages.vqvae_tasks import EVALUATED, SHOWN, VQVAETask, images_of
from vqvae2.task import Sums
from vqvae2.vqvae import VQVAE

__all__ = ["DetailSettings", "DetailTask", "is_begun", "keep_start", "load_detail", "shape_of", "start_of"]

_VECTORS = 0.1  # weight of the distance to the finer levels' vectors, before the discriminator's gradient is let in
_SHIFT = 32  # pixels of the network's coarsest cell
_STANDARD = 64  # training images by which the features are standardised


@dataclass(frozen=True)
class DetailSettings:
    """Whether and how a decoder of the coarse levels is trained after the VQ-VAE."""

    detail_share: float = 0.0
    """Share of the training's limit spent on a decoder that paints whole images from the coarse levels, by which
    samples are made, in [0, 1]; 0: none; 1, with --init: nothing else is trained. It takes torchvision's MobileNetV2
    from torch's cache."""
    detail_levels: int = 1
    """Coarsest levels that it is given, fewer than all."""
    detail_widths: tuple[int, ...] = ()
    """Channels of the blocks that paint, at the last of these levels and at each finer one. Empty: the VQ-VAE's hidden
    channels at the former, and half of them at the others."""
    detail_adversarial_weight: float = 1.5
    """Norm of its adversarial gradient relative to that of its distance from the image, >= 0."""
    detail_warmup: int = 120
    """Steps before it receives the adversarial gradient, >= 0."""
    detail_learning_rate: float = 5e-4
    """Peak learning rate of it and of its discriminator."""

    def __post_init__(self) -> None:
        if not 0 <= self.detail_share <= 1:
            raise ValueError(f"detail_share must be in [0, 1], got {self.detail_share}")
        if self.detail_learning_rate <= 0:
            raise ValueError(f"detail_learning_rate must be > 0, got {self.detail_learning_rate}")
        if self.detail_levels < 1 or min(self.detail_adversarial_weight, self.detail_warmup) < 0:
            raise ValueError("need detail_levels >= 1, detail_adversarial_weight >= 0 and detail_warmup >= 0")
        if self.detail_widths and min(self.detail_widths) < 1:
            raise ValueError(f"detail_widths must be >= 1, got {self.detail_widths}")

    def divide(self, training: TrainingConfig) -> tuple[TrainingConfig | None, TrainingConfig | None]:
        """Divide a training's limit: settings of all before it, and its own; None: there is no such part."""
        if not self.detail_share:
            return training, None
        return divide(training, self.detail_share, self.detail_learning_rate)


class DetailTask(VQVAETask):
    """What `fit` trains after the VQ-VAE, which stays as it is: a detail decoder and its discriminator.

    Args:
        model: the trained VQ-VAE, in evaluation mode.
        data: its images.
        settings: how.
        vqvae_sha256: of the weights of the VQ-VAE.
        train: the training images, where they come changed.
        start: folder of a trained detail decoder of the same shape, to go on from; None: from the VQ-VAE's decoders.
    """

    rate_flag, restarts, compiled_pays_on_cpu = "--detail-learning-rate", True, False
    score = ""  # its losses say little of its images: the latest is kept

    def __init__(
        self,
        model: VQVAE,
        data: ImageData,
        settings: DetailSettings,
        vqvae_sha256: str,
        train: AugmentedSet | None = None,
        start: Path | None = None,
    ) -> None:
        super().__init__(model, data, train)
        self.settings, self.steps, self.trained = settings, 0, start is not None
        self.origin = {"vqvae_sha256": vqvae_sha256}
        self.detail = DetailDecoder.of(model, settings.detail_levels, widths=settings.detail_widths)
        if start is not None:
            start_from(self.detail, start, fresh=("embeddings.",))
        config = model.config
        self.loss_config = replace(config, mse_weight=0.0, l1_weight=1.0, ssim_weight=0.0, spectrum_weight=0.0)
        real = metrics.feature_maps(self._images("train", self._rows("train", _STANDARD)))
        self.discriminator = FeatureDiscriminator([level.shape[1] for level in real]).to(self.device)
        self.discriminator.standardise(real)

    def modules(self) -> dict[str, nn.Module]:
        return {"detail": self.detail, "discriminator": self.discriminator}

    def compilable(self) -> list[nn.Module]:
        return []

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        images = images_of(self.dataset, batch, self.device).contiguous(memory_format=torch.channels_last)
        warm, drawn = self.steps >= self.settings.detail_warmup, self.settings.detail_levels
        codes = self.model.encode(images, levels=drawn if warm else None)
        made, painted = self.detail(codes[:drawn])
        y = made.detach().float().requires_grad_()
        # The network's cells lie elsewhere at each step, or the decoder would paint a pattern on their grid.
        shift = torch.randint(_SHIFT, (2,)).tolist()
        with torch.no_grad():
            real = metrics.feature_maps(self.rounded(images).roll(shift, (2, 3)))
        own = metrics.feature_maps(self.rounded(y).roll(shift, (2, 3)))
        perceptual = metrics.maps_distance(own, real).mean()
        error, _ = self.loss_config.reconstruction_loss(y, images)
        scores = torch.stack([head.float().mean() for head in self.discriminator(own)])
        weight = self.settings.detail_adversarial_weight * warm
        gradient = adversarial_gradient(perceptual + error, scores, y, weight)
        # Scored again, from detached maps: the gradient of the discriminator's loss ends there.
        heads = zip(self.discriminator(real), self.discriminator([m.detach() for m in own]), strict=True)
        told = torch.stack([discriminator_loss(a, b) for a, b in heads]).mean()
        # The gradient with respect to the images is at hand; the value that is logged is the distance.
        pushed = (made.float() * gradient).sum()
        trained = told + pushed
        if not warm:
            # Without the discriminator's gradient a trained decoder would only get blurred, so it is not changed yet.
            trained = told + 0 * pushed if self.trained else trained + _VECTORS * self._distance(painted, codes)
        loss = trained + (perceptual + error - trained).detach()
        sums = {"perceptual": perceptual, "l1": error, "discriminator": told}
        return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in sums.items()}

    def _distance(self, painted: list[Tensor], codes: list[Tensor]) -> Tensor:
        """Compare the vectors that were painted with those of the image's own codes."""
        first = self.settings.detail_levels
        parts = []
        for vectors, level, codebook in zip(painted, codes[first:], self.model.codebooks[first:], strict=True):
            target = codebook.lookup(level).permute(0, 3, 1, 2)
            parts.append(F.mse_loss(vectors.float(), target.float()) / codebook.embedding.var().clamp_min(1e-12))
        return torch.stack(parts).sum()

    def after_step(self) -> None:
        self.steps += 1

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        figures = {}
        for split in ("selection", "val"):
            images = self._images(split, self._rows(split, EVALUATED))
            made = self._painted(images)
            if len(images) > 1:
                both = metrics.features(made), metrics.features(images)
                figures[f"{split}/kid"] = metrics.kernel_distance(*both, paired=True)[0]
            pairs = zip(made.split(32), images.split(32), strict=True)  # at once they would fill the memory
            figures[f"{split}/ssim"] = float(torch.cat([metrics.ssim(*pair) for pair in pairs]).mean())
        return figures

    def brief(self, figures: dict[str, float]) -> str:
        kid = f"KID {figures['val/kid']:.3f}  " if "val/kid" in figures else ""
        return f"{kid}SSIM {figures['val/ssim']:.3f}"

    def preview(self) -> dict[str, Picture]:
        images = self._images("val", self._rows("val", SHOWN))
        codes = self.model.encode(images, levels=self.settings.detail_levels)
        rows = [images, self.model.decode(codes), self.detail.decode(codes)]
        titles = ["val", f"decoded down to {self.detail.levels[-1]}", "painted"]
        return {"detail": grid([to_picture(image) for row in rows for image in row], len(images), titles=titles)}

    def save(self, folder: Path) -> None:
        self.detail.save_pretrained(folder, self.origin)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "trained": self.trained, **self.origin}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps, self.trained = state["steps"], state.get("trained", False)

    def _painted(self, images: Tensor) -> Tensor:
        levels = self.settings.detail_levels
        return torch.cat([self.detail.decode(self.model.encode(part, levels=levels)) for part in images.split(32)])


def is_begun(run: RunFolder, vqvae_sha256: str) -> bool:
    """Tell whether there is a training to resume of a detail decoder for this VQ-VAE, not for an earlier one."""
    state = run.detail / "state"
    return checkpoint.has_state(state) and checkpoint.load_state(state)["task"].get("vqvae_sha256") == vqvae_sha256


def start_of(run: RunFolder) -> Path:
    """Name the folder of the detail decoder from which a run's own goes on, where ``--init`` brought one."""
    return run.detail / "start"


def keep_start(run: RunFolder, init: Path | None, settings: DetailSettings) -> None:
    """Copy the detail decoder of ``--init`` into the run if it has this shape: a resumed training may still need it."""
    if init is None:
        return
    theirs = RunFolder(init)
    shape = shape_of(theirs)
    if shape and replace(settings, **shape) == settings:
        detail = DetailDecoder.from_pretrained(theirs.detail)
        distributed.on_main(lambda: detail.save_pretrained(start_of(run)))


def shape_of(run: RunFolder) -> dict[str, Any]:
    """Return `detail_levels` and `detail_widths` of a run's detail decoder; an empty mapping if it has none."""
    if not checkpoint.has_model(run.detail):
        return {}
    config = checkpoint.load_config(run.detail, kind=DetailDecoder.kind)
    return {"detail_levels": config["drawn_levels"], "detail_widths": tuple(config.get("widths", ()))}


def load_detail(run: RunFolder, device: torch.device) -> DetailDecoder | None:
    """Load a run's detail decoder; None where there is none.

    Raises:
        UserError: it was trained for another VQ-VAE.
    """
    if not checkpoint.has_model(run.detail):
        return None
    made_for = checkpoint.load_config(run.detail, kind=DetailDecoder.kind).get("vqvae_sha256")
    if made_for != distributed.on_main(lambda: checkpoint.sha256_of(run.vqvae)):
        raise UserError("this detail decoder was trained for another VQ-VAE", run.detail, "Delete it or train it again")
    return DetailDecoder.from_pretrained(run.detail, device)
