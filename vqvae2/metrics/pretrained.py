"""Images as a pretrained network sees them, for distances between sets."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from vqvae2.errors import UserError

WEIGHTS = "mobilenet_v2-b0353104.pth"
"""torchvision's ``MobileNet_V2_Weights.IMAGENET1K_V1``."""

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
    network = _network(Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS).to(images.device)
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (_MEAN, _STD))
    found = [torch.zeros(0, 1280)]
    with torch.inference_mode():
        for part in images.float().split(chunk) if len(images) else ():
            found.append(network(((part + 1) / 2 - mean) / std).mean((2, 3)).cpu())
    return torch.cat(found)


@functools.lru_cache(maxsize=1)
def _network(path: Path) -> nn.Module:
    from torchvision.models import mobilenet_v2  # here, as it takes a second to import

    if not path.is_file():
        download = "import torchvision; torchvision.models.mobilenet_v2(weights='IMAGENET1K_V1')"
        raise UserError("MobileNetV2's weights are not there", path, f'Download them: python -c "{download}"')
    with torch.device("meta"):  # no random start, which would move the random numbers of the program
        network = mobilenet_v2()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
    except Exception as error:  # torch.load raises many kinds
        raise UserError(
            f"MobileNetV2's weights cannot be read ({type(error).__name__})", path, "Delete the file"
        ) from None
    return network.features.eval().requires_grad_(False)
