"""Small priors with all parts awake, for the tests of the causal layers, the priors and the sampler."""

import torch
from torch import Tensor, nn

from vqvae2.prior import Prior, PriorConfig

ATTRIBUTES = (("diagnosis", ("healthy", "atrophy")), ("sex", ("female", "male", "other")))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, in float64 and evaluation mode.

    Output projections start at zero, which would hide from a test whatever lies behind them.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        with torch.no_grad():
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (fan_in**-0.5 if parameter.ndim > 1 else 0.1))
    return module.double().eval()


def tiny_prior(
    shape: tuple[int, int] = (3, 4),
    condition_shapes: tuple[tuple[int, int], ...] = (),
    labelled: bool = False,
    seed: int = 0,
    **settings: object,
) -> Prior:
    """Build a randomised prior of 7 codes, in float64; its coarser levels have 5, 6, ... codes, top first."""
    names = ("top", "middle", "bottom")[: len(condition_shapes) + 1]
    config = {
        "embedding_dim": 3,
        "channels": 8,
        "residual_channels": 6,
        "num_layers": 2,
        "kernel_size": 3,
        "num_heads": 2,
        "output_layers": 1,
        "condition_layers": 1,
        **settings,
    }
    prior = Prior(
        PriorConfig(
            level=names[-1],
            height=shape[0],
            width=shape[1],
            num_embeddings=7,
            condition_levels=names[:-1],
            condition_shapes=condition_shapes,
            condition_num_embeddings=tuple(range(5, 5 + len(condition_shapes))),
            attributes=ATTRIBUTES if labelled else (),
            **config,  # type: ignore[arg-type]
        )
    )
    randomise(prior, seed)
    positions, generator = shape[0] * shape[1], torch.Generator().manual_seed(seed)
    prior.start_from(position_log_p=torch.randn(positions, 7, generator=generator, dtype=torch.float64).log_softmax(-1))
    return prior


def tiny_inputs(config: PriorConfig, batch: int, seed: int = 0) -> tuple[Tensor, list[Tensor] | None, Tensor | None]:
    """Draw codes, condition and label for a prior; the last label of all is missing."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(config.num_embeddings, (batch, *config.shape), generator=generator)
    condition = [
        torch.randint(k, (batch, *shape), generator=generator)
        for k, shape in zip(config.condition_num_embeddings, config.condition_shapes, strict=True)
    ]
    if not config.attributes:
        return codes, condition or None, None
    label = torch.stack(
        [torch.randint(len(classes), (batch,), generator=generator) for _, classes in config.attributes], 1
    )
    label[-1, -1] = -1
    return codes, condition or None, label
