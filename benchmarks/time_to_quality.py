"""Seconds of training to a quality, beside a popular implementation whose start-up is mended.

    python benchmarks/time_to_quality.py --data DIR --json FILE [--peer PATH] [--minutes 30] [--only ours|peer]

Quality is SSIM in the foreground of the held-out images (`val`). Both sides train on the same images, each with the
batch, rate, optimiser and precision that it has by default: ours as the preset brain128 does, on its schedule; the peer
in fp32, by Adam at 3e-4, 128 images a batch (--peer-batch), with one channel for grey images. The clock counts all that
a training does from its beginning, compiling included (--compile). It stands still while a model is scored, which is
done every time the training has become 5 % longer: no time is more than 5 % too long.

As published, the peer's codebooks collapse on images that are mostly background. PATH is therefore a copy of
rosinality/vq-vae-2-pytorch in whose vqvae.py `Quantize` was given two things: a start by k-means over the first batch's
encoder outputs, and the revival of dead codes (running count below 5 % of the mean) on current encoder outputs.

Beside the two stand the mean training image and the held-out images blurred by 1 pixel. With --only, the figures of the
other side stay in FILE, and the table shows both.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import peer_module, write
from torch import Tensor, nn

from vqvae2.batches import load_batches
from vqvae2.data import AugmentedSet, DataConfig, ImageData, ImageSet, open_data
from vqvae2.device import resolve_device, resolve_precision
from vqvae2.metrics import background_value, foreground, foreground_scores, gaussian_blur
from vqvae2.presets import PRESETS
from vqvae2.stages.sharpening import SharpeningConfig
from vqvae2.stages.vqvae_tasks import VQVAETask
from vqvae2.training import fit
from vqvae2.vqvae import VQVAE

TARGETS, BAR = (0.80, 0.84), 3.0  # SSIM in the foreground; how many times faster than the peer ours is to be
FIRST, GROWTH = 5.0, 1.05  # seconds of training before the first score, and from one to the next
PRESET = PRESETS["brain128"]


def main() -> int:
    arguments = parse()
    device = resolve_device("auto")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    data = open_data(DataConfig(data=arguments.data, size=PRESET.size, fit=PRESET.fit), splits=["train", "val"])
    judge = Judge(data, device)
    print(f"{len(data.splits['train']):,} training images, {len(judge.images):,} held-out ones")
    earlier = json.loads(arguments.json.read_text()) if arguments.only and arguments.json.exists() else {}
    runs = earlier.get("runs", {})
    if arguments.only != "peer":
        runs["ours"] = train_ours(data, judge, arguments.minutes, arguments.compile)
    if arguments.peer and arguments.only != "ours":
        print(f"peer: the mended copy of rosinality/vq-vae-2-pytorch in {arguments.peer}")
        runs["peer"] = train_peer(arguments.peer, arguments.peer_batch, data, judge, arguments.minutes)
    claims = [claim(f"{target:.2f}", runs) for target in TARGETS]
    tell(claims, judge.naive)
    return write(arguments.json, claims, naive=judge.naive, runs=runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of images; see docs/data.md for the layouts")
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--peer", type=Path, help="the mended copy, imported from there")
    parser.add_argument(
        "--peer-batch", type=int, default=128, help="images of its batch (default: its own, %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=30, help="of training a side, at most (default: %(default)s)")
    parser.add_argument("--only", choices=("ours", "peer"), help="train one side alone")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="of ours (default: auto)")
    arguments = parser.parse_args()
    if arguments.only == "peer" and not arguments.peer:
        raise SystemExit("error: the peer is not given: --only peer. Give --peer PATH.")
    if arguments.peer and not (arguments.peer / "vqvae.py").is_file():
        raise SystemExit(f"error: there is no vqvae.py: {arguments.peer}. Give a mended copy of the peer.")
    return arguments


class Judge:
    """Scores what is made of the held-out images by its SSIM in their foreground."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        train, self.images = whole(data.splits["train"]), whole(data.splits["val"]).to(device)
        self.device, self.mask = device, foreground(self.images, background_value(train))
        mean = train.mean(0, keepdim=True).to(device)
        self.naive = {
            "mean image": self.score(mean.expand_as(self.images)),
            "blur of 1 pixel": self.score(gaussian_blur(self.images, 1.0)),
        }

    def score(self, y: Tensor) -> float:
        return float(foreground_scores(y, self.images, self.mask)["ssim_foreground"].nanmean())


def whole(images: ImageSet) -> Tensor:
    return images.at(range(len(images)))


class Finished(Exception):  # noqa: N818 - no error
    """All targets are reached, or the time is over."""


class Watch:
    """The clock of a training, from now on; scores it now and then.

    Args:
        side: whose training it is.
        model: that is trained.
        reconstruct: what the model makes of images (B, C, H, W).
        judge: of the reconstructions.
        minutes: after which the training ends.
    """

    def __init__(
        self, side: str, model: nn.Module, reconstruct: Callable[[Tensor], Tensor], judge: Judge, minutes: float
    ) -> None:
        self.side, self.model, self.reconstruct, self.judge, self.limit = side, model, reconstruct, judge, 60 * minutes
        self.steps, self.due, self.paused, self.started = 0, FIRST, 0.0, time.perf_counter()
        self.run: dict[str, Any] = {"reached_s": {}, "first_step_s": None, "curve": []}

    @property
    def seconds(self) -> float:
        if self.judge.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self.started - self.paused

    def step(self) -> None:
        """Count a step; raises Finished."""
        self.steps, seconds = self.steps + 1, self.seconds
        self.run["first_step_s"] = self.run["first_step_s"] or seconds
        if seconds < min(self.due, self.limit):
            return
        score, self.due = self.score(), GROWTH * seconds
        self.paused += self.seconds - seconds
        print(f"{self.side}  {seconds:6.0f} s  step {self.steps:6,}  SSIM {score:.4f}", flush=True)
        self.run["curve"].append({"seconds": seconds, "step": self.steps, "ssim_foreground": score})
        for target in TARGETS:
            if score >= target:
                self.run["reached_s"].setdefault(f"{target:.2f}", seconds)
        if seconds >= self.limit or len(self.run["reached_s"]) == len(TARGETS):
            raise Finished

    @torch.no_grad()
    def score(self) -> float:
        self.model.eval()
        # Eager: another batch size, and running without gradients, would be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            made = torch.cat([self.reconstruct(x) for x in self.judge.images.split(32)])
        self.model.train()
        return self.judge.score(made.clamp(-1, 1))


class WatchedTask(VQVAETask):
    """The VQ-VAE's own training, without its evaluations and under a watch."""

    score = ""
    watch: Watch

    def after_step(self) -> None:
        super().after_step()
        self.watch.step()

    def validate(self) -> dict[str, float]:
        return {}

    def brief(self, figures: dict[str, float]) -> str:
        return ""

    def preview(self) -> dict[str, Any]:
        return {}


def train_ours(data: ImageData, judge: Judge, minutes: float, compile: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    config = replace(PRESET.vqvae, channels=data.channels, height=data.height, width=data.width)
    model, training = VQVAE(config).to(judge.device), PRESET.vqvae_training
    changed = AugmentedSet(data.splits["train"], PRESET.augmentation, 0)
    task, precision = WatchedTask(model, data, changed), resolve_precision("auto", judge.device)
    task.watch = Watch("ours", model, lambda x: model(x).images, judge, minutes)
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The schedule by steps alone: minutes would count the scoring.
            sharpening = SharpeningConfig(**PRESET.sharpening)  # whose part comes after what is timed
            training = (sharpening.sharpen_share and sharpening.divide(training)[0]) or training
            training = replace(training, max_minutes=None)
            fit(task, training, Path(folder), device=judge.device, precision=precision, compile=compile)
        except Finished:
            pass
    return {**task.watch.run, "precision": str(precision)}


def train_peer(path: Path, batch_size: int, data: ImageData, judge: Judge, minutes: float) -> dict[str, Any]:
    """The peer's loop: its model, its losses, Adam."""
    torch.manual_seed(0)
    model = peer_module(path, "vqvae").VQVAE(in_channel=data.channels).to(judge.device).train()
    watch = Watch("peer", model, lambda x: model(x)[0], judge, minutes)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    try:
        for batch in load_batches(data.splits["train"], batch_size, 0, 0, judge.device):
            model.zero_grad()
            out, latent = model(batch["image"])
            loss = nn.functional.mse_loss(out, batch["image"]) + 0.25 * latent.mean()
            loss.backward()
            optimizer.step()
            watch.step()
    except Finished:
        pass
    return {**watch.run, "path": str(path), "batch_size": batch_size}


def claim(target: str, runs: dict[str, Any]) -> dict[str, Any]:
    """Compare the sides at a target; a peer that has not reached it counts with the time that it was given."""
    ours, peer = (runs.get(side, {}).get("reached_s", {}).get(target) for side in ("ours", "peer"))
    given = runs["peer"]["curve"][-1]["seconds"] if "peer" in runs else None
    ratio = (peer or given) / ours if ours and given else None
    return {"name": f"seconds-to-{target}", "bar": BAR, "ours_s": ours, "peer_s": peer, "ratio": ratio}


def tell(claims: list[dict[str, Any]], naive: dict[str, float]) -> None:
    """Print the table."""
    print(f"{'':16}{'ours':>12}{'peer':>12}{f'ratio (bar {BAR:g})':>16}")
    for one in claims:
        ours, peer = ("-" if one[side] is None else f"{one[side]:.0f} s" for side in ("ours_s", "peer_s"))
        ratio = "-" if one["ratio"] is None else f"{'' if one['peer_s'] else '> '}{one['ratio']:.1f}"
        print(f"{one['name']:16}{ours:>12}{peer:>12}{ratio:>16}")
    print("SSIM of the naive: " + ", ".join(f"{name} {score:.3f}" for name, score in naive.items()))


if __name__ == "__main__":
    sys.exit(main())
