"""What `fit` trains in the first stage: the whole VQ-VAE."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2 import distributed, metrics
from vqvae2.data import AugmentedSet, ImageData, ImageSet, as_stored
from vqvae2.estimators import straight_through
from vqvae2.metrics import CodeCounts, constant_cells, ssim
from vqvae2.pictures import Picture, code_map, grid, to_picture
from vqvae2.report import spread_out
from vqvae2.task import Sums
from vqvae2.vqvae import VQVAE

EVALUATED = 256  # images of a split that an evaluation during training looks at; evaluate.py looks at all
_BLURRED = 64  # images blurred to tell which blur has the same score
SHOWN = 8


class VQVAETask:
    """What `fit` trains in this stage."""

    unit = "images_per_second"
    rate_flag, restarts, compiled_pays_on_cpu = "--learning-rate", False, True
    has_guide = False
    score = "selection/loss"

    def __init__(self, model: VQVAE, data: ImageData, train: AugmentedSet | None = None) -> None:
        self.model, self.data = model, data
        self.dataset = train or data.splits["train"]
        self.device = model.device
        self.window = [CodeCounts(k) for k in model.config.num_embeddings]
        self.used: dict[str, list[int]] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"vqvae": self.model}

    def compilable(self) -> list[nn.Module]:
        return [*self.model.encoders, *self.model.decoders, *self.model.conditioners]

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Sums]:
        images = images_of(self.dataset, batch, self.device)
        ready = self.model.initialized
        loss, terms, out = self.model.loss(images)
        if ready:  # before that, codes are zeros that mean nothing
            for counts, codes in zip(self.window, out.codes, strict=True):
                counts.update(codes, ~constant_cells(images, codes.shape[1:]))
        return loss, {f"train/{name}": (value.detach(), 1.0) for name, value in terms.items()}

    def rounded(self, y: Tensor) -> Tensor:
        """Clip and round images (B, C, H, W) as they are stored; the gradient passes the rounding, not the clipping.

        A discriminator that saw unrounded values would tell images from files by those alone. Clipped values get no
        gradient: whatever it pushed further out would look the same, and so grow without bound.
        """
        return straight_through(y.clamp(-1, 1), as_stored(y, self.data.splits["train"].value_range))

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
        images = self._images("val", self._rows("val", SHOWN))
        codes = self.model.encode(images)
        made, levels = self.model.decode(codes), self.model.levels
        rows = [images, made, (made - images).abs() * 2 - 1]
        rows += [self.model.decode(codes[: i + 1]) for i in range(len(codes) - 1)]
        titles = ["val", "reconstruction", "difference", *(f"down to {level}" for level in levels[:-1])]
        size = (images.shape[2], images.shape[3])
        maps = [
            code_map(level[i], k, size)
            for level, k in zip(codes, self.model.config.num_embeddings, strict=True)
            for i in range(len(images))
        ]
        pictures = [to_picture(image) for row in rows for image in row]
        return {
            "reconstructions": grid(pictures, len(images), titles=titles),
            "code_maps": grid(maps, len(images), titles=levels),
        }

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
        return metrics.background_value(self._images("train", self._rows("train", EVALUATED)))

    @functools.cached_property
    def blur(self) -> metrics.BlurScale:
        """Score of blurred held-out images."""
        scale = metrics.BlurScale((self.model.config.height, self.model.config.width))
        for x in self._images("val", distributed.own_part(self._rows("val", _BLURRED))).split(32):
            scale.update(x, metrics.foreground(x, self.background))
        scale.gather()
        return scale

    def _images(self, split: str, rows: Sequence[int]) -> Tensor:
        return self.data.splits[split].at(rows).to(self.device)

    def _scores(self, split: str) -> dict[str, float]:
        """Reconstruction errors, sharpness (named after the split) and code statistics of a split."""
        model, config = self.model, self.model.config
        names = ["loss", "mse", "psnr_db", "ssim", *(f"ssim_{i}" for i in range(1, len(self.model.decoders)))]
        sums = dict.fromkeys(names, 0.0)
        counts = [CodeCounts(k) for k in config.num_embeddings]
        sharpness = metrics.Sharpness((config.height, config.width), self.background, self.blur)
        rows = self._rows(split, EVALUATED)
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
        f"{prefix}/least_perplexity": counts.least_perplexity,  # in the foreground; below it, the level has collapsed
        f"{prefix}/usage": counts.usage,
    }


def images_of(dataset: AugmentedSet | ImageSet, batch: dict[str, Any], device: torch.device) -> Tensor:
    """The images of a batch, made of what is stored, or ready."""
    return dataset.unit(batch, device) if isinstance(dataset, AugmentedSet) else batch["image"].to(device)
