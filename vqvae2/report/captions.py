"""The words of the report: captions of its figures with their units, names of sets and features, a glossary."""

__all__ = ["ALTERNATIVES", "CAPTIONS", "SETS", "WORDS", "space_words"]

SETS = {
    "reconstructions": "reconstructions",
    "painted": "painted by the detail decoder from the scored images' own codes",
    "samples": "samples",
    "training_images": "training images (real beside real)",
    "blurred_0.5": "scored images blurred by 0.5 pixels",
    "blurred_1.0": "scored images blurred by 1 pixel",
}
"""What the sets are called whose distances are measured, in the order in which they are shown."""


def space_words(space: str) -> str:
    """Say in which features sets are compared, by their name in the report."""
    known = {"encoder": "the VQ-VAE's own features", "inception": "Inception-v3's features (torch-fidelity)"}
    return known.get(space, f"{space}'s features")


CAPTIONS: dict[str, tuple[str, str]] = {
    "reconstructions": (
        "Best, median and worst reconstructions",
        "By SSIM. The difference is reconstruction minus original on the [−1, 1] scale: red where the reconstruction "
        "is brighter, blue where it is darker.",
    ),
    "levels": (
        "What each level carries",
        "Decoded from the upper levels alone, an absent level replaced by its usage-weighted mean code everywhere.",
    ),
    "ssim": (
        "SSIM of every image",
        "Share of the images by SSIM, decoded from all levels, from the upper ones alone, and of the mean training "
        "image in place of every reconstruction.",
    ),
    "code_maps": ("Code maps", "Each code has a colour of its own; neighbouring numbers have unrelated colours."),
    "codebook_use": (
        "Codebook usage",
        "How often each code occurs, sorted, on a logarithmic scale. A codebook in even use would lie on the dotted "
        "line; a collapsed one falls off at once.",
    ),
    "nll_maps": (
        "Where the codes are hard to predict",
        "Mean NLL at each position of the code map, in nats per code. The position-wise unigram is the table of "
        "training counts for each position.",
    ),
    "samples": ("Samples", "Drawn from the priors and decoded, in the order in which they were drawn."),
    "samples_by_class": (
        "Samples by class",
        "The first samples of each class, beside held-out images of it: do samples follow their labels? Of many "
        "labels, and of many classes, some are shown, evenly spaced.",
    ),
    "rejection": (
        "Precision, recall and Fréchet distance where the surest samples are kept",
        "In each class, the samples the classifier is surest of are kept: all, three quarters, half, a quarter. "
        "Precision: share of samples that lie among held-out images; recall: share of held-out images that lie among "
        "samples. The Fréchet distance is divided by that of all samples; below 1 the kept ones are nearer to held-out "
        "images.",
    ),
    "sample_nll": (
        "Likelihood of samples and of held-out images",
        "NLL of each image's codes under the priors. Samples of the priors themselves far to the left of held-out "
        "images mean that a prior is too sure of itself; guidance and cuts move them to the left.",
    ),
    "neighbours": (
        "Closest to the training images",
        "The samples that are closest to a training image, above that image; below, the same for held-out images. "
        "d is the root-mean-square difference on the [−1, 1] scale.",
    ),
    "distances": (
        "Distance to the nearest training image",
        "Of samples, of held-out images, and of their reconstructions, which are as smooth as samples are. A sample "
        "that copies lies far to the left.",
    ),
    "ventricles": (
        "Whether labels steer",
        "Ventricle area as a share of the brain's area, measured from the pictures alone; each point is an image.",
    ),
    "vqvae_curves": ("Training of the VQ-VAE", "As logged in vqvae/stats.jsonl; val is held out from all decisions."),
    "prior_curves": (
        "Training of the priors",
        "As logged in stats.jsonl of each prior, beside tables of counts of the same codes. A train curve that falls "
        "while val rises means overfitting.",
    ),
}
"""Title and caption by file name, in no order."""

ALTERNATIVES = {
    "reconstructions": (
        "Three rows of pictures: originals, their reconstructions, and the difference in red and blue. Columns go "
        "from the best SSIM over the median to the worst."
    ),
    "levels": (
        "Rows of the same pictures: the originals, then what is decoded from the coarsest level alone, from more "
        "levels, and from all. Detail appears with each level."
    ),
    "ssim": "Histograms of SSIM laid over each other, one for each set that the legend names.",
    "code_maps": "A row of originals over a row of coloured mosaics for each level: the maps of their codes.",
    "codebook_use": (
        "A falling curve for each level: the share of cells that have each code, most used first, on a logarithmic "
        "scale."
    ),
    "nll_maps": (
        "Heat maps for each level, of the prior and of the position-wise unigram: bright cells have codes that are "
        "hard to predict."
    ),
    "samples": "A grid of up to 64 samples.",
    "samples_by_class": "A row of pictures for each class: samples at the left, held-out images at the right.",
    "rejection": (
        "Left, precision over recall, a point for each share of the samples that is kept. Right, the Fréchet distance "
        "over that share."
    ),
    "sample_nll": "Histograms of NLL for each level: samples and held-out images, laid over each other.",
    "neighbours": (
        "Four rows of pictures: samples, the training images nearest to them, held-out images, and the training "
        "images nearest to those."
    ),
    "distances": (
        "Histograms of the distance to the nearest training image: samples, held-out images and their "
        "reconstructions, with a line at the 1st percentile of held-out images."
    ),
    "ventricles": (
        "Points for each label: ventricle areas of training images in grey, of samples in blue, with a bar at each "
        "mean."
    ),
    "vqvae_curves": "Three panels of curves over training steps: the loss, SSIM, and the perplexity of each codebook.",
    "prior_curves": (
        "A panel for each level: the NLL of training and held-out codes over training steps, with lines at the "
        "unigrams."
    ),
}
"""What is seen in each, for those who do not see it."""

WORDS = {
    "SSIM": "Structural similarity of two images (Wang et al. 2004); 1 is perfect. Over the whole frame it mostly "
    "scores the background where there is one; in the foreground it does not.",
    "PSNR": "Peak signal-to-noise ratio, in decibels: 10 log₁₀ of the squared range over the mean squared error.",
    "Perplexity": "Number of codes in even use: the exponential of the entropy of the codes.",
    "NLL": "Negative log-likelihood of the codes under a prior, in nats per code; less is better.",
    "Position-wise unigram": "The most naive prior: how often each code stood at each position of the training images.",
    "KID": "Kernel distance between two sets of images in the features of a network (Bińkowski et al. 2018), without "
    "bias: 0 on average where both come from one distribution.",
    "Fréchet distance": "Distance between two Gaussians fitted to the features (Heusel et al. 2017; FID in Inception's "
    "features). It grows as sets get smaller: compare it with that of real images.",
    "Precision, recall": "Share of the set's images that lie among the real ones, and of the real ones that lie among "
    "the set's (Kynkäänniemi et al. 2019).",
    "Density, coverage": "How densely the set's images surround real ones (1 is expected), and the share of the real "
    "ones that have one near (Naeem et al. 2020).",
    "Told apart": "How often the nearest neighbour of an image is of its own set: 0.5 where sets cannot be told apart, "
    "1 where they can always be (Lopez-Paz and Oquab 2017).",
    "Expected calibration error": "How far a classifier's probability is from the share that is right, on average (Guo "
    "et al. 2017): 0 if it is right as often as it says.",
}
"""The glossary."""
