"""Images per second of the VQ-VAE's training against the usual code, and what the speed costs in quality.

    python benchmarks/training.py --json FILE [--peer PATH] [--only train-vqvae-64 train-vqvae-128]

The same architecture on both sides: two levels, hidden 128, residual 32, K = 512, D = 64, decoded upper levels of 64
channels, grey images of the phantom, each side in a process of its own.
`train-vqvae-256` is for CUDA and is left out where there is none; the others are for the CPU.
Ours is the step of `train_vqvae.py` with its defaults (bf16 where the processor multiplies it fast, channels_last,
torch.compile), its batches cut from the data set; the peer's is its own loop without its loading and pictures: forward,
backward, Adam, and the loss fetched at every step.

Beside it, quality: mean loss over the last 50 of 200 steps, ours with everything against ours in fp32, eager and
contiguous, from the same start with the same batches; and, for the noise, the latter with another order of the batches.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import apart, in_pairs, parse, peer_module, tell, tell_sizes, write
from torch import nn

from vqvae2.batches import EpochBatches
from vqvae2.data import DataConfig, ImageSet, open_data
from vqvae2.device import autocast, compile_modules, keep_freed_memory, resolve_precision
from vqvae2.optim import TrainingConfig, make_optimizer
from vqvae2.vqvae import VQVAE, VQVAEConfig

# Side of the images, batch, device, and the ratio that was set as an aim.
CLAIMS = {
    "train-vqvae-64": (64, 16, "cpu", 2.5),
    "train-vqvae-128": (128, 8, "cpu", 2.5),
    "train-vqvae-256": (256, 128, "cuda", 3),
}
BLOCK, STEPS = 10, 200


def main() -> int:
    arguments = parse(__doc__, 7, CLAIMS)
    peer, claims = arguments.peer, []
    for name, (size, batch, device, bar) in CLAIMS.items():
        if arguments.only and name not in arguments.only:
            continue
        if device == "cuda" and not torch.cuda.is_available():
            print(f"{name}: left out, there is no CUDA here")
            continue
        tell_sizes(our_model(size), peer_model(peer) if peer else None)
        fast = block(apart(our_steps, size, batch, device, True))
        usual = block(apart(peer_steps, peer, size, batch, device)) if peer else None
        for steps in (fast, usual):
            if steps is not None:  # compiling, and the start of the codebooks
                steps()
        timed = in_pairs(fast, usual, arguments.repeats)
        rate, other = (BLOCK * batch / timed[side] if timed[side] else None for side in ("ours_s", "peer_s"))
        told = f"ours {rate:.1f} images/s" + (f", peer {other:.1f}" if other else "")
        losses = {
            "fast": last_losses(our_steps(size, batch, device, fast=True)),
            "fp32": last_losses(our_steps(size, batch, device, fast=False)),
            "fp32, another order": last_losses(our_steps(size, batch, device, fast=False, seed=1)),
        }
        told += "; loss after 200 steps: " + ", ".join(f"{how} {value:.5f}" for how, value in losses.items())
        claims.append({"name": name, "bar": bar, **timed, "images_per_second": rate, "losses": losses, "told": told})
        tell(claims[-1])
    return write(arguments.json, claims)


def block(step: Callable[[], None]) -> Callable[[], object]:
    def run() -> None:
        for _ in range(BLOCK):
            step()

    return run


def phantom(size: int) -> ImageSet:
    return open_data(DataConfig(data="phantom", phantom_images=1000, size=f"{size}x{size}")).splits["train"]


def last_losses(steps: Iterator[float]) -> float:
    return float(np.mean([next(steps) for _ in range(STEPS)][-50:]))


def our_model(size: int) -> VQVAE:
    torch.manual_seed(0)
    config = VQVAEConfig(height=size, width=size, hidden_channels=128, residual_channels=32, joint_channels=64)
    return VQVAE(config).train()


def peer_model(path: Path) -> nn.Module:
    torch.manual_seed(0)
    return peer_module(path, "vqvae").VQVAE(in_channel=1).train()


def our_steps(size: int, batch: int, device: str, fast: bool, seed: int = 0) -> Iterator[float]:
    """Train step after step, as the stage does; yields the loss."""
    images, model, where = phantom(size), our_model(size).to(device), torch.device(device)
    torch.compiler.reset()
    precision = torch.float32
    if not fast:
        model.to(memory_format=torch.contiguous_format)
    else:
        keep_freed_memory()
        precision = resolve_precision("auto", where)
        print(compile_modules("auto", [*model.encoders, *model.decoders]))
    training = TrainingConfig(batch_size=batch, learning_rate=3e-4)
    parameters = list(model.parameters())
    optimizer = make_optimizer(training, [model], where)
    for rows in EpochBatches(len(images), batch, seed):
        with autocast(where, precision):
            loss, _, _ = model.loss(images.at(rows).to(where))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_codebooks()
        yield float(loss)


def peer_steps(path: Path, size: int, batch: int, device: str) -> Iterator[float]:
    """The peer's loop: its model, its losses, Adam."""
    images, model = phantom(size), peer_model(path).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for rows in EpochBatches(len(images), batch, 0):
        x = images.at(rows).to(device)
        model.zero_grad()
        out, latent = model(x)
        loss = nn.functional.mse_loss(out, x) + 0.25 * latent.mean()
        loss.backward()
        optimizer.step()
        yield loss.item()


if __name__ == "__main__":
    sys.exit(main())
