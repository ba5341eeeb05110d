"""What each part of the recipe is worth: held-out figures without it, at equal time, over several seeds.

    python benchmarks/ablations.py vqvae --data DIR --json FILE [--rows NAME ...]
    python benchmarks/ablations.py prior --run RUN --level top --json FILE

A row is the preset brain128 with the change named. The time of a step is measured first (the median of some), and each
row trains for as many steps as fit in --seconds, so that compiling and interruptions count for nothing; with --steps
all rows train for as many. FILE is written after every training; a second call goes on where the first ended.

Figures, on the `val` images:

- vqvae: SSIM in the foreground and over the frame, coherence at wavelengths of 2 to 4 pixels, SSIM of the coarser
  levels alone, bits a pixel of all levels under the position-wise unigram, and of each level the share of its codebook
  in use and the perplexity, the latter without constant cells. Beside them the mean training image and a blur of 1
  pixel.
- prior: NLL in nats a code. Beside it the position-wise unigram.
"""

import argparse
import contextlib
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import write
from torch import Tensor

from vqvae2.codes import CodeStore
from vqvae2.data import AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import keep_freed_memory, resolve_device, resolve_precision
from vqvae2.metrics import (
    CodeCounts,
    Sharpness,
    background_value,
    constant_cells,
    gaussian_blur,
    positionwise_unigram_nll,
    ssim,
)
from vqvae2.optim import TrainingConfig, make_optimizer
from vqvae2.presets import PRESETS
from vqvae2.prior import Prior
from vqvae2.stages.train_prior import PriorTask
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE

PRESET = PRESETS["brain128"]
WARM, TIMED = 12, 24  # steps before the time of one is taken, and those that are timed

VQVAE_ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "foreground_weight 1": {"model": {"foreground_weight": 1.0}},
    "ssim_weight 0": {"model": {"ssim_weight": 0.0}},
    "spectrum_weight 0.1": {"model": {"spectrum_weight": 0.1}},
    "images unchanged": {"augmentation": {"augment_flip": 0.0, "augment_shift": 0.0}},
    "AdamW": {"training": {"optimizer": "adamw"}},
    "level_dropout 0": {"model": {"level_dropout": 0.0}},
    "rate_weight 0": {"model": {"rate_weight": 0.0}},
    "without layer normalisation": {"model": {"normalize": "none"}},
    "random start": {"model": {"init_vectors": 0}},
    "without revival": {"model": {"revival_threshold": 0.0}},
    "gradient codebook": {"model": {"codebook": "gradient"}},
    "gradient codebook, random start, without revival": {
        "model": {"codebook": "gradient", "init_vectors": 0, "revival_threshold": 0.0}
    },
    "SimVQ": {"model": {"codebook": "simvq"}},
    "SimVQ, random start": {"model": {"codebook": "simvq", "init_vectors": 0}},
    "rotation": {"model": {"estimator": "rotation"}},
    "upper levels upsampled alone": {"model": {"upper_decoder": "upsample"}},
    "without residual blocks": {"model": {"num_residual_layers": 0}},
    "one level of 64x64, K 128": {
        "model": {
            "strides": (2,),
            "num_embeddings": (128,),
            "embedding_dim": (8,),
            "rate_weight": 0.0,
            "hidden_channels": 128,
            "residual_channels": 64,
            "level_dropout": 0.0,
        }
    },
}
PRIOR_ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weight decay on embeddings and position tables too": {"decay": "all"},
    "without weight decay": {"training": {"weight_decay": 0.0}},
    "AdamW": {"training": {"optimizer": "adamw"}},
    "AdamW, three times the rate": {"training": {"optimizer": "adamw", "learning_rate": 3e-3}},
    "without attention": {"model": {"attention_every": 0}},
    "position_logits": {"model": {"position_logits": True}},
    "in raster order (of the top; the preset's is mirrored)": {"model": {"mirrored": False}},
}


def main() -> int:
    arguments = parse()
    torch.set_float32_matmul_precision("highest")
    keep_freed_memory()
    print(f"{resolve_device('auto')}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    bench: VQVAEBench | PriorBench = VQVAEBench(arguments) if arguments.part == "vqvae" else PriorBench(arguments)
    kept = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = kept.get("runs", {})
    steps: dict[str, int] = kept.get("steps", {})
    for seed in arguments.seeds:
        for row in arguments.rows or bench.rows:
            if any(run["seed"] == seed for run in runs.setdefault(row, [])):
                continue
            if row not in steps:
                fit_in = arguments.steps or int(arguments.seconds / bench.train(row, seed, None)[1])
                steps[row] = max(2, fit_in)
            figures, step_s = bench.train(row, seed, steps[row])
            runs[row].append({"seed": seed, "steps": steps[row], "step_s": step_s, **figures})
            print(f"{row}, seed {seed}, {steps[row]:,} steps of {step_s:.3f} s: {told(figures)}", flush=True)
            write(arguments.json, [], naive=bench.naive, steps=steps, runs=runs, seconds=arguments.seconds)
    tell(runs, bench.naive)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, rows in (("vqvae", VQVAE_ROWS), ("prior", PRIOR_ROWS)):
        part = parts.add_parser(name)
        part.add_argument("--json", required=True, type=Path, help="file for the figures")
        part.add_argument("--rows", nargs="*", choices=list(rows), help="default: all")
        part.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="default: 0 1 2")
        part.add_argument("--steps", type=int, help="of every row, in place of --seconds")
        part.add_argument("--seconds", type=float, default=90, help="of training a row (default: %(default)s)")
        part.add_argument("--compile", choices=("auto", "on", "off"), default="on" if name == "vqvae" else "off")
    parts.choices["vqvae"].add_argument("--data", required=True, help="folder of images; see docs/data.md")
    parts.choices["prior"].add_argument("--run", required=True, type=Path, help="run folder with codes")
    parts.choices["prior"].add_argument("--level", default="top", help="level of the prior (default: %(default)s)")
    return parser.parse_args()


class Enough(Exception):  # noqa: N818 - no error
    """The time of a step is known."""


def trained(task: Any, training: TrainingConfig, seed: int, arguments: argparse.Namespace, timed: bool) -> float:
    """Train a task silently, where ``timed`` only until the time of a step is known; return the seconds of a step."""
    times: list[float] = []
    after = task.after_step

    def after_step() -> None:
        after()
        times.append(time.perf_counter())
        if timed and len(times) > WARM + TIMED:
            raise Enough

    task.after_step = after_step
    task.validate, task.preview, task.brief, task.score = dict, dict, lambda _: "", ""
    device = resolve_device("auto")
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        fit(
            task,
            training,
            Path(folder),
            device=device,
            precision=resolve_precision("auto", device),
            compile=arguments.compile,
            seed=seed,
            say=lambda _: None,
        )
    times = times[min(WARM, len(times) - 2) :]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


class VQVAEBench:
    rows = VQVAE_ROWS

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, resolve_device("auto")
        config = DataConfig(data=arguments.data, size=PRESET.size, fit=PRESET.fit)
        self.data: ImageData = open_data(config, splits=["train", "selection", "val"])
        self.train_images, self.images = whole(self.data.splits["train"]), whole(self.data.splits["val"])
        self.background = background_value(self.train_images)
        mean = self.train_images.mean(0, keepdim=True)
        naive = {
            "mean image": lambda x: mean.expand_as(x),
            "blur of 1 pixel": lambda x: gaussian_blur(x, 1.0),
        }
        self.naive = {name: self.score(make) for name, make in naive.items()}

    def score(self, make: Callable[[Tensor], Tensor]) -> dict[str, float]:
        sharpness, whole_frame = Sharpness(self.images.shape[2:], self.background), []
        for x in self.images.split(32):
            y = make(x).clamp(-1, 1)
            sharpness.update(y, x)
            whole_frame.append(ssim(y, x))
        figures = sharpness.figures()
        coherence = next(value for name, value in figures.items() if name.startswith("coherence"))
        return {"inside": figures["ssim_foreground"], "whole": float(torch.cat(whole_frame).mean()), "fine": coherence}

    def train(self, row: str, seed: int, steps: int | None) -> tuple[dict[str, float], float]:
        changed = VQVAE_ROWS[row]
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"channels": self.data.channels, "height": self.data.height, "width": self.data.width}
        model = VQVAE(replace(PRESET.vqvae, **sizes, **changed.get("model", {}))).to(self.device)
        training = replace(
            PRESET.vqvae_training,
            **{"evaluations": 1, "max_steps": steps or 10_000, "max_minutes": None, **changed.get("training", {})},
        )
        augmentation = replace(PRESET.augmentation, **changed.get("augmentation", {}))
        task = VQVAETask(model, self.data, AugmentedSet(self.data.splits["train"], augmentation, seed))
        step_s = trained(task, training, seed, self.arguments, timed=steps is None)
        return ({} if steps is None else self.figures(model.eval())), step_s

    @torch.no_grad()
    def figures(self, model: VQVAE) -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):
            figures = self.score(lambda x: model.decode(model.encode(x.to(self.device))).cpu())
            coarse = math.nan  # of a single level
            if len(model.levels) > 1:
                coarse = self.score(lambda x: model.decode(model.encode(x.to(self.device))[:-1]).cpu())["whole"]
            trained, held = (
                [torch.cat(level).cpu() for level in zip(*map(model.encode, images.split(32)), strict=True)]
                for images in (self.train_images.to(self.device), self.images.to(self.device))
            )
        pixels = self.images[0, 0].numel()
        bits, used = 0.0, dict[str, float]()
        for level, k, before, codes in zip(model.levels, model.config.num_embeddings, trained, held, strict=True):
            nll = positionwise_unigram_nll(before.numpy(), codes.numpy(), k)
            bits += nll * codes[0].numel() / pixels / math.log(2)
            counts = CodeCounts(k)
            counts.update(codes, ~constant_cells(self.images, codes.shape[1:]))
            used |= {f"{level} perplexity": counts.perplexity_foreground, f"{level} usage": counts.usage}
        return {**figures, "coarse": coarse, "bits": float(bits), **used}


class PriorBench:
    rows = PRIOR_ROWS

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.device = arguments, resolve_device("auto")
        self.store = CodeStore(arguments.run / "codes")
        self.model = VQVAE.from_pretrained(arguments.run / "vqvae", self.device)
        self.index = list(self.store.levels).index(arguments.level)
        self.naive: dict[str, dict[str, float]] = {}

    def train(self, row: str, seed: int, steps: int | None) -> tuple[dict[str, float], float]:
        changed, store = PRIOR_ROWS[row], self.store
        torch.manual_seed(seed)
        config = PRESET.prior_for(self.index, store.levels, store.shapes, store.num_embeddings, store.attributes)
        prior = Prior(replace(config, **changed.get("model", {}))).to(self.device)
        task = PriorTask(prior, self.model, store, {})
        self.naive = {"position-wise unigram": {"nll": task.baselines["val/position_nll"]}}
        training = replace(
            PRESET.prior(self.index)[1],
            **{"evaluations": 1, "max_steps": steps or 10_000, "max_minutes": None, **changed.get("training", {})},
        )
        validate = task.validate
        with mock.patch("vqvae2.training.make_optimizer", decaying_tables if "decay" in changed else make_optimizer):
            step_s = trained(task, training, seed, self.arguments, timed=steps is None)
        return ({} if steps is None else {"nll": validate()["val/nll"]}), step_s


def decaying_tables(config: TrainingConfig, *more: Any) -> torch.optim.Optimizer:
    """The optimiser as it was when embeddings and position tables were decayed too."""
    optimizer = make_optimizer(config, *more)
    others = optimizer.param_groups[1]
    tables = [parameter for parameter in others["params"] if parameter.ndim > 1]
    others["params"] = [parameter for parameter in others["params"] if parameter.ndim < 2]
    optimizer.add_param_group({"params": tables, "weight_decay": config.weight_decay, "lr_scale": 1.0})
    return optimizer


def whole(images: ImageSet) -> Tensor:
    batch: Tensor = images.at(range(len(images)))
    return batch


def told(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


def tell(runs: dict[str, list[dict[str, Any]]], naive: dict[str, dict[str, float]]) -> None:
    """Print the mean over the seeds, and the range, and the smallest of the seconds a step."""
    for name, figures in naive.items():
        print(f"{name:52} {told(figures)}")
    for row, found in runs.items():
        names = [name for name in (found[0] if found else {}) if name not in ("seed", "steps", "step_s")]
        values = {name: [run[name] for run in found] for name in names}
        words = ", ".join(f"{name} {sum(v) / len(v):.3f} ({min(v):.3f} to {max(v):.3f})" for name, v in values.items())
        steps, step_s = found[0]["steps"] if found else 0, min((run["step_s"] for run in found), default=math.nan)
        print(f"{row:52} {steps:5,} steps of {step_s:.3f} s, {len(found)} seeds: {words}")


if __name__ == "__main__":
    sys.exit(main())
