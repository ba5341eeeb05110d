"""Anything that people have as brain slices, and the embedded phantom, as tensors in [-1, 1]."""

from vqvae2.data.augmentation import AugmentationConfig, AugmentedSet, augment
from vqvae2.data.config import DataConfig
from vqvae2.data.dataset import ImageData, ImageSet, as_stored, from_unit, to_unit
from vqvae2.data.opening import load_images, open_data

__all__ = [
    "AugmentationConfig",
    "AugmentedSet",
    "DataConfig",
    "ImageData",
    "ImageSet",
    "as_stored",
    "augment",
    "from_unit",
    "load_images",
    "open_data",
    "to_unit",
]
