"""Codes per second and memory of the prior's training against the usual code.

    python benchmarks/prior.py --json FILE [--peer PATH] [--only train-prior-32x32 prior-memory-64x64]

Both sides: 256 channels, 4 x 4 residual blocks, kernel 5, K = 512, attention after every fourth block, dropout 0.1;
parameters agree within a tenth. Ours is the step of `train_prior.py` with its defaults (bf16 where the processor
multiplies it fast, torch.compile); each side trains in a process of its own.

Memory is the peak of a training step at 64x64 and batch 4 in a fresh process, above model and inputs: ours in its
default precision, and beside it in fp32, and so with `--recompute` (activation checkpointing). The peer holds (H W)^2
attention weights in every layer: batch 4 fits few machines, so its peak is measured at batch 1 and 2 and continued
along the line through them.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from common import apart, in_pairs, parse, peak_bytes, peer_module, tell, tell_sizes, write
from torch import nn

from vqvae2 import Prior, PriorConfig
from vqvae2.device import autocast, compile_modules, keep_freed_memory, resolve_precision
from vqvae2.optim import TrainingConfig, make_optimizer

K, CHANNELS, BATCH = 512, 256, 4
BARS = {"train-prior-32x32": 2, "prior-memory-64x64": 4}
CPU = torch.device("cpu")


def main() -> int:
    arguments = parse(__doc__, 5, BARS)
    peer = arguments.peer
    claims = []
    if not arguments.only or "train-prior-32x32" in arguments.only:
        tell_sizes(our_prior(32), peer_prior(peer, 32) if peer else None)
        fast, usual = apart(our_steps, 32), apart(peer_steps, peer, 32) if peer else None
        for step in (fast, usual):
            if step is not None:
                step(), step()
        timed = in_pairs(fast, usual, arguments.repeats)
        rate, other = (BATCH * 32 * 32 / timed[side] if timed[side] else None for side in ("ours_s", "peer_s"))
        told = f"ours {rate:,.0f} codes/s" + (f", peer {other:,.0f}" if other else "")
        claims.append({"name": "train-prior-32x32", "bar": BARS["train-prior-32x32"], **timed, "told": told})
        tell(claims[-1])
    if not arguments.only or "prior-memory-64x64" in arguments.only:
        own = peak_bytes(our_step_once, 64, BATCH)
        wide = peak_bytes(our_step_once, 64, BATCH, False, torch.float32)
        kept = peak_bytes(our_step_once, 64, BATCH, True, torch.float32)
        told = f"ours {own / 2**30:.2f} GiB, in fp32 {wide / 2**30:.2f}, with --recompute {kept / 2**30:.2f}"
        others, one = None, None
        if peer:
            one, two = (peak_bytes(peer_step_once, peer, 64, batch) for batch in (1, 2))
            others = one + (BATCH - 1) * (two - one)
            told += f"; peer {others / 2**30:.2f} (batch 1 {one / 2**30:.2f}, batch 2 {two / 2**30:.2f})"
        figures = {"ours_bytes": own, "peer_bytes": others, "ratio": others / own if others else None}
        figures |= {"ours_fp32_bytes": wide, "ours_fp32_recompute_bytes": kept, "peer_batch_1_bytes": one}
        claims.append({"name": "prior-memory-64x64", "bar": BARS["prior-memory-64x64"], **figures, "told": told})
        tell(claims[-1])
    return write(arguments.json, claims)


def our_prior(size: int, recompute: bool = False) -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(
        height=size,
        width=size,
        num_embeddings=K,
        channels=CHANNELS,
        residual_channels=CHANNELS,
        vertical_channels=1040,
        num_layers=16,
        kernel_size=5,
        attention_every=4,
        dropout=0.1,
        position_logits=False,
        recompute=recompute,
    )
    return Prior(config).train()


def peer_prior(path: Path, size: int) -> nn.Module:
    torch.manual_seed(0)
    model = peer_module(path, "pixelsnail").PixelSNAIL([size, size], K, CHANNELS, 5, 4, 4, CHANNELS, dropout=0.1)
    return model.train()


def our_steps(size: int) -> Iterator[float]:
    """Train step after step, as the stage does; yields the loss."""
    keep_freed_memory()
    prior, precision = our_prior(size), resolve_precision("auto", CPU)
    print(compile_modules("auto", [prior]))
    training = TrainingConfig()
    parameters = list(prior.parameters())
    optimizer = make_optimizer(training, [prior], CPU)
    while True:
        codes = torch.randint(K, (BATCH, size, size))
        with autocast(CPU, precision):
            loss = F.cross_entropy(prior(codes), codes)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss)


def peer_steps(path: Path, size: int) -> Iterator[float]:
    """The peer's loop: its model, its loss, Adam."""
    model = peer_prior(path, size)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    while True:
        codes = torch.randint(K, (BATCH, size, size))
        model.zero_grad()
        out, _ = model(codes)
        loss = F.cross_entropy(out, codes)
        loss.backward()
        optimizer.step()
        yield loss.item()


def our_step_once(
    size: int, batch: int, recompute: bool = False, precision: torch.dtype | None = None
) -> Callable[[], object]:
    prior, codes = our_prior(size, recompute), torch.randint(K, (batch, size, size))
    precision = precision or resolve_precision("auto", CPU)

    def step() -> None:
        with autocast(CPU, precision):
            loss = F.cross_entropy(prior(codes), codes)
        loss.backward()

    return step


def peer_step_once(path: Path, size: int, batch: int) -> Callable[[], object]:
    model, codes = peer_prior(path, size), torch.randint(K, (batch, size, size))
    return lambda: F.cross_entropy(model(codes)[0], codes).backward()


if __name__ == "__main__":
    sys.exit(main())
