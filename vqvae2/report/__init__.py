"""The report on a run: what is measured, its figures, its words and its page.

- ``measures``: reconstruction errors, sharpness, codebook use, likelihoods, each beside the most naive method's.
- ``describe``: distributions, and intervals of means over subjects.
- ``distances``: sets of images beside each other, in features of a network.
- ``anatomy``: plain measures of heads.
- ``regions``: whether samples hold regions of training images.
- ``numbers``: whether samples show the numbers that were asked for.
- ``recognised``: whether a classifier recognises classes better than by chance, and knows how sure it is.
- ``followed``: whether samples follow their labels, in sentences.
- ``samples``: diversity, memorisation, and the phantom's ventricles by label.
- ``figures``: drawn by matplotlib without a display.
- ``verdict``, ``summary``, ``warnings``: what the report says in words, from the numbers alone.
- ``page``: one HTML page, with nothing from elsewhere.
"""

from vqvae2.report.anatomy import anatomy_figures
from vqvae2.report.comparison import comparison, paired_errors
from vqvae2.report.describe import spread, spread_out, subject_interval
from vqvae2.report.distances import (
    Features,
    encoder_features,
    feature_neighbours,
    feature_spaces,
    frechet_of_all,
    set_distances,
    training_features,
)
from vqvae2.report.measures import (
    CodeScores,
    Scan,
    background_of,
    bits_per_dim,
    level_figures,
    mean_image,
    prior_figures,
    reconstruction_figures,
    reliance,
    scan,
    score_codes,
    table_figures,
)
from vqvae2.report.numbers import number_figures
from vqvae2.report.page import write_page
from vqvae2.report.recognised import accuracies, calibration_figures
from vqvae2.report.regions import region_figures
from vqvae2.report.samples import (
    Neighbours,
    SampleSet,
    Ventricles,
    decode,
    diversity_figures,
    memorisation_figures,
    nearest_training,
    neighbours,
    pairwise_ssim,
    read_samples,
    ventricle_figures,
    ventricles,
)
from vqvae2.report.summary import sample_summary, summary
from vqvae2.report.verdict import nearest_features, verdict
from vqvae2.report.warnings import warnings

__all__ = [
    "CodeScores",
    "Features",
    "Neighbours",
    "SampleSet",
    "Scan",
    "Ventricles",
    "accuracies",
    "anatomy_figures",
    "background_of",
    "bits_per_dim",
    "calibration_figures",
    "comparison",
    "decode",
    "diversity_figures",
    "encoder_features",
    "feature_neighbours",
    "feature_spaces",
    "frechet_of_all",
    "level_figures",
    "mean_image",
    "memorisation_figures",
    "nearest_features",
    "nearest_training",
    "neighbours",
    "number_figures",
    "paired_errors",
    "pairwise_ssim",
    "prior_figures",
    "read_samples",
    "reconstruction_figures",
    "region_figures",
    "reliance",
    "sample_summary",
    "scan",
    "score_codes",
    "set_distances",
    "spread",
    "spread_out",
    "subject_interval",
    "summary",
    "table_figures",
    "training_features",
    "ventricle_figures",
    "ventricles",
    "verdict",
    "warnings",
    "write_page",
]
