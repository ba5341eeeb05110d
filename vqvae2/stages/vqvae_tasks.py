"""What `fit` trains in the first stage: the whole VQ-VAE and, where asked for, the image's decoder alone afterwards."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2 import distributed, metrics
from vqvae2.adversary import PatchDiscriminator, adversarial_gradient, discriminator_loss, gradient_penalty
from vqvae2.data import AugmentedSet, ImageData, ImageSet
from vqvae2.metrics import CodeCounts, constant_cells, ssim
from vqvae2.optim import TrainingConfig
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.report import spread_out
from vqvae2.task import Sums
from vqvae2.vqvae import VQVAE

_EVALUATED = 256  # images of a split that an evaluation during training looks at; evaluate.py looks at all
_BLURRED = 64  # images blurred to tell which blur has the same score
_SHOWN = 8


class VQVAETask:
    """What `fit` trains in this stage."""

    unit = "images_per_second"
    rate_flag, restarts, compiled_pays_on_cpu = "--learning-rate", False, True
    guide_share = 0.0
    score = "selection/loss"

    def __init__(self, model: VQVAE, data: ImageData, train: AugmentedSet | None = None) -> None:
        self.model, self.data = model, data
        self.dataset = train or data.splits["train"]
        self.device = next(model.parameters()).device
        self.window = [CodeCounts(k) for k in model.config.num_embeddings]
        self.used: dict[str, list[int]] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"vqvae": self.model}

    def compilable(self) -> list[nn.Module]:
        return [*self.model.encoders, *self.model.decoders, *self.model.conditioners]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        images = _images(self.dataset, batch, self.device)
        ready = self.model.initialized
        loss, terms, out = self.model.loss(images)
        if ready:  # before that, codes are zeros that mean nothing
            for counts, codes in zip(self.window, out.codes, strict=True):
                counts.update(codes, ~constant_cells(images, codes.shape[1:]))
        return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in terms.items()}

    def after_step(self) -> None:
        self.model.update_codebooks()

    def validate(self) -> dict[str, float]:
        levels = self.model.levels
        figures = {"selection/loss": self._scores("selection")["loss"]}
        held_out = self._scores("val")
        figures |= {f"val/{name}": held_out[name] for name in ("mse", "psnr_db", "ssim")}
        figures |= {name: value for name, value in held_out.items() if name.startswith("val/")}
        for i, level in enumerate(levels):
            figures |= {name: value for name, value in held_out.items() if name.startswith(f"{level}/")}
            self.window[i].gather()
            if self.window[i].counts.any():
                figures |= _code_figures(f"train/{level}", self.window[i])
            self.window[i].reset()
        for i, level in enumerate(levels[:-1]):
            figures[f"{level}/ssim_alone"] = held_out[f"ssim_{i + 1}"]
        return figures

    def brief(self, figures: dict[str, float]) -> str:
        used = ", ".join(f"{level} {figures[f'{level}/perplexity_foreground']:.0f}" for level in self.model.levels)
        return f"loss {figures['selection/loss']:.4f}  SSIM {figures['val/ssim']:.3f}  perplexity {used}"

    def preview(self) -> dict[str, Picture]:
        images = self._images("val", self._rows("val", _SHOWN))
        codes = self.model.encode(images)
        rows = [images, self.model.decode(codes)]
        rows += [self.model.decode(codes[: i + 1]) for i in range(len(codes) - 1)]
        rows.insert(2, (rows[1] - rows[0]).abs() * 2 - 1)
        size = (images.shape[2], images.shape[3])
        maps = [
            code_map(level[i], k, size)
            for level, k in zip(codes, self.model.config.num_embeddings, strict=True)
            for i in range(len(images))
        ]
        pictures = [to_picture(image) for row in rows for image in row]
        return {"reconstructions": grid(pictures, len(images)), "code_maps": grid(maps, len(images))}

    def histograms(self) -> dict[str, list[int]]:
        return self.used  # of the held-out images, which are scored last

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, self.data.to_config())

    def state(self) -> dict[str, Any]:
        for count in self.window:
            count.gather()
            if not distributed.is_main():  # they are the main process's now
                count.reset()
        window = [[count.counts, count.counts_foreground] for count in self.window]
        return {"window": window, "gathered": [codebook.gathered for codebook in self.model.codebooks]}

    def load_state(self, state: dict[str, Any]) -> None:
        for count, (counts, foreground) in zip(self.window, state["window"], strict=True):
            if distributed.is_main():
                count.counts, count.counts_foreground = counts.to(self.device), foreground.to(self.device)
        for codebook, rows in zip(self.model.codebooks, state["gathered"], strict=True):
            codebook.gathered = [part.to(self.device) for part in rows]

    def _rows(self, split: str, count: int) -> list[int]:
        return spread_out(len(self.data.splits[split]), count)

    @functools.cached_property
    def background(self) -> float | None:
        """Value of the background of the training images; None where they have none."""
        return metrics.background_value(self._images("train", self._rows("train", _EVALUATED)))

    @functools.cached_property
    def blur(self) -> metrics.BlurScale:
        """Score of blurred held-out images."""
        scale = metrics.BlurScale((self.model.config.height, self.model.config.width))
        for x in self._images("val", distributed.own_part(self._rows("val", _BLURRED))).split(32):
            scale.update(x, metrics.foreground(x, self.background))
        scale.gather()
        return scale

    def _images(self, split: str, rows: Sequence[int]) -> Tensor:
        return self.data.splits[split].__getitems__(rows)["image"].to(self.device)

    def _scores(self, split: str) -> dict[str, float]:
        """Reconstruction errors, sharpness (named after the split) and code statistics of a split."""
        model, config = self.model, self.model.config
        names = ["loss", "mse", "psnr_db", "ssim", *(f"ssim_{i}" for i in range(1, len(self.model.decoders)))]
        sums = dict.fromkeys(names, 0.0)
        counts = [CodeCounts(k) for k in config.num_embeddings]
        sharpness = metrics.Sharpness((config.height, config.width), self.background, self.blur)
        rows = self._rows(split, _EVALUATED)
        images = self._images(split, distributed.own_part(rows))
        for x in images.split(32) if len(images) else ():  # fewer images than processes
            codes = model.encode(x)
            for count, level in zip(counts, codes, strict=True):
                count.update(level, ~constant_cells(x, level.shape[1:]))
            y = model.decode(codes)
            sharpness.update(y, x)
            mse = (y - x).square().mean((1, 2, 3))
            batch = {
                "loss": config.reconstruction_loss(y, x)[0].expand(len(x)),  # a mean over images
                "mse": mse,
                "psnr_db": 10 * torch.log10(4 / mse.clamp_min(1e-12)),
                "ssim": ssim(y, x),
            }
            for i in range(1, len(codes)):
                batch[f"ssim_{i}"] = ssim(model.decode(codes[:i]), x)
            for name, values in batch.items():
                sums[name] += float(values.sum())
        for count in counts:
            count.gather()
        sharpness.gather()
        total = distributed.all_reduce_sum(torch.tensor([sums[name] for name in names], dtype=torch.float64))
        scores = dict(zip(names, (total / len(rows)).tolist(), strict=True))
        scores |= {f"{split}/{name}": value for name, value in sharpness.figures().items()}
        for name, count in zip(model.levels, counts, strict=True):
            scores |= _code_figures(name, count)
            self.used[f"{name}/codes_by_rank"] = count.counts_foreground.cpu().tolist()
        return scores


def _code_figures(prefix: str, counts: CodeCounts) -> dict[str, float]:
    return {
        f"{prefix}/perplexity": counts.perplexity,
        f"{prefix}/perplexity_foreground": counts.perplexity_foreground,
        f"{prefix}/usage": counts.usage,
    }


def _images(dataset: AugmentedSet | ImageSet, batch: dict[str, Any], device: torch.device) -> Tensor:
    """The images of a batch, made of what is stored, or ready."""
    return dataset.unit(batch, device) if isinstance(dataset, AugmentedSet) else batch["image"].to(device)


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
        if not 0 <= self.code_noise <= 1:
            raise ValueError(f"code_noise must be in [0, 1], got {self.code_noise}")

    def divide(self, training: TrainingConfig) -> tuple[TrainingConfig | None, TrainingConfig]:
        """Divide a training's limit: settings of the VQ-VAE's and of the sharpening's part; None: there is no first.

        Beside a limit in steps, minutes are an upper bound, which the sharpening has for itself.

        Raises:
            ValueError: there is nothing to divide, or too little.
        """
        if not training.limited:
            raise ValueError("sharpening takes a share of a limit, and there is none")

        def part(share: float, minutes: float | None) -> TrainingConfig:
            steps = training.max_steps and round(training.max_steps * share)
            return replace(training, max_steps=steps, max_minutes=minutes)

        share, minutes = self.sharpen_share, training.max_minutes
        own = minutes if training.max_steps else minutes and minutes * share
        return part(1 - share, minutes and minutes * (1 - share)) if share < 1 else None, replace(
            part(share, own),
            optimizer="adam" if training.optimizer == "adam" else "adamw",
            learning_rate=self.sharpen_learning_rate,
            beta1=0.5,
            weight_decay=0.0,
            ema_decay=0.995,
            evaluations=1,
            patience=0,
        )


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
        images = _images(self.dataset, batch, self.device).contiguous(memory_format=torch.channels_last)
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
        scores = self.discriminator(y)
        gradient = adversarial_gradient(reconstruction, scores, y, weight)
        told = discriminator_loss(self.discriminator(images), scores)
        # A few images are enough, and their second derivatives cost as much as all the rest.
        penalty = gradient_penalty(self.discriminator, images[: -(-len(images) // 4)])
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
        parts = [
            self.model.encode(images.__getitems__(range(start, min(start + 32, len(images))))["image"].to(self.device))
            for start in range(0, len(images), 32)
        ]
        return [torch.cat(level).to(torch.int32).cpu() for level in zip(*parts, strict=True)]

    def after_step(self) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {**super().state(), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.steps = state.get("steps", self.config.discriminator_warmup)

    def save(self, folder: Path) -> None:
        super().save(self.folder)
