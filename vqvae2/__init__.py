"""Hierarchical VQ-VAE-2: images -> VQ-VAE -> codes -> prior -> codes -> images."""

from vqvae2.codes import CodeStore
from vqvae2.prior import Prior, PriorConfig
from vqvae2.sampling import sample
from vqvae2.version import __version__
from vqvae2.vqvae import VQVAE, VQVAEConfig

__all__ = ["VQVAE", "CodeStore", "Prior", "PriorConfig", "VQVAEConfig", "__version__", "sample"]
