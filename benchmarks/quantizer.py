"""Time and memory of one training step of the quantiser against the usual one, on 524,288 vectors of 64 dimensions.

    python benchmarks/quantizer.py --json FILE [--peer PATH]

K = 512, forward and backward in fp32, with the codebook's update. Memory is the peak of a fresh process above its
inputs, the outputs counted. The ratios are peer / ours: how many times less.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from common import in_pairs, parse, peak_bytes, peer_module, tell, write
from torch import Tensor

from vqvae2.quantizer import QuantizerConfig, VectorQuantizer

VECTORS, DIMENSIONS, K = 524_288, 64, 512
BARS = {"quantizer-time": 3, "quantizer-memory": 6}


def main() -> int:
    arguments = parse(__doc__, 7, BARS)
    peer = arguments.peer
    claims = []
    if not arguments.only or "quantizer-time" in arguments.only:
        ours, other = our_step(), peer_step(peer) if peer else None
        for call in (ours, other):
            if call is not None:
                call()
        timed = in_pairs(ours, other, arguments.repeats)
        told = f"ours {timed['ours_s']:.3f} s" + (f", peer {timed['peer_s']:.3f} s" if peer else "")
        claims.append({"name": "quantizer-time", "bar": BARS["quantizer-time"], **timed, "told": told})
        tell(claims[-1])
    if not arguments.only or "quantizer-memory" in arguments.only:
        own, others = peak_bytes(our_step), peak_bytes(peer_step, peer) if peer else None
        told = f"ours {own / 2**20:.0f} MiB" + (f", peer {others / 2**20:.0f} MiB" if others else "")
        figures = {"ours_bytes": own, "peer_bytes": others, "ratio": others / own if others else None}
        claims.append({"name": "quantizer-memory", "bar": BARS["quantizer-memory"], **figures, "told": told})
        tell(claims[-1])
    return write(arguments.json, claims)


def vectors() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(VECTORS, DIMENSIONS, requires_grad=True)


def our_step() -> Callable[[], object]:
    """Prepare a step of ours: past its start, so that it is a training step like any other."""
    quantizer, x = VectorQuantizer(K, DIMENSIONS, QuantizerConfig(init_vectors=4096)).train(), vectors()
    quantizer(x[:8192].detach())
    quantizer.update()

    def step() -> object:
        x.grad = None
        out = quantizer(x)
        (out.vectors.sum() + out.loss).backward()
        quantizer.update()
        return out

    return step


def peer_step(path: Path) -> Callable[[], object]:
    """Prepare a step of the peer's."""
    quantizer, x = peer_module(path, "vqvae").Quantize(DIMENSIONS, K).train(), vectors()

    def step() -> object:
        x.grad = None
        quantized, loss, codes = quantizer(x)
        (quantized.sum() + loss).backward()
        return quantized, codes

    return step


if __name__ == "__main__":
    sys.exit(main())
