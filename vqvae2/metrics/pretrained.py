"""Images as a pretrained network sees them: distances between sets, and of an image from another."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vqvae2.errors import UserError

WEIGHTS = "mobilenet_v2-b0353104.pth"
"""torchvision's ``MobileNet_V2_Weights.IMAGENET1K_V1``."""

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's, converted from those that TensorFlow published."""

_TAPS = (1, 3, 6, 13, 17)
"""Blocks of MobileNetV2 compared by `perceptual_distance`: the last at each resolution, half to a thirty-second."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def features(images: Tensor, chunk: int = 32) -> Tensor:
    """Compute torchvision's MobileNetV2 features of images, pooled over the frame.

    Grey images are repeated to RGB. Images keep their own size: scaled up to the 224 pixels of ImageNet, a blur of
    0.5 pixels would be hard to tell from none.

    Args:
        images: (N, C, H, W) in [-1, 1], C 1 or 3.
        chunk: images at once.

    Returns:
        (N, 1280) float32 on the CPU.

    Raises:
        UserError: the weights are not in torch's cache. Nothing is downloaded.

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018; trained on ImageNet.
    """
    network = _mobilenet(_cached(WEIGHTS)).to(images.device)
    return _in_parts(lambda part: network(_normalised(part)).mean((2, 3)), images, chunk, 1280)


def check_features() -> None:
    """Raise UserError unless `features` and `perceptual_distance` can be computed, with the command that helps."""
    _mobilenet(_cached(WEIGHTS))


def perceptual_distance(y: Tensor, x: Tensor) -> Tensor:
    """Compare images y with images x by MobileNetV2's features at five resolutions, through which gradients reach y.

    Features are scaled to unit length at each position, their squared differences summed over channels, averaged over
    positions, and over the five maps: LPIPS without its learned weights. 0 for equal images, at most 4.

    Args:
        y: (B, C, H, W) in [-1, 1], C 1 or 3.
        x: like y.

    Returns:
        (B,) float32.

    Raises:
        UserError: the weights are not in torch's cache. Nothing is downloaded.

    Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", 2018, equation 1.
    """
    with torch.no_grad():
        target = feature_maps(x)
    return maps_distance(feature_maps(y), target)


def feature_maps(images: Tensor) -> list[Tensor]:
    """Compute MobileNetV2's features of images at five resolutions, with gradients.

    Args:
        images: (B, C, H, W) in [-1, 1], C 1 or 3.

    Returns:
        (B, F, h, w) float32 each: 16, 24, 32, 96 and 320 features, at a half to a thirty-second of the resolution.

    Raises:
        UserError: the weights are not in torch's cache. Nothing is downloaded.
    """
    network = _mobilenet(_cached(WEIGHTS)).to(images.device)
    with torch.autocast(images.device.type, enabled=False):
        maps, x = [], _normalised(images.float())
        for index, block in enumerate(network.children()):
            if index > _TAPS[-1]:
                break
            x = block(x)
            if index in _TAPS:
                maps.append(x)
        return maps


def maps_distance(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Compare images by their `feature_maps`, as `perceptual_distance` does: (B,)."""
    unit = (
        (F.normalize(a, dim=1, eps=1e-10), F.normalize(b, dim=1, eps=1e-10)) for a, b in zip(maps, others, strict=True)
    )
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in unit]).mean(0)


def named_features(name: str) -> Callable[[Tensor], Tensor]:
    """Return a function from images (N, C, H, W) in [-1, 1], C 1 or 3, to features (N, d), float32 on the CPU.

    Args:
        name: a classifier of torchvision, such as ``resnet50``: what its last linear layer takes, of images at their
            own size unless it takes one size alone; ``inception``: the 2,048 features of the FID, by torch-fidelity,
            which scales images to 299 pixels as TensorFlow did; ``module:function``: your own function.

    Raises:
        UserError: there is no such network, or its weights are not in torch's cache. Nothing is downloaded.
    """
    if ":" in name:
        return _own(name)
    return _inception() if name == "inception" else _torchvision(name)


def _in_parts(network: Callable[[Tensor], Tensor], images: Tensor, chunk: int, dims: int = 0) -> Tensor:
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        parts = [network(part).flatten(1).float().cpu() for part in images.float().split(chunk) if len(part)]
    return torch.cat(parts) if parts else torch.zeros(0, dims)


def _normalised(images: Tensor) -> Tensor:
    """From [-1, 1] to ImageNet's mean and deviation, grey to RGB."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (_MEAN, _STD))
    return ((images + 1) / 2 - mean) / std


def _cached(file: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def _read(path: Path, name: str, download: str) -> dict[str, Any]:
    """Weights from torch's cache."""
    if not path.is_file():
        raise UserError(f"{name}'s weights are not there", path, f'Download them: python -c "{download}"')
    with _readable(name, path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _readable(name: str, path: Path) -> Iterator[None]:
    """Tell in a line what goes wrong with a file of weights."""
    try:
        yield
    except Exception as error:  # torch raises many kinds, of many lines
        raise UserError(f"{name}'s weights cannot be read ({type(error).__name__})", path, "Delete the file") from None


@functools.lru_cache(maxsize=1)
def _mobilenet(path: Path) -> nn.Module:
    download = "import torchvision; torchvision.models.mobilenet_v2(weights='IMAGENET1K_V1')"
    weights = _read(path, "MobileNetV2", download)
    from torchvision.models import mobilenet_v2  # here, as it takes a second to import

    with torch.device("meta"):  # no random start, which would move the random numbers of the program
        network = mobilenet_v2()
    with _readable("MobileNetV2", path):
        network.load_state_dict(weights, assign=True)
    return _without_norms(network.features.eval()).requires_grad_(False)


def _without_norms(network: nn.Module) -> nn.Module:
    """Take each batch norm into the convolution before it: the same features in less time."""
    for stack in network.modules():
        if isinstance(stack, nn.Sequential):
            for at, (layer, norm) in enumerate(pairwise(stack)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    stack[at], stack[at + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return network


def _torchvision(name: str) -> Callable[[Tensor], Tensor]:
    from torchvision import models

    if name not in models.list_models(module=models):
        known = "resnet50 or another of torchvision's, inception, or module:function"
        raise UserError(f"torchvision has no classifier {name}", "--features", f"Give {known}")
    weights = models.get_model_weights(name).DEFAULT
    download = f"import torchvision; torchvision.models.get_model('{name}', weights='DEFAULT')"
    path = _cached(Path(weights.url).name)
    _read(path, name, download)  # safely, before torchvision does
    with _readable(name, path), torch.random.fork_rng(devices=[]):
        network = models.get_model(name, weights=weights).eval().requires_grad_(False)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"{name} has no linear layer, whose input would be its features", "--features", "Give another")
    taken: list[Tensor] = []
    layers[-1].register_forward_pre_hook(lambda _module, given: taken.append(given[0]))
    side = getattr(network, "image_size", None)

    def compute(images: Tensor) -> Tensor:
        x = _normalised(images)
        if side:
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        network.to(x.device)(x)
        return taken.pop()

    return _told(name, compute)


def _inception() -> Callable[[Tensor], Tensor]:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(
            "Inception's features need torch-fidelity", "--features inception", "pip install torch-fidelity"
        ) from None
    path = _cached(INCEPTION_WEIGHTS)
    download = f"import torch; torch.hub.load_state_dict_from_url('{URL_INCEPTION_V3}')"
    _read(path, "Inception", download)  # safely, before torch-fidelity does
    with _readable("Inception", path), torch.random.fork_rng(devices=[]):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))

    def compute(images: Tensor) -> Tensor:
        bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return network.to(images.device)(bytes_.expand(-1, 3, -1, -1))[0]

    return _told("inception", compute)


def _own(name: str) -> Callable[[Tensor], Tensor]:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m has it
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # of the user's code
        raise UserError(f"{name} cannot be imported ({error})", "--features", "Give module:function") from None

    def compute(images: Tensor) -> Tensor:
        made = torch.as_tensor(found(images))
        if made.ndim != 2 or len(made) != len(images) or not made.isfinite().all():
            raise UserError(
                f"{name} returned {tuple(made.shape)} for {len(images)} images",
                "--features",
                "Return finite numbers, a row for each image",
            )
        return made

    return _told(name, compute)


def _told(name: str, network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function of images in parts; what goes wrong in it becomes one line."""

    def compute(images: Tensor) -> Tensor:
        try:
            return _in_parts(network, images, 32)
        except UserError:
            raise
        except Exception as error:  # of any network, such as one that takes another size alone
            size = "x".join(map(str, images.shape[2:]))
            raise UserError(
                f"{name} cannot compute features of images of {size} ({type(error).__name__}: {error})", "--features"
            ) from None

    return compute
