"""Weights of other projects as models of this one.

rosinality/vq-vae-2-pytorch (MIT): its two-level VQ-VAE, as its ``train_vqvae.py`` writes it. It, too, takes images in
[-1, 1]. Its names::

    enc_b, enc_t, quantize_conv_t, quantize_t, dec_t, quantize_conv_b, quantize_b, upsample_t, dec

Shapes: C channels of an image, F hidden channels, R channels inside a residual block, D dimensions, K codes.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from vqvae2.errors import UserError
from vqvae2.vqvae import VQVAE
from vqvae2.vqvae_config import VQVAEConfig

__all__ = ["read_rosinality", "vqvae_of_rosinality"]

_PRIORS = "horizontal.conv.conv.weight_v"  # in every PixelSNAIL of that project
_UNREADABLE = "this is no checkpoint of PyTorch with tensors alone, or it is damaged"
_PLACES = {
    "encoders.0.": "enc_t.blocks.",
    "encoders.1.": "enc_b.blocks.",
    "to_code.0.": "quantize_conv_t.",
    "to_code.1.": "quantize_conv_b.",
    "quantizers.0.": "quantize_t.",
    "quantizers.1.": "quantize_b.",
    "conditioners.0.": "dec_t.blocks.",
    "decoders.0.0.": "upsample_t.",
    "decoders.1.": "dec.blocks.",
}
"""Our names, as they begin, and theirs."""
_RENAMED = {"embedding": "embed", "embedding_sum": "embed_avg"}
_UPDATES = 10_000  # of the codebooks: as many as end the growing window of their moving average


def read_rosinality(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: of the file.

    Returns:
        Its tensors by name.

    Raises:
        UserError: it cannot be read, or holds no VQ-VAE of that project.
    """
    if not path.is_file():
        raise UserError("there is no such file", path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        prior = "argparse.Namespace" in str(error)  # kept beside the weights by its train_pixelsnail.py
        raise _of_prior(path) if prior else UserError(_UNREADABLE, path) from error
    except Exception as error:  # a file that is no checkpoint can fail in any way
        raise UserError(_UNREADABLE, path) from error
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        stored = stored["model"]
    if not (isinstance(stored, dict) and stored and all(isinstance(value, Tensor) for value in stored.values())):
        raise UserError("this is no checkpoint of tensors by name", path)
    tensors = {str(name).removeprefix("module."): value for name, value in stored.items()}  # of a distributed training
    if _PRIORS in tensors:
        raise _of_prior(path)
    return tensors


def vqvae_of_rosinality(tensors: dict[str, Tensor], height: int, width: int, where: object = "") -> VQVAE:
    """Build the VQ-VAE of a checkpoint: the same codes, and the same images but for rounding.

    Its top encoder is narrower in its first layer than ours, whose other channels stay zero.

    Args:
        tensors: as `read_rosinality` returns them.
        height, width: H, W in pixels, multiples of 8.
        where: for messages.

    Raises:
        UserError: a tensor is missing, left over or of another shape, or H and W are no multiples of 8.
    """
    try:
        config = _config(tensors, height, width)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"this is no VQ-VAE of rosinality/vq-vae-2-pytorch ({error})", where) from None
    config.check_size(height, width)
    model = VQVAE(config)
    left = dict(tensors)
    state = {name: _taken(left, name, like, where) for name, like in model.state_dict().items()}
    if left:
        raise UserError(f"this VQ-VAE has parts that ours lacks, such as {min(left)}", where)
    model.load_state_dict(state)
    return model.eval()


def _of_prior(path: Path) -> UserError:
    what = "this is a PixelSNAIL of rosinality/vq-vae-2-pytorch, which differs from our priors in its layers"
    return UserError(what, path, "Import the VQ-VAE, and train priors on its codes")


def _config(tensors: dict[str, Tensor], height: int, width: int) -> VQVAEConfig:
    channels = tensors["enc_b.blocks.0.weight"].shape[1]
    hidden = tensors["enc_b.blocks.2.weight"].shape[0]
    layers = sum(name.startswith("enc_b.blocks.") and name.endswith(".conv.1.weight") for name in tensors)
    residual = tensors["enc_b.blocks.5.conv.1.weight"].shape[0] if layers else 1
    dims, codes = zip(*(tensors[f"quantize_{level}.embed"].shape for level in "tb"), strict=True)
    if dims[0] != dims[1]:
        raise ValueError(f"its levels have {dims[0]} and {dims[1]} dimensions")
    return VQVAEConfig(
        channels=channels,
        height=height,
        width=width,
        strides=(2, 4),
        num_embeddings=codes,
        embedding_dim=dims,
        hidden_channels=hidden,
        residual_channels=residual,
        num_residual_layers=layers,
        joint_channels=dims[0],
        upper_decoder="both",
        normalize="none",
    )


def _taken(left: dict[str, Tensor], name: str, like: Tensor, where: object) -> Tensor:
    """Make a tensor of ours from theirs, which is taken out of ``left``."""
    own = next(prefix for prefix in _PLACES if name.startswith(prefix))
    rest = name.removeprefix(own)
    if own.startswith("quantizers") and rest == "updates":
        return torch.full_like(like, _UPDATES)
    theirs = _PLACES[own] + _RENAMED.get(rest, rest.replace(".conv.", ".conv.1.").replace(".project.", ".conv.3."))
    if theirs not in left:
        raise UserError(f"this VQ-VAE lacks {theirs}", where)
    found = left.pop(theirs).to(like.dtype)
    half = name in ("encoders.0.0.weight", "encoders.0.0.bias", "encoders.0.2.weight")  # theirs is half as wide
    if rest in ("embedding", "embedding_sum"):
        found = found.T
    fits = all(size <= most if half else size == most for size, most in zip(found.shape, like.shape, strict=False))
    if found.ndim != like.ndim or not fits:
        raise UserError(f"{theirs} has shape {tuple(found.shape)}, not {tuple(like.shape)}", where)
    if name == "to_code.1.weight":  # theirs join the top first, ours last
        found = found.roll(-found.shape[0], 1)
    elif name == "decoders.1.0.weight":
        found = found.roll(-(found.shape[1] // 2), 1)
    elif half:
        narrow, found = found, torch.zeros_like(like)
        found[tuple(slice(size) for size in narrow.shape)] = narrow
    return found.contiguous()
