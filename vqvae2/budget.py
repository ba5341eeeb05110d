"""What a model costs before it is trained: multiply-adds and time of each of its parts.

Parts of a VQ-VAE or a detail decoder are its levels; of a prior its condition stack, its two streams and its output.
Multiply-adds are those of matrix products and convolutions, counted on tensors that have a shape and no content, so
that a model of any size is counted in moments. Time is measured, and for small models alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from vqvae2.detail import DetailConfig, DetailDecoder
from vqvae2.device import autocast
from vqvae2.prior import Prior, PriorConfig
from vqvae2.vqvae import VQVAE, VQVAEConfig

__all__ = ["Part", "budget", "table"]

_BATCH = 4  # images that are timed
_MOST = 4_000_000_000  # multiply-adds an image of a model that is timed: a few seconds on one core

Config = VQVAEConfig | PriorConfig | DetailConfig
Model = VQVAE | Prior | DetailDecoder
Calls = list[tuple[str, nn.Module, str]]  # part, module, name of the method that does the part's work


class Part(NamedTuple):
    """What a part of a model costs.

    Attributes:
        name: a level of the VQ-VAE or of the detail decoder, or a part of a prior.
        multiply_adds: of one image forwards; a training step takes about three times as many.
        seconds: of four images forwards and backwards, not compiled; None: not timed.
    """

    name: str
    multiply_adds: int
    seconds: float | None


def budget(
    config: Config,
    device: str | torch.device | None = None,
    precision: torch.dtype = torch.float32,
) -> list[Part]:
    """Count the multiply-adds of a model's parts, and time them if the model is small, in evaluation mode.

    Attention counts as if every position saw every other. Losses, optimiser, dropout and, with level dropout, the
    second decoding of training are left out, as are the networks that only train a detail decoder.

    Args:
        config: of the model, which is built here and thrown away.
        device: where it is timed, up to 4e9 multiply-adds an image; None: not at all.
        precision: of the matrix products that are timed.

    Example:
        >>> parts = budget(VQVAEConfig(height=32, width=32, hidden_channels=8, residual_channels=4))
        >>> [(part.name, part.multiply_adds) for part in parts]
        [('top', 668672), ('bottom', 2711552)]
    """
    counts = _count(config)
    seconds: dict[str, float] = {}
    if device is not None and sum(counts.values()) <= _MOST:
        seconds = _time(config, torch.device(device), precision)
    return [Part(name, count, seconds.get(name)) for name, count in counts.items()]


def table(name: str, parts: Sequence[Part]) -> str:
    """Write a budget as lines of text: the whole model, then each part and its shares.

    Args:
        name: of the model.
        parts: as `budget` returns them.
    """
    whole = sum(part.multiply_adds for part in parts)
    seconds = [part.seconds for part in parts if part.seconds is not None]
    unit, letter = (1e9, "G") if whole >= 1e9 else (1e6, "M")
    told = f"{sum(seconds):.2g} s for {_BATCH} images forwards and backwards" if seconds else "not timed"
    told += ": too large" * (whole > _MOST)
    lines = [f"{'budget':11}{name}: {whole / unit:,.2f} {letter} multiply-adds an image; {told}"]
    width = max(len(part.name) for part in parts)
    for part in parts:
        line = f"{'':11}{part.name:{width}}  {part.multiply_adds / unit:9,.2f} {letter}"
        line += f"  {part.multiply_adds / whole:6.1%}"
        lines.append(line if part.seconds is None else f"{line}   time {part.seconds / sum(seconds):6.1%}")
    return "\n".join(lines)


def _count(config: Config) -> dict[str, int]:
    from torch.utils.flop_counter import FlopCounterMode  # here, as it takes half a second to import

    with torch.device("meta"):
        model = _build(config)
    # Attention as two matrix products: its fused forms are not counted on every device.
    fake, plain = FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH)
    with fake, plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to_empty(device="cpu")

        def counted(method: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
            before = counter.get_total_flops()
            return method(*arguments), (counter.get_total_flops() - before) // 2

        costs = _metered(_calls(model), counted)
        model(*_inputs(model, 1))
    return costs


def _time(config: Config, device: torch.device, precision: torch.dtype) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        model = _build(config).to(device)

    def clock() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    def timed(method: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        # Each call by itself, forwards and at once backwards, cut off from what came before it.
        arguments = _cut_off(arguments)
        started = clock()
        with autocast(device, precision):
            results = method(*arguments)
        ends = [end for end in tree_leaves(results) if isinstance(end, Tensor) and end.requires_grad]
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        return _cut_off(results), clock() - started

    costs = _metered(_calls(model), timed)
    inputs = tree_map_only(Tensor, lambda x: x.to(device), _inputs(model, _BATCH))
    for _ in range(2):  # the first makes buffers and chooses kernels
        costs.update(dict.fromkeys(costs, 0))
        model(*inputs)
    return costs


def _cut_off(values: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.detach().requires_grad_(x.requires_grad), values)


def _build(config: Config) -> Model:
    if isinstance(config, VQVAEConfig):
        return VQVAE(config).eval()
    if isinstance(config, DetailConfig):
        return DetailDecoder(config).eval()
    return Prior(replace(config, recompute=False)).eval()  # which would do a part's work twice


def _inputs(model: Model, batch: int) -> tuple[Any, ...]:
    config = model.config
    if isinstance(config, VQVAEConfig):
        return (torch.zeros(batch, config.channels, config.height, config.width),)
    shapes = config.shapes if isinstance(config, DetailConfig) else (config.shape, *config.condition_shapes)
    codes = [torch.zeros(batch, *shape, dtype=torch.int64) for shape in shapes]
    return (codes,) if isinstance(config, DetailConfig) else (codes[0], codes[1:])


def _calls(model: Model) -> Calls:
    if isinstance(model, VQVAE):
        stacks = (model.encoders, model.to_code, model.quantizers, model.decoders)
        parts = [(level, stack[i], "forward") for i, level in enumerate(model.levels) for stack in stacks]
        return parts + [(model.levels[i], stack, "forward") for i, stack in enumerate(model.conditioners)]
    if isinstance(model, DetailDecoder):
        levels, drawn = model.config.vqvae.levels, model.config.drawn_levels
        begins = ((0, model.decoders), (drawn - 1, model.painters), (drawn, model.to_vectors))
        return [(level, part, "forward") for i, own in begins for level, part in zip(levels[i:], own, strict=True)]
    calls: Calls = [("condition stack", model.condition, "forward")] if model.condition is not None else []
    calls += [("vertical stream", model.input_v, "forward")]
    calls += [("vertical stream", block, "above") for block in model.blocks]
    calls += [("horizontal stream", model.input_h, "forward")]
    calls += [("horizontal stream", layer, "within") for layer in (*model.blocks, *model.attention.values())]
    output = (*model.output_blocks, *([model.head] if model.head is not None else []), model.output_norm, model.output)
    return calls + [("output", layer, "forward") for layer in output]


def _metered(calls: Calls, measure: Callable[..., tuple[Any, Any]]) -> dict[str, Any]:
    """Let the calls of a model go through ``measure``, which returns a call's result and its cost; sums by part."""
    costs: dict[str, Any] = dict.fromkeys((part for part, _, _ in calls), 0)

    def through(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result, cost = measure(method, *arguments)
            costs[part] += cost
            return result

        return call

    for part, module, name in calls:
        setattr(module, name, through(part, getattr(module, name)))
    return costs
