"""Time exact sampling of one level against the usual way, a whole forward pass for every code.

    python benchmarks/sampling.py --json FILE [--peer PATH] [--only NAME ...]

PATH is a checkout of rosinality/vq-vae-2-pytorch, whose model is imported from there. Both sides have random weights,
16 gated blocks of 256 channels, kernel 5 and K = 512; the top has four attention layers, the bottom none and three
condition blocks; parameters agree within a tenth. Ours is timed over a whole map. The peer's forward pass at row r
covers rows 0 to r and is repeated for every code of the row; its time is measured at some heights, interpolated
linearly between them, and summed over all rows.

Beside it stands the floor of the sequential part: the bytes of weights that one position must read, over the memory
bandwidth measured in the same run.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import tell_sizes
from torch import nn

from vqvae2 import Prior, PriorConfig
from vqvae2.sampling import sample_codes

K, CHANNELS = 512, 256


@dataclass(frozen=True)
class Claim:
    """One comparison: a level, a batch size, and the ratio that is to be reached on two CPU cores."""

    name: str
    level: str
    batch: int
    bar: float
    bf16_bar: float | None
    heights: tuple[int, ...]

    @property
    def size(self) -> int:
        return 32 if self.level == "top" else 64


CLAIMS = (
    Claim("sample-top-32x32-b1", "top", 1, 60, 100, (1, 4, 8, 16, 24, 32)),
    Claim("sample-top-32x32-b16", "top", 16, 250, None, (1, 4, 8, 16, 24, 32)),
    Claim("sample-bottom-64x64-b16", "bottom", 16, 1000, None, (1, 8, 24, 44, 64)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="file for the figures")
    parser.add_argument("--peer", type=Path, help="checkout of rosinality/vq-vae-2-pytorch")
    parser.add_argument("--only", nargs="*", default=[], help="names of claims; default: all")
    parser.add_argument("--device", default="cpu", help="device (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed maps of ours; the median counts (default: 3)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    bandwidth = measure_bandwidth(device)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    print(f"memory bandwidth, reading: {bandwidth / 1e9:.1f} GB/s")
    rows = []
    for claim in CLAIMS:
        if arguments.only and claim.name not in arguments.only:
            continue
        prior = our_prior(claim).to(device)
        peer = load_peer(arguments.peer, claim).to(device) if arguments.peer else None
        print(f"\n{claim.name}")
        counts = tell_sizes(prior, peer)
        peer_s, timed = peer_seconds(peer, claim, device) if peer is not None else (None, {})
        for precision, suffix in ((torch.float32, ""), (torch.bfloat16, "-bf16")):
            ours_s = our_seconds(prior.to(precision), claim, device, arguments.repeats)
            row: dict[str, Any] = {
                "name": claim.name + suffix,
                "ours_s": ours_s,
                "peer_s": peer_s,
                "ratio": peer_s / ours_s if peer_s else None,
                "bar": claim.bf16_bar if suffix else claim.bar,
                "batch": claim.batch,
                "peer_rows_timed": timed,
                "parameters": counts,
                **floor(prior, claim, ours_s, bandwidth),
            }
            rows.append(row)
            ratio = f"ratio {row['ratio']:.0f} (bar {row['bar']}), peer {peer_s:.1f} s" if peer_s else "no peer given"
            print(
                f"  {row['name']}: {ours_s:.2f} s, {ratio}; {row['position_ms']:.2f} ms a position, "
                f"floor {row['floor_ms']:.2f} ms for {row['sequential_bytes'] / 1e6:.1f} MB of in-row weights"
            )
            if device.type == "cuda":
                row["kernels"] = kernels(prior, claim, device)
                row["kernel_us"] = 1e6 * ours_s / row["kernels"]
                print(f"  {row['kernels']:,} kernels a map, {row['kernel_us']:.2f} us each")
        prior.float()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"bandwidth_bytes_per_s": bandwidth, "claims": rows}, indent=2) + "\n")
    print(f"wrote {arguments.json}")
    return 0


def our_prior(claim: Claim) -> Prior:
    """Build our prior of a claim's size, with random weights everywhere."""
    top = claim.level == "top"
    config = PriorConfig(
        level=claim.level,
        height=claim.size,
        width=claim.size,
        num_embeddings=K,
        embedding_dim=64,
        channels=CHANNELS,
        residual_channels=CHANNELS,
        vertical_channels=1040,
        num_layers=16,
        kernel_size=5,
        attention_every=4 if top else 0,
        num_heads=8,
        condition_levels=() if top else ("top",),
        condition_shapes=() if top else ((32, 32),),
        condition_num_embeddings=() if top else (K,),
        condition_layers=3,
        position_logits=False,
    )
    prior = Prior(config).eval()
    for parameter in prior.parameters():  # some start at zero; denormals and zeros must not flatter us
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 / 2)
    return prior


def load_peer(path: Path, claim: Claim) -> nn.Module:
    """Build the peer's model from its checkout."""
    spec = importlib.util.spec_from_file_location("peer_pixelsnail", path / "pixelsnail.py")
    if spec is None or spec.loader is None or not (path / "pixelsnail.py").is_file():
        raise SystemExit(f"error: there is no pixelsnail.py: {path}. Give a checkout of rosinality/vq-vae-2-pytorch.")
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        shape = [claim.size, claim.size]
        if claim.level == "top":
            peer = module.PixelSNAIL(shape, K, CHANNELS, 5, 4, 4, CHANNELS, dropout=0.1)
        else:
            options = {"attention": False, "n_cond_res_block": 3, "cond_res_channel": CHANNELS}
            peer = module.PixelSNAIL(shape, K, CHANNELS, 5, 4, 4, CHANNELS, dropout=0.1, **options)
    return peer.eval()


@torch.no_grad()
def our_seconds(prior: Prior, claim: Claim, device: torch.device, repeats: int) -> float:
    """Time whole maps; the median."""
    positions = claim.size**2
    uniform = torch.rand(claim.batch, positions, dtype=torch.float64, device=device)
    condition = [] if claim.level == "top" else [torch.randint(K, (claim.batch, 32, 32), device=device)]
    seconds = []
    for _ in range(repeats):
        started = clock(device)
        sample_codes(prior, uniform, condition)
        seconds.append(clock(device) - started)
    return statistics.median(seconds)


@torch.no_grad()
def peer_seconds(peer: nn.Module, claim: Claim, device: torch.device) -> tuple[float, dict[str, float]]:
    """Time single forward passes at some heights, and integrate over the map."""
    condition = None if claim.level == "top" else torch.randint(K, (claim.batch, 32, 32), device=device)
    cache: dict = {}
    seconds = []
    for height in claim.heights:
        codes = torch.randint(K, (claim.batch, height, claim.size), device=device)
        _, cache = peer(codes, condition=condition, cache=cache)  # the condition is computed once, as in its sampler
        times = []
        for _ in range(3 if height <= 8 and claim.batch == 1 else 1):
            started = clock(device)
            peer(codes, condition=condition, cache=cache)
            times.append(clock(device) - started)
        seconds.append(min(times))
    by_height = np.interp(np.arange(1, claim.size + 1), claim.heights, seconds)
    return float(by_height.sum() * claim.size), dict(zip(map(str, claim.heights), seconds, strict=True))


def floor(prior: Prior, claim: Claim, seconds: float, bandwidth: float) -> dict[str, float]:
    """The least time of the sequential part: every position reads the weights of the in-row layers once."""
    modules: list[nn.Module] = [prior.output, prior.input_h, *prior.attention.values()]
    for block in prior.blocks:
        modules += [block.columns, block.out_h, block.norm_h]  # type: ignore[list-item]
    size = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    return {
        "position_ms": 1e3 * seconds / claim.size**2,
        "sequential_bytes": size,
        "floor_ms": 1e3 * size / bandwidth,
    }


@torch.no_grad()
def kernels(prior: Prior, claim: Claim, device: torch.device) -> int:
    """Count the kernels that one map takes on CUDA, the row that is tried before it is recorded left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        our_seconds(prior, claim, device, 1)
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return round(len(on_device) * claim.size / (claim.size + 1))


def measure_bandwidth(device: torch.device) -> float:
    """Bytes read in a second, from a sum over 1 GiB."""
    block = torch.ones(1 << 28, device=device)
    best = float("inf")
    for _ in range(5):
        started = clock(device)
        block.sum()
        best = min(best, clock(device) - started)
    return block.numel() * 4 / best


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main())
