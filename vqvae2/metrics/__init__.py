"""Figures of merit, in which no model is known.

- ``images``: SSIM, PSNR and MSE over the whole frame.
- ``sharpness``: the same in the foreground, power and coherence by wavelength, the blur of equal score.
- ``codes``: use of the codebooks, and the likelihood of codes under tables of counts.
- ``sets``: one set of images held against another: Frechet and kernel distance (KID), precision and recall.
- ``neighbours``: the nearest images by pixels; ``copies``: those after shifts, mirrored and in another light;
  ``regions``: those of parts of images.
- ``pretrained``: what a pretrained network makes of images, for distances between sets and of an image from another.

Images are (B, C, H, W) in [-1, 1], so the data range is 2, always given and never guessed. Codes are integer maps
(B, h, w). Likelihoods are in nats per code.
"""

from vqvae2.metrics.codes import (
    CodeCounts,
    best_strength,
    constant_cells,
    least_perplexity,
    naive_log_tables,
    perplexity,
    position_counts,
    positionwise_log_table,
    positionwise_unigram_nll,
    table_nll,
    unigram_nll,
    usage,
)
from vqvae2.metrics.copies import Aligned, aligned_nearest
from vqvae2.metrics.images import gaussian_blur, image_scores, ssim, ssim_map
from vqvae2.metrics.neighbours import nearest
from vqvae2.metrics.pretrained import (
    check_features,
    feature_maps,
    features,
    maps_distance,
    named_features,
    perceptual_distance,
)
from vqvae2.metrics.regions import Regions, region_nearest
from vqvae2.metrics.sets import Neighbourhoods, frechet_distance, kernel_distance, neighbourhoods
from vqvae2.metrics.sharpness import (
    BANDS,
    Bands,
    BlurScale,
    Sharpness,
    background_value,
    foreground,
    foreground_scores,
)

__all__ = [
    "BANDS",
    "Aligned",
    "Bands",
    "BlurScale",
    "CodeCounts",
    "Neighbourhoods",
    "Regions",
    "Sharpness",
    "aligned_nearest",
    "background_value",
    "best_strength",
    "check_features",
    "constant_cells",
    "feature_maps",
    "features",
    "foreground",
    "foreground_scores",
    "frechet_distance",
    "gaussian_blur",
    "image_scores",
    "kernel_distance",
    "least_perplexity",
    "maps_distance",
    "naive_log_tables",
    "named_features",
    "nearest",
    "neighbourhoods",
    "perceptual_distance",
    "perplexity",
    "position_counts",
    "positionwise_log_table",
    "positionwise_unigram_nll",
    "region_nearest",
    "ssim",
    "ssim_map",
    "table_nll",
    "unigram_nll",
    "usage",
]
