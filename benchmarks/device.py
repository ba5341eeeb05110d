"""What a device does in a minute: a table to paste into an issue. `make test-cuda` runs it after the tests.

    python benchmarks/device.py [--device cuda] [--seconds 5]

The models of the preset brain128 on random images and codes: training steps of the VQ-VAE and of each prior, encoding,
and the sampling of 16 images, each for --seconds after a few steps that do not count. Eager, in the precision that the
stages take by themselves.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from vqvae2 import VQVAE, Prior
from vqvae2.device import autocast, forbid_tf32, keep_freed_memory, resolve_device, resolve_precision
from vqvae2.optim import make_optimizer
from vqvae2.presets import PRESETS
from vqvae2.sampling import sample
from vqvae2.version import __version__

PRESET, WARM = PRESETS["brain128"], 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--seconds", type=float, default=5, help="of each row (default: %(default)s)")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    precision = resolve_precision("auto", device)
    keep_freed_memory()
    forbid_tf32()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} of {platform.machine()}"
    print(f"vqvae2 {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {name}, {precision}\n")
    print(f"| {'what':<42} | {'a second':>10} | {'peak memory':>12} |\n|{'-' * 44}|{'-' * 12}|{'-' * 14}|")

    def row(what: str, items: int, step: Callable[[], object]) -> None:
        for _ in range(WARM):
            step()
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < arguments.seconds:
            step()
            wait(device)
            count += 1
        rate = items * count / (time.perf_counter() - started)
        memory = f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB" if device.type == "cuda" else "-"
        print(f"| {what:<42} | {rate:>10,.1f} | {memory:>12} |", flush=True)

    torch.manual_seed(0)
    model = VQVAE(PRESET.vqvae).to(device)
    batch = PRESET.vqvae_training.batch_size
    x = torch.rand(batch, 1, 128, 128, device=device) * 2 - 1
    optimizer = make_optimizer(PRESET.vqvae_training, [model], device, precision)

    def train_vqvae() -> None:
        with autocast(device, precision):
            loss = model.train().loss(x)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.update_codebooks()

    while not model.initialized:
        train_vqvae()
    row(f"VQ-VAE, training, images, batches of {batch}", batch, train_vqvae)
    with torch.no_grad():
        row("VQ-VAE, encoding in fp32, images", batch, lambda: model.eval().encode(x))
        codes = model.encode(x)
    priors = []
    levels, shapes, sizes = model.levels, model.config.shapes, model.config.num_embeddings
    for index, level in enumerate(levels):
        prior = Prior(PRESET.prior_for(index, levels, shapes, sizes, {})).to(device)
        training = PRESET.prior(index)[1]
        own = make_optimizer(training, [prior], device, precision)

        def train_prior(prior: Prior = prior, own: torch.optim.Optimizer = own, index: int = index) -> None:
            with autocast(device, precision):
                logits = prior.train()(codes[index], condition=codes[:index])
                loss = F.cross_entropy(logits, codes[index])
            loss.backward()
            own.step()
            own.zero_grad(set_to_none=True)

        h, w = shapes[index]
        row(f"prior of {level}, {h}x{w}, training, images", batch, train_prior)
        priors.append(prior.eval())
    row("sampling, exact, images, chunks of 16", 16, lambda: sample(model, priors, num=16))
    return 0


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


if __name__ == "__main__":
    sys.exit(main())
